"""Whether tile borders show: level jumps across them against level jumps elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tmcodec.generation.tiles import tile_borders


class Jumps(NamedTuple):
    """Mean absolute differences of level between neighbouring patches, in the raster's units.

    Attributes
    ----------
    across
        Between patches of two tiles.
    inside
        Between patches of one tile.
    """

    across: float
    inside: float

    @property
    def ratio(self) -> float:
        """Across over inside: 1 where tiles do not show."""
        return self.across / self.inside


def level_jumps(
    picture: npt.NDArray[np.floating], rows: Sequence[int], cols: Sequence[int], patch: int = 16
) -> Jumps:
    """Measure level jumps at tile borders.

    The level of a patch is its mean, so that texture and blending within a patch do not count.

    Parameters
    ----------
    picture
        ``(C, H, W)``, in any unit; sides are cut to whole patches.
    rows, cols
        Tile borders: first token after each, as `tmcodec.generation.tiles.tile_borders` gives them.
    patch
        Pixels per token side.

    Raises
    ------
    ValueError
        If there is no border, or nothing but borders.
    """
    bands, height, width = (n // d for n, d in zip(picture.shape, (1, patch, patch), strict=True))
    whole = picture[:, : height * patch, : width * patch].astype(np.float64)
    levels = whole.reshape(bands, height, patch, width, patch).mean((2, 4))
    across, inside = [], []
    for axis, borders in ((1, rows), (2, cols)):
        steps = np.abs(np.diff(levels, axis=axis))
        border = np.isin(np.arange(1, levels.shape[axis]), list(borders))
        across.append(np.compress(border, steps, axis).ravel())
        inside.append(np.compress(~border, steps, axis).ravel())
    one, other = np.concatenate(across), np.concatenate(inside)
    if not one.size or not other.size:
        raise ValueError("there is no tile border, or nothing else; take a raster of several tiles")
    return Jumps(float(one.mean()), float(other.mean()))


def tile_jumps(
    picture: npt.NDArray[np.floating], tile: int, overlap: int = 0, patch: int = 16
) -> Jumps:
    """Measure level jumps of a picture ``(C, H, W)`` that was generated in tiles of `tile` tokens."""
    rows, cols = (-(-side // patch) for side in picture.shape[1:])
    return level_jumps(
        picture, tile_borders(rows, tile, overlap), tile_borders(cols, tile, overlap), patch
    )
