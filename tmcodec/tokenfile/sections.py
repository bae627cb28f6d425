"""Sections: id, length, payload, of the header and of each layer; and the CRS section.

Odd ids are mandatory, even ids may be skipped by a reader that does not know them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tmcodec.errors import MetadataError, UnknownSectionError
from tmcodec.tokenfile.binary import MAX_VARINT, Cursor, encode_utf8, pack_varint
from tmcodec.tokenfile.metadata import MAX_CRS, need
from tmcodec.tokenfile.prelude import VERSION
from tmcodec.tokenfile.zstd import zstd_pack, zstd_size, zstd_unpack

_EPSG = re.compile(r"EPSG:([1-9][0-9]{0,8})")


_SHORT_ID, _SHORT_LENGTH = 32, 7
"""Version 2 puts an id and a length below these into one byte."""


def pack_section(section: int, payload: bytes, version: int = VERSION) -> bytes:
    """Pack one section or field: its key, then the payload."""
    return _pack_key(section, len(payload), version) + payload


def _pack_key(section: int, length: int, version: int) -> bytes:
    """Pack id and length: two varints, or from version 2 a byte where they fit."""
    if version == 1:
        return pack_varint(section) + pack_varint(length)
    low, short = (section if section < _SHORT_ID else 0), min(length, _SHORT_LENGTH)
    more = b"" if low else pack_varint(section)
    return bytes([low << 3 | short]) + more + (b"" if short < _SHORT_LENGTH else pack_varint(length - short))


def _unpack_key(cursor: Cursor, version: int) -> tuple[int, int]:
    """Invert `_pack_key`."""
    if version == 1:
        section = cursor.varint("section id")
        return section, cursor.varint(f"length of section {section}")
    low, length = divmod(cursor.u8("section id"), 8)
    section = low or cursor.varint("section id")
    if not low and section < _SHORT_ID:
        raise cursor.fail(f"section id {section} fits into the first byte")
    if length == _SHORT_LENGTH:
        length += cursor.varint(f"length of section {section}", MAX_VARINT - _SHORT_LENGTH)
    return section, length


def unpack_sections(
    cursor: Cursor, known: Iterable[int], repeatable: Iterable[int] = (), version: int = VERSION
) -> list[tuple[int, memoryview]]:
    """Split `cursor` into sections; unknown optional ones are left out.

    Raises
    ------
    UnknownSectionError
        For an odd id that is not known.
    MetadataError
        If ids do not ascend, or one repeats that may not.
    """
    known, repeatable = set(known), set(repeatable)
    sections: list[tuple[int, memoryview]] = []
    last = -1
    while cursor.left:
        section, length = _unpack_key(cursor, version)
        payload = cursor.take(length, f"section {section}")
        if section < last or (section == last and section not in repeatable):
            raise cursor.fail(f"section {section} is repeated or out of order")
        last = section
        if section in known:
            sections.append((section, payload))
        elif section % 2:
            raise UnknownSectionError(
                f"{cursor.what}: mandatory section {section} is unknown; a newer tmcodec may know it"
            )
    return sections


# --------------------------------------------------------------------------- CRS

_CRS_EPSG, _CRS_PLAIN, _CRS_ZSTD = 0, 1, 2


def pack_crs(crs: str) -> bytes:
    """Pack a CRS: its EPSG code, or its text, compressed where that is shorter."""
    match = _EPSG.fullmatch(crs)
    if match:
        return bytes([_CRS_EPSG]) + pack_varint(int(match[1]))
    text = encode_utf8(crs, MAX_CRS, "crs")
    frame = zstd_pack(text)
    return bytes([_CRS_ZSTD]) + frame if len(frame) < len(text) else bytes([_CRS_PLAIN]) + text


def unpack_crs(data: memoryview) -> str:
    """Invert `pack_crs`."""
    cursor = Cursor(data, "crs")
    kind = cursor.u8("kind")
    if kind == _CRS_EPSG:
        code = cursor.varint("EPSG code", 999_999_999)
        cursor.end()
        need(code > 0, "crs", "EPSG code 0")
        return f"EPSG:{code}"
    need(kind in (_CRS_PLAIN, _CRS_ZSTD), "crs", f"kind {kind} is not defined")
    text = bytes(cursor.rest())
    if kind == _CRS_ZSTD:
        size = zstd_size(text, "crs", MetadataError)
        need(size <= MAX_CRS, "crs", f"{size} bytes of WKT, more than {MAX_CRS}")
        text = zstd_unpack(text, size, "crs", MetadataError)
    return Cursor(text, "crs").utf8(len(text), "WKT")
