"""Which classes a map has, as bytes: what the document says, and nothing malformed gets in."""

from __future__ import annotations

import io
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenfile_helpers import layer_meta, random_tokens, section, write_file

from tmcodec.errors import MetadataError
from tmcodec.tokenfile import TokenFile, stack
from tmcodec.tokenfile.binary import Cursor
from tmcodec.tokenfile.classes import pack_set, pack_sets, unpack_set, unpack_sets
from tmcodec.tokenfile.fields import pack_layer, unpack_layer

DATES = (datetime(2019, 7, 1), datetime(2020, 7, 1), datetime(2021, 7, 1))


@given(st.sets(st.integers(0, 63)))
def test_a_set_is_the_sum_of_powers_of_two(ids: set[int]) -> None:
    number = pack_set(ids)
    assert number == sum(2**i for i in ids)
    assert unpack_set(number) == tuple(sorted(ids))


@pytest.mark.parametrize("ids", [{64}, {1, 100}, {-1}])
def test_ids_without_a_bit_make_the_set_unknown(ids: set[int]) -> None:
    assert pack_set(ids) == 0


@pytest.mark.parametrize(("sets", "stored"), [
    ((530,), "92 04"), ((530, 530), "92 04"), ((530, 0, 2), "92 04 00 02"), ((2, 2, 4), "02 02 04"),
    ((2**64 - 1,), "ff ff ff ff ff ff ff ff ff 01"),
])
def test_the_example_of_the_document(sets: tuple[int, ...], stored: str) -> None:
    assert pack_sets(sets).hex(" ") == stored
    short = sets[:1] if len(set(sets)) == 1 else sets
    assert unpack_sets(Cursor(bytes.fromhex(stored), "x"), 3) == short


@pytest.mark.parametrize("sets", [(530,), (530, 0, 2), (0, 0, 1), (7, 7, 7), ()])
@pytest.mark.parametrize("version", [1, 2])
def test_round_trip(sets: tuple[int, ...], version: int) -> None:
    meta = layer_meta(times=DATES[: max(len(sets), 1)], class_sets=sets)
    assert meta.class_sets == sets
    assert unpack_layer(memoryview(pack_layer(meta, [], version)), [], "layer 0", version) == meta


def test_one_set_holds_for_all_dates_and_none_known_is_none() -> None:
    assert layer_meta(times=DATES, class_sets=(5,)).class_sets == (5, 5, 5)
    assert layer_meta(times=DATES, class_sets=(0, 0, 0)).class_sets == ()
    plain, named = (pack_layer(layer_meta(times=DATES, class_sets=s), []) for s in ((), (5,)))
    assert len(named) == len(plain) + 2  # a byte for the field's number and length, a byte for the set


@pytest.mark.parametrize("sets", [(1, 2), (1,) * 4, (-1,) * 3, (2**64,) * 3, (1.5,), "abc", 5])
def test_sets_that_do_not_fit_are_refused(sets: object) -> None:
    with pytest.raises(MetadataError, match="class_sets"):
        layer_meta(times=DATES, class_sets=sets)


@pytest.mark.parametrize(("stored", "why"), [
    ("", "no class is named"), ("00", "no class is named"), ("00 00 00", "no class is named"),
    ("01 02", "2 where 3 time steps"), ("01 02 03 04", "4 where 3 time steps"), ("80", "cut off|left"),
    ("80 00", "superfluous"), ("ff ff ff ff ff ff ff ff ff 02", "more than"),
])
def test_malformed_fields_are_refused(stored: str, why: str) -> None:
    data = pack_layer(layer_meta(times=DATES, class_sets=(1, 2, 3)), [], 2)
    good, bad = section(18, bytes([1, 2, 3]), 2), section(18, bytes.fromhex(stored), 2)
    assert data.count(good) == 1
    with pytest.raises(MetadataError, match=why):
        unpack_layer(memoryview(data.replace(good, bad)), [], "layer 0")


def test_more_sets_than_any_layer_has_dates_are_refused_while_they_are_read() -> None:
    with pytest.raises(MetadataError, match="more than 3 sets"):
        unpack_sets(Cursor(bytes([1, 2, 3, 4]), "x"), 3)


def test_stacking_puts_each_dates_classes_in_its_place() -> None:
    sets = ((5,), (), (6,))
    order = (2, 0, 1)  # the files are not in the order of their dates
    metas = [layer_meta(times=DATES[i : i + 1], class_sets=sets[i]) for i in order]
    target = io.BytesIO()
    stack([io.BytesIO(write_file(m, [random_tokens(m)])) for m in metas], target)
    with TokenFile.open(io.BytesIO(target.getvalue())) as file:
        assert file["a"].meta.class_sets == (5, 0, 6)
    none = [layer_meta(times=DATES[i : i + 1]) for i in range(2)]
    assert stack([io.BytesIO(write_file(m, [random_tokens(m)])) for m in none], io.BytesIO()).layers[
        0
    ].class_sets == ()
