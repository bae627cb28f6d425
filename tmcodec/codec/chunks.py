"""Chunks and squares: in what pieces rasters are encoded and decoded, and what is gathered of one chunk."""

from __future__ import annotations

import math
from numbers import Integral

import numpy as np
import numpy.typing as npt

from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.errors import ShapeError
from tmcodec.rasters import Window
from tmcodec.texts import shown

Tokens = npt.NDArray[np.int32]
Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

CHUNK = 64
"""Tokens per chunk side: 1024 pixels, seven kilobytes, one file-system block or two."""

KEEP = 2
"""Patches without any valid pixel keep their token up to this far from valid ones, as context."""


def chunk_of(tok: Tokenizer) -> int:
    """Return the tokens per chunk side: whole tiles, at most `CHUNK`."""
    tile = tok.tile // tok.patch
    return CHUNK // tile * tile if tile <= CHUNK else CHUNK


def side_of_batch(batch_size: int, tile: int, chunk_pixels: int) -> int:
    """Return the side in pixels of the square that is encoded or decoded at once.

    ``batch_size`` counts native tiles; a square of them shares its context, and never spans
    more than one chunk.
    """
    tiles = max(1, math.isqrt(batch_size))
    return max(tile, min(tiles * tile, chunk_pixels))


def check_batch_size(batch_size: int) -> None:
    """Raise unless a batch has a tile.

    Raises
    ------
    ShapeError
    """
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ShapeError(f"batch_size {shown(batch_size)}; give a whole number, 1 or more")


class ChunkBoard:
    """Gathers the tokens and the mask of one chunk from its squares, and its values where asked to.

    Attributes
    ----------
    classes
        Ids of a class map in all squares so far; none of other rasters.
    """

    def __init__(self, tok: Tokenizer, bands: int, keep_values: bool) -> None:
        self.tok, self.bands, self.keep_values = tok, bands, keep_values
        self.at: Window | None = None
        self.classes: set[int] = set()

    def start(self, chunk: Window) -> None:
        """Make room for `chunk`, unless it is under way already."""
        if self.at == chunk:
            return
        self.at = chunk
        patch = self.tok.patch
        self.tokens = np.zeros((-(-chunk.height // patch), -(-chunk.width // patch)), np.int32)
        self.valid = np.zeros((self.bands, chunk.height, chunk.width), np.bool_)
        if self.keep_values:
            self.values = np.zeros(self.valid.shape, np.float32)

    def place(
        self, chunk: Window, square: Window, tokens: Tokens, values: Values, valid: Mask, context: Window
    ) -> None:
        """Put in one square's tokens, and its part of what was read with its context."""
        patch = self.tok.patch
        row, col = (square.row - chunk.row) // patch, (square.col - chunk.col) // patch
        self.tokens[row : row + tokens.shape[0], col : col + tokens.shape[1]] = tokens
        rows, cols = square.relative_to(chunk).slices
        inner_rows, inner_cols = square.relative_to(context).slices
        known, ground = values[:, inner_rows, inner_cols], valid[:, inner_rows, inner_cols]
        self.valid[:, rows, cols] = ground
        if self.keep_values:
            self.values[:, rows, cols] = known
        if self.tok.modality.categorical:
            self.classes.update(np.flatnonzero(np.bincount(known[ground].astype(np.int64))).tolist())

    def finish(self) -> tuple[Tokens | None, Mask | None]:
        """Return what the file wants: None for no tokens, None for an all-valid mask."""
        if not self.valid.any():
            return None, None
        if self.valid.all():
            return self.tokens, None
        some: Mask = np.any(self.valid, axis=0)
        far = far_from_valid(some, self.tok.patch, KEEP)
        self.tokens[far] = neutral_token(self.tok.levels)
        same = bool((self.valid == self.valid[:1]).all())
        return self.tokens, self.valid[:1] if same else self.valid


def neutral_token(levels: tuple[int, ...]) -> int:
    """Return the token in the middle of the codebook: context where there is nothing."""
    index, weight = 0, 1
    for level in levels:
        index += level // 2 * weight
        weight *= level
    return index


def far_from_valid(valid: Mask, patch: int, reach: int) -> Mask:
    """Return which patches ``(rows, cols)`` have no valid pixel within `reach` patches of them."""
    h, w = valid.shape
    rows, cols = -(-h // patch), -(-w // patch)
    padded = np.zeros((rows * patch, cols * patch), np.bool_)
    padded[:h, :w] = valid
    some = padded.reshape(rows, patch, cols, patch).any(axis=(1, 3))
    around = np.pad(some, reach)
    near = np.zeros_like(some)
    for dr in range(2 * reach + 1):
        for dc in range(2 * reach + 1):
            near |= around[dr : dr + rows, dc : dc + cols]
    return ~near
