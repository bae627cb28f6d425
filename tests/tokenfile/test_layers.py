"""Coder 4: a chunk in the context of an earlier layer's, written, read by window, damaged and forged."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import second_context
from hypothesis import given, settings
from hypothesis import strategies as st
from test_context import BACKENDS, IMAGE, digits_of, grid, some_network
from tokenfile_helpers import CountingFile, layer_meta, varint, write_file

from tmcodec.errors import ChunkChecksumError, ChunkError, MetadataError
from tmcodec.tokenfile import FileMeta, LayerMeta, TokenFile, TokenFileWriter, stack, verify
from tmcodec.tokenfile.chunks import RawChunk
from tmcodec.tokenfile.context import tables as tables_module
from tmcodec.tokenfile.context.coder import Source, context_decode, context_encode
from tmcodec.tokenfile.context.model import ContextModel, generic_model
from tmcodec.tokenfile.context.reference import pad_planes
from tmcodec.tokenfile.context.tables import (
    PairTables,
    find_pair_tables,
    find_tables,
    pack_pair_tables,
    unpack_pair_tables,
    unpack_tables,
)
from tmcodec.tokenfile.references import Place, Steps, candidates, groups

CLASSES = (7, 5, 5, 5, 5)
OWN, OTHER = bytes(range(50, 82)), bytes(range(90, 122))
PICTURE = layer_meta(name="picture", width=128, height=96, chunk=16, weights_sha256=OTHER)
COVER = layer_meta(name="cover", width=128, height=96, chunk=16, levels=CLASSES, weights_sha256=OWN)


def related(tokens: np.ndarray) -> np.ndarray:
    """Return tokens of `CLASSES` whose digits follow from those of tokens of `IMAGE`."""
    digits = digits_of(tokens, IMAGE) % np.array(CLASSES)
    return (digits * np.cumprod([1, *CLASSES[:-1]])).sum(-1).astype(np.int32)


def two_layers() -> tuple[FileMeta, list[np.ndarray]]:
    """Return noise of 24 x 32 tokens, six chunks or four cut ones, and a layer that follows from it."""
    tokens = grid(24, 32, 15360)[None]
    return FileMeta((PICTURE, COVER)), [tokens, related(tokens)]


def coders_of(file: TokenFile, name: str) -> list[int]:
    return ((file[name].index.tags - 1) // 2).tolist()


# --------------------------------------------------------------------------- the model


def pair_model(own: tuple[int, ...], other: tuple[int, ...], seed: int = 0) -> ContextModel:
    """Return a model with a network of random numbers, whose reference has levels of its own."""
    base = replace(generic_model(own, True, other), last_rate=700)
    net = some_network(own, 2, seed)
    per_slot = [sum((own, other)[s]) + len(own) for s in net.slots[:, 0]]
    first = np.random.default_rng(seed).integers(-300, 301, (sum(per_slot), net.first.shape[1]))
    return replace(base, network=replace(net, first=first.astype(np.int16)))


def second_model(model: ContextModel) -> second_context.Model:
    """Return the same for the second decoder."""
    net = model.network
    assert net is not None and model.reference_levels is not None
    names = ("first", "first_bias", "second", "second_bias", "heads", "head_bias", "previous", "last")
    arrays = {name: getattr(net, name).ravel().tolist() for name in names}
    return second_context.Model(
        list(model.levels), list(model.order), [], model.last_rate, list(second_context.GENERIC),
        [tuple(s) for s in net.slots.tolist()], {**arrays, "bias": net.last_bias.tolist()}, (32, 16, 16),
        list(model.reference_levels),
    )  # fmt: skip


levels_pairs = st.integers(1, 3).flatmap(
    lambda d: st.tuples(*[st.lists(st.integers(2, 9), min_size=d, max_size=d).map(tuple)] * 2)
)


@given(
    levels=levels_pairs,
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
    trained=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_all_implementations_give_the_same_bytes(
    levels: tuple[tuple[int, ...], tuple[int, ...]], shape: tuple[int, int], seed: int, trained: bool
) -> None:
    own, other = levels
    model = pair_model(own, other, seed) if trained else generic_model(own, True, other)
    mine = digits_of(grid(*shape, int(np.prod(own)), seed), own)
    theirs = digits_of(grid(*shape, int(np.prod(other)), seed + 1), other)
    planes = pad_planes(own, shape, (mine, theirs), other)
    assert planes[1, 0, 0].tolist() == list(other) and planes[0, 0, 0].tolist() == list(own)
    found = set()
    for backend in BACKENDS:
        data = backend.code_chunk(model, planes.copy(), None)
        back = pad_planes(own, shape, (None, theirs), other)
        assert data is not None and backend.code_chunk(model, back, data) == b""
        np.testing.assert_array_equal(back, planes)
        found.add(data)
    assert len(found) == 1
    if trained:
        decoder = second_context.Decoder(second_model(model), shape, theirs.tolist())
        assert decoder.digits(found.pop()) == mine.tolist()


def test_digits_of_another_number_do_not_apply() -> None:
    tokens = grid(4, 4, 6)
    three = Source((2, 2, 2), OTHER)
    assert context_encode(tokens, (3, 2), OWN, grid(4, 4, 8), three) is None
    data = context_encode(tokens, (3, 2), OWN, grid(4, 4, 8), Source((4, 2), OTHER))
    assert data is not None
    with pytest.raises(ChunkError, match="its reference has 3 digits, not 2"):
        context_decode(data, (4, 4), (3, 2), OWN, grid(4, 4, 8), three)


# --------------------------------------------------------------------------- tables


@pytest.fixture
def own_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in place of the package's tables."""
    caches = (tables_module._index, find_tables, find_pair_tables)
    monkeypatch.setattr(tables_module, "FOLDER", tmp_path)
    monkeypatch.setattr(second_context, "TABLES", tmp_path)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_pair_tables_are_found_by_both_hashes(own_tables: Path) -> None:
    tokens, other, source = grid(5, 6, 4375), grid(5, 6, 15360), Source(IMAGE, OTHER)
    alone = {}
    for number in (2, 1):
        model = pair_model(CLASSES, IMAGE, number)
        packed = pack_pair_tables(PairTables(OWN, OTHER, number, model))
        (own_tables / f"{number}.ctx").write_bytes(packed)
        alone[number] = context_encode(tokens, CLASSES, OWN, other, source)
        (own_tables / f"{number}.ctx").rename(own_tables / f"{number}.aside")
        tables_module._index.cache_clear()
    for path in own_tables.iterdir():
        path.rename(path.with_suffix(".ctx"))
    find_pair_tables.cache_clear()
    found = find_pair_tables(OWN, OTHER)
    assert found is not None and found.number == 2 and found.model.source_levels == (CLASSES, IMAGE)
    assert find_pair_tables(OTHER, OWN) is None and find_tables(OWN) is None
    data = context_encode(tokens, CLASSES, OWN, other, source)
    assert data is not None and data == min(alone[1], alone[2], key=len)
    assert {number: coded[0] for number, coded in alone.items()} == {1: 1, 2: 2}
    np.testing.assert_array_equal(context_decode(data, (5, 6), CLASSES, OWN, other, source), tokens)
    flat = second_context.decode(data, (5, 6), list(CLASSES), OWN, other.tolist(), (list(IMAGE), OTHER))
    assert flat == tokens.ravel().tolist()
    with pytest.raises(ChunkError, match=r"tables 9 of tokenizer 32333435.* after 5a5b5c5d"):
        context_decode(b"\x09" + data[1:], (5, 6), CLASSES, OWN, other, source)
    # Tables of other levels than the file's: as if there were none.
    unlike = context_encode(grid(5, 6, 32), (2,) * 5, OWN, other, source)
    assert unlike is not None and unlike[0] == 0


def test_damaged_pair_tables_are_refused() -> None:
    model = pair_model((3, 2), (4, 5))
    data, rng = pack_pair_tables(PairTables(OWN, OTHER, 1, model)), random.Random(0)
    for _ in range(50):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with pytest.raises(MetadataError, match="context tables"):
            unpack_pair_tables(bytes(damaged))
    for cut in (0, 41, 73, len(data) - 1):
        with pytest.raises(MetadataError, match="context tables"):
            unpack_pair_tables(data[:cut])
    with pytest.raises(MetadataError, match="not a table file of version 1"):
        unpack_tables(data)
    for levels, why in (((4, 5, 6), "another number of digits"), ((4, 1), "levels are invalid")):
        bad = PairTables(OWN, OTHER, 1, replace(model, reference_levels=levels))
        with pytest.raises(MetadataError, match=why):
            unpack_pair_tables(pack_pair_tables(bad))


# --------------------------------------------------------------------------- files


def test_a_later_layer_refers_to_an_earlier_one() -> None:
    meta, tokens = two_layers()
    data = write_file(meta, tokens)
    with TokenFile.open(io.BytesIO(data)) as file:
        assert coders_of(file, "picture") == [0, 0, 0, 0]
        assert coders_of(file, "cover") == [4, 4, 4, 4]
        assert file["cover"].payload_bytes < 0.7 * 24 * 32 * np.log2(4375) / 8
        for name, expected in zip(("picture", "cover"), tokens, strict=True):
            np.testing.assert_array_equal(file[name].tokens(), expected[0])
        np.testing.assert_array_equal(file["cover"].tokens((10, 3, 15, 16)), tokens[1][0, 3:19, 10:25])
    assert verify(io.BytesIO(data)).ok


def test_a_window_reads_one_chunk_more_for_each() -> None:
    # Larger than the first block, which a reader has anyway.
    meta = FileMeta(tuple(layer.replace(width=960, height=800) for layer in (PICTURE, COVER)))
    tokens = [grid(200, 240, 15360)[None]]
    tokens.append(related(tokens[0]))
    opened = CountingFile(write_file(meta, tokens))
    with TokenFile.open(opened) as file:
        row = int(file["cover"].index.find(100))  # row 6, column 10 of 15 chunks a row
        opened.reads.clear()
        np.testing.assert_array_equal(file["cover"].tokens((160, 96, 16, 16)), tokens[1][0, 96:112, 160:176])
        lengths = [int(file[name].index.lengths[row]) for name in ("cover", "picture")]
    assert [count for _, count in opened.reads] == lengths


def test_a_damaged_reference_loses_those_that_name_it() -> None:
    meta, tokens = two_layers()
    data = bytearray(write_file(meta, tokens))
    with TokenFile.open(io.BytesIO(bytes(data))) as file:
        data[file.header_bytes + 3] ^= 1
    with TokenFile.open(io.BytesIO(bytes(data))) as file:
        with pytest.raises(
            ChunkChecksumError, match=r"layer 'cover'.*its reference, layer 'picture', time 0"
        ):
            file["cover"].tokens()
        found, intact = file["cover"].tokens(salvage=True), file["cover"].intact()
        assert not intact[:16, :16].any() and intact[16:].all() and intact[:, 16:].all()
        np.testing.assert_array_equal(found, np.where(intact, tokens[1][0], 0))
    problems = verify(io.BytesIO(bytes(data))).problems
    assert [(p.layer, p.chunk_row, p.chunk_col) for p in problems] == [("picture", 0, 0), ("cover", 0, 0)]


@pytest.mark.parametrize(
    "change", [{"chunk": 8}, {"width": 124}, {"transform": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)}]
)
def test_layers_of_another_grid_are_not_tried(change: dict[str, object]) -> None:
    tokens = two_layers()[1]
    layers = (PICTURE, COVER.replace(**change))
    with TokenFile.open(
        io.BytesIO(write_file(FileMeta(layers), [tokens[0], tokens[1][..., : layers[1].cols]]))
    ) as f:
        assert not {3, 4} & set(coders_of(f, "cover"))


def test_a_writer_keeps_to_its_coders() -> None:
    meta, tokens = two_layers()
    for allowed in ((0,), (0, 1, 2, 3), (0, 4), None):
        target = io.BytesIO()
        with TokenFileWriter(target, meta, coders=allowed) as writer:
            for layer, time, row, col in np.ndindex(2, 1, 2, 2):
                part = tokens[layer][0, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16]
                writer.write_chunk(layer, time, row, col, part)
        with TokenFile.open(io.BytesIO(target.getvalue())) as file:
            used = 4 in coders_of(file, "cover")
            np.testing.assert_array_equal(file["cover"].tokens(), tokens[1][0])
        assert used == (allowed is None or 4 in allowed)


def test_stack_refers_among_modalities_and_stacks_again() -> None:
    meta, tokens = two_layers()
    single = [write_file(layer, [t]) for layer, t in zip(meta.layers, tokens, strict=True)]
    both, again = io.BytesIO(), io.BytesIO()
    stack([io.BytesIO(f) for f in single], both)
    assert both.getvalue() == write_file(meta, tokens)
    with TokenFile.open(io.BytesIO(both.getvalue())) as file:
        assert coders_of(file, "cover") == [4] * 4
    # The other way round: chunks that had a reference become ones.
    third = write_file(COVER.replace(name="third"), [tokens[1]])
    stack([io.BytesIO(third), io.BytesIO(both.getvalue())], again)
    with TokenFile.open(io.BytesIO(again.getvalue())) as file:
        assert list(file.layers) == ["third", "picture", "cover"]
        assert not {3, 4} & set(coders_of(file, "third"))
        for name, expected in (("third", tokens[1]), ("picture", tokens[0]), ("cover", tokens[1])):
            np.testing.assert_array_equal(file[name].tokens(), expected[0])


def raws(meta: FileMeta, tokens: list[np.ndarray]) -> list[list[RawChunk]]:
    with TokenFile.open(io.BytesIO(write_file(meta, tokens))) as file:
        return [[file[n].raw_chunk(0, r, c) for r, c in np.ndindex(2, 2)] for n in ("picture", "cover")]


def forged(layers: list[LayerMeta], chunks: list[list[RawChunk]], version: int = 2) -> bytes:
    """Write chunks as they are."""
    target = io.BytesIO()
    with TokenFileWriter(target, FileMeta(tuple(layers)), coders=(0,), version=version) as writer:
        for number, layer in enumerate(chunks):
            for raw, (row, col) in zip(layer, np.ndindex(2, 2), strict=True):
                writer.write_raw_chunk(number, 0, row, col, raw)
    return target.getvalue()


def test_hostile_references_are_errors() -> None:
    """No layer before, itself, a time too late, another grid, an empty chunk, one that refers itself."""
    meta, tokens = two_layers()
    picture, cover = raws(meta, tokens)
    body = cover[0].payload[2:]
    assert cover[0].payload[:2] == b"\x01\x00"
    for layers, time in ((0, 0), (2, 0), (2**60, 0), (1, 1), (1, 2**63)):
        bad = [cover[0]._replace(payload=varint(layers) + varint(time) + body), *cover[1:]]
        with TokenFile.open(io.BytesIO(forged([PICTURE, COVER], [picture, bad]))) as file:
            with pytest.raises(ChunkError, match="its reference"):
                file["cover"].tokens()
    third = COVER.replace(name="third")
    cases = [
        ([PICTURE, COVER, third], [picture, cover, cover]),  # of coder 4 itself
        ([PICTURE, COVER], [[RawChunk(0, b""), *picture[1:]], cover]),
        ([PICTURE.replace(height=95), COVER], [picture, cover]),  # the same chunks, but not the same raster
    ]
    for metas, chunks in cases:
        with TokenFile.open(io.BytesIO(forged(metas, chunks))) as file:
            with pytest.raises(ChunkError, match=r"its reference, layer '(picture|cover)'"):
                file[metas[-1].name].tokens()


def test_a_reference_of_other_digits_is_an_error() -> None:
    meta, tokens = two_layers()
    picture, cover = raws(meta, tokens)
    two = PICTURE.replace(levels=(128, 120))  # the same codebook in two digits
    with TokenFile.open(io.BytesIO(forged([two, COVER], [picture, cover]))) as file:
        with pytest.raises(ChunkError, match="its reference has 2 digits, not 5"):
            file["cover"].tokens()


def test_altered_chunks_with_right_checksums_are_noticed(version: int) -> None:
    """What a CRC32C of the bytes cannot: the writer makes it right again, the tokens' own is wrong."""
    meta, tokens = two_layers()
    picture, cover = raws(meta, tokens)
    rng, outcomes = random.Random(3), set()
    for _ in range(150):
        body = bytearray(cover[1].payload)
        at = rng.randrange(len(body))
        kind = rng.randrange(3)
        if kind == 0:
            body[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del body[at:]
        else:
            body[at:at] = rng.randbytes(rng.randint(1, 4))
        least = 1 if version == 1 else 5  # the writer of version 2 needs the checksum that it joins
        chunks = [cover[0], cover[1]._replace(payload=bytes(body).ljust(least, b"\0")), *cover[2:]]
        with TokenFile.open(io.BytesIO(forged([PICTURE, COVER], [picture, chunks], version))) as file:
            try:
                found = file["cover"].tokens()
            except ChunkError as error:
                outcomes.add(type(error))
            else:
                np.testing.assert_array_equal(found, tokens[1][0])
    # Version 2 has no checksum of the bytes alone: what does not decode is damaged.
    assert outcomes == {ChunkChecksumError} | ({ChunkError} if version == 1 else set())
    assert (
        google_crc32c.value(tokens[1][0, :16, 16:].astype("<u4").tobytes()).to_bytes(4, "little")
        == (cover[1].payload[-4:])
    )


# --------------------------------------------------------------------------- what a writer tries


def test_the_nearest_date_of_each_earlier_layer_is_tried() -> None:
    def day(n: int) -> datetime:
        return datetime(2020, 1, n, tzinfo=timezone.utc)

    layers = [
        PICTURE.replace(name="a", times=(day(1), day(5), day(9))),
        PICTURE.replace(name="b", times=(None,)),
        PICTURE.replace(name="c", times=(day(4), day(8))),
    ]
    known = {number: Steps(layer.times) for number, layer in enumerate(layers)}
    for number, step in ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0)):
        known[number].append(step)
    found = list(candidates(layers, Place(2, 1), known))
    assert [(c.chunk, c.numbers) for c in found] == [((2, 0), (1,)), ((1, 0), (1, 0)), ((0, 2), (2, 2))]
    assert [c.chunk for c in candidates(layers, Place(2, 1), known, allowed=(3,))] == [(2, 0)]
    assert [c.chunk for c in candidates(layers, Place(2, 1), known, allowed=(4,))] == [(1, 0), (0, 2)]
    assert groups([*layers, COVER.replace(chunk=8)]) == [[0, 1, 2], [3]]
    assert groups(layers, allowed=(0, 3)) == [[0], [1], [2]]


@given(
    st.lists(st.none() | st.integers(0, 6), min_size=1, max_size=12),
    st.sets(st.integers(0, 11), min_size=1),
    st.none() | st.integers(0, 6),
    st.integers(0, 12),
)
def test_the_nearest_step_is_that_of_comparing_all(
    hours: list[int | None], chosen: set[int], hour: int | None, step: int
) -> None:
    times = [None if h is None else datetime(2020, 1, 1, h, tzinfo=timezone.utc) for h in hours]
    steps, there = Steps(times), sorted({s % len(hours) for s in chosen})
    for one in there:
        steps.append(one)

    def apart(s: int) -> tuple[int, int, int]:
        other = hours[s]
        return 0 if hour is None or other is None else abs(hour - other), abs(s - step), s

    time = None if hour is None else datetime(2020, 1, 1, hour, tzinfo=timezone.utc)
    assert steps.nearest(time, step) == min(there, key=apart)
    assert steps.latest(2) == there[-2:]
