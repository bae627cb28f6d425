"""Prelude: what a file begins with, magic, version, lengths and the checksum of the header.

Version 1 has lengths of fixed size, version 2 only the header's, as a varint: the index in the header tells
the payload's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

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

MAGIC = b"\x89TMC\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What TIFFs and BigTIFFs begin with."""
VERSIONS = (1, 2)
VERSION = 2
"""Version of the files that writers make."""
MAX_HEADER = 64 * 2**20
"""Default cap on the length of a header."""

_FIXED = struct.Struct("<8sBIQ")
_CRC = 4
_LONGEST = len(MAGIC) + 1 + 5 + _CRC
"""Bytes of the longest prelude of version 2; no file is as short."""


@dataclass(frozen=True)
class Prelude:
    """What stands before the header.

    Attributes
    ----------
    version
        Version of the format.
    size
        Bytes of the prelude, its checksum included.
    header_length
        Bytes of the header.
    payload_length
        Bytes of the payload, where the prelude states them; else None.
    crc
        CRC32C of the prelude before it and of the header.
    """

    version: int
    size: int
    header_length: int
    payload_length: int | None
    crc: int

    @property
    def payload_offset(self) -> int:
        """Where the payload begins."""
        return self.size + self.header_length


def pack_prelude(header: bytes, payload_length: int, version: int = VERSION) -> bytes:
    """Pack the prelude of a file with that header."""
    if version == 1:
        start = _FIXED.pack(MAGIC, version, len(header), payload_length)
    else:
        start = MAGIC + bytes([version]) + pack_varint(len(header))
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
    if len(head) > len(MAGIC) and head[len(MAGIC)] not in VERSIONS:
        raise UnsupportedVersionError(
            f"format version {head[len(MAGIC)]}; this tmcodec reads versions 1 and 2, a newer one may read it"
        )
    prelude = _unpack_short(head) if head[len(MAGIC) :][:1] == b"\x02" else _unpack_fixed(head, size)
    if prelude.payload_offset > size:
        expected = prelude.payload_offset + (prelude.payload_length or 0)
        least = "" if prelude.payload_length is not None else "at least "
        raise TruncatedFileError(
            f"the file ends within its header; {least}{expected - size} of {expected} bytes are missing"
        )
    if prelude.header_length > max_header:
        raise LimitExceededError(
            f"the header has {prelude.header_length} bytes, more than max_header={max_header};"
            " pass a higher max_header if you trust the file"
        )
    return prelude


def _unpack_fixed(head: bytes, size: int) -> Prelude:
    """Unpack the prelude of version 1."""
    whole = _FIXED.size + _CRC
    if len(head) < whole:
        raise TruncatedFileError(f"the file has {size} bytes, at least {whole - size} are missing")
    _, version, header_length, payload_length = _FIXED.unpack_from(head)
    (crc,) = struct.unpack_from("<I", head, _FIXED.size)
    return Prelude(version, whole, header_length, payload_length, crc)


def _unpack_short(head: bytes) -> Prelude:
    """Unpack the prelude of version 2."""
    cursor = Cursor(head, "prelude", TruncatedFileError if len(head) < _LONGEST else MetadataError)
    cursor.take(len(MAGIC) + 1, "magic and version")
    header_length = cursor.varint("header length", 2**32 - 1)
    (crc,) = struct.unpack("<I", cursor.take(_CRC, "checksum"))
    return Prelude(head[len(MAGIC)], len(head) - cursor.left, header_length, None, crc)


def check_header(head: bytes, prelude: Prelude) -> bytes:
    """Return the header out of `head` = prelude + header, its checksum checked.

    Raises
    ------
    HeaderChecksumError
    """
    header = head[prelude.size : prelude.payload_offset]
    computed = crc32c(head[: prelude.size - _CRC] + header)
    if computed != prelude.crc:
        raise HeaderChecksumError(f"the header is damaged: CRC32C {computed:08x}, stored {prelude.crc:08x}")
    return header


def _check_magic(head: bytes) -> None:
    """Tell a token file from a damaged one and from anything else."""
    if head[:8] == MAGIC:
        return
    if len(head) < 8 and MAGIC.startswith(head):
        raise TruncatedFileError(f"the file has {len(head)} bytes; it ends within the first eight")
    # 0x89 turns into 0x09 where the eighth bit is cut off, into C2 89 or EF BF BD by UTF-8.
    for lead in (b"\x89", b"\x09", b"\xc2\x89", b"\xef\xbf\xbd"):
        after = head.removeprefix(lead)
        if head.startswith(lead + b"TMC") and after[3:4] in (b"\r", b"\n"):
            raise LineEndingError("a text-mode transfer has rewritten this token file; transfer it as binary")
    if head[:4] in TIFF:
        raise NotATokenFileError("not a token file but a TIFF; `tmcodec encode` makes a token file of it")
    raise NotATokenFileError(
        f"not a token file: it begins with {head[:8].hex(' ') or 'nothing'}; give one that tmcodec wrote"
    )
