"""Bytes: integers, numbers and strings, packed and unpacked in pairs.

Every ``pack_x(value) -> bytes`` has a ``Cursor.x()`` that mirrors it. A cursor never reads
past its end: it raises instead, and names the field it was reading.
"""

from __future__ import annotations

import math
import struct
from decimal import Decimal

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import MetadataError, TmcodecError

MAX_VARINT = 2**64 - 1
MAX_EXACT = 2**53
"""Integers up to here are exact in binary64."""
MAX_EXPONENT = 22
"""10**22 is the highest power of ten that is exact in binary64."""

_INTEGER, _DECIMAL, _BINARY64 = 0, 1, 2


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC32C (Castagnoli) of `data`."""
    return int(google_crc32c.value(bytes(data)))


# --------------------------------------------------------------------------- packing


def pack_varint(value: int) -> bytes:
    """Pack ``0 <= value < 2**64`` as LEB128: 7 bits a byte, lowest first, high bit = more."""
    if not 0 <= value <= MAX_VARINT:
        raise MetadataError(f"{value} does not fit into an unsigned 64-bit integer")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> int:
    """Map 0, -1, 1, -2, ... to 0, 1, 2, 3, ..."""
    return value << 1 if value >= 0 else (-value << 1) - 1


def unzigzag(value: int) -> int:
    """Invert `zigzag`."""
    return value >> 1 if value & 1 == 0 else -((value + 1) >> 1)


def pack_string(text: str, limit: int, field: str) -> bytes:
    """Pack `text` as its length in bytes (varint) and UTF-8."""
    data = encode_utf8(text, limit, field)
    return pack_varint(len(data)) + data


def encode_utf8(text: str, limit: int, field: str) -> bytes:
    """Encode `text`; raise `MetadataError` where it has surrogates or is longer than `limit`."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        raise MetadataError(f"{field} is not valid Unicode") from None
    if len(data) > limit:
        raise MetadataError(f"{field} has {len(data)} bytes, more than the {limit} allowed")
    return data


def pack_number(value: float) -> bytes:
    """Pack a binary64 exactly: as an integer, as a short decimal, or as its eight bytes.

    The first varint is ``zigzag(n) << 2 | kind``. Kind 0 is the integer n, kind 1 is
    ``n / 10**e`` with e in a second varint, kind 2 (n = 0) is followed by the eight bytes.
    """
    raw = pack_varint(_BINARY64) + struct.pack("<d", value)
    if not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0):
        return raw
    if value == int(value) and abs(value) <= MAX_EXACT:
        return pack_varint(zigzag(int(value)) << 2 | _INTEGER)
    short = _pack_decimal(value)
    return short if short is not None and len(short) < len(raw) else raw


def _pack_decimal(value: float) -> bytes | None:
    """Pack `value` as n / 10**e where its shortest decimal form allows it, else None."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)  # a string only for nan and inf
    n = int("".join(map(str, digits))) * (-1 if sign else 1)
    # Both operands are exact, so IEEE division gives the nearest double on every machine.
    if not 1 <= -exponent <= MAX_EXPONENT or abs(n) > MAX_EXACT or n / 10.0**-exponent != value:
        return None
    return pack_varint(zigzag(n) << 2 | _DECIMAL) + pack_varint(-exponent)


# --------------------------------------------------------------------------- unpacking


class Cursor:
    """A bounded reader over bytes.

    Parameters
    ----------
    data
        The bytes.
    what
        What they are, for error messages.
    error
        What to raise where they are malformed.
    """

    def __init__(
        self, data: bytes | memoryview, what: str, error: type[TmcodecError] = MetadataError
    ) -> None:
        self._data = memoryview(data)
        self._at = 0
        self.what = what
        self._error = error

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def fail(self, message: str) -> TmcodecError:
        """Return (not raise) the error of this cursor with `message`."""
        return self._error(f"{self.what}: {message}")

    def take(self, count: int, field: str) -> memoryview:
        """Read `count` bytes."""
        if count > self.left:
            raise self.fail(f"{field} needs {count} bytes and {self.left} are left")
        view = self._data[self._at : self._at + count]
        self._at += count
        return view

    def rest(self) -> memoryview:
        """Read all that is left."""
        return self.take(self.left, "rest")

    def peek(self) -> memoryview:
        """Return all that is left without reading it."""
        return self._data[self._at :]

    def end(self) -> None:
        """Raise unless everything was read."""
        if self.left:
            raise self.fail(f"{self.left} bytes too many")

    def u8(self, field: str) -> int:
        """Read one byte."""
        return self.take(1, field)[0]

    def varint(self, field: str, limit: int = MAX_VARINT) -> int:
        """Read a canonical LEB128 integer of at most `limit`."""
        value = shift = 0
        while True:
            byte = self.u8(field)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise self.fail(f"{field} is an integer of more than 64 bits")
        if byte == 0 and shift:
            raise self.fail(f"{field} is an integer with superfluous bytes")
        if value > limit:
            raise self.fail(f"{field} is {value}, more than the {limit} allowed")
        return value

    def signed(self, field: str) -> int:
        """Read a zigzag integer."""
        return unzigzag(self.varint(field))

    def utf8(self, count: int, field: str) -> str:
        """Read `count` bytes of UTF-8."""
        try:
            return bytes(self.take(count, field)).decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{field} is not UTF-8") from None

    def string(self, limit: int, field: str) -> str:
        """Read a string of at most `limit` bytes."""
        return self.utf8(self.varint(f"length of {field}", limit), field)

    def number(self, field: str) -> float:
        """Read a binary64 as packed by `pack_number`."""
        first = self.varint(field)
        kind, n = first & 3, unzigzag(first >> 2)
        if kind == _BINARY64 and n == 0:
            return float(struct.unpack("<d", self.take(8, field))[0])
        if kind not in (_INTEGER, _DECIMAL) or abs(n) > MAX_EXACT:
            raise self.fail(f"{field} is not a number")
        if kind == _INTEGER:
            return float(n)
        exponent = self.varint(f"exponent of {field}", MAX_EXPONENT)
        return n / 10.0**exponent

    def varints(self, count: int, field: str) -> NDArray[np.int64]:
        """Read `count` canonical LEB128 integers below 2**56 at once.

        Returns
        -------
        ndarray of int64, shape (count,)
        """
        if count > self.left:  # a byte each at least; also bounds what follows
            raise self.fail(f"{field} needs {count} bytes and {self.left} are left")
        data = np.frombuffer(self._data[self._at : self._at + 8 * count], np.uint8)
        ends = np.flatnonzero(data < 0x80)[:count]
        if len(ends) < count:
            raise self.fail(f"{field} ends early or has an integer of more than 56 bits")
        starts = np.concatenate(([0], ends[:-1] + 1)).astype(np.int64)[:count]
        sizes = ends - starts + 1
        if np.any(sizes > 8) or np.any((data[ends] == 0) & (sizes > 1)):
            raise self.fail(f"{field} has an integer with superfluous bytes or more than 56 bits")
        values = np.zeros(count, np.int64)
        for k in range(int(sizes.max(initial=0))):
            more = sizes > k
            values[more] |= (data[starts[more] + k].astype(np.int64) & 0x7F) << (7 * k)
        self._at += int(sizes.sum())
        return values
