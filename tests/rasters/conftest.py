"""Tiny rasters, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from raster_helpers import MakeRaster
from rasterio.transform import Affine


@pytest.fixture
def make_raster(tmp_path: Path) -> MakeRaster:
    """Return a function that writes an array as GeoTIFF and returns its path."""

    def make(
        array: npt.NDArray[Any],
        name: str = "raster.tif",
        *,
        descriptions: tuple[str, ...] | None = None,
        tags: dict[str, str] | None = None,
        band_tags: dict[str, str] | None = None,
        scales: tuple[float, ...] | None = None,
        offsets: tuple[float, ...] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
        **profile: Any,
    ) -> Path:
        array = array[None] if array.ndim == 2 else array
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        profile = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5000000), **profile}
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(
            path, "w", driver="GTiff", count=array.shape[0], height=array.shape[1], width=array.shape[2],
            dtype=array.dtype, **profile,
        ) as dst:
            if descriptions:
                dst.descriptions = descriptions
            if scales:
                dst.scales = scales
            if offsets:
                dst.offsets = offsets
            dst.update_tags(**(tags or {}))
            dst.update_tags(1, **(band_tags or {}))
            dst.write(array)
            if mask is not None:
                dst.write_mask(mask)
        return path

    return make
