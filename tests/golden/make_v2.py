"""Write the golden files of format version 2 and what they hold.

Run once a file, when version 2 was fixed; the files are never to change. Some are cases of version 1 in the
bytes of version 2; `harmonised` has what only version 2 leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import make_v1
import numpy as np
from make_v1 import Case, Chunk

from tmcodec.tokenfile import Balance, FileMeta, LayerMeta

HERE = Path(__file__).parent / "v2"
VERSION = 2
MINI_LULC = "989abca8e61945e678916648841226707fe3e277ac51e4a696e41ecc66db3a87"
MINI_NDVI = "b2d340b457c6ec1e96c30303443da30f8a0517caaf1dc4185188b010c7d2114b"


def harmonised() -> Case:
    """A chip of harmonised Sentinel-2, NDVI elsewhere and NDVI without a place, by registered tokenizers."""
    values = tuple((i * 7919) % 9 - 4 for i in range(12 * 2))
    chip = LayerMeta(
        name="S2L2A", modality="S2L2A", tokenizer="mini-s2l2a-v2", levels=(8, 8, 8, 6, 5), width=120,
        height=120, weights_sha256=bytes.fromhex(make_v1.MINI_S2L2A), dtype="int16", bands=make_v1.L2A,
        units="DN", offset=1000.0, s2_offset="absent", crs="EPSG:32632",
        times=(datetime(2017, 6, 13, 10, 10, 31),),
        transform=(10.0, 0.0, 399960.0, 0.0, -10.0, 4900020.0), balance=Balance(32, 2000.0, 16, 32.0, values),
    )  # fmt: skip
    ndvi = LayerMeta(
        name="NDVI", modality="NDVI", tokenizer="mini-ndvi-v2", levels=(8, 8, 8, 6, 5), width=200, height=168,
        weights_sha256=bytes.fromhex(MINI_NDVI), dtype="float32", bands=("NDVI",), units="1", crs="EPSG:4326",
        transform=(1e-4, 0.0, -74.25, 0.0, -1e-4, 40.75), nodata=float("nan"),
    )  # fmt: skip
    nowhere = ndvi.replace(name="elsewhere " * 4, crs=None, transform=None, scale=0.5)
    y, x = np.mgrid[:168, :200]
    chunks = (
        Chunk(0, 0, 0, 0, make_v1.hills(8, 8, 15360, 31) // 9),
        Chunk(1, 0, 0, 0, make_v1.hills(11, 13, 15360, 5) // 9),
        Chunk(2, 0, 0, 0, make_v1.hills(11, 13, 15360, 7) // 9, (x + y > 9)[None]),
    )
    return Case("harmonised", FileMeta((chip, ndvi, nowhere)), chunks, needs_zstd=True, coders=(0, 1, 2))


def edges() -> Case:
    """Masks in context: round holes, a slanted edge that differs from band to band, a single pixel."""
    y, x = np.mgrid[:300, :330]
    holes = [np.hypot(y - 37 * i % 300, x - 101 * i % 330) < 4 + i % 23 for i in range(1, 40)]
    land = LayerMeta(
        name="NDVI", modality="NDVI", tokenizer="mini-ndvi-v2", levels=(8, 8, 8, 6, 5), width=330, height=300,
        weights_sha256=bytes.fromhex(MINI_NDVI), dtype="float32", bands=("NDVI",), units="1", nodata=-2.0,
    )  # fmt: skip
    chip = LayerMeta(
        name="S2L2A", modality="S2L2A", tokenizer="mini-s2l2a-v2", levels=(8, 8, 8, 6, 5), width=150,
        height=141, weights_sha256=bytes.fromhex(make_v1.MINI_S2L2A), dtype="uint16", bands=make_v1.L2A,
        units="DN", nodata=0, chunk=5,
    )  # fmt: skip
    y, x = np.mgrid[:80, :80]
    slanted = np.stack([5 * x + 2 * y > 150 + 11 * (band // 4) for band in range(12)])
    dot = np.ones((1, 61, 80), np.bool_)
    dot[0, 17, 33] = False
    chunks = (
        Chunk(0, 0, 0, 0, make_v1.hills(19, 21, 15360, 3) // 9, ~np.any(holes, axis=0)[None]),
        Chunk(1, 0, 0, 0, make_v1.hills(5, 5, 15360, 11) // 9, slanted),
        Chunk(1, 0, 1, 0, make_v1.hills(4, 5, 15360, 13) // 9, dot),
        Chunk(1, 0, 0, 1, make_v1.hills(5, 5, 15360, 17) // 9),
        Chunk(1, 0, 1, 1, None),
    )
    meta = FileMeta((land, chip))
    return Case("edges", meta, chunks, needs_zstd=False, coders=(0, 1, 2), plain_masks=False)


def halved() -> Case:
    """Masks in context of 2 x 2 pixels: clouds of 20 m in 10 m, cut at the edge of the raster."""
    layer = LayerMeta(
        name="S2L2A", modality="S2L2A", tokenizer="mini-s2l2a-v2", levels=(8, 8, 8, 6, 5), width=145,
        height=75, weights_sha256=bytes.fromhex(make_v1.MINI_S2L2A), dtype="uint16", bands=make_v1.L2A,
        units="DN", nodata=0, chunk=6,
    )  # fmt: skip
    y, x = np.mgrid[:75, :145] // 2
    holes = [np.hypot(y - 11 * i % 37, x - 29 * i % 72) < 2 + i % 7 for i in range(1, 12)]
    clear = ~np.any(holes, axis=0)
    bands = np.stack([clear & (x + y > 59 + band // 6) for band in range(12)])
    chunks = (
        Chunk(0, 0, 0, 0, make_v1.hills(5, 6, 15360, 19) // 9, clear[None, :, :96]),
        Chunk(0, 0, 0, 1, make_v1.hills(5, 4, 15360, 23) // 9, bands[:, :, 96:]),
    )
    return Case("halved", FileMeta((layer,)), chunks, needs_zstd=False, coders=(0, 1, 2), plain_masks=False)


def classes() -> Case:
    """Maps that say which classes they have: of each date, the same of both, of a single one."""
    each = LayerMeta(
        name="LULC", modality="LULC", tokenizer="mini-lulc-v2", levels=(7, 5, 5, 5, 5), width=90, height=70,
        weights_sha256=bytes.fromhex(MINI_LULC), dtype="uint8", bands=("LULC",), units="class", nodata=0,
        times=(None, datetime(2020, 7, 1), datetime(2021, 7, 1)), class_sets=(0, 1 << 1 | 1 << 4 | 1 << 9, 2),
    )  # fmt: skip
    alike = each.replace(name="two", times=each.times[1:], class_sets=(0b1010,))
    one = each.replace(name="one", times=(None,), class_sets=(1 << 63 | 1,))
    chunks = tuple(
        Chunk(layer, time, 0, 0, make_v1.hills(5, 6, 4375, 29 + 2 * time + layer) // 9)
        for layer, meta in enumerate((each, alike, one)) for time in range(len(meta.times))
    )
    return Case("classes", FileMeta((each, alike, one)), chunks, needs_zstd=False, coders=(0, 1, 2))


def cases() -> Iterator[Case]:
    """Yield every golden file of version 2."""
    yield from (make_v1.tiny(), make_v1.stacked(), make_v1.context(), make_v1.layers())
    yield from (harmonised(), edges(), halved(), classes())


if __name__ == "__main__":
    make_v1.write_new(HERE, cases(), VERSION)
