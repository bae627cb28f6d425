"""NO_DATA that a file does not declare: 0 in all bands of Sentinel-2, or of Sentinel-1 in dB."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tmcodec.modalities import Modality
from tmcodec.rasters.arrays import Dataset, Slices, has_mask_band
from tmcodec.rasters.product import SPOT, nodata_values, sample_plan

BLACK = 0.01
"""Share of pixels that are 0 in all bands from where on they are NO_DATA; fewer may be deep shadow, where
negative reflectances have been cut off."""

_END = 16  # pixels; what is black by half planes has a corner of the raster
_CELLS = (0, 0.02, 0.08, 0.2, 0.35, 0.5, 0.65, 0.8, 0.92, 0.98, 1)  # cells along a side, in parts of it


def black_is_nodata(dataset: Dataset, indexes: Sequence[int], modality: Modality) -> bool:
    """Tell whether a raster's pixels of 0 in all bands (1-based) are its NO_DATA, undeclared.

    That is what 0 in all bands says in ESA's product definition of Sentinel-2, and most files do not declare
    it. SNAP leaves such pixels beside Sentinel-1's swath; floats in dB are never that otherwise. They are
    where the raster has neither a nodata value nor a mask, and more than `BLACK` of it is such.
    """
    decibels = modality.units == "dB" and np.dtype(dataset.dtypes[indexes[0] - 1]).kind == "f"
    if not (modality.optical or decibels):
        return False
    if has_mask_band(dataset, indexes) or getattr(dataset, "all_valid", False):
        return False
    declared = any(n is not None for n in nodata_values(dataset, indexes, modality))
    return not declared and _more_than_black(dataset, indexes)


def _more_than_black(dataset: Dataset, indexes: Sequence[int]) -> bool:
    """Tell whether more than `BLACK` of the raster is 0 in all bands, by a sample where it is large.

    A first look costs next to nothing: the corners, where the satellite's swath ends if it does, the
    middles of the edges, and what `sample_values` reads anyway. If anything is black there, the share is
    estimated by windows that stand for cells of the raster: narrow ones along the edges.
    """
    windows, out_shape = next(sample_plan(dataset, indexes))
    if len(windows) == 1:  # an overview, or all there is
        return _share_of_zeros(dataset, indexes, windows[0], out_shape) > BLACK
    h, w = dataset.height, dataset.width
    ends = [(rows, cols) for rows in _ends(h) for cols in _ends(w)]
    looks = ends[:4] + ends[5:] + windows  # without the middle of the raster
    if not any(_share_of_zeros(dataset, indexes, window) for window in looks):
        return False
    black = 0.0
    for top, bottom, height in _cells(h):
        for left, right, width in _cells(w):
            black += height * width * _share_of_zeros(dataset, indexes, ((top, bottom), (left, right)))
            if black > BLACK:
                return True
    return False


def _share_of_zeros(
    dataset: Dataset, indexes: Sequence[int], window: Slices, out_shape: tuple[int, ...] | None = None
) -> float:
    """Return which part of a window is 0 in all bands; further bands are read where the first are."""
    shape = out_shape and (1, *out_shape[1:])
    black = np.bool_(True)
    for index in indexes:
        black = black & (dataset.read([index], window=window, out_shape=shape)[0] == 0)
        if not black.any():
            return 0.0
    return float(black.mean())


def _ends(size: int) -> list[tuple[int, int]]:
    """Return the first, middle and last pixels of a side."""
    length = min(_END, size)
    return [(start, start + length) for start in (0, (size - length) // 2, size - length)]


def _cells(size: int) -> list[tuple[int, int, float]]:
    """Return ``(start, end, share)`` for each cell of a side, those at the ends first.

    Start and end are of the window in the cell's middle, the share is the cell's of the side. Cells at
    the ends are whole up to 384 pixels, so that a strip of 1 % is measured, not hit or missed.
    """
    found = []
    for start, end in pairwise(sorted({round(size * part) for part in _CELLS})):
        length = min(end - start, 4 * SPOT if start == 0 or end == size else SPOT)
        first = (start + end - length) // 2
        found.append((first, first + length, (end - start) / size))
    return sorted(found, key=lambda cell: min(cell[0], size - cell[1]))
