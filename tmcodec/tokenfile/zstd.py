"""Zstandard frames whose decoded size is known before they are decoded."""

from __future__ import annotations

import zstandard

from tmcodec.errors import TmcodecError

LEVEL = 19


def zstd_pack(data: bytes) -> bytes:
    """Compress `data` to one frame with its content size and without a checksum."""
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(data)


def zstd_size(frame: bytes, what: str, error: type[TmcodecError]) -> int:
    """Return the content size that `frame` declares.

    Raises
    ------
    error
        If it is no frame or declares no size.
    """
    try:
        size = zstandard.frame_content_size(frame)
    except zstandard.ZstdError as cause:
        raise error(f"{what}: not a zstandard frame ({cause})") from None
    if size < 0:
        raise error(f"{what}: the zstandard frame does not declare its size")
    return int(size)


def zstd_unpack(frame: bytes, size: int, what: str, error: type[TmcodecError]) -> bytes:
    """Decompress exactly one frame of exactly `size` bytes; mirrors `zstd_pack`.

    Raises
    ------
    error
        If the frame declares another size (nothing is allocated then), is damaged, or is
        followed by anything.
    """
    declared = zstd_size(frame, what, error)
    if declared != size:
        raise error(f"{what}: the zstandard frame declares {declared} bytes where {size} belong")
    try:
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as cause:
        raise error(f"{what}: damaged zstandard frame ({cause})") from None
    if len(data) != size:
        raise error(f"{what}: the zstandard frame holds {len(data)} bytes, not {size}")
    return data
