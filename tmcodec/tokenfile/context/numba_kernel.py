"""The context coder in numba, for installs without a C++ compiler; mirrors ``csrc/context_kernels.h``.

Imported only when used. Every variable is an int64 that never exceeds 2**62 in size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tmcodec.tokenfile.context.heights import Tokens
from tmcodec.tokenfile.context.model import (
    COUNTS,
    EXP2,
    LOGIT_LIMIT,
    REACH,
    TOP,
    V_LIMIT,
    ContextModel,
    layout,
)
from tmcodec.tokenfile.context.reference import Planes

_FULL, _LOW = 2**48, 2**40


@njit(nogil=True, cache=True)
def _hidden(net: Any, rows: Any, planes: Any, r: int, c: int, h1: Any, h2: Any) -> None:
    """Run the two layers that all digits share: fills h1 and h2, Q8."""
    slots, first, first_bias, second, second_bias = net
    for i in range(h1.size):
        h1[i] = first_bias[i]
    for s in range(slots.shape[0]):
        cell = planes[slots[s, 0], r + slots[s, 1], c + slots[s, 2]]
        for k in range(cell.size):
            row = first[rows[s, k] + cell[k]]
            for i in range(h1.size):
                h1[i] += row[i]
    for i in range(h1.size):
        h1[i] = min(max(h1[i] >> 1, 0), TOP)
    for j in range(h2.size):
        h2[j] = second_bias[j]
    for i in range(h1.size):
        row = second[i]
        for j in range(h2.size):
            h2[j] += np.int32(row[j]) * h1[i]
    for j in range(h2.size):
        h2[j] = min(max(h2[j] >> 10, 0), TOP)


@njit(nogil=True, cache=True)
def _head(heads: Any, bias: Any, table: Any, rows: Any, k: int, cell: Any, h2: Any, g: Any) -> None:
    """Run the head of digit k: fills g, Q8."""
    for j in range(g.size):
        g[j] = bias[k, j]
    for i in range(h2.size):
        row = heads[k, i]
        for j in range(g.size):
            g[j] += np.int32(row[j]) * h2[i]
    for d in range(cell.size):
        if rows[k, d] >= 0:
            row = table[rows[k, d] + cell[d]]
            for j in range(g.size):
                g[j] += np.int32(row[j]) << 8
    for j in range(g.size):
        g[j] = min(max(g[j] >> 10, 0), TOP)


@njit(nogil=True, cache=True)
def _frequencies(logits: Any, count: int, weights: Any) -> int:
    """Turn logits (Q10, bits) into frequencies; return their sum."""
    top = logits[0]
    for s in range(1, count):
        top = max(top, logits[s])
    total = 0
    for s in range(count):
        below = top - logits[s]
        weights[s] = 1 + (EXP2[below & 1023] >> min(below >> 10, 31))
        total += weights[s]
    return total


@njit(nogil=True, cache=True)
def _fill_logits(k: int, count: int, base: int, v: Any, bias: Any, g: Any, places: Any, logits: Any) -> None:
    """Sum up the logits of digit k, Q10; `places` are (states, state_at, at)."""
    states, state_at, at = places
    for s in range(count):
        total = np.int32(0)
        for i in range(g.size):
            total += (v[base + s, i] >> 4) * g[i]
        adapted = np.int64(bias[base + s])
        for x in range(6):
            if state_at[k, x] >= 0:
                adapted += states[state_at[k, x] + at[x] * count + s]
        logits[s] = (total >> 10) + (adapted >> 6)


@njit(nogil=True, cache=True)
def _learn(
    k: int, symbol: int, base: int, weights: Any, total: int, v: Any, g: Any, last_rate: int, rates: Any,
    counting: Any, places: Any, count: int,
) -> None:  # fmt: skip
    """Move the adaptive numbers towards the symbol that came."""
    states, state_at, at = places
    counts, count_at, uses = counting
    share = (1 << 32) // total
    for x in range(6):
        if state_at[k, x] >= 0:
            i = count_at[k, x] + at[x]
            uses[x] = counts[i]
            counts[i] = min(counts[i] + 1, COUNTS - 1)
    for s in range(count):
        error = (65536 if s == symbol else 0) - (weights[s] * share >> 16)
        for x in range(6):
            if state_at[k, x] >= 0:
                i = state_at[k, x] + at[x] * count + s
                new = states[i] + (error * rates[x, uses[x]] + 32768 >> 16)
                states[i] = min(max(new, -LOGIT_LIMIT), LOGIT_LIMIT)
        if last_rate > 0:
            step = np.int32(error * last_rate >> 8)
            for i in range(g.size):
                moved = v[base + s, i] + (step * g[i] + 32768 >> 16)
                v[base + s, i] = min(max(moved, -V_LIMIT - 1), V_LIMIT)


@njit(nogil=True, cache=True)
def _carry(data: Any, place: int) -> None:
    """Add one to the number whose last byte lies before `place`."""
    i = place - 1
    while data[i] == 255:
        data[i] = 0
        i -= 1
    data[i] += 1


@njit(nogil=True, cache=True)
def narrow(decoding: bool, data: Any, below: int, weight: int, part: int, state: Any) -> None:
    """Narrow the interval to a symbol; `state` is (low, span, value, place)."""
    low, span, value, place = state[0] + below * part, weight * part, state[2], state[3]
    if decoding:
        value -= below * part
    if low >= _FULL:
        low -= _FULL
        if not decoding:
            _carry(data, place)
    while span < _LOW:
        if decoding:
            value = value << 8 | (data[place + 6] if place + 6 < data.size else 0)
        else:
            data[place] = low >> 40
        place += 1
        low = (low & _LOW - 1) << 8
        span <<= 8
    state[0], state[1], state[2], state[3] = low, span, value, place


@njit(nogil=True, cache=True)
def code(
    decoding: bool, planes: Any, size: Any, layout: Any, has_net: bool, shared: Any, own: Any, rates: Any,
    last_rate: int, state_size: int, count_size: int, data: Any,
) -> int:  # fmt: skip
    """Code or decode a chunk: the length, or -1 for damaged data."""
    levels, order, first_rows, previous_rows, last_rows, state_at, count_at = layout
    heads, head_bias, previous, last, last_bias = own
    d, most = levels.size, levels.max()
    h1, h2 = np.zeros(shared[2].size, np.int32), np.zeros(shared[4].size, np.int32)
    g, v = np.zeros(last.shape[1], np.int32), last.astype(np.int32) << 4
    logits, weights = np.zeros(most, np.int64), np.zeros(most, np.int64)
    at = np.zeros(6, np.int64)
    places = (np.zeros(state_size, np.int32), state_at, at)
    counting = (np.zeros(count_size, np.int32), count_at, np.zeros(6, np.int64))
    state = np.array([0, _FULL - 1, 0, 0], np.int64)  # low, span, value, place
    for i in range(6 if decoding else 0):
        state[2] = state[2] << 8 | (data[i] if i < data.size else 0)
    for r in range(REACH, REACH + size[0]):
        for c in range(REACH, REACH + size[1]):
            cell = planes[0, r, c]
            if has_net:
                _hidden(shared, first_rows, planes, r, c, h1, h2)
            for n in range(d):
                k = order[n]
                count, base = levels[k], last_rows[k]
                if has_net:
                    _head(heads, head_bias, previous, previous_rows, k, cell, h2, g)
                at[1], at[2] = planes[0, r, c - 1, k], planes[0, r - 1, c, k]
                at[3] = cell[order[n - 1]] if n else 0
                at[4], at[5] = at[1] * (count + 1) + at[2], planes[1, r, c, k]
                _fill_logits(k, count, base, v, last_bias, g, places, logits)
                total = _frequencies(logits, count, weights)
                part = state[1] // total
                symbol, below = 0, 0
                if decoding:
                    target = state[2] // part
                    if target >= total:
                        return -1  # no encoder goes there
                    while below + weights[symbol] <= target:
                        below += weights[symbol]
                        symbol += 1
                    cell[k] = symbol
                else:
                    symbol = cell[k]
                    for s in range(symbol):
                        below += weights[s]
                narrow(decoding, data, below, weights[symbol], part, state)
                rate = last_rate if has_net else 0
                _learn(k, symbol, base, weights, total, v, g, rate, rates, counting, places, count)
    return finish(decoding, data, state[0], state[1], state[3])


@njit(nogil=True, cache=True)
def finish(decoding: bool, data: Any, low: int, span: int, place: int) -> int:
    """Write, or check, the last bytes: the fewest that lie in the interval; return the length or -1."""
    for tail in range(7):
        rest = _FULL >> 8 * tail
        mark = (low + rest - 1) // rest * rest
        if mark < low + span:
            break
    if decoding:
        if data.size != place + tail:
            return -1
        for i in range(tail):
            if data[place + i] != mark >> 40 - 8 * i & 255:
                return -1
        return place + tail
    if mark >= _FULL:
        mark -= _FULL
        _carry(data, place)
    for i in range(tail):
        data[place + i] = mark >> 40 - 8 * i & 255
    return place + tail


@njit(nogil=True, cache=True)
def _undo(errors: Any, weights: Any, size: int) -> None:
    """Turn folded errors into numbers, in place."""
    for r in range(errors.shape[0]):
        for c in range(errors.shape[1]):
            n = errors[r - 1, c] if r else (errors[r, c - 1] if c else 0)
            w = errors[r, c - 1] if c else n
            nw = (errors[r - 1, c - 1] if c else n) if r else w
            ne = errors[r - 1, c + 1] if r and c + 1 < errors.shape[1] else n
            ww = errors[r, c - 2] if c > 1 else w
            nn = errors[r - 2, c] if r > 1 else n
            total = weights[0] * w + weights[1] * n + weights[2] * nw + weights[3] * ne
            total += weights[4] * ww + weights[5] * nn
            guess = min(max(total + 128 >> 8, 0), size - 1)
            both, folded = min(guess, size - 1 - guess), errors[r, c]
            if folded > 2 * both:
                errors[r, c] = guess + folded - both if guess == both else guess - (folded - both)
            else:
                errors[r, c] = guess + (folded + 1) // 2 if folded % 2 else guess - folded // 2


def undo_errors(errors: Tokens, weights: tuple[int, ...], size: int) -> Tokens:
    """Do what `tmcodec.tokenfile.context.heights.undo_errors` does."""
    numbers = errors.astype(np.int64)
    _undo(numbers, np.array(weights, np.int64), size)
    return numbers.astype(np.int32)


def _without_network(symbols: int) -> tuple[Any, Any]:
    """Return empty arrays in the place of a network's."""
    none16, none32 = np.zeros((0, 0), np.int16), np.zeros(0, np.int32)
    shared = (np.zeros((0, 3), np.int32), none16, np.zeros(0, np.int16), none16, none32)
    cube = np.zeros((0, 0, 0), np.int16)
    return shared, (cube, np.zeros((0, 0), np.int32), none16, np.zeros((symbols, 0), np.int16),
                    np.zeros(symbols, np.int32))  # fmt: skip


def code_chunk(model: ContextModel, planes: Planes, data: bytes | None) -> bytes | None:
    """Do what `tmcodec.tokenfile.context.reference.code_chunk` does."""
    at, net = layout(model), model.network
    if net is None:
        shared, own = _without_network(sum(model.levels))
    else:
        shared = (net.slots, net.first, net.first_bias, net.second, net.second_bias)
        own = (net.heads, net.head_bias, net.previous, net.last, net.last_bias)
    rows, cols = planes.shape[1] - 2 * REACH, planes.shape[2] - 2 * REACH
    room = rows * cols * len(model.levels) * 4 + 6
    buffer = np.zeros(room, np.uint8) if data is None else np.frombuffer(data, np.uint8).copy()
    places = (at.levels, at.order, at.first, at.previous, at.last, at.states, at.counts)
    length = code(
        data is not None, planes, np.array([rows, cols]), places, net is not None, shared, own, model.rates,
        model.last_rate, at.state_size, at.count_size, buffer,
    )  # fmt: skip
    if length < 0:
        return None
    return b"" if data is not None else buffer[:length].tobytes()
