"""Validity masks: which pixels of a chunk carry data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import ChunkError
from tmcodec.tokenfile.zstd import zstd_pack, zstd_unpack

Mask = NDArray[np.bool_]

_XOR_UP = 1
_PER_BAND = 2


def merge_planes(valid: Mask) -> Mask:
    """Return `valid` with one plane where all its planes are equal: (planes, h, w) -> (1 or planes, h, w)."""
    return valid[:1] if bool((valid == valid[:1]).all()) else valid


def mask_pack(valid: Mask) -> bytes:
    """Pack a mask: a flag byte, then a zstandard frame of rows of bits.

    Parameters
    ----------
    valid
        bool, shape (planes, h, w), true where the pixel carries data.
    """
    planes = merge_planes(valid)
    rows = np.packbits(planes, axis=2)  # the first pixel is the highest bit; padding bits are 0
    flags = _PER_BAND if len(planes) > 1 else 0
    candidates = [(flags, rows), (flags | _XOR_UP, _xor_up(rows))]
    blocks = [bytes([flag]) + zstd_pack(filtered.tobytes()) for flag, filtered in candidates]
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
    if flags > (_XOR_UP | _PER_BAND) or (flags & _PER_BAND and bands < 2):
        raise ChunkError(f"mask: flags {flags} are not defined for a layer of {bands} bands")
    height, width = shape
    stored = (bands if flags & _PER_BAND else 1, height, (width + 7) // 8)
    raw = zstd_unpack(block[1:], stored[0] * stored[1] * stored[2], "mask", ChunkError)
    rows = np.frombuffer(raw, np.uint8).reshape(stored)
    if flags & _XOR_UP:
        rows = np.bitwise_xor.accumulate(rows, axis=1)
    if width % 8 and bool((rows[:, :, -1] & (0xFF >> width % 8)).any()):
        raise ChunkError("mask: padding bits are set")
    return np.unpackbits(rows, axis=2, count=width).view(np.bool_)


def _xor_up(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return each row XORed with the one above it in the same plane; the first stays."""
    filtered: NDArray[np.uint8] = rows.copy()
    filtered[:, 1:] ^= rows[:, :-1]
    return filtered
