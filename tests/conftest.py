"""A tokenizer and a scene so small that a test can afford them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before torch comes: workers that have all processors each wait for one another. Their children, too.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs unless they are asked for: most tests take the default device and read results with NumPy."""
    if not _asks_for_gpus(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files without tests for a GPU where those are asked for: their packages may be missing."""
    if config.option.markexpr != "gpu" or collection_path.suffix != ".py":
        return None
    return "mark.gpu" not in collection_path.read_text() or None


def _asks_for_gpus(config: pytest.Config) -> bool:
    marks: str = config.option.markexpr
    return "gpu" in marks and "not gpu" not in marks


MakeTokenizer = Callable[[str], Path]
MakeScene = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> MakeTokenizer:
    """Return a function that writes untrained weights of a modality and returns their path."""
    folder = tmp_path_factory.mktemp("weights")

    def make(modality: str) -> Path:
        path = folder / f"tiny-{modality.lower()}.safetensors"
        if not path.exists():
            import torch

            from tmcodec.codec.weights import save_weights
            from tmcodec.modalities import MODALITIES
            from tmcodec.networks.mini import MiniConfig, MiniNet

            row = MODALITIES[modality]
            image = not row.categorical
            torch.manual_seed(7)
            config = MiniConfig(
                modality, channels=len(row.bands if image else row.classes), levels=row.levels, dim=16,
                encoder_blocks=1, decoder_blocks=1, kernel=3, refine=8, denoiser_dim=8,
                denoiser_blocks=1 if image else 0,
                mean=row.mean if image else (), std=row.std if image else (),
            )
            save_weights(path, MiniNet(config).eval(), f"tiny-{modality.lower()}", {"training": "none"})
        return path

    return make


@pytest.fixture
def make_scene(tmp_path: Path) -> MakeScene:
    """Return a function that writes a GeoTIFF of a modality, values around its mean."""

    def make(
        modality: str = "S2L2A", width: int = 48, height: int = 32, *, name: str = "scene.tif",
        described: bool = True, offset: str | None = "absent", nodata: float | None = None, seed: int = 0,
        crs: str | None = "EPSG:32633", left: float = 500000.0,
    ) -> Path:
        import rasterio
        from rasterio.transform import Affine

        from tmcodec.modalities import MODALITIES

        row = MODALITIES[modality]
        rng = np.random.default_rng(seed)
        shape = (len(row.bands), height, width)
        if row.categorical:
            values = rng.integers(1, len(row.classes), shape)
        else:
            mean, std = (np.array(statistic)[:, None, None] for statistic in (row.mean, row.std))
            values = mean + 0.2 * std * rng.random(shape)
        path = tmp_path / name
        place = {"crs": crs, "transform": Affine(10, 0, left, 0, -10, 5e6)} if crs else {}
        with rasterio.open(path, "w", driver="GTiff", count=shape[0], width=width, height=height,
                           dtype=row.dtype, nodata=nodata, **place) as dataset:
            dataset.write(values.astype(row.dtype))
            if described:
                dataset.descriptions = row.bands
            if row.optical and offset is not None:
                dataset.update_tags(TMCODEC_S2_OFFSET=offset)
        return path

    return make
