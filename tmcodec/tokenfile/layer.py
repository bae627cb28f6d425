"""One layer of an open token file: tokens and masks by window, every chunk checked before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import (
    ChunkChecksumError,
    ChunkError,
    TruncatedFileError,
)
from tmcodec.tokenfile.chunks import (
    EMPTY,
    EMPTY_CHUNK,
    JOINT,
    RawChunk,
    plain_chunk,
    unpack_mask,
    unpack_tokens,
    unseal_chunk,
)
from tmcodec.tokenfile.coders import REFERRING, Tokens
from tmcodec.tokenfile.geometry import TokenGrid, TokenWindow, check_limit
from tmcodec.tokenfile.header import ChunkIndex
from tmcodec.tokenfile.masks import Mask, MaskCanvas
from tmcodec.tokenfile.metadata import LayerMeta
from tmcodec.tokenfile.prelude import VERSION
from tmcodec.tokenfile.references import same_grid
from tmcodec.tokenfile.source import ByteSource

MAX_PIXELS = 2**31
"""Default cap on the pixels that one call decodes."""

Window = Sequence[int]
DAMAGE = (ChunkError, TruncatedFileError)


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
        self,
        source: ByteSource,
        meta: LayerMeta,
        index: ChunkIndex,
        base: int,
        max_pixels: int,
        before: Sequence[Layer] = (),
        version: int = VERSION,
    ) -> None:
        self.meta = meta
        self.index = index
        self._version = version
        self._source = source
        self._base = base
        self._max_pixels = max_pixels
        # Those before it in the file, which its chunks may refer to; the list grows, so the number counts.
        self._layers, self._number = before, len(before)

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
    def file_name(self) -> str:
        """Name of the file that it is in, for messages."""
        return self._source.name

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
        # Where a token is a pixel, four times as much as what the cap on pixels means to bound.
        check_limit(4 * place.width * place.height, self._max_pixels, "bytes of tokens")
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
        rows = [row for _, row in self._filled(place, time)]
        everywhere = len(rows) == self._grid.covering(place).size
        if everywhere and not salvage and bool(((self.index.tags[rows] - 1) & 1 == 0).all()):
            return None  # the index says that all are full; nothing is read
        out = MaskCanvas(self._grid, place, self._max_pixels, valid=everywhere)
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
        out = np.ones((place.height, place.width), np.bool_)
        for at, _ in self._filled(place, time):
            out[self._grid.token_overlap(place, *at).window] = False
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

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Yield (time, chunk row, chunk col) of every chunk that carries something, in the index's order."""
        for ordinal in self.index.ordinals.tolist():
            time, rest = divmod(ordinal, self._grid.chunks)
            yield time, *divmod(rest, self._grid.chunk_cols)

    def filled(self, window: Window | None = None, time: int = 0) -> list[tuple[int, int]]:
        """Return (chunk row, chunk col) of the chunks of a window that carry something, row by row.

        The index says so; nothing is read, and empty chunks take no time, however many.

        Raises
        ------
        WindowError, LayerNotFoundError
        """
        self.meta.check_time(time)
        return [at for at, _ in self._filled(self._grid.window(window), time)]

    def raw_chunk(self, time: int, chunk_row: int, chunk_col: int) -> RawChunk:
        """Return one chunk undecoded, its checksum checked.

        Raises
        ------
        WindowError, LayerNotFoundError, TruncatedFileError
        ChunkError
            Beside a wrong checksum what decoding finds, where the checksum is of the tokens, too.
        """
        raw, at = self._raw(time, chunk_row, chunk_col), (chunk_row, chunk_col)
        if self._version > 1 and raw.tag in JOINT:  # its checksum is of the tokens, too
            self._tokens(at, time, False, raw)
        return raw

    def _raw(self, time: int, chunk_row: int, chunk_col: int) -> RawChunk:
        """Return one chunk undecoded; a checksum that is of its tokens, too, is not checked yet."""
        self.meta.check_time(time)
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
        if raw.coder not in REFERRING:
            return raw
        tokens = self._tokens(at, time, False, raw)
        assert tokens is not None
        return plain_chunk(self.meta, raw, tokens)

    def check_chunk(self, time: int, chunk_row: int, chunk_col: int) -> None:
        """Decode one chunk completely and raise what is wrong with it."""
        raw = self._raw(time, chunk_row, chunk_col)
        self._tokens((chunk_row, chunk_col), time, False, raw)
        self._mask((chunk_row, chunk_col), time, raw)

    def earlier(self, layers: int) -> Layer | None:
        """Return the layer so many before this one in the file; None where there is none."""
        return self._layers[self._number - layers] if 1 <= layers <= self._number else None

    @property
    def _grid(self) -> TokenGrid:
        return self.meta.grid

    def _place(self, window: Window | None, time: int) -> TokenWindow:
        """Check window, time and the cap on pixels."""
        self.meta.check_time(time)
        place = self._grid.window(window)
        _, _, width, height = self._grid.pixel_window(place)
        check_limit(width * height, self._max_pixels)
        return place

    def _filled(self, place: TokenWindow, time: int) -> list[tuple[tuple[int, int], int]]:
        """Return ((chunk row, chunk col), row of the index) of a window's chunks that are not empty.

        In the index's order. 31 bytes of a file can make 2^40 empty chunks, which nobody can go through.
        """
        span, ordinals = self._grid.covering(place), self.index.ordinals
        first = self._grid.ordinal(time, span.rows[0], span.cols[0])
        last = self._grid.ordinal(time, span.rows[-1], span.cols[-1])
        start, stop = (int(at) for at in np.searchsorted(ordinals, [first, last + 1]))
        rows, cols = np.divmod(ordinals[start:stop] - time * self._grid.chunks, self._grid.chunk_cols)
        inside = np.flatnonzero((cols >= span.cols[0]) & (cols <= span.cols[-1]))
        places = zip(rows[inside].tolist(), cols[inside].tolist(), strict=True)
        return list(zip(places, (inside + start).tolist(), strict=True))

    def _chunks(
        self, place: TokenWindow, time: int, salvage: bool
    ) -> Iterator[tuple[tuple[int, int], RawChunk | None]]:
        """Yield ((chunk row, chunk col), chunk) of a window after one read; None for a damaged one.

        Empty chunks are left out.
        """
        rows = self._filled(place, time)
        start, data = self._span([row for _, row in rows], salvage)
        for at, row in rows:
            first = int(self.index.offsets[row]) - start
            payload = data[first : first + int(self.index.lengths[row])]
            try:
                raw: RawChunk | None = self._checked(row, payload, at, time)
            except DAMAGE:
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
        try:
            return unseal_chunk(int(self.index.tags[row]), payload, stored, self._version)
        except ChunkChecksumError as cause:
            raise ChunkChecksumError(f"{self._where(at, time)} is damaged: {cause}") from None
        except ChunkError as cause:
            raise type(cause)(f"{self._where(at, time)}: {cause}") from cause

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
            # Where no checksum was of the bytes alone, what does not decode is damaged.
            damaged = self._version > 1 and raw.tag in JOINT and type(cause) is ChunkError
            kind = ChunkChecksumError if damaged else type(cause)
            raise kind(f"{self._where(at, time)}: {cause}") from cause

    def _tokens(self, at: tuple[int, int], time: int, salvage: bool, raw: RawChunk | None) -> Tokens | None:
        """Return the tokens of a chunk; None for a damaged one if `salvage`."""
        found = _References(self, at, time)
        tokens: Tokens | None = self._decode(at, time, salvage, raw, unpack_tokens, found)
        return tokens

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


class _References:
    """The chunks that one chunk may refer to; each is one more read from the file."""

    def __init__(self, layer: Layer, at: tuple[int, int], time: int) -> None:
        self._layer, self._at, self._time = layer, at, time

    def earlier_date(self, back: int) -> Tokens:
        if not 1 <= back <= self._time:
            raise ChunkError(f"its reference lies {back} time steps before")
        return self._read(self._layer, self._time - back, f"{back} time steps before")

    def earlier_layer(self, layers: int, time: int) -> tuple[Tokens, LayerMeta]:
        layer = self._layer.earlier(layers)
        if layer is None:
            raise ChunkError(f"its reference lies {layers} layers before")
        name = f"layer {layer.meta.name!r}, time {time}"
        if time >= len(layer.meta.times) or not same_grid(layer.meta, self._layer.meta):
            raise ChunkError(f"its reference, {name}: the layer has another grid, or no such time")
        return self._read(layer, time, name), layer.meta

    def _read(self, layer: Layer, time: int, name: str) -> Tokens:
        try:
            raw = layer._raw(time, *self._at)
            if raw.tag == EMPTY or raw.coder in REFERRING:
                raise ChunkError("it is empty or has a reference itself")
            return unpack_tokens(layer.meta, raw, *self._at)
        except DAMAGE as cause:
            kind = type(cause) if isinstance(cause, ChunkError) else ChunkError
            raise kind(f"its reference, {name}: {cause}") from cause
