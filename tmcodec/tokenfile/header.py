"""Prelude, header and chunk index: everything before the payload."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import (
    HeaderChecksumError,
    LimitExceededError,
    LineEndingError,
    MetadataError,
    NotATokenFileError,
    TruncatedFileError,
    UnsupportedVersionError,
)
from tmcodec.tokenfile.binary import Cursor, crc32c, pack_varint
from tmcodec.tokenfile.chunks import EMPTY, MAX_TAG
from tmcodec.tokenfile.fields import pack_layer, pack_tags, unpack_layer, unpack_tags
from tmcodec.tokenfile.metadata import MAX_CRS_COUNT, FileMeta, LayerMeta
from tmcodec.tokenfile.sections import pack_crs, pack_section, unpack_crs, unpack_sections

MAGIC = b"\x89TMC\r\n\x1a\n"
VERSION = 1
PRELUDE_SIZE = 25
_PRELUDE = struct.Struct("<8sBIQ")  # then the CRC32C of these bytes and of the header, u32
MAX_HEADER = 64 * 2**20
"""Default cap on the length of a header."""
MAX_PAYLOAD = 2**56

SECTION_CRS, SECTION_TAGS, SECTION_LAYER, SECTION_INDEX = 1, 2, 3, 5


# --------------------------------------------------------------------------- prelude


@dataclass(frozen=True)
class Prelude:
    """The first 25 bytes of a file."""

    header_length: int
    payload_length: int
    crc: int

    @property
    def payload_offset(self) -> int:
        """Where the payload begins."""
        return PRELUDE_SIZE + self.header_length

    @property
    def file_size(self) -> int:
        """How long the file must be."""
        return self.payload_offset + self.payload_length


def pack_prelude(header: bytes, payload_length: int) -> bytes:
    """Pack the prelude of a file with that header."""
    start = _PRELUDE.pack(MAGIC, VERSION, len(header), payload_length)
    return start + struct.pack("<I", crc32c(start + header))


def unpack_prelude(head: bytes, size: int, max_header: int) -> Prelude:
    """Invert `pack_prelude`, as far as it can be checked without the header.

    Parameters
    ----------
    head
        The first bytes of the file.
    size
        Length of the file.
    max_header
        Longest header that the caller accepts.

    Raises
    ------
    NotATokenFileError, LineEndingError, UnsupportedVersionError, TruncatedFileError,
    LimitExceededError, MetadataError
    """
    _check_magic(head)
    if len(head) > 8 and head[8] != VERSION:
        raise UnsupportedVersionError(
            f"format version {head[8]}; this tmcodec reads version {VERSION}, a newer one may read it"
        )
    if len(head) < PRELUDE_SIZE:
        raise TruncatedFileError(f"the file has {size} bytes, at least {PRELUDE_SIZE - size} are missing")
    _, _, header_length, payload_length = _PRELUDE.unpack_from(head)
    (crc,) = struct.unpack_from("<I", head, _PRELUDE.size)
    prelude = Prelude(header_length, payload_length, crc)
    if prelude.payload_offset > size:
        raise TruncatedFileError(
            f"the file ends within its header; {prelude.file_size - size} of {prelude.file_size} bytes"
            " are missing"
        )
    if header_length > max_header:
        raise LimitExceededError(
            f"the header has {header_length} bytes, more than max_header={max_header};"
            " pass a higher max_header if you trust the file"
        )
    return prelude


def check_header(head: bytes, prelude: Prelude) -> bytes:
    """Return the header out of `head` = prelude + header, its checksum checked.

    Raises
    ------
    HeaderChecksumError
    """
    header = head[PRELUDE_SIZE : prelude.payload_offset]
    computed = crc32c(head[: _PRELUDE.size] + header)
    if computed != prelude.crc:
        raise HeaderChecksumError(f"the header is damaged: CRC32C {computed:08x}, stored {prelude.crc:08x}")
    return header


def _check_magic(head: bytes) -> None:
    """Tell a token file from a damaged one and from anything else."""
    if head[:8] == MAGIC:
        return
    if len(head) < 8 and MAGIC.startswith(head):
        raise TruncatedFileError(
            f"the file has {len(head)} bytes, at least {PRELUDE_SIZE - len(head)} are missing"
        )
    # 0x89 turns into 0x09 where the eighth bit is cut off, into C2 89 or EF BF BD by UTF-8.
    for lead in (b"\x89", b"\x09", b"\xc2\x89", b"\xef\xbf\xbd"):
        after = head.removeprefix(lead)
        if head.startswith(lead + b"TMC") and after[3:4] in (b"\r", b"\n"):
            raise LineEndingError("a text-mode transfer has rewritten this token file; transfer it as binary")
    raise NotATokenFileError(f"not a token file: it begins with {head[:8].hex(' ') or 'nothing'}")


# --------------------------------------------------------------------------- chunk index


@dataclass(frozen=True)
class ChunkIndex:
    """Where the chunks of one layer lie. Empty chunks are not listed.

    Attributes
    ----------
    ordinals
        int64 (n,), ascending: place of each chunk in (time, chunk row, chunk col) order.
    tags
        int32 (n,): coder and state, see `tmcodec.tokenfile.chunks.RawChunk`.
    offsets, lengths
        int64 (n,): place in the payload, in bytes.
    crcs
        uint32 (n,): CRC32C of the chunk's payload.
    """

    ordinals: NDArray[np.int64]
    tags: NDArray[np.int32]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    crcs: NDArray[np.uint32]

    def find(self, ordinal: int) -> int | None:
        """Return the row of that chunk, or None where it is empty."""
        row = int(np.searchsorted(self.ordinals, ordinal))
        return row if row < len(self.ordinals) and self.ordinals[row] == ordinal else None


def pack_index(tags: Sequence[int], lengths: Sequence[int], crcs: Sequence[int]) -> bytes:
    """Pack the index of a layer: runs of tags, lengths of the chunks that are not empty, their CRCs.

    Parameters
    ----------
    tags
        One for every chunk of the layer.
    lengths, crcs
        One for every chunk whose tag is not 0.
    """
    runs = b"".join(_pack_run(tag, sum(1 for _ in run)) for tag, run in groupby(tags))
    return runs + b"".join(map(pack_varint, lengths)) + np.array(crcs, "<u4").tobytes()


def _pack_run(tag: int, count: int) -> bytes:
    """Pack a run of equal tags: tag << 1 | more, and count - 2 where it is more than one."""
    if count == 1:
        return pack_varint(tag << 1)
    return pack_varint(tag << 1 | 1) + pack_varint(count - 2)


def unpack_index(cursor: Cursor, chunks: int, offset: int) -> ChunkIndex:
    """Invert `pack_index`.

    Parameters
    ----------
    cursor
        On the index of the layer, to its end.
    chunks
        Number of chunks of the layer.
    offset
        Where its first chunk lies in the payload.

    Raises
    ------
    MetadataError
    """
    runs = _unpack_runs(cursor, chunks)
    filled = [(start, count, tag) for start, count, tag in runs if tag != EMPTY]
    total = sum(count for _, count, _ in filled)
    if total * 5 > cursor.left:  # a length and a CRC each, at least; before anything is allocated
        raise cursor.fail(f"{total} chunks need at least {total * 5} bytes and {cursor.left} are left")
    counts = [count for _, count, _ in filled]
    ordinals = [np.arange(start, start + count, dtype=np.int64) for start, count, _ in filled]
    lengths = cursor.varints(total, "chunk length")
    crcs = np.frombuffer(cursor.take(4 * total, "chunk checksum"), "<u4").astype(np.uint32)
    cursor.end()
    if total and (int(lengths.min()) == 0 or sum(lengths.tolist()) > MAX_PAYLOAD):
        raise cursor.fail("a chunk length is 0 or the sum is too large")
    return ChunkIndex(
        np.concatenate([np.zeros(0, np.int64), *ordinals]),
        np.repeat(np.array([tag for _, _, tag in filled], np.int32), counts),
        offset + np.cumsum(lengths) - lengths,
        lengths,
        crcs,
    )


def _unpack_runs(cursor: Cursor, chunks: int) -> list[tuple[int, int, int]]:
    """Return (first ordinal, count, tag) of every run; together they have `chunks` chunks."""
    runs: list[tuple[int, int, int]] = []
    start, last = 0, -1
    while start < chunks:
        code = cursor.varint("chunk tag", MAX_TAG << 1 | 1)
        tag = code >> 1
        count = cursor.varint("chunk run", chunks) + 2 if code & 1 else 1
        if tag == last or start + count > chunks:
            raise cursor.fail("a run of chunks is split or longer than the layer")
        runs.append((start, count, tag))
        start, last = start + count, tag
    return runs


# --------------------------------------------------------------------------- header


def pack_header(meta: FileMeta, indexes: Sequence[bytes]) -> bytes:
    """Pack the sections of the header; `indexes` are those of the layers, as from `pack_index`."""
    crs = list(dict.fromkeys(layer.crs for layer in meta.layers if layer.crs is not None))
    if len(crs) > MAX_CRS_COUNT:
        raise MetadataError(f"layers: {len(crs)} different CRSs, more than {MAX_CRS_COUNT}")
    parts = [pack_section(SECTION_CRS, pack_crs(text)) for text in crs]
    if meta.tags:
        parts.append(pack_section(SECTION_TAGS, pack_tags(meta.tags)))
    parts += [pack_section(SECTION_LAYER, pack_layer(layer, crs)) for layer in meta.layers]
    parts += [pack_section(SECTION_INDEX, index) for index in indexes]
    return b"".join(parts)


def unpack_header(header: bytes, payload_length: int) -> tuple[FileMeta, list[ChunkIndex]]:
    """Invert `pack_header`.

    Raises
    ------
    MetadataError, UnknownSectionError
    """
    known = (SECTION_CRS, SECTION_TAGS, SECTION_LAYER, SECTION_INDEX)
    sections = unpack_sections(Cursor(header, "header"), known, (SECTION_CRS, SECTION_LAYER, SECTION_INDEX))
    found = {section: [data for s, data in sections if s == section] for section in known}
    if len(found[SECTION_CRS]) > MAX_CRS_COUNT:
        raise MetadataError(f"header: {len(found[SECTION_CRS])} CRSs, more than {MAX_CRS_COUNT}")
    crs = [unpack_crs(data) for data in found[SECTION_CRS]]
    if len(set(crs)) != len(crs):
        raise MetadataError("header: a CRS is stored twice")
    layers = tuple(unpack_layer(data, crs, f"layer {i}") for i, data in enumerate(found[SECTION_LAYER]))
    tags = unpack_tags(Cursor(found[SECTION_TAGS][0], "tags")) if found[SECTION_TAGS] else {}
    meta = FileMeta(layers, tags)
    return meta, _unpack_indexes(meta.layers, found[SECTION_INDEX], payload_length)


def _unpack_indexes(
    layers: Sequence[LayerMeta], stored: Sequence[memoryview], payload_length: int
) -> list[ChunkIndex]:
    """Return the index of every layer; together their chunks fill the payload exactly."""
    if len(stored) != len(layers):
        raise MetadataError(f"header: {len(stored)} chunk indexes for {len(layers)} layers")
    indexes, offset = [], 0
    for number, (layer, data) in enumerate(zip(layers, stored, strict=True)):
        index = unpack_index(Cursor(data, f"chunk index {number}"), layer.chunks, offset)
        offset += int(index.lengths.sum())
        indexes.append(index)
    if offset != payload_length:
        raise MetadataError(f"header: the chunks have {offset} bytes, the payload {payload_length}")
    return indexes
