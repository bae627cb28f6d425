"""Validity masks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenfile_helpers import layer_meta, random_tokens, write_file

from tmcodec.errors import ChunkError
from tmcodec.tokenfile import FileMeta, TokenFile, TokenFileWriter, verify
from tmcodec.tokenfile.chunks import RawChunk, has_coded_mask
from tmcodec.tokenfile.context.backends import choose
from tmcodec.tokenfile.context.bits import Chance
from tmcodec.tokenfile.masks import is_coded, mask_pack, mask_unpack


@given(
    st.integers(1, 4),
    st.integers(1, 20),
    st.integers(1, 40),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_round_trip(bands: int, h: int, w: int, share: float, same: bool, seed: int) -> None:
    mask = np.random.default_rng(seed).random((bands, h, w)) < share
    if same:
        mask[:] = mask[:1]
    for coded in (True, False):
        block = mask_pack(mask, coded)
        back = mask_unpack(block, bands, (h, w))
        assert back.dtype == np.bool_
        assert len(back) == (1 if (mask == mask[:1]).all() else bands)
        np.testing.assert_array_equal(np.broadcast_to(back, mask.shape), mask)
        assert coded or not is_coded(block)


def test_by_hand() -> None:
    # Rows 10 pixels wide: 2 bytes each, first pixel highest, 6 bits of padding.
    mask = np.zeros((1, 2, 10), bool)
    mask[0, 0, [0, 9]] = mask[0, 1, 1] = True
    block = mask_pack(mask, coded=False)
    assert block[0] == 0
    assert zstandard.decompress(block[1:]) == bytes([0x80, 0x40, 0x40, 0x00])


def test_rows_xored_with_the_row_above() -> None:
    # Four different columns of bytes that repeat in every row: XOR leaves one row.
    row = np.random.default_rng(0).random(256) < 0.5
    block = mask_pack(np.broadcast_to(row, (1, 64, 256)).copy(), coded=False)
    packed = np.packbits(row).tobytes()
    filtered = zstandard.decompress(block[1:])
    assert (block[0], filtered) in [(0, packed * 64), (1, packed + bytes(32 * 63))]
    explicit = b"\x01" + zstandard.compress(packed + bytes(32 * 63))
    np.testing.assert_array_equal(mask_unpack(explicit, 1, (64, 256)), np.broadcast_to(row, (1, 64, 256)))


def test_staircase_takes_few_bytes() -> None:
    y, x = np.mgrid[:1024, :1024]
    assert len(mask_pack((x + y > 900)[None], coded=False)) < 2000


# --------------------------------------------------------------------------- in context


def clouds(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Return a mask of round holes, bool (1, h, w)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    holes = [
        np.hypot(y - a, x - b) < r for a, b, r in rng.uniform((0, 0, 3), (h, w, 25), (1 + h * w // 3000, 3))
    ]
    return ~np.any(holes, axis=0)[None]


@pytest.mark.parametrize("name", ["native", "numba", "python"])
def test_backends_give_the_same_bits(name: str) -> None:
    if name == "numba":
        pytest.importorskip("numba")
    backend, plain = choose(name), choose("python")
    rng = np.random.default_rng(1)
    for mask in (
        *(clouds(60, 90), np.ones((1, 5, 7)), np.zeros((1, 5, 7)), np.zeros((1, 1, 1)), np.ones((4, 1, 1))),
        *(rng.random((3, 20, 31)) < 0.4, rng.random((1, 1, 50)) < 0.5, rng.random((1, 50, 1)) < 0.5),
        rng.random((2, 40, 3)) < 0.02,
    ):
        bits = np.asarray(mask).astype(np.uint8)
        coded = backend.code_bits(bits.copy(), None)
        assert coded == plain.code_bits(bits.copy(), None)
        back = np.full_like(bits, 7)
        assert backend.code_bits(back, coded) == b""
        np.testing.assert_array_equal(back, bits)
        assert backend.code_bits(back, coded + b"\0") is None


def test_the_first_bits_by_hand() -> None:
    # One row: a chance of 1/2 that it is like the row of ones above (it is not), then 1/2 for its pixel, 0.
    # Of 2^48 - 1: the first half, and of that the first half. The shortest number there is 0, of no bytes.
    assert choose("python").code_bits(np.zeros((1, 1, 1), np.uint8), None) == b""
    # It is: the upper half, whose shortest number is one byte, 80.
    assert choose("python").code_bits(np.ones((1, 1, 1), np.uint8), None) == b"\x80"
    # Three rows like it: 1/2, then (2^23 + (2^24 - 2^23) * 26214 / 2^16) / 2^24 = 0.7 and, after
    # 0.3 * 18724 / 2^16, 0.7857: the upper 0.275, from 0.725 on; b9 / 256 = 0.7227 lies below, ba above.
    assert choose("python").code_bits(np.ones((1, 3, 1), np.uint8), None) == b"\xba"


def test_chances_are_learnt_by_the_formula() -> None:
    chance = Chance(1)
    expected = 0.5
    for n, bit in enumerate([1, 1, 0, 1, 0, 0, 0, 1] * 40):
        chance.learn(0, bit)
        expected += (bit - expected) * max(0.01, 1 / (min(n, 127) + 2.5))
        assert chance.chances[0] / 2**24 == pytest.approx(expected, abs=3e-4)
    assert sum(chance.weights(0)) == 65536
    for _ in range(3000):
        chance.learn(0, 1)
    assert chance.weights(0) == [1, 65535]


@pytest.mark.parametrize(("seed", "most"), [(0, 0.4), (1, 0.4)])
def test_clouds_take_fewer_bytes_in_context(seed: int, most: float) -> None:
    mask = clouds(400, 500, seed)
    block, plain = mask_pack(mask), mask_pack(mask, coded=False)
    assert is_coded(block)
    assert not is_coded(plain)
    assert len(block) < most * len(plain)
    np.testing.assert_array_equal(mask_unpack(block, 3, (400, 500)), mask)


def test_planes_that_differ_little_take_little_more() -> None:
    y, x = np.mgrid[:256, :300]
    edges = np.stack([x + 0.37 * y > 100 + shift for shift in (0, 0, 0, 2, 2)])
    block = mask_pack(edges)
    assert block[0] == 6
    np.testing.assert_array_equal(mask_unpack(block, 5, (256, 300)), edges)
    assert len(block) < 2.5 * len(mask_pack(edges[:1]))


@given(st.integers(0, 2**32 - 1), st.integers(0, 300), st.integers(0, 255))
@settings(max_examples=60)
def test_damaged_bits_are_refused_or_another_mask(seed: int, at: int, byte: int) -> None:
    block = bytearray(mask_pack(clouds(50, 70, seed)))
    block[1 + at % (len(block) - 1)] = byte
    try:
        found = mask_unpack(bytes(block), 1, (50, 70))
    except ChunkError as error:
        assert "in context" in str(error)
    else:
        assert found.shape == (1, 50, 70)
        assert found.dtype == np.bool_


@pytest.mark.parametrize(("h", "w", "bands"), [(96, 130, 1), (97, 131, 1), (1, 1, 1), (2, 7, 1), (31, 40, 3)])
def test_masks_of_twice_the_pixel_are_halved(h: int, w: int, bands: int) -> None:
    half = np.concatenate([clouds((h + 1) // 2, (w + 1) // 2, seed) for seed in range(bands)])
    half[:, -1, -1] = False
    mask = np.kron(half, np.ones((1, 2, 2), np.bool_))[:, :h, :w]
    block = mask_pack(mask)
    assert block[0] == (12 if bands == 1 else 14)
    assert block[1:] == mask_pack(half)[1:] or min(h, w) < 30  # the same bits
    np.testing.assert_array_equal(mask_unpack(block, 4 if bands == 1 else bands, (h, w)), mask)
    if h > 10:
        mask[0, h // 2, w // 2] = not mask[0, h // 2, w // 2]
        odd = mask_pack(mask)
        assert odd[0] & 8 == 0
        assert len(odd) > len(block)


def test_large_masks_are_not_coded_in_context(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = clouds(60, 70)
    block = mask_pack(mask)
    assert is_coded(block)
    assert block[0] == 4
    monkeypatch.setattr("tmcodec.tokenfile.masks.MAX_CODED", 60 * 70 - 1)
    assert not is_coded(mask_pack(mask))
    with pytest.raises(ChunkError, match="4200 values in context, more than 4199"):
        mask_unpack(block, 1, (60, 70))


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"", "no bytes"),
        (b"\x05" + zstandard.compress(bytes(2)), "flags 5"),
        (b"\x08" + zstandard.compress(bytes(2)), "flags 8"),
        (b"\x0d" + zstandard.compress(bytes(2)), "flags 13"),
        (b"\x10" + zstandard.compress(bytes(2)), "flags 16"),
        (b"\x0c" + zstandard.compress(bytes(2)), "in context are damaged"),
        (b"\x06" + zstandard.compress(bytes(2)), "flags 6"),
        (b"\x04" + zstandard.compress(bytes(2)), "in context are damaged"),
        (b"\x02" + zstandard.compress(bytes(2)), "flags 2"),
        (b"\x00" + zstandard.compress(bytes(3)), "declares 3 bytes where 2"),
        (b"\x00" + zstandard.compress(bytes(2**26)), "declares"),
        (b"\x00" + zstandard.compress(b"\x00\x01"), "padding"),
        (b"\x00garbage", "zstandard"),
    ],
)
def test_rejects(block: bytes, why: str) -> None:
    with pytest.raises(ChunkError, match=why):
        mask_unpack(block, 1, (2, 5))


# --------------------------------------------------------------------------- versions


def masked_file(version: int, coders: tuple[int, ...] | None = None) -> tuple[bytes, np.ndarray]:
    """Return a file of one chunk with holes, and its mask."""
    meta = layer_meta(patch=16, tile=64, chunk=16, width=250, height=240)
    mask = clouds(240, 250, 7)[None]
    return write_file(meta, [random_tokens(meta)], [mask], version, coders), mask[0]


def raw_of(data: bytes) -> RawChunk:
    with TokenFile.open(io.BytesIO(data)) as file:
        return file["a"].raw_chunk(0, 0, 0)


def test_version_1_and_other_coders_have_no_bits_in_context() -> None:
    cases = ((2, None, True), (2, (0, 1, 2), True), (2, (0, 1), False), (1, None, False))
    for version, coders, coded in cases:
        data, mask = masked_file(version, coders)
        assert has_coded_mask(raw_of(data)) == coded
        with TokenFile.open(io.BytesIO(data)) as file:
            np.testing.assert_array_equal(file["a"].valid(), mask)


def test_chunks_of_version_2_become_chunks_of_version_1() -> None:
    data, mask = masked_file(2)
    raw, out = raw_of(data), io.BytesIO()
    with TokenFile.open(io.BytesIO(data)) as file:
        tokens, meta = file["a"].tokens(), file.meta
    with TokenFileWriter(out, meta, version=1) as writer:
        writer.write_raw_chunk(0, 0, 0, 0, raw)
    assert not has_coded_mask(raw_of(out.getvalue()))
    with TokenFile.open(io.BytesIO(out.getvalue())) as file:
        assert file.version == 1
        np.testing.assert_array_equal(file["a"].valid(), mask)
        np.testing.assert_array_equal(file["a"].tokens(), tokens)
    assert len(out.getvalue()) > len(data)


def test_large_masks_of_twice_the_pixel_become_those_of_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halved, a mask may have four times as many pixels as bits in context."""
    meta = layer_meta(patch=16, tile=64, chunk=16, width=250, height=240)
    mask = clouds(120, 125, 7).repeat(2, axis=1).repeat(2, axis=2)
    for module in ("masks", "chunks"):
        monkeypatch.setattr(f"tmcodec.tokenfile.{module}.MAX_CODED", 120 * 125)
    raw, out = raw_of(write_file(meta, [random_tokens(meta)], [mask[None]])), io.BytesIO()
    assert has_coded_mask(raw)
    with TokenFileWriter(out, FileMeta((meta,)), version=1) as writer:
        writer.write_raw_chunk(0, 0, 0, 0, raw)
    with TokenFile.open(out) as file:
        np.testing.assert_array_equal(file["a"].valid(), mask)


def test_bits_in_context_are_refused_in_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmcodec.tokenfile.writer.plain_mask", lambda layer, raw, row, col: raw)
    data, _ = masked_file(2)
    raw, out = raw_of(data), io.BytesIO()
    with TokenFile.open(io.BytesIO(data)) as file:
        meta = file.meta
    with TokenFileWriter(out, meta, version=1) as writer:
        writer.write_raw_chunk(0, 0, 0, 0, raw)
    with TokenFile.open(out) as file:
        with pytest.raises(ChunkError, match=r"layer 'a', time 0, chunk \(0, 0\): mask: .* not .* version 1"):
            file["a"].tokens()
        found = verify(io.BytesIO(out.getvalue()))
    assert not found.ok
