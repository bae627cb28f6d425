"""Rasters and sizes that a training run of seconds needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tmcodec.modalities import MODALITIES

SMALL = {"dim": 8, "encoder_blocks": 1, "decoder_blocks": 1, "kernel": 3, "refine": 8, "denoiser_dim": 8,
         "denoiser_blocks": 1}  # fmt: skip
"""Sizes of a network that learns nothing quickly."""


def write_raster(
    path: Path, modality: str, side: int = 96, seed: int = 0, nodata: float | None = None
) -> Path:
    """Write smooth random fields around the modality's mean; the first rows are nodata where one is given."""
    import rasterio
    from rasterio.transform import Affine

    row = MODALITIES[modality]
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((len(row.bands), side // 8 + 1, side // 8 + 1))
    field = np.kron(coarse, np.ones((8, 8)))[:, :side, :side] + 0.2 * rng.standard_normal((1, side, side))
    if row.categorical:
        values = np.clip(5 + 2 * field, 1, 9)
    else:
        mean, std = (np.array(s)[:, None, None] for s in (row.mean, row.std))
        values = np.clip(mean + 0.3 * std * field, 1001 if row.optical else -1e9, None)
    if nodata is not None:
        values[:, :16] = nodata
    place: dict[str, Any] = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, -10, 5e6)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(row.bands),
        width=side,
        height=side,
        dtype=row.dtype,
        nodata=nodata,
        **place,
    ) as dataset:
        dataset.write(values.astype(row.dtype))
        dataset.descriptions = row.bands
        if row.optical:
            dataset.update_tags(TMCODEC_S2_OFFSET="present")
    return path
