"""Window arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmcodec.errors import WindowError
from tmcodec.rasters.windows import (
    Window,
    align_out,
    as_window,
    grid_windows,
    padded_size,
    window_from_bounds,
    window_transform,
)

sizes = st.integers(1, 60)


@st.composite
def raster_and_window(draw: st.DrawFn) -> tuple[int, int, Window]:
    width, height = draw(sizes), draw(sizes)
    col, row = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    size = draw(st.integers(1, width - col)), draw(st.integers(1, height - row))
    return width, height, Window(col, row, *size)


@given(sizes, sizes, st.integers(1, 70))
def test_grid_covers_each_pixel_once_in_row_major_order(width: int, height: int, size: int) -> None:
    windows = list(grid_windows(width, height, size))
    count = np.zeros((height, width), int)
    for window in windows:
        count[window.slices] += 1
    assert (count == 1).all()
    assert windows == sorted(windows, key=lambda w: (w.row, w.col))


@given(raster_and_window(), st.integers(0, 20))
def test_expand_stays_inside_and_contains(case: tuple[int, int, Window], halo: int) -> None:
    width, height, window = case
    grown = window.expand(halo, width, height)
    assert grown.contains(window)
    assert Window(0, 0, width, height).contains(grown)
    assert grown.col == max(window.col - halo, 0)
    assert grown.row == max(window.row - halo, 0)
    assert grown.col_end == min(window.col_end + halo, width)
    assert grown.row_end == min(window.row_end + halo, height)


@given(raster_and_window(), raster_and_window())
def test_intersect_is_the_set_of_common_pixels(
    a: tuple[int, int, Window], b: tuple[int, int, Window]
) -> None:
    first, second = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    first[a[2].slices], second[b[2].slices] = True, True
    both = np.zeros((60, 60), bool)
    common = a[2].intersect(b[2])
    if common is not None:
        both[common.slices] = True
    assert np.array_equal(both, first & second)


@given(raster_and_window(), raster_and_window())
def test_what_contains_another_has_all_its_pixels(
    a: tuple[int, int, Window], b: tuple[int, int, Window]
) -> None:
    first, second = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    first[a[2].slices], second[b[2].slices] = True, True
    assert a[2].contains(b[2]) == (second <= first).all()
    assert a[2].contains(a[2])


@pytest.mark.parametrize(
    "window", [Window(4, 5, 2, 2), Window(5, 4, 2, 2), Window(5, 5, 3, 2), Window(5, 5, 2, 3)]
)
def test_a_pixel_beyond_any_edge_is_outside(window: Window) -> None:
    assert not Window(5, 5, 2, 2).contains(window)


@pytest.mark.parametrize("window", [(0, 0, 4), (0, 0, 4, 4.0), "abcd", 7, (0, 0, 4, None)])
def test_what_is_no_window_is_refused(window: Any) -> None:
    with pytest.raises(WindowError, match="give four whole numbers, COL ROW WIDTH HEIGHT"):
        as_window(window)


@given(raster_and_window(), st.integers(1, 16))
def test_align_out_is_the_smallest_cover(case: tuple[int, int, Window], patch: int) -> None:
    width, height, window = case
    aligned = align_out(window, patch, width, height)
    assert aligned.contains(window)
    assert aligned.col % patch == 0 and aligned.row % patch == 0
    assert aligned.col_end % patch == 0 or aligned.col_end == width
    assert aligned.row_end % patch == 0 or aligned.row_end == height
    assert window.col - aligned.col < patch and aligned.col_end - window.col_end < patch
    assert window.row - aligned.row < patch and aligned.row_end - window.row_end < patch


def test_align_out_refuses_a_window_outside() -> None:
    with pytest.raises(WindowError, match="not inside"):
        align_out(Window(0, 0, 20, 5), 16, 10, 10)


@given(st.integers(1, 10**6), st.integers(1, 512))
def test_padded_size(n: int, patch: int) -> None:
    padded = padded_size(n, patch)
    assert padded % patch == 0 and 0 <= padded - n < patch


@pytest.mark.parametrize("args", [(0, 0, 0, 1), (0, 0, 1, 0), (-1, 0, 1, 1), (0, -1, 1, 1)])
def test_empty_and_negative_windows_are_refused(args: tuple[int, int, int, int]) -> None:
    with pytest.raises(WindowError):
        Window(*args)


def test_relative_to() -> None:
    assert Window(5, 7, 2, 3).relative_to(Window(4, 4, 10, 10)) == Window(1, 3, 2, 3)
    with pytest.raises(WindowError, match="not inside"):
        Window(5, 7, 2, 3).relative_to(Window(6, 6, 10, 10))


@given(raster_and_window(), st.sampled_from([
    (10.0, 0.0, 399960.0, 0.0, -10.0, 5000040.0),  # north up
    (1.0, 0.0, -0.5, 0.0, 1.0, -0.5),  # south up, as the placeholder of some shared rasters
    (0.0, 10.0, 100.0, 10.0, 0.0, 200.0),  # turned by 90 degrees and mirrored
    (-2.0, 0.0, 50.0, 0.0, 3.0, 7.0),  # east to west
]))
def test_bounds_of_a_window_give_the_window_back(
    case: tuple[int, int, Window], transform: tuple[float, float, float, float, float, float]
) -> None:
    width, height, window = case
    a, b, c, d, e, f = transform
    corners = [(col, row) for col in (window.col, window.col_end) for row in (window.row, window.row_end)]
    xs = [a * col + b * row + c for col, row in corners]
    ys = [d * col + e * row + f for col, row in corners]
    assert window_from_bounds((min(xs), min(ys), max(xs), max(ys)), transform, width, height) == window


def test_bounds_are_clipped_and_cover_partial_pixels() -> None:
    north_up = (10.0, 0.0, 0.0, 0.0, -10.0, 100.0)
    assert window_from_bounds((-50.0, 85.0, 12.0, 500.0), north_up, 10, 10) == Window(0, 0, 2, 2)


def test_bounds_of_a_turned_raster_cover_the_rectangle() -> None:
    # 45 degrees: pixel (col, row) lies at (col - row, col + row); the square around (0, 4)
    # of half width 1 has its corners at columns and rows 1..3.
    turned = (1.0, -1.0, 0.0, 1.0, 1.0, 0.0)
    assert window_from_bounds((-1.0, 3.0, 1.0, 5.0), turned, 9, 9) == Window(1, 1, 2, 2)


@pytest.mark.parametrize(("bounds", "transform"), [
    ((1000.0, 0.0, 1010.0, 10.0), (10.0, 0.0, 0.0, 0.0, -10.0, 100.0)),
    ((10.0, 0.0, 0.0, 10.0), (10.0, 0.0, 0.0, 0.0, -10.0, 100.0)),
    ((0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0, 1.0, 0.0)),
    ((0.0, float("nan"), 1.0, 1.0), None),
    ((0.0, 0.0, float("inf"), 1.0), None),
    (("0", "0", "1", "1"), None),
    ((10.0, 0.0, 20.0, 10.0), None),  # beside the raster, touching it
    ((0.0, -10.0, 10.0, 0.0), None),
])
def test_bad_bounds_are_refused(bounds: tuple[float, float, float, float], transform: object) -> None:
    with pytest.raises(WindowError):
        window_from_bounds(bounds, transform, 10, 10)  # type: ignore[arg-type]


def test_window_transform_moves_the_origin() -> None:
    assert window_transform((10.0, 1.0, 100.0, 2.0, -10.0, 200.0), Window(3, 4, 1, 1)) == (
        10.0, 1.0, 134.0, 2.0, -10.0, 166.0)
    assert window_transform(None, Window(3, 4, 1, 1)) == (1.0, 0.0, 3.0, 0.0, 1.0, 4.0)
