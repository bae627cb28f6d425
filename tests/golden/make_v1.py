"""Write the golden files of format version 1 and what they hold.

Run once a file, when version 1 or what it adds was fixed; the files are never to change. ``cases()``
is used by the tests, which check that today's writer still makes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from tmcodec.tokenfile import Balance, FileMeta, LayerMeta, TokenFileWriter

HERE = Path(__file__).parent / "v1"
MINI_S2L2A = "a6bf412a84c8254d30d2fc197e3cb91a52ae4d7764e4e0b85819e6d3358c658c"
MINI_DEM = "894f5b4eea63e8ae7eda0ee6b02f8351bf09359c57a72229833b5e9f37827f02"
L2A = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
WKT = (
    'LOCAL_CS["plant coordinates",LOCAL_DATUM["plant",0],UNIT["metre",1],'
    'AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
)


@dataclass(frozen=True)
class Chunk:
    """One chunk to write."""

    layer: int
    time: int
    row: int
    col: int
    tokens: np.ndarray | None
    valid: np.ndarray | None = None


@dataclass(frozen=True)
class Case:
    """One golden file."""

    name: str
    meta: FileMeta
    chunks: tuple[Chunk, ...]
    needs_zstd: bool
    before_numbers: bool = False
    """Whether it names a tokenizer in full that has got a number since."""
    coders: tuple[int, ...] | None = (0, 1)
    plain_masks: bool = True
    """Whether it was written before masks were coded in context."""


def scatter(rows: int, cols: int, codes: int, salt: int) -> np.ndarray:
    """Return tokens that look random: int32 (rows, cols)."""
    r, c = np.mgrid[:rows, :cols].astype(np.uint64)
    x = r * 73856093 + c * 19349663 + salt * 83492791
    for shift in (13, 15, 16):  # the mixing steps of a 32-bit hash
        x = (x ^ x >> shift) * 0x5BD1E995 % 2**32
    return (x % codes).astype(np.int32)


def tiny() -> Case:
    """The example of docs/format.md: four tokens of a DEM."""
    meta = LayerMeta(
        name="DEM", modality="DEM", tokenizer="mini-dem-v1", weights_sha256=bytes(range(32)),
        levels=(8, 8, 8, 6, 5), width=20, height=20, dtype="int16", bands=("DEM",), units="m",
    )  # fmt: skip
    tokens = np.array([[1, 0], [0, 15359]], np.int32)
    return Case("tiny", FileMeta((meta,)), (Chunk(0, 0, 0, 0, tokens),), needs_zstd=False)


def chip() -> Case:
    """A 256 x 256 chip of Sentinel-2."""
    meta = LayerMeta(
        name="S2L2A", modality="S2L2A", tokenizer="mini-s2l2a-v1", weights_sha256=bytes(range(32, 64)),
        levels=(8, 8, 8, 6, 5), width=256, height=256, dtype="uint16", bands=L2A, units="DN", nodata=0.0,
        s2_offset="present", crs="EPSG:32632", transform=(10.0, 0.0, 399960.0, 0.0, -10.0, 4900020.0),
        times=(datetime(2023, 6, 1, 10, 20, 31, tzinfo=timezone.utc),),
    )  # fmt: skip
    return Case("chip", FileMeta((meta,)), (Chunk(0, 0, 0, 0, scatter(16, 16, 15360, 1)),), needs_zstd=False)


def masked() -> Case:
    """A modality of one's own, every field away from its default, masks, chunks at the edge, empty ones."""
    meta = LayerMeta(
        name="höhe", modality="thermal", tokenizer="mine", weights_sha256=b"\xff" * 32, levels=(3, 2),
        patch=4, tile=32, chunk=5, width=61, height=43, dtype="float32", bands=("T10", "T11", ""), units="K",
        scale=0.01, offset=-273.15, nodata=float(np.float32(-3.4028230607370965e38)), crs=WKT,
        mask_kind="mask",
        transform=(0.5, 0.125, -3.25, -0.125, -0.5, 1e-7),
        times=(datetime(1969, 12, 31, 23, 59, 59, 999999),),
        sampler="dpm", steps=7, seed=2**64 - 1, tags={"b": "2", "a": ""}, description="x\ny",
    )  # fmt: skip
    chunks = []
    for row, col in np.ndindex(meta.grid.chunk_rows, meta.grid.chunk_cols):
        (h, w), (rows, cols) = meta.grid.pixel_shape(row, col), meta.grid.token_shape(row, col)
        y, x = np.mgrid[:h, :w]
        valid: np.ndarray | None = None
        if (row + col) % 3 == 1:
            valid = (x + y > 9)[None]
        elif (row + col) % 3 == 2:
            valid = np.stack([x > 2, y > 2, x + y < 30])
        tokens = None if (row, col) == (1, 1) else scatter(rows, cols, 6, row * 10 + col)
        chunks.append(Chunk(0, 0, row, col, tokens, None if tokens is None else valid))
    return Case("masked", FileMeta((meta,), {"source": "golden"}), tuple(chunks), needs_zstd=True)


def stacked() -> Case:
    """Two layers with their own grids, one with three time steps; constant tokens, so zstandard wins."""
    crs, transform = "EPSG:4326", (0.0001, 0.0, 11.5, 0.0, -0.0001, 48.25)
    lulc = LayerMeta(
        name="LULC", modality="LULC", tokenizer="mini-lulc-v12", weights_sha256=b"\x01" * 32,
        levels=(7, 5, 5, 5, 5), width=640, height=512, dtype="uint8", bands=("LULC",), units="class",
        nodata=-(2**63), crs=crs, transform=transform, chunk=32,
        times=(None, datetime(2020, 2, 29), datetime(2021, 1, 1, 12, 0, 0, 5)),
    )  # fmt: skip
    radar = LayerMeta(
        name="S1 ascending", modality="S1GRD", tokenizer="terramind-s1grd", weights_sha256=b"\x02" * 32,
        levels=(8, 8, 8, 6, 5), width=320, height=256, dtype="float32", bands=("VV", "VH"), units="dB",
        nodata=float("nan"), crs=crs, transform=(0.0002, 0.0, 11.5, 0.0, -0.0002, 48.25), tile=224,
    )  # fmt: skip
    chunks = [
        Chunk(0, time, 0, col, None if time == 1 else np.full((32, 32 if col == 0 else 8), 4374 - time))
        for time in range(3)
        for col in range(2)
    ]
    chunks.append(Chunk(1, 0, 0, 0, scatter(16, 20, 15360, 9)))
    return Case("stacked", FileMeta((lulc, radar)), tuple(chunks), needs_zstd=True)


def balanced() -> Case:
    """Two dates of a small Sentinel-2 raster with a balance; came with the field, after the others."""
    values = [(i * 7919) % 81 - 40 for i in range(2 * 2 * 3 * 13 * 2)]
    meta = LayerMeta(
        name="S2L1C", modality="S2L1C", tokenizer="mini-s2l1c-v1", weights_sha256=b"\x03" * 32,
        levels=(8, 8, 8, 6, 5), width=100, height=56, dtype="uint16", units="DN", s2_offset="absent",
        bands=("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"),
        times=(datetime(2018, 5, 1), datetime(2018, 8, 1)),
        balance=Balance(3, 2000.0, 64, 4.0, tuple(values), 128, tuple(i - 26 for i in range(2 * 2 * 13))),
    )  # fmt: skip
    chunks = tuple(Chunk(0, time, 0, 0, scatter(4, 7, 15360, 20 + time)) for time in range(2))
    return Case("balanced", FileMeta((meta,)), chunks, needs_zstd=False)


def hills(rows: int, cols: int, codes: int, salt: int) -> np.ndarray:
    """Return tokens of which neighbours are alike: int32 (rows, cols)."""
    r, c = np.mgrid[:rows, :cols]
    return ((r * r * 3 + c * (salt + 2) + scatter(rows, cols, 7, salt)) % codes).astype(np.int32)


def context() -> Case:
    """Chunks in their contexts: without tables, with references and masks, and with mini-dem-v1's tables."""
    plain = LayerMeta(
        name="plain", modality="S2RGB", tokenizer="mine", weights_sha256=b"\x03" * 32, levels=(8, 8, 8, 6, 5),
        width=480, height=320, dtype="uint8", bands=("B04", "B03", "B02"), units="1", chunk=16,
        times=(datetime(2020, 2, 29), datetime(2020, 3, 1)),
    )  # fmt: skip
    dem = LayerMeta(
        name="DEM", modality="DEM", tokenizer="mini-dem-v1", levels=(8, 8, 8, 6, 5), width=200, height=168,
        weights_sha256=bytes.fromhex(MINI_DEM), dtype="int16", bands=("DEM",), units="m",
    )  # fmt: skip
    chunks = []
    for time, row, col in np.ndindex(2, plain.grid.chunk_rows, plain.grid.chunk_cols):
        tokens = hills(*plain.grid.token_shape(row, col), 15360, 3 * row + col)
        tokens[0, : 3 * time] = time  # a little happened meanwhile
        y, x = np.mgrid[tuple(slice(0, n) for n in plain.grid.pixel_shape(row, col))]
        valid = (x + y > 30)[None] if (time, row) == (1, 1) else None
        chunks.append(Chunk(0, time, row, col, tokens, valid))
    chunks.append(Chunk(1, 0, 0, 0, hills(11, 13, 15360, 5) // 9))
    return Case("context", FileMeta((plain, dem)), tuple(chunks), True, before_numbers=True, coders=None)


def registered() -> Case:
    """A chip and a hill with what makes small files smaller: tokenizers by number, a balance in bits."""
    values = [(i * 7919) % 61 - 30 for i in range(12 * 2)]
    chip = LayerMeta(
        name="S2L2A", modality="S2L2A", tokenizer="mini-s2l2a-v2", weights_sha256=bytes.fromhex(MINI_S2L2A),
        levels=(8, 8, 8, 6, 5), width=120, height=120, dtype="uint16", bands=L2A, units="DN",
        s2_offset="present", crs="EPSG:32632", transform=(10.0, 0.0, 399960.0, 0.0, -10.0, 4900020.0),
        balance=Balance(32, 2000.0, 64, 4.0, tuple(values)),
    )  # fmt: skip
    hill = LayerMeta(
        name="DEM", modality="DEM", tokenizer="mini-dem-v1", levels=(8, 8, 8, 6, 5), width=200, height=168,
        weights_sha256=bytes.fromhex(MINI_DEM), dtype="int16", bands=("DEM",), units="m",
    )  # fmt: skip
    chunks = (
        Chunk(0, 0, 0, 0, scatter(8, 8, 15360, 31)),
        Chunk(1, 0, 0, 0, hills(11, 13, 15360, 5) // 9),
    )
    return Case("registered", FileMeta((chip, hill)), chunks, needs_zstd=False)


def layers() -> Case:
    """Two dates of a picture, land cover of other levels that follows from it, a layer of another grid."""
    crs, transform = "EPSG:32632", (10.0, 0.0, 399960.0, 0.0, -10.0, 4900020.0)
    times = (datetime(2020, 2, 29), datetime(2020, 3, 1))
    picture = LayerMeta(
        name="picture", modality="S2RGB", tokenizer="mine", weights_sha256=b"\x04" * 32,
        levels=(8, 8, 8, 6, 5), width=470, height=150, dtype="uint8", bands=("B04", "B03", "B02"), units="1",
        chunk=20, times=times, crs=crs, transform=transform,
    )  # fmt: skip
    cover = picture.replace(
        name="LULC", modality="LULC", weights_sha256=b"\x05" * 32, levels=(7, 5, 5, 5, 5), bands=("LULC",),
        units="class", times=(times[1], times[1].replace(year=2031)),
    )  # fmt: skip
    coarse = picture.replace(name="coarse", width=235, height=75, times=(None,))
    chunks = []
    for time, row, col in np.ndindex(2, picture.grid.chunk_rows, picture.grid.chunk_cols):
        below = scatter(*picture.grid.token_shape(row, col), 15360, 50 + 3 * row + col + 9 * time)
        digits = [below // 8**k % 8 % level for k, level in enumerate((7, 5, 5))]
        alike = digits[0] + 7 * digits[1] + 35 * digits[2] + 175 * (below // 512 % 6 % 5)
        y, x = np.mgrid[tuple(slice(0, n) for n in picture.grid.pixel_shape(row, col))]
        chunks.append(Chunk(0, time, row, col, None if (time, row, col) == (0, 0, 1) else below))
        chunks.append(Chunk(1, time, row, col, alike, (x * y > 99)[None] if (time, col) == (1, 0) else None))
    chunks.append(Chunk(2, 0, 0, 0, scatter(5, 15, 15360, 80)))
    return Case("layers", FileMeta((picture, cover, coarse)), tuple(chunks), needs_zstd=True, coders=None)


def cases() -> Iterator[Case]:
    """Yield every golden file of version 1."""
    yield from (tiny(), chip(), masked(), stacked(), balanced(), context(), layers(), registered())


def write(case: Case, version: int = 1) -> bytes:
    """Return the bytes that today's writer makes of `case`."""
    file = io.BytesIO()
    with TokenFileWriter(file, case.meta, coders=case.coders, version=version) as writer:
        for c in case.chunks:
            writer.write_chunk(c.layer, c.time, c.row, c.col, c.tokens, c.valid)
    return file.getvalue()


def contents(case: Case) -> dict[str, Any]:
    """Return what `case` holds, from the arrays and not from the file: tokens, and a hash of the masks."""
    layers = {}
    for number, meta in enumerate(case.meta.layers):
        tokens = np.zeros((len(meta.times), meta.rows, meta.cols), np.int32)
        valid = np.zeros((len(meta.times), len(meta.bands), meta.height, meta.width), np.bool_)
        for c in (c for c in case.chunks if c.layer == number and c.tokens is not None):
            assert c.tokens is not None
            rows, cols = c.tokens.shape
            y, x = c.row * meta.chunk, c.col * meta.chunk
            tokens[c.time, y : y + rows, x : x + cols] = c.tokens
            y, x, side = y * meta.patch, x * meta.patch, meta.chunk * meta.patch
            valid[c.time, :, y : y + side, x : x + side] = True if c.valid is None else c.valid
        layers[meta.name] = {
            "tokens": tokens.tolist(),
            "valid": hashlib.sha256(np.packbits(valid)).hexdigest(),
        }
    return {"zstd": list(zstandard.ZSTD_VERSION), "layers": layers}


def write_new(folder: Path, found: Iterable[Case], version: int) -> None:
    """Write the files that are not there yet."""
    folder.mkdir(exist_ok=True)
    for one in found:
        if (folder / f"{one.name}.tmc").exists():
            print(f"{one.name}.tmc exists and stays; golden files are for ever")
            continue
        (folder / f"{one.name}.tmc").write_bytes(write(one, version))
        (folder / f"{one.name}.json").write_text(json.dumps(contents(one)) + "\n")


if __name__ == "__main__":
    write_new(HERE, cases(), 1)
