"""Validity masks: which pixels of a chunk carry data."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import ChunkError
from tmcodec.tokenfile.context.backends import choose
from tmcodec.tokenfile.geometry import TokenGrid, TokenWindow, check_limit
from tmcodec.tokenfile.zstd import zstd_pack, zstd_unpack

Mask = NDArray[np.bool_]

_XOR_UP = 1
_PER_BAND = 2
_CODED = 4
"""In context (`tmcodec.tokenfile.context.bits`) in place of a zstandard frame; since version 2."""

_HALVED = 8
"""Of those, each bit stands for 2 x 2 pixels: what was masked in 20 m, in 10 m."""

MAX_CODED = 2**24
"""Values of a mask that is coded in context: seconds at most, whoever decodes it."""


def merge_planes(valid: Mask) -> Mask:
    """Return `valid` with one plane where all its planes are equal: (planes, h, w) -> (1 or planes, h, w)."""
    return valid[:1] if bool((valid == valid[:1]).all()) else valid


def mask_pack(valid: Mask, coded: bool = True) -> bytes:
    """Pack a mask: a flag byte, then a zstandard frame of rows of bits or, where shorter, bits in context.

    Parameters
    ----------
    valid
        bool, shape (planes, h, w), true where the pixel carries data.
    coded
        Whether bits in context may be taken; version 1 does not have them.
    """
    planes = merge_planes(valid)
    rows = np.packbits(planes, axis=2)  # the first pixel is the highest bit; padding bits are 0
    flags = _PER_BAND if len(planes) > 1 else 0
    candidates = [(flags, rows), (flags | _XOR_UP, _xor_up(rows))]
    blocks = [bytes([flag]) + zstd_pack(filtered.tobytes()) for flag, filtered in candidates]
    if coded:
        blocks += _code_bits(planes, flags)
    return min(blocks, key=len)  # the first of equals, so the result is one


def mask_unpack(block: bytes, bands: int, shape: tuple[int, int]) -> Mask:
    """Invert `mask_pack`.

    Parameters
    ----------
    block
        What `mask_pack` returned.
    bands
        Bands of the layer.
    shape
        (h, w) of the chunk in pixels.

    Returns
    -------
    ndarray of bool, shape (1, h, w) or (bands, h, w)

    Raises
    ------
    ChunkError
    """
    if not block:
        raise ChunkError("mask: no bytes")
    flags = block[0]
    known = flags & ~_PER_BAND in (0, _XOR_UP, _CODED, _CODED | _HALVED)
    if not known or (flags & _PER_BAND and bands < 2):
        raise ChunkError(f"mask: flags {flags} are not defined for a layer of {bands} bands")
    if flags & _CODED:
        return _decode_bits(block, (bands if flags & _PER_BAND else 1, *shape))
    height, width = shape
    stored = (bands if flags & _PER_BAND else 1, height, (width + 7) // 8)
    raw = zstd_unpack(block[1:], stored[0] * stored[1] * stored[2], "mask", ChunkError)
    rows = np.frombuffer(raw, np.uint8).reshape(stored)
    if flags & _XOR_UP:
        rows = np.bitwise_xor.accumulate(rows, axis=1)
    if width % 8 and bool((rows[:, :, -1] & (0xFF >> width % 8)).any()):
        raise ChunkError("mask: padding bits are set")
    return np.unpackbits(rows, axis=2, count=width).view(np.bool_)


def is_coded(block: bytes) -> bool:
    """Tell whether a mask block holds bits in context, which version 1 does not have."""
    return len(block) > 0 and block[0] & _CODED != 0


def _code_bits(planes: Mask, flags: int) -> list[bytes]:
    """Return a block of bits in context; none where there are too many."""
    half = planes[:, ::2, ::2]
    halved = bool((_doubled(half, planes.shape[1:]) == planes).all())
    bits = (half if halved else planes).astype(np.uint8)
    if bits.size > MAX_CODED:
        return []
    coded = choose().code_bits(bits, None)
    assert coded is not None
    return [bytes([flags | _CODED | (_HALVED if halved else 0)]) + coded]


def _decode_bits(block: bytes, shape: tuple[int, int, int]) -> Mask:
    """Return the mask of a block of bits in context."""
    planes, height, width = shape
    halved = bool(block[0] & _HALVED)
    size = (planes, (height + 1) // 2, (width + 1) // 2) if halved else shape
    if math.prod(size) > MAX_CODED:
        raise ChunkError(f"mask: {math.prod(size)} values in context, more than {MAX_CODED}")
    bits = np.zeros(size, np.uint8)
    if choose().code_bits(bits, block[1:]) is None:
        raise ChunkError("mask: the bits in context are damaged, too long or too short")
    mask: Mask = bits.view(np.bool_)
    return _doubled(mask, (height, width)) if halved else mask


def _doubled(half: Mask, shape: tuple[int, ...]) -> Mask:
    """Return each value of (planes, h, w) twice in both directions, cut to `shape`."""
    return half.repeat(2, axis=1).repeat(2, axis=2)[:, : shape[0], : shape[1]]


def _xor_up(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return each row XORed with the one above it in the same plane; the first stays."""
    filtered: NDArray[np.uint8] = rows.copy()
    filtered[:, 1:] ^= rows[:, :-1]
    return filtered


class MaskCanvas:
    """The mask of a window, put together chunk by chunk; allocated only where it is needed.

    Parameters
    ----------
    grid, place
        The window.
    limit
        Cap on the values of the mask.
    valid
        What pixels are that nothing is painted over.
    """

    def __init__(self, grid: TokenGrid, place: TokenWindow, limit: int, valid: bool = True) -> None:
        self._grid, self._place, self._limit, self._valid = grid, place, limit, valid
        self.mask: Mask | None = None
        if not valid:
            self._canvas(1)

    def paint(self, at: tuple[int, int], mask: Mask | None) -> None:
        """Put the mask of one chunk, (planes, h, w), or (1, 1, 1) for all alike, in its place."""
        if mask is None:
            if self._valid:
                return
            mask = np.ones((1, 1, 1), np.bool_)
        overlap = self._grid.pixel_overlap(self._place, *at)
        rows, cols = overlap.window
        part = mask if mask.size == 1 else mask[:, overlap.chunk[0], overlap.chunk[1]]
        self._canvas(len(mask))[:, rows, cols] = part

    def _canvas(self, planes: int) -> Mask:
        """Return the canvas with at least that many planes."""
        _, _, width, height = self._grid.pixel_window(self._place)
        check_limit(planes * width * height, self._limit)
        if self.mask is None:
            # Zeros are pages that nobody has touched: a layer without any valid pixel costs none.
            fresh = np.ones if self._valid else np.zeros
            self.mask = fresh((planes, height, width), np.bool_)
        elif len(self.mask) < planes:
            self.mask = np.repeat(self.mask, planes, axis=0)
        return self.mask
