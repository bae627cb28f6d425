"""The context coder in NumPy and plain Python: the definition that the fast kernels agree with.

Integers only. `code_chunk` is the interface of all backends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tmcodec.tokenfile.context.model import (
    COUNTS,
    EXP2,
    LOGIT_LIMIT,
    REACH,
    TOP,
    V_LIMIT,
    ContextModel,
    Int32,
    layout,
)

Planes = NDArray[np.int16]

FULL, LOW = 2**48, 2**40
"""The coder's interval begins below the first and is at least as long as the second."""


class RangeEncoder:
    """An interval that shrinks with every symbol; its leading bytes are written as they become known."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._low, self._span = 0, FULL - 1

    def put(self, symbol: int, weights: list[int]) -> None:
        """Code a symbol of probability ``weights[symbol] / sum(weights)``."""
        part = self._span // sum(weights)
        self._low += sum(weights[:symbol]) * part
        self._span = weights[symbol] * part
        self._carry()
        while self._span < LOW:
            self.data.append(self._low >> 40)
            self._low, self._span = (self._low & LOW - 1) << 8, self._span << 8

    def finish(self) -> bytes:
        """Return all bytes; the last ones are the fewest that lie in the interval, zeros following."""
        tail, self._low = shortest(self._low, self._span)
        self._carry()
        return bytes(self.data) + self._low.to_bytes(6, "big")[:tail]

    def _carry(self) -> None:
        if self._low >= FULL:
            self._low -= FULL
            at = len(self.data) - 1
            while self.data[at] == 255:
                self.data[at], at = 0, at - 1
            self.data[at] += 1


class RangeDecoder:
    """The mirror of `RangeEncoder`; reads zeros beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0
        self._value = int.from_bytes(data[:6].ljust(6, b"\0"), "big")  # from the interval's lower end
        self._low, self._span = 0, FULL - 1

    def get(self, weights: list[int]) -> int | None:
        """Return the next symbol; None where no encoder goes."""
        part = self._span // sum(weights)
        target = self._value // part
        symbol, below = 0, 0
        if target >= sum(weights):
            return None
        while below + weights[symbol] <= target:
            symbol, below = symbol + 1, below + weights[symbol]
        weight = weights[symbol]
        self._value -= below * part
        self._low, self._span = (self._low + below * part) % FULL, weight * part
        while self._span < LOW:
            at = self._place + 6
            byte = self._data[at] if at < len(self._data) else 0
            self._value, self._place = self._value << 8 | byte, self._place + 1
            self._low, self._span = (self._low & LOW - 1) << 8, self._span << 8
        return symbol

    def at_end(self) -> bool:
        """Tell whether the data ends just as the encoder would have ended it."""
        tail, mark = shortest(self._low, self._span)
        return self._data[self._place :] == (mark % FULL).to_bytes(6, "big")[:tail]


def shortest(low: int, span: int) -> tuple[int, int]:
    """Return (n, number): n leading bytes, the fewest, whose 48-bit number lies in the interval."""
    for tail in range(7):
        rest = FULL >> 8 * tail
        mark = -(-low // rest) * rest
        if mark < low + span:
            break
    return tail, mark


class Predictor:
    """Frequencies of the next digit, and learning from it."""

    def __init__(self, model: ContextModel, planes: Planes) -> None:
        self._model, self._layout, self._planes = model, layout(model), planes
        self._states = np.zeros(self._layout.state_size, np.int64)
        self._counts = np.zeros(self._layout.count_size, np.int64)
        self._levels, net = model.levels, model.network
        self._last = None if net is None else net.last.astype(np.int64) << 4

    def enter(self, row: int, col: int) -> None:
        """Go to a token: the layers that all its digits share."""
        self._at, net = (row, col), self._model.network
        if net is None:
            return
        total = net.first_bias.astype(np.int64)
        for (source, dy, dx), rows in zip(net.slots, self._layout.first, strict=True):
            total = total + net.first[rows + self._planes[source, row + dy, col + dx]].sum(0, dtype=np.int64)
        h1 = np.clip(total >> 1, 0, TOP)
        self._h2 = np.clip((h1 @ net.second.astype(np.int64) + net.second_bias) >> 10, 0, TOP)

    def frequencies(self, k: int) -> list[int]:
        """Return the frequencies of digit k, each at least one."""
        count, row, (y, x) = self._levels[k], int(self._layout.last[k]), self._at
        logits = np.zeros(count, np.int64)
        if self._last is not None:
            self._g = self._head(k)
            logits = (self._last[row : row + count] >> 4) @ self._g >> 10
        cell, left, up = self._planes[0, y, x], self._planes[0, y, x - 1, k], self._planes[0, y - 1, x, k]
        n = self._model.order.index(k)
        before = int(cell[self._model.order[n - 1]]) if n else 0
        values = (0, left, up, before, int(left) * (count + 1) + int(up), self._planes[1, y, x, k])
        on = [c for c in range(6) if self._layout.states[k, c] >= 0]
        places = [(c, self._layout.counts[k, c] + int(values[c])) for c in on]
        self._slots = [(c, i, self._layout.states[k, c] + int(values[c]) * count) for c, i in places]
        total = sum((self._states[s : s + count] for _, _, s in self._slots), np.zeros(count, np.int64))
        if self._model.network is not None:
            total = total + self._model.network.last_bias[row : row + count]
        logits = logits + (total >> 6)
        below = logits.max() - logits
        self._weights = 1 + (EXP2[below & 1023].astype(np.int64) >> np.minimum(below >> 10, 31))
        found: list[int] = self._weights.tolist()
        return found

    def _head(self, k: int) -> NDArray[np.int64]:
        """Return the activations of digit k's head, Q8."""
        net = self._model.network
        assert net is not None
        total = self._h2 @ net.heads[k].astype(np.int64) + net.head_bias[k]
        cell = self._planes[0, self._at[0], self._at[1]]
        for j in range(len(self._levels)):
            if self._layout.previous[k, j] >= 0:
                total = total + (net.previous[self._layout.previous[k, j] + cell[j]].astype(np.int64) << 8)
        return np.clip(total >> 10, 0, TOP)

    def learn(self, k: int, symbol: int) -> None:
        """Move the adaptive numbers towards the symbol that came."""
        share = 2**32 // int(self._weights.sum())
        error = -(self._weights * share >> 16)
        error[symbol] += 65536
        count, row = len(error), int(self._layout.last[k])
        for c, i, s in self._slots:
            rate = int(self._model.rates[c, self._counts[i]])
            self._counts[i] = min(self._counts[i] + 1, COUNTS - 1)
            moved = self._states[s : s + count] + (error * rate + 32768 >> 16)
            self._states[s : s + count] = np.clip(moved, -LOGIT_LIMIT, LOGIT_LIMIT)
        if self._last is not None and self._model.last_rate > 0:
            step = error * self._model.last_rate >> 8
            moved = self._last[row : row + count] + (step[:, None] * self._g + 32768 >> 16)
            self._last[row : row + count] = np.clip(moved, -V_LIMIT - 1, V_LIMIT)


def pad_planes(
    levels: tuple[int, ...],
    shape: tuple[int, int],
    sources: tuple[Int32 | None, ...],
    reference_levels: tuple[int, ...] | None = None,
) -> Planes:
    """Return int16 (sources, rows + 4, cols + 4, digits): digits with a border that says "outside".

    Parameters
    ----------
    levels
        FSQ levels L.
    shape
        (rows, cols) of the chunk.
    sources
        Digits, (rows, cols, d) each; None for what is not there or not known yet.
    reference_levels
        Levels of the second source, where they are others.
    """
    rows, cols = shape
    planes = np.empty((len(sources), rows + 2 * REACH, cols + 2 * REACH, len(levels)), np.int16)
    planes[:] = levels
    planes[1:] = reference_levels or levels
    for plane, digits in zip(planes, sources, strict=True):
        if digits is not None:
            plane[REACH : REACH + rows, REACH : REACH + cols] = digits
    return planes


def code_chunk(model: ContextModel, planes: Planes, data: bytes | None) -> bytes | None:
    """Code a chunk, or decode it into `planes`.

    Parameters
    ----------
    model
        The model.
    planes
        As from `pad_planes`, two sources: the chunk, and the reference.
    data
        None to code; else the bytes to decode.

    Returns
    -------
    bytes or None
        The coded bytes; the empty string after decoding; None where `data` is damaged.
    """
    predictor, decoder, encoder = Predictor(model, planes), RangeDecoder(data or b""), RangeEncoder()
    for row in range(REACH, planes.shape[1] - REACH):
        for col in range(REACH, planes.shape[2] - REACH):
            predictor.enter(row, col)
            cell = planes[0, row, col]
            for k in model.order:
                weights = predictor.frequencies(k)
                if data is None:
                    encoder.put(int(cell[k]), weights)
                else:
                    symbol = decoder.get(weights)
                    if symbol is None:
                        return None
                    cell[k] = symbol
                predictor.learn(k, int(cell[k]))
    if data is None:
        return encoder.finish()
    return b"" if decoder.at_end() else None
