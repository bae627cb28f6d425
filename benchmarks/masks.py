"""Masks in context beside what else holds one bit a pixel: bytes and times.

    python benchmarks/masks.py --data ../shared/data

Masks of nodata as the shared rasters have them, clouds and water cut out of Sentinel-2 by a threshold, and
the edge of a swath. Peers: version 1's rows of bits in zstandard frames, Fax group 4 (the strip of GDAL's
TIFF) and JPEG XL without loss (imagecodecs).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.io import MemoryFile

from tmcodec.tokenfile.masks import Mask, mask_pack, mask_unpack

NODATA = (
    "val/DEM/mt_hood_30m",
    "train/DEM/mandakini_89m",
    "train/DEM/meghalaya_50m",
    "train/DEM/N00E009_srtm_int16",
    "train/S1GRD/sen1floods11_Nigeria_812045_S1Hand",
)
Pack = Callable[[Mask], bytes]


def read(path: Path, band: int = 1) -> npt.NDArray[np.float32]:
    """Return a band of a raster."""
    with rasterio.open(path) as file:
        found: npt.NDArray[np.float32] = file.read(band).astype(np.float32)
        return found


def masks(data: Path) -> Iterator[tuple[str, Mask]]:
    """Yield names and masks (h, w)."""
    for name in NODATA:
        with rasterio.open(data / f"{name}.tif") as file:
            mask = np.isfinite(file.read(1)) & (file.read_masks(1) > 0)
        yield f"nodata, {name.split('/')[-1]}", mask[:1024, :1024]
    coast = read(data / "train/S2L1C/virginia_coast_north.tif", 9)
    yield "land, virginia_coast_north, B8A above 600", coast[:1024, :1024] > 600
    snow = read(data / "train/S2L2A/terramesh_609U_541L_3_0.tif", 2)
    yield "clear, terramesh_609U_541L_3_0, B02 below 5000", snow < 5000
    clouds = read(data / "train/S2L2A/ssl4eos12_val_0173706_2.tif", 2)
    blocks = clouds.reshape(132, 2, 132, 2).mean((1, 3)) < 1800
    yield "clear in 20 m, ssl4eos12_val_0173706_2", np.kron(blocks, np.ones((2, 2), np.bool_))
    row, col = np.mgrid[:1024, :1024]
    yield "edge of a swath, 0.22 pixels a row", col > 200 + 0.22 * row


def fax(mask: Mask) -> bytes:
    """Return the strips of a TIFF."""
    _, h, w = mask.shape
    options = {"driver": "GTiff", "height": h, "width": w, "count": 1, "dtype": "uint8", "nbits": 1}
    with MemoryFile() as memory:
        with memory.open(**options, compress="CCITTFAX4", blockysize=h) as file:
            file.write(mask.astype(np.uint8))
        with memory.open() as file:
            size = int(file.tags(1, ns="TIFF").get("BLOCK_SIZE_0_0", 0))
        return bytes(size or len(memory.read()) - 300)


def jpeg_xl(mask: Mask) -> bytes:
    """Return a file without loss."""
    return bytes(imagecodecs.jpegxl_encode(mask[0].astype(np.uint8) * 255, lossless=True, effort=9))


def milliseconds(run: Callable[[], object], repeat: int) -> float:
    """Return the least of several times."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


def main() -> None:
    """Print the table."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--repeat", type=int, default=5)
    args = ap.parse_args()
    ways: dict[str, Pack] = {
        "in context": mask_pack,
        "zstandard": lambda mask: mask_pack(mask, coded=False),
        "Fax 4": fax,
        "JPEG XL": jpeg_xl,
    }
    columns = ["mask", "valid", *ways, "ms per megapixel: packing", "zstandard alone", "unpacking"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * (len(ways) + 5) + "|")
    for name, mask in masks(args.data):
        plane, size = mask[None], mask.size / 1e6
        packed = mask_pack(plane)
        assert np.array_equal(mask_unpack(packed, 2, mask.shape), plane)
        times = [
            milliseconds(lambda p=plane, **how: mask_pack(p, **how), args.repeat) / size,  # type: ignore[misc]
            milliseconds(lambda p=plane: mask_pack(p, coded=False), args.repeat) / size,  # type: ignore[misc]
            milliseconds(lambda b=packed, m=mask: mask_unpack(b, 2, m.shape), args.repeat) / size,  # type: ignore[misc]
        ]
        sizes = [len(pack(plane)) for pack in ways.values()]
        figures = [f"{mask.mean():.3f}", *map(str, sizes), *(f"{t:.1f}" for t in times)]
        print(f"| {name} | " + " | ".join(figures) + " |")


if __name__ == "__main__":
    main()
