"""Pixel windows: integers only, no rasterio.

A transform is the affine 6-tuple ``(a, b, c, d, e, f)`` of rasterio and GIS world files:
``x = a * col + b * row + c`` and ``y = d * col + e * row + f``, at pixel corners.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tmcodec.errors import WindowError
from tmcodec.texts import shown

Transform = tuple[float, float, float, float, float, float]
Bounds = tuple[float, float, float, float]

IDENTITY: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

# Bounds printed in decimal seldom hit pixel corners exactly; a thousandth of a pixel is noise.
_SNAP = 1e-3


@dataclass(frozen=True, order=True)
class Window:
    """A non-empty rectangle of pixels.

    Parameters
    ----------
    col, row
        First column and row, at least 0.
    width, height
        Extent in pixels, at least 1.

    Raises
    ------
    WindowError
        If the rectangle is empty or starts before pixel 0.
    """

    col: int
    row: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise WindowError(f"window {self} is empty; give a width and a height of at least 1")
        if self.col < 0 or self.row < 0:
            raise WindowError(f"window {self} starts outside the raster; COL and ROW are at least 0")

    def __str__(self) -> str:
        return f"{self.col} {self.row} {self.width} {self.height}"

    @property
    def col_end(self) -> int:
        """First column after the window."""
        return self.col + self.width

    @property
    def row_end(self) -> int:
        """First row after the window."""
        return self.row + self.height

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row slice and column slice, to index the last two axes of an array."""
        return slice(self.row, self.row_end), slice(self.col, self.col_end)

    def intersect(self, other: Window) -> Window | None:
        """Return the common pixels, or None where there are none."""
        col, row = max(self.col, other.col), max(self.row, other.row)
        width = min(self.col_end, other.col_end) - col
        height = min(self.row_end, other.row_end) - row
        return Window(col, row, width, height) if width > 0 and height > 0 else None

    def expand(self, halo: int, limit_w: int, limit_h: int) -> Window:
        """Return the window with `halo` more pixels on each side, clipped to the raster's size."""
        col, row = max(self.col - halo, 0), max(self.row - halo, 0)
        col_end, row_end = min(self.col_end + halo, limit_w), min(self.row_end + halo, limit_h)
        return Window(col, row, col_end - col, row_end - row)

    def contains(self, other: Window) -> bool:
        """True where every pixel of `other` is also one of this window."""
        return (self.col <= other.col and self.row <= other.row
                and other.col_end <= self.col_end and other.row_end <= self.row_end)

    def relative_to(self, outer: Window) -> Window:
        """Return this window in the coordinates of `outer`, which contains it."""
        if not outer.contains(self):
            raise WindowError(f"window {self} is not inside window {outer}; clip it first")
        return Window(self.col - outer.col, self.row - outer.row, self.width, self.height)


def as_window(window: Sequence[int]) -> Window:
    """Return ``(col, row, width, height)`` of a caller as a window.

    Raises
    ------
    WindowError
        If it is not four whole numbers, or no window.
    """
    try:
        col, row, width, height = map(operator.index, window)
    except (TypeError, ValueError):
        raise WindowError(f"window {shown(window)}; give four whole numbers, COL ROW WIDTH HEIGHT") from None
    return Window(col, row, width, height)


def grid_windows(width: int, height: int, size: int) -> Iterator[Window]:
    """Yield the windows of a grid of `size` x `size` pixels, row by row.

    The windows of the last column and row are cut at the raster's border; together all
    windows cover each pixel exactly once.
    """
    for row in range(0, height, size):
        for col in range(0, width, size):
            yield Window(col, row, min(size, width - col), min(size, height - row))


def padded_size(n: int, patch: int) -> int:
    """Return the smallest multiple of `patch` that is at least `n`."""
    return -(-n // patch) * patch


def align_out(window: Window, patch: int, width: int, height: int) -> Window:
    """Return the smallest window that covers `window` and starts and ends at patch borders.

    The end of the raster counts as a patch border too: its last patches may be cut.

    Parameters
    ----------
    window
        Pixels wanted.
    patch
        Patch size in pixels.
    width, height
        Size of the raster in pixels.

    Raises
    ------
    WindowError
        If `window` is not inside the raster.
    """
    if not Window(0, 0, width, height).contains(window):
        raise WindowError(f"window {window} is not inside the raster of {width} x {height}; clip it first")
    col, row = window.col // patch * patch, window.row // patch * patch
    col_end = min(padded_size(window.col_end, patch), width)
    row_end = min(padded_size(window.row_end, patch), height)
    return Window(col, row, col_end - col, row_end - row)


def window_transform(transform: Transform | None, window: Window) -> Transform:
    """Return the transform of the sub-raster `window`; None stands for the identity."""
    a, b, c, d, e, f = transform or IDENTITY
    return (a, b, a * window.col + b * window.row + c, d, e, d * window.col + e * window.row + f)


def window_from_bounds(bounds: Bounds, transform: Transform | None, width: int, height: int) -> Window:
    """Return the smallest window that covers `bounds`, clipped to the raster.

    Parameters
    ----------
    bounds
        ``(left, bottom, right, top)`` in the raster's CRS. For a rotated raster the window
        covers the turned rectangle.
    transform
        Affine transform, None for the identity.
    width, height
        Size of the raster in pixels.

    Raises
    ------
    WindowError
        If the bounds are not four numbers, lie outside the raster, are reversed, or the transform has no
        inverse.
    """
    try:
        left, bottom, right, top = map(_number, bounds)
    except (TypeError, ValueError):
        raise WindowError(f"bounds {shown(bounds)}; give four numbers, LEFT BOTTOM RIGHT TOP") from None
    if not (left < right and bottom < top):
        raise WindowError(f"bounds {bounds} are empty; give LEFT BOTTOM RIGHT TOP, the smaller one first")
    corners = [_pixel_of(x, y, transform or IDENTITY) for x in (left, right) for y in (bottom, top)]
    col, col_end = _covering([c for c, _ in corners])
    row, row_end = _covering([r for _, r in corners])
    col, row, col_end, row_end = max(col, 0), max(row, 0), min(col_end, width), min(row_end, height)
    if col >= col_end or row >= row_end:
        raise WindowError(f"bounds {bounds} lie outside the raster; give them in the raster's CRS")
    return Window(col, row, col_end - col, row_end - row)


def _number(value: float) -> float:
    math.isfinite(value)  # refuses texts, which float would read
    return float(value)


def _pixel_of(x: float, y: float, transform: Transform) -> tuple[float, float]:
    a, b, c, d, e, f = transform
    det = a * e - b * d
    if det == 0 or not math.isfinite(det):
        raise WindowError(f"transform {transform} has no inverse; give the window in pixels instead")
    return (e * (x - c) - b * (y - f)) / det, (a * (y - f) - d * (x - c)) / det


def _covering(values: list[float]) -> tuple[int, int]:
    if not all(math.isfinite(v) for v in values):
        raise WindowError("bounds are not finite; give four finite numbers")
    return math.floor(min(values) + _SNAP), math.ceil(max(values) - _SNAP)
