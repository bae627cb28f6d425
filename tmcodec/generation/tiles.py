"""Large grids in tiles: where they lie, and the tokens that one tile hands to the next.

Tiles go in raster order. The tokens that earlier tiles made in an overlap are settled: the next tile is shown
them as known tokens of its target and makes the rest. So the parts fit together, where tiles made apart would
each choose, for example, a level of their own for the same hill.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tmcodec.errors import GenerationError
from tmcodec.generation.decoding import MISSING
from tmcodec.rasters.windows import Window

Tokens = npt.NDArray[np.int32]

OVERLAP = 4
"""Default overlap in tokens: 64 pixels."""


def default_overlap(tile: int) -> int:
    """Return the tokens that neighbouring tiles of `tile` tokens share unless asked otherwise."""
    return min(OVERLAP, tile // 3)


def tile_starts(count: int, tile: int, overlap: int) -> Iterator[int]:
    """Yield the first tokens of the tiles that cover `count` tokens; the last one is moved inwards.

    >>> list(tile_starts(30, 14, 4))
    [0, 10, 16]
    """
    yield from range(0, count - tile, tile - overlap)
    yield max(0, count - tile)


def tile_count(rows: int, cols: int, tile: int, overlap: int) -> int:
    """Return how many tiles cover a grid.

    >>> tile_count(30, 14, 14, 4)
    3
    """
    return (len(range(0, rows - tile, tile - overlap)) + 1) * (len(range(0, cols - tile, tile - overlap)) + 1)


def tile_borders(count: int, tile: int, overlap: int) -> list[int]:
    """Return the first token after each tile but the last: where tokens of one tile meet those of another.

    >>> tile_borders(30, 14, 4)
    [14, 24]
    """
    return [start + tile for start in range(0, count - tile, tile - overlap)]


def tile_windows(rows: int, cols: int, tile: int, overlap: int) -> Iterator[Iterator[Window]]:
    """Yield the tiles of each row of tiles, in tokens.

    One by one: a raster one pixel high may be two billion wide, and its tiles do not fit into memory.

    Raises
    ------
    GenerationError
        If the overlap is not smaller than a tile.
    """
    if not 0 <= overlap < tile:
        raise GenerationError(f"overlap of {overlap} tokens; give 0 to {tile - 1}, tiles have {tile}")
    for row in tile_starts(rows, tile, overlap):
        yield _tile_row(row, rows, cols, tile, overlap)


def _tile_row(row: int, rows: int, cols: int, tile: int, overlap: int) -> Iterator[Window]:
    for col in tile_starts(cols, tile, overlap):
        yield Window(col, row, min(tile, cols), min(tile, rows))


class Strip:
    """The rows of a token grid that are still needed: those not yet written, and those tiles overlap with.

    Parameters
    ----------
    samples
        Grids side by side.
    cols
        Columns of the grid.
    """

    def __init__(self, samples: int, cols: int) -> None:
        self.top = 0
        self._rows: Tokens = np.full((samples, 0, cols), MISSING, np.int32)

    def read(self, window: Window) -> Tokens:
        """Return the tokens of a window ``(samples, rows, cols)``, `MISSING` where there are none yet."""
        self._reach(window.row_end)
        return self._rows[:, window.row - self.top : window.row_end - self.top, window.col : window.col_end]

    def place(self, window: Window, tokens: Tokens) -> None:
        """Put tokens ``(samples, rows, cols)`` where there are none yet."""
        there = self.read(window)
        np.copyto(there, tokens, where=there == MISSING)

    def drop(self, row: int) -> None:
        """Forget the rows before `row`."""
        self._rows = self._rows[:, row - self.top :].copy()
        self.top = row

    def _reach(self, row_end: int) -> None:
        """Grow downwards until the rows end at `row_end` at least."""
        samples, rows, cols = self._rows.shape
        short = row_end - self.top - rows
        if short > 0:
            more = np.full((samples, short, cols), MISSING, np.int32)
            self._rows = np.concatenate([self._rows, more], 1)
