"""Which chunks of a file may be the reference of another, and which of them a writer tries."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from tmcodec.tokenfile.coders import BESIDE, EARLIER
from tmcodec.tokenfile.metadata import LayerMeta

DATES = 2
"""How many earlier dates a writer tries."""
LAYERS = 4
"""How many earlier layers a writer tries, the nearest in the file."""


class Place(NamedTuple):
    """A chunk, by the number of its layer and its time step; where in the grid is known."""

    layer: int
    time: int


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
    known: Mapping[int, Sequence[int]],
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
        for time in known.get(chunk.layer, ())[-DATES:]:
            yield Candidate(Place(chunk.layer, time), (chunk.time - time,), None)
    if allowed is None or BESIDE.id in allowed:
        for number in sorted((n for n in known if n < chunk.layer), reverse=True)[:LAYERS]:
            time = min(known[number], key=lambda t, n=number: _apart(layers, chunk, Place(n, t)))  # type: ignore[misc]
            yield Candidate(Place(number, time), (chunk.layer - number, time), layers[number])


def _apart(layers: Sequence[LayerMeta], one: Place, other: Place) -> tuple[float, int, int]:
    """Return how far apart two chunks are in time; by the numbers of their steps where times are unknown."""
    first, second = layers[one.layer].times[one.time], layers[other.layer].times[other.time]
    known = first is not None and second is not None
    seconds = abs((first - second).total_seconds()) if known else 0.0  # type: ignore[operator]
    return (seconds, abs(one.time - other.time), other.time)
