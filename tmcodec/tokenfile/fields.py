"""The fields of a layer as bytes, packed and unpacked in pairs.

A field that equals its documented default is not stored; ``docs/format.md`` lists them all.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from tmcodec.errors import MetadataError, UnknownSectionError
from tmcodec.modalities import MODALITIES, Modality
from tmcodec.tokenfile.balance import MAX_VALUES, pack_balance, unpack_balance
from tmcodec.tokenfile.binary import Cursor, encode_utf8, pack_number, pack_string, pack_varint, zigzag
from tmcodec.tokenfile.classes import pack_sets, unpack_sets
from tmcodec.tokenfile.metadata import (
    DTYPE_IDS,
    MASK_KIND_IDS,
    MAX_CHUNK,
    MAX_LEVEL,
    MAX_NAME,
    MAX_PATCH,
    MAX_SIDE,
    MAX_TEXT,
    MAX_TILE,
    MAX_TIMES,
    S2_OFFSET_IDS,
    LayerMeta,
    need,
    sorted_tags,
)
from tmcodec.tokenfile.prelude import VERSION
from tmcodec.tokenfile.registered import REGISTERED, registered_number
from tmcodec.tokenfile.sections import pack_section, unpack_sections

MODALITY_IDS = {"S2L2A": 1, "S2L1C": 2, "S2RGB": 3, "S1GRD": 4, "S1RTC": 5, "DEM": 6, "NDVI": 7, "LULC": 8}

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)


@dataclass
class _Context:
    """What packing and unpacking one field needs to know beside the field."""

    crs: list[str]
    version: int
    modality: str = ""
    stored_bands: int = 0
    room: int = MAX_VALUES

    @property
    def standard(self) -> Modality | None:
        """The modality's row in the table, if the format has a number for it."""
        return MODALITIES[self.modality] if self.modality in MODALITY_IDS else None

    @property
    def bands(self) -> int:
        """Number of bands: of the field, which comes before those that ask, or of the modality."""
        return self.stored_bands or (len(self.standard.bands) if self.standard else 1)


def _pack_grid(meta: LayerMeta, context: _Context) -> bytes:
    return pack_varint(meta.width) + pack_varint(meta.height)


def _unpack_grid(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"width": cursor.varint("width", MAX_SIDE), "height": cursor.varint("height", MAX_SIDE)}


def _pack_modality(meta: LayerMeta, context: _Context) -> bytes | None:
    registered = registered_number(meta.tokenizer, meta.weights_sha256)
    if context.version > 1 and registered is not None and _registered_modality(registered) == meta.modality:
        return None
    number = MODALITY_IDS.get(meta.modality, 0)
    return pack_varint(number) + (b"" if number else encode_utf8(meta.modality, MAX_NAME, "modality"))


def _unpack_modality(cursor: Cursor, context: _Context) -> dict[str, Any]:
    number = cursor.varint("modality")
    if number == 0:
        return {"modality": cursor.utf8(cursor.left, "modality")}
    names = [name for name, n in MODALITY_IDS.items() if n == number]
    need(bool(names), "modality", f"number {number} is not defined")
    return {"modality": names[0]}


def _mini_prefix(modality: str) -> str:
    """Return what the names of the embedded tokenizers of `modality` begin with."""
    return f"mini-{modality.encode().lower().decode()}-v"  # bytes.lower touches ASCII only


def _registered_modality(number: int) -> str | None:
    """Return the modality of a registered tokenizer, which its name tells."""
    prefix = REGISTERED[number][0].rpartition("-v")[0] + "-v"
    return next((modality for modality in MODALITY_IDS if _mini_prefix(modality) == prefix), None)


def _pack_registered(meta: LayerMeta, context: _Context) -> bytes | None:
    number = registered_number(meta.tokenizer, meta.weights_sha256)
    return None if number is None else pack_varint(number)


def _unpack_registered(cursor: Cursor, context: _Context) -> dict[str, Any]:
    number = cursor.varint("tokenizer number")
    if number not in REGISTERED:
        raise UnknownSectionError(
            f"{cursor.what}: tokenizer number {number} is not registered; a newer tmcodec may know it"
        )
    name, sha256 = REGISTERED[number]
    if context.version > 1:
        context.modality = context.modality or _registered_modality(number) or ""
    return {"tokenizer": name, "weights_sha256": bytes.fromhex(sha256)}


def _pack_tokenizer(meta: LayerMeta, context: _Context) -> bytes | None:
    if registered_number(meta.tokenizer, meta.weights_sha256) is not None:
        return None
    prefix = _mini_prefix(meta.modality)
    version = meta.tokenizer.removeprefix(prefix)
    if meta.tokenizer.startswith(prefix) and re.fullmatch("[1-9][0-9]{0,8}", version):
        return None if version == "1" else pack_varint(int(version))
    return pack_varint(0) + encode_utf8(meta.tokenizer, MAX_NAME, "tokenizer")


def _unpack_tokenizer(cursor: Cursor, context: _Context) -> dict[str, Any]:
    version = cursor.varint("tokenizer version", 999_999_999)
    if version:
        return {"tokenizer": _mini_prefix(context.modality) + str(version)}
    return {"tokenizer": cursor.utf8(cursor.left, "tokenizer")}


def _pack_weights(meta: LayerMeta, context: _Context) -> bytes | None:
    known = registered_number(meta.tokenizer, meta.weights_sha256) is not None
    return None if known else meta.weights_sha256


def _unpack_weights(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"weights_sha256": bytes(cursor.take(32, "SHA-256"))}


def _pack_levels(meta: LayerMeta, context: _Context) -> bytes | None:
    if context.standard and meta.levels == context.standard.levels:
        return None
    return b"".join(map(pack_varint, meta.levels))


def _unpack_levels(cursor: Cursor, context: _Context) -> dict[str, Any]:
    levels = []
    while cursor.left:
        levels.append(cursor.varint("level", MAX_LEVEL))
    return {"levels": tuple(levels)}


def _pack_sizes(meta: LayerMeta, context: _Context) -> bytes | None:
    sizes = (meta.patch, meta.tile, meta.chunk)
    return None if sizes == (16, 256, 64) else b"".join(map(pack_varint, sizes))


def _unpack_sizes(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {
        "patch": cursor.varint("patch", MAX_PATCH),
        "tile": cursor.varint("tile", MAX_TILE),
        "chunk": cursor.varint("chunk", MAX_CHUNK),
    }


def _pack_dtype(meta: LayerMeta, context: _Context) -> bytes | None:
    if context.standard and meta.dtype == context.standard.dtype:
        return None
    return bytes([DTYPE_IDS[meta.dtype]])


def _unpack_dtype(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"dtype": _name_of(cursor.u8("dtype"), DTYPE_IDS, "dtype")}


def _pack_bands(meta: LayerMeta, context: _Context) -> bytes | None:
    if context.standard and meta.bands == context.standard.bands:
        return None
    return b"".join(pack_string(band, MAX_NAME, "band name") for band in meta.bands)


def _unpack_bands(cursor: Cursor, context: _Context) -> dict[str, Any]:
    bands = []
    while cursor.left:
        bands.append(cursor.string(MAX_NAME, "band name"))
    context.stored_bands = len(bands)
    return {"bands": tuple(bands)}


def _pack_scale(meta: LayerMeta, context: _Context) -> bytes | None:
    # As texts: -0.0 is not 0.0 and must come back as it was.
    if repr((float(meta.scale), float(meta.offset))) == repr(
        _usual_scale(context.version, meta.modality, meta.s2_offset)
    ):
        return None
    return pack_number(meta.scale) + pack_number(meta.offset)


def _usual_scale(version: int, modality: str, s2_offset: str) -> tuple[float, float]:
    """Return the default of scale and offset: from version 2, what Sentinel-2 without its 1000 needs."""
    harmonised = version > 1 and s2_offset == "absent" and modality in ("S2L2A", "S2L1C")
    return (1.0, 1000.0) if harmonised else (1.0, 0.0)


def _unpack_scale(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"scale": cursor.number("scale"), "offset": cursor.number("offset")}


def _pack_s2_offset(meta: LayerMeta, context: _Context) -> bytes | None:
    return bytes([S2_OFFSET_IDS[meta.s2_offset]]) if meta.s2_offset else None


def _unpack_s2_offset(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"s2_offset": _name_of(cursor.u8("s2_offset"), S2_OFFSET_IDS, "s2_offset")}


def _pack_nodata(meta: LayerMeta, context: _Context) -> bytes | None:
    if meta.nodata is None:
        return None
    if isinstance(meta.nodata, int):
        return b"\x00" + pack_varint(zigzag(meta.nodata))
    if context.version > 1 and math.isnan(meta.nodata):
        return b"\x02"
    return b"\x01" + pack_number(meta.nodata)


def _unpack_nodata(cursor: Cursor, context: _Context) -> dict[str, Any]:
    kind = cursor.u8("nodata kind")
    if kind == 2 and context.version > 1:
        return {"nodata": math.nan}
    need(kind <= 1, "nodata", f"kind {kind} is not defined")
    return {"nodata": cursor.number("nodata") if kind else cursor.signed("nodata")}


def _pack_mask_kind(meta: LayerMeta, context: _Context) -> bytes | None:
    return None if meta.mask_kind == "nodata" else bytes([MASK_KIND_IDS[meta.mask_kind]])


def _unpack_mask_kind(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"mask_kind": _name_of(cursor.u8("mask_kind"), MASK_KIND_IDS, "mask_kind")}


def _pack_crs_index(meta: LayerMeta, context: _Context) -> bytes | None:
    number = 0 if meta.crs is None else context.crs.index(meta.crs) + 1
    if context.version > 1:
        return None if number == min(1, len(context.crs)) else pack_varint(number)
    return pack_varint(number - 1) if number else None


def _unpack_crs_index(cursor: Cursor, context: _Context) -> dict[str, Any]:
    index = cursor.varint("crs")
    if context.version > 1:
        if index == 0:
            return {"crs": None}
        index -= 1
    need(index < len(context.crs), "crs", f"number {index} of {len(context.crs)}")
    return {"crs": context.crs[index]}


# Which of (a, b, c, d, e, f) are stored; the others follow from the kind.
_TRANSFORM_KINDS = ((0, 1, 2, 3, 4, 5), (0, 2, 4, 5), (0, 2, 5))
_WHOLE_PIXELS = 3
"""From version 2: a, c / a and f / a, the last two whole numbers."""
_MOST_PIXELS = 2**31


def _pack_transform(meta: LayerMeta, context: _Context) -> bytes | None:
    if meta.transform is None:
        return None
    a, b, _, d, e, _ = meta.transform
    upright = repr((b, d)) == "(0.0, 0.0)"  # not -0.0, which must come back as it was
    kind = (2 if e == -a != 0 else 1) if upright else 0
    if kind == 2 and context.version > 1 and (places := _whole_pixels(meta.transform)) is not None:
        return bytes([_WHOLE_PIXELS]) + pack_number(a) + b"".join(pack_varint(zigzag(n)) for n in places)
    return bytes([kind]) + b"".join(pack_number(meta.transform[i]) for i in _TRANSFORM_KINDS[kind])


def _whole_pixels(transform: tuple[float, ...]) -> tuple[int, int] | None:
    """Return c / a and f / a where c and f are whole numbers of pixels exactly, else None."""
    a, _, c, _, _, f = transform
    if not all(abs(v / a) <= _MOST_PIXELS for v in (c, f)):
        return None
    places = round(c / a), round(f / a)
    return places if repr((places[0] * a, places[1] * a)) == repr((c, f)) else None


def _unpack_transform(cursor: Cursor, context: _Context) -> dict[str, Any]:
    kind = cursor.u8("transform kind")
    if kind == _WHOLE_PIXELS and context.version > 1:
        a = cursor.number("transform")
        col, row = (cursor.signed("transform") for _ in range(2))
        need(max(abs(col), abs(row)) <= _MOST_PIXELS, "transform", "it lies too far from the origin")
        return {"transform": (a, 0.0, col * a, 0.0, -a, row * a)}
    need(kind < len(_TRANSFORM_KINDS), "transform", f"kind {kind} is not defined")
    values = dict.fromkeys(range(6), 0.0)
    values |= {i: cursor.number("transform") for i in _TRANSFORM_KINDS[kind]}
    if kind == 2:
        values[4] = -values[0]
    return {"transform": tuple(values[i] for i in range(6))}


def _pack_times(meta: LayerMeta, context: _Context) -> bytes | None:
    return None if meta.times == (None,) else b"".join(map(pack_time, meta.times))


def _unpack_times(cursor: Cursor, context: _Context) -> dict[str, Any]:
    need(cursor.left <= 10 * MAX_TIMES, "times", "too many time steps")
    times = []
    while cursor.left:
        times.append(unpack_time(cursor))
    return {"times": tuple(times)}


def pack_time(time: datetime | None) -> bytes:
    """Pack a time: 0 for None, else zigzag since 1970 << 2 | unit (1 seconds, 2 microseconds)."""
    if time is None:
        return pack_varint(0)
    since = time - _EPOCH
    if since % _SECOND:
        return pack_varint(zigzag(since // _MICROSECOND) << 2 | 2)
    return pack_varint(zigzag(since // _SECOND) << 2 | 1)


def unpack_time(cursor: Cursor) -> datetime | None:
    """Invert `pack_time`."""
    code = cursor.varint("time")
    if code == 0:
        return None
    unit = {1: _SECOND, 2: _MICROSECOND}.get(code & 3)
    since = code >> 2
    since = since >> 1 if since & 1 == 0 else -((since + 1) >> 1)
    try:
        if unit is not None:
            return _EPOCH + since * unit
    except OverflowError:
        pass
    raise cursor.fail(f"{code} is not a time")


def _pack_balance(meta: LayerMeta, context: _Context) -> bytes | None:
    return None if meta.balance is None else pack_balance(meta.balance, len(meta.bands), context.version)


def _unpack_balance(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"balance": unpack_balance(cursor, context.bands, context.version, context.room)}


def _pack_class_sets(meta: LayerMeta, context: _Context) -> bytes | None:
    return pack_sets(meta.class_sets) if meta.class_sets else None


def _unpack_class_sets(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"class_sets": unpack_sets(cursor, MAX_TIMES)}


def _pack_name(meta: LayerMeta, context: _Context) -> bytes | None:
    return None if meta.name == meta.modality else encode_utf8(meta.name, MAX_NAME, "name")


def _pack_units(meta: LayerMeta, context: _Context) -> bytes | None:
    standard = context.standard.units if context.standard else ""
    return None if meta.units == standard else encode_utf8(meta.units, MAX_NAME, "units")


def _pack_sampler(meta: LayerMeta, context: _Context) -> bytes | None:
    return None if meta.sampler == "ddim" else encode_utf8(meta.sampler, MAX_NAME, "sampler")


def _pack_description(meta: LayerMeta, context: _Context) -> bytes | None:
    return encode_utf8(meta.description, MAX_TEXT, "description") or None


def _text(name: str) -> Callable[[Cursor, _Context], dict[str, Any]]:
    """Return the unpacking function of a field that is nothing but a text."""
    return lambda cursor, context: {name: cursor.utf8(cursor.left, name)}


def _pack_steps(meta: LayerMeta, context: _Context) -> bytes | None:
    return None if meta.steps == 1 else pack_varint(meta.steps)


def _pack_seed(meta: LayerMeta, context: _Context) -> bytes | None:
    return None if meta.seed == 0 else pack_varint(meta.seed)


def _integer(name: str) -> Callable[[Cursor, _Context], dict[str, Any]]:
    """Return the unpacking function of a field that is nothing but a varint."""
    return lambda cursor, context: {name: cursor.varint(name)}


def _pack_layer_tags(meta: LayerMeta, context: _Context) -> bytes | None:
    return pack_tags(meta.tags) or None


def _unpack_layer_tags(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"tags": unpack_tags(cursor)}


def pack_tags(tags: Mapping[str, str]) -> bytes:
    """Pack tags, sorted by the bytes of their names: name, value, name, value, ..."""
    return b"".join(
        pack_string(key, MAX_NAME, "tag name") + pack_string(value, MAX_TEXT, "tag")
        for key, value in sorted_tags(tags).items()
    )


def unpack_tags(cursor: Cursor) -> dict[str, str]:
    """Invert `pack_tags`."""
    tags: dict[str, str] = {}
    last = b""
    while cursor.left:
        key = cursor.string(MAX_NAME, "tag name")
        if key.encode() <= last:
            raise cursor.fail("tag names are empty, repeated or not sorted")
        last = key.encode()
        tags[key] = cursor.string(MAX_TEXT, "tag")
    return tags


def _name_of(number: int, table: Mapping[str, int], what: str) -> str:
    """Return the key of `table` with that number."""
    for name, n in table.items():
        if n == number:
            return name
    raise MetadataError(f"{what}: number {number} is not defined")


_Pack = Callable[[LayerMeta, _Context], "bytes | None"]
_Unpack = Callable[[Cursor, _Context], dict[str, Any]]

# id -> pack (None: equal to the default, not stored) and its inverse.
_FIELDS: dict[int, tuple[_Pack, _Unpack]] = {
    1: (_pack_grid, _unpack_grid),
    2: (_pack_name, _text("name")),
    3: (_pack_modality, _unpack_modality),
    4: (_pack_units, _text("units")),
    5: (_pack_tokenizer, _unpack_tokenizer),
    6: (_pack_sampler, _text("sampler")),
    7: (_pack_weights, _unpack_weights),
    8: (_pack_steps, _integer("steps")),
    9: (_pack_levels, _unpack_levels),
    10: (_pack_seed, _integer("seed")),
    11: (_pack_sizes, _unpack_sizes),
    12: (_pack_layer_tags, _unpack_layer_tags),
    13: (_pack_dtype, _unpack_dtype),
    14: (_pack_description, _text("description")),
    15: (_pack_bands, _unpack_bands),
    16: (_pack_balance, _unpack_balance),
    17: (_pack_scale, _unpack_scale),
    18: (_pack_class_sets, _unpack_class_sets),
    19: (_pack_s2_offset, _unpack_s2_offset),
    21: (_pack_nodata, _unpack_nodata),
    23: (_pack_mask_kind, _unpack_mask_kind),
    25: (_pack_crs_index, _unpack_crs_index),
    27: (_pack_transform, _unpack_transform),
    29: (_pack_times, _unpack_times),
    31: (_pack_registered, _unpack_registered),
}
_MODALITY, _TOKENIZER, _WEIGHTS, _REGISTERED = 3, 5, 7, 31


def pack_layer(meta: LayerMeta, crs: list[str], version: int = VERSION) -> bytes:
    """Pack the fields of a layer; `crs` is the file's CRS table."""
    context = _Context(crs, version, meta.modality)
    packed = ((number, _FIELDS[number][0](meta, context)) for number in sorted(_FIELDS))
    return b"".join(pack_section(number, data, version) for number, data in packed if data is not None)


def unpack_layer(
    data: memoryview, crs: list[str], what: str, version: int = VERSION, room: int = MAX_VALUES
) -> LayerMeta:
    """Invert `pack_layer`, whose balance has at most `room` integers.

    Raises
    ------
    MetadataError, UnknownSectionError
    """
    stored = dict(unpack_sections(Cursor(data, what), _FIELDS, version=version))
    if _REGISTERED in stored and not stored.keys().isdisjoint({_TOKENIZER, _WEIGHTS}):
        raise MetadataError(f"{what}: a registered tokenizer beside another name or checksum")
    context = _Context(crs, version, room=room)
    values: dict[str, Any] = {}
    # The modality first, or else the tokenizer that tells it: the defaults of the other fields depend on it.
    for number in sorted(stored, key=lambda n: (n != _MODALITY, n != _REGISTERED, n)):
        cursor = Cursor(stored[number], f"{what}, field {number}")
        values |= _FIELDS[number][1](cursor, context)
        cursor.end()
        context.modality = values.get("modality", context.modality)
    values = _defaults(context, values.get("s2_offset", "")) | values
    missing = [
        f.name
        for f in dataclasses.fields(LayerMeta)
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    need(not missing, what, f"{', '.join(missing)} missing")
    return LayerMeta(**values)


def _defaults(context: _Context, s2_offset: str) -> dict[str, Any]:
    """Return the defaults that depend on the modality and on the file."""
    modality, row = context.modality, context.standard
    if not modality:
        return {}
    defaults: dict[str, Any] = {"modality": modality, "name": modality}
    defaults["tokenizer"] = _mini_prefix(modality) + "1"
    defaults["scale"], defaults["offset"] = _usual_scale(context.version, modality, s2_offset)
    if context.version > 1 and context.crs:
        defaults["crs"] = context.crs[0]
    if row:
        defaults |= {"levels": row.levels, "dtype": row.dtype, "bands": row.bands, "units": row.units}
    return defaults
