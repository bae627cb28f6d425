"""Metrics against hand-computed values and second implementations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tmcodec.errors import ShapeError, UnitsError
from tmcodec.metrics import (
    PEAKS,
    ClassMetrics,
    ImageMetrics,
    class_metrics,
    compute_metrics,
    ndvi_error,
    peak_of,
    psnr_of,
    spectral_angle,
    ssim,
)
from tmcodec.modalities import MODALITIES

S2, DEM, LULC = MODALITIES["S2L2A"], MODALITIES["DEM"], MODALITIES["LULC"]
RNG = np.random.default_rng(1)


def all_valid(array: np.ndarray) -> np.ndarray:
    return np.ones(array.shape, np.bool_)


def image(reference: np.ndarray, other: np.ndarray, valid: np.ndarray, name: str) -> ImageMetrics:
    result = compute_metrics(reference, other, valid, MODALITIES[name])
    assert isinstance(result, ImageMetrics)
    return result


def test_a_constant_error_by_hand() -> None:
    reference = np.full((12, 16, 16), 3000, np.float32)
    result = image(reference, reference + 100, all_valid(reference), "S2L2A")
    assert result.peak == 10000
    assert result.psnr == pytest.approx(40)  # 20 log10(10000 / 100)
    assert (result.rmse, result.mae) == (100, 100)
    assert [b.bias for b in result.bands] == [100] * 12
    assert [b.name for b in result.bands] == list(S2.bands)


def test_rmse_mae_and_bias_differ_by_hand() -> None:
    reference = np.zeros((1, 1, 4), np.float32)
    other = np.array([[[3, -1, 0, 0]]], np.float32)
    (band,) = image(reference, other, all_valid(reference), "NDVI").bands
    assert band.rmse == pytest.approx(math.sqrt(10 / 4))
    assert (band.mae, band.bias) == (1.0, 0.5)
    assert band.psnr == pytest.approx(10 * math.log10(4 / 2.5))


def test_overall_psnr_pools_the_squared_errors_of_all_bands() -> None:
    reference = np.zeros((2, 8, 8), np.float32)
    other = np.stack([np.full((8, 8), 1), np.full((8, 8), 7)]).astype(np.float32)
    result = image(reference, other, all_valid(reference), "S1GRD")
    assert result.rmse == pytest.approx(5)  # sqrt((1 + 49) / 2)
    assert result.psnr == pytest.approx(20)  # 20 log10(50 / 5)


def test_masked_values_do_not_matter() -> None:
    reference = RNG.normal(0, 5, (2, 20, 20)).astype(np.float32)
    other = reference + RNG.normal(0, 1, reference.shape).astype(np.float32)
    valid = RNG.random(reference.shape) > 0.3
    first = image(reference, other, valid, "S1RTC")
    spoiled = [np.where(valid, a, np.float32(fill)) for a, fill in ((reference, -999), (other, 1e6))]
    assert image(spoiled[0], spoiled[1], valid, "S1RTC") == first
    difference = (other.astype(np.float64) - reference)[valid]
    assert first.rmse == pytest.approx(np.sqrt(np.mean(difference**2)))
    assert first.mae == pytest.approx(np.mean(np.abs(difference)))


def test_identical_pictures() -> None:
    reference = RNG.uniform(1000, 5000, (12, 16, 16)).astype(np.float32)
    result = image(reference, reference.copy(), all_valid(reference), "S2L2A")
    assert result.psnr == math.inf
    assert (result.rmse, result.ssim, result.ndvi_error) == (0, pytest.approx(1), 0)
    assert result.sam == pytest.approx(0, abs=1e-5)
    assert result.to_dict()["psnr"] is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_nothing_valid_is_nan_and_null_in_json() -> None:
    reference = np.zeros((12, 9, 9), np.float32)
    result = image(reference, reference, np.zeros(reference.shape, np.bool_), "S2L2A")
    assert math.isnan(result.psnr)
    assert math.isnan(result.ssim)
    assert result.pixels == 0
    assert result.to_dict()["bands"][0]["rmse"] is None


def test_peaks() -> None:
    assert PEAKS == {"S2L2A": 1e4, "S2L1C": 1e4, "S2RGB": 255, "S1GRD": 50, "S1RTC": 50, "NDVI": 2}
    heights = np.array([[[100, 350, -9999]]], np.float32)
    assert peak_of(DEM, heights, heights > 0) == 250
    assert math.isnan(peak_of(DEM, heights, heights > 1e6))
    assert math.isnan(psnr_of(1.0, 0.0))  # a flat DEM has no peak
    assert psnr_of(0.01, 0.5) == pytest.approx(10 * math.log10(25))  # one of half a metre has
    assert psnr_of(0.0, 0.5) == math.inf


# --------------------------------------------------------------------------- SSIM


@pytest.mark.parametrize("shape", [(7, 7), (40, 33)])
def test_ssim_without_a_mask_is_scikit_images(shape: tuple[int, int]) -> None:
    from skimage.metrics import structural_similarity

    first = RNG.normal(0, 9, shape).astype(np.float32)
    second = first + RNG.normal(0, 2, shape).astype(np.float32)
    expected = structural_similarity(first.astype(float), second.astype(float), data_range=50)
    assert ssim(first, second, all_valid(first), 50) == pytest.approx(expected)


def test_ssim_far_from_a_hole_is_that_of_the_rest() -> None:
    first, second = RNG.random((2, 40, 80)).astype(np.float32)
    valid = all_valid(first)
    valid[:, 40:] = False
    right_edge_left_out = ssim(first[:, :40], second[:, :40], all_valid(first[:, :40]), 1)
    assert ssim(first, second, valid, 1) == pytest.approx(right_edge_left_out, abs=0.05)
    assert ssim(first, first, valid, 1) == pytest.approx(1)


def test_ssim_of_tiny_pictures() -> None:
    small = RNG.random((3, 5)).astype(np.float32)
    assert ssim(small, small, all_valid(small), 1) == pytest.approx(1)
    assert math.isnan(ssim(small[:2], small[:2], all_valid(small[:2]), 1))
    for peak in (0.0, math.nan):  # as of a flat DEM, and of one without a valid pixel
        assert math.isnan(ssim(small, small, all_valid(small), peak))


# --------------------------------------------------------------------------- SAM and NDVI


def test_spectral_angle_by_hand() -> None:
    reference = np.array([1, 0, 0], np.float32).reshape(3, 1, 1)
    assert spectral_angle(reference, reference * 5, all_valid(reference)) == pytest.approx(0)
    diagonal = np.array([1, 1, 0], np.float32).reshape(3, 1, 1)
    assert spectral_angle(reference, diagonal, all_valid(reference)) == pytest.approx(45)
    right = np.array([0, 0, 2], np.float32).reshape(3, 1, 1)
    assert spectral_angle(reference, right, all_valid(reference)) == pytest.approx(90)


def test_spectral_angle_takes_the_offset_off_and_skips_zeros() -> None:
    reference = np.array([[1001, 1000], [1000, 1000], [1000, 1000]], np.float32)[:, None]
    other = np.array([[1001, 1000], [1001, 1000], [1000, 1000]], np.float32)[:, None]
    assert spectral_angle(reference, other, all_valid(reference), 1000.0) == pytest.approx(45)
    assert math.isnan(spectral_angle(reference * 0, other, all_valid(reference)))


def test_spectral_angle_is_the_mean_over_the_pixels() -> None:
    reference = np.array([[1, 1, 1], [0, 0, 0], [0, 0, 0]], np.float32)[:, None]
    other = np.array([[2, 3, 0], [0, 3, 5], [0, 0, 0]], np.float32)[:, None]  # 0, 45 and 90 degrees
    assert spectral_angle(reference, other, all_valid(reference)) == pytest.approx(45)
    tiny = np.float32(1e-3)
    assert spectral_angle(reference * tiny, other * tiny, all_valid(reference)) == pytest.approx(45)
    valid = all_valid(reference)
    valid[1, 0, 0] = False  # one band is enough
    assert spectral_angle(reference, other, valid) == pytest.approx(67.5)


def test_spectral_angle_of_opposite_spectra_is_180_degrees() -> None:
    """Rounding takes some cosines beyond -1."""
    spectra = RNG.normal(0, 1, (5, 40, 40)).astype(np.float32)
    for scale in (-1, -3):
        assert spectral_angle(spectra, spectra * scale, all_valid(spectra)) == pytest.approx(180, abs=1e-4)


def test_spectral_angle_is_for_three_bands_and_more() -> None:
    flat = np.zeros((2, 8, 8), np.float32)
    assert image(flat, flat + 1, all_valid(flat), "S1GRD").sam is None


def test_ndvi_error_by_hand() -> None:
    reference, other = np.full((2, 12, 1, 2), 1000, np.float32)
    red, nir = S2.bands.index("B04"), S2.bands.index("B08")
    reference[red, 0, 0], reference[nir, 0, 0] = 1100, 1300  # (300 - 100) / 400 = 0.5
    other[red, 0, 0], other[nir, 0, 0] = 1300, 1100  # -0.5; the second pixel has no NDVI
    assert ndvi_error(reference, other, all_valid(reference), S2) == pytest.approx(1.0)
    valid = all_valid(reference)
    valid[red, 0, 0] = False
    assert math.isnan(ndvi_error(reference, other, valid, S2))


def test_pixels_without_an_ndvi_in_either_picture_do_not_count() -> None:
    reference, other = np.full((2, 12, 1, 3), 1000, np.float32)
    red, nir = S2.bands.index("B04"), S2.bands.index("B08")
    reference[nir, 0, :2], other[nir, 0, ::2] = 1100, 1100  # both, only the first, only the second
    reference[red, 0, 0] = 1100  # 0, where the other's is 1
    assert ndvi_error(reference, other, all_valid(reference), S2) == 1
    assert math.isnan(ndvi_error(reference[..., 1:], other[..., 1:], all_valid(other[..., 1:]), S2))


def test_negative_reflectance_counts_as_black() -> None:
    reference, other = np.full((2, 12, 1, 1), 1000, np.float32)
    red, nir = S2.bands.index("B04"), S2.bands.index("B08")
    reference[red], reference[nir] = 900, 1100
    other[red], other[nir] = 1000, 1200
    assert ndvi_error(reference, other, all_valid(reference), S2) == 0


# --------------------------------------------------------------------------- classes


def test_classes_by_hand() -> None:
    reference = np.array([[1, 1, 2, 2]], np.float32)
    other = np.array([[1, 2, 2, 4]], np.float32)
    result = class_metrics(reference, other, all_valid(reference), LULC.classes)
    assert result.accuracy == 0.5
    # water 1 of 2, trees 1 of 3, crops 0 of 1; classes in neither map do not count
    assert result.iou == {"water": 0.5, "trees": pytest.approx(1 / 3), "crops": 0.0}
    assert result.miou == pytest.approx((1 / 2 + 1 / 3) / 3)


def test_classes_against_set_arithmetic() -> None:
    reference, other = RNG.integers(0, 10, (2, 1, 30, 30)).astype(np.float32)
    valid = RNG.random(reference.shape) > 0.2
    result = compute_metrics(reference, other, valid, LULC)
    assert isinstance(result, ClassMetrics)
    for i, name in enumerate(LULC.classes):
        first, second = (set(np.flatnonzero(valid & (a == i))) for a in (reference, other))
        assert result.iou[name] == pytest.approx(len(first & second) / len(first | second))
    assert result.accuracy == pytest.approx(float((reference == other)[valid].mean()))


@pytest.mark.parametrize("wild", [-1.0, 10.0, 1e10, math.nan])
def test_ids_without_a_name_are_refused_where_they_count(wild: float) -> None:
    reference, other = np.ones((2, 1, 4), np.float32)
    other[0, 0] = wild
    with pytest.raises(UnitsError, match="the legend has 0 to 9"):
        class_metrics(reference, other, all_valid(reference), LULC.classes)
    assert class_metrics(reference, other, other == 1, LULC.classes).accuracy == 1


def test_no_valid_class_pixel() -> None:
    ids = np.ones((2, 2), np.float32)
    result = class_metrics(ids, ids, np.zeros((2, 2), np.bool_), LULC.classes)
    assert result.pixels == 0
    assert result.to_dict()["accuracy"] is None


def test_shapes_are_checked() -> None:
    twelve, eleven = np.zeros((12, 4, 4), np.float32), np.zeros((11, 4, 4), np.float32)
    with pytest.raises(ShapeError, match="S2L2A"):
        compute_metrics(twelve, eleven, all_valid(twelve), S2)
    with pytest.raises(ShapeError, match="12, H, W"):
        compute_metrics(eleven, eleven, all_valid(eleven), S2)
