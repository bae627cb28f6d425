"""Blend overlapping decoded windows into one picture, a few rows at a time.

Neighbouring windows share `overlap` pixels. Across them one window's weight falls while
the other's rises, and the two add up to one, so that a constant stays a constant.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from tmcodec.errors import WindowError
from tmcodec.rasters.windows import Window

Float = npt.NDArray[np.float32]
Ramp = Literal["cosine", "linear"]


def ramp(overlap: int, kind: Ramp = "cosine") -> Float:
    """Return `overlap` rising weights in (0, 1), float32; with their mirror image they sum to one.

    Taken at pixel centres. ``"cosine"`` is the raised cosine, whose slope is zero at both
    ends, so that not even the gradient jumps; ``"linear"`` is a straight line.
    """
    position = (np.arange(overlap) + 0.5) / max(overlap, 1)
    weights = position if kind == "linear" else np.sin(np.pi / 2 * position) ** 2
    return weights.astype(np.float32)


def ramp_weights(
    height: int,
    width: int,
    top: int = 0,
    bottom: int = 0,
    left: int = 0,
    right: int = 0,
    kind: Ramp = "cosine",
) -> Float:
    """Return the weights of one window, shape (height, width), float32.

    Parameters
    ----------
    height, width
        Size of the window in pixels.
    top, bottom, left, right
        Pixels shared with the neighbour on that side; 0 at the raster's border.
    kind
        Shape of the ramps.

    Raises
    ------
    WindowError
        If two opposite overlaps together exceed the window.
    """
    if top + bottom > height or left + right > width:
        raise WindowError(f"overlaps exceed the window of {width} x {height} pixels; choose smaller ones")
    rows, cols = np.ones(height, np.float32), np.ones(width, np.float32)
    for weights, start, end in ((rows, top, bottom), (cols, left, right)):
        weights[:start] = ramp(start, kind)
        weights[weights.size - end :] = ramp(end, kind)[::-1]
    return rows[:, None] * cols[None, :]


class Blender:
    """Sum weighted windows and release rows as soon as no further window touches them.

    Memory is that of the rows in flight: ``(channels + 1) * rows * width`` float32.

    Parameters
    ----------
    channels
        Bands of the windows.
    width, height
        Size of the whole raster in pixels.
    """

    def __init__(self, channels: int, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self._start = 0  # first row that has not been released
        self._sums = np.zeros((channels, 0, width), np.float32)
        self._weights = np.zeros((0, width), np.float32)

    def add(self, window: Window, values: Float, weights: Float) -> None:
        """Add one window.

        Parameters
        ----------
        window
            Where the values lie in the raster.
        values
            Shape (channels, height, width), float32.
        weights
            Shape (height, width), float32, as from `ramp_weights`.

        Raises
        ------
        WindowError
            If the window lies outside the raster or touches rows already released.
        """
        if window.row < self._start or window.row_end > self.height or window.col_end > self.width:
            raise WindowError(f"window {window} touches released rows or lies outside; add windows top-down")
        self._grow(window.row_end - self._start)
        rows = slice(window.row - self._start, window.row_end - self._start)
        cols = slice(window.col, window.col_end)
        self._sums[:, rows, cols] += values * weights
        self._weights[rows, cols] += weights

    def release(self, stop: int) -> tuple[Window, Float] | None:
        """Return the finished rows before row `stop`, or None where there are none.

        Returns
        -------
        window, values
            Full-width window and its values (channels, rows, width), float32: the average
            of what was added, weighted.

        Raises
        ------
        WindowError
            If some pixel of these rows got no window.
        """
        count = min(stop, self.height) - self._start
        if count <= 0:
            return None
        self._grow(count)
        weights = self._weights[:count]
        if not (weights > 0).all():
            raise WindowError(f"rows before {stop} are not covered yet; add all their windows first")
        values = self._sums[:, :count] / weights
        window = Window(0, self._start, self.width, count)
        self._sums, self._weights = self._sums[:, count:].copy(), self._weights[count:].copy()
        self._start += count
        return window, values

    def _grow(self, rows: int) -> None:
        missing = rows - len(self._weights)
        if missing > 0:
            self._sums = np.pad(self._sums, ((0, 0), (0, missing), (0, 0)))
            self._weights = np.pad(self._weights, ((0, missing), (0, 0)))
