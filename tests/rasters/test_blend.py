"""Blending of overlapping windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.errors import WindowError
from tmcodec.rasters.blend import Blender, Ramp, ramp, ramp_weights
from tmcodec.rasters.windows import Window


def overlapping(size: int, step: int, length: int) -> list[tuple[int, int, int, int]]:
    """Return (start, end, overlap before, overlap after) of windows along one axis."""
    spans = []
    start = 0
    while True:
        end = min(start + length, size)
        last = end == size
        spans.append((start, end, length - step if start else 0, 0 if last else length - step))
        if last:
            return spans
        start += step


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("overlap", [1, 2, 5, 16])
def test_a_ramp_and_its_mirror_sum_to_one(kind: Ramp, overlap: int) -> None:
    weights = ramp(overlap, kind)
    np.testing.assert_allclose(weights + weights[::-1], 1, atol=1e-6)
    assert (np.diff(weights) > 0).all() and weights.min() > 0


def test_linear_ramp_values() -> None:
    np.testing.assert_allclose(ramp(4, "linear"), [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(ramp(2), [np.sin(np.pi / 8) ** 2, np.cos(np.pi / 8) ** 2], rtol=1e-6)


def test_weights_refuse_overlaps_beyond_the_window() -> None:
    with pytest.raises(WindowError, match="overlaps exceed"):
        ramp_weights(8, 8, top=5, bottom=4)


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 40), st.integers(20, 40), st.sampled_from([(8, 10), (8, 12), (6, 12)]))
def test_weights_of_all_windows_sum_to_one_and_a_constant_stays(
    width: int, height: int, plan: tuple[int, int]
) -> None:
    step, length = plan
    total = np.zeros((height, width))
    blender = Blender(2, width, height)
    released = []
    for top, bottom, before, after in overlapping(height, step, length):
        for left, right, west, east in overlapping(width, step, length):
            h, w = bottom - top, right - left
            if before + after > h or west + east > w:
                return  # a last window shorter than its two overlaps: not a plan anybody makes
            weights = ramp_weights(h, w, before, after, west, east)
            total[top:bottom, left:right] += weights
            blender.add(Window(left, top, w, h), np.full((2, h, w), 7.25, np.float32), weights)
        part = blender.release(bottom - after)
        assert part is not None
        released.append(part)
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert [w.row for w, _ in released] == [0, *np.cumsum([w.height for w, _ in released])[:-1]]
    picture = np.concatenate([v for _, v in released], axis=1)
    assert picture.shape == (2, height, width) and picture.dtype == np.float32
    np.testing.assert_allclose(picture, 7.25, rtol=1e-6)


def test_two_windows_average_by_hand() -> None:
    blender = Blender(1, 6, 1)
    a, b = np.full((1, 1, 4), 10, np.float32), np.full((1, 1, 4), 20, np.float32)
    blender.add(Window(0, 0, 4, 1), a, ramp_weights(1, 4, right=2, kind="linear"))
    blender.add(Window(2, 0, 4, 1), b, ramp_weights(1, 4, left=2, kind="linear"))
    part = blender.release(1)
    assert part is not None
    # Weights at the two shared pixels: 0.75 / 0.25 and 0.25 / 0.75.
    np.testing.assert_allclose(part[1][0, 0], [10, 10, 12.5, 17.5, 20, 20])


def test_release_refuses_uncovered_rows_and_add_refuses_released_ones() -> None:
    blender = Blender(1, 4, 4)
    ones = np.ones((1, 2, 4), np.float32)
    with pytest.raises(WindowError, match="not covered"):
        blender.release(1)
    blender.add(Window(0, 0, 4, 2), ones, ones[0])
    assert blender.release(2) is not None
    assert blender.release(2) is None
    with pytest.raises(WindowError, match="released"):
        blender.add(Window(0, 1, 4, 2), ones, ones[0])
