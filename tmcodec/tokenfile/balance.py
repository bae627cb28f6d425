"""The radiometric balance of a layer: gains and offsets of each band at nodes across the raster.

A decoder that has seen other places drifts in colour: green water turns grey, a desert pale. Two small
integers a band and neighbourhood, fitted when the raster was encoded, mend that. Here they are only
integers and bytes; `tmcodec.codec.balance` fits and applies them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import MetadataError, StackError
from tmcodec.tokenfile.binary import Cursor, pack_number, pack_varint, zigzag
from tmcodec.tokenfile.golomb import pack_golomb, unpack_golomb
from tmcodec.tokenfile.prelude import VERSION
from tmcodec.tokenfile.zstd import zstd_pack, zstd_size, zstd_unpack

MAX_SPACING = 65536
MAX_VALUE = 2**15 - 1
MAX_COMPONENTS = 16
"""Most components of a mixing."""
MAX_VALUES = 2**24
"""Most integers of one layer: bounds what a compressed field can grow to."""
FREE_VALUES, VALUES_A_BYTE = 2**20, 16
"""Integers of all layers that any file may have, and that each byte of its header allows beyond."""

_VARINTS, _ZSTD = 0, 1
_USUAL = 0
"""In the place of the spacing, which is never 0: the usual nodes and steps, no mixing, Golomb codes."""
_ORDERS, _FEW_ORDERS = 16, 8
_MAX_SHORT = 4096
"""Most bytes of Golomb codes; nodes that need more are alike enough for zstandard."""


@dataclass(frozen=True)
class Balance:
    """A mixing of the bands, and gains and offsets on a coarse grid of nodes.

    The decoded values y of a pixel (physical units, one a band) first become
    ``m = y + sum_j u_j / mix_divisor * (v_j / mix_divisor . (y - pivot))`` with the integer vectors u_j and
    v_j of its time step; then each ``m + g / divisor * (m - pivot) + o * step`` with the integers g and o of
    its band, interpolated bilinearly between the nodes.

    Attributes
    ----------
    spacing
        Tokens between neighbouring nodes. Node (i, j) lies in the middle of the square of spacing x spacing
        tokens that starts at token (i * spacing, j * spacing); beyond the outermost nodes their values hold.
    pivot
        Physical value that a gain leaves alone.
    divisor
        Units of g that make a gain of one.
    step
        Physical units that one unit of o makes.
    values
        The integers, in the order time, node row, node column, band, (g, o).
    mix_divisor
        Units of u and v that make one.
    mix
        The integers of the mixing, in the order time, component j, (u, v), band; none where bands stay apart.
    """

    spacing: int
    pivot: float
    divisor: int
    step: float
    values: tuple[int, ...]
    mix_divisor: int = 128
    mix: tuple[int, ...] = ()

    def mixes(self, times: int, bands: int) -> NDArray[np.int32]:
        """Return the mixing as an array (times, components, 2, bands)."""
        return np.array(self.mix, np.int32).reshape(times, -1, 2, bands)

    def nodes(self, rows: int, cols: int, times: int, bands: int) -> NDArray[np.int32]:
        """Return the integers as an array (times, node rows, node cols, bands, 2) of a token grid."""
        shape = (times, *node_counts(rows, cols, self.spacing), bands, 2)
        return np.array(self.values, np.int32).reshape(shape)


USUAL = Balance(32, 2000.0, 64, 4.0, ())
"""Nodes and steps that take no more than a byte."""
COARSE = replace(USUAL, divisor=16, step=32.0)
"""The same with longer steps, from version 2: all that small rasters pay for."""


def node_counts(rows: int, cols: int, spacing: int) -> tuple[int, int]:
    """Return how many rows and columns of nodes a grid of rows x cols tokens has."""
    return -(-rows // spacing), -(-cols // spacing)


def check_balance(balance: Balance, rows: int, cols: int, times: int, bands: int) -> None:
    """Raise `MetadataError` unless the balance fits a token grid of that size."""
    if not 1 <= balance.spacing <= MAX_SPACING:
        raise MetadataError(f"balance: spacing {balance.spacing} is not in 1..{MAX_SPACING}")
    if not math.isfinite(balance.pivot):
        raise MetadataError(f"balance: pivot {balance.pivot} is not finite")
    if not 1 <= balance.divisor <= MAX_VALUE:
        raise MetadataError(f"balance: divisor {balance.divisor} is not in 1..{MAX_VALUE}")
    if not (math.isfinite(balance.step) and balance.step > 0):
        raise MetadataError(f"balance: step {balance.step} is not a positive number")
    expected = math.prod(node_counts(rows, cols, balance.spacing)) * times * bands * 2
    if len(balance.values) != expected:
        raise MetadataError(f"balance: {len(balance.values)} integers where {expected} belong")
    if not 1 <= balance.mix_divisor <= MAX_VALUE:
        raise MetadataError(f"balance: mix_divisor {balance.mix_divisor} is not in 1..{MAX_VALUE}")
    size = times * 2 * bands
    if len(balance.mix) % size or len(balance.mix) > MAX_COMPONENTS * size:
        raise MetadataError(f"balance: {len(balance.mix)} integers of mixing, each component has {size}")
    if max(map(abs, (*balance.values, *balance.mix))) > MAX_VALUE:
        raise MetadataError(f"balance: an integer beyond {MAX_VALUE}")


def most_values(header: int) -> int:
    """Return how many integers the balances of all layers may have in a header of so many bytes."""
    return FREE_VALUES + VALUES_A_BYTE * header


def join_balances(steps: Sequence[tuple[Balance | None, int, int]]) -> Balance | None:
    """Join the balances of time steps, each given as (its layer's balance, its place there, places there).

    Steps without a balance get zeros. None where no step has one.

    Raises
    ------
    StackError
        If two differ in spacing, pivot or step sizes, or all together have too many integers.
    """
    known = [balance for balance, _, _ in steps if balance is not None]
    if not known:
        return None
    finest = replace(known[0], divisor=max(b.divisor for b in known), step=min(b.step for b in known))
    finer = {id(b): _refine(b, finest) for b in {id(b): b for b in known}.values()}  # once for all its dates
    found = [(None if b is None else finer[id(b)], place, count) for b, place, count in steps]
    values, mix = (_join([(getattr(b, name, ()), i, n) for b, i, n in found]) for name in ("values", "mix"))
    return replace(finest, values=values, mix=mix)


def _refine(balance: Balance, finest: Balance) -> Balance:
    """Return the balance in the steps of `finest`, whole parts of its own.

    Raises
    ------
    StackError
        If they are not, or anything else differs.
    """
    gain, more = divmod(finest.divisor, balance.divisor)
    offset = round(min(balance.step / finest.step, 2**31))  # beyond, nothing is a whole part, or fits int64
    pairs = np.array(balance.values, np.int64).reshape(-1, 2) * [gain, offset]
    alike = replace(balance, divisor=gain * balance.divisor, step=balance.step / offset, values=(), mix=())
    if more or alike != replace(finest, values=(), mix=()) or np.abs(pairs).max(initial=0) > MAX_VALUE:
        raise StackError("the balances of two time steps have other nodes or steps; encode them alike")
    return replace(finest, values=tuple(pairs.ravel().tolist()), mix=balance.mix)


def _join(steps: Sequence[tuple[tuple[int, ...], int, int]]) -> tuple[int, ...]:
    """Join the integers of time steps, each with its place and the places there; short ones get zeros."""
    size = max(len(values) // times for values, _, times in steps)
    if size * len(steps) > MAX_VALUES:  # one date of many nodes, and thousands that have none
        raise StackError(
            f"{len(steps)} time steps of {size} gains and offsets each are more than the {MAX_VALUES} of a"
            " layer; stack fewer dates"
        )
    joined: list[int] = []
    for values, place, times in steps:
        own = len(values) // times
        joined += values[place * own : (place + 1) * own]
        joined += [0] * (size - own)
    return tuple(joined)


def pack_balance(balance: Balance, bands: int, version: int = VERSION) -> bytes:
    """Pack a balance; each node is coded as its difference from the one before."""
    values = np.array(balance.values, np.int64).reshape(-1, 2 * bands)
    steps = np.diff(values, axis=0, prepend=0).reshape(-1)
    zigzagged = (steps << 1) ^ (steps >> 63)
    general = _pack_general(balance, zigzagged, bands)
    kinds = (USUAL,) if version == 1 else (USUAL, COARSE)
    kind = replace(balance, values=(), mix_divisor=USUAL.mix_divisor)
    if kind not in kinds or len(general) > _MAX_SHORT:
        return general
    short = _pack_short(zigzagged.tolist(), kind == COARSE, _ORDERS if version == 1 else _FEW_ORDERS)
    return short if len(short) < len(general) else general


def _pack_short(zigzagged: list[int], coarse: bool, most: int) -> bytes:
    """Pack without nodes and steps: the two orders, of gains and offsets, and the codes."""
    orders = golomb_orders(zigzagged, (most, _ORDERS))
    return bytes([_USUAL, orders[0] | coarse << 3 | orders[1] << 4]) + pack_golomb(zigzagged, orders)


def golomb_orders(zigzagged: Sequence[int], most: Sequence[int] = (_FEW_ORDERS, _ORDERS)) -> list[int]:
    """Return the orders that code gains and offsets, in turn, in the fewest bits; each below its `most`."""
    return [
        min(range(limit), key=lambda k: _bits(zigzagged[i::2], k))
        for i, limit in enumerate(most)
    ]


def _bits(values: Sequence[int], order: int) -> int:
    """Return the length of Golomb codes in bits."""
    return sum(2 * (v + (1 << order)).bit_length() - order - 1 for v in values)


def _pack_general(balance: Balance, zigzagged: NDArray[np.int64], bands: int) -> bytes:
    """Pack with any nodes and steps."""
    plain = b"".join(map(pack_varint, zigzagged.tolist()))
    # Low bytes before high bytes: the high ones are nearly all zero.
    frame = zstd_pack(zigzagged.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes())
    kind, data = (_VARINTS, plain) if len(plain) <= len(frame) else (_ZSTD, frame)
    scale = pack_number(balance.pivot) + pack_varint(balance.divisor) + pack_number(balance.step)
    mix = pack_varint(len(balance.mix) // (2 * bands))
    if balance.mix:
        mix += pack_varint(balance.mix_divisor) + b"".join(pack_varint(zigzag(v)) for v in balance.mix)
    return pack_varint(balance.spacing) + scale + mix + bytes([kind]) + data


def unpack_balance(
    cursor: Cursor, bands: int, version: int = VERSION, most: int = MAX_VALUES
) -> Balance:
    """Invert `pack_balance`; the number of nodes is the layer's to check.

    A frame of more than `most` integers is not unpacked.

    Raises
    ------
    MetadataError
    """
    spacing = cursor.varint("spacing", MAX_SPACING)
    if spacing == _USUAL:
        usual, zigzagged = _unpack_short(cursor, version)
        return replace(usual, values=_values(zigzagged, bands, cursor))
    pivot = cursor.number("pivot")
    divisor, step = cursor.varint("divisor", MAX_VALUE), cursor.number("step")
    mixed = 2 * bands * cursor.varint("components", MAX_VALUES // (2 * bands))
    mix_divisor = cursor.varint("mix divisor", MAX_VALUE) if mixed else 128
    mix = _unzigzag(cursor.varints(mixed, "mixing")) if mixed else ()
    kind = cursor.u8("kind")
    if kind == _ZSTD:
        zigzagged = _unpack_words(bytes(cursor.rest()), cursor.what, min(most, MAX_VALUES))
    elif kind == _VARINTS:
        ahead = cursor.peek()
        zigzagged = cursor.varints(int(np.count_nonzero(np.frombuffer(ahead, np.uint8) < 0x80)), "balance")
    else:
        raise cursor.fail(f"kind {kind} of balance is not defined")
    return Balance(spacing, pivot, divisor, step, _values(zigzagged, bands, cursor), mix_divisor, mix)


def _unpack_short(cursor: Cursor, version: int) -> tuple[Balance, NDArray[np.int64]]:
    """Invert `_pack_short` after its first byte."""
    orders = cursor.u8("orders")
    kind, gains = (USUAL, orders & 15) if version == 1 else ((USUAL, COARSE)[orders >> 3 & 1], orders & 7)
    if cursor.left > _MAX_SHORT:
        raise cursor.fail(f"{cursor.left} bytes of codes; at most {_MAX_SHORT} fit")
    values = unpack_golomb(cursor, (gains, orders >> 4))
    return kind, np.array([min(v, 2**62) for v in values], np.int64)  # what is out of range is refused later


def _values(zigzagged: NDArray[np.int64], bands: int, cursor: Cursor) -> tuple[int, ...]:
    """Return the integers of all nodes from their differences."""
    if len(zigzagged) == 0 or len(zigzagged) % (2 * bands) or len(zigzagged) > MAX_VALUES:
        raise cursor.fail(f"balance of {len(zigzagged)} integers where each node has {2 * bands}")
    if int(zigzagged.max()) > 4 * MAX_VALUE + 1:  # the largest difference; sums cannot overflow
        raise cursor.fail("balance has a difference out of range")
    steps = np.array(_unzigzag(zigzagged), np.int64)
    return tuple(np.cumsum(steps.reshape(-1, 2 * bands), axis=0).reshape(-1).tolist())


def _unzigzag(values: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(((values >> 1) ^ -(values & 1)).tolist())


def _unpack_words(frame: bytes, what: str, most: int) -> NDArray[np.int64]:
    """Return the 32-bit words of a frame that holds their lowest bytes first, then the next, and so on."""
    size = zstd_size(frame, what, MetadataError)
    if size % 4 or size > 4 * most:
        raise MetadataError(f"{what}: a balance of {size} bytes; at most {4 * most} fit")
    raw = zstd_unpack(frame, size, what, MetadataError)
    return np.frombuffer(raw, np.uint8).reshape(4, -1).T.copy().view("<u4").astype(np.int64).ravel()
