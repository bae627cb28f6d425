"""Reading in physical units with exact validity."""

from __future__ import annotations

import io
import math
import os
import signal
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from raster_helpers import MakeRaster
from rasterio.enums import MaskFlags
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import Affine

import tmcodec.rasters.gdal as gdal
import tmcodec.rasters.reader as reader
from tmcodec.errors import BandError, ModalityError, RasterOpenError, UnitsError, WindowError
from tmcodec.modalities import MODALITIES
from tmcodec.rasters import RasterSource, Window, open_raster
from tmcodec.rasters.arrays import ArrayDataset
from tmcodec.rasters.black import black_is_nodata

WHOLE = Window(0, 0, 5, 4)


def test_attributes_of_a_file(make_raster: MakeRaster) -> None:
    array = np.arange(40, dtype=np.float32).reshape(2, 4, 5) - 50
    name = "S1A_IW_GRDH_1SDV_20170613T165043.tif"
    path = make_raster(array, name, descriptions=("VH", "VV"), nodata=np.nan)
    with open_raster(path) as source:
        assert source.modality.name == "S1GRD"
        assert (source.width, source.height, source.dtype) == (5, 4, "float32")
        assert source.crs == "EPSG:32633"
        assert source.transform == (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
        assert source.bands == ("VV", "VH") and source.mask_kind == "nodata"
        assert source.nodata is not None and np.isnan(source.nodata)
        assert source.time is not None and source.time.isoformat() == "2017-06-13T16:50:43+00:00"
        assert source.block_shape == (4, 5)
        assert source.description == path.name
        values, valid = source.read(WHOLE)
    assert valid.all() and np.array_equal(values, array[::-1])


@pytest.mark.parametrize(("dtype", "nodata", "marker"), [
    ("int16", -32768, -32768), ("uint16", 0, 0), ("uint16", 65535, 65535), ("float32", np.nan, np.nan),
    ("float32", -3.4028230607370965e38, -3.4028230607370965e38), ("float64", -9999, -9999),
    ("float32", None, np.nan), ("float32", None, np.inf),
])
def test_nodata_is_exact(make_raster: MakeRaster, dtype: str, nodata: float | None, marker: float) -> None:
    array = np.full((4, 5), 100, dtype)
    array[1, 2] = marker
    array[3, 4] = 101
    with open_raster(make_raster(array, nodata=nodata), "DEM") as source:
        values, valid = source.read(WHOLE)
    expected = np.ones((1, 4, 5), bool)
    expected[0, 1, 2] = False
    assert np.array_equal(valid, expected)
    assert np.isfinite(values).all() and values[0, 3, 4] == 101


@pytest.mark.parametrize(("nodata", "expected"), [(-9999, -10000), (-32768, -32768), (-3.4e38, -3.4e38)])
def test_nodata_of_half_precision_is_rounded_like_the_values(nodata: float, expected: float) -> None:
    array = np.full((4, 5), 0.5, np.float16)
    with np.errstate(over="ignore"):
        array[0, 0] = nodata
    with open_raster((array, {"nodata": nodata}), "NDVI") as source:
        assert source.dtype == "float32" and source.nodata == pytest.approx(expected, rel=1e-6)
        assert np.array_equal(source.read(WHOLE)[1][0], np.arange(20).reshape(4, 5) > 0)


def test_out_of_range_nodata_marks_nothing() -> None:
    with open_raster((np.zeros((4, 5), np.uint8), {"nodata": -9999}), "DEM") as source:
        assert source.nodata is None
        assert source.read(WHOLE)[1].all()


def swath(dtype: str = "uint16", value: float = 3000, bands: int = 12) -> np.ndarray:
    """Return a scene of 100 pixels whose two left columns are 0, as beside the swath."""
    array = np.full((bands, 10, 10), value, dtype)
    array[:, :, :2] = 0
    return array


@pytest.mark.parametrize("offset", ["present", "absent"])
@pytest.mark.parametrize(("dtype", "value", "modality", "bands", "profile"), [
    ("uint16", 3000, "S2L2A", 12, {}),
    ("int16", 3000, "S2L1C", 13, {}),
    ("float32", 0.3, "S2L2A", 12, {}),
    ("uint16", 3000, "S2L2A", 12, {"nodata": -9999}),  # which no uint16 can be
])
def test_undeclared_no_data_of_sentinel_2_is_told_from_values(
    offset: str, dtype: str, value: float, modality: str, bands: int, profile: dict[str, Any]
) -> None:
    array = swath(dtype, value, bands)
    array[0, 9, 9] = 0  # one band alone is a value
    with open_raster((array, profile), modality, s2_offset=offset) as source:
        assert (source.nodata, source.mask_kind) == (0, "nodata")
        assert np.array_equal(source.read(Window(0, 0, 10, 10))[1], np.repeat(array.any(0)[None], bands, 0))
        assert np.array_equal(source.read(Window(1, 3, 4, 2))[1][0], array.any(0)[3:5, 1:5])


@pytest.mark.parametrize("offset", [0, -1])
def test_undeclared_no_data_of_sentinel_1(offset: int) -> None:
    """SNAP leaves 0 where the swath ends; a mosaic's tile may hold it anywhere."""
    array = swath("float32", -12.0, 2)
    array[1] += np.float32(-6) * (array[1] != 0)
    array[0, 9, 9] = 0  # one band alone is a value
    stored = array + np.float32(offset)
    with open_raster(stored, "S1GRD") as source:
        assert source.nodata == (None if offset else 0)
        valid = source.read(Window(0, 0, 10, 10))[1]
        assert np.array_equal(valid, np.repeat(stored.any(0)[None], 2, 0))
    with open_raster((stored, {"nodata": -99}), "S1RTC") as source:
        assert source.nodata == -99 and source.read(Window(0, 0, 10, 10))[1].all()
    integers = (array.astype(np.int16), {"scale": 0.5})  # where 0 dB is one value of some hundred
    with open_raster(integers, "S1GRD") as source:
        assert source.nodata is None and source.read(Window(0, 0, 10, 10))[1].all()


def test_bands_that_are_not_asked_for_tell_dark_water_from_no_data() -> None:
    array = swath()
    array[1, 5, 5:8] = 0  # B02 of water
    few = replace(MODALITIES["S2L2A"], bands=("B02",), mean=(0.0,), std=(1.0,))
    dataset = ArrayDataset(array, {"descriptions": MODALITIES["S2L2A"].bands})
    with RasterSource(dataset, few, s2_offset="absent") as source:
        assert np.array_equal(source.read(Window(0, 0, 10, 10))[1][0], array.any(0))


def test_the_scaling_is_that_of_the_modalitys_first_band() -> None:
    names, scl = ("SCL", *MODALITIES["S2L2A"].bands), [True] + [False] * 12
    profile = {"descriptions": names, "scale": [1.0 if s else 1e-4 for s in scl],
               "offset": [0.0 if s else -0.1 for s in scl]}
    with open_raster((np.full((13, 4, 5), 3000, np.uint16), profile), "S2L2A") as source:
        assert (source.tagged, source.s2_offset) == ((1e-4, -0.1), "present")


@pytest.mark.parametrize(("dtype", "modality", "expected"), [
    ("uint16", "S2L2A", 0), ("int16", "S1RTC", -32768), ("uint8", "S2RGB", 0), ("float32", "S1RTC", None),
])
def test_integers_with_masks_of_their_own_get_a_nodata_value(
    dtype: str, modality: str, expected: int | None
) -> None:
    """The modality's, or the least; a GeoTIFF has one mask for all bands."""
    bands = len(MODALITIES[modality].bands)
    array = np.full((bands, 4, 5), {"S1RTC": -12, "S2RGB": 90}.get(modality, 3000)).astype(dtype)
    mask = np.ones(array.shape, np.bool_)
    mask[1, 2, 3] = False
    offset = "absent" if modality == "S2L2A" else "auto"
    with open_raster((array, {"mask": mask}), modality, s2_offset=offset) as source:
        assert source.nodata == expected
        assert source.mask_kind == ("mask" if expected is None else "nodata")
        assert np.array_equal(source.read(WHOLE)[1], mask)


@pytest.mark.parametrize(("units", "expected"), [(None, ""), ("m", ""), ("ft", "ft"), ("mm", "mm")])
def test_the_unit_of_heights_is_kept_where_it_is_not_metres(units: str | None, expected: str) -> None:
    with open_raster((np.full((4, 5), 7, np.int16), {"units": units}), "DEM") as source:
        assert source.unit == expected
    with open_raster((np.full((4, 5), 7, np.int16), {"units": units}), "DEM", scale=0.5) as source:
        assert (source.unit, source.scale) == ("", 0.5)


@pytest.mark.parametrize(("col", "row", "x", "y"), [(1, 0, 110, 200), (0, 1, 100, 190), (2, 3, 120, 170)])
def test_a_window_moves_the_transform(col: int, row: int, x: float, y: float) -> None:
    array = (np.full((4, 5), 7, np.int16), {"transform": Affine(10, 0, 100, 0, -10, 200)})
    with open_raster(array, "DEM", window=Window(col, row, 1, 1)) as source:
        assert source.transform == (10, 0, x, 0, -10, y)


def test_asking_for_the_modality_leaves_an_open_dataset_open(make_raster: MakeRaster) -> None:
    path = make_raster(np.full((4, 5), 7, np.uint8), tags={"TMCODEC_MODALITY": "LULC"})
    with rasterio.open(path) as dataset:
        assert reader.own_modality(dataset) == reader.own_modality(path) == "LULC"
        assert not dataset.closed and (dataset.read() == 7).all()


@pytest.mark.parametrize("profile", [
    {"nodata": 0}, {"tags": {"SPECIAL_VALUE_NODATA": "0"}}, {"mask": swath()[0] != 0},
])
def test_declared_no_data_of_sentinel_2(profile: dict[str, Any]) -> None:
    array = swath()
    with open_raster((array, profile), "S2L2A", s2_offset="absent") as source:
        assert source.nodata == (None if "mask" in profile else 0)
        assert np.array_equal(source.read(Window(0, 0, 10, 10))[1], array != 0)


def test_zeros_that_may_be_values() -> None:
    few = np.full((12, 10, 10), 3000, np.uint16)
    few[:, 0, 0] = 0  # a hundredth of the pixels
    with open_raster(few, "S2L2A", s2_offset="absent") as source:
        assert source.nodata is None and source.read(Window(0, 0, 10, 10))[1].all()
    one = swath()
    one[7] = 1  # not in all bands
    with open_raster(one, "S2L2A", s2_offset="absent") as source:
        assert source.read(Window(0, 0, 10, 10))[1].all()
    for picture, modality in ((swath("uint8", 90, 3), "S2RGB"), (swath("float32", 0.5, 1), "NDVI")):
        # An index made from a product may still have its tags.
        with open_raster((picture, {"tags": {"SPECIAL_VALUE_NODATA": "0"}}), modality) as source:
            assert source.nodata is None and source.read(Window(0, 0, 10, 10))[1].all()


def test_units_are_told_from_the_other_pixels() -> None:
    array = np.zeros((12, 1100, 1200), np.float32)
    array[:, 700, 600:610] = 0.5  # reflectance, in none of the spots that are looked at first
    with open_raster(array, "S2L2A", s2_offset="absent") as source:
        assert (source.scale, source.offset) == (1e4, 1000)
    array[array > 0] = 5000  # digital numbers
    with open_raster(array, "S2L2A", s2_offset="absent") as source:
        assert (source.scale, source.offset) == (1, 1000)


def test_undeclared_no_data_is_found_in_large_files(make_raster: MakeRaster) -> None:
    array = np.full((12, 1100, 1000), 3000, np.uint16)
    array[:, :, :300] = 0
    path = make_raster(array, "wide.tif")
    # Any window of it is read alike, also one that has few such pixels.
    for window in (None, Window(299, 0, 400, 50)):
        with open_raster(path, "S2L2A", s2_offset="absent", window=window) as source:
            valid = source.read(Window(0, 0, source.width, source.height))[1]
            assert (~valid[0]).sum() == (1100 * 300 if window is None else 50)
            assert source.nodata == 0


def _black(kind: str, size: int, share: float) -> np.ndarray:
    """Return where that share of a square is, at its edges."""
    rows, cols = np.mgrid[:size, :size]
    if kind == "strip":
        return cols < share * size
    if kind == "two strips":
        return (cols < share / 2 * size) | (cols >= (1 - share / 2) * size)
    return rows + (size - 1 - cols) < math.sqrt(2 * share) * size  # a triangle in a corner


@pytest.mark.parametrize("kind", ["strip", "two strips", "corner"])
def test_undeclared_no_data_is_found_at_the_edges(kind: str) -> None:
    for share, expected in ((0.005, None), (0.0135, 0), (0.094, 0)):
        array = np.full((12, 1600, 1600), 3000, np.uint16)
        array[:, _black(kind, 1600, share)] = 0
        for turned in (array, array[:, ::-1, ::-1]):
            with open_raster(turned, "S2L2A", s2_offset="present") as source:
                assert source.nodata == expected


def test_a_raster_without_black_is_looked_at_in_few_places() -> None:
    dataset = ArrayDataset(np.full((12, 3000, 4000), 3000, np.uint16))
    seen, read = [], dataset.read

    def noted(indexes: Any, *, window: Any = None, out_shape: Any = None) -> Any:
        seen.append((*indexes, *window))
        return read(indexes, window=window, out_shape=out_shape)

    dataset.read = noted  # type: ignore[method-assign]
    assert not black_is_nodata(dataset, range(1, 13), MODALITIES["S2L2A"])
    assert {one[0] for one in seen} == {1}  # a single band
    assert sum((b - a) * (d - c) for _, (a, b), (c, d) in seen) == 8 * 16**2 + 16 * 96**2


def test_nodata_of_each_band_counts_alone(make_raster: MakeRaster) -> None:
    array = np.full((12, 4, 5), 500, np.uint16)
    array[3, 0, 0] = array[7, 2, 2] = 0
    with open_raster(make_raster(array, nodata=0), "S2L2A", s2_offset="present") as source:
        valid = source.read(WHOLE)[1]
    assert np.array_equal(valid, array != 0)


def test_mask_band(make_raster: MakeRaster) -> None:
    mask = np.arange(20).reshape(4, 5) % 3 > 0
    path = make_raster(np.full((4, 5), 7, np.int16), mask=mask)
    with open_raster(path, "DEM") as source:
        assert (source.mask_kind, source.nodata) == ("mask", None)
        assert np.array_equal(source.read(WHOLE)[1][0], mask)


def test_nodata_values_of_all_bands_are_a_mask(make_raster: MakeRaster) -> None:
    array = np.full((3, 4, 5), 9, np.uint8)
    array[:, 0] = 0
    array[0, 1] = 0  # one band alone is a colour
    path = make_raster(array, tags={"NODATA_VALUES": "0 0 0"})
    with open_raster(path, "S2RGB") as source:
        assert (source.mask_kind, source.nodata) == ("mask", None)
        valid = source.read(WHOLE)[1]
    assert not valid[:, 0].any() and valid[:, 1:].all()
    with open_raster(make_raster(array, tags={"NODATA_VALUES": "0 0 0"}, nodata=0), "S2RGB") as source:
        assert (source.mask_kind, source.nodata) == ("nodata", 0)
        assert np.array_equal(source.read(WHOLE)[1], array != 0)


def virtual(path: Path, count: int, more: str = "", masks: Path | None = None) -> str:
    """Return a VRT of a file of 8 bits, 5 x 4 pixels, with masks for each band from another."""
    bands = ""
    for band in range(1, count + 1):
        files = [path] if masks is None else [path, masks]
        parts = [f"<SimpleSource><SourceFilename>{file}</SourceFilename><SourceBand>{band}</SourceBand>"
                 "</SimpleSource>" for file in files]
        mask = "".join(f'<MaskBand><VRTRasterBand dataType="Byte">{p}</VRTRasterBand></MaskBand>'
                       for p in parts[1:])
        bands += f'<VRTRasterBand dataType="Byte" band="{band}">{more}{parts[0]}{mask}</VRTRasterBand>'
    return f'<VRTDataset rasterXSize="5" rasterYSize="4">{bands}</VRTDataset>'


def test_nodata_that_no_pixel_can_have_is_no_mask(make_raster: MakeRaster) -> None:
    path = make_raster(np.full((4, 5), 9, np.uint8))
    path.with_suffix(".vrt").write_text(virtual(path, 1, "<NoDataValue>-9999</NoDataValue>"))
    with open_raster(path.with_suffix(".vrt"), "DEM") as source:
        assert (source.mask_kind, source.nodata) == ("nodata", None)
        assert source.read(WHOLE)[1].all()


def test_masks_of_single_bands(make_raster: MakeRaster) -> None:
    masks = np.full((3, 4, 5), 255, np.uint8)
    masks[0, 1] = masks[2, 2] = 0
    path = make_raster(np.full((3, 4, 5), 9, np.uint8), "values.tif")
    vrt = path.with_suffix(".vrt")
    vrt.write_text(virtual(path, 3, masks=make_raster(masks, "masks.tif")))
    with open_raster(vrt, "S2RGB") as source:
        assert np.array_equal(source.read(WHOLE)[1], masks > 0)


def test_alpha_band_is_a_mask(make_raster: MakeRaster) -> None:
    array = np.full((4, 4, 5), 9, np.uint8)
    array[3] = 255
    array[3, 0, 0] = 0
    with open_raster(make_raster(array, photometric="RGB", ALPHA="YES"), "S2RGB") as source:
        assert source.mask_kind == "mask" and source.bands == ("B04", "B03", "B02")
        valid = source.read(WHOLE)[1]
    assert valid.shape == (3, 4, 5) and not valid[:, 0, 0].any() and valid.sum() == 3 * 19


@pytest.mark.parametrize("internal", [False, True])
@pytest.mark.parametrize("nodata", [0, None])
def test_alpha_counts_beside_a_nodata_value_and_a_mask(
    nodata: int | None, internal: bool, make_raster: MakeRaster
) -> None:
    """GDAL's masks come from one of them."""
    array = np.full((4, 4, 5), 9, np.uint8)
    array[3], array[0, 1, 1] = 255, 0
    array[3, 0, 0] = 0
    mask = np.ones((4, 5), np.bool_)
    mask[3, 3] = False
    path = make_raster(
        array, photometric="RGB", ALPHA="YES", nodata=nodata, mask=mask if internal else None
    )
    expected = np.ones((3, 4, 5), np.bool_)
    expected[:, 0, 0], expected[0, 1, 1], expected[:, 3, 3] = False, nodata != 0, not internal
    with open_raster(path, "S2RGB") as source:
        assert (source.mask_kind, source.nodata) == ("mask" if nodata is None else "nodata", nodata)
        assert np.array_equal(source.read(WHOLE)[1], expected)


def test_physical_units_of_reflectance() -> None:
    array = np.full((12, 4, 5), 0.25, np.float32)
    with open_raster(array, "S2L2A", s2_offset="absent") as source:
        assert (source.scale, source.offset, source.s2_offset) == (10000.0, 1000.0, "absent")
        assert (source.read(WHOLE)[0] == 3500).all()


def test_wide_integers_keep_their_precision_before_scaling() -> None:
    array = np.full((4, 5), 200_000_007, np.int32)
    with open_raster((array, {"scale": 1e-5}), "DEM") as source:
        np.testing.assert_allclose(source.read(WHOLE)[0], 2000.00007, rtol=1e-7)


def test_windows_equal_slices_of_the_whole(make_raster: MakeRaster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_STRIP_BYTES", 1)  # strips of one block row
    array = np.random.default_rng(0).integers(1, 9000, (12, 70, 50), dtype=np.uint16)
    path = make_raster(array, tiled=True, blockxsize=16, blockysize=16, interleave="pixel")
    sub = Window(5, 9, 40, 55)
    with open_raster(path, "S2L2A", s2_offset="present", window=sub) as source:
        assert (source.width, source.height) == (40, 55)
        assert source.transform == (10.0, 0.0, 500050.0, 0.0, -10.0, 4999910.0)
        for window in (Window(0, 0, 40, 55), Window(3, 10, 20, 33), Window(39, 54, 1, 1)):
            expected = array[:, 9:64, 5:45][(slice(None), *window.slices)]
            assert np.array_equal(source.read(window)[0], expected)
        with pytest.raises(WindowError, match="not inside"):
            source.read(Window(0, 0, 41, 1))


def test_a_sub_window_outside_is_refused() -> None:
    with pytest.raises(WindowError, match="COL ROW WIDTH HEIGHT"):
        open_raster(np.zeros((4, 5), np.int16), "DEM", window=Window(3, 3, 3, 1))


def test_transforms_and_crs_are_kept() -> None:
    array = np.zeros((4, 5), np.int16)
    with open_raster(array, "DEM") as source:
        assert source.transform is None and source.crs is None
    placeholder = (1.0, 0.0, -0.5, 0.0, 1.0, -0.5)
    with open_raster((array, {"transform": Affine(*placeholder), "crs": "EPSG:4326"}), "DEM") as source:
        assert source.transform == placeholder and source.crs == "EPSG:4326"
    with open_raster((array, {"crs": "+proj=tmerc +lat_0=1 +lon_0=2 +datum=WGS84"}), "DEM") as source:
        assert source.crs is not None
        assert source.crs.startswith("PROJCS[") and "Transverse_Mercator" in source.crs
    with open_raster(array, "DEM", window=Window(2, 1, 2, 2)) as source:
        assert source.transform == (1.0, 0.0, 2.0, 0.0, 1.0, 1.0)


def test_an_open_dataset_stays_open(make_raster: MakeRaster) -> None:
    with rasterio.open(make_raster(np.ones((4, 5), np.int16))) as dataset:
        with open_raster(dataset, "DEM") as source:
            assert (source.read(WHOLE)[0] == 1).all()
        assert not dataset.closed


def test_classes_are_mapped_and_checked(make_raster: MakeRaster) -> None:
    array = np.array([[10, 80, 255]], np.uint8)
    path = make_raster(array, nodata=255)
    with open_raster(path, "LULC", class_map="10:2,80:1") as source:
        values, valid = source.read(Window(0, 0, 3, 1))
        assert source.nodata == 255
    assert values[valid].tolist() == [2, 1] and valid.tolist() == [[[True, True, False]]]
    with pytest.raises(UnitsError, match="--class-map"):
        open_raster(path, "LULC")
    with pytest.raises(UnitsError, match="80"):
        open_raster(path, "LULC", class_map={10: 2})


@pytest.mark.parametrize(("ids", "profile", "class_map", "valid"), [
    ([0, 3, 9], {}, None, [False, True, True]),
    ([0, 3, 9], {"nodata": 0}, None, [False, True, True]),
    ([0, 3, 255], {"nodata": 255}, None, [False, True, False]),
    ([0, 3, 9], {"mask": np.array([[True, True, False]])}, None, [False, True, False]),
    ([0, 10, 95], {}, "worldcover", [False, True, True]),
    ([0, 7, 8], {}, {0: 4, 7: 0, 8: 1}, [True, False, True]),
])
def test_class_0_is_no_data(
    ids: list[int], profile: dict[str, Any], class_map: Any, valid: list[bool]
) -> None:
    with open_raster((np.array([ids], np.uint8), profile), "LULC", class_map=class_map) as source:
        assert source.nodata == profile.get("nodata")
        assert source.read(Window(0, 0, 3, 1))[1].tolist() == [[valid]]


def test_nodata_that_collides_with_a_mapped_class_becomes_no_data() -> None:
    with open_raster((np.array([[10, 5]], np.uint8), {"nodata": 5}), "LULC", class_map="10:5") as source:
        assert source.nodata == 0


def test_class_ids_beyond_the_sample_are_found_at_read_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "check_classes", lambda *_: None)
    with open_raster(np.array([[1, 200]], np.uint8), "LULC") as source:
        with pytest.raises(UnitsError, match="200"):
            source.read(Window(0, 0, 2, 1))


def test_threads_share_a_source(make_raster: MakeRaster) -> None:
    array = np.random.default_rng(1).integers(0, 3000, (64, 64), dtype=np.int16)
    path = make_raster(array, tiled=True, blockxsize=16, blockysize=16)
    windows = [Window(c, r, 16, 16) for r in range(0, 64, 16) for c in range(0, 64, 16)]
    with open_raster(path, "DEM") as source, ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda w: source.read(w)[0][0], windows))
    assert all(np.array_equal(p, array[w.slices]) for p, w in zip(parts, windows, strict=True))


def test_threads_share_a_dataset() -> None:
    class Watched(ArrayDataset):
        inside, most = 0, 0

        def read(self, *args: Any, **kwargs: Any) -> np.ndarray:
            Watched.inside += 1
            Watched.most = max(Watched.most, Watched.inside)
            time.sleep(0.005)
            Watched.inside -= 1
            return super().read(*args, **kwargs)

    array = np.arange(16, dtype=np.int16).reshape(4, 4)
    dataset = Watched(array)

    def read(row: int) -> np.ndarray:
        with open_raster(dataset, "DEM", window=Window(0, row, 4, 1)) as source:
            return source.read(Window(0, 0, 4, 1))[0][0, 0]

    with ThreadPoolExecutor(4) as pool:
        assert np.array_equal(list(pool.map(read, range(4))), array)
    assert Watched.most == 1  # GDAL crashes where two threads use one dataset at a time


@pytest.mark.parametrize("src", ["missing.tif", Path("missing.tif"), "/vsizip/missing.zip/a.tif", 7])
def test_what_cannot_be_opened(src: object) -> None:
    with pytest.raises(RasterOpenError, match="cannot open") as caught:
        open_raster(src, "DEM")
    assert "\n" not in str(caught.value) and isinstance(caught.value, OSError)


class Tensor(list[int]):
    """Something whose text has many lines."""

    def __repr__(self) -> str:
        return "tensor([\n0])"


@pytest.mark.parametrize(
    "src", [Tensor(), [[1, 2]], io.BytesIO(), MemoryFile(), (1, 2, 3), ("a", "b"), b"a.tif", None]
)
def test_what_is_no_raster_is_named_by_its_type(src: object) -> None:
    with pytest.raises(RasterOpenError) as caught:
        open_raster(src, "DEM")
    message = f"cannot open a {type(src).__name__}; give a path, an open rasterio dataset, a NumPy array, or"
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# --------------------------------------------------------------------------- what belongs to the process


@pytest.fixture
def cache() -> Iterator[Callable[[], int]]:
    """Let GDAL's block cache be 512 MB, which is more than we want, and return what tells its size."""
    before = get_gdal_config("GDAL_CACHEMAX")
    set_gdal_config("GDAL_CACHEMAX", 512 << 20)
    yield lambda: int(get_gdal_config("GDAL_CACHEMAX"))
    set_gdal_config("GDAL_CACHEMAX", before)


@pytest.mark.parametrize("outer", [nullcontext(), rasterio.Env()], ids=["bare", "in an Env"])
def test_gdals_cache_is_small_inside_and_as_before_afterwards(
    outer: AbstractContextManager[object], cache: Callable[[], int]
) -> None:
    with outer:
        with gdal.gdal_env():
            with gdal.gdal_env():
                assert cache() == 256 << 20
            assert cache() == 256 << 20
        assert cache() == 512 << 20
    assert cache() == 512 << 20


def test_threads_leave_gdals_cache_as_it_was(cache: Callable[[], int]) -> None:
    together = threading.Barrier(4, timeout=10)

    def work(number: int) -> int:
        together.wait()
        with gdal.gdal_env():
            together.wait()  # all are inside
            if number:
                together.wait()  # and leave in another order than they came
            seen = cache()
        if not number:
            together.wait()
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [256 << 20] * 4
    assert cache() == 512 << 20


def test_a_cache_that_the_user_chose_is_left_alone(
    cache: Callable[[], int], make_raster: MakeRaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    path = make_raster(np.ones((4, 5), np.int16))
    with rasterio.Env(GDAL_CACHEMAX=300 << 20), open_raster(path, "DEM") as source:
        read = source._dataset.read

        def noted(*args: Any, **kwargs: Any) -> Any:
            seen.append(cache())
            return read(*args, **kwargs)

        source._dataset = SimpleNamespace(read=noted, close=source._dataset.close)
        with ThreadPoolExecutor(1) as pool:  # where nothing is known of that Env
            pool.submit(source.read, WHOLE).result()
    assert seen == [300 << 20] and cache() == 512 << 20
    monkeypatch.setenv("GDAL_CACHEMAX", "512")
    with gdal.gdal_env():
        assert cache() == 512 << 20


def test_threads_leave_the_filters_of_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Semaphore(0)

    def slow(path: str, mode: str) -> None:
        inside.release()
        time.sleep(0.1 if path == "first" else 0.2)  # the first would leave while the second is inside

    monkeypatch.setattr(rasterio, "open", slow)
    before = list(warnings.filters)
    first = threading.Thread(target=gdal.open_quietly, args=("first",))
    first.start()
    inside.acquire()
    gdal.open_quietly("second")
    first.join()
    assert warnings.filters == before


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_filters_of_others_stay_as_they_make_them(make_raster: MakeRaster) -> None:
    nowhere = make_raster(np.ones((4, 5), np.int16), crs=None, transform=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of ours would be raised
        with gdal._QUIET:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # equal to ours
            warnings.simplefilter("ignore", DeprecationWarning)
            gdal.open_quietly(nowhere).close()
        gdal.open_quietly(nowhere).close()
        assert [one[:3:2] for one in warnings.filters[:3]] == [
            ("ignore", DeprecationWarning), ("ignore", NotGeoreferencedWarning), ("error", Warning)
        ]
    before = list(warnings.filters)
    with warnings.catch_warnings():  # whose list of filters, ours among them, is put back meanwhile
        gdal._QUIET.__enter__()
    gdal._QUIET.__exit__()
    assert warnings.filters == before


def test_a_slow_file_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=10)  # broken where one waits for the other
    monkeypatch.setattr(rasterio, "open", lambda path, mode: together.wait())
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(gdal.open_quietly, ("first", "second"))) == [0, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_child_forked_while_others_are_inside_starts_anew(
    cache: Callable[[], int], make_raster: MakeRaster
) -> None:
    path = make_raster(np.ones((4, 5), np.int16))
    inside, done, before = threading.Event(), threading.Event(), list(warnings.filters)

    def stay() -> None:
        with gdal.gdal_env(), gdal._QUIET:
            inside.set()
            done.wait(10)

    def open_one() -> bool:
        quiet = warnings.filters == before
        with open_raster(path, "DEM") as source:
            source.read(WHOLE)
        return quiet and warnings.filters == before and cache() == 512 << 20

    with ThreadPoolExecutor(1) as pool:
        pool.submit(stay)
        inside.wait(10)
        gdal._QUIET._lock.acquire()  # as another thread may at that moment
        gdal._SMALL_CACHE._lock.acquire()
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            with suppress(BaseException):
                os._exit(0 if open_one() else 1)
            os._exit(2)
        gdal._SMALL_CACHE._lock.release()
        gdal._QUIET._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        done.set()
    assert warnings.filters == before and cache() == 512 << 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_child_forked_inside_leaves_for_itself(cache: Callable[[], int]) -> None:
    with gdal.gdal_env():
        child = os.fork()
    if child == 0:
        with suppress(BaseException):
            with gdal.gdal_env():
                small = cache() == 256 << 20
            os._exit(0 if small and cache() == 512 << 20 else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_truncated_files_fail_in_one_line(make_raster: MakeRaster) -> None:
    noise = np.random.default_rng(2).integers(0, 3000, (1200, 1000), dtype=np.int16)
    path = make_raster(noise, compress="deflate")
    with open_raster(path, "DEM") as source:
        assert source.height == 1200
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(RasterOpenError) as caught, open_raster(path, "DEM") as source:
        source.read(Window(0, 0, 1000, 1200))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("array", "profile"), [
    (np.zeros(4), None), (np.zeros((0, 4)), None), (np.zeros((2, 2), complex), None),
    (np.zeros((2, 2)), {"descriptions": ("a", "b")}), (np.zeros((2, 2)), {"crs": "EPSG:nonsense"}),
    (np.zeros((2, 2)), {"mask": np.ones((3, 3))}),
])
def test_malformed_arrays(array: np.ndarray, profile: dict[str, object] | None) -> None:
    with pytest.raises(RasterOpenError):
        open_raster((array, profile), "DEM")


def test_array_masks() -> None:
    mask = np.array([[True, False]])
    with open_raster((np.array([[1, 2]], np.int16), {"mask": mask}), "DEM") as source:
        assert source.mask_kind == "mask"
        assert np.array_equal(source.read(Window(0, 0, 2, 1))[1][0], mask)


@pytest.mark.parametrize("mask", [np.ones((10, 10), bool), np.ones((12, 10, 10), np.uint8)])
def test_masks_that_are_true_everywhere_are_none(mask: np.ndarray) -> None:
    for given in ((swath(), {"mask": mask}), np.ma.array(swath(), mask=False)):
        with open_raster(given, "S2L2A", s2_offset="absent") as source:
            assert (source.mask_kind, source.nodata) == ("nodata", None)
            assert source.read(Window(0, 0, 10, 10))[1].all()  # black, too: the mask has said so


def test_masks_are_compared_without_a_copy() -> None:
    array, mask = np.ones((12, 500, 500), np.uint8), np.ones((12, 500, 500), bool)
    mask[:, 7] = False
    tracemalloc.start()
    try:
        dataset = ArrayDataset(array, {"mask": mask})
        assert tracemalloc.get_traced_memory()[1] < 500 * 500 * 3  # a band or two, of twelve
    finally:
        tracemalloc.stop()
    assert dataset.mask_flag_enums == ([MaskFlags.per_dataset],) * 12
    mask[5, 0, 0] = False
    assert ArrayDataset(array, {"mask": mask}).mask_flag_enums == ([],) * 12


def test_complex_and_mixed_dtypes_are_refused(make_raster: MakeRaster) -> None:
    with pytest.raises(UnitsError, match="complex"):
        open_raster(make_raster(np.zeros((2, 2), np.complex64)), "DEM")
    a = make_raster(np.zeros((2, 2), np.float32), "a.tif")
    b = make_raster(np.zeros((2, 2), np.int16), "b.tif")
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{i}"><SimpleSource><SourceFilename>{path}</SourceFilename>'
        f"<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for i, (kind, path) in enumerate([("Float32", a), ("Int16", b)], 1))
    vrt = a.with_suffix(".vrt")
    vrt.write_text(f'<VRTDataset rasterXSize="2" rasterYSize="2">{bands}</VRTDataset>')
    with pytest.raises(BandError, match="different dtypes"):
        open_raster(vrt, "S1GRD")


def test_unknown_modality_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(ModalityError, match="choose one of"):
        open_raster("missing.tif", "S3")


def test_masked_arrays_bring_their_mask() -> None:
    heights = np.ma.masked_equal(np.array([[[5, -9999], [7, 8]]], np.int16), -9999)
    for given, expected in (
        ({}, [[True, False], [True, True]]),
        ({"mask": np.array([[False, True], [True, True]])}, [[False, False], [True, True]]),
    ):
        with open_raster((heights, given), "DEM") as raster:
            assert raster.read(Window(0, 0, 2, 2))[1].tolist() == [expected]
            assert raster.mask_kind == "mask"
    with open_raster(heights[0], "DEM") as raster:
        assert raster.read(Window(0, 0, 2, 2))[1].sum() == 3


def test_numpys_64_bit_integers_are_taken_where_they_fit() -> None:
    with open_raster(np.argmax(np.eye(4)[None], axis=1), "LULC") as raster:
        assert raster.dtype == "int32"
        assert raster.read(Window(0, 0, 4, 1))[0].tolist() == [[[0, 1, 2, 3]]]
    ends = np.array([[-(2**31), 2**31 - 1]])
    assert ArrayDataset(ends).read([1]).tolist() == [ends.tolist()]
    for beyond in (np.subtract(ends, [1, 0]), np.add(ends, [0, 1]), np.uint64([[2**63]])):
        with pytest.raises(RasterOpenError, match=f"{beyond.dtype} values beyond 32 bits; give int32"):
            open_raster(beyond, "DEM")


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ({"transform": (1, 2, 3)}, "transform.* give an Affine or six numbers"),
        ({"transform": "x"}, "transform.* give an Affine or six numbers"),
        ({"nodata": "x"}, "nodata.* give a number"),
        ({"scale": "x"}, "scale.* give a number"),
        ({"nodata": np.zeros((9, 9))}, "nodata'. is a ndarray; give a number$"),
        ({"transform": np.array(["x"] * 99)}, "transform'. is a ndarray; give an Affine"),
        ({"offset": [1, 2]}, "offset.* 2 entries for 1 bands"),
        ({"transform": (500_000, 10, 0, 5_000_000, 0, -10)}, "GDAL's order; give Affine.from_gdal"),
        ({"transform": (500_000, 10, 0, 4_999_000, 0, 10)}, "GDAL's order"),  # south up
        ({"descriptions": 5}, "descriptions.* is 5; give a list"),
        ({"units": [5]}, r"units'. is \[5\]; give texts"),
        ({"tags": ["x"]}, "tags.* give a mapping"),
        ({"mask": np.full((4, 4), np.nan)}, "mask.* give booleans"),  # NaN is true
        ({"mask": [[1, 2], [3]]}, "mask.* give booleans"),
    ],
)
def test_malformed_profiles(profile: dict[str, Any], why: str) -> None:
    with pytest.raises(RasterOpenError, match=why):
        open_raster((np.ones((4, 4), np.int16), profile), "DEM")


@pytest.mark.parametrize(
    "transform",
    [(10, 0, 5e5, 0, -10, 5e6), (8, 6, 5e5, 6, -8, 5e6), (0, 10, 0, 10, 0, -100), Affine(10, 5, 0, -3, 0, 1)],
)
def test_transforms_in_rasterios_order(transform: tuple[float, ...]) -> None:
    with open_raster((np.ones((4, 4), np.int16), {"transform": transform}), "DEM") as raster:
        assert raster.transform == tuple(transform)[:6]


def test_scale_and_offset_of_none_are_the_usual() -> None:
    profile = {"scale": None, "offset": None, "units": None, "tags": None}
    with open_raster((np.ones((4, 4), np.int16), profile), "DEM") as raster:
        assert (raster.scale, raster.offset) == (1.0, 0.0)


def test_numpy_numbers_in_profiles() -> None:
    profile = {"scale": np.float32(0.5), "offset": np.int16(3), "nodata": np.int16(-1)}
    with open_raster((np.full((2, 2), 10, np.int16), profile), "DEM") as raster:
        assert (raster.scale, raster.offset, raster.nodata) == (0.5, 3.0, -1)


def test_a_folder_is_told_from_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(RasterOpenError, match="is a folder; give a raster in it"):
        open_raster(tmp_path, "S2L2A")


def test_a_container_of_rasters_names_them(tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    for number in (1, 2):
        with rasterio.open(
            path, "w", driver="GPKG", width=8, height=8, count=1, dtype="uint8", crs="EPSG:32632",
            transform=Affine(10, 0, 500_000, 0, -10, 5_000_000), raster_table=f"t{number}",
            append_subdataset="NO" if number == 1 else "YES",
        ) as target:  # fmt: skip
            target.write(np.ones((1, 8, 8), np.uint8))
    for modality in (None, "S2RGB"):
        with pytest.raises(RasterOpenError, match=r"no bands of its own; open one of .*:t1, .*:t2"):
            open_raster(path, modality)


def test_64_bit_files_say_how_to_convert(make_raster: MakeRaster) -> None:
    path = make_raster(np.ones((1, 4, 4), np.int64))
    with pytest.raises(BandError, match=r"has int64 values.* gdal_translate -ot Int32"):
        open_raster(path, "DEM")


def test_a_strip_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    """In 700 bytes: one sparse strip of 2^31 - 1 heights of 4 bytes, which GDAL would hold at once."""
    path = tmp_path / "strip.tif"
    how = {"driver": "GTiff", "count": 1, "dtype": "float32", "SPARSE_OK": True, "BIGTIFF": "YES"}
    with rasterio.open(path, "w", width=2**31 - 1, height=1, **how):
        pass
    assert path.stat().st_size < 1000
    with pytest.raises(RasterOpenError, match=r"blocks of 1 x 2147483647 pixels take 8\.59 GB each"):
        open_raster(path, "DEM")
