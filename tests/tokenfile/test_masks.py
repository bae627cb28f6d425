"""Validity masks."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.errors import ChunkError
from tmcodec.tokenfile.masks import mask_pack, mask_unpack


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
    back = mask_unpack(mask_pack(mask), bands, (h, w))
    assert back.dtype == np.bool_
    assert len(back) == (1 if (mask == mask[:1]).all() else bands)
    np.testing.assert_array_equal(np.broadcast_to(back, mask.shape), mask)


def test_by_hand() -> None:
    # Rows 10 pixels wide: 2 bytes each, first pixel highest, 6 bits of padding.
    mask = np.zeros((1, 2, 10), bool)
    mask[0, 0, [0, 9]] = mask[0, 1, 1] = True
    block = mask_pack(mask)
    assert block[0] == 0
    assert zstandard.decompress(block[1:]) == bytes([0x80, 0x40, 0x40, 0x00])


def test_rows_xored_with_the_row_above() -> None:
    # Four different columns of bytes that repeat in every row: XOR leaves one row.
    row = np.random.default_rng(0).random(256) < 0.5
    block = mask_pack(np.broadcast_to(row, (1, 64, 256)).copy())
    packed = np.packbits(row).tobytes()
    filtered = zstandard.decompress(block[1:])
    assert (block[0], filtered) in [(0, packed * 64), (1, packed + bytes(32 * 63))]
    explicit = b"\x01" + zstandard.compress(packed + bytes(32 * 63))
    np.testing.assert_array_equal(mask_unpack(explicit, 1, (64, 256)), np.broadcast_to(row, (1, 64, 256)))


def test_staircase_takes_few_bytes() -> None:
    y, x = np.mgrid[:1024, :1024]
    assert len(mask_pack((x + y > 900)[None])) < 2000


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"", "no bytes"),
        (b"\x04" + zstandard.compress(bytes(2)), "flags 4"),
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
