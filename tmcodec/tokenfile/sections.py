"""Sections: ``varint id, varint length, payload``, of the header and of each layer; and the CRS section.

Odd ids are mandatory, even ids may be skipped by a reader that does not know them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tmcodec.errors import MetadataError, UnknownSectionError
from tmcodec.tokenfile.binary import Cursor, encode_utf8, pack_varint
from tmcodec.tokenfile.metadata import MAX_CRS, need
from tmcodec.tokenfile.zstd import zstd_pack, zstd_size, zstd_unpack

_EPSG = re.compile(r"EPSG:([1-9][0-9]{0,8})")


def pack_section(section: int, payload: bytes) -> bytes:
    """Pack one section or field: varint id, varint length, payload."""
    return pack_varint(section) + pack_varint(len(payload)) + payload


def unpack_sections(
    cursor: Cursor, known: Iterable[int], repeatable: Iterable[int] = ()
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
        section = cursor.varint("section id")
        payload = cursor.take(cursor.varint(f"length of section {section}"), f"section {section}")
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
