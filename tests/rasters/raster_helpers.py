"""Names that the raster tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import rasterio

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

MakeRaster = Callable[..., Path]


def shared_rasters() -> list[Path]:
    """Return one raster of each kind of the shared data, empty where there is none."""
    seen: dict[tuple[object, ...], Path] = {}
    for path in sorted(SHARED.glob("*/*/*.tif")):
        with rasterio.open(path) as dataset:
            kind = (path.parent.name, dataset.dtypes[0], str(dataset.nodata), str(dataset.crs))
            seen.setdefault(kind, path)
    return list(seen.values())
