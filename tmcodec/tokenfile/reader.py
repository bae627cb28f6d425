"""Read token files: lazily, by window, with every number checked before it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import (
    ChunkChecksumError,
    ChunkError,
    LayerNotFoundError,
    LimitExceededError,
    TokenFileError,
    TrailingDataError,
    TruncatedFileError,
)
from tmcodec.tokenfile.binary import crc32c
from tmcodec.tokenfile.chunks import (
    EMPTY,
    EMPTY_CHUNK,
    RawChunk,
    plain_chunk,
    unpack_mask,
    unpack_tokens,
)
from tmcodec.tokenfile.coders import REFERRED, Tokens
from tmcodec.tokenfile.geometry import TokenGrid, TokenWindow
from tmcodec.tokenfile.header import (
    MAX_HEADER,
    ChunkIndex,
    Prelude,
    check_header,
    unpack_header,
    unpack_prelude,
)
from tmcodec.tokenfile.masks import Mask
from tmcodec.tokenfile.metadata import FileMeta, LayerMeta
from tmcodec.tokenfile.source import FIRST_BLOCK, ByteSource

MAX_PIXELS = 2**31
"""Default cap on the pixels that one call decodes."""

Window = Sequence[int]
_DAMAGE = (ChunkError, TruncatedFileError)


@dataclass(frozen=True)
class LayerWindow:
    """Everything about one window of one time step, from one read.

    Attributes
    ----------
    tokens
        int32 (rows, cols); 0 where a chunk is empty or damaged.
    valid
        bool (1 or bands, height, width) in pixels; None where all are valid.
    intact
        bool (rows, cols); false where a chunk is damaged.
    empty
        bool (rows, cols); true where a chunk carries nothing.
    """

    tokens: Tokens
    valid: Mask | None
    intact: NDArray[np.bool_]
    empty: NDArray[np.bool_]


class Layer:
    """One layer of an open token file.

    Every attribute of its `LayerMeta` is also one of the layer: ``layer.crs``,
    ``layer.bands``, ``layer.tokenizer`` and so on.

    Attributes
    ----------
    meta
        The metadata.
    index
        Where its chunks lie.
    """

    def __init__(
        self, source: ByteSource, meta: LayerMeta, index: ChunkIndex, base: int, max_pixels: int
    ) -> None:
        self.meta = meta
        self.index = index
        self._source = source
        self._base = base
        self._max_pixels = max_pixels

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "meta":  # not there yet while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.meta, name)

    def __repr__(self) -> str:
        return f"<Layer {self.meta.name!r}: {self.meta.rows} x {self.meta.cols} tokens>"

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the token grid."""
        return self.meta.rows, self.meta.cols

    @property
    def payload_bytes(self) -> int:
        """Bytes of all its chunks."""
        return int(self.index.lengths.sum())

    # ----------------------------------------------------------------- windows

    def tokens(self, window: Window | None = None, time: int = 0, salvage: bool = False) -> Tokens:
        """Return the tokens of a window.

        Parameters
        ----------
        window
            (col_off, row_off, width, height) in tokens; None is the whole grid.
        time
            Step of the time axis.
        salvage
            Give 0 for the tokens of damaged chunks instead of raising.

        Returns
        -------
        ndarray of int32, shape (rows, cols)
            0 where a chunk is empty.

        Raises
        ------
        WindowError, LayerNotFoundError, LimitExceededError, ChunkError
        """
        place = self._place(window, time)
        out = np.zeros((place.height, place.width), np.int32)
        for at, raw in self._chunks(place, time, salvage):
            decoded = self._tokens(at, time, salvage, raw)
            if decoded is not None:
                overlap = self._grid.token_overlap(place, *at)
                out[overlap.window] = decoded[overlap.chunk]
        return out

    def valid(self, window: Window | None = None, time: int = 0, salvage: bool = False) -> Mask | None:
        """Return which pixels of a window carry data.

        Parameters
        ----------
        window, time
            As for `tokens`; the window is in tokens here too.
        salvage
            Call the pixels of damaged chunks invalid instead of raising.

        Returns
        -------
        ndarray of bool, shape (planes, h, w) in pixels, or None
            None where all are valid. One plane where all bands agree, else one a band. The
            padding beyond the raster's edge is not part of it.

        Raises
        ------
        WindowError, LayerNotFoundError, LimitExceededError, ChunkError
        """
        place = self._place(window, time)
        if not salvage and self._all_full(place, time):
            return None  # the index says so; nothing is read
        out = _MaskCanvas(self._grid, place, self._max_pixels)
        for at, raw in self._chunks(place, time, salvage):
            if raw is None or not self._is_intact(at, time, salvage, raw):
                out.paint(at, np.zeros((1, 1, 1), np.bool_))
            else:
                out.paint(at, self._mask(at, time, raw))
        return out.mask

    def intact(self, window: Window | None = None, time: int = 0) -> NDArray[np.bool_]:
        """Return which tokens of a window lie in chunks that decode: bool (rows, cols)."""
        place = self._place(window, time)
        out = np.ones((place.height, place.width), np.bool_)
        for at, raw in self._chunks(place, time, salvage=True):
            if raw is None or not self._is_intact(at, time, True, raw):
                out[self._grid.token_overlap(place, *at).window] = False
        return out

    def empty(self, window: Window | None = None, time: int = 0) -> NDArray[np.bool_]:
        """Return which tokens of a window lie in chunks that carry nothing: bool (rows, cols).

        The index says so; nothing is read.
        """
        place = self._place(window, time)
        out = np.zeros((place.height, place.width), np.bool_)
        for at in self._grid.covering(place):
            if self.index.find(self._grid.ordinal(time, *at)) is None:
                out[self._grid.token_overlap(place, *at).window] = True
        return out

    def read(self, window: Window | None = None, time: int = 0, salvage: bool = False) -> LayerWindow:
        """Return tokens, mask, intact and empty of a window; one read from the file.

        Parameters and exceptions are those of `tokens` and `valid`.
        """
        place = self._place(window, time)
        return LayerWindow(
            tokens=self.tokens(place, time, salvage),
            valid=self.valid(place, time, salvage),
            intact=self.intact(place, time) if salvage else np.ones((place.height, place.width), np.bool_),
            empty=self.empty(place, time),
        )

    # ----------------------------------------------------------------- chunks

    def raw_chunk(self, time: int, chunk_row: int, chunk_col: int) -> RawChunk:
        """Return one chunk undecoded, its checksum checked.

        Raises
        ------
        WindowError, LayerNotFoundError, ChunkChecksumError
        """
        self._check_time(time)
        self._grid.check_chunk(chunk_row, chunk_col)
        row = self.index.find(self._grid.ordinal(time, chunk_row, chunk_col))
        if row is None:
            return EMPTY_CHUNK
        offset, length = int(self.index.offsets[row]), int(self.index.lengths[row])
        return self._checked(
            row, self._source.read(self._base + offset, length), (chunk_row, chunk_col), time
        )

    def plain_chunk(self, time: int, chunk_row: int, chunk_col: int) -> RawChunk:
        """Return one chunk as `raw_chunk` does, coded anew if it needs another as its reference.

        Raises
        ------
        WindowError, LayerNotFoundError, ChunkError
        """
        raw, at = self.raw_chunk(time, chunk_row, chunk_col), (chunk_row, chunk_col)
        if raw.coder != REFERRED.id:
            return raw
        tokens = self._tokens(at, time, False, raw)
        assert tokens is not None
        return plain_chunk(self.meta, raw, tokens)

    def check_chunk(self, time: int, chunk_row: int, chunk_col: int) -> None:
        """Decode one chunk completely and raise what is wrong with it."""
        raw = self.raw_chunk(time, chunk_row, chunk_col)
        self._tokens((chunk_row, chunk_col), time, False, raw)
        self._mask((chunk_row, chunk_col), time, raw)

    @property
    def _grid(self) -> TokenGrid:
        return self.meta.grid

    def _check_time(self, time: int) -> None:
        if not 0 <= time < len(self.meta.times):
            raise LayerNotFoundError(
                f"layer {self.meta.name!r} has no time step {time}; it has {len(self.meta.times)}, from 0"
            )

    def _place(self, window: Window | None, time: int) -> TokenWindow:
        """Check window, time and the cap on pixels."""
        self._check_time(time)
        place = self._grid.window(window)
        _, _, width, height = self._grid.pixel_window(place)
        _check_limit(width * height, self._max_pixels)
        return place

    def _all_full(self, place: TokenWindow, time: int) -> bool:
        """Whether the index says that every pixel of the window is valid."""
        rows = [self.index.find(self._grid.ordinal(time, *at)) for at in self._grid.covering(place)]
        return all(row is not None and (int(self.index.tags[row]) - 1) & 1 == 0 for row in rows)

    def _chunks(
        self, place: TokenWindow, time: int, salvage: bool
    ) -> Iterator[tuple[tuple[int, int], RawChunk | None]]:
        """Yield ((chunk row, chunk col), chunk) of a window after one read; None for a damaged one."""
        rows = [(at, self.index.find(self._grid.ordinal(time, *at))) for at in self._grid.covering(place)]
        start, data = self._span([row for _, row in rows if row is not None], salvage)
        for at, row in rows:
            if row is None:
                yield at, EMPTY_CHUNK
                continue
            first = int(self.index.offsets[row]) - start
            payload = data[first : first + int(self.index.lengths[row])]
            try:
                raw: RawChunk | None = self._checked(row, payload, at, time)
            except _DAMAGE:
                if not salvage:
                    raise
                raw = None
            yield at, raw

    def _span(self, rows: list[int], salvage: bool) -> tuple[int, bytes]:
        """Read what lies between the first and the last of these chunks: (offset in payload, bytes)."""
        if not rows:
            return 0, b""
        start = int(self.index.offsets[rows[0]])
        stop = int(self.index.offsets[rows[-1]] + self.index.lengths[rows[-1]])
        if salvage:  # of a file cut short, what there is
            stop = max(start, min(stop, self._source.size - self._base))
        return start, self._source.read(self._base + start, stop - start) if stop > start else b""

    def _checked(self, row: int, payload: bytes, at: tuple[int, int], time: int) -> RawChunk:
        """Return the chunk after checking its length and checksum."""
        length, stored = int(self.index.lengths[row]), int(self.index.crcs[row])
        if len(payload) < length:
            raise TruncatedFileError(f"{self._where(at, time)} lies beyond the end of the file")
        computed = crc32c(payload)
        if computed != stored:
            raise ChunkChecksumError(
                f"{self._where(at, time)} is damaged: CRC32C {computed:08x}, stored {stored:08x}"
            )
        return RawChunk(int(self.index.tags[row]), payload)

    def _decode(
        self, at: tuple[int, int], time: int, salvage: bool, raw: RawChunk | None, unpack: Any, *more: Any
    ) -> Any:
        """Return ``unpack(...)`` of a chunk; None for a damaged one if `salvage`."""
        if raw is None:
            return None
        try:
            return unpack(self.meta, raw, *at, *more)
        except ChunkError as cause:
            if salvage:
                return None
            raise type(cause)(f"{self._where(at, time)}: {cause}") from cause

    def _tokens(self, at: tuple[int, int], time: int, salvage: bool, raw: RawChunk | None) -> Tokens | None:
        """Return the tokens of a chunk; None for a damaged one if `salvage`."""

        def reference(back: int) -> Tokens:
            return self._reference(at, time, back)

        tokens: Tokens | None = self._decode(at, time, salvage, raw, unpack_tokens, reference)
        return tokens

    def _reference(self, at: tuple[int, int], time: int, back: int) -> Tokens:
        """Return the tokens that the chunk at `time` refers to: one more read from the file."""
        if not 1 <= back <= time:
            raise ChunkError(f"its reference lies {back} time steps before")
        try:
            raw = self.raw_chunk(time - back, *at)
            if raw.tag == EMPTY or raw.coder == REFERRED.id:
                raise ChunkError("it is empty or has a reference itself")
            return unpack_tokens(self.meta, raw, *at)
        except _DAMAGE as cause:
            kind = type(cause) if isinstance(cause, ChunkError) else ChunkError
            raise kind(f"its reference, {back} time steps before: {cause}") from cause

    def _mask(self, at: tuple[int, int], time: int, raw: RawChunk) -> Mask | None:
        mask: Mask | None = self._decode(at, time, False, raw, unpack_mask, self._max_pixels)
        return mask

    def _is_intact(self, at: tuple[int, int], time: int, salvage: bool, raw: RawChunk) -> bool:
        """Whether a chunk decodes; only looked at if `salvage`, because else it raises anyway."""
        if not salvage:
            return True
        try:
            self._mask(at, time, raw)
        except ChunkError:
            return False
        return self._tokens(at, time, True, raw) is not None

    def _where(self, at: tuple[int, int], time: int) -> str:
        return f"layer {self.meta.name!r}, time {time}, chunk ({at[0]}, {at[1]})"


class _MaskCanvas:
    """The mask of a window, put together chunk by chunk; allocated only where it is needed."""

    def __init__(self, grid: TokenGrid, place: TokenWindow, limit: int) -> None:
        self._grid, self._place, self._limit = grid, place, limit
        self.mask: Mask | None = None

    def paint(self, at: tuple[int, int], mask: Mask | None) -> None:
        """Put the mask of one chunk, (planes, h, w), or (1, 1, 1) for all alike, in its place."""
        if mask is None:
            return
        overlap = self._grid.pixel_overlap(self._place, *at)
        rows, cols = overlap.window
        part = mask if mask.size == 1 else mask[:, overlap.chunk[0], overlap.chunk[1]]
        self._canvas(len(mask))[:, rows, cols] = part

    def _canvas(self, planes: int) -> Mask:
        """Return the canvas with at least that many planes."""
        _, _, width, height = self._grid.pixel_window(self._place)
        _check_limit(planes * width * height, self._limit)
        if self.mask is None:
            self.mask = np.ones((planes, height, width), np.bool_)
        elif len(self.mask) < planes:
            self.mask = np.repeat(self.mask, planes, axis=0)
        return self.mask


def _check_limit(pixels: int, limit: int) -> None:
    if pixels > limit:
        raise LimitExceededError(
            f"the window has {pixels} pixels, more than max_pixels={limit};"
            " read smaller windows, or pass a higher max_pixels if you trust the file"
        )


class TokenFile:
    """An open token file: header and index are read, chunks are read when asked for.

    Use `TokenFile.open`, and ``with`` or `close`.

    Attributes
    ----------
    meta
        Metadata of the file.
    layers
        Name -> `Layer`, in the order of the file.
    header_bytes
        Bytes before the payload: prelude, metadata, index.
    size
        Bytes of the file as it is.
    expected_size
        Bytes that it should have; different only where it was opened with `salvage`.
    """

    def __init__(
        self, source: ByteSource, prelude: Prelude, meta: FileMeta, indexes: list[ChunkIndex], max_pixels: int
    ) -> None:
        self._source = source
        self.meta = meta
        self.size = source.size
        self.header_bytes = prelude.payload_offset
        self.expected_size = prelude.file_size
        self.layers = {
            layer.name: Layer(source, layer, index, prelude.payload_offset, max_pixels)
            for layer, index in zip(meta.layers, indexes, strict=True)
        }

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | IO[bytes],
        *,
        max_pixels: int = MAX_PIXELS,
        max_header: int = MAX_HEADER,
        salvage: bool = False,
    ) -> TokenFile:
        """Open a token file.

        One read of 64 KiB, a second one only where the header is longer.

        Parameters
        ----------
        source
            Path, URL (``https://``, ``s3://``, ``/vsicurl/https://...``), or seekable binary
            file object, which is read from its beginning and not closed.
        max_pixels
            Cap on the pixels of one call of `Layer.tokens` or `Layer.valid`.
        max_header
            Cap on the bytes of the header.
        salvage
            Accept a file that is shorter or longer than its header says; chunks beyond its
            end count as damaged.

        Raises
        ------
        TokenFileError
            One subclass for each way a file can be bad.
        OSError
            As from the builtin `open`.
        """
        opened = ByteSource(source)
        try:
            return cls(opened, *_read_header(opened, max_header, salvage), max_pixels)
        except TokenFileError as cause:
            opened.close()
            raise type(cause)(f"{opened.name}: {cause}") from cause
        except BaseException:
            opened.close()
            raise

    def close(self) -> None:
        """Close the file; a file object that the caller opened stays open."""
        self._source.close()

    def __enter__(self) -> TokenFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> Layer:
        try:
            return self.layers[name]
        except KeyError:
            known = ", ".join(map(repr, self.layers))
            raise LayerNotFoundError(f"{self._source.name} has no layer {name!r}; it has {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.layers

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"<TokenFile {self._source.name!r}: {', '.join(self.layers)}>"


def _read_header(
    source: ByteSource, max_header: int, salvage: bool
) -> tuple[Prelude, FileMeta, list[ChunkIndex]]:
    """Read and check prelude, header and index."""
    head = source.read(0, min(FIRST_BLOCK, source.size))
    prelude = unpack_prelude(head, source.size, max_header)
    if prelude.payload_offset > len(head):
        head += source.read(len(head), prelude.payload_offset - len(head))
    header = check_header(head, prelude)
    if not salvage:
        _check_size(prelude, source.size)
    return prelude, *unpack_header(header, prelude.payload_length)


def _check_size(prelude: Prelude, size: int) -> None:
    """Raise where the file has not the length that its prelude states."""
    if size < prelude.file_size:
        raise TruncatedFileError(
            f"the file is cut short: {prelude.file_size - size} of {prelude.file_size} bytes are missing"
        )
    if size > prelude.file_size:
        raise TrailingDataError(
            f"{size - prelude.file_size} bytes follow after the end at {prelude.file_size}"
        )
