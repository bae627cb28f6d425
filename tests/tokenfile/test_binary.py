"""Integers, numbers and strings against values derived by hand."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.errors import MetadataError
from tmcodec.tokenfile.binary import Cursor, crc32c, pack_number, pack_string, pack_varint, unzigzag, zigzag


def test_crc32c_check_value() -> None:
    # The check value of CRC-32C in the catalogue of parametrised CRC algorithms.
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize(
    ("value", "packed"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (624485, "e58e26"),  # the example of the DWARF standard
        (2**64 - 1, "ffffffffffffffffff01"),
    ],
)
def test_varint_examples(value: int, packed: str) -> None:
    assert pack_varint(value).hex() == packed
    assert Cursor(bytes.fromhex(packed), "test").varint("x") == value


@pytest.mark.parametrize(
    "packed", ["8000", "ff00", "80", "", "ffffffffffffffffff02", "ffffffffffffffffffff01"]
)
def test_varint_rejects(packed: str) -> None:
    with pytest.raises(MetadataError, match="width"):
        Cursor(bytes.fromhex(packed), "test").varint("width")


@pytest.mark.parametrize("value", [-1, 2**64])
def test_varint_range(value: int) -> None:
    with pytest.raises(MetadataError, match="64-bit"):
        pack_varint(value)


def test_varint_limit() -> None:
    with pytest.raises(MetadataError, match="300, more than the 299"):
        Cursor(pack_varint(300), "test").varint("x", 299)


@pytest.mark.parametrize(("value", "coded"), [(0, 0), (-1, 1), (1, 2), (-2, 3), (2**31 - 1, 2**32 - 2)])
def test_zigzag_examples(value: int, coded: int) -> None:
    # The table in the documentation of protocol buffers.
    assert zigzag(value) == coded
    assert unzigzag(coded) == value


@pytest.mark.parametrize(
    ("value", "packed"),
    [
        (0.0, "00"),
        (10.0, "50"),  # 10 -> zigzag 20 -> << 2
        (-10.0, "4c"),  # -10 -> zigzag 19 -> << 2
        (0.5, "2901"),  # 5 / 10**1: zigzag 10, << 2 | 1
        (1e-22, "0916"),
        (-0.0, "020000000000000080"),
        (math.inf, "02000000000000f07f"),
        (1e300, "02" + struct.pack("<d", 1e300).hex()),
    ],
)
def test_number_examples(value: float, packed: str) -> None:
    assert pack_number(value).hex() == packed
    back = Cursor(pack_number(value), "test").number("x")
    assert struct.pack("<d", back) == struct.pack("<d", value)


def test_number_nan() -> None:
    assert math.isnan(Cursor(pack_number(math.nan), "test").number("x"))


@given(st.floats() | st.integers(-(2**60), 2**60).map(float) | st.decimals(-999, 999, places=6).map(float))
def test_number_round_trip(value: float) -> None:
    packed = pack_number(value)
    back = Cursor(packed, "test").number("x")
    assert len(packed) <= 9
    assert struct.pack("<d", back) == struct.pack("<d", value)


@pytest.mark.parametrize(
    "packed", [pack_varint(3), pack_varint(1 << 3 | 2), pack_varint(zigzag(2**53 + 1) << 2), b"\x09\x17"]
)
def test_number_rejects(packed: bytes) -> None:
    with pytest.raises(MetadataError, match="scale"):
        Cursor(packed, "test").number("scale")


@given(st.lists(st.integers(0, 2**56 - 1), max_size=40), st.binary(max_size=9))
@settings(max_examples=60)
def test_varints_like_varint(values: list[int], rest: bytes) -> None:
    cursor = Cursor(b"".join(map(pack_varint, values)) + rest, "test")
    assert cursor.varints(len(values), "x").tolist() == values
    assert bytes(cursor.rest()) == rest


@pytest.mark.parametrize("packed", ["8000", "808080", "ffffffffffffffff01", "01"])
def test_varints_rejects(packed: str) -> None:
    with pytest.raises(MetadataError, match="length"):
        Cursor(bytes.fromhex(packed), "test").varints(2 if packed == "01" else 1, "length")


def test_varints_of_none() -> None:
    assert Cursor(b"", "test").varints(0, "x").dtype == np.int64


def test_string() -> None:
    assert pack_string("hé", 3, "x").hex() == "0368c3a9"
    assert Cursor(bytes.fromhex("0368c3a9"), "test").string(3, "x") == "hé"


@pytest.mark.parametrize(
    ("packed", "why"), [("0368c3", "needs 3"), ("02c3c3", "UTF-8"), ("0461616161", "3 allowed")]
)
def test_string_rejects(packed: str, why: str) -> None:
    with pytest.raises(MetadataError, match=f"units.*{why}"):
        Cursor(bytes.fromhex(packed), "test").string(3, "units")


@pytest.mark.parametrize("text", ["aaaa", "\ud800"])
def test_string_does_not_pack(text: str) -> None:
    with pytest.raises(MetadataError, match="units"):
        pack_string(text, 3, "units")


def test_end() -> None:
    with pytest.raises(MetadataError, match="1 bytes too many"):
        Cursor(b"x", "test").end()
