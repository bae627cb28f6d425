"""Fixtures of the token-file tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenfile_helpers import layer_meta, random_tokens, write_file


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    """Both versions of the format."""
    return int(request.param)


@pytest.fixture
def small_file(version: int) -> bytes:
    """One layer of random tokens."""
    meta = layer_meta()
    return write_file(meta, [random_tokens(meta)], version=version)


@pytest.fixture
def corrupt() -> Callable[[bytes, int], bytes]:
    """Return a function that flips all bits of one byte (negative: from the end)."""

    def flip(data: bytes, at: int) -> bytes:
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        return bytes(damaged)

    return flip
