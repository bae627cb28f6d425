"""Open token files: the header and the index, checked; layers read their chunks when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from numbers import Real
from typing import IO

from tmcodec.errors import (
    LayerNotFoundError,
    LimitExceededError,
    MetadataError,
    TokenFileError,
    TrailingDataError,
    TruncatedFileError,
)
from tmcodec.texts import listed, shown
from tmcodec.tokenfile.header import ChunkIndex, payload_bytes, unpack_header
from tmcodec.tokenfile.layer import MAX_PIXELS, Layer
from tmcodec.tokenfile.metadata import FileMeta
from tmcodec.tokenfile.prelude import MAX_HEADER, Prelude, check_header, unpack_prelude
from tmcodec.tokenfile.source import FIRST_BLOCK, ByteSource


class TokenFile:
    """An open token file: header and index are read, chunks are read when asked for.

    Use `TokenFile.open`, and ``with`` or `close`.

    Attributes
    ----------
    meta
        Metadata of the file.
    layers
        Name -> `Layer`, in the order of the file.
    version
        Version of the format.
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
        self.version = prelude.version
        self.header_bytes = prelude.payload_offset
        self.expected_size = _file_size(prelude, indexes)
        layers: list[Layer] = []
        for one, index in zip(meta.layers, indexes, strict=True):
            layers.append(Layer(source, one, index, self.header_bytes, max_pixels, layers, self.version))
        self.layers = {layer.meta.name: layer for layer in layers}

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
            Cap on the pixels of one call of `Layer.tokens` or `Layer.valid`, on the values of a mask, and on
            the bytes of tokens, four each.
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
        for name, cap in (("max_pixels", max_pixels), ("max_header", max_header)):
            if not isinstance(cap, Real):
                raise LimitExceededError(f"{name} {shown(cap)} is no limit; give a number")
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
            known = listed(map(repr, self.layers))
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
    if prelude.payload_length is not None and not salvage:
        _check_size(prelude.payload_offset + prelude.payload_length, source.size)
    meta, indexes = unpack_header(header, prelude.version)
    if prelude.payload_length not in (None, payload_bytes(indexes)):
        raise MetadataError(
            f"header: the chunks have {payload_bytes(indexes)} bytes, the payload {prelude.payload_length}"
        )
    if not salvage:
        _check_size(_file_size(prelude, indexes), source.size)
    return prelude, meta, indexes


def _file_size(prelude: Prelude, indexes: list[ChunkIndex]) -> int:
    """Return how long the file must be."""
    return prelude.payload_offset + payload_bytes(indexes)


def _check_size(expected: int, size: int) -> None:
    """Raise where the file has not the length that its header states."""
    if size < expected:
        raise TruncatedFileError(f"the file is cut short: {expected - size} of {expected} bytes are missing")
    if size > expected:
        raise TrailingDataError(f"{size - expected} bytes follow after the end at {expected}")
