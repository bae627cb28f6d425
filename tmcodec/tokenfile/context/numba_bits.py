"""Masks in context in numba, for installs without a C++ compiler; mirrors ``csrc/bit_kernels.h``.

Imported only when used. Every variable is an int64 that never exceeds 2**62 in size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tmcodec.tokenfile.context.bits import COUNTED, EVEN, RATES, Bits
from tmcodec.tokenfile.context.numba_kernel import finish, narrow
from tmcodec.tokenfile.context.reference import FULL

_RATES = np.array(RATES, np.int64)


@njit(nogil=True, cache=True)
def _learn(chances: Any, uses: Any, pattern: int, bit: int) -> None:
    """Move a chance towards the bit that came."""
    chances[pattern] += ((bit << 24) - chances[pattern]) * _RATES[uses[pattern]] >> 16
    uses[pattern] = min(uses[pattern] + 1, COUNTED)


@njit(nogil=True, cache=True)
def _bit(decoding: bool, data: Any, state: Any, chances: Any, uses: Any, pattern: int, bit: int) -> int:
    """Code or decode one bit, and learn from it; -1 where no encoder goes."""
    one = min(max(chances[pattern] >> 8, 1), 65535)
    zero, part = 65536 - one, state[1] >> 16
    if decoding:
        target = state[2] // part
        if target >= 65536:
            return -1
        bit = 1 if target >= zero else 0
    if bit:
        narrow(decoding, data, zero, one, part, state)
    else:
        narrow(decoding, data, 0, zero, part, state)
    _learn(chances, uses, pattern, bit)
    return bit


@njit(nogil=True, cache=True)
def _row(
    decoding: bool, data: Any, state: Any, line: Any, first: bool, around: Any, few: Any, many: Any
) -> bool:
    """Code or decode a row; false where no encoder goes. `around`: above, over, beside, below, each wide."""
    above, over, beside, below = around
    left = 15 * above[3]
    for c in range(line.size):
        pattern, nearest = (left if first else left & 7), left & 1
        if first:
            for i in range(c, c + 7):
                pattern = pattern << 1 | above[i]
            for i in range(c + 1, c + 6):
                pattern = pattern << 1 | over[i]
            for i in range(c + 2, c + 5):
                nearest = nearest << 1 | above[i]
        else:
            for i in range(c + 1, c + 6):
                pattern = pattern << 1 | above[i]
            for i in range(c + 1, c + 6):
                pattern = pattern << 1 | beside[i]
            for i in range(c + 2, c + 5):
                pattern = pattern << 1 | below[i]
            nearest = ((nearest << 1 | above[c + 3]) << 1 | beside[c + 3]) << 1 | beside[c + 4]
        if many[1][pattern] == 0:
            many[0][pattern] = few[0][nearest]
        bit = _bit(decoding, data, state, many[0], many[1], pattern, line[c])
        if bit < 0:
            return False
        _learn(few[0], few[1], nearest, bit)
        line[c] = bit
        left = (left << 1 | bit) & 15
    return True


@njit(nogil=True, cache=True)
def _widen(line: Any, wide: Any) -> None:
    """Write a row with its ends repeated."""
    wide[:3], wide[3:-3], wide[-3:] = line[0], line, line[-1]


@njit(nogil=True, cache=True)
def _chances(patterns: int) -> Any:
    return np.full(patterns, EVEN, np.int64), np.zeros(patterns, np.int64)


@njit(nogil=True, cache=True)
def code(decoding: bool, planes: Any, data: Any) -> int:
    """Code or decode planes of int64 bits: the length, or -1 for damaged data."""
    count, rows, cols = planes.shape
    state = np.array([0, FULL - 1, 0, 0], np.int64)  # low, span, value, place
    for i in range(6 if decoding else 0):
        state[2] = state[2] << 8 | (data[i] if i < data.size else 0)
    alike, few, many = _chances(2), _chances(16), _chances(1 << 16)
    wide = np.ones((4, cols + 6), np.int64)
    around = (wide[0], wide[1], wide[2], wide[3])
    for p in range(count):
        if p == 1:  # planes after others have chances of their own
            alike, few, many = _chances(2), _chances(16), _chances(1 << 16)
        wide[:2] = 1
        same = 1
        for r in range(rows):
            if p:
                _widen(planes[p - 1, r], wide[2])
                _widen(planes[p - 1, min(r + 1, rows - 1)], wide[3])
            usual = wide[2, 3:-3] if p else wide[0, 3:-3]
            line = planes[p, r]
            equal = 1 if not decoding and np.array_equal(line, usual) else 0
            same = _bit(decoding, data, state, alike[0], alike[1], same, equal)
            if same < 0:
                return -1
            if same:
                line[:] = usual
            elif not _row(decoding, data, state, line, p == 0, around, few, many):
                return -1
            wide[1] = wide[0]
            _widen(line, wide[0])
    return finish(decoding, data, state[0], state[1], state[3])


def code_bits(planes: Bits, data: bytes | None) -> bytes | None:
    """Do what `tmcodec.tokenfile.context.bits.code_bits` does."""
    count, rows, cols = planes.shape
    room = count * rows * (cols + 1) * 3 + 6
    buffer = np.zeros(room, np.uint8) if data is None else np.frombuffer(data, np.uint8).copy()
    bits = planes.astype(np.int64)
    length = code(data is not None, bits, buffer)
    if length < 0:
        return None
    planes[:] = bits
    return b"" if data is not None else buffer[:length].tobytes()
