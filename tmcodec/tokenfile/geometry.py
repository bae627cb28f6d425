"""Arithmetic of pixels, tokens, chunks and windows. Integers only."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tmcodec.errors import LimitExceededError, WindowError
from tmcodec.texts import shown


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


class TokenWindow(NamedTuple):
    """A rectangle of the token grid: offsets and size in tokens."""

    col_off: int
    row_off: int
    width: int
    height: int


class ChunkSpan(NamedTuple):
    """A rectangle of chunks; as ranges, because a few bytes of a file make terachunks."""

    rows: range
    cols: range

    @property
    def size(self) -> int:
        """How many chunks there are."""
        return len(self.rows) * len(self.cols)


class Overlap(NamedTuple):
    """Where a chunk meets a window: slices into the chunk and into the window's array."""

    chunk: tuple[slice, slice]
    window: tuple[slice, slice]


@dataclass(frozen=True)
class TokenGrid:
    """The token grid of one layer and its division into chunks.

    Parameters
    ----------
    width, height
        Raster size in pixels.
    patch
        Pixels per token side.
    chunk
        Tokens per chunk side.
    """

    width: int
    height: int
    patch: int
    chunk: int

    @property
    def rows(self) -> int:
        """Token rows; the last one may reach beyond the raster."""
        return ceil_div(self.height, self.patch)

    @property
    def cols(self) -> int:
        """Token columns."""
        return ceil_div(self.width, self.patch)

    @property
    def chunk_rows(self) -> int:
        """Rows of chunks."""
        return ceil_div(self.rows, self.chunk)

    @property
    def chunk_cols(self) -> int:
        """Columns of chunks."""
        return ceil_div(self.cols, self.chunk)

    @property
    def chunks(self) -> int:
        """Chunks of one time step."""
        return self.chunk_rows * self.chunk_cols

    def ordinal(self, time: int, chunk_row: int, chunk_col: int) -> int:
        """Return the place of a chunk in the index: row-major in (time, row, col)."""
        return (time * self.chunk_rows + chunk_row) * self.chunk_cols + chunk_col

    def token_shape(self, chunk_row: int, chunk_col: int) -> tuple[int, int]:
        """Return (rows, cols) of a chunk in tokens; those at the edge are cut."""
        return (
            min(self.chunk, self.rows - chunk_row * self.chunk),
            min(self.chunk, self.cols - chunk_col * self.chunk),
        )

    def pixel_shape(self, chunk_row: int, chunk_col: int) -> tuple[int, int]:
        """Return (height, width) of a chunk in pixels of the raster, padding left out."""
        side = self.chunk * self.patch
        return (
            min(side, self.height - chunk_row * side),
            min(side, self.width - chunk_col * side),
        )

    def check_chunk(self, chunk_row: int, chunk_col: int) -> None:
        """Raise `WindowError` unless the grid has that chunk."""
        if not (0 <= chunk_row < self.chunk_rows and 0 <= chunk_col < self.chunk_cols):
            raise WindowError(
                f"chunk ({chunk_row}, {chunk_col}) lies outside the"
                f" {self.chunk_rows} x {self.chunk_cols} chunks of the layer"
            )

    def window(self, window: Sequence[int] | None) -> TokenWindow:
        """Return `window` checked against the grid, or the whole grid for None.

        Raises
        ------
        WindowError
            If it is not four integers, is empty, or leaves the grid.
        """
        if window is None:
            return TokenWindow(0, 0, self.cols, self.rows)
        try:
            col, row, width, height = (operator.index(v) for v in window)
        except (TypeError, ValueError):
            raise WindowError(
                f"window {shown(window)} is not four integers (col_off, row_off, width, height) in tokens"
            ) from None
        inside = col >= 0 and row >= 0 and col + width <= self.cols and row + height <= self.rows
        if not inside or width < 1 or height < 1:
            raise WindowError(
                f"window ({col}, {row}, {width}, {height}) is empty or leaves the grid of"
                f" {self.cols} x {self.rows} tokens"
            )
        return TokenWindow(col, row, width, height)

    def pixel_window(self, window: TokenWindow) -> tuple[int, int, int, int]:
        """Return (col_off, row_off, width, height) of `window` in pixels, cut at the raster's edge."""
        col, row = window.col_off * self.patch, window.row_off * self.patch
        return (
            col,
            row,
            min(window.width * self.patch, self.width - col),
            min(window.height * self.patch, self.height - row),
        )

    def covering(self, window: TokenWindow) -> ChunkSpan:
        """Return the rows and columns of chunks that meet `window`."""
        last_row = (window.row_off + window.height - 1) // self.chunk
        last_col = (window.col_off + window.width - 1) // self.chunk
        return ChunkSpan(
            range(window.row_off // self.chunk, last_row + 1),
            range(window.col_off // self.chunk, last_col + 1),
        )

    def token_overlap(self, window: TokenWindow, chunk_row: int, chunk_col: int) -> Overlap:
        """Return where a chunk and a window meet, in tokens."""
        shape = self.token_shape(chunk_row, chunk_col)
        place = (chunk_row * self.chunk, chunk_col * self.chunk)
        return _overlap(place, shape, (window.row_off, window.col_off), (window.height, window.width))

    def pixel_overlap(self, window: TokenWindow, chunk_row: int, chunk_col: int) -> Overlap:
        """Return where a chunk and a window meet, in pixels of the raster."""
        shape = self.pixel_shape(chunk_row, chunk_col)
        side = self.chunk * self.patch
        col, row, width, height = self.pixel_window(window)
        return _overlap((chunk_row * side, chunk_col * side), shape, (row, col), (height, width))


def _overlap(
    chunk_at: tuple[int, int],
    chunk_shape: tuple[int, int],
    window_at: tuple[int, int],
    window_shape: tuple[int, int],
) -> Overlap:
    """Intersect two rectangles, axis by axis."""
    chunk, window = [], []
    for c0, cn, w0, wn in zip(chunk_at, chunk_shape, window_at, window_shape, strict=True):
        start, stop = max(c0, w0), min(c0 + cn, w0 + wn)
        chunk.append(slice(start - c0, stop - c0))
        window.append(slice(start - w0, stop - w0))
    return Overlap((chunk[0], chunk[1]), (window[0], window[1]))


def check_limit(count: int, limit: int, what: str = "pixels") -> None:
    """Raise where one call would return more pixels, or bytes of tokens, than the caller allows.

    Raises
    ------
    LimitExceededError
    """
    if count > limit:
        raise LimitExceededError(
            f"the window has {count} {what}, more than max_pixels={limit};"
            " read smaller windows, or pass a higher max_pixels if you trust the file"
        )
