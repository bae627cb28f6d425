"""Rasters in and out: windows, blending, filling, metadata, reading, writing, pictures.

Names are loaded on first use: windows, blending and filling work without rasterio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tmcodec.rasters.arrays import ArrayDataset
    from tmcodec.rasters.blend import Blender, ramp, ramp_weights
    from tmcodec.rasters.classes import WORLDCOVER_TO_TERRAMIND, parse_class_map
    from tmcodec.rasters.fill import fill_invalid
    from tmcodec.rasters.gdal import gdal_env
    from tmcodec.rasters.nodata import usable_nodata, valid_pixels
    from tmcodec.rasters.product import (
        acquisition_time,
        decide_s2_offset,
        decide_scaling,
        infer_modality,
        parse_time,
        select_bands,
    )
    from tmcodec.rasters.reader import RasterSource, open_raster, own_modality, stored_dtypes
    from tmcodec.rasters.render import render_rgb
    from tmcodec.rasters.windows import (
        IDENTITY,
        Window,
        align_out,
        as_window,
        grid_windows,
        padded_size,
        window_from_bounds,
        window_transform,
    )
    from tmcodec.rasters.writer import RasterWriter

_HOME = {
    "arrays": ("ArrayDataset",),
    "blend": ("Blender", "ramp", "ramp_weights"),
    "classes": ("WORLDCOVER_TO_TERRAMIND", "parse_class_map"),
    "fill": ("fill_invalid",),
    "nodata": ("usable_nodata", "valid_pixels"),
    "product": ("acquisition_time", "decide_s2_offset", "decide_scaling", "infer_modality", "parse_time",
                "select_bands"),
    "gdal": ("gdal_env",),
    "reader": ("RasterSource", "open_raster", "own_modality", "stored_dtypes"),
    "render": ("render_rgb",),
    "windows": ("IDENTITY", "Window", "align_out", "as_window", "grid_windows", "padded_size",
                "window_from_bounds", "window_transform"),
    "writer": ("RasterWriter",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "IDENTITY",
    "WORLDCOVER_TO_TERRAMIND",
    "ArrayDataset",
    "Blender",
    "RasterSource",
    "RasterWriter",
    "Window",
    "acquisition_time",
    "align_out",
    "as_window",
    "decide_s2_offset",
    "decide_scaling",
    "fill_invalid",
    "gdal_env",
    "grid_windows",
    "infer_modality",
    "open_raster",
    "own_modality",
    "padded_size",
    "parse_class_map",
    "parse_time",
    "ramp",
    "ramp_weights",
    "render_rgb",
    "select_bands",
    "stored_dtypes",
    "usable_nodata",
    "valid_pixels",
    "window_from_bounds",
    "window_transform",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
