"""The context coder: three implementations give the same bytes, damage is noticed, tables are checked."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import struct
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import second_context
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenfile_helpers import layer_meta, write_file

from tmcodec.errors import ChunkChecksumError, ChunkError, MetadataError, TmcodecError
from tmcodec.fsq.backends import BackendError
from tmcodec.tokenfile import FileMeta, TokenFile, TokenFileWriter, stack, verify
from tmcodec.tokenfile.coders import RADIX, radix_size
from tmcodec.tokenfile.context import coder as coder_module
from tmcodec.tokenfile.context import tables as tables_module
from tmcodec.tokenfile.context.backends import Backend, choose
from tmcodec.tokenfile.context.coder import context_decode, context_encode
from tmcodec.tokenfile.context.heights import (
    number_errors,
    number_to_reflected,
    reflected_to_number,
    undo_errors,
)
from tmcodec.tokenfile.context.model import EXP2, ContextModel, Network, generic_model
from tmcodec.tokenfile.context.reference import pad_planes
from tmcodec.tokenfile.context.tables import (
    FOLDER,
    Tables,
    find_tables,
    overflow,
    pack_tables,
    unpack_pair_tables,
    unpack_tables,
)

IMAGE = (8, 8, 8, 6, 5)
TOKENIZER = bytes(range(100, 132))
GOLDEN = Path(__file__).parents[1] / "golden"


def available(name: str) -> bool:
    try:
        choose(name)
    except BackendError:
        return False
    return True


# Compiling numba's kernel takes a good part of the time that these tests may take.
BACKENDS = [choose(name) for name in ("native", "numba", "python") if available(name)]


def some_network(levels: tuple[int, ...], sources: int, seed: int) -> Network:
    """Return a network of random numbers that look trained in size only."""
    rng, d = np.random.default_rng(seed), len(levels)
    slots = [(0, 0, -1), (0, -1, 0), (0, -1, 1), (0, -2, -2)] + [(1, 0, 0), (1, 2, -1)] * (sources - 1)
    h1, h2, hg = 32, 16, 16

    def numbers(kind: type, size: int, *shape: int) -> np.ndarray:
        return rng.integers(-size, size + 1, shape).astype(kind)

    order = range(d)[::-1]
    before = sum(levels[j] for n, _ in enumerate(order) for j in order[:n])
    return Network(
        np.array(slots, np.int32), numbers(np.int16, 300, len(slots) * (sum(levels) + d), h1),
        numbers(np.int16, 900, h1), numbers(np.int16, 900, h1, h2), numbers(np.int32, 2**18, h2),
        numbers(np.int16, 900, d, h2, hg), numbers(np.int32, 2**18, d, hg),
        numbers(np.int16, 900, before, hg), numbers(np.int16, 4000, sum(levels), hg),
        numbers(np.int32, 2**17, sum(levels)),
    )  # fmt: skip


def some_model(levels: tuple[int, ...], sources: int = 1, seed: int = 0) -> ContextModel:
    model = generic_model(levels, sources > 1)
    return replace(model, network=some_network(levels, sources, seed), last_rate=700)


def grid(rows: int, cols: int, codes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, codes, (rows, cols), dtype=np.int32)


def smooth(rows: int, cols: int) -> np.ndarray:
    """Return tokens of which neighbours are alike."""
    y, x = np.mgrid[:rows, :cols]
    return ((x // 5 % 8) + 8 * (y // 4 % 8) + 64 * ((x + y) // 6 % 8)).astype(np.int32)


def digits_of(tokens: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    place = np.cumprod([1, *levels[:-1]])
    return (tokens[..., None] // place % np.array(levels)).astype(np.int32)


def run_all(model: ContextModel, own: np.ndarray, other: np.ndarray | None) -> list[bytes]:
    """Code with every backend, checking that each decodes its own bytes."""
    planes = pad_planes(model.levels, own.shape[:2], (own, other))
    empty = pad_planes(model.levels, own.shape[:2], (None, other))
    found = []
    for backend in BACKENDS:
        data = backend.code_chunk(model, planes.copy(), None)
        assert data is not None
        back = empty.copy()
        assert backend.code_chunk(model, back, data) == b""
        np.testing.assert_array_equal(back, planes)
        assert backend.code_chunk(model, empty.copy(), data + b"\x00") is None
        found.append(data)
    return found


level_lists = st.one_of(
    st.sampled_from([IMAGE, (7, 5, 5, 5, 5), (2,), (256,), (2,) * 30, (256, 256, 256), (17, 16)]),
    st.lists(st.integers(2, 40), min_size=1, max_size=5).map(tuple).filter(lambda v: math.prod(v) < 2**31),
)


@st.composite
def chunks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    levels = draw(level_lists)
    shape, seed = draw(st.tuples(st.integers(1, 9), st.integers(1, 9))), draw(st.integers(0, 99))
    own, other = grid(*shape, math.prod(levels), seed), grid(*shape, math.prod(levels), seed + 1)
    kind = draw(st.sampled_from(["random", "constant", "last", "same"]))
    if kind in ("constant", "last"):
        own[:] = 0 if kind == "constant" else math.prod(levels) - 1
    return own, own if kind == "same" else other, levels


@given(chunk=chunks(), trained=st.booleans(), referred=st.booleans())
@settings(max_examples=40, deadline=None)
def test_all_implementations_give_the_same_bytes(
    chunk: tuple[np.ndarray, np.ndarray, tuple[int, ...]], trained: bool, referred: bool
) -> None:
    tokens, other, levels = chunk
    model = some_model(levels, 1 + referred) if trained else generic_model(levels, referred)
    reference = digits_of(other, levels) if referred else None
    found = run_all(model, digits_of(tokens, levels), reference)
    assert len(set(found)) == 1


def test_the_second_reader_decodes_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = some_model((5, 3, 4), 2)
    tokens, other = grid(4, 5, 60), grid(4, 5, 60, 1)
    data = run_all(model, digits_of(tokens, model.levels), digits_of(other, model.levels))[0]
    net = model.network
    assert net is not None
    mine = second_context.Model(
        [5, 3, 4], [2, 1, 0], [], 700, list(second_context.GENERIC), [tuple(s) for s in net.slots.tolist()],
        {
            **{name: getattr(net, name).ravel().tolist() for name in ("first", "first_bias", "second")},
            **{name: getattr(net, name).ravel().tolist() for name in ("second_bias", "heads")},
            **{name: getattr(net, name).ravel().tolist() for name in ("head_bias", "previous")},
            "last": net.last.ravel().tolist(), "bias": net.last_bias.tolist(),
        },
        (32, 16, 16),
    )  # fmt: skip
    decoder = second_context.Decoder(mine, (4, 5), digits_of(other, model.levels).tolist())
    assert decoder.digits(data) == digits_of(tokens, model.levels).tolist()


def test_exp2_is_exact() -> None:
    assert [second_context.exp2(i) for i in range(0, 1024, 41)] == EXP2[::41].tolist()
    assert (EXP2[0], EXP2[512], EXP2[1023]) == (65536, 46341, 32790)


def test_coding_pays_where_neighbours_are_alike() -> None:
    tokens = smooth(64, 64)
    assert len(context_encode(tokens, IMAGE) or b"") < radix_size(4096, IMAGE) / 4
    noise = grid(64, 64, 15360)
    assert len(context_encode(noise, IMAGE) or b"") < radix_size(4096, IMAGE) * 1.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (16, 16)])
def test_damage_is_noticed(shape: tuple[int, int]) -> None:
    tokens = smooth(*shape)
    data = context_encode(tokens, IMAGE)
    assert data is not None
    rng = random.Random(0)
    damaged = [data[:n] for n in range(len(data))] + [data + b"\x00", data + data]
    for _ in range(300):
        one = bytearray(data)
        one[rng.randrange(len(one))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(one))
    for one in damaged:
        with pytest.raises(ChunkError):
            context_decode(one, shape, IMAGE)
    np.testing.assert_array_equal(context_decode(data, shape, IMAGE), tokens)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_any_bytes_end(backend: Backend) -> None:
    model, rng = some_model((8, 6, 256)), random.Random(1)
    ends = []
    for _ in range(60):
        planes = pad_planes(model.levels, (3, 3), (None, None))
        ends.append(backend.code_chunk(model, planes, rng.randbytes(rng.randrange(40))))
        assert (planes[0, 2:-2, 2:-2] <= np.array(model.levels)).all()
    assert set(ends) <= {None, b""} and None in ends


def test_tokens_of_another_checksum_are_not_returned() -> None:
    tokens = smooth(8, 8)
    data = context_encode(tokens, IMAGE)
    assert data is not None
    stored = struct.unpack("<I", data[-4:])[0]
    assert stored == google_crc32c.value(tokens.astype("<u4").tobytes())
    with pytest.raises(ChunkChecksumError, match=f"have CRC32C {stored:08x}, stored 00000000"):
        context_decode(data[:-4] + bytes(4), (8, 8), IMAGE)


def test_unknown_tables() -> None:
    data = context_encode(smooth(4, 4), IMAGE)
    assert data is not None and data[0] == 0
    with pytest.raises(ChunkError, match="context tables 9 of tokenizer 646566"):
        context_decode(b"\x09" + data[1:], (4, 4), IMAGE, TOKENIZER)


# --------------------------------------------------------------------------- predicted numbers


def test_reflected_numbers_by_hand() -> None:
    # Levels 3, 2: numbers 0..5 show the slow digit 0 0 0 1 1 1 and the fast one 0 1 2 2 1 0.
    tokens = number_to_reflected(np.arange(6, dtype=np.int32)[None], (3, 2))
    assert tokens.tolist() == [[0, 1, 2, 5, 4, 3]]


@given(levels=level_lists, seed=st.integers(0, 99))
def test_reflected_numbers_invert(levels: tuple[int, ...], seed: int) -> None:
    tokens = grid(3, 4, math.prod(levels), seed)
    numbers = reflected_to_number(tokens, levels)
    np.testing.assert_array_equal(number_to_reflected(numbers, levels), tokens)
    assert numbers.min() >= 0 and numbers.max() < math.prod(levels)


@given(
    weights=st.tuples(*[st.integers(-600, 600)] * 6),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.sampled_from([2, 3, 15360, 2**31 - 1]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_errors_of_prediction_invert(
    weights: tuple[int, ...], shape: tuple[int, int], size: int, seed: int
) -> None:
    numbers = grid(*shape, size, seed)
    errors = number_errors(numbers, weights, size)
    assert errors.min() >= 0 and errors.max() < size
    np.testing.assert_array_equal(undo_errors(errors, weights, size), numbers)
    for backend in BACKENDS:
        np.testing.assert_array_equal(backend.undo_errors(errors, weights, size), numbers)
    assert second_context.numbers_of(errors.tolist(), list(weights), size) == numbers.tolist()


def test_a_plane_has_no_errors() -> None:
    y, x = np.mgrid[:6, :7].astype(np.int32)
    errors = number_errors(500 + 9 * x + 4 * y, (256, 256, -256, 0, 0, 0), 15360)
    assert not errors[1:, 1:].any()
    assert errors[0].tolist() == [
        500,
        *[17] * 6,
    ]  # after a guess of 0, and 9 more than the left one: 2 * 9 - 1


# --------------------------------------------------------------------------- tables


def some_tables(levels: tuple[int, ...] = IMAGE) -> Tables:
    predictor = (256, 256, -256, 0, 0, 0)
    alone = replace(some_model(levels), predictor=predictor)
    return Tables(TOKENIZER, 3, alone, some_model(levels, 2))


def test_tables_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ctx").write_bytes(pack_tables(some_tables()))
    monkeypatch.setattr(tables_module, "FOLDER", tmp_path)
    for cache in (tables_module._index, find_tables):
        cache.cache_clear()
    try:
        found = find_tables(TOKENIZER)
        assert found is not None and found.number == 3 and find_tables(TOKENIZER, 2) is None
        tokens, other = smooth(9, 8), grid(9, 8, 15360)
        for reference in (None, other):
            data = context_encode(tokens, IMAGE, TOKENIZER, reference)
            assert data is not None and data[0] == 3
            back = context_decode(data, tokens.shape, IMAGE, TOKENIZER, reference)
            np.testing.assert_array_equal(back, tokens)
    finally:
        for cache in (tables_module._index, find_tables):
            cache.cache_clear()
    assert found.alone.predictor == (256, 256, -256, 0, 0, 0) and found.alone.last_rate == 700


def test_damaged_tables_are_refused() -> None:
    data, rng = pack_tables(some_tables((3, 2))), random.Random(0)
    for _ in range(50):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with pytest.raises(MetadataError, match="context tables"):
            unpack_tables(bytes(damaged))
    for n in (0, 5, 41, len(data) - 1):
        with pytest.raises(MetadataError, match="context tables"):
            unpack_tables(data[:n])


def test_tables_that_could_overflow_are_refused() -> None:
    model = some_model(IMAGE)
    net = model.network
    assert net is not None and overflow(model) is None
    for name, value in (("first", 9000), ("previous", 9000), ("second", 32767), ("heads", 32767)):
        array = np.full_like(getattr(net, name), value)
        wide = replace(model, network=replace(net, **{name: array}))
        assert (overflow(wide) is None) == (name in ("second", "heads"))  # 32 inputs are too few for these
    widest = np.full((32, 16), 32767, np.int16), np.full(16, 2**31 - 1, np.int32)
    worse = replace(model, network=replace(net, second=widest[0], second_bias=widest[1]))
    assert overflow(worse) == "a layer's sums leave int32"


def test_neighbours_must_be_known() -> None:
    model = some_model((3, 2))
    assert model.network is not None
    for slot in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)):
        net = replace(model.network, slots=np.array([slot, *model.network.slots[1:]], np.int32))
        with pytest.raises(MetadataError, match="not known yet"):
            unpack_tables(pack_tables(Tables(TOKENIZER, 1, replace(model, network=net), None)))


def test_released_tables_never_change() -> None:
    pinned = json.loads((GOLDEN / "tables.json").read_text())
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in FOLDER.glob("*.ctx")}
    assert {name: found.get(name) for name in pinned} == pinned
    readers = {1: unpack_tables, 2: unpack_pair_tables}
    assert all(readers[data[8]](data).number >= 1 for data in (p.read_bytes() for p in FOLDER.glob("*.ctx")))
    assert sum(p.stat().st_size for p in FOLDER.glob("*.ctx")) < 2**20


# --------------------------------------------------------------------------- files


META = layer_meta(width=64, height=48, times=(None, None, None), chunk=16)


def three_dates() -> np.ndarray:
    tokens = np.stack([grid(12, 16, 15360)] * 3)
    tokens[1, 3], tokens[2, 5] = 7, 9
    return tokens


def test_later_dates_refer_to_the_first() -> None:
    tokens = three_dates()
    data = write_file(META, [tokens])
    with TokenFile.open(io.BytesIO(data)) as file:
        layer = file["a"]
        assert layer.index.tags.tolist() == [1, 7, 7]  # raw, then coder 3 twice
        assert layer.index.lengths[1:].max() < layer.index.lengths[0] * 0.6
        for time in range(3):
            np.testing.assert_array_equal(layer.tokens(time=time), tokens[time])
        np.testing.assert_array_equal(layer.tokens((3, 2, 5, 4), time=2), tokens[2, 2:6, 3:8])
    assert verify(io.BytesIO(data)).ok


def test_a_damaged_reference_loses_those_that_name_it() -> None:
    data = bytearray(write_file(META, [three_dates()]))
    with TokenFile.open(io.BytesIO(bytes(data))) as file:
        at = len(data) - file["a"].payload_bytes
    data[at + 3] ^= 1
    with TokenFile.open(io.BytesIO(bytes(data))) as file:
        for time in range(3):
            with pytest.raises(ChunkError, match="CRC32C"):
                file["a"].tokens(time=time)
            assert not file["a"].intact(time=time).any()
            assert not file["a"].tokens(time=time, salvage=True).any()
    assert [p.time for p in verify(io.BytesIO(bytes(data))).problems] == [0, 1, 2]


def test_order_of_writing_does_not_matter() -> None:
    tokens, files = three_dates(), []
    for times in ((0, 1, 2), (2, 0, 1)):
        target = io.BytesIO()
        with TokenFileWriter(target, FileMeta((META,))) as writer:
            for time in times:
                writer.write_chunk(0, time, 0, 0, tokens[time])
        assert len(target.getvalue()) == writer.size
        files.append(target.getvalue())
    assert files[0] == files[1]


def test_stack_refers_and_stacks_again() -> None:
    tokens = three_dates()
    files = []
    for time in range(3):
        when = np.datetime64(f"202{time}-01-01", "s").item()
        files.append(write_file(META.replace(times=(when,)), [tokens[time : time + 1]]))
    later, all_dates = io.BytesIO(), io.BytesIO()
    stack([io.BytesIO(f) for f in files[1:]], later)
    stack([io.BytesIO(files[0]), io.BytesIO(later.getvalue())], all_dates)
    with TokenFile.open(io.BytesIO(all_dates.getvalue())) as file:
        assert [(t - 1) // 2 for t in file["a"].index.tags.tolist()] == [0, 3, 3]
        for time in range(3):
            np.testing.assert_array_equal(file["a"].tokens(time=time), tokens[time])
    assert len(all_dates.getvalue()) < sum(map(len, files)) * 0.65


def test_chunks_coded_anew_while_stacking_keep_their_masks() -> None:
    tokens, masks = three_dates(), np.ones((3, 1, 48, 64), np.bool_)
    masks[1, 0, 5:9, 7:20] = masks[2, 0, 40:, :3] = False
    when = [np.datetime64(f"202{time}-01-01", "s").item() for time in range(3)]
    both = META.replace(times=tuple(when[:2]))
    files = [write_file(both, [tokens[:2]], [masks[:2]])]
    files.append(write_file(META.replace(times=(when[2],)), [tokens[2:]], [masks[2:]]))
    with TokenFile.open(io.BytesIO(files[0])) as file:
        assert file["a"].index.tags.tolist() == [1, 8]  # partial, coder 3
        plain = file["a"].plain_chunk(1, 0, 0)
        assert plain.tag in (2, 4, 6)  # partial, coders 0 to 2
    target = io.BytesIO()
    stack([io.BytesIO(f) for f in files], target)
    with TokenFile.open(target) as file:
        for time in range(3):
            found = file["a"].read(time=time)
            np.testing.assert_array_equal(found.tokens, tokens[time])
            np.testing.assert_array_equal(np.ones_like(masks[0]) if time == 0 else found.valid, masks[time])
            assert (found.valid is None) == (time == 0)


def test_dates_that_have_nothing_in_common_do_not_refer() -> None:
    tokens = np.random.default_rng(3).integers(0, 15360, (3, 12, 16), dtype=np.int32)
    with TokenFile.open(io.BytesIO(write_file(META, [tokens]))) as file:
        assert file["a"].index.tags.tolist() == [1, 1, 1]


def test_a_writer_keeps_to_its_coders() -> None:
    tokens = smooth(12, 16)[None].repeat(3, 0)
    for coders, known in (((0,), {0}), ((0, 1), {0, 1}), ((2,), {2})):
        target = io.BytesIO()
        with TokenFileWriter(target, FileMeta((META,)), coders=coders) as writer:
            for time in range(3):
                writer.write_chunk(0, time, 0, 0, tokens[time])
        with TokenFile.open(io.BytesIO(target.getvalue())) as file:
            assert {(t - 1) // 2 for t in file["a"].index.tags.tolist()} <= known | {RADIX.id}


def test_hostile_references_are_errors() -> None:
    """Steps back beyond the first date, to itself, to an empty chunk, to one with a reference."""
    tokens = three_dates()
    with TokenFile.open(io.BytesIO(write_file(META, [tokens]))) as file:
        raws = [file["a"].raw_chunk(time, 0, 0) for time in range(3)]
    for time, back in ((1, 0), (1, 2), (2, 1), (2, 2**40)):
        body = second_varint(back) + raws[time].payload[1:]
        target = io.BytesIO()
        with TokenFileWriter(target, FileMeta((META,)), coders=(0,)) as writer:
            for t in range(3):
                raw = raws[t]._replace(payload=body) if t == time else raws[t]
                writer.write_raw_chunk(0, t, 0, 0, raw)
        with TokenFile.open(io.BytesIO(target.getvalue())) as file:
            with pytest.raises(TmcodecError, match="its reference"):
                file["a"].tokens(time=time)


def second_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def test_backends_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMCODEC_BACKEND", "torch")
    assert choose().name == "python"
    monkeypatch.setenv("TMCODEC_BACKEND", "abacus")
    with pytest.raises(BackendError, match="unknown backend 'abacus'"):
        choose()
    assert choose("python").name == "python"
    assert coder_module.MAX_SIDE == 256
