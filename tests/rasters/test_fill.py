"""Filling of invalid pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tmcodec.rasters.fill import fill_invalid


def test_all_valid_returns_the_very_input() -> None:
    values = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    assert fill_invalid(values, np.ones(values.shape, bool)) is values


def test_a_constant_continues_as_that_constant() -> None:
    values = np.full((1, 13, 9), np.nan, np.float32)
    valid = np.zeros(values.shape, bool)
    values[0, :3], valid[0, :3] = 42, True
    np.testing.assert_allclose(fill_invalid(values, valid), 42, rtol=1e-6)


def test_one_valid_pixel_fills_the_band() -> None:
    values, valid = np.zeros((1, 7, 10), np.float32), np.zeros((1, 7, 10), bool)
    values[0, 3, 4], valid[0, 3, 4] = -5, True
    np.testing.assert_allclose(fill_invalid(values, valid), -5, rtol=1e-6)


def test_a_gap_in_a_plane_has_no_cliff() -> None:
    plane = np.broadcast_to(np.arange(64, dtype=np.float32), (1, 64, 64)).copy()
    valid = np.ones(plane.shape, bool)
    valid[0, 20:36, 20:36] = False
    filled = fill_invalid(np.where(valid, plane, -32768).astype(np.float32), valid)
    # The gap is 16 wide; what fills it stays within its surroundings and rises from left to right.
    assert filled[0, 20:36, 20:36].min() >= 18 and filled[0, 20:36, 20:36].max() <= 37
    assert np.abs(np.diff(filled[0], axis=1)).max() < 8
    assert np.array_equal(filled[valid], plane[valid])


@pytest.mark.parametrize("fallback", [3.5, (3.5, 9.0)])
def test_bands_without_valid_pixels_take_the_fallback(fallback: float | tuple[float, float]) -> None:
    values = np.full((2, 4, 4), np.inf, np.float32)
    filled = fill_invalid(values, np.zeros(values.shape, bool), fallback)
    assert (filled[0] == 3.5).all()
    assert (filled[1] == (3.5 if isinstance(fallback, float) else 9.0)).all()


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
                  elements=st.floats(width=32, allow_nan=True, allow_infinity=True)), st.integers(0, 2**32))
def test_finite_within_range_and_valid_pixels_kept(values: np.ndarray, seed: int) -> None:
    valid = np.random.default_rng(seed).random(values.shape) < 0.4
    before = values.copy()
    filled = fill_invalid(values, valid, 1.0)
    usable = valid & np.isfinite(values)
    assert np.isfinite(filled).all() and filled.dtype == np.float32
    assert np.array_equal(filled[usable], values[usable])
    assert np.array_equal(values, before, equal_nan=True)
    for band, ok, source in zip(filled, usable, values, strict=True):
        if ok.any():
            kept = source[ok].astype(np.float64)
            slack = 1e-5 * np.abs(kept).max() + 1e-30
            assert band.min() >= kept.min() - slack and band.max() <= kept.max() + slack
