"""One error class for each way a token file can be bad."""

from __future__ import annotations

import io
import math
import struct
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zstandard
from tokenfile_helpers import (
    layer_meta,
    prelude_size,
    random_tokens,
    seal,
    section,
    split,
    varint,
    write_file,
)

from tmcodec.errors import (
    ChunkChecksumError,
    ChunkError,
    HeaderChecksumError,
    LimitExceededError,
    LineEndingError,
    MetadataError,
    NotATokenFileError,
    StackError,
    TargetNameError,
    TmcodecError,
    TokenFileError,
    TokenRangeError,
    TrailingDataError,
    TruncatedFileError,
    UnknownCoderError,
    UnknownSectionError,
    UnsupportedVersionError,
)
from tmcodec.tokenfile import FileMeta, TokenFile, TokenFileWriter, stack, verify

Flip = Callable[[bytes, int], bytes]


def read(data: bytes, **options: int) -> np.ndarray:
    with TokenFile.open(io.BytesIO(data), **options) as file:
        return next(iter(file.layers.values())).tokens()


@pytest.mark.parametrize(
    "data", [b"GIF89a......................", b"x", b"\x89PNG\r\n\x1a\n" + bytes(30), b"TMC" * 20]
)
def test_not_a_token_file(data: bytes) -> None:
    with pytest.raises(NotATokenFileError, match=r"it begins with .*; give one that tmcodec wrote"):
        read(data)


@pytest.mark.parametrize("head", [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"])
def test_a_tiff_is_told_apart(head: bytes) -> None:
    with pytest.raises(NotATokenFileError, match="a TIFF; `tmcodec encode` makes a token file of it"):
        read(head + bytes(30))


@pytest.mark.parametrize(
    "mangle",
    [
        lambda d: d.replace(b"\r\n", b"\n"),
        lambda d: d.replace(b"\n", b"\r\n"),
        lambda d: d.replace(b"\r", b"\n"),
        lambda d: d.replace(b"\r", b""),
        lambda d: d.decode("latin-1").encode("utf-8"),
        lambda d: d.decode("utf-8", "replace").encode("utf-8"),
        lambda d: bytes(b & 0x7F for b in d),
    ],
)
def test_line_endings(small_file: bytes, mangle: Callable[[bytes], bytes]) -> None:
    with pytest.raises(LineEndingError, match="binary"):
        read(mangle(small_file))


@pytest.mark.parametrize("unknown", [0, 3, 255])
def test_version(small_file: bytes, unknown: int) -> None:
    with pytest.raises(UnsupportedVersionError, match=f"version {unknown}"):
        read(seal(*split(small_file), unknown))
    with pytest.raises(UnsupportedVersionError, match=f"version {unknown}"):
        TokenFileWriter(io.BytesIO(), FileMeta((META,)), version=unknown)


def test_both_versions_hold_the_same(version: int) -> None:
    data = write_file(META, [random_tokens(META)], version=version)
    with TokenFile.open(io.BytesIO(data)) as file:
        assert (file.version, file.expected_size, file.meta) == (version, len(data), FileMeta((META,)))
        np.testing.assert_array_equal(file["a"].tokens(), random_tokens(META)[0])
    # Version 2: 11 bytes less before the header, one less for each of name, grid, modality and sizes.
    assert len(data) == {1: 211, 2: 211 - 11 - 4}[version]


def test_one_checksum_for_bytes_and_tokens(version: int, corrupt: Flip) -> None:
    """Chunks of the context coder in version 2 have no checksum of their bytes alone."""
    meta = layer_meta(width=80, height=80, chunk=20)
    tokens = np.random.default_rng(0).integers(0, 15360, (1, 20, 20), dtype=np.int32)
    tokens[0, 1:, ::2] = tokens[0, :1, ::2]  # every second column is of one token
    data = write_file(meta, [tokens], version=version, coders=(0, 2))
    start = prelude_size(data) + len(split(data)[0])
    with TokenFile.open(io.BytesIO(data)) as file:
        raw = file["a"].raw_chunk(0, 0, 0)
        assert raw.coder == 2 and len(raw.payload) == len(data) - start + (4 if version == 2 else 0)
        own = google_crc32c.value(tokens.astype("<u4").tobytes()).to_bytes(4, "little")
        assert raw.payload[-4:] == own
    for at in range(start, len(data)):
        damaged = io.BytesIO(corrupt(data, at))
        with TokenFile.open(damaged) as file:
            layer = file["a"]
            errors = ChunkChecksumError, UnknownCoderError  # the number of the tables is the first byte
            for call in (layer.tokens, layer.read, lambda one=layer: one.raw_chunk(0, 0, 0)):
                with pytest.raises(errors, match=r"layer 'a', time 0, chunk \(0, 0\)"):
                    call()
            assert not layer.intact().any()
        assert len(verify(damaged).problems) == 1
        with pytest.raises(ChunkError):
            stack([damaged], io.BytesIO())


def test_truncated_anywhere(small_file: bytes) -> None:
    for length in range(len(small_file)):
        with pytest.raises(TruncatedFileError):
            read(small_file[:length])
    with pytest.raises(TruncatedFileError, match="7 of"):
        read(small_file[:-7])


def test_trailing(small_file: bytes) -> None:
    with pytest.raises(TrailingDataError, match="3 bytes"):
        read(small_file + b"abc")


def test_header_checksum(small_file: bytes, corrupt: Flip) -> None:
    start = prelude_size(small_file)
    # Payload length (version 1), checksum, header.
    for at in range(13 if small_file[8] == 1 else start - 4, start + len(split(small_file)[0])):
        with pytest.raises(HeaderChecksumError, match="CRC32C"):
            read(corrupt(small_file, at))


def test_header_length_of_version_2() -> None:
    """Any other varint in its place: too long a header, one cut short, or no varint at all."""
    data = write_file(META, [random_tokens(META)], version=2)
    start = prelude_size(data)
    for length, error in [
        (varint(0), HeaderChecksumError),
        (varint(len(data) - start), HeaderChecksumError),
        (varint(len(data)), TruncatedFileError),
        (varint(2**32 - 1), TruncatedFileError),
        (varint(2**32), MetadataError),
        (b"\x80\x00", MetadataError),
        (b"\xff" * 10, MetadataError),
    ]:
        with pytest.raises(error):
            read(data[:9] + length + data[start - 4 :])


def test_chunk_checksum(small_file: bytes, corrupt: Flip) -> None:
    with pytest.raises(ChunkChecksumError, match=r"layer 'a', time 0, chunk \(1, 1\)"):
        read(corrupt(small_file, -1))


def test_unknown_mandatory_section(small_file: bytes, version: int) -> None:
    header, payload = split(small_file)
    with pytest.raises(UnknownSectionError, match="section 7"):
        read(seal(header + section(7, b"x", version), payload, version))


def test_unknown_optional_section(small_file: bytes, version: int) -> None:
    header, payload = split(small_file)
    unknown = section(6, b"x" * 20, version) + section(1000, b"", version)
    extended = seal(header + unknown, payload, version)
    np.testing.assert_array_equal(read(extended), read(small_file))


def test_header_cap(small_file: bytes) -> None:
    length = len(split(small_file)[0])
    assert read(small_file, max_header=length).shape == (7, 9)
    with pytest.raises(LimitExceededError, match="max_header"):
        read(small_file, max_header=length - 1)


META = layer_meta()
LAYER = section(3, bytes(section(1, b"\x10\x10") + section(3, b"\x03") + section(7, bytes(32))))


def index_of(payloads: list[tuple[int, bytes]]) -> bytes:
    """Return an index section with one run a chunk."""
    runs = b"".join(varint(tag << 1) for tag, _ in payloads)
    lengths = b"".join(varint(len(p)) for _, p in payloads if p)
    return section(
        5, runs + lengths + b"".join(struct.pack("<I", google_crc32c.value(p)) for _, p in payloads if p)
    )


def one_token(tag: int, payload: bytes) -> bytes:
    """Return a file of one token of the standard RGB layer."""
    return seal(LAYER + index_of([(tag, payload)]), payload)


def test_one_token_file_is_right() -> None:
    assert read(one_token(1, struct.pack("<H", 15359))).tolist() == [[15359]]


@pytest.mark.parametrize(
    ("tag", "payload", "error"),
    [
        (1, struct.pack("<H", 15360), TokenRangeError),
        (1, b"x", ChunkError),
        (3, zstandard.compress(bytes([0, 0, 0, 6, 0])), TokenRangeError),
        (3, b"xx", ChunkError),
        (1 + 2 * 99, b"xx", UnknownCoderError),
        (2, b"\x05xx", ChunkError),
        (2, b"\x80\x00xx", ChunkError),
        (2, b"\xff", ChunkError),
    ],
)
def test_bad_chunk(tag: int, payload: bytes, error: type[Exception]) -> None:
    data = one_token(tag, payload)
    with pytest.raises(error, match=r"layer 'S2RGB', time 0, chunk \(0, 0\)"):
        read(data)
    report = verify(io.BytesIO(data))
    assert [p.error for p in report.problems] == [error.__name__]
    with TokenFile.open(io.BytesIO(data)) as file:
        assert file["S2RGB"].tokens(salvage=True).tolist() == [[0]]
        assert not file["S2RGB"].intact().any()
        valid = file["S2RGB"].valid(salvage=True)
        assert valid is not None and not valid.any()


def test_bad_mask() -> None:
    data = one_token(2, b"\x03\x00xx" + struct.pack("<H", 5))
    with TokenFile.open(io.BytesIO(data)) as file:
        assert file["S2RGB"].tokens().tolist() == [[5]]
        with pytest.raises(ChunkError, match="mask"):
            file["S2RGB"].valid()
        assert not file["S2RGB"].intact().any()
    assert [p.error for p in verify(io.BytesIO(data)).problems] == ["ChunkError"]


@pytest.mark.parametrize(
    ("index", "why"),
    [
        (b"", "chunk tag needs 1"),
        (b"\x02", "at least 5 bytes"),
        (b"\x02\x02aaa", "at least 5"),
        (b"\x02\x00aaaa", "chunk length is 0"),
        (b"\x02\x02aaaax", "1 bytes too many"),
        (b"\x02\x03aaaa", "payload 2"),
        (b"\x03\x00\x01\x01aaaabbbb", "longer than the layer"),
        (b"\x00\x00", "too many"),
    ],
)
def test_bad_index(index: bytes, why: str) -> None:
    with pytest.raises(MetadataError, match=why):
        read(seal(LAYER + section(5, index), b"xx"))


@pytest.mark.parametrize(
    ("lengths", "why"),
    [
        ([[2**56 - 1]], f"the chunks have {2**56 - 1} bytes, the payload 0"),  # which is all that is wrong
        ([[2**56 - 1, 1]], f"the chunks have {2**56} bytes, the payload 0"),
        ([[2**56]], "more than 56 bits"),
        ([[2**56 - 1, 2]], "the sum is too large"),
        ([[2**56 - 1] * 300], "the sum is too large"),  # beyond 64 bits
        ([[2**55], [2**55]], f"the chunks have {2**56} bytes, the payload 0"),
        ([[2**55], [2**55 + 1]], f"the chunks have {2**56 + 1} bytes, more than {2**56}"),
    ],
)
def test_the_payload_has_at_most_2_to_the_56_bytes(lengths: list[list[int]], why: str) -> None:
    layers, indexes = b"", b""
    for number, each in enumerate(lengths):
        name, grid = section(2, bytes([65 + number])), section(1, varint(16 * 64 * len(each)) + b"\x10")
        layers += section(3, grid + name + section(3, b"\x03") + section(7, bytes(32)))
        run = b"\x02" if len(each) == 1 else b"\x03" + varint(len(each) - 2)
        indexes += section(5, run + b"".join(map(varint, each)) + bytes(4 * len(each)))
    with pytest.raises(MetadataError, match=why):
        read(seal(layers + indexes, b""))


def test_ids_of_coders_end_at_16383() -> None:
    last = 1 + 2 * 16383
    for tag in (last, last + 1):  # full and partial
        with pytest.raises(UnknownCoderError, match="16383"):
            read(one_token(tag, b"\x00xx"))
    for more in (0, 1):
        index = varint((last + 2) << 1 | more) + b"\x02aaaa"
        with pytest.raises(MetadataError, match=f"chunk tag is .*, more than the {2 * 32768 + 1} allowed"):
            read(seal(LAYER + section(5, index), b"xx"))


def test_split_run() -> None:
    two = section(
        3,
        bytes(
            section(1, b"\x20\x10") + section(3, b"\x03") + section(7, bytes(32)) + b"\x0b\x03\x10\x10\x01"
        ),
    )
    with pytest.raises(MetadataError, match="split"):
        read(seal(two + section(5, b"\x00\x00"), b""))
    assert read(seal(two + section(5, b"\x01\x00"), b"")).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"", "0 layers"),
        (LAYER, "0 chunk indexes"),
        (LAYER + LAYER + section(5, b"\x00") * 2, "same name"),
        (section(5, b"\x00") + LAYER, "order"),
        (section(2, b"") * 2 + LAYER + section(5, b"\x00"), "repeated"),
        (section(1, b"\x00\x01") * 2 + LAYER + section(5, b"\x00"), "twice"),
        (
            b"".join(section(1, b"\x00" + varint(i)) for i in range(1, 257)) + LAYER + section(5, b"\x00"),
            "256 CRSs",
        ),
        (b"\x81", "section id"),
        (b"\x81\x00\x00", "superfluous"),
        (LAYER + section(5, b"\x00") + b"\x06\x05x", "needs 5"),
    ],
)
def test_bad_header(header: bytes, why: str) -> None:
    with pytest.raises(MetadataError, match=why):
        read(seal(header, b""))


# --------------------------------------------------------------------------- bombs


def layer_section(width: int, height: int, *fields: bytes) -> bytes:
    grid = section(1, varint(width) + varint(height))
    return section(3, grid + section(3, b"\x03") + section(7, bytes(32)) + b"".join(fields))


SMALL_CHUNKS = section(11, b"\x10\x10\x01")


@pytest.mark.parametrize(
    "header",
    [
        # 2**38 chunks that claim to hold something
        layer_section(2**23, 2**23, SMALL_CHUNKS) + section(5, b"\x03" + varint(2**38 - 2) + bytes(100)),
        # more chunks than the format allows
        layer_section(2**31 - 1, 2**31 - 1, SMALL_CHUNKS) + section(5, b"\x00"),
        # a section longer than the header
        b"\x03" + varint(2**62) + b"x",
        # chunk lengths that overflow 64 bits when added up
        layer_section(1024 * 512, 1024)
        + section(5, b"\x03" + varint(510) + (varint(2**56 - 1)) * 512 + bytes(2048)),
    ],
)
def test_counts_are_checked_before_they_allocate(header: bytes) -> None:
    data = seal(header, b"")
    tracemalloc.start()
    try:
        with pytest.raises(MetadataError):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_huge_empty_layer_opens_and_is_capped() -> None:
    data = seal(layer_section(2**23, 2**23, SMALL_CHUNKS) + section(5, b"\x01" + varint(2**38 - 2)), b"")
    with TokenFile.open(io.BytesIO(data)) as file:
        layer = file["S2RGB"]
        assert layer.shape == (2**19, 2**19)
        assert layer.tokens((2**19 - 1, 5, 1, 1)).tolist() == [[0]]
        with pytest.raises(LimitExceededError, match="max_pixels"):
            layer.tokens()
    assert verify(io.BytesIO(data)).ok


def terachunk(side: int, *fields: bytes) -> bytes:
    """Return a file of chunks of one token, all empty."""
    header = layer_section(side, side, *fields)
    patch = 16 if SMALL_CHUNKS in fields else 1
    return seal(header + section(5, b"\x01" + varint((side // patch) ** 2 - 2)), b"")


ONE_PIXEL = section(11, b"\x01\x01\x01")


def test_empty_chunks_are_stacked_as_a_run() -> None:
    data, target = terachunk(2**23, SMALL_CHUNKS), io.BytesIO()
    tracemalloc.start()
    try:
        meta = stack([io.BytesIO(data)], target)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert meta.layers[0].chunks == 2**38
    assert len(target.getvalue()) <= len(data)
    with TokenFile.open(target) as file:
        assert file.meta == meta
        assert not file["S2RGB"].index.ordinals.size


def test_empty_chunks_are_read_as_a_run() -> None:
    """A byte a pixel for what comes back, and nothing for each of sixteen million chunks."""
    with TokenFile.open(io.BytesIO(terachunk(2**12, ONE_PIXEL))) as file:
        layer = file["S2RGB"]
        tracemalloc.start()
        try:
            for call, expected in ((layer.valid, False), (layer.empty, True), (layer.intact, True)):
                found = call()
                assert found is not None and bool((found == expected).all())
                assert tracemalloc.get_traced_memory()[1] < 2.5 * 2**24  # what is compared takes another byte
                del found
            assert layer.filled() == [] and list(layer.places()) == []
        finally:
            tracemalloc.stop()


def test_the_cap_counts_four_bytes_a_token() -> None:
    data = terachunk(2**5, ONE_PIXEL)
    with TokenFile.open(io.BytesIO(data), max_pixels=4095) as file:
        assert file["S2RGB"].valid() is not None  # 1024 pixels
        assert file["S2RGB"].tokens((0, 0, 32, 31)).shape == (31, 32)
        with pytest.raises(LimitExceededError, match="4096 bytes of tokens, more than max_pixels=4095"):
            file["S2RGB"].tokens()
        with pytest.raises(LimitExceededError, match="bytes of tokens"):
            file["S2RGB"].read()
    with TokenFile.open(io.BytesIO(data), max_pixels=4096) as file:
        assert file["S2RGB"].read().tokens.shape == (32, 32)


def test_lengths_in_the_prelude_allocate_nothing() -> None:
    for header_length, payload_length in [(2**32 - 1, 0), (10, 2**63), (2**32 - 1, 2**64 - 1)]:
        start = struct.pack("<8sBIQ", b"\x89TMC\r\n\x1a\n", 1, header_length, payload_length)
        with pytest.raises((TruncatedFileError, HeaderChecksumError)):
            read(start + bytes(40))
    with pytest.raises(TruncatedFileError, match=str(2**63 - 1)):
        data = LAYER + section(5, b"\x00")
        start = struct.pack("<8sBIQ", b"\x89TMC\r\n\x1a\n", 1, len(data), 2**63)
        read(start + struct.pack("<I", google_crc32c.value(start + data)) + data + b"x")


def test_mask_bomb() -> None:
    bomb = b"\x00" + zstandard.compress(bytes(2**26))
    data = one_token(2, varint(len(bomb)) + bomb + b"\x00\x00")
    with TokenFile.open(io.BytesIO(data)) as file, pytest.raises(ChunkError, match="declares"):
        file["S2RGB"].valid()


# --------------------------------------------------------------------------- salvage and verify


def test_verify_finds_the_chunk(small_file: bytes, corrupt: Flip) -> None:
    assert verify(io.BytesIO(small_file)).ok
    assert verify(io.BytesIO(small_file)).chunks == 4
    damaged = corrupt(small_file, prelude_size(small_file) + len(split(small_file)[0]))
    report = verify(io.BytesIO(damaged))
    assert not report.ok
    (problem,) = report.problems
    assert (problem.layer, problem.time, problem.chunk_row, problem.chunk_col) == ("a", 0, 0, 0)
    assert problem.error == "ChunkChecksumError"


def test_salvage(small_file: bytes, corrupt: Flip) -> None:
    with TokenFile.open(io.BytesIO(corrupt(small_file, -1))) as file:
        read_back = file["a"].read(salvage=True)
        with pytest.raises(ChunkChecksumError):
            file["a"].read()
        assert file["a"].tokens((0, 0, 5, 7)).shape == (7, 5)  # the damage is elsewhere
    expected = random_tokens(META)[0]
    expected[5:, 5:] = 0
    np.testing.assert_array_equal(read_back.tokens, expected)
    intact = np.ones((7, 9), bool)
    intact[5:, 5:] = False
    np.testing.assert_array_equal(read_back.intact, intact)
    assert read_back.valid is not None
    assert not read_back.valid[:, 20:, 20:].any()
    assert read_back.valid.sum() == 27 * 34 - 7 * 14


def test_salvage_of_a_cut_file(small_file: bytes) -> None:
    cut = io.BytesIO(small_file[:-1])
    with TokenFile.open(cut, salvage=True) as file:
        assert file["a"].intact().sum() == 7 * 9 - 2 * 4
        np.testing.assert_array_equal(file["a"].tokens(salvage=True)[:5], random_tokens(META)[0][:5])
    report = verify(cut)
    assert [p.error for p in report.problems] == ["TruncatedFileError"] * 2
    assert [p.error for p in verify(io.BytesIO(small_file + b"x")).problems] == ["TrailingDataError"]


def test_verify_raises_header_errors(small_file: bytes, corrupt: Flip) -> None:
    with pytest.raises(HeaderChecksumError):
        verify(io.BytesIO(corrupt(small_file, 30)))


# --------------------------------------------------------------------------- stack


def source(**changes: object) -> io.BytesIO:
    meta = layer_meta(**changes)
    return io.BytesIO(write_file(meta, [random_tokens(meta, len(repr(meta)))]))


PLACE = {"crs": "EPSG:32632", "transform": (10.0, 0.0, 1000.0, 0.0, -10.0, 2000.0)}


def test_stack_takes_any_iterable() -> None:
    target, same = io.BytesIO(), io.BytesIO()
    stack([source(name="a"), source(name="b")], target)
    stack((source(name=name) for name in "ab"), same)
    assert same.getvalue() == target.getvalue()


def test_stack_layers_and_times() -> None:
    late, early = datetime(2022, 1, 1), datetime(2020, 1, 1)
    sources = [
        source(**PLACE, times=(late,), tags={"same": "1", "other": "2"}),
        source(
            **(PLACE | {"name": "b", "width": 17, "height": 14, "transform": (20.0, 0, 1000, 0, -20.0, 2005)})
        ),
        source(**PLACE, times=(early, None), tags={"same": "1", "other": "3"}),
        source(name="c"),
    ]
    target = io.BytesIO()
    meta = stack(sources, target)
    with TokenFile.open(target) as file:
        assert file.meta == meta
        assert list(file) == ["a", "b", "c"]
        assert [t and t.year for t in file["a"].times] == [None, 2020, 2022]
        assert file["a"].tags == {"same": "1"}
        for (name, time), (number, old) in {
            ("a", 0): (2, 1), ("a", 1): (2, 0), ("a", 2): (0, 0), ("b", 0): (1, 0), ("c", 0): (3, 0),
        }.items():  # fmt: skip
            with TokenFile.open(sources[number]) as one:
                np.testing.assert_array_equal(file[name].tokens(time=time), one[name].tokens(time=old))
    assert verify(target).ok


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (({}, {}), "without an acquisition time"),
        (({"times": (datetime(2020, 1, 1),)},) * 2, "2020-01-01"),
        (({}, {"width": 33, "times": (datetime(2020, 1, 1),)}), "width differs, 34 and 33"),
        (({}, {"weights_sha256": bytes(32), "times": (datetime(2020, 1, 1),)}), "weights_sha256 differs"),
        ((PLACE, {**PLACE, "name": "b", "crs": "EPSG:4326"}), "different CRSs"),
        ((PLACE, {**PLACE, "name": "b", "transform": (10.0, 0.0, 1006.0, 0.0, -10.0, 2000.0)}), "footprints"),
    ],
)
def test_stack_refuses(changes: tuple[dict[str, object], dict[str, object]], why: str) -> None:
    with pytest.raises(StackError, match=why):
        stack([source(**c) for c in changes], io.BytesIO())


def test_stack_keeps_the_tags_that_all_sources_have() -> None:
    times = [(datetime(2020, month, 1),) for month in (1, 2, 3)]
    tags = [{"cloud": "90", "all": "1", "two": "2"}, {"all": "1"}, {"all": "1", "two": "2"}]
    sources = [source(times=when, tags=own) for when, own in zip(times, tags, strict=True)]
    assert stack(sources, io.BytesIO()).layers[0].tags == {"all": "1"}
    assert stack(sources[:1], io.BytesIO()).layers[0].tags == tags[0]


@pytest.mark.parametrize("other", [{}, {"TMCODEC_SCALE": "0.0001 0"}])
def test_stack_refuses_values_of_two_meanings(other: dict[str, str]) -> None:
    tags = {"TMCODEC_SCALE": "0.0001 -0.1"}
    dates = [{"times": (datetime(2020, month, 1),)} for month in (1, 2)]
    why = f"tags differ, 0.0001 -0.1 and {other.get('TMCODEC_SCALE', 'none')}; give both the same"
    with pytest.raises(StackError, match=why):
        stack([source(tags=tags, **dates[0]), source(tags=other, **dates[1])], io.BytesIO())
    same = [source(tags=tags, **date) for date in dates]
    assert stack(same, io.BytesIO()).layers[0].tags == tags


@pytest.mark.parametrize(
    ("marks", "merged"),
    [
        (((None, "nodata"), (0, "nodata")), (0, "nodata")),
        (((-1, "nodata"), (None, "nodata"), (-1, "nodata")), (-1, "nodata")),
        (((None, "nodata"), (None, "mask")), (None, "mask")),
        (((None, "mask"), (0, "nodata")), (0, "nodata")),
        (((None, "mask"), (None, "mask")), (None, "mask")),
        (((None, "mask"), (None, "nodata"), (7, "nodata")), (7, "nodata")),
    ],
)
def test_stack_takes_what_marks_invalid_pixels_from_the_dates_that_have_it(
    marks: tuple[tuple[int | None, str], ...], merged: tuple[int | None, str]
) -> None:
    for ordered in (marks, marks[::-1]):
        dates = [
            source(nodata=nodata, mask_kind=kind, times=(datetime(2020, month, 1),))
            for month, (nodata, kind) in enumerate(ordered, 1)
        ]
        layer = stack(dates, io.BytesIO()).layers[0]
        assert (layer.nodata, layer.mask_kind) == merged


@pytest.mark.parametrize(
    ("modality", "values", "why"),
    [
        ("S2L2A", (None, 0, 1), "0 and 1"),
        ("LULC", (None, 3), "3 and None"),  # grid squares of class 3 would be lost
        ("LULC", (0, None), "0 and None"),
    ],
)
def test_stack_refuses_nodata_that_differs(modality: str, values: tuple[int | None, ...], why: str) -> None:
    dates = [
        source(modality=modality, nodata=nodata, times=(datetime(2020, month, 1),))
        for month, nodata in enumerate(values, 1)
    ]
    with pytest.raises(StackError, match=f"nodata differs, {why}; encode both alike"):
        stack(dates, io.BytesIO())


def test_stack_names_the_files(tmp_path: Path) -> None:
    paths = [tmp_path / "one.tmc", tmp_path / "two.tmc"]
    when = (datetime(2020, 1, 1),)
    for path, changes in zip(paths, ({}, {"offset": 1000.0, "times": when}), strict=True):
        path.write_bytes(source(**changes).getvalue())
    with pytest.raises(StackError, match=r"one\.tmc and .*two\.tmc: layer 'a': offset differs, 0\.0 and"):
        stack(paths, tmp_path / "both.tmc")
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(StackError, match=r"one\.tmc and .*two\.tmc: .*a tag ACQUISITION_DATE"):
        stack(paths, tmp_path / "both.tmc")
    assert not (tmp_path / "both.tmc").exists()


def test_stack_of_nothing() -> None:
    with pytest.raises(StackError, match="nothing"):
        stack([], io.BytesIO())


def test_stack_does_not_copy_damage(small_file: bytes, corrupt: Flip) -> None:
    with pytest.raises(ChunkChecksumError):
        stack([io.BytesIO(corrupt(small_file, -1))], io.BytesIO())


def test_stack_keeps_nan_nodata() -> None:
    sources = [source(nodata=float("nan"), times=(datetime(2020, m, 1),)) for m in (2, 1)]
    (layer,) = stack(sources, io.BytesIO()).layers
    assert layer.times == layer_meta(times=(datetime(2020, 1, 1), datetime(2020, 2, 1))).times
    assert isinstance(layer.nodata, float) and math.isnan(layer.nodata)


def test_stack_takes_a_nodata_value_of_no_class() -> None:
    """Ten classes have the numbers 0 to 9."""
    dates = [
        source(modality="LULC", nodata=nodata, times=(datetime(2020, month, 1),))
        for month, nodata in enumerate((None, 10), 1)
    ]
    assert stack(dates, io.BytesIO()).layers[0].nodata == 10


@pytest.mark.parametrize("kept", ["crs", "transform"])
def test_stack_takes_layers_of_half_a_place_anywhere(kept: str) -> None:
    """A CRS without a transform, or the reverse, says nothing of the footprint."""
    other = {"crs": "EPSG:4326"} if kept == "crs" else {"transform": (1.0, 0.0, 7.0, 0.0, -1.0, 7.0)}
    layers = stack([source(**PLACE), source(name="b", **other)], io.BytesIO()).layers
    assert getattr(layers[1], kept) == other[kept]


def test_stack_never_replaces_a_source(tmp_path: Path) -> None:
    paths = [tmp_path / "one.tmc", tmp_path / "two.tmc"]
    for path, name in zip(paths, "ab", strict=True):
        path.write_bytes(source(name=name).getvalue())
    before = [path.read_bytes() for path in paths]
    for path in paths:
        with pytest.raises(TargetNameError, match=f"{path.name} is the source itself"):
            stack(paths, path, overwrite=True)
    with pytest.raises(TargetNameError, match=r"both\.tif: what is written is a token file; name it \.tmc"):
        stack(paths, tmp_path / "both.tif")
    assert [path.read_bytes() for path in paths] == before and len(list(tmp_path.iterdir())) == 2


def test_every_class_is_below_one_root() -> None:
    for error in (LineEndingError, MetadataError, TokenRangeError, StackError, LimitExceededError):
        assert issubclass(error, TokenFileError) and issubclass(error, TmcodecError)
        assert issubclass(error, ValueError)
    for error in (TruncatedFileError, TrailingDataError, HeaderChecksumError, ChunkChecksumError):
        assert issubclass(error, OSError)
