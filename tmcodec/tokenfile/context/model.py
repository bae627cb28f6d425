"""The numbers that the context coder works with: a trained network, or none, and rates of adaptation.

What they mean, to the bit, is in ``docs/format.md`` under *Context model*. All arrays are what the
kernels take, C-contiguous; fixed point is written Qn, an integer standing for itself / 2**n.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]

CONTEXTS = ("none", "left", "up", "previous", "left and up", "reference")
"""The adaptive contexts, in the order of `ContextModel.rates`."""
REFERENCE = 5
"""The last of them; it is on only where there is a reference."""
COUNTS = 64
"""A context's count of uses stops one below; the last rate is the lasting one."""
MAX_PAIR = 16
"""Digits of more levels have no context of two neighbours."""
REACH = 2
"""The farthest neighbour, in tokens."""

TOP = 1023
"""Largest activation, Q8."""
V_LIMIT = 2**19 - 1
"""Largest adapted weight of the last layer, Q16."""
LOGIT_LIMIT = 2**30
"""Largest adapted sum of one context, Q16; never met, but sums cannot overflow."""

NO_SLOTS: Int32 = np.zeros((0, 3), np.int32)
EXP2: Int32 = np.array([round(65536 * 2 ** (-i / 1024)) for i in range(1024)], np.int32)
"""65536 * 2 ** (-i / 1024), rounded to nearest."""


@dataclass(frozen=True, eq=False)
class Network:
    """The trained part: neighbours' digits to two layers, then one head a digit.

    Attributes
    ----------
    slots
        int32 (slots, 3): source (0 the chunk itself, 1 the reference), row and column offset of
        each neighbour that the first layer sees.
    first, first_bias
        int16 (rows, h1) Q9 and int16 (h1) Q9. A slot has the rows of its digits one after the
        other, each with one more for "outside".
    second, second_bias
        int16 (h1, h2) Q10 and int32 (h2) Q18.
    heads, head_bias
        int16 (digits, h2, hg) Q10 and int32 (digits, hg) Q18.
    previous
        int16 (rows, hg) Q10: what the digits coded before add. Digit k has the rows of each
        digit before it in `ContextModel.order`, in that order.
    last
        int16 (sum(levels), hg) Q12: weights of each symbol's logit, in bits.
    last_bias
        int32 (sum(levels)) Q16, in bits.
    """

    slots: Int32
    first: Int16
    first_bias: Int16
    second: Int16
    second_bias: Int32
    heads: Int16
    head_bias: Int32
    previous: Int16
    last: Int16
    last_bias: Int32


@dataclass(frozen=True, eq=False)
class ContextModel:
    """Everything that decides the bits of a chunk besides its tokens.

    Attributes
    ----------
    levels
        FSQ levels.
    order
        The digits in the order in which they are coded.
    network
        The trained network, or None.
    rates
        int32 (6, 64) Q16: rate of adaptation of each of `CONTEXTS`, by how often it was used; a
        row of zeros switches the context off.
    last_rate
        Rate of adaptation of the network's last layer, Q16, at most 4096.
    predictor
        Weights (W, N, NW, NE, WW, NN) in 256ths that predict a token whose digits are a reflected
        number, or None; see `tmcodec.tokenfile.context.heights`.
    reference_levels
        FSQ levels of the reference, as many as `levels`, where it is another layer's chunk; None where
        it is the same layer's.
    """

    levels: tuple[int, ...]
    order: tuple[int, ...]
    network: Network | None
    rates: Int32
    last_rate: int
    predictor: tuple[int, ...] | None = None
    reference_levels: tuple[int, ...] | None = None

    @property
    def source_levels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Levels of the two sources: the chunk itself, and its reference."""
        return self.levels, self.reference_levels or self.levels


@dataclass(frozen=True, eq=False)
class Layout:
    """Where things lie in the flat arrays of the kernels; follows from a model.

    Attributes
    ----------
    levels, order
        int32 (d).
    first
        int32 (slots, d): row of digit value 0 in `Network.first`.
    previous
        int32 (d, d): row of value 0 of digit j when digit k is coded; -1 where j comes later.
    last
        int32 (d + 1): first row of digit k in `Network.last`; then the sum of the levels.
    states
        int32 (d, 6): first entry of each context in the adaptive sums, in symbols; -1 if off.
    counts
        int32 (d, 6): the same in the counts.
    state_size, count_size
        Lengths of the adaptive arrays.
    """

    levels: Int32
    order: Int32
    first: Int32
    previous: Int32
    last: Int32
    states: Int32
    counts: Int32
    state_size: int
    count_size: int


def slot_rows(model: ContextModel, slots: Int32) -> tuple[Int32, int]:
    """Return the row of digit value 0 in `Network.first`, int32 (slots, d), and how many rows it has."""
    counts = [level + 1 for source in slots[:, 0].tolist() for level in model.source_levels[source]]
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return ends[:-1].reshape(len(slots), len(model.levels)), int(ends[-1])


@lru_cache(maxsize=64)
def layout(model: ContextModel) -> Layout:
    """Return the layout of a model."""
    levels, d = np.array(model.levels, np.int32), len(model.levels)
    outside, beside = levels + 1, np.array(model.source_levels[1], np.int32) + 1
    first, _ = slot_rows(model, NO_SLOTS if model.network is None else model.network.slots)
    previous, row = np.full((d, d), -1, np.int32), 0
    for n, k in enumerate(model.order):
        for j in model.order[:n]:
            previous[k, j], row = row, row + model.levels[j]
    last = np.concatenate([[0], np.cumsum(levels)]).astype(np.int32)
    states, counts, sizes = np.full((d, 6), -1, np.int32), np.full((d, 6), -1, np.int32), [0, 0]
    for n, k in enumerate(model.order):
        before = 1 if n == 0 else model.levels[model.order[n - 1]]
        pair = int(outside[k]) ** 2 if model.levels[k] <= MAX_PAIR else 0
        values = (1, int(outside[k]), int(outside[k]), before, pair, int(beside[k]))
        for c, count in enumerate(values):
            if count and model.rates[c].any():
                states[k, c], counts[k, c] = sizes
                sizes = [sizes[0] + count * model.levels[k], sizes[1] + count]
    return Layout(levels, np.array(model.order, np.int32), first, previous, last, states, counts, *sizes)


# What an unknown tokenizer starts with: (lasting, opening) of each context. Q16 integers, because they
# are part of the bitstream: max(lasting, opening // (n + 1)).
GENERIC_RATES = ((1890, 9454), (2836, 28360), (2836, 28360), (2836, 28360), (2836, 37815), (5672, 56720))


@lru_cache(maxsize=64)
def generic_model(
    levels: tuple[int, ...], referred: bool = False, reference_levels: tuple[int, ...] | None = None
) -> ContextModel:
    """Return the start for tokenizers without trained tables: no network, all contexts adaptive."""
    rates = [[max(low, high // (n + 1)) for n in range(COUNTS)] for low, high in GENERIC_RATES]
    if not referred:
        rates[REFERENCE] = [0] * COUNTS
    order = tuple(reversed(range(len(levels))))
    rows = np.array(rates, np.int32)
    return ContextModel(levels, order, None, rows, 0, reference_levels=reference_levels)
