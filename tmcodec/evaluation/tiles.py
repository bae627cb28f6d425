"""The tiles where the first tokenizer errs most, cut out of every method's picture."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tmcodec.evaluation.scenes import Scene
from tmcodec.modalities import Modality

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

SIDE = 128
"""Pixels: eight tokens, large enough to recognise something."""

KEPT = 4
"""Tiles in a report, of as many scenes where there are so many."""


@dataclass
class Tile:
    """One place of one scene.

    Attributes
    ----------
    scene, row, col
        Where; in pixels.
    error
        Mean squared error of the first tokenizer at its first step count, bands in standard deviations of
        TerraMind's statistics (classes: share that is wrong).
    original, valid
        ``(C, h, w)``.
    pictures
        The same place by method key.
    """

    scene: str
    row: int
    col: int
    error: float
    original: Float = field(repr=False)
    valid: Bool = field(repr=False)
    pictures: dict[str, Float] = field(default_factory=dict, repr=False)


def worst_tile(scene: Scene, values: Float, modality: Modality) -> Tile:
    """Return the tile of largest error of one scene; half of it at least must be valid where any is."""
    scale = np.array(modality.std, np.float32)[:, None, None]
    wrong = values != scene.values if modality.categorical else np.square((values - scene.values) / scale)
    error = np.where(scene.valid, wrong, 0).sum(axis=0, dtype=np.float64)
    count = scene.valid.sum(axis=0)
    height, width = error.shape
    best = (-1.0, 0, 0)
    for row in _starts(height):
        for col in _starts(width):
            part = np.s_[row : row + SIDE, col : col + SIDE]
            seen = int(count[part].sum())
            full = error[part].size * len(scene.values)
            mean = error[part].sum() / seen if 2 * seen >= full else error[part].sum() / full / 2
            best = max(best, (float(mean), row, col))
    mean, row, col = best
    area = np.s_[:, row : row + SIDE, col : col + SIDE]
    return Tile(scene.name, row, col, mean, scene.values[area].copy(), scene.valid[area].copy())


def add_picture(tile: Tile, method: str, values: Float) -> None:
    """Keep the tile's part of a method's picture."""
    height, width = tile.original.shape[1:]
    tile.pictures[method] = values[:, tile.row : tile.row + height, tile.col : tile.col + width].copy()


def _starts(size: int) -> list[int]:
    """Return where tiles begin, half a tile apart; the last one ends with the picture."""
    if size <= SIDE:
        return [0]
    return [*range(0, size - SIDE, SIDE // 2), size - SIDE]
