"""Masks in context: each pixel is coded after those above and to its left, by what usually follows them.

The definition that the fast kernels agree with, in plain Python and integers. A pixel has sixteen neighbours
that are known, six more than in JBIG (ITU-T T.82), and each of their 65,536 patterns learns how often a valid
pixel comes next. A pattern that comes for the first time begins with what the four nearest neighbours say.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tmcodec.tokenfile.context.reference import RangeDecoder, RangeEncoder

Bits = NDArray[np.uint8]

EVEN = 1 << 23
"""A chance of one half, Q24."""
SLOWEST = 655
"""Least rate of learning, Q16: a hundredth."""
COUNTED = 127
"""Uses are counted up to here; the rate no longer changes then."""

RATES = tuple(max(SLOWEST, 131072 // (2 * n + 5)) for n in range(COUNTED + 1))


class Chance:
    """How probable ones are after each pattern, learnt as they come."""

    def __init__(self, patterns: int) -> None:
        self.chances, self.uses = [EVEN] * patterns, [0] * patterns

    def weights(self, pattern: int) -> list[int]:
        """Return the frequencies of zero and one, of 65,536."""
        one = min(max(self.chances[pattern] >> 8, 1), 65535)
        return [65536 - one, one]

    def learn(self, pattern: int, bit: int) -> None:
        """Move towards the bit that came."""
        uses = self.uses[pattern]
        self.chances[pattern] += ((bit << 24) - self.chances[pattern]) * RATES[uses] >> 16
        self.uses[pattern] = min(uses + 1, COUNTED)


class BitCoder:
    """Codes bits, or decodes them: what `Chance` thinks of them is the same both ways."""

    def __init__(self, data: bytes | None) -> None:
        self.decoder = None if data is None else RangeDecoder(data)
        self.encoder = RangeEncoder()

    def code(self, chance: Chance, pattern: int, bit: int) -> int | None:
        """Code `bit`, or return the one that was coded; None where no encoder goes. Nothing is learnt."""
        if self.decoder is not None:
            return self.decoder.get(chance.weights(pattern))
        self.encoder.put(bit, chance.weights(pattern))
        return bit


class Around(NamedTuple):
    """Rows around the one to code, each with three columns more on either side that repeat its ends.

    `above` and `over` are one and two above it, ones where there are none. `beside` and `below` are the same
    row and the next one of the plane before, or the same again after the last; None in the first plane.
    """

    above: list[int]
    over: list[int]
    beside: list[int] | None
    below: list[int] | None

    def pattern(self, left: list[int], c: int) -> int:
        """Return the sixteen pixels known around column c as a number; `left` are the four to its left."""
        if self.beside is None or self.below is None:
            return _number([*left, *self.above[c : c + 7], *self.over[c + 1 : c + 6]])
        rows = (self.above[c + 1 : c + 6], self.beside[c + 1 : c + 6], self.below[c + 2 : c + 5])
        return _number([*left[1:], *rows[0], *rows[1], *rows[2]])

    def nearest(self, left: list[int], c: int) -> int:
        """Return the four nearest of them."""
        if self.beside is None:
            return _number([left[3], *self.above[c + 2 : c + 5]])
        return _number([left[3], self.above[c + 3], *self.beside[c + 3 : c + 5]])


def _number(bits: list[int]) -> int:
    """Return the number that bits are, the highest first."""
    total = 0
    for bit in bits:
        total = 2 * total + bit
    return total


def _wide(line: list[int]) -> list[int]:
    return [line[0]] * 3 + line + [line[-1]] * 3


def code_bits(planes: Bits, data: bytes | None) -> bytes | None:
    """Code planes of bits, or decode them into `planes`.

    Parameters
    ----------
    planes
        uint8 (planes, rows, cols) of zeros and ones.
    data
        None to code; else the bytes to decode.

    Returns
    -------
    bytes or None
        The coded bytes; the empty string after decoding; None where `data` is damaged.
    """
    coder = BitCoder(data)
    first, others = ((Chance(2), Chance(16), Chance(1 << 16)) for _ in range(2))
    for n in range(len(planes)):
        before = None if n == 0 else planes[n - 1]
        if not _code_plane(planes[n], before, coder, first if n == 0 else others):
            return None
    if coder.decoder is None:
        return coder.encoder.finish()
    return b"" if coder.decoder.at_end() else None


def _code_plane(plane: Bits, before: Bits | None, coder: BitCoder, chances: tuple[Chance, ...]) -> bool:
    """Code a plane, or decode it; false where no encoder goes."""
    rows, cols = plane.shape
    above = over = [1] * (cols + 6)
    same = 1
    for r in range(rows):
        beside = below = None
        if before is not None:
            beside, below = (_wide(before[n].tolist()) for n in (r, min(r + 1, rows - 1)))
        usual = (above if beside is None else beside)[3:-3]
        line: list[int] = plane[r].tolist()
        found = coder.code(chances[0], same, int(line == usual))
        if found is None:
            return False
        chances[0].learn(same, found)
        same = found
        if found:
            line = usual
        elif not _code_row(line, Around(above, over, beside, below), coder, *chances[1:]):
            return False
        plane[r] = line
        above, over = _wide(line), above
    return True


def _code_row(line: list[int], around: Around, coder: BitCoder, near: Chance, far: Chance) -> bool:
    """Code a row, or decode it into `line`; false where no encoder goes."""
    left = [around.above[3]] * 4
    for c in range(len(line)):
        pattern, few = around.pattern(left, c), around.nearest(left, c)
        if far.uses[pattern] == 0:
            far.chances[pattern] = near.chances[few]
        found = coder.code(far, pattern, line[c])
        if found is None:
            return False
        line[c] = found
        far.learn(pattern, found)
        near.learn(few, found)
        left = [*left[1:], found]
    return True
