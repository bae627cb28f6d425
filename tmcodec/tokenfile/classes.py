"""Which classes a map has, one number for each time step: bit i is set where class i occurs.

A decoder names the likeliest class of each pixel, and may name one that the map does not have: a few pixels
of marsh in a map of fields. Who knows the map's classes leaves the others out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tmcodec.errors import MetadataError
from tmcodec.tokenfile.binary import Cursor, pack_varint

MAX_CLASSES = 64
"""A number of 64 bits has no more."""
UNKNOWN = 0
"""The set of a time step of which nothing is known; a map has one class at least."""


def pack_set(classes: Iterable[int]) -> int:
    """Return the number of these class ids; `UNKNOWN` where one has no bit.

    >>> pack_set([1, 4, 9])
    530
    """
    ids = set(classes)
    return sum(1 << i for i in ids) if all(0 <= i < MAX_CLASSES for i in ids) else UNKNOWN


def unpack_set(number: int) -> tuple[int, ...]:
    """Invert `pack_set`; ids ascend.

    >>> unpack_set(530)
    (1, 4, 9)
    """
    return tuple(i for i in range(number.bit_length()) if number >> i & 1)


def check_sets(sets: Sequence[int], times: int) -> None:
    """Raise `MetadataError` unless there are no sets, or one for each of so many time steps."""
    if len(sets) not in (0, times):
        raise MetadataError(f"class_sets: {len(sets)} where {times} time steps have one each, or none")
    for number in sets:
        if not 0 <= number < 1 << MAX_CLASSES:
            raise MetadataError(f"class_sets: {number:#x} does not fit into {MAX_CLASSES} bits")


def join_sets(steps: Sequence[tuple[Sequence[int], int]]) -> tuple[int, ...]:
    """Join the sets of time steps, each given as (its layer's sets, its place there)."""
    return tuple(sets[place] if sets else UNKNOWN for sets, place in steps)


def pack_sets(sets: Sequence[int]) -> bytes:
    """Pack the sets of time steps: one number where all are alike."""
    return b"".join(map(pack_varint, sets if len(set(sets)) > 1 else sets[:1]))


def unpack_sets(cursor: Cursor, most: int) -> tuple[int, ...]:
    """Invert `pack_sets`, but for repeating a single number, of which there are as many as time steps.

    Raises
    ------
    MetadataError
    """
    sets = list[int]()
    while cursor.left:
        if len(sets) == most:
            raise cursor.fail(f"more than {most} sets of classes")
        sets.append(cursor.varint("set of classes"))
    if not any(sets):
        raise cursor.fail("no class is named")
    return tuple(sets)
