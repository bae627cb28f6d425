"""Which chunks of a file may be the reference of another, and which of them a writer tries."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from tmcodec.tokenfile.coders import BESIDE, EARLIER
from tmcodec.tokenfile.metadata import LayerMeta

_T = TypeVar("_T", int, tuple[datetime, int])

DATES = 2
"""How many earlier dates a writer tries."""
LAYERS = 4
"""How many earlier layers a writer tries, the nearest in the file."""


class Place(NamedTuple):
    """A chunk, by the number of its layer and its time step; where in the grid is known."""

    layer: int
    time: int


class Steps:
    """Time steps of a layer that others may refer to at one place of the grid, and which is nearest in time.

    Parameters
    ----------
    times
        Those of the layer, a time or None for each step.
    """

    def __init__(self, times: Sequence[datetime | None]) -> None:
        self._times = times
        self._steps: list[int] = []
        self._timeless: list[int] = []
        self._timed: list[tuple[datetime, int]] = []

    def append(self, step: int) -> None:
        """Add a step, later in the file than those before it."""
        time = self._times[step]
        self._steps.append(step)
        if time is None:
            self._timeless.append(step)
        else:
            insort(self._timed, (time, step))

    def latest(self, count: int) -> list[int]:
        """Return the last `count` steps, in order."""
        return self._steps[-count:]

    def nearest(self, time: datetime | None, step: int) -> int:
        """Return which step is nearest to `time`, step `step` of another layer.

        Where one of two times is unknown they count as equal. Of equally near ones it is the one with the
        nearest number, then the lower. Layers may have a million steps, so they are not compared one by one.
        """
        if time is None:
            return min(_around(self._steps, step), key=lambda s: (abs(s - step), s))
        around = [(0.0, abs(s - step), s) for s in _around(self._timeless, step)]
        for moment in {t for t, _ in _around(self._timed, (time, step))}:
            same = [s for t, s in _around(self._timed, (moment, step)) if t == moment]
            around += [(abs((time - moment).total_seconds()), abs(s - step), s) for s in same]
        return min(around)[2]


def _around(ordered: list[_T], value: _T) -> list[_T]:
    """Return the elements of a sorted list on both sides of `value`, fewer at its ends."""
    at = bisect_left(ordered, value)
    return ordered[max(at - 1, 0) : at + 1]


class Candidate(NamedTuple):
    """A chunk that another may refer to, and the numbers by which it says so; None: of the same layer."""

    chunk: Place
    numbers: tuple[int, ...]
    layer: LayerMeta | None


def same_grid(one: LayerMeta, other: LayerMeta) -> bool:
    """Tell whether two layers have the same chunks: what a reader asks for."""
    return _shape(one) == _shape(other)


def _shape(layer: LayerMeta) -> tuple[int, int, int, int]:
    return layer.width, layer.height, layer.patch, layer.chunk


def groups(layers: Sequence[LayerMeta], allowed: Collection[int] | None = None) -> list[list[int]]:
    """Return the numbers of layers with the same grid on the same ground, whose chunks are tried together.

    Parameters
    ----------
    layers
        Those of the file, in its order.
    allowed
        Ids of the coders that the writer may use; None is all. Without coder 4 each layer is alone.
    """
    together = allowed is None or BESIDE.id in allowed
    found: dict[object, list[int]] = {}
    for number, layer in enumerate(layers):
        key = (*_shape(layer), layer.crs, layer.transform) if together else number
        found.setdefault(key, []).append(number)
    return list(found.values())


def candidates(
    layers: Sequence[LayerMeta],
    chunk: Place,
    known: Mapping[int, Steps],
    allowed: Collection[int] | None = None,
) -> Iterator[Candidate]:
    """Yield the chunks that `chunk` is tried with, in the order in which they win ties.

    Parameters
    ----------
    layers
        Those of the file.
    chunk
        What is coded.
    known
        Of each layer, by number, the time steps of chunks before it that have no reference themselves.
    allowed
        As for `groups`.
    """
    if allowed is None or EARLIER.id in allowed:
        for time in known[chunk.layer].latest(DATES) if chunk.layer in known else ():
            yield Candidate(Place(chunk.layer, time), (chunk.time - time,), None)
    if allowed is None or BESIDE.id in allowed:
        for number in sorted((n for n in known if n < chunk.layer), reverse=True)[:LAYERS]:
            time = known[number].nearest(layers[chunk.layer].times[chunk.time], chunk.time)
            yield Candidate(Place(number, time), (chunk.layer - number, time), layers[number])
