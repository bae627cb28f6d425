"""Write the golden files of the embedded tokenizers: run once for a release, never to make a test pass.

    python tests/golden/make_embedded.py

``weights.json`` holds content hashes. ``mini-v*/*.tmc`` are token files of smooth synthetic rasters, and
``expected.json`` beside them the means of 16x16 pixels that they decode to. Users hold such files: they must
decode alike for ever, so this script only adds what is not there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

import tmcodec
from tmcodec.codec.models import EMBEDDED
from tmcodec.codec.weights import load_weights
from tmcodec.modalities import MODALITIES, Modality

HERE = Path(__file__).resolve().parent


def synthetic(row: Modality, height: int = 96, width: int = 128) -> npt.NDArray[np.generic]:
    """A smooth raster ``(C, height, width)`` in the modality's dtype, plausible and not round."""
    y, x = np.mgrid[0:height, 0:width] / 32.0
    if row.categorical:
        return (1 + (np.sin(x) + np.cos(y * 1.3) + 2) * 2).astype(row.dtype)[None]
    waves = [np.sin(x + 0.3 * c) * np.cos(0.7 * y - 0.2 * c) for c in range(len(row.bands))]
    scale = 150 if row.name == "DEM" else 0.25
    size = np.ones(len(row.bands)) if row.name == "DEM" else np.array(row.std)
    values = np.array(row.mean)[:, None, None] + scale * size[:, None, None] * np.array(waves)
    return (np.rint(values) if row.dtype[0] in "ui" else values).astype(row.dtype)


def patch_means(values: npt.NDArray[np.generic]) -> list[object]:
    """Means of 16x16 pixels, ``(C, rows, cols)`` as nested lists with 4 decimals."""
    c, h, w = values.shape
    means = values.astype(np.float64).reshape(c, h // 16, 16, w // 16, 16).mean((2, 4))
    nested: list[object] = np.round(means, 4).tolist()
    return nested


def folder_of(name: str) -> Path:
    """Return the folder of a tokenizer's golden file: one for each generation of weights."""
    return HERE / f"mini-{name.rpartition('-')[2]}"


def main() -> None:
    """Write what is missing."""
    hashes = json.loads((HERE / "weights.json").read_text())
    for name, model in EMBEDDED.items():
        if name in hashes:
            continue
        hashes[name] = load_weights(model.path)[2].hex()
        row, folder = MODALITIES[model.modality], folder_of(name)
        folder.mkdir(exist_ok=True)
        path, listing = folder / f"{name}.tmc", folder / "expected.json"
        profile = {
            "crs": "EPSG:32633",
            "transform": (10, 0, 399960, 0, -10, 5000040),
            "descriptions": row.bands,
        }
        offset = "present" if row.optical else "auto"
        tmcodec.encode(
            synthetic(row), path, profile=profile, modality=row.name, tokenizer=name, s2_offset=offset,
            exact=True,
        )
        expected = json.loads(listing.read_text()) if listing.exists() else {}
        expected[name] = patch_means(tmcodec.decode_array(path)[0])
        listing.write_text(json.dumps(expected) + "\n")
        print(f"{path.name}  {path.stat().st_size} bytes")
    (HERE / "weights.json").write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    main()
