"""The radiometric balance as bytes: what the document says, and nothing malformed gets in."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenfile_helpers import layer_meta, random_tokens, seal, section, split, varint, write_file

from tmcodec.errors import MetadataError, StackError
from tmcodec.tokenfile import Balance, LayerMeta, TokenFile, stack
from tmcodec.tokenfile.balance import (
    MAX_VALUE,
    join_balances,
    most_values,
    node_counts,
    pack_balance,
    unpack_balance,
)
from tmcodec.tokenfile.binary import Cursor
from tmcodec.tokenfile.golomb import pack_golomb, unpack_golomb
from tmcodec.tokenfile.header import pack_header, pack_index, unpack_header
from tmcodec.tokenfile.metadata import FileMeta

INTEGERS = st.integers(-MAX_VALUE, MAX_VALUE) | st.integers(-40, 40)


def balanced(**changes: Any) -> LayerMeta:
    """Return a layer of 7 x 9 tokens and 3 bands with 2 x 3 nodes."""
    values = tuple(range(-18, 18))
    return layer_meta(**({"balance": Balance(4, 2000.0, 64, 4.0, values)} | changes))


def test_the_bytes_of_the_document() -> None:
    # 1 x 2 nodes, 2 bands: g, o of each band at the first node, then what changes at the second.
    balance = Balance(32, 2000.0, 64, 4.0, (0, -1, 3, 20, 1, -1, 3, 10))
    for text in ("20 80 7d 40 20 00 00 00 01 06 28 02 00 00 13", "00 10 e7 0a 9d 15"):
        assert unpack_balance(Cursor(bytes.fromhex(text), "x"), 2) == balance
    assert pack_balance(balance, 2).hex(" ") == "00 10 e7 0a 9d 15"  # the last, which is shorter
    # The coarse steps of version 2: bit 3 of the second byte. Version 1 has no such bit.
    coarse = replace(balance, divisor=16, step=32.0)
    assert pack_balance(coarse, 2).hex(" ") == "00 18 e7 0a 9d 15"
    assert unpack_balance(Cursor(bytes.fromhex("00 18 e7 0a 9d 15"), "x"), 2) == coarse
    assert pack_balance(coarse, 2, 1).hex(" ") == "20 80 7d 10 80 02 00 00 00 01 06 28 02 00 00 13"
    other = replace(balance, step=2.0)
    assert pack_balance(other, 2).hex(" ") == "20 80 7d 40 10 00 00 00 01 06 28 02 00 00 13"


def test_the_bytes_of_a_mixing() -> None:
    # One component of 2 bands: u = (3, -4), v = (64, 0), then the nodes.
    balance = Balance(32, 2000.0, 64, 4.0, (0, 0, 0, 1), 128, (3, -4, 64, 0))
    assert pack_balance(balance, 2).hex(" ") == "20 80 7d 40 20 01 80 01 06 07 80 01 00 00 00 00 00 02"
    assert unpack_balance(Cursor(pack_balance(balance, 2), "x"), 2) == balance
    assert balance.mixes(1, 2).tolist() == [[[[3, -4], [64, 0]]]]


@given(st.integers(1, 4), st.integers(1, 300), st.data())
@settings(max_examples=60, deadline=None)
def test_comes_back(bands: int, nodes: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(INTEGERS, min_size=nodes * bands * 2, max_size=nodes * bands * 2))
    mixed = 2 * bands * data.draw(st.integers(1, 3))
    mix = data.draw(st.lists(INTEGERS, min_size=mixed, max_size=mixed))
    balance = Balance(5, -0.5, 1, 0.25, tuple(values), data.draw(st.integers(1, 1000)), tuple(mix))
    packed = pack_balance(balance, bands)
    assert unpack_balance(Cursor(packed, "x"), bands) == balance


@given(st.integers(1, 13), st.integers(1, 12), st.data())
@settings(max_examples=60, deadline=None)
def test_the_usual_nodes_come_back_in_fewer_bytes(bands: int, nodes: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(INTEGERS, min_size=nodes * bands * 2, max_size=nodes * bands * 2))
    balance = Balance(32, 2000.0, 64, 4.0, tuple(values))
    packed = pack_balance(balance, bands)
    assert unpack_balance(Cursor(packed, "x"), bands) == balance
    assert len(packed) <= len(pack_balance(replace(balance, step=2.0), bands))  # 2 takes a byte, as 4 does


@given(st.lists(st.integers(0, 2**17), max_size=40), st.tuples(st.integers(0, 15), st.integers(0, 15)))
def test_golomb_codes_by_their_definition(values: list[int], orders: tuple[int, int]) -> None:
    bits = ""
    for i, value in enumerate(values):
        order = orders[i % 2]
        prefix = (value >> order) + 1  # the textbook's way: Elias gamma of the quotient, then the remainder
        gamma = "0" * (prefix.bit_length() - 1) + f"{prefix:b}"
        bits += gamma + (f"{value % (1 << order):0{order}b}" if order else "")
    packed = pack_golomb(values, orders)
    assert "".join(f"{byte:08b}" for byte in packed) == bits.ljust(-(-len(bits) // 8) * 8, "0")
    assert unpack_golomb(Cursor(packed, "x"), orders) == values


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("00", "orders needs 1 bytes"),
        ("00 00", "balance of 0 integers"),
        ("00 00 fe 00", "more filling"),
        ("00 00 fd", "cut off"),
        ("00 00 80", "balance of 1 integers"),
        ("00 00 fc" + "00" * 3 + "ff" * 4, "balance of .* integers|out of range|cut off"),
        ("00 00 " + "00" * 20 + "ff" * 40, "integers|out of range|cut off"),
        ("00 00 " + "ff" * 4097, "at most 4096"),
    ],
)
def test_malformed_codes_are_refused(body: str, message: str) -> None:
    with pytest.raises(MetadataError, match=message):
        unpack_balance(Cursor(bytes.fromhex(body), "x"), 3)


def test_many_alike_nodes_are_compressed() -> None:
    balance = Balance(1, 0.0, 64, 1.0, (3, -2) * 5000)
    packed = pack_balance(balance, 1)
    assert len(packed) < 100
    assert unpack_balance(Cursor(packed, "x"), 1) == balance


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_every_token_has_a_node_near(rows: int, cols: int, spacing: int) -> None:
    down, across = node_counts(rows, cols, spacing)
    assert (down - 1) * spacing < rows <= down * spacing
    assert (across - 1) * spacing < cols <= across * spacing


def test_a_file_keeps_it_and_a_reader_without_it_skips_it() -> None:
    meta = balanced()
    data = write_file(meta, [random_tokens(meta)])
    with TokenFile.open(io.BytesIO(data)) as file:
        assert file["a"].balance == meta.balance
        assert file["a"].balance.nodes(7, 9, 1, 3)[0, 1, 2].tolist() == [[12, 13], [14, 15], [16, 17]]
        tokens = file["a"].tokens()
    plain = write_file(meta.replace(balance=None), [random_tokens(meta)])
    field = section(16, pack_balance(meta.balance, 3), 2)
    # The field is optional (even id): taking it away leaves a valid file with the same tokens.
    header, payload = split(data)
    assert field in header
    with TokenFile.open(io.BytesIO(plain)) as file:
        np.testing.assert_array_equal(file["a"].tokens(), tokens)
    assert split(plain)[1] == payload


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": 0}, "spacing 0"),
        ({"spacing": 3}, "36 integers where 54 belong"),
        ({"pivot": float("nan")}, "pivot nan"),
        ({"divisor": 0}, "divisor 0"),
        ({"step": 0.0}, "step 0.0"),
        ({"step": float("inf")}, "step inf"),
        ({"values": (1,) * 35}, "35 integers where 36 belong"),
        ({"values": (MAX_VALUE + 1,) * 36}, "beyond 32767"),
        ({"mix": (1,) * 5}, "5 integers of mixing"),
        ({"mix": (1,) * 6 * 17}, "102 integers of mixing"),
        ({"mix": (1, 1, 1, 1, 1, -MAX_VALUE - 1)}, "beyond 32767"),
        ({"mix_divisor": 0}, "mix_divisor 0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    good = balanced().balance
    assert good is not None
    with pytest.raises(MetadataError, match=message):
        balanced(balance=replace(good, **change))


HEAD = bytes.fromhex("04 80 7d 40 20 00")
BOMB = zstandard.ZstdCompressor().compress(bytes(2**27))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x02",
        b"\x00",
        b"\x00" + b"\x01" * 5,
        b"\x00" + varint(4 * MAX_VALUE + 2) + b"\x00" * 5,
        b"\x00" + b"\x80",
        b"\x01" + b"no frame",
        b"\x01" + zstandard.ZstdCompressor().compress(bytes(23)),
        b"\x01" + BOMB,
    ],
)
def test_malformed_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(MetadataError):
        unpack_balance(Cursor(HEAD + body, "x"), 3)


@pytest.mark.parametrize(
    ("modality", "bands"), [("S2L2A", ("B04", "B03")), ("own", ("a", "b", "c")), ("own", ("a",))]
)
def test_a_balance_has_as_many_bands_as_the_layer(modality: str, bands: tuple[str, ...]) -> None:
    """And not as many as the modality: 2 x 3 nodes, gain and offset of each band."""
    for spacing in (4, 32):  # in general and in short
        nodes = 6 if spacing == 4 else 1
        values = tuple(range(2 * nodes * len(bands)))
        balance = Balance(spacing, 2000.0, 64, 4.0, values)
        meta = layer_meta(modality=modality, bands=bands, balance=balance)
        with TokenFile.open(io.BytesIO(write_file(meta, [random_tokens(meta)]))) as file:
            assert file["a"].meta == meta


def test_balances_do_not_grow_beyond_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^20 integers and 16 for each byte of the header are all that the layers may have together."""

    def pack(*rows: int) -> bytes:
        layers = []
        for name, count in enumerate(rows):
            balance = replace(balanced().balance, spacing=1, values=(0,) * (512 * count * 6), mix=())
            layers.append(layer_meta(
                name=str(name), patch=16, width=512 * 16, height=count * 16, balance=balance))
        header = pack_header(FileMeta(tuple(layers)), [pack_index(m.chunks, [], [], [], []) for m in layers])
        assert len(header) < 1000
        return header

    layers = unpack_header(pack(170, 171))[0].layers  # 341 * 512 * 6 = 2^20 - 1024
    assert sum(len(layer.balance.values) for layer in layers if layer.balance is not None) == 2**20 - 1024
    with pytest.raises(MetadataError, match="more gains and offsets than readers take"):
        pack(180, 171)
    monkeypatch.setattr("tmcodec.tokenfile.header.most_values", lambda header: 2**24)
    header = pack(180, 171)
    monkeypatch.undo()
    with pytest.raises(MetadataError, match="layer 1, field 16: a balance of 2101248 bytes; at most"):
        unpack_header(header)
    assert (most_values(0), most_values(100)) == (2**20, 2**20 + 1600)


def test_a_balance_of_another_grid_is_refused() -> None:
    """2 x 2 nodes, well packed, where 2 x 3 belong."""
    meta = balanced()
    assert meta.balance is not None
    data = write_file(meta, [random_tokens(meta)], version=1)
    header, payload = split(data)
    layer, rest = header[2 : 2 + header[1]], header[2 + header[1] :]
    assert section(3, layer) + rest == header
    good = section(16, pack_balance(meta.balance, 3, 1))
    assert layer.count(good) == 1
    for nodes in (4, 6):
        other = section(16, pack_balance(replace(meta.balance, values=(5,) * (nodes * 6)), 3, 1))
        changed = io.BytesIO(seal(section(3, layer.replace(good, other)) + rest, payload))
        if nodes == 6:
            TokenFile.open(changed).close()
        else:
            with pytest.raises(MetadataError, match="balance: 24 integers where 36 belong"):
                TokenFile.open(changed)


def test_stacking_joins_the_balances_of_dates() -> None:
    one = balanced(times=(datetime(2020, 1, 1),))
    early = replace(one.balance, values=(7,) * 36, mix=(5, 4, 3, 2, 1, 0))
    other = one.replace(times=(datetime(2019, 1, 1),), balance=early)
    none = one.replace(times=(datetime(2021, 1, 1),), balance=None)
    files = [io.BytesIO(write_file(m, [random_tokens(m)])) for m in (one, other, none)]
    meta = stack(files, io.BytesIO())
    joined = (7,) * 36 + one.balance.values + (0,) * 36
    assert meta.layers[0].balance == replace(one.balance, values=joined, mix=(5, 4, 3, 2, 1, 0) + (0,) * 12)


@pytest.mark.parametrize(
    "changes", [{"step": 6.0}, {"divisor": 48}, {"spacing": 5}, {"pivot": 0.0}, {"values": (MAX_VALUE,) * 36}]
)
def test_stacking_balances_of_other_steps(changes: dict[str, Any]) -> None:
    """Steps that are whole parts of the other's are joined exactly, others refused."""
    one = balanced(times=(datetime(2020, 1, 1),))
    coarse = replace(one.balance, divisor=16, step=32.0, values=(1, -2) * 18)
    other = one.replace(times=(datetime(2021, 1, 1),), balance=coarse)
    meta = stack([io.BytesIO(write_file(m, [random_tokens(m)])) for m in (other, one)], io.BytesIO())
    # A gain of 1/16 is 4/64, an offset of 32 is 8 times 4.
    assert meta.layers[0].balance == replace(one.balance, values=one.balance.values + (4, -16) * 18)
    fewer = {"values": (1, -2) * 12} if "spacing" in changes else {}  # 2 x 2 nodes
    wrong = other.replace(balance=replace(coarse, **changes, **fewer))
    with pytest.raises(StackError, match="other nodes or steps"):
        stack([io.BytesIO(write_file(m, [random_tokens(m)])) for m in (wrong, one)], io.BytesIO())


@pytest.mark.parametrize(("coarse", "fine"), [(1e308, 5e-324), (2.0**60, 1.0), (2.0**40, 1.0)])
def test_stacking_balances_of_steps_far_apart(coarse: float, fine: float) -> None:
    """16 * 2**60 is 0 in 64 bits, and 1e308 / 5e-324 is infinite."""
    one = balanced(times=(datetime(2020, 1, 1),))
    far = replace(one.balance, step=coarse, values=(0, 16) * 18)
    metas = (one.replace(balance=replace(one.balance, step=fine)),
             one.replace(times=(datetime(2021, 1, 1),), balance=far))  # fmt: skip
    with pytest.raises(StackError, match="other nodes or steps"):
        stack([io.BytesIO(write_file(m, [random_tokens(m)])) for m in metas], io.BytesIO())


def test_a_balance_is_not_repeated_for_more_dates_than_a_layer_may_have_integers() -> None:
    """A megabyte of dates and a hundred bytes of nodes would otherwise take all memory."""
    balance = Balance(4, 2000.0, 64, 4.0, (0,) * 120_000)
    steps = [(balance, 0, 1), *[(None, i, 200) for i in range(200)]]
    with pytest.raises(StackError, match="201 time steps of 120000 gains and offsets each are more than the"):
        join_balances(steps)
    joined = join_balances(steps[:100])
    assert joined is not None and len(joined.values) == 12_000_000
