"""Sentinel-2 scenes of one material each, most of them unlike all that was trained on, beside the baselines.

    python benchmarks/materials.py --out FOLDER [--side 320]

A scene is one reflectance spectrum times 1 + 0.08 n, where n is noise of unit variance whose amplitude falls
with the 1.25th power of the frequency, or two of them, parted where another such noise is above 0.5. Within a
material all bands are multiples of one picture, as on no real ground: one principal component holds all of
it, and what is left for a trained network is to be right about a spectrum that it has not seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio

from tmcodec.evaluation.report import EQUAL, Report
from tmcodec.evaluation.run import evaluate
from tmcodec.modalities import MODALITIES

Picture = npt.NDArray[np.float64]
SPECTRA = {
    "vegetation": (200, 300, 600, 350, 1000, 3000, 3800, 4000, 4200, 4300, 1900, 900),
    "desert": (1500, 1900, 2700, 3600, 4000, 4200, 4400, 4600, 4700, 4800, 5600, 5000),
    "snow": (9500, 9800, 9600, 9500, 9400, 9200, 9000, 8800, 8500, 8000, 900, 1000),
    "cloud": (8000, 8200, 8000, 8100, 8200, 8300, 8400, 8500, 8400, 7000, 5200, 4200),
    "ocean": (420, 350, 260, 140, 110, 90, 85, 75, 70, 60, 30, 20),
    "burnt ground": (300, 350, 420, 500, 600, 750, 850, 900, 1000, 1050, 1900, 2100),
    "lava": (400, 420, 440, 460, 470, 480, 490, 500, 510, 520, 600, 620),
    "red soil": (400, 500, 1000, 2600, 3000, 3200, 3300, 3400, 3500, 3500, 4200, 3800),
}
"""Digital numbers of the twelve bands without offset, after published reflectances, by eye."""
MIXED = {"vegetation and snow": ("vegetation", "snow"), "ocean and desert": ("ocean", "desert")}


def relief(side: int, seed: int) -> Picture:
    """Return noise ``(side, side)`` of mean 0 and variance 1 whose power falls with frequency."""
    across, down = np.fft.rfftfreq(side), np.fft.fftfreq(side)[:, None]
    frequency = np.hypot(across, down)
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(np.random.default_rng(seed).standard_normal((side, side)))
    noise: Picture = np.fft.irfft2(white * frequency**-1.25, s=(side, side))
    return noise / noise.std()


def material(name: str, side: int) -> Picture:
    """Return a scene ``(12, side, side)`` of one material."""
    return np.array(SPECTRA[name], float)[:, None, None] * (1 + 0.08 * relief(side, 1))


def scenes(side: int) -> dict[str, Picture]:
    """Return all scenes by name."""
    found = {name: material(name, side) for name in SPECTRA}
    apart = relief(side, 5) > 0.5
    mixed = {name: np.where(apart, found[b], found[a]) for name, (a, b) in MIXED.items()}
    return found | mixed


def write(path: Path, values: Picture) -> None:
    """Write digital numbers as a GeoTIFF."""
    bands = MODALITIES["S2L2A"].bands
    how = {"driver": "GTiff", "dtype": "uint16", "count": len(bands), "crs": "EPSG:32633"}
    place = rasterio.transform.from_origin(400_000, 5_000_000, 10, 10)
    with rasterio.open(path, "w", width=values.shape[2], height=values.shape[1], transform=place, **how) as d:
        d.write(np.clip(np.rint(values), 1, 65535).astype(np.uint16))
        d.descriptions = bands


def main() -> None:
    """Write the scenes, evaluate and print the table."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--side", type=int, default=320)
    args = ap.parse_args()
    folder = args.out / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in scenes(args.side).items():
        write(folder / f"{name.replace(' ', '_')}.tif", values)
    report = evaluate(
        [folder], modality="S2L2A", steps=(1,), baselines=("webp", "jp2", "blocks"), s2_offset="absent",
        report=args.out / "report", overwrite=True,
    )  # fmt: skip
    print(table(report))


def table(report: Report) -> str:
    """Return bytes of the token file and PSNR of all that has its size."""
    methods = [m for m in report.methods if m.factor == EQUAL and m.headers != "free"]
    lines = [row("scene", "bytes", *(m.title for m in methods)), "|---" * (len(methods) + 2) + "|"]
    for scene in report.scenes:
        found = {m.key: e for m in methods for e in report.of(m.key) if e.scene == scene.name}
        cells = [f"{found[m.key].values['psnr']:.1f}" if m.key in found else "–" for m in methods]
        lines.append(row(Path(scene.name).name, str(found[methods[0].key].bytes), *cells))
    return "\n".join(lines)


def row(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
