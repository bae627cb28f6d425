"""A corpus and a configuration so small that a training run takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_helpers import SMALL, write_raster

import tmcodec.training  # noqa: F401  (lets torchvision import, before anything asks for lightning)
from tmcodec.modalities import MODALITIES

Write = Callable[..., Path]


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes three rasters of a modality and returns their folder."""

    def make(modality: str) -> Path:
        folder = tmp_path / "corpus" / modality
        for i in range(3):
            write_raster(folder / f"{i}.tif", modality, 96 + 16 * i, seed=i)
        return folder

    return make


@pytest.fixture
def config(tmp_path: Path, corpus: Callable[[str], Path]) -> Callable[..., Path]:
    """Return a function that writes a configuration, its sections updated, and returns its path."""
    import yaml

    def make(modality: str = "NDVI", name: str = "run", **changes: dict[str, Any]) -> Path:
        row = MODALITIES[modality]
        folder = corpus(modality)
        source = {"class_path": "RasterFolder", "init_args": {"path": str(folder), "modality": modality}}
        sections: dict[str, dict[str, Any]] = {
            "trainer": {
                "accelerator": "cpu", "max_steps": 5, "enable_progress_bar": False, "logger": False,
                "enable_model_summary": False, "num_sanity_val_steps": 0,
                "default_root_dir": str(tmp_path / name),
                "callbacks": [
                    {"class_path": "MovingAverage", "init_args": {"decay": 0.9}},
                    {"class_path": "ModelCheckpoint", "init_args": {
                        "dirpath": str(tmp_path / name), "save_last": True, "every_n_train_steps": 1}},
                ],
            },
            "model": {
                "net": {"modality": modality, "channels": len(row.classes) or len(row.bands),
                        "levels": list(row.levels), **SMALL},
                "optimizer": {"lr": 0.01},
            },
            "data": {"train": [source], "val": [source], "side": 32, "batch": 2, "epoch": 8, "val_crops": 2,
                     "workers": 0, "radiometry": True},
        }  # fmt: skip
        for section, values in changes.items():
            sections[section] = {**sections[section], **values}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(sections))
        return path

    return make
