"""Where the error of decoded Sentinel-2 lies: in the means of patches, in those of their quarters, or below.

    python benchmarks/where.py --data ../shared/data [--bit-price 0 --effort 64]

Validation scenes through real files, whole patches only. Squared errors are split by block means: those of
16 x 16 pixels, a token's patch; what means of 8 x 8 add; the rest. *in-patch* is the error within patches
beside the variance there.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio

import tmcodec

Picture = npt.NDArray[np.float64]
PEAK = 10_000.0
PATCH = 16


def mean_square(picture: Picture, side: int) -> float:
    """Return the mean square of the means of blocks."""
    bands, h, w = picture.shape
    blocks = picture.reshape(bands, h // side, side, w // side, side).mean((2, 4))
    return float(np.square(blocks).mean())


def split(truth: Picture, decoded: Picture) -> tuple[float, float, float, float, float]:
    """Return PSNR, the three shares of the squared error, and the error within patches over the variance."""
    h, w = (n // PATCH * PATCH for n in truth.shape[1:])
    truth, error = truth[:, :h, :w], (decoded - truth)[:, :h, :w]
    total, means, halves = (mean_square(error, side) for side in (1, PATCH, PATCH // 2))
    within = mean_square(truth, 1) - mean_square(truth, PATCH)
    shares = (means / total, (halves - means) / total, 1 - halves / total)
    return 10 * np.log10(PEAK**2 / total), *shares, (total - means) / within


def main() -> None:
    """Print the table."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--bit-price", type=float)
    ap.add_argument("--effort", type=int)
    args = ap.parse_args()
    print("| scene | bytes | PSNR | patches | 16 to 8 | below 8 | in-patch |\n" + "|---" * 7 + "|")
    rows: list[tuple[float, ...]] = []
    larger: list[bool] = []
    for path in sorted((args.data / "val" / "S2L2A").glob("*.tif")):
        file = io.BytesIO()
        tmcodec.encode(path, file, s2_offset="absent", bit_price=args.bit_price, effort=args.effort)
        with rasterio.open(path) as raster:
            truth = raster.read().astype(np.float64)
        figures = split(truth, tmcodec.decode_array(file)[0].astype(np.float64))
        rows.append((float(file.getbuffer().nbytes), *figures))
        larger.append(min(truth.shape[1:]) > 200)
        print(line(path.stem[:34] + (" (larger)" if larger[-1] else ""), rows[-1]))
    table = np.array(rows)
    print(line("**all**", table.mean(0)), line("**the larger**", table[larger].mean(0)), sep="\n")


def line(name: str, row: npt.ArrayLike) -> str:
    """Return a line of the table."""
    size, psnr, *shares = np.asarray(row)
    return f"| {name} | {size:.0f} | {psnr:.2f} | " + " | ".join(f"{100 * s:.0f} %" for s in shares) + " |"


if __name__ == "__main__":
    main()
