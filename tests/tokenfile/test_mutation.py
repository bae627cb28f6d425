"""Damaged files give a clean error or the right content, nothing else."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from tokenfile_helpers import layer_meta, random_tokens, seal, split, write_file

from tmcodec.errors import TmcodecError
from tmcodec.tokenfile import FileMeta, TokenFile

META = FileMeta(
    (
        layer_meta(width=30, height=22, crs="EPSG:4326", tags={"k": "v"}),
        layer_meta(name="b", width=9, height=9, levels=(3, 2), times=(None, None)),
    )
)
TOKENS = [random_tokens(layer) for layer in META.layers]
VALID = np.ones((1, 3, 22, 30), bool)
VALID[0, :2, 3:9, 4:7] = False


def original(version: int) -> bytes:
    return write_file(META, TOKENS, [VALID, None], version)


def contents(data: bytes) -> tuple[FileMeta, list[np.ndarray]]:
    """Read everything that a file holds."""
    with TokenFile.open(io.BytesIO(data), max_pixels=2**20) as file:
        arrays = []
        for layer in file.layers.values():
            for time in range(len(layer.meta.times)):
                read = layer.read(time=time)
                arrays += [read.tokens, np.ones(1) if read.valid is None else read.valid]
        return file.meta, arrays


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, insert, repeat or overwrite bytes."""
    at, count = rng.randrange(len(data)), rng.randint(1, 8)
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[at + count :]
    if kind == 2:
        return data[:at] + rng.randbytes(count) + data[at:]
    if kind == 3:
        return data[:at] + data[at : at + count] * 2 + data[at + count :]
    return data[:at] + rng.randbytes(count) + data[at + count :]


def is_right(found: tuple[FileMeta, list[np.ndarray]], expected: tuple[FileMeta, list[np.ndarray]]) -> bool:
    return found[0] == expected[0] and all(map(np.array_equal, found[1], expected[1]))


def test_any_damage_is_noticed(version: int) -> None:
    data = original(version)
    expected = contents(data)
    rng = random.Random(0)
    outcomes = {"error": 0, "right": 0}
    for _ in range(4000):
        damaged = mutate(data, rng)
        if rng.random() < 0.3:
            damaged = mutate(damaged, rng)
        try:
            found = contents(damaged)
        except TmcodecError:
            outcomes["error"] += 1
            continue
        assert is_right(found, expected), damaged.hex()
        outcomes["right"] += 1
    assert outcomes["error"] > 3900


@pytest.mark.parametrize("part", [0, 1])
def test_damage_with_right_checksums_never_crashes(part: int, version: int) -> None:
    """A hostile writer seals what it likes: only clean errors, or tokens inside the codebook."""
    data = original(version)
    rng = random.Random(part + 1)
    errors = 0
    for _ in range(2500):
        parts = list(split(data))
        parts[0] = mutate(parts[0], rng)
        if part:
            parts[0] = mutate(parts[0], rng)
        try:
            meta, arrays = contents(seal(*parts, version))
        except TmcodecError:
            errors += 1
            continue
        steps = [layer for layer in meta.layers for _ in layer.times]
        for layer, tokens in zip(steps, arrays[::2], strict=True):
            assert tokens.shape == (layer.rows, layer.cols)
            assert tokens.min() >= 0 and tokens.max() < layer.codebook_size
    assert 500 < errors <= 2500


def test_damaged_chunks_with_right_checksums_never_crash() -> None:
    import google_crc32c

    data = original(1)
    header, payload = split(data)
    with TokenFile.open(io.BytesIO(data)) as file:
        index = file.layers["a"].index
    rng = random.Random(7)
    errors = 0
    for _ in range(1500):
        row = rng.randrange(len(index.lengths))
        start, length = int(index.offsets[row]), int(index.lengths[row])
        chunk = bytearray(payload[start : start + length])
        for _ in range(rng.randint(1, 3)):
            chunk[rng.randrange(length)] = rng.randrange(256)
        old, new = (
            google_crc32c.value(bytes(c)).to_bytes(4, "little")
            for c in (payload[start : start + length], chunk)
        )
        assert header.count(old) == 1
        damaged = seal(header.replace(old, new), payload[:start] + bytes(chunk) + payload[start + length :])
        try:
            meta, arrays = contents(damaged)
        except TmcodecError:
            errors += 1
            continue
        assert meta == META
        assert all(a.min() >= 0 and a.max() < 15360 for a in arrays[::2])
    assert 0 < errors < 1500
