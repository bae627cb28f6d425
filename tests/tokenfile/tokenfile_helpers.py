"""Shared pieces of the token-file tests."""

from __future__ import annotations

import io
import struct
from typing import Any

import google_crc32c
import numpy as np

from tmcodec.tokenfile import FileMeta, LayerMeta, TokenFileWriter

MAGIC = b"\x89TMC\r\n\x1a\n"


def layer_meta(**changes: Any) -> LayerMeta:
    """Return metadata of a small layer: 3 bands, 4-pixel patches, 5-token chunks, 7 x 9 tokens."""
    values: dict[str, Any] = {
        "name": "a", "modality": "S2RGB", "tokenizer": "mini-s2rgb-v1", "weights_sha256": bytes(range(32)),
        "levels": (8, 8, 8, 6, 5), "patch": 4, "tile": 32, "chunk": 5, "width": 34, "height": 27,
        "dtype": "uint8", "bands": ("B04", "B03", "B02"), "units": "1",
    }  # fmt: skip
    return LayerMeta(**(values | changes))


def random_tokens(meta: LayerMeta, seed: int = 0) -> np.ndarray:
    """Return uniform tokens: int32 (times, rows, cols)."""
    shape = (len(meta.times), meta.rows, meta.cols)
    return np.random.default_rng(seed).integers(0, meta.codebook_size, shape, dtype=np.int32)


def write_file(
    meta: LayerMeta | FileMeta,
    tokens: list[np.ndarray],
    valid: list[np.ndarray | None] | None = None,
    version: int = 2,
    coders: tuple[int, ...] | None = None,
) -> bytes:
    """Write whole layers, tokens (times, rows, cols) and masks (times, planes, height, width)."""
    file_meta = meta if isinstance(meta, FileMeta) else FileMeta((meta,))
    file = io.BytesIO()
    with TokenFileWriter(file, file_meta, coders=coders, version=version) as writer:
        for number, layer in enumerate(file_meta.layers):
            side = layer.chunk * layer.patch
            mask = valid[number] if valid else None
            for time, row, col in np.ndindex(len(layer.times), layer.grid.chunk_rows, layer.grid.chunk_cols):
                part = tokens[number][time, row * layer.chunk :, col * layer.chunk :][
                    : layer.chunk, : layer.chunk
                ]
                cut = None if mask is None else mask[time, :, row * side :, col * side :][:, :side, :side]
                writer.write_chunk(number, time, row, col, part, cut)
    return file.getvalue()


def seal(header: bytes, payload: bytes, version: int = 1) -> bytes:
    """Put a prelude with a right checksum before any header."""
    start = MAGIC + bytes([version])
    start += varint(len(header)) if version == 2 else struct.pack("<IQ", len(header), len(payload))
    return start + struct.pack("<I", google_crc32c.value(start + header)) + header + payload


def prelude_size(data: bytes) -> int:
    """Return the bytes before the header of a file of version 1 or 2."""
    return 25 if data[8] == 1 else next(i for i in range(9, 14) if data[i] < 128) + 5


def split(data: bytes) -> tuple[bytes, bytes]:
    """Return (header, payload) of a file."""
    start = prelude_size(data)
    if data[8] == 1:
        (length,) = struct.unpack_from("<I", data, 9)
    else:
        length = sum((byte & 127) << 7 * i for i, byte in enumerate(data[9 : start - 4]))
    return data[start : start + length], data[start + length :]


def varint(value: int) -> bytes:
    """Pack LEB128, written a second time so that tests do not lean on the code they test."""
    out = []
    while True:
        value, low = divmod(value, 128)
        out.append(low + (128 if value else 0))
        if not value:
            return bytes(out)


def section(number: int, payload: bytes, version: int = 1) -> bytes:
    """Pack a section."""
    if version == 1:
        return varint(number) + varint(len(payload)) + payload
    first = bytes([(number if number < 32 else 0) * 8 + min(len(payload), 7)])
    more = (b"" if number < 32 else varint(number)) + (b"" if len(payload) < 7 else varint(len(payload) - 7))
    return first + more + payload


class CountingFile(io.BytesIO):
    """A file that notes every read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, count: int | None = -1) -> bytes:  # type: ignore[override]
        at = self.tell()
        data = super().read(count)
        self.reads.append((at, len(data)))
        return data
