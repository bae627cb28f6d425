"""Values that cannot be what the modality says are refused before anything is encoded."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tmcodec.errors import UnitsError
from tmcodec.modalities import MODALITIES
from tmcodec.rasters.plausible import check_reflectance_scale, check_values

RNG = np.random.default_rng(0)
HILLS = RNG.uniform(200, 1400, 1000)
LAND = RNG.uniform(200, 4000, 1000)
RADAR = RNG.normal(-14, 4, 1000)


def mixed(values: np.ndarray, *more: float) -> np.ndarray:
    """Put a few values more among others."""
    return np.append(values, more)


@pytest.mark.parametrize(
    ("modality", "stored", "scale", "offset"),
    [
        ("DEM", HILLS, 1.0, 0.0),
        ("DEM", HILLS * 10, 0.1, 0.0),
        ("DEM", RNG.uniform(-10_900, 8800, 5000), 1.0, 0.0),  # a sea bed may have -9999, with slopes around
        ("DEM", mixed(np.arange(-9999, -9000), -9999), 1.0, 0.0),
        ("S2L2A", LAND, 1.0, 1000.0),
        ("S2L2A", mixed(LAND, 65535.0), 1.0, 0.0),
        ("S2L2A", LAND / 1e4 - 0.05, 1e4, 1000.0),
        ("S1GRD", RADAR, 1.0, 0.0),
        ("S1RTC", mixed(RADAR, 12.0, 30.0), 1.0, 0.0),
        ("S1GRD", np.zeros(9), 1.0, 0.0),
        ("NDVI", mixed(RNG.uniform(2000, 9000, 100), -9999.0), 1e-4, 0.0),  # -0.9999: possible, and apart
        ("LULC", np.array([0.0, 200.0, -9999.0]), 1.0, 0.0),  # classes have a check of their own
        ("DEM", np.empty(0), 1.0, 0.0),
        ("DEM", mixed(HILLS, 8849), 1.0, 0.0),  # a peak
        ("DEM", mixed(np.arange(64_000, 65_536)), 0.1, 0.0),
        ("S2L2A", mixed(LAND / 1e4, 6.5535), 1e4, 1000.0),  # saturated, as reflectance
        ("DEM", np.arange(-9999.0, -9000.0, 400), 1.0, 0.0),  # no value stands further from the next one
        ("NDVI", np.array([-1.5, 0.0, 1.5]), 1.0, 0.0),
        ("S1GRD", np.array([-1.0, 5.0, 6.0, 7.0, 8.0]), 1.0, 0.0),  # a fifth is negative
        ("S2RGB", np.array([0.0, 90.0, 255.0]), 1.0, 0.0),
        ("S1GRD", mixed(RADAR * 20 + 400, -999), 0.05, -10.0),  # -59.95 dB
    ],
)
def test_plausible(modality: str, stored: np.ndarray, scale: float, offset: float) -> None:
    assert check_values("a.tif", MODALITIES[modality], stored, scale, offset) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("modality", "stored", "scale", "offset", "why"),
    [
        ("DEM", mixed(HILLS, -9999), 1.0, 0.0, r"-9999 stands far below .*rio edit-info --nodata -9999"),
        ("DEM", mixed(HILLS, -32768, -32768), 1.0, 0.0, "-32768 stands far below"),
        ("DEM", np.full(9, -9999.0), 1.0, 0.0, "-9999 stands far below"),
        ("DEM", HILLS * 100, 1.0, 0.0, "values around .* are no DEM in m; .* -12000 and 9000; .*--scale"),
        ("S2L2A", mixed(LAND, -9999), 1.0, 1000.0, "-9999 stands far below"),
        ("S2L1C", mixed(LAND / 1e4, -9999), 1e4, 0.0, "-9999 stands far below"),
        ("S1GRD", mixed(RADAR, -9999), 1.0, 0.0, "-9999 stands far below"),
        ("S1GRD", RADAR * 100, 1.0, 0.0, "are no S1GRD in dB"),
        ("S1GRD", 10 ** (RADAR / 10), 1.0, 0.0, r"10\*log10"),
        ("S1RTC", mixed(10 ** (RADAR / 10), -1e-4, -2e-4), 1.0, 0.0, r"10\*log10"),  # noise was taken off
        ("NDVI", mixed(RNG.uniform(-1, 1, 99), -9999.0), 1.0, 0.0, "-9999 stands far below"),
        ("NDVI", HILLS, 1.0, 0.0, "--scale 0.0001"),
        ("NDVI", np.array([-1.51, 0.0, 0.5]), 1.0, 0.0, "from -1.51 to 0.5 are no NDVI"),
        ("NDVI", np.array([-0.5, 0.0, 1.51]), 1.0, 0.0, "from -0.5 to 1.51 are no NDVI"),
        ("DEM", np.arange(-9999.0, -9000.0, 401), 1.0, 0.0, "-9999 stands far below"),
        ("S1GRD", mixed(RADAR * 20 + 400, -999), 0.05, -20.0, "-999 stands far below"),  # -69.95 dB
        ("S1GRD", np.array([-1.0, 5.0, 6.0, 7.0, 8.0, 9.0]), 1.0, 0.0, r"10\*log10"),
        ("S2RGB", np.array([-1.0, 90.0, 255.0]), 1.0, 0.0, "8-bit"),
        ("S2RGB", np.array([0.0, 90.0, 256.0]), 1.0, 0.0, "8-bit"),
        ("S2RGB", LAND, 1.0, 0.0, "8-bit"),
        ("DEM", mixed(HILLS, 9999), 1.0, 0.0, r"9999 stands far above .*rio edit-info --nodata 9999 FILE"),
        ("DEM", mixed(HILLS, 32767), 1.0, 0.0, "32767 stands far above"),
        ("DEM", mixed(HILLS * 10, 65535), 0.1, 0.0, "65535 stands far above"),
        ("DEM", mixed(HILLS, 1e20), 1.0, 0.0, r"1e\+20 stands far above"),
        ("DEM", mixed(HILLS, -99999), 1.0, 0.0, "-99999 stands far below"),
        ("DEM", mixed(HILLS * 100, 5e6), 1.0, 0.0, "values around"),  # in another unit, all of it
        ("S2L1C", mixed(LAND / 1e4, 1e20), 1e4, 0.0, r"1e\+20 stands far above"),
        ("S1GRD", mixed(RADAR, 9.969209968386869e36), 1.0, 0.0, r"--nodata 9.969209968386869e\+36 FILE"),
        # Six digits of it would be another number, and declare nothing.
        ("DEM", mixed(HILLS, float(np.finfo("f4").min)), 1.0, 0.0, r"--nodata -3.4028234663852886e\+38 FILE"),
        ("DEM", np.full(98, 1e308), 1.0, 0.0, "values around .* are no DEM"),  # whose sum is infinite
    ],
)
def test_implausible(modality: str, stored: np.ndarray, scale: float, offset: float, why: str) -> None:
    with warnings.catch_warnings(), pytest.raises(UnitsError, match=f"^a.tif: .*{why}"):
        warnings.simplefilter("error")  # which would be another line
        check_values("a.tif", MODALITIES[modality], stored, scale, offset)


@pytest.mark.parametrize(
    ("high", "floats", "refused"), [(1.5, True, True), (1.6, True, False), (1, False, False)]
)
def test_a_picture_of_floats_may_go_to_one(high: float, floats: bool, refused: bool) -> None:
    stored = np.linspace(0, high, 20)
    if refused:
        with pytest.raises(UnitsError, match=r"floats up to 1.5 look like .* from 0 to 1.*--scale 255"):
            check_values("a.tif", MODALITIES["S2RGB"], stored, 1.0, 0.0, floats)
    else:
        check_values("a.tif", MODALITIES["S2RGB"], stored, 1.0, 0.0, floats)


def test_a_caller_s_scale_leads_to_reflectance_times_10000() -> None:
    with pytest.raises(UnitsError, match=r"--scale 0.0001 leads to values up to 0.4, .*: pass --scale 1$"):
        check_reflectance_scale("a.tif", np.full(9, 4000.0), 1e-4)
    with pytest.raises(UnitsError, match=r"--scale 1 leads to values up to 0.4, .*: pass --scale 10000$"):
        check_reflectance_scale("a.tif", np.full(9, 0.4), 1.0)
    for stored, scale in (
        (np.empty(0), 1e-4), (np.full(9, 5.0), 1.0), (np.full(9, 1e-4), 1e4), (np.full(9, 1e-4), -1e4),
        (np.full(9, 40.0), 0.5),
    ):
        check_reflectance_scale("a.tif", stored, scale)
