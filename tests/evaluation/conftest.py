"""A folder of two small rasters, and scenes in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tmcodec.training  # noqa: F401  (lets torchvision import, before anything asks for torchmetrics)
from tmcodec.evaluation.report import Report
from tmcodec.evaluation.scenes import Scene
from tmcodec.modalities import MODALITIES, Modality
from tmcodec.rasters import fill_invalid

MakeScene = Callable[..., Scene]


def write_two(place: Path, second: str = "1.tif") -> Path:
    """Write two Sentinel-2 rasters, the second with nodata in a corner, and return their folder."""
    import rasterio

    row = MODALITIES["S2L2A"]
    place.mkdir()
    for name, height, width in (("0.tif", 64, 48), (second, 33, 40)):
        rng = np.random.default_rng(height)
        mean, std = (np.array(s)[:, None, None] for s in (row.mean, row.std))
        values = (mean + 0.2 * std * rng.random((12, height, width))).astype(np.uint16)
        if name == second:
            values[:, :9, :9] = 0
        with rasterio.open(place / name, "w", driver="GTiff", count=12, width=width, height=height,
                           dtype="uint16", nodata=0, crs="EPSG:32633",
                           transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)) as dataset:
            dataset.write(values)
            dataset.descriptions = row.bands
            dataset.update_tags(TMCODEC_S2_OFFSET="absent")
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two Sentinel-2 rasters, one of which has nodata in a corner."""
    return write_two(tmp_path / "val")


@pytest.fixture(scope="session")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[str], Path]
) -> tuple[Report, Path, Path]:
    """Evaluate two rasters with everything; the report, its folder and that of the rasters."""
    import tmcodec

    place = tmp_path_factory.mktemp("evaluated")
    folder, out = write_two(place / "val", "<b>&1.tif"), place / "out"
    tokenizers = [str(tiny_tokenizer("S2L2A"))]
    report = tmcodec.evaluate(folder, tokenizers=tokenizers, steps=(1, 3), train=[folder], report=out)
    return report, out, folder


@pytest.fixture
def smooth_scene() -> MakeScene:
    """Return a function that makes a scene of a modality from a few waves, with an invalid hole."""

    def make(name: str = "S2L2A", height: int = 96, width: int = 80, seed: int = 0) -> Scene:
        row: Modality = MODALITIES[name]
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width] / 24
        waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-2, 2, (4, 3))]
        if row.categorical:
            values = (np.abs(waves[0] + waves[1]) * 4).round().clip(1, 9)[None]
        else:
            mix = rng.normal(size=(len(row.bands), 4)) @ np.stack(waves).reshape(4, -1)
            mean, std = (np.array(s)[:, None] for s in (row.mean, row.std))
            values = (mean + 0.2 * std * mix).reshape(-1, height, width).clip(*row.valid_range)
        values = values.astype(np.float32)
        valid = np.ones(values.shape, bool)
        valid[:, 10:20, 5:15] = False
        return Scene(name, Path(f"{name}.tif"), values, valid, fill_invalid(values, valid), values.size * 2)

    return make
