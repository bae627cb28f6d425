"""What metadata says, and what it does not."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
from raster_helpers import MakeRaster
from rasterio.enums import ColorInterp

from tmcodec.errors import BandError, ModalityError, OffsetUnknownError, UnitsError
from tmcodec.modalities import MODALITIES
from tmcodec.rasters.arrays import ArrayDataset
from tmcodec.rasters.classes import WORLDCOVER_TO_TERRAMIND, check_classes, map_classes, parse_class_map
from tmcodec.rasters.nodata import usable_nodata, valid_pixels
from tmcodec.rasters.product import (
    acquisition_time,
    decide_s2_offset,
    decide_scaling,
    infer_modality,
    parse_time,
    sample_plan,
    sample_values,
    select_bands,
)

L2A, L1C = MODALITIES["S2L2A"], MODALITIES["S2L1C"]


def dataset(count: int = 12, dtype: str = "uint16", fill: float = 1000, **profile: Any) -> ArrayDataset:
    return ArrayDataset(np.full((count, 4, 5), fill, dtype), profile)


# --------------------------------------------------------------------------- modality


@pytest.mark.parametrize(("descriptions", "dtype", "profile", "expected"), [
    (L2A.bands, "uint16", {}, "S2L2A"),
    (L2A.bands, "int16", {"name": "S2A_MSIL2A_20170613T101031.tif"}, "S2L2A"),
    (tuple(reversed(L2A.bands)), "uint16", {}, "S2L2A"),
    (L1C.bands, "uint16", {}, "S2L1C"),
    (("B04", "B03", "B02"), "uint8", {}, "S2RGB"),
    (("VV", "VH"), "float32", {"name": "S1A_IW_GRDH_1SDV_20170613T165043.tif"}, "S1GRD"),
    (("VV", "VH"), "float32", {"tags": {"PRODUCT_TYPE": "GRD"}}, "S1GRD"),
    (("VV", "VH"), "float32", {"name": "S1A_IW_20200101T000000_DVP_RTC10_G.tif"}, "S1RTC"),
    (("VV", "VH"), "float32", {"tags": {"TMCODEC_MODALITY": "S1RTC"}}, "S1RTC"),
    ((None,), "float32", {"tags": {"TMCODEC_MODALITY": "NDVI"}}, "NDVI"),  # by the tag alone
    (("B04", "B03", "B02"), "uint8", {"tags": {"PRODUCT_URI": "S2A_MSIL2A_20170613T101031.SAFE"}}, "S2RGB"),
    (("DEM",), "int16", {}, "DEM"),
    (("NDVI",), "float32", {}, "NDVI"),
    (("LULC",), "uint8", {}, "LULC"),
])
def test_certain_modalities(
    descriptions: tuple[str, ...], dtype: str, profile: dict[str, Any], expected: str
) -> None:
    found = infer_modality(dataset(len(descriptions), dtype, 1, descriptions=descriptions, **profile))
    assert found.name == expected


@pytest.mark.parametrize(("count", "dtype", "profile", "named", "not_named"), [
    (12, "uint16", {}, ["S2L2A"], ["S2L1C"]),
    (12, "uint16", {"descriptions": L2A.bands, "name": "S2A_MSIL1C_20170527_T33UUB.tif"}, ["S2L2A"], []),
    (12, "uint16", {"descriptions": L2A.bands, "tags": {"PROCESSING_LEVEL": "Level-1C"}}, ["S2L2A"], []),
    (2, "float32", {"descriptions": ("VV", "VH")}, ["S1GRD", "S1RTC"], ["DEM"]),
    (2, "float32", {"descriptions": ("VV", "VH"), "name": "RTC_of_GRD.tif"}, ["S1GRD", "S1RTC"], []),
    (2, "float32", {"tags": {"TMCODEC_MODALITY": "NDVI"}}, ["S1GRD", "S1RTC"], ["NDVI"]),  # of another count
    (1, "float32", {}, ["DEM", "NDVI"], ["LULC"]),
    (1, "uint8", {"descriptions": ("height",)}, ["DEM", "NDVI", "LULC"], []),
    (3, "uint16", {"descriptions": ("B04", "B03", "B02")}, ["S2RGB"], ["S2L2A"]),
    (7, "uint16", {}, ["S2L2A (12 bands)", "DEM (1 bands)"], []),
])
def test_uncertain_modalities_list_candidates(
    count: int, dtype: str, profile: dict[str, Any], named: list[str], not_named: list[str]
) -> None:
    with pytest.raises(ModalityError, match="pass --modality") as caught:
        infer_modality(dataset(count, dtype, 1, **profile))
    message = str(caught.value)
    assert all(n in message for n in named) and not any(n in message for n in not_named)
    assert "\n" not in message


# --------------------------------------------------------------------------- bands


def test_bands_by_name_in_any_order_among_others() -> None:
    names = ("SCL", *reversed(L2A.bands))
    assert select_bands(dataset(13, descriptions=names), L2A) == list(range(13, 1, -1))


def test_band_aliases_and_gdal_descriptions() -> None:
    names = ("B4, central wavelength 665 nm", "b3", "Blue")
    assert select_bands(dataset(3, "uint8", 1, descriptions=names), MODALITIES["S2RGB"]) == [1, 2, 3]


@pytest.mark.parametrize("names", [
    ("Sigma0_VH_db", "Sigma0_VV_db"), ("gamma0_vh_db", "gamma0_vv_db"), ("Sigma0_VH", "Sigma0_VV"),
    ("Beta0_VH", "BETA0_VV"), ("Gamma0_VH (dB)", "Gamma0_VV (dB)"),
])
def test_snaps_names_of_polarisations(names: tuple[str, str]) -> None:
    assert select_bands(dataset(2, "float32", descriptions=names), MODALITIES["S1GRD"]) == [2, 1]


def test_polarisations_without_names_are_told_by_their_level() -> None:
    levels = np.broadcast_to(np.float32([-18, -12])[:, None, None], (2, 8, 8))  # VH, VV
    with pytest.raises(BandError, match=r"^array: the second band is brighter .* VH, VV; describe"):
        decide_scaling(ArrayDataset(levels), MODALITIES["S1GRD"])
    with pytest.raises(BandError, match="VH, VV"):
        decide_scaling(ArrayDataset(levels * 10, {"scale": 0.1}), MODALITIES["S1RTC"])
    assert decide_scaling(ArrayDataset(levels[::-1]), MODALITIES["S1GRD"]) == (1, 0)
    assert decide_scaling(ArrayDataset(levels / 2), MODALITIES["S1GRD"]) == (1, 0)  # 3 dB: rough sea, or rain
    named = ArrayDataset(levels, {"descriptions": ("VV", "VH")})
    assert decide_scaling(named, MODALITIES["S1GRD"]) == (1, 0)


def test_bands_by_position_without_descriptions() -> None:
    assert select_bands(dataset(12), L2A) == list(range(1, 13))


@pytest.mark.parametrize(("colors", "expected"), [
    ("blue green red", [3, 2, 1]),
    ("red green blue", [1, 2, 3]),
    ("undefined blue red green", [3, 4, 2]),
    ("gray undefined undefined", [1, 2, 3]),
    ("red red blue", [1, 2, 3]),
    ("alpha blue green red", [4, 3, 2]),
])
def test_colours_tell_the_bands_of_a_picture(colors: str, expected: list[int]) -> None:
    named = [ColorInterp[c] for c in colors.split()]
    picture = dataset(len(named), "uint8", 1)
    picture.colorinterp = named
    assert select_bands(picture, MODALITIES["S2RGB"]) == expected
    described = dataset(3, "uint8", 1, descriptions=("B04", "B03", "B02"))
    described.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    assert select_bands(described, MODALITIES["S2RGB"]) == [1, 2, 3]


@pytest.mark.parametrize(("count", "descriptions", "message"), [
    (11, None, "needs 12 bands, the file has 11"),
    (12, (*L2A.bands[:-1], "X"), "misses the bands B12"),
    (12, (*L2A.bands[:-1], None), "misses the bands B12"),
    (12, (*L2A.bands[:-1], "B01"), "bands 1 and 12 are both called B01"),
])
def test_missing_bands(count: int, descriptions: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(BandError, match=message):
        select_bands(dataset(count, descriptions=descriptions), L2A)


def test_a_single_band_may_have_any_text_but_not_another_bands_name() -> None:
    assert select_bands(dataset(1, descriptions=("SRTM 30 m",)), MODALITIES["DEM"]) == [1]
    with pytest.raises(BandError, match="misses the bands DEM"):
        select_bands(dataset(1, descriptions=("NDVI",)), MODALITIES["DEM"])


def test_alpha_is_no_band(make_raster: MakeRaster) -> None:
    path = make_raster(np.zeros((4, 4, 4), np.uint8), photometric="RGB", ALPHA="YES")
    with rasterio.open(path) as source:
        assert select_bands(source, MODALITIES["S2RGB"]) == [1, 2, 3]


# --------------------------------------------------------------------------- offset


@pytest.mark.parametrize(("profile", "expected"), [
    ({"tags": {"PROCESSING_BASELINE": "04.00"}}, "present"),
    ({"tags": {"PROCESSING_BASELINE": "05.09"}}, "present"),
    ({"tags": {"PROCESSING_BASELINE": "03.01"}}, "absent"),
    ({"tags": {"processing_baseline": "2.14"}}, "absent"),
    ({"name": "/x/S2B_MSIL2A_20220801T101559_N0400_R065_T32TQM_20220801T130000.SAFE/a.jp2"}, "present"),
    ({"name": "S2B_MSIL1C_20170801T101559_N0500_R065_T32TQM_20230801T130000.tif"}, "present"),
    ({"name": "S2B_MSIL2A_20210801T101559_N0301_R065_T32TQM_20210801T130000.tif"}, "absent"),
    ({"tags": {"PRODUCT_URI": "S2A_MSIL2A_20230613T101031_N0509_R022_T33UUP_x.SAFE"}}, "present"),
    ({"tags": {"BOA_ADD_OFFSET": "-1000"}}, "present"),
    ({"tags": {"RADIO_ADD_OFFSET_B1": "-1000", "RADIO_ADD_OFFSET_B2": "-1000"}}, "present"),
    ({"tags": {"BOA_ADD_OFFSET": "0", "PROCESSING_BASELINE": "05.00"}}, "absent"),
    ({"tags": {"BOA_ADD_OFFSET": "0,0,0,0"}}, "absent"),
    ({"tags": {"BOA_ADD_OFFSET": "[0, 0]"}}, "absent"),
    ({"tags": {"BOA_ADD_OFFSET": "-1000 -1000"}}, "present"),
    ({"tags": {"BOA_ADD_OFFSET": "nan", "PROCESSING_BASELINE": "05.00"}}, "present"),
    ({"scale": 0.0001, "offset": -0.1}, "present"),
    ({"tags": {"TMCODEC_S2_OFFSET": "absent", "PROCESSING_BASELINE": "05.00"}}, "absent"),
    ({"tags": {"TMCODEC_S2_OFFSET": "present"}}, "present"),
    ({"scale": 0.0001, "tags": {"PROCESSING_BASELINE": "02.04"}}, "absent"),
])
def test_offset_from_metadata(profile: dict[str, Any], expected: str) -> None:
    assert decide_s2_offset(dataset(**profile), "auto", L2A) == expected


@pytest.mark.parametrize("profile", [
    {},
    {"name": "S2A_MSIL2A_20170613T101031_87_48.tif"},  # 2017 may have been reprocessed
    {"scale": 0.0001},
    {"scale": 0.0001, "tags": {"PROCESSING_BASELINE": "05.00"}},  # contradiction
    {"scale": 0.0001, "offset": -0.1, "tags": {"PROCESSING_BASELINE": "02.00"}},  # contradiction
    {"tags": {"PROCESSING_BASELINE": "unknown"}},
    {"tags": {"PROCESSING_BASELINE": "nan"}},
    {"tags": {"BOA_ADD_OFFSET": "abc"}},
    {"tags": {"BOA_ADD_OFFSET": "-1000 0"}},  # contradiction
])
def test_offset_stays_open(profile: dict[str, Any]) -> None:
    contradicts = profile.keys() >= {"scale", "tags"} or "-1000 0" in str(profile)
    why = "contradicts itself about" if contradicts else "does not say anything about"
    with pytest.raises(OffsetUnknownError, match=f"{why} .*--s2-offset present"):
        decide_s2_offset(dataset(**profile), "auto", L2A)


def test_offset_band_tags_of_a_file(make_raster: MakeRaster) -> None:
    path = make_raster(np.ones((13, 4, 4), np.uint16), band_tags={"RADIO_ADD_OFFSET": "-1000"})
    with rasterio.open(path) as source:
        assert decide_s2_offset(source, "auto", L1C) == "present"


@pytest.mark.parametrize("names", [("SCL", *L2A.bands), (*L2A.bands, "SCL")])
def test_offset_by_the_scales_of_the_bands_wherever_they_are(names: tuple[str, ...]) -> None:
    scl = [n == "SCL" for n in names]
    profile = {"scale": [1.0 if s else 1e-4 for s in scl], "offset": [0.0 if s else -0.1 for s in scl]}
    assert decide_s2_offset(dataset(13, descriptions=names, **profile), "auto", L2A) == "present"


def test_offset_choice_wins_and_other_modalities_have_none() -> None:
    source = dataset(tags={"PROCESSING_BASELINE": "05.00"})
    assert decide_s2_offset(source, "absent", L2A) == "absent"
    assert decide_s2_offset(source, "auto", MODALITIES["S1GRD"]) == ""
    assert decide_s2_offset(source, "present", MODALITIES["S2RGB"]) == ""
    with pytest.raises(OffsetUnknownError, match="choose auto, present or absent"):
        decide_s2_offset(source, "yes", L2A)


# --------------------------------------------------------------------------- scaling

METRES = ("", "m", "metre", "Meters", "[m]", "m a.s.l.", "m (EGM96)", "elevation [m]", "NAVD88", "unknown",
          "unspecified")
INTERNATIONAL_FEET = ("ft", "[ft]", "Feet", "ft (NAVD88)", "foot above mean sea level", "International foot")
SURVEY_FEET = ("US Feet", "us_survey_foot", "ft_us", "ftUS", "us-ft", "foot (US survey)", "U.S. survey feet")


@pytest.mark.parametrize(("unit", "metres"), [
    *((u, 1.0) for u in METRES), *((u, 0.3048) for u in INTERNATIONAL_FEET),
    *((u, 1200 / 3937) for u in SURVEY_FEET), ("yd", 0.9144), ("kilometers", 1e3), ("mm", 1e-3),
])
def test_units_of_heights(unit: str, metres: float) -> None:
    assert decide_scaling(dataset(1, "int16", 7, units=unit), MODALITIES["DEM"]) == (metres, 0)


@pytest.mark.parametrize(("crs", "unit", "metres"), [
    ("EPSG:2264+6360", None, 1200 / 3937), ("EPSG:2264+8228", None, 0.3048), ("EPSG:2264+5703", None, 1.0),
    ("EPSG:4326+7968", None, 1.0), ("EPSG:4326+6130", None, 0.3048),
    ("EPSG:2264", None, 1.0),  # which says nothing about heights
    ("EPSG:2264+6360", "m", 1.0), ("EPSG:2264+6360", "NAVD88", 1200 / 3937),
])
def test_units_of_heights_by_their_crs(crs: str, unit: str | None, metres: float) -> None:
    source = dataset(1, "int16", 700, crs=crs, units=unit)
    assert decide_scaling(source, MODALITIES["DEM"]) == (metres, 0)


def test_a_crs_says_how_long_its_unit_is() -> None:
    feet = rasterio.crs.CRS.from_user_input("EPSG:4326+6130").to_wkt(version="WKT2_2019")
    vertical = feet.index("VERTCRS")
    spans = feet[:vertical] + feet[vertical:].replace('"foot",0.3048', '"span",0.2286', 1)
    source = dataset(1, "int16", 700, crs=spans)
    assert decide_scaling(source, MODALITIES["DEM"]) == (0.2286, 0)


@pytest.mark.parametrize("unit", ["m (ft)", "m/s", "chains", "1", "m*10", "foot (Indian)"])
def test_unknown_units_of_heights(unit: str) -> None:
    source = dataset(1, "int16", 700, units=unit)
    with pytest.raises(UnitsError, match=rf"array: its heights are in {re.escape(repr(unit))},.* --scale"):
        decide_scaling(source, MODALITIES["DEM"])
    assert decide_scaling(source, MODALITIES["DEM"], scale=2.0) == (2.0, 0)



@pytest.mark.parametrize(("count", "dtype", "fill", "profile", "modality", "kwargs", "expected"), [
    (12, "uint16", 3000, {}, "S2L2A", {}, (1, 0)),
    (12, "uint16", 3000, {}, "S2L2A", {"s2_offset": "absent"}, (1, 1000)),
    (12, "float32", 0.3, {}, "S2L2A", {}, (10000, 0)),
    (12, "float32", 0.3, {}, "S2L2A", {"s2_offset": "absent"}, (10000, 1000)),
    (12, "float32", 3000, {}, "S2L2A", {}, (1, 0)),
    (12, "uint16", 4000, {"scale": 0.0001, "offset": -0.1}, "S2L2A", {}, (1, 0)),
    (12, "uint16", 3000, {"scale": 0.0001}, "S2L2A", {"s2_offset": "absent"}, (1, 1000)),
    (12, "uint16", 3000, {"scale": float(np.float32(0.0001))}, "S2L2A", {}, (1, 0)),
    (12, "uint8", 30, {}, "S2L2A", {"scale": 100}, (100, 0)),
    (12, "uint16", 3, {}, "S2L2A", {"scale": 1.0}, (1, 0)),  # as dark as night
    (12, "float32", 3, {}, "S2L2A", {"scale": 1.0}, (1, 0)),
    (12, "float32", 0.001, {}, "S2L2A", {"scale": 10000}, (10000, 0)),
    (12, "uint16", 0, {"nodata": 0}, "S2L2A", {}, (1, 0)),
    (2, "float32", -12.5, {}, "S1GRD", {}, (1, 0)),
    (2, "int16", -125, {"scale": 0.1}, "S1GRD", {}, (0.1, 0)),
    (1, "int16", 700, {}, "DEM", {}, (1, 0)),
    (1, "int16", 700, {"scale": 0.1, "offset": 5}, "DEM", {}, (0.1, 5)),
    (1, "int16", 700, {"units": "m"}, "DEM", {}, (1, 0)),
    (1, "int16", 700, {"units": "metres above the geoid"}, "DEM", {}, (1, 0)),
    (1, "int16", 700, {"units": "ft"}, "DEM", {}, (0.3048, 0)),
    (1, "int16", 700, {"units": "US survey foot", "offset": 3937}, "DEM", {}, (1200 / 3937, 1200)),
    (1, "int16", 700, {"units": "cm", "scale": 10}, "DEM", {}, (0.1, 0)),
    (1, "int16", 700, {"units": "ft"}, "DEM", {"scale": 1.0}, (1, 0)),
    (1, "float32", 0.5, {}, "NDVI", {}, (1, 0)),
    (1, "int16", 5000, {}, "NDVI", {"scale": 0.0001}, (0.0001, 0)),
    (1, "int16", 5000, {"scale": 0.0001}, "NDVI", {}, (0.0001, 0)),
    (3, "uint8", 200, {}, "S2RGB", {}, (1, 0)),
    (3, "float32", 200, {}, "S2RGB", {}, (1, 0)),
    (3, "float32", 0.75, {}, "S2RGB", {"scale": 255}, (255, 0)),
    (3, "float32", 0, {}, "S2RGB", {}, (1, 0)),
    (3, "uint8", 1, {}, "S2RGB", {}, (1, 0)),
    (1, "uint8", 3, {"scale": 7}, "LULC", {}, (1, 0)),
])
def test_scaling(
    count: int, dtype: str, fill: float, profile: dict[str, Any], modality: str, kwargs: dict[str, Any],
    expected: tuple[float, float],
) -> None:
    assert decide_scaling(dataset(count, dtype, fill, **profile), MODALITIES[modality], **kwargs) == expected


@pytest.mark.parametrize(("count", "dtype", "fill", "profile", "modality", "kwargs", "message"), [
    (2, "float32", 0.05, {}, "S1GRD", {}, r"10\*log10"),
    (2, "float32", 0.05, {}, "S1RTC", {}, r"10\*log10"),
    (1, "int16", 5000, {}, "NDVI", {}, "--scale 0.0001"),
    (1, "float32", -2, {}, "NDVI", {}, "--scale"),
    (3, "uint16", 3000, {}, "S2RGB", {}, "S2L2A"),
    (12, "uint16", 3000, {}, "S2L2A", {"scale": 1e-4}, "--scale 0.0001 leads to .* 0.3, .* --scale 1$"),
    (12, "uint16", 3000, {}, "S2L2A", {"scale": 1e-4, "s2_offset": "absent"}, "pass --scale 1$"),
    (13, "float32", 0.3, {}, "S2L1C", {"scale": 1.0}, "pass --scale 10000$"),
    (12, "uint8", 200, {}, "S2L2A", {"scale": 0.004}, "up to 0.8, .* pass --scale 40$"),
    (3, "float32", 0.75, {}, "S2RGB", {}, "array: floats up to 0.75 look like .* pass --scale 255$"),
    (3, "float32", 1, {}, "S2RGB", {"scale": 1.0}, "--scale 255"),
    (3, "float64", 90, {"scale": 0.01}, "S2RGB", {}, "--scale 2.55"),
    (12, "uint8", 30, {}, "S2L2A", {}, "--scale"),
    (12, "float32", 30.5, {}, "S2L2A", {}, "30.5 look like .* in percent; pass --scale 100, or"),
    (12, "int16", 3050, {"scale": 0.01}, "S2L2A", {}, "30.5 look .* --scale 1, or --scale 0.01 for"),
    (12, "uint16", 30, {"scale": [1e-4] * 11 + [1e-3]}, "S2L2A", {}, "different scales"),
    (1, "int16", 5, {}, "DEM", {"scale": 0.0}, "other than 0"),
    (1, "int16", 5, {"scale": 0}, "DEM", {}, "array: its tags say scale 0 .* --scale"),
    (1, "int16", 5, {"offset": 0, "scale": -0.0}, "DEM", {}, "--scale so that stored . scale is in m"),
    (1, "int16", 5, {}, "DEM", {"scale": float("nan")}, "other than 0"),
])
def test_wrong_units(
    count: int, dtype: str, fill: float, profile: dict[str, Any], modality: str, kwargs: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UnitsError, match=message):
        decide_scaling(dataset(count, dtype, fill, **profile), MODALITIES[modality], **kwargs)


def test_undeclared_nodata_of_an_array_is_declared_in_its_profile() -> None:
    array = np.full((1, 8, 8), 500, np.int16)
    array[0, 0, 0] = -9999
    with pytest.raises(UnitsError, match=r"not declared; declare it \(profile\['nodata'\] = -9999\)$"):
        decide_scaling(ArrayDataset(array), MODALITIES["DEM"])


def test_samples_find_the_only_valid_corner_of_a_large_raster() -> None:
    array = np.zeros((1, 1100, 1200), np.int16)
    array[0, -1, -1] = 77
    assert sample_values(ArrayDataset(array, {"nodata": 0}), [1]).tolist() == [77]


def test_samples_ignore_masked_pixels(make_raster: MakeRaster) -> None:
    array = np.full((1, 8, 8), -9999, np.float32)
    array[0, 0, 0] = 0.5
    with rasterio.open(make_raster(array, mask=array[0] > 0)) as source:
        assert sample_values(source, [1]).tolist() == [0.5]


def plan(height: int, width: int, block: int, overviews: list[int]) -> list[Any]:
    """Return what is read of a raster of which nothing is valid."""
    size = SimpleNamespace(
        height=height, width=width, block_shapes=[(block, 256)] * 2, overviews=lambda band: overviews
    )
    return list(sample_plan(size, [1, 2]))  # type: ignore[arg-type]


def test_the_plan_of_samples_by_hand() -> None:
    """About 2^20 pixels at once: an overview, then 4 x 4 spots of 96 pixels, then strips of blocks."""
    overview, spots, *strips = plan(10_000, 8_000, 100, [2, 4, 8, 16, 32])
    assert overview == ([((0, 10_000), (0, 8_000))], (2, 625, 500))  # an eighth has 1,250,000 pixels
    rows, cols = (1202, 3702, 6202, 8702), (952, 2952, 4952, 6952)  # around 1/8, 3/8, 5/8 and 7/8
    assert spots == ([((y, y + 96), (x, x + 96)) for y in rows for x in cols], None)
    assert [((top, bottom), side) for [((top, bottom), side)], _ in strips] == [
        ((top, min(top + 200, 10_000)), (0, 8_000)) for top in range(0, 10_000, 200)  # not 131
    ]
    assert len(plan(1024, 1024, 16, [2])) == 1  # small enough: all of it
    narrow = plan(60_000, 50, 60_000, [])  # a block of its whole height is not read whole
    assert narrow[0][0][0] == ((7452, 7548), (0, 50)) and len(narrow[0][0]) == 4
    assert narrow[1][0] == [((0, 20971), (0, 50))]


def test_samples_come_from_overviews(make_raster: MakeRaster) -> None:
    path = make_raster(np.full((1, 1200, 1100), 9, np.uint8))
    with rasterio.open(path, "r+") as target:
        target.build_overviews([2], rasterio.enums.Resampling.nearest)
    with rasterio.open(path) as source:
        values = sample_values(source, [1])
    assert values.size == 600 * 550 and (values == 9).all()


# --------------------------------------------------------------------------- nodata


@pytest.mark.parametrize(("nodata", "dtype", "expected"), [
    (-32768.0, "int16", -32768),
    (65535.0, "uint16", 65535),
    (70000.0, "uint16", None),
    (-1.0, "uint8", None),
    (0.5, "uint8", None),
    (float("nan"), "int16", None),
    (-3.4028230607370965e38, "float32", -3.4028230607370965e38),
    (-3.4028234663852886e38, "float32", float(np.finfo(np.float32).min)),
    (-1.7976931348623157e308, "float32", float(np.finfo(np.float32).min)),
    (0.1, "float32", float(np.float32(0.1))),
    (None, "uint8", None),
])
def test_usable_nodata(nodata: float | None, dtype: str, expected: float | None) -> None:
    assert usable_nodata(nodata, dtype) == expected


def test_nan_nodata_and_infinities() -> None:
    nodata = usable_nodata(float("nan"), "float32")
    assert nodata is not None and np.isnan(nodata)
    stored = np.array([np.nan, np.inf, -np.inf, 0, -9999], np.float32)
    assert valid_pixels(stored, -9999.0).tolist() == [False, False, False, True, False]
    assert valid_pixels(stored, float("nan")).tolist() == [False, False, False, True, True]


# --------------------------------------------------------------------------- time


@pytest.mark.parametrize(("profile", "expected"), [
    ({"tags": {"TIFFTAG_DATETIME": "2019:05:04 03:02:01"}}, (2019, 5, 4, 3, 2, 1)),
    ({"tags": {"PRODUCT_START_TIME": "2017-06-13T10:10:31.026Z"}}, (2017, 6, 13, 10, 10, 31, 26000)),
    ({"tags": {"DATATAKE_1_DATATAKE_SENSING_START": "2017-06-13T10:10:31.026Z",
               "TIFFTAG_DATETIME": "2020:01:01 00:00:00"}}, (2017, 6, 13, 10, 10, 31, 26000)),
    ({"tags": {"ACQUISITION_DATE": "2020-02-29"}}, (2020, 2, 29)),
    ({"tags": {"datetime": "2020-02-29T23:30:00+02:00"}}, (2020, 2, 29, 21, 30)),
    ({"tags": {"TMCODEC_TIME": "2001-01-01T00:00:00Z", "datetime": "2020-02-29T00:00:00Z"}}, (2001, 1, 1)),
    ({"name": "S2A_MSIL2A_20170613T101031_87_48.tif"}, (2017, 6, 13, 10, 10, 31)),
    ({"name": "bigearthnet_S2B_MSIL2A_20170924T93020_69_24.tif"}, (2017, 9, 24, 9, 30, 20)),
    ({"name": "/d/S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48_VVVH.tif"}, (2017, 6, 13, 16, 50, 43)),
    ({"name": "S1B_IW_SLC__1SDV_20200101T000102_20200101T000129_x.tif"}, (2020, 1, 1, 0, 1, 2)),
])
def test_acquisition_time(profile: dict[str, Any], expected: tuple[int, ...]) -> None:
    utc = datetime(*expected, tzinfo=timezone.utc)  # type: ignore[misc,arg-type]
    assert acquisition_time(dataset(**profile)) == utc


@pytest.mark.parametrize("profile", [
    {}, {"name": "S2A_MSIL1C_20170527_T33UUB.tif"}, {"tags": {"datetime": "yesterday"}},
    {"tags": {"datetime": "2020-13-45T00:00:00Z"}}, {"name": "S2A_MSIL2A_20179999T101031.tif"},
])
def test_no_time(profile: dict[str, Any]) -> None:
    assert acquisition_time(dataset(**profile)) is None


@pytest.mark.parametrize("text", [
    "2020-12-31T10:30:00+01", "2020-12-31T10:30+01:00", "20201231T103000+0100", "20201231T0930Z",
    "2020-12-31T09:30:00,000", "2020:12:31 09:30:00", "2020-12-31 0930", "20201231T10:30:00.0000000001+01",
    "2020-12-30T23:30-10",
])  # fmt: skip
def test_iso_8601_in_all_forms(text: str) -> None:
    assert parse_time(text) == datetime(2020, 12, 31, 9, 30, tzinfo=timezone.utc)


@pytest.mark.parametrize("text", [
    "", "2020", "2020-12", "202012", "2020-1231", "2020-12-32", "20201231T", "2020-W53-4", "31.12.2020",
    "2020-12-31T1", "2020-12-31T10:30:00+1", "2020-12-31T25", "2020-12-31/2021-01-31", "12020-12-31",
])  # fmt: skip
def test_what_is_no_date(text: str) -> None:
    assert parse_time(text) is None


def test_days_alone() -> None:
    assert parse_time("20201231") == parse_time("2020-12-31") == datetime(2020, 12, 31, tzinfo=timezone.utc)


def test_parse_time_zone_without_colon() -> None:
    assert parse_time("2020-01-01T00:30:00-0130") == datetime(2020, 1, 1, 2, tzinfo=timezone.utc)


# --------------------------------------------------------------------------- classes


def test_class_map() -> None:
    assert parse_class_map("10:2, 20:9") == {10: 2, 20: 9}
    assert parse_class_map("WorldCover") == WORLDCOVER_TO_TERRAMIND
    assert set(WORLDCOVER_TO_TERRAMIND.values()) <= set(range(10))
    names = MODALITIES["LULC"].classes
    # The legend of ESA's product user manual, class by class.
    assert {theirs: names[ours] for theirs, ours in WORLDCOVER_TO_TERRAMIND.items()} == {
        0: "no data", 10: "trees", 20: "rangeland", 30: "rangeland", 40: "crops", 50: "built area",
        60: "bare ground", 70: "snow/ice", 80: "water", 90: "flooded vegetation", 95: "flooded vegetation",
        100: "rangeland",
    }


@pytest.mark.parametrize("text", ["", "10", "10:x", "10:2,10:3", "10:10", "-1:2", "10:2,"])
def test_bad_class_maps(text: str) -> None:
    with pytest.raises(UnitsError, match="--class-map"):
        parse_class_map(text)


def test_map_classes() -> None:
    ids = np.array([[10, 20], [20, 10]], np.uint8)
    mapped = map_classes(ids, {10: 2, 20: 9})
    assert mapped.dtype == np.float32 and mapped.tolist() == [[2, 9], [9, 2]]
    assert map_classes(np.array([0, 9], np.uint8), None).tolist() == [0, 9]


@pytest.mark.parametrize(("ids", "class_map"), [
    ([10], None), ([-1], None), ([2.5], None), ([3], {10: 2}),
])
def test_unknown_classes_name_the_option(ids: list[float], class_map: dict[int, int] | None) -> None:
    with pytest.raises(UnitsError, match="--class-map"):
        map_classes(np.array(ids), class_map)


def test_thirteen_bands_of_a_level_2a_product_are_level_2a() -> None:
    """Some converters keep an empty B10; the product's name outweighs the band count."""
    name = "S2A_MSIL2A_20170613T101031_N0205_R022_T33UUP.tif"
    array = dataset(13, descriptions=L1C.bands, name=name)
    assert infer_modality(array).name == "S2L2A"
    assert select_bands(array, L2A) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13]  # not the 11th, B10
    assert infer_modality(dataset(13, descriptions=L1C.bands)).name == "S2L1C"
    both = dataset(13, descriptions=L1C.bands, name=name, tags={"SOURCE": name.replace("L2A", "L1C")})
    assert infer_modality(both).name == "S2L1C"


def test_a_search_for_valid_pixels_decodes_each_block_once() -> None:
    array = ArrayDataset(np.zeros((1, 2100, 3000), np.int16), {"nodata": 0})
    array.block_shapes = ((512, 512),)
    rows = []
    read = array.read

    def noted(indexes: Any, *, window: Any = None, out_shape: Any = None) -> Any:
        rows.append(window[0])
        return read(indexes, window=window, out_shape=out_shape)

    array.read = noted  # type: ignore[method-assign]
    assert sample_values(array, [1]).size == 0
    assert rows[16:] == [(0, 512), (512, 1024), (1024, 1536), (1536, 2048), (2048, 2100)]  # after 16 spots


def test_reflectance_without_any_valid_pixel_is_scaled_as_other_dates_are() -> None:
    empty = dataset(12, "float32", np.nan)
    assert decide_scaling(empty, L2A, None, "absent") == (1e4, 1000.0)
    assert decide_scaling(dataset(12, "float32", 0.2), L2A, None, "absent") == (1e4, 1000.0)
    assert decide_scaling(dataset(12, "uint16", 0, nodata=0), L2A, None, "absent") == (1.0, 1000.0)


def test_unknown_classes_name_the_file() -> None:
    with pytest.raises(UnitsError, match=r"^map.tif: class ids 77 are not in"):
        check_classes(dataset(1, "uint8", 77, name="/a/map.tif"), MODALITIES["LULC"], None)
