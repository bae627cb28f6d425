"""Header and chunk index: what stands between the prelude and the payload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, starmap
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import MetadataError
from tmcodec.tokenfile.balance import most_values
from tmcodec.tokenfile.binary import Cursor, pack_varint
from tmcodec.tokenfile.chunks import EMPTY, MAX_TAG
from tmcodec.tokenfile.fields import pack_layer, pack_tags, unpack_layer, unpack_tags
from tmcodec.tokenfile.metadata import MAX_CRS_COUNT, FileMeta, LayerMeta
from tmcodec.tokenfile.prelude import VERSION
from tmcodec.tokenfile.sections import pack_crs, pack_section, unpack_crs, unpack_sections

MAX_PAYLOAD = 2**56

SECTION_CRS, SECTION_TAGS, SECTION_LAYER, SECTION_INDEX = 1, 2, 3, 5


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


def pack_index(
    chunks: int, ordinals: Sequence[int], tags: Sequence[int], lengths: Sequence[int], crcs: Sequence[int]
) -> bytes:
    """Pack the index of a layer: runs of tags, lengths of the chunks that are not empty, their CRCs.

    Parameters
    ----------
    chunks
        Number of chunks of the layer.
    ordinals, tags, lengths, crcs
        Of every chunk whose tag is not 0, as `ChunkIndex` has them.
    """
    pieces = (piece for piece in _pieces(chunks, ordinals, tags) if piece[1])
    counts = ((tag, sum(n for _, n in run)) for tag, run in groupby(pieces, key=itemgetter(0)))
    runs = b"".join(starmap(_pack_run, counts))
    return runs + b"".join(map(pack_varint, lengths)) + np.array(crcs, "<u4").tobytes()


def _pieces(chunks: int, ordinals: Sequence[int], tags: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (tag, count) of each chunk listed, and of the empty ones, perhaps none, around it."""
    end = 0
    for ordinal, tag in zip(ordinals, tags, strict=True):
        yield EMPTY, ordinal - end
        yield tag, 1
        end = ordinal + 1
    yield EMPTY, chunks - end


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


def pack_header(meta: FileMeta, indexes: Sequence[bytes], version: int = VERSION) -> bytes:
    """Pack the sections of the header; `indexes` are those of the layers, as from `pack_index`."""
    crs = list(dict.fromkeys(layer.crs for layer in meta.layers if layer.crs is not None))
    if len(crs) > MAX_CRS_COUNT:
        raise MetadataError(f"layers: {len(crs)} different CRSs, more than {MAX_CRS_COUNT}")
    parts = [(SECTION_CRS, pack_crs(text)) for text in crs]
    if meta.tags:
        parts.append((SECTION_TAGS, pack_tags(meta.tags)))
    parts += [(SECTION_LAYER, pack_layer(layer, crs, version)) for layer in meta.layers]
    parts += [(SECTION_INDEX, index) for index in indexes]
    header = b"".join(pack_section(section, data, version) for section, data in parts)
    if sum(map(_values, meta.layers)) > most_values(len(header)):
        raise MetadataError("header: more gains and offsets than readers take; write fewer dates to one file")
    return header


def _values(layer: LayerMeta) -> int:
    """Return how many integers its balance has."""
    return 0 if layer.balance is None else len(layer.balance.values) + len(layer.balance.mix)


def unpack_header(header: bytes, version: int = VERSION) -> tuple[FileMeta, list[ChunkIndex]]:
    """Invert `pack_header`.

    Raises
    ------
    MetadataError, UnknownSectionError
    """
    known = (SECTION_CRS, SECTION_TAGS, SECTION_LAYER, SECTION_INDEX)
    repeatable = (SECTION_CRS, SECTION_LAYER, SECTION_INDEX)
    sections = unpack_sections(Cursor(header, "header"), known, repeatable, version)
    found = {section: [data for s, data in sections if s == section] for section in known}
    if len(found[SECTION_CRS]) > MAX_CRS_COUNT:
        raise MetadataError(f"header: {len(found[SECTION_CRS])} CRSs, more than {MAX_CRS_COUNT}")
    crs = [unpack_crs(data) for data in found[SECTION_CRS]]
    if len(set(crs)) != len(crs):
        raise MetadataError("header: a CRS is stored twice")
    layers, room = list[LayerMeta](), most_values(len(header))
    for i, data in enumerate(found[SECTION_LAYER]):
        layers.append(unpack_layer(data, crs, f"layer {i}", version, room))
        room -= _values(layers[-1])
    tags = unpack_tags(Cursor(found[SECTION_TAGS][0], "tags")) if found[SECTION_TAGS] else {}
    meta = FileMeta(tuple(layers), tags)
    return meta, _unpack_indexes(meta.layers, found[SECTION_INDEX])


def _unpack_indexes(layers: Sequence[LayerMeta], stored: Sequence[memoryview]) -> list[ChunkIndex]:
    """Return the index of every layer; their chunks follow each other in the payload."""
    if len(stored) != len(layers):
        raise MetadataError(f"header: {len(stored)} chunk indexes for {len(layers)} layers")
    indexes, offset = [], 0
    for number, (layer, data) in enumerate(zip(layers, stored, strict=True)):
        index = unpack_index(Cursor(data, f"chunk index {number}"), layer.chunks, offset)
        offset += int(index.lengths.sum())
        if offset > MAX_PAYLOAD:
            raise MetadataError(f"header: the chunks have {offset} bytes, more than {MAX_PAYLOAD}")
        indexes.append(index)
    return indexes


def payload_bytes(indexes: Sequence[ChunkIndex]) -> int:
    """Return how long the payload of a file with these indexes is."""
    return sum(int(index.lengths.sum()) for index in indexes)
