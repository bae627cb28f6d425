"""Files of trained context models (``.ctx``): found by the tokenizer's hash, checked before use.

The layout is in ``docs/format.md`` under *Tables*. The embedded tokenizers' tables are in
``tmcodec/tokenfile/tables``; a table that was released never changes, a better one gets a new number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import MetadataError
from tmcodec.tokenfile.binary import Cursor, crc32c, pack_varint
from tmcodec.tokenfile.context.model import COUNTS, REACH, TOP, ContextModel, Network, slot_rows
from tmcodec.tokenfile.zstd import zstd_pack, zstd_size, zstd_unpack

FOLDER = Path(__file__).resolve().parent.parent / "tables"
MAGIC = b"\x89TMX\r\n\x1a\n"
VERSION, PAIR_VERSION = 1, 2
HEAD = struct.Struct("<8sBB32s")  # magic, version, number, tokenizer
PAIR_HEAD = struct.Struct("<8sBB32s32s")  # the same, and the reference's tokenizer
MAX_BODY = 4 * 2**20
MAX_WIDTH, MAX_SLOTS = 256, 32


@dataclass(frozen=True, eq=False)
class Tables:
    """What was trained for one tokenizer.

    Attributes
    ----------
    tokenizer
        SHA-256 of its weights, 32 bytes.
    number
        1 to 255: which of its tables these are.
    alone
        Model of a chunk on its own.
    referred
        Model of a chunk whose reference is known, or None.
    """

    tokenizer: bytes
    number: int
    alone: ContextModel
    referred: ContextModel | None


@dataclass(frozen=True, eq=False)
class PairTables:
    """What was trained for one tokenizer's chunks after another's at the same place.

    Attributes
    ----------
    tokenizer, reference
        SHA-256 of the weights of the two, 32 bytes each.
    number
        1 to 255: which of the pair's tables these are.
    model
        The model; its `ContextModel.reference_levels` are set.
    """

    tokenizer: bytes
    reference: bytes
    number: int
    model: ContextModel


def pack_tables(tables: Tables) -> bytes:
    """Return the bytes of a table file."""
    body = _pack_model(tables.alone)
    if tables.referred is not None:
        body += _pack_model(tables.referred)
    head = HEAD.pack(MAGIC, VERSION, tables.number, tables.tokenizer)
    data = head + zstd_pack(body)
    return data + struct.pack("<I", crc32c(data))


def unpack_tables(data: bytes) -> Tables:
    """Invert `pack_tables`.

    Raises
    ------
    MetadataError
        If the file is damaged, or its numbers could overflow.
    """
    cursor = _body(data, VERSION, HEAD.size)
    alone = _unpack_model(cursor, 1)
    referred = _unpack_model(cursor, 2) if cursor.left else None
    cursor.end()
    _, _, number, tokenizer = HEAD.unpack_from(data)
    return Tables(tokenizer, number, alone, referred)


def pack_pair_tables(tables: PairTables) -> bytes:
    """Return the bytes of a table file of a pair."""
    levels = tables.model.reference_levels
    assert levels is not None
    head = PAIR_HEAD.pack(MAGIC, PAIR_VERSION, tables.number, tables.tokenizer, tables.reference)
    data = head + zstd_pack(b"".join(map(pack_varint, (len(levels), *levels))) + _pack_model(tables.model))
    return data + struct.pack("<I", crc32c(data))


def unpack_pair_tables(data: bytes) -> PairTables:
    """Invert `pack_pair_tables`.

    Raises
    ------
    MetadataError
        If the file is damaged, or its numbers could overflow.
    """
    cursor = _body(data, PAIR_VERSION, PAIR_HEAD.size)
    levels = tuple(cursor.varint("level", 256) for _ in range(cursor.varint("digits", 30)))
    if not levels or min(levels) < 2:
        raise cursor.fail("the reference's levels are invalid")
    model = _unpack_model(cursor, 2, levels)
    cursor.end()
    _, _, number, tokenizer, reference = PAIR_HEAD.unpack_from(data)
    return PairTables(tokenizer, reference, number, model)


def _body(data: bytes, version: int, head: int) -> Cursor:
    """Return what lies in the frame of a table file, after checking all around it."""
    if len(data) < head + 4 or not data.startswith(MAGIC) or data[8] != version:
        raise MetadataError(f"context tables: not a table file of version {version}; install tmcodec again")
    if struct.unpack("<I", data[-4:])[0] != crc32c(data[:-4]):
        raise MetadataError("context tables: wrong checksum; install tmcodec again")
    frame = data[head:-4]
    size = zstd_size(frame, "context tables", MetadataError)
    if size > MAX_BODY:
        raise MetadataError(f"context tables: {size} bytes, more than {MAX_BODY}")
    return Cursor(zstd_unpack(frame, size, "context tables", MetadataError), "context tables")


def _signed(value: int) -> bytes:
    return pack_varint(2 * value if value >= 0 else -2 * value - 1)


def _pack_model(model: ContextModel) -> bytes:
    net = model.network
    assert net is not None
    parts = [pack_varint(len(model.levels)), *map(pack_varint, (*model.levels, *model.order))]
    predictor = model.predictor or ()
    parts += [pack_varint(len(predictor)), *map(_signed, predictor), pack_varint(model.last_rate)]
    for row in model.rates.tolist():
        parts += [pack_varint(row[-1]), pack_varint(row[0])]
    parts += [pack_varint(len(net.slots)), *(_signed(v) for slot in net.slots.tolist() for v in slot)]
    parts += map(pack_varint, (net.first.shape[1], net.second.shape[1], net.last.shape[1]))
    parts += [array.astype(array.dtype.newbyteorder("<")).tobytes() for array in _arrays(net)]
    return b"".join(parts)


def _arrays(net: Network) -> tuple[NDArray[Any], ...]:
    """Return the arrays in the order of the file."""
    return (
        *(net.first, net.first_bias, net.second, net.second_bias, net.heads, net.head_bias),
        *(net.previous, net.last, net.last_bias),
    )


def rates_of(lasting: int, opening: int) -> list[int]:
    """Return ``max(lasting, opening // (n + 1))`` for n = 0 to 63 uses."""
    return [max(lasting, opening // (n + 1)) for n in range(COUNTS)]


def _unpack_model(cursor: Cursor, sources: int, beside: tuple[int, ...] | None = None) -> ContextModel:
    """Read a model whose neighbours lie in so many sources; `beside` are the levels of another layer."""
    count = cursor.varint("digits", 30)
    levels = tuple(cursor.varint("level", 256) for _ in range(count))
    order = tuple(cursor.varint("order", 29) for _ in range(count))
    predictor = tuple(_zigzag(cursor, 2**14) for _ in range(cursor.varint("predictor", 6)))
    last_rate = cursor.varint("rate", 4096)
    rates = np.array([_rate_row(cursor) for _ in range(6)], np.int32)
    slots = np.array(
        [[_zigzag(cursor, REACH) for _ in range(3)] for _ in range(cursor.varint("slots", MAX_SLOTS))]
    )
    h1, h2, hg = (cursor.varint("width", MAX_WIDTH) for _ in range(3))
    if not count or min(levels) < 2 or sorted(order) != list(range(count)) or len(predictor) not in (0, 6):
        raise cursor.fail("levels, order or predictor is invalid")
    if beside is not None and len(beside) != count:
        raise cursor.fail("the reference has another number of digits")
    for source, dy, dx in slots.tolist():
        if not 0 <= source < sources or (source == 0 and (dy, dx) >= (0, 0)):
            raise cursor.fail("a neighbour is not known yet when it is needed")
    if not (len(slots) and h1 and h2 and hg) or h1 % 16 or h2 % 16 or hg % 16:
        raise cursor.fail("a width is not a multiple of 16")
    empty = ContextModel(levels, order, None, rates, last_rate, predictor or None, beside)
    rows = slot_rows(empty, slots)[1]
    before = sum(levels[j] for n in range(count) for j in order[:n])
    short, long = _reader(cursor, "<i2"), _reader(cursor, "<i4")
    net = Network(
        slots.astype(np.int32), short(rows, h1), short(h1), short(h1, h2), long(h2), short(count, h2, hg),
        long(count, hg), short(before, hg), short(sum(levels), hg), long(sum(levels)),
    )  # fmt: skip
    model = replace(empty, network=net)
    if why := overflow(model):
        raise cursor.fail(why)
    return model


def _zigzag(cursor: Cursor, most: int) -> int:
    value = cursor.varint("number", 2 * most)
    return -(value + 1 >> 1) if value & 1 else value >> 1


def _rate_row(cursor: Cursor) -> list[int]:
    lasting, opening = cursor.varint("rate", 2**20), cursor.varint("rate", 2**20)
    return rates_of(lasting, opening)


def _reader(cursor: Cursor, dtype: str) -> Callable[..., Any]:
    def read(*shape: int) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        native = np.dtype(dtype).newbyteorder("=")
        return np.frombuffer(cursor.take(size, "array"), dtype).reshape(shape).astype(native)

    return read


def overflow(model: ContextModel) -> str | None:
    """Return which sum of the network could leave its integer type, or None."""
    net = model.network
    assert net is not None
    blocks = slot_rows(model, net.slots)[0].ravel()
    largest = np.maximum.reduceat(np.abs(net.first.astype(np.int64)), blocks, axis=0)
    if int((largest.sum(0) + np.abs(net.first_bias.astype(np.int64))).max()) > 32767:
        return "the first layer's sums leave int16"
    second = np.abs(net.second.astype(np.int64)).sum(0) * TOP + np.abs(net.second_bias.astype(np.int64))
    near = 32767 // max(len(model.levels) - 1, 1)
    if net.previous.size and int(np.abs(net.previous.astype(np.int64)).max()) > near:
        return "the heads' sums leave int16"
    heads = np.abs(net.heads.astype(np.int64)).sum(1) * TOP + np.abs(net.head_bias.astype(np.int64)) + 2**23
    last = 2**15 * TOP * net.last.shape[1]
    if max(int(second.max()), int(heads.max()), last) >= 2**31:
        return "a layer's sums leave int32"
    return None


# --------------------------------------------------------------------------- finding them


@lru_cache(maxsize=1)
def _index() -> dict[bytes, dict[int, Path]]:
    """Return the table files by tokenizer (of a pair: by both) and number; only their heads are read."""
    found: dict[bytes, dict[int, Path]] = {}
    for path in sorted(FOLDER.glob("*.ctx")):
        with open(path, "rb") as file:
            head = file.read(PAIR_HEAD.size)
        size = PAIR_HEAD.size if head[8:9] == bytes([PAIR_VERSION]) else HEAD.size
        if len(head) >= size:
            found.setdefault(head[10:size], {})[head[9]] = path
    return found


def table_numbers(tokenizer: bytes, reference: bytes = b"") -> list[int]:
    """Return the numbers of a tokenizer's tables, or of those after another's, ascending."""
    return sorted(_index().get(tokenizer + reference, {}))


def _file(key: bytes, number: int | None) -> bytes | None:
    """Return a table file, the newest without a number; None where there is none."""
    known = _index().get(key, {})
    if not known or (number is not None and number not in known):
        return None
    return known[max(known) if number is None else number].read_bytes()


@lru_cache(maxsize=16)
def find_tables(tokenizer: bytes, number: int | None = None) -> Tables | None:
    """Return a tokenizer's tables of a number, the newest without one; None where there are none."""
    data = _file(tokenizer, number)
    return None if data is None else unpack_tables(data)


@lru_cache(maxsize=32)
def find_pair_tables(tokenizer: bytes, reference: bytes, number: int | None = None) -> PairTables | None:
    """Return the tables of a tokenizer's chunks after another's, as `find_tables` does."""
    data = _file(tokenizer + reference, number) if len(tokenizer) == len(reference) == 32 else None
    return None if data is None else unpack_pair_tables(data)


def with_rates(model: ContextModel, rates: list[tuple[int, int]], last_rate: int) -> ContextModel:
    """Return the model with other rates of adaptation, (lasting, opening) for each context, Q16."""
    rows = np.array([rates_of(*pair) for pair in rates], np.int32)
    return replace(model, rates=rows, last_rate=last_rate)
