"""Gaussian noise addressed by place: any window of a picture sees the noise of the whole picture.

Windows decoded apart must agree where they overlap, and a seed must mean the same on every machine
and in every thread. So noise is a pure function of (seed, block, step): 64x64-pixel blocks, each from its
own Philox counter stream (Salmon et al., 2011; NumPy guarantees the raw stream), turned normal by
Box and Muller's transform. No global random state is touched.

A block takes milliseconds, more than a GPU's step of diffusion does, and tiles that overlap ask for the same
ones: the latest are kept, and threads share those of a window.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import numpy.typing as npt

BLOCK = 64
_KEY = 0x746D636F646563  # "tmcodec"

KEPT = 128
"""Latest blocks that are kept, 25 MB of 12 bands; 80 are a row of tiles across a chunk of 1024 pixels."""


@lru_cache(maxsize=KEPT)
def _one_block(channels: int, seed: int, row: int, col: int, step: int) -> npt.NDArray[np.float32]:
    """Return the noise ``(channels, 64, 64)`` of a block by its block row and column; read only."""
    counter = [0, row & 0xFFFFFFFF, col & 0xFFFFFFFF, step]
    # Of a list NumPy would make floats where the seed has all 64 bits, and seeds side by side would be one.
    key = np.array([seed & (2**64 - 1), _KEY], np.uint64)
    bits = np.random.Philox(key=key, counter=counter)
    words = bits.random_raw(channels * BLOCK * BLOCK)
    # Two 32-bit halves of each word make two uniforms; the first must not be zero.
    radius = np.sqrt(-2.0 * np.log(((words >> np.uint64(32)).astype(np.float64) + 1.0) / 2.0**32))
    angle = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi / 2.0**32)
    block = (radius * np.cos(angle)).astype(np.float32).reshape(channels, BLOCK, BLOCK)
    block.setflags(write=False)  # it is kept
    return block


def _blocks(
    channels: int, seed: int, rows: range, cols: range, step: int, threads: int
) -> list[npt.NDArray[np.float32]]:
    """Return the blocks of some block rows and columns, row by row."""
    places = [(channels, seed, row, col, step) for row in rows for col in cols]
    if threads < 2 or len(places) < 2:
        return [_one_block(*place) for place in places]
    # NumPy lets go of the interpreter's lock. A pool of its own each time: one kept would not outlive a fork.
    with ThreadPoolExecutor(min(threads, len(places))) as pool:
        return list(pool.map(lambda place: _one_block(*place), places))


def block_noise(
    channels: int, row: int, col: int, height: int, width: int, seed: int, step: int = 0, threads: int = 1
) -> npt.NDArray[np.float32]:
    """Return standard normal noise ``(channels, height, width)`` of a window in pixels.

    Parameters
    ----------
    channels
        Number of bands.
    row, col
        First pixel of the window in the whole picture; may be any integer.
    height, width
        Size of the window in pixels.
    seed
        0..2**64-1.
    step
        Sampling step that adds it, from 1 on; 0 is the noise that sampling begins with.
    threads
        Most that draw at once; they change nothing in the noise.
    """
    first_row, first_col = row // BLOCK, col // BLOCK
    rows = range(first_row, (row + height - 1) // BLOCK + 1)
    cols = range(first_col, (col + width - 1) // BLOCK + 1)
    blocks = _blocks(channels, seed, rows, cols, step, threads)
    count = len(cols)
    bands = [np.concatenate(blocks[i : i + count], axis=2) for i in range(0, len(blocks), count)]
    whole = np.concatenate(bands, axis=1)
    top, left = row - first_row * BLOCK, col - first_col * BLOCK
    return np.ascontiguousarray(whole[:, top : top + height, left : left + width])
