"""Chunk coders: hand-computed bytes, bounds, damage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.errors import ChunkError, TokenRangeError, UnknownCoderError
from tmcodec.tokenfile import Coder, coders, get_coder, register_coder, unregister_coder
from tmcodec.tokenfile.coders import (
    decode_tokens,
    digits_to_tokens,
    encode_tokens,
    planes_decode,
    planes_encode,
    radix_decode,
    radix_encode,
    radix_size,
    tokens_to_digits,
)

IMAGE = (8, 8, 8, 6, 5)


def tokens(rows: int, cols: int, codes: int = 15360, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, codes, (rows, cols), dtype=np.int32)


levels = (
    st.lists(st.integers(2, 256), min_size=1, max_size=6).map(tuple).filter(lambda v: math.prod(v) < 2**31)
)


@st.composite
def chunks(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    chosen = draw(levels)
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    top = draw(st.sampled_from([1, math.prod(chosen)]))
    return tokens(*shape, top, draw(st.integers(0, 99))) + (math.prod(chosen) - top), chosen


@pytest.mark.parametrize("coder", coders()[:3], ids=lambda c: c.name)
@given(chunk=chunks())
@settings(max_examples=40)
def test_round_trip(coder: Coder, chunk: tuple[np.ndarray, tuple[int, ...]]) -> None:
    array, chosen = chunk
    data = coder.encode(array, chosen)
    assert data is not None
    back = coder.decode(data, array.shape, chosen)
    assert back.dtype == np.int32
    np.testing.assert_array_equal(back, array)


def test_radix_by_hand() -> None:
    # K = 6: 5 + 0*6 + 1*36 + 2*216 = 473 = 0x1d9; 6**4 = 1296 needs 11 bits.
    array = np.array([[5, 0], [1, 2]], np.int32)
    assert radix_encode(array, (3, 2)) == bytes.fromhex("d901")
    assert radix_decode(bytes.fromhex("d901"), (2, 2), (3, 2)).tolist() == [[5, 0], [1, 2]]


@given(chunk=chunks())
@settings(max_examples=30)
def test_radix_is_one_integer(chunk: tuple[np.ndarray, tuple[int, ...]]) -> None:
    array, chosen = chunk
    value = 0
    for token in reversed(array.ravel().tolist()):
        value = value * math.prod(chosen) + token
    assert int.from_bytes(radix_encode(array, chosen), "little") == value


@pytest.mark.parametrize("count", [1, 2, 63, 255, 256, 4095, 4096])
def test_radix_size_is_minimal(count: int) -> None:
    size = radix_size(count, IMAGE)
    assert 256 ** (size - 1) < 15360**count <= 256**size


def test_size_bound() -> None:
    data = encode_tokens(tokens(64, 64), IMAGE)[1]
    assert len(data) * 8 / 4096 <= 13.91


def test_radix_rejects_token_outside() -> None:
    with pytest.raises(TokenRangeError):
        radix_decode((6**4).to_bytes(2, "little"), (2, 2), (3, 2))
    assert radix_decode((6**4 - 1).to_bytes(2, "little"), (2, 2), (3, 2)).tolist() == [[5, 5], [5, 5]]


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x00\x00"])
def test_radix_rejects_length(data: bytes) -> None:
    with pytest.raises(ChunkError, match="take 2 bytes"):
        radix_decode(data, (2, 2), (3, 2))


def test_digits_by_hand() -> None:
    # 5407 = 7 + 8*3 + 64*4 + 512*4 + 3072*1: digits 7, 3, 4, 4, 1.
    digits = tokens_to_digits(np.array([[5407]], np.int32), IMAGE)
    assert digits.ravel().tolist() == [7, 3, 4, 4, 1]
    assert digits_to_tokens(digits, IMAGE).tolist() == [[5407]]


def test_planes_are_digit_planes() -> None:
    array = tokens(3, 4)
    raw = zstandard.decompress(planes_encode(array, IMAGE))
    expected = [t // b % n for b, n in zip((1, 8, 64, 512, 3072), IMAGE, strict=True) for t in array.ravel()]
    assert list(raw) == expected


def frame(raw: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(raw)


def test_planes_reject_digit_outside() -> None:
    with pytest.raises(TokenRangeError, match="digit 6"):
        planes_decode(frame(bytes([0, 0, 0, 6, 0])), (1, 1), IMAGE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no frame at all",
        frame(bytes(4)),
        frame(bytes(6)),
        frame(bytes(5), write_content_size=False),
        frame(bytes(5)) + b"\x00",
        frame(bytes(5)) + frame(bytes(5)),
        frame(bytes(5))[:-1],
        frame(bytes(2**30 // 8)),  # a bomb of 128 MiB in 12 KiB
    ],
    ids=["empty", "garbage", "short", "long", "no size", "trailing", "two frames", "cut", "bomb"],
)
def test_planes_reject(data: bytes) -> None:
    with pytest.raises(ChunkError, match="digit planes"):
        planes_decode(data, (1, 1), IMAGE)


def test_planes_reject_lying_size() -> None:
    # The frame header says 5 bytes (single segment, one size byte), the block holds 2**17.
    lying = bytearray(frame(bytes(2**17)))
    assert zstandard.frame_content_size(bytes(lying)) == 2**17
    block = bytes(lying[zstandard.frame_header_size(bytes(lying)) :])
    with pytest.raises(ChunkError, match="digit planes"):
        planes_decode(b"\x28\xb5\x2f\xfd\x20\x05" + block, (1, 1), IMAGE)


def test_smallest_wins() -> None:
    assert encode_tokens(tokens(64, 64), IMAGE)[0] == 0
    assert encode_tokens(np.zeros((64, 64), np.int32), IMAGE)[0] == 1


def test_unknown_coder() -> None:
    with pytest.raises(UnknownCoderError, match="coder 77"):
        decode_tokens(77, b"", (1, 1), IMAGE)


def test_register_coder() -> None:
    best = Coder(
        200, "nothing", lambda t, _: b"!" if not t.any() else None, lambda _, s, __: np.zeros(s, np.int32)
    )
    try:
        assert register_coder(best) is best
        assert get_coder(200) is best
        assert encode_tokens(np.zeros((2, 2), np.int32), IMAGE) == (200, b"!")
        assert encode_tokens(np.ones((2, 2), np.int32), IMAGE)[0] == 0
        with pytest.raises(ValueError, match="taken by 'nothing'"):
            register_coder(Coder(200, "other", radix_encode, radix_decode))
    finally:
        unregister_coder(200)
    assert best not in coders()


@pytest.mark.parametrize("number", [-1, 2**14])
def test_register_range(number: int) -> None:
    with pytest.raises(ValueError, match="not in 0"):
        register_coder(Coder(number, "x", radix_encode, radix_decode))


def test_format_coders_stay() -> None:
    with pytest.raises(ValueError, match="belongs to the format"):
        unregister_coder(0)
