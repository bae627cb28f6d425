"""Write token files: chunks in any order, the same bytes every time, complete or not at all."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tmcodec.atomic import atomic_path, check_target, is_full, reason
from tmcodec.errors import (
    ChunkError,
    LayerNotFoundError,
    TargetNameError,
    TargetWriteError,
    UnsupportedVersionError,
)
from tmcodec.texts import shown
from tmcodec.tokenfile.balance import Balance
from tmcodec.tokenfile.chunks import (
    EMPTY,
    EMPTY_CHUNK,
    JOINT,
    RawChunk,
    check_mask,
    check_tokens,
    pack_chunk,
    plain_mask,
    refer_chunk,
    seal_chunk,
    unpack_tokens,
    unseal_chunk,
)
from tmcodec.tokenfile.coders import REFERRING, Tokens
from tmcodec.tokenfile.header import pack_header, pack_index
from tmcodec.tokenfile.metadata import FileMeta, LayerMeta
from tmcodec.tokenfile.prelude import VERSION, VERSIONS, pack_prelude
from tmcodec.tokenfile.references import Place, Steps, candidates, groups

SPOOL = 16 * 2**20
"""Payload beyond this goes from memory to a temporary file."""
CACHED = 64
"""So many chunks of one place are kept decoded while references are tried."""


class _Entry(NamedTuple):
    """A written chunk: its tag, and where its payload lies in the spool."""

    tag: int
    offset: int
    length: int
    crc: int


class TokenFileWriter:
    """Write one token file.

    As a context manager it finishes the file at the end of the block, or leaves nothing
    behind where the block raises.

    Parameters
    ----------
    target
        Path, or binary file object, which is written only in `finish` and not closed.
    meta
        Metadata of the file and its layers.
    overwrite
        Whether an existing path may be replaced.
    coders
        Ids of the chunk coders to choose among, besides 0; None is all. Readers of tmcodec 0.1.0 before
        the context coder know 0 and 1.
    version
        Version of the format.
    sparse
        Whether chunks that are never written are empty, instead of an error.

    Attributes
    ----------
    size, header_bytes, payload_bytes
        Sizes in bytes, after `finish`.

    Raises
    ------
    TargetExistsError
        If the path exists and `overwrite` is false.
    TargetNameError
        If the target is neither a path to a file nor a binary file object.
    UnsupportedVersionError
        If there is no such version.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | IO[bytes],
        meta: FileMeta,
        overwrite: bool = False,
        coders: Collection[int] | None = None,
        version: int = VERSION,
        sparse: bool = False,
    ) -> None:
        if version not in VERSIONS:
            raise UnsupportedVersionError(f"format version {version}; choose among {VERSIONS}")
        check_token_target(target, overwrite)
        self.meta = meta
        self.version = version
        self.header_bytes = self.payload_bytes = self.size = 0
        self._target = target
        self._overwrite = overwrite
        self._coders = coders
        self._sparse = sparse
        self._entries: list[dict[int, _Entry]] = [{} for _ in meta.layers]
        self._spool = tempfile.SpooledTemporaryFile(SPOOL)  # noqa: SIM115  (closed by close)
        self._spooled = 0
        self._lock = threading.Lock()

    # ----------------------------------------------------------------- chunks

    def write_chunk(
        self,
        layer_index: int,
        time: int,
        chunk_row: int,
        chunk_col: int,
        tokens: NDArray[np.integer] | None,
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Code and write one chunk; any order, several threads.

        Parameters
        ----------
        layer_index
            Place of the layer in ``meta.layers``.
        time, chunk_row, chunk_col
            Place of the chunk.
        tokens
            Integers, shape (rows, cols) of the chunk; None where it carries nothing.
        valid
            bool, shape (1 or bands, h, w) in pixels, padding left out; None where all pixels
            are valid. Where none is, the chunk is empty and `tokens` are not stored.

        Raises
        ------
        WindowError, LayerNotFoundError
            If there is no such place.
        ChunkError
            If dtype or shape are wrong, or the chunk was written before.
        TokenRangeError
            If a token lies outside the codebook.
        TargetWriteError
            If there is no room for chunks that wait for the end of a large file.
        """
        layer = self._layer(layer_index, time, chunk_row, chunk_col)
        if tokens is None:
            if valid is not None and bool(np.any(valid)):
                raise ChunkError("a chunk with valid pixels needs tokens")
            raw = EMPTY_CHUNK
        else:
            checked = check_tokens(layer, tokens, layer.grid.token_shape(chunk_row, chunk_col))
            mask = (
                None
                if valid is None
                else check_mask(layer, valid, layer.grid.pixel_shape(chunk_row, chunk_col))
            )
            raw = pack_chunk(layer, checked, mask, self._coders, self.version)
        self.write_raw_chunk(layer_index, time, chunk_row, chunk_col, raw)

    def write_raw_chunk(
        self, layer_index: int, time: int, chunk_row: int, chunk_col: int, raw: RawChunk
    ) -> None:
        """Write one chunk that is coded already, as from `Layer.raw_chunk`.

        Raises
        ------
        WindowError, LayerNotFoundError, ChunkError
        """
        layer = self._layer(layer_index, time, chunk_row, chunk_col)
        if (raw.tag == EMPTY) != (not raw.payload):
            raise ChunkError("an empty chunk has no payload, and any other has one")
        if self.version > 1 and raw.tag in JOINT and len(raw.payload) < 5:
            raise ChunkError("a chunk of this coder ends with a checksum of four bytes")
        if self.version == 1:
            raw = plain_mask(layer, raw, chunk_row, chunk_col)
        ordinal = layer.grid.ordinal(time, chunk_row, chunk_col)
        sealed = seal_chunk(raw, self.version)
        with self._lock:
            if ordinal in self._entries[layer_index]:
                raise ChunkError(f"{_where(layer, ordinal)} was written before")
            self._entries[layer_index][ordinal] = self._keep(raw.tag, *sealed)

    def _keep(self, tag: int, stored: bytes, crc: int) -> _Entry:
        """Append a chunk to the spool."""
        try:
            self._spool.seek(self._spooled)
            self._spool.write(stored)
        except OSError as error:
            if not is_full(error):
                raise
            place = f"{tempfile.gettempdir()}, the folder of temporary files"
            raise TargetWriteError(f"{place}: {reason(error)}; set TMPDIR to one with room") from error
        self._spooled += len(stored)
        return _Entry(tag, self._spooled - len(stored), len(stored), crc)

    def _layer(self, layer_index: int, time: int, chunk_row: int, chunk_col: int) -> LayerMeta:
        """Return the layer after checking that the place exists."""
        if not 0 <= layer_index < len(self.meta.layers):
            raise LayerNotFoundError(
                f"there is no layer {layer_index}; there are {len(self.meta.layers)}, from 0"
            )
        layer = self.meta.layers[layer_index]
        layer.check_time(time)
        layer.grid.check_chunk(chunk_row, chunk_col)
        return layer

    def set_balance(self, layer_index: int, balance: Balance | None) -> None:
        """Set the balance of a layer, which is known only after its last chunk.

        Raises
        ------
        MetadataError
            If it does not fit the layer.
        """
        self._replace(layer_index, balance=balance)

    def set_class_sets(self, layer_index: int, class_sets: Sequence[int]) -> None:
        """Set which classes the maps of a layer have, which is known only after its last chunk.

        Raises
        ------
        MetadataError
            If there is not one set for each time step, or one for all.
        """
        self._replace(layer_index, class_sets=tuple(class_sets))

    def _replace(self, layer_index: int, **changes: Any) -> None:
        layers = list(self.meta.layers)
        layers[layer_index] = layers[layer_index].replace(**changes)
        self.meta = FileMeta(tuple(layers), self.meta.tags)

    # ----------------------------------------------------------------- the end

    def finish(self) -> None:
        """Write the file.

        Raises
        ------
        ChunkError
            If a chunk was never written, unless that makes it empty.
        TargetWriteError
            If a file object takes less than all.
        TargetExistsError
            If the path has come into being meanwhile.
        """
        if not self._sparse:
            self._check_complete()
        if self._coders is None or REFERRING & set(self._coders):
            for group in groups(self.meta.layers, self._coders):
                for place, chunks in self._shared(group).items():
                    self._refer(place, chunks)
        # Without the empty ones, of which a layer may have more than anyone can list.
        ordered = [{i: e for i, e in sorted(entries.items()) if e.tag != EMPTY} for entries in self._entries]
        indexes = [_index(la.chunks, found) for la, found in zip(self.meta.layers, ordered, strict=True)]
        header = pack_header(self.meta, indexes, self.version)
        payload = [entry for entries in ordered for entry in entries.values()]
        self.payload_bytes = sum(entry.length for entry in payload)
        start = pack_prelude(header, self.payload_bytes, self.version) + header
        if isinstance(self._target, str | os.PathLike):
            with atomic_path(self._target, self._overwrite) as temporary, open(temporary, "wb") as file:
                self._copy(file, start, payload)
        else:
            self._copy(self._target, start, payload)
        self.header_bytes = len(start)
        self.size = self.header_bytes + self.payload_bytes
        self.close()

    def _shared(self, group: list[int]) -> dict[int, list[Place]]:
        """Return the chunks of these layers that are not empty, by their place in the grid, in order.

        Only where there is more than one. Time steps without a chunk at a place take no time there.
        """
        found: dict[int, list[Place]] = {}
        for number in group:
            for ordinal, entry in sorted(self._entries[number].items()):
                if entry.tag != EMPTY:
                    time, place = divmod(ordinal, self.meta.layers[number].grid.chunks)
                    found.setdefault(place, []).append(Place(number, time))
        return {place: chunks for place, chunks in sorted(found.items()) if len(chunks) > 1}

    def _refer(self, place: int, chunks: list[Place]) -> None:
        """Code these chunks of one place with earlier ones as references, where that is shorter.

        A chunk that has a reference is none itself, so that reading one reads one other.
        """
        layers = self.meta.layers
        at = divmod(place, layers[chunks[0].layer].grid.chunk_cols)
        known: dict[int, Steps] = {}

        @lru_cache(maxsize=CACHED)
        def decoded(chunk: Place) -> tuple[RawChunk, Tokens]:
            layer = layers[chunk.layer]
            raw = self._kept(self._entries[chunk.layer][layer.grid.ordinal(chunk.time, *at)])
            return raw, unpack_tokens(layer, raw, *at)

        for chunk in chunks:
            layer, ordinal = layers[chunk.layer], layers[chunk.layer].grid.ordinal(chunk.time, *at)
            if RawChunk(self._entries[chunk.layer][ordinal].tag, b"").coder not in (0, 1, 2):
                continue
            raw, tokens = decoded(chunk)
            best = raw
            for one in candidates(layers, chunk, known, self._coders):
                tried = refer_chunk(layer, raw, tokens, decoded(one.chunk)[1], one.numbers, one.layer)
                best = tried if len(tried.payload) < len(best.payload) else best
            if best is raw:
                known.setdefault(chunk.layer, Steps(layer.times)).append(chunk.time)
            else:
                self._entries[chunk.layer][ordinal] = self._keep(best.tag, *seal_chunk(best, self.version))

    def _kept(self, entry: _Entry) -> RawChunk:
        """Read a chunk back."""
        self._spool.seek(entry.offset)
        return unseal_chunk(entry.tag, self._spool.read(entry.length), entry.crc, self.version)

    def close(self) -> None:
        """Let go of everything; without `finish` before, no file is written."""
        self._spool.close()

    def __enter__(self) -> TokenFileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None and not self._spool.closed:
                self.finish()
        finally:
            self.close()

    def _check_complete(self) -> None:
        for layer, entries in zip(self.meta.layers, self._entries, strict=True):
            if len(entries) < layer.chunks:
                first = next(i for i in range(layer.chunks) if i not in entries)
                raise ChunkError(
                    f"{layer.chunks - len(entries)} chunks were never written,"
                    f" the first is {_where(layer, first)}"
                )

    def _copy(self, file: IO[bytes], start: bytes, payload: list[_Entry]) -> None:
        """Write prelude and header, then the payload in index order whatever the order it came in."""
        _write_fully(file, start)
        whole = self.payload_bytes == self._spooled
        if whole and all(a.offset + a.length == b.offset for a, b in pairwise(payload)):
            self._spool.seek(0)
            while part := self._spool.read(2**20):
                _write_fully(file, part)
            return
        for entry in payload:
            self._spool.seek(entry.offset)
            _write_fully(file, self._spool.read(entry.length))


def _write_fully(file: IO[bytes], data: bytes | memoryview) -> None:
    """Write all of `data`; raw files, pipes and sockets may take less at a time, or nothing for now.

    Raises
    ------
    TargetWriteError
        If the file takes no more.
    """
    while data:
        count: int | None = file.write(data)
        if count is None and not isinstance(file, io.RawIOBase):
            return  # objects of other people's often say nothing
        if not count:
            raise TargetWriteError("the target takes no more bytes; give a buffered, blocking file object")
        data = memoryview(data)[count:]


def check_token_target(target: str | os.PathLike[str] | IO[bytes], overwrite: bool) -> None:
    """Refuse what `TokenFileWriter` cannot write to, before any work is done for it.

    Raises
    ------
    TargetExistsError, TargetFolderError, TargetNameError
        As `check_target`; the last also where the target is neither a path nor a binary file object.
    """
    if isinstance(target, str | os.PathLike):
        check_target(target, overwrite)
    elif isinstance(target, io.TextIOBase) or not hasattr(target, "write"):
        raise TargetNameError(f"{shown(target)} is neither a path nor a binary file object to write to")


def _index(chunks: int, filled: Mapping[int, _Entry]) -> bytes:
    """Pack the index of one layer, whose chunks that are not empty are `filled`, in order."""
    entries = filled.values()
    tags, lengths, crcs = [e.tag for e in entries], [e.length for e in entries], [e.crc for e in entries]
    return pack_index(chunks, list(filled), tags, lengths, crcs)


def _where(layer: LayerMeta, ordinal: int) -> str:
    """Name a chunk by its place."""
    time, rest = divmod(ordinal, layer.grid.chunks)
    chunk_row, chunk_col = divmod(rest, layer.grid.chunk_cols)
    return f"layer {layer.name!r}, time {time}, chunk ({chunk_row}, {chunk_col})"
