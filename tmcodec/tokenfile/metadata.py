"""What the header says: metadata of the file and of each layer, packed and unpacked in pairs.

A field that equals its documented default is not stored. Sections and fields are
``varint id, varint length, payload``; odd ids are mandatory, even ids may be skipped by a
reader that does not know them. ``docs/format.md`` lists them all.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from tmcodec.errors import MetadataError, UnknownSectionError
from tmcodec.modalities import MODALITIES, Modality
from tmcodec.tokenfile.binary import Cursor, encode_utf8, pack_number, pack_string, pack_varint, zigzag
from tmcodec.tokenfile.geometry import TokenGrid
from tmcodec.tokenfile.zstd import zstd_pack, zstd_size, zstd_unpack

MODALITY_IDS = {"S2L2A": 1, "S2L1C": 2, "S2RGB": 3, "S1GRD": 4, "S1RTC": 5, "DEM": 6, "NDVI": 7, "LULC": 8}
DTYPE_IDS = {
    "uint8": 1,
    "int8": 2,
    "uint16": 3,
    "int16": 4,
    "uint32": 5,
    "int32": 6,
    "float16": 7,
    "float32": 8,
    "float64": 9,
}
S2_OFFSET_IDS = {"": 0, "present": 1, "absent": 2}
MASK_KIND_IDS = {"nodata": 0, "mask": 1}

MAX_SIDE = 2**31 - 1
MAX_NAME = 255
MAX_TEXT = 65535
MAX_CRS = 65535
MAX_CRS_COUNT = 255
"""With `MAX_CRS` bounds what compressed WKT can grow to."""
MAX_COUNT = 65535
"""Most layers, bands, tags of one owner."""
MAX_TIMES = 2**20
MAX_CHUNKS = 2**40
MAX_PATCH = 1024
MAX_TILE = 65536
MAX_CHUNK = 256
"""Tokens per chunk side; bounds the big integer of the mixed-radix coder."""
MAX_CHUNK_PIXELS = 8192
"""Pixels per chunk side."""
MAX_LEVEL = 256
MAX_CODEBOOK = 2**31 - 1
MAX_SEED = 2**64 - 1
MAX_STEPS = 65535

_NAN = math.nan  # one object for every nodata NaN, so that equal metadata compare equal
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)
_EPSG = re.compile(r"EPSG:([1-9][0-9]{0,8})")

Times = tuple[datetime | None, ...]
Transform = tuple[float, float, float, float, float, float]


# --------------------------------------------------------------------------- the dataclasses


@dataclass(frozen=True, eq=False)
class LayerMeta:
    """Metadata of one layer. Checked when it is made, by writer and reader alike.

    Attributes
    ----------
    name
        Name of the layer, unique in its file.
    modality
        Key of `tmcodec.modalities.MODALITIES`, or any other name.
    tokenizer
        Name of the tokenizer.
    weights_sha256
        SHA-256 of its weights, 32 bytes.
    levels
        FSQ levels; the codebook has ``prod(levels)`` tokens.
    patch, tile
        Pixels per token side, and native tile of the tokenizer in pixels.
    chunk
        Tokens per chunk side.
    width, height
        Raster size in pixels.
    dtype
        numpy name of the raster's dtype.
    bands
        Band names.
    units
        Unit of the physical values.
    scale, offset
        physical = stored * scale + offset.
    s2_offset
        Whether Sentinel-2's radiometric offset is in the raster: ``"present"``,
        ``"absent"``, or ``""`` where it does not apply.
    nodata
        Nodata value; int and float are told apart.
    mask_kind
        How invalid pixels come back: ``"nodata"`` value or GeoTIFF ``"mask"`` band.
    crs
        ``"EPSG:<code>"`` or WKT.
    transform
        The affine (a, b, c, d, e, f): x = a*col + b*row + c, y = d*col + e*row + f.
    times
        Acquisition time of each step, UTC to the microsecond (naive ones are taken for
        UTC); its length is the length of the time axis.
    sampler, steps, seed
        Defaults for the diffusion decoder.
    tags
        Free texts.
    description
        Free text.

    Raises
    ------
    MetadataError
        If a field is out of its range; the message names it.
    """

    name: str
    modality: str
    tokenizer: str
    weights_sha256: bytes
    levels: tuple[int, ...]
    width: int
    height: int
    dtype: str
    bands: tuple[str, ...]
    patch: int = 16
    tile: int = 256
    chunk: int = 64
    units: str = ""
    scale: float = 1.0
    offset: float = 0.0
    s2_offset: str = ""
    nodata: float | int | None = None
    mask_kind: str = "nodata"
    crs: str | None = None
    transform: Transform | None = None
    times: Times = (None,)
    sampler: str = "ddim"
    steps: int = 1
    seed: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        _normalise(self)
        _check_layer(self)

    def __eq__(self, other: object) -> bool:
        # Tuples compare by identity first, which makes the shared NaN equal to itself; the
        # generated method of Python 3.13 does not.
        return isinstance(other, LayerMeta) and _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash((self.name, self.modality, self.weights_sha256))

    @property
    def grid(self) -> TokenGrid:
        """The token grid and its chunks."""
        return TokenGrid(self.width, self.height, self.patch, self.chunk)

    @property
    def rows(self) -> int:
        """Token rows."""
        return self.grid.rows

    @property
    def cols(self) -> int:
        """Token columns."""
        return self.grid.cols

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return math.prod(self.levels)

    @property
    def chunks(self) -> int:
        """Chunks of all time steps."""
        return self.grid.chunks * len(self.times)

    def replace(self, **changes: Any) -> LayerMeta:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class FileMeta:
    """Metadata of a token file.

    Attributes
    ----------
    layers
        One `LayerMeta` each, with different names; at least one.
    tags
        Free texts about the whole file.

    Raises
    ------
    MetadataError
        If there is no layer or two have the same name.
    """

    layers: tuple[LayerMeta, ...]
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "tags", _sorted_tags(self.tags))
        _need(
            1 <= len(self.layers) <= MAX_COUNT, "layers", f"{len(self.layers)} layers; 1 to {MAX_COUNT} fit"
        )
        names = [layer.name for layer in self.layers]
        _need(len(set(names)) == len(names), "layers", "two layers have the same name")

    def __hash__(self) -> int:
        return hash(self.layers)


def _values(meta: LayerMeta) -> tuple[object, ...]:
    """Return the fields of `meta` in order."""
    return tuple(getattr(meta, f.name) for f in dataclasses.fields(meta))


# --------------------------------------------------------------------------- checks


def _need(condition: bool, name: str, message: str) -> None:
    """Raise `MetadataError` naming the field unless `condition` holds."""
    if not condition:
        raise MetadataError(f"{name}: {message}")


def _normalise(meta: LayerMeta) -> None:
    """Bring every field of `meta` to its exact type (numpy scalars, lists, naive times)."""

    def put(name: str, convert: Callable[[Any], Any]) -> None:
        value = getattr(meta, name)
        try:
            object.__setattr__(meta, name, convert(value))
        except (TypeError, ValueError, OverflowError):
            raise MetadataError(f"{name}: {value!r} has the wrong type") from None

    for name in ("width", "height", "patch", "tile", "chunk", "steps", "seed"):
        put(name, operator.index)
    for name in ("scale", "offset"):
        put(name, float)
    put("weights_sha256", lambda v: bytes(memoryview(v)))
    put("levels", lambda v: tuple(operator.index(level) for level in v))
    put("bands", tuple)
    put("nodata", _normal_nodata)
    put("transform", lambda v: None if v is None else tuple(float(x) for x in v))
    put("times", lambda v: tuple(_normal_time(t) for t in v))
    object.__setattr__(meta, "tags", _sorted_tags(meta.tags))


def _normal_nodata(value: Any) -> float | int | None:
    """Return a Python int, float or None; every NaN becomes the same object."""
    if value is None:
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if not isinstance(value, numbers.Real):
        raise TypeError
    return _NAN if math.isnan(value) else float(value)


def _normal_time(time: datetime | None) -> datetime | None:
    """Return `time` in UTC; a naive one is taken for UTC."""
    if time is None:
        return None
    utc = time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
    return utc.replace(fold=0)  # means nothing in UTC, and is not stored


def _sorted_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return `tags` checked and sorted by the UTF-8 bytes of their keys."""
    _need(
        isinstance(tags, Mapping) and len(tags) <= MAX_COUNT, "tags", f"not a mapping of at most {MAX_COUNT}"
    )
    for key, value in tags.items():
        _check_text("tag name", key, 1, MAX_NAME)
        _check_text(f"tag {key[:40]!r}", value, 0, MAX_TEXT)
    return dict(sorted(tags.items(), key=lambda item: item[0].encode("utf-8")))


def _check_text(name: str, text: object, low: int, high: int) -> None:
    """Check that `text` is a str of `low` to `high` bytes of UTF-8."""
    if not isinstance(text, str):
        raise MetadataError(f"{name}: {text!r} is not a text")
    size = len(encode_utf8(text, high, name))
    _need(size >= low, name, "is empty")


def _check_layer(meta: LayerMeta) -> None:
    """Check every field of `meta`."""
    for name in ("name", "modality", "tokenizer"):
        _check_text(name, getattr(meta, name), 1, MAX_NAME)
    for name in ("units", "sampler"):
        _check_text(name, getattr(meta, name), 0, MAX_NAME)
    _check_text("description", meta.description, 0, MAX_TEXT)
    _need(len(meta.weights_sha256) == 32, "weights_sha256", f"{len(meta.weights_sha256)} bytes, not 32")
    _need(meta.dtype in DTYPE_IDS, "dtype", f"{meta.dtype!r} is none of {', '.join(DTYPE_IDS)}")
    _need(
        meta.s2_offset in S2_OFFSET_IDS, "s2_offset", f"{meta.s2_offset!r} is none of '', 'present', 'absent'"
    )
    _need(meta.mask_kind in MASK_KIND_IDS, "mask_kind", f"{meta.mask_kind!r} is neither 'nodata' nor 'mask'")
    _need(1 <= len(meta.bands) <= MAX_COUNT, "bands", f"{len(meta.bands)} bands; 1 to {MAX_COUNT} fit")
    for band in meta.bands:
        _check_text("band name", band, 0, MAX_NAME)
    _check_numbers(meta)
    _check_geometry(meta)
    _check_georeference(meta)


def _check_numbers(meta: LayerMeta) -> None:
    """Check levels, scale, offset, nodata, steps and seed."""
    levels_fit = len(meta.levels) <= 31 and all(2 <= level <= MAX_LEVEL for level in meta.levels)
    _need(
        levels_fit and len(meta.levels) > 0,
        "levels",
        f"{meta.levels} are not 1 to 31 levels of 2 to {MAX_LEVEL}",
    )
    _need(
        meta.codebook_size <= MAX_CODEBOOK, "levels", f"a codebook of {meta.codebook_size} does not fit int32"
    )
    _need(math.isfinite(meta.scale) and meta.scale != 0, "scale", f"{meta.scale} is not a finite factor")
    _need(math.isfinite(meta.offset), "offset", f"{meta.offset} is not finite")
    if isinstance(meta.nodata, int):
        _need(-(2**63) <= meta.nodata < 2**63, "nodata", f"{meta.nodata} does not fit into 64 bits")
    _need(1 <= meta.steps <= MAX_STEPS, "steps", f"{meta.steps} is not in 1..{MAX_STEPS}")
    _need(0 <= meta.seed <= MAX_SEED, "seed", f"{meta.seed} is not in 0..{MAX_SEED}")


def _check_geometry(meta: LayerMeta) -> None:
    """Check sizes of raster, patch, tile, chunk and time axis."""
    for name, high in (
        ("width", MAX_SIDE),
        ("height", MAX_SIDE),
        ("patch", MAX_PATCH),
        ("tile", MAX_TILE),
        ("chunk", MAX_CHUNK),
    ):
        value = getattr(meta, name)
        _need(1 <= value <= high, name, f"{value} is not in 1..{high}")
    _need(meta.tile % meta.patch == 0, "tile", f"{meta.tile} is no multiple of the patch of {meta.patch}")
    side = meta.patch * meta.chunk
    _need(side <= MAX_CHUNK_PIXELS, "chunk", f"{side} pixels a side, more than {MAX_CHUNK_PIXELS}")
    _need(1 <= len(meta.times) <= MAX_TIMES, "times", f"{len(meta.times)} time steps; 1 to {MAX_TIMES} fit")
    _need(
        meta.chunks <= MAX_CHUNKS, "chunk", f"{meta.chunks} chunks, more than {MAX_CHUNKS}; use larger ones"
    )


def _check_georeference(meta: LayerMeta) -> None:
    """Check CRS and transform."""
    if meta.crs is not None:
        _check_text("crs", meta.crs, 1, MAX_CRS)
    if meta.transform is not None:
        _need(len(meta.transform) == 6, "transform", f"{len(meta.transform)} coefficients, not 6")
        _need(all(map(math.isfinite, meta.transform)), "transform", f"{meta.transform} is not finite")


# --------------------------------------------------------------------------- sections


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
        _need(code > 0, "crs", "EPSG code 0")
        return f"EPSG:{code}"
    _need(kind in (_CRS_PLAIN, _CRS_ZSTD), "crs", f"kind {kind} is not defined")
    text = bytes(cursor.rest())
    if kind == _CRS_ZSTD:
        size = zstd_size(text, "crs", MetadataError)
        _need(size <= MAX_CRS, "crs", f"{size} bytes of WKT, more than {MAX_CRS}")
        text = zstd_unpack(text, size, "crs", MetadataError)
    return Cursor(text, "crs").utf8(len(text), "WKT")


# --------------------------------------------------------------------------- fields of a layer


@dataclass
class _Context:
    """What packing and unpacking one field needs to know beside the field."""

    crs: list[str]
    modality: str = ""

    @property
    def standard(self) -> Modality | None:
        """The modality's row in the table, if the format has a number for it."""
        return MODALITIES[self.modality] if self.modality in MODALITY_IDS else None


def _pack_grid(meta: LayerMeta, context: _Context) -> bytes:
    return pack_varint(meta.width) + pack_varint(meta.height)


def _unpack_grid(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"width": cursor.varint("width", MAX_SIDE), "height": cursor.varint("height", MAX_SIDE)}


def _pack_modality(meta: LayerMeta, context: _Context) -> bytes:
    number = MODALITY_IDS.get(meta.modality, 0)
    return pack_varint(number) + (b"" if number else encode_utf8(meta.modality, MAX_NAME, "modality"))


def _unpack_modality(cursor: Cursor, context: _Context) -> dict[str, Any]:
    number = cursor.varint("modality")
    if number == 0:
        return {"modality": cursor.utf8(cursor.left, "modality")}
    names = [name for name, n in MODALITY_IDS.items() if n == number]
    _need(bool(names), "modality", f"number {number} is not defined")
    return {"modality": names[0]}


def _mini_prefix(modality: str) -> str:
    """Return what the names of the embedded tokenizers of `modality` begin with."""
    return f"mini-{modality.encode().lower().decode()}-v"  # bytes.lower touches ASCII only


def _pack_tokenizer(meta: LayerMeta, context: _Context) -> bytes | None:
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


def _pack_weights(meta: LayerMeta, context: _Context) -> bytes:
    return meta.weights_sha256


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
    return {"bands": tuple(bands)}


def _pack_scale(meta: LayerMeta, context: _Context) -> bytes | None:
    if meta.scale == 1 and meta.offset == 0 and math.copysign(1, meta.offset) > 0:
        return None
    return pack_number(meta.scale) + pack_number(meta.offset)


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
    return b"\x01" + pack_number(meta.nodata)


def _unpack_nodata(cursor: Cursor, context: _Context) -> dict[str, Any]:
    kind = cursor.u8("nodata kind")
    _need(kind <= 1, "nodata", f"kind {kind} is not defined")
    return {"nodata": cursor.number("nodata") if kind else cursor.signed("nodata")}


def _pack_mask_kind(meta: LayerMeta, context: _Context) -> bytes | None:
    return None if meta.mask_kind == "nodata" else bytes([MASK_KIND_IDS[meta.mask_kind]])


def _unpack_mask_kind(cursor: Cursor, context: _Context) -> dict[str, Any]:
    return {"mask_kind": _name_of(cursor.u8("mask_kind"), MASK_KIND_IDS, "mask_kind")}


def _pack_crs_index(meta: LayerMeta, context: _Context) -> bytes | None:
    return None if meta.crs is None else pack_varint(context.crs.index(meta.crs))


def _unpack_crs_index(cursor: Cursor, context: _Context) -> dict[str, Any]:
    index = cursor.varint("crs")
    _need(index < len(context.crs), "crs", f"number {index} of {len(context.crs)}")
    return {"crs": context.crs[index]}


# Which of (a, b, c, d, e, f) are stored; the others follow from the kind.
_TRANSFORM_KINDS = ((0, 1, 2, 3, 4, 5), (0, 2, 4, 5), (0, 2, 5))


def _pack_transform(meta: LayerMeta, context: _Context) -> bytes | None:
    if meta.transform is None:
        return None
    a, b, _, d, e, _ = meta.transform
    upright = repr((b, d)) == "(0.0, 0.0)"  # not -0.0, which must come back as it was
    kind = (2 if e == -a != 0 else 1) if upright else 0
    return bytes([kind]) + b"".join(pack_number(meta.transform[i]) for i in _TRANSFORM_KINDS[kind])


def _unpack_transform(cursor: Cursor, context: _Context) -> dict[str, Any]:
    kind = cursor.u8("transform kind")
    _need(kind < len(_TRANSFORM_KINDS), "transform", f"kind {kind} is not defined")
    values = dict.fromkeys(range(6), 0.0)
    values |= {i: cursor.number("transform") for i in _TRANSFORM_KINDS[kind]}
    if kind == 2:
        values[4] = -values[0]
    return {"transform": tuple(values[i] for i in range(6))}


def _pack_times(meta: LayerMeta, context: _Context) -> bytes | None:
    return None if meta.times == (None,) else b"".join(map(pack_time, meta.times))


def _unpack_times(cursor: Cursor, context: _Context) -> dict[str, Any]:
    _need(cursor.left <= 10 * MAX_TIMES, "times", "too many time steps")
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
        for key, value in _sorted_tags(tags).items()
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
    17: (_pack_scale, _unpack_scale),
    19: (_pack_s2_offset, _unpack_s2_offset),
    21: (_pack_nodata, _unpack_nodata),
    23: (_pack_mask_kind, _unpack_mask_kind),
    25: (_pack_crs_index, _unpack_crs_index),
    27: (_pack_transform, _unpack_transform),
    29: (_pack_times, _unpack_times),
}
_MODALITY = 3


def pack_layer(meta: LayerMeta, crs: list[str]) -> bytes:
    """Pack the fields of a layer; `crs` is the file's CRS table."""
    context = _Context(crs, meta.modality)
    packed = ((number, _FIELDS[number][0](meta, context)) for number in sorted(_FIELDS))
    return b"".join(pack_section(number, data) for number, data in packed if data is not None)


def unpack_layer(data: memoryview, crs: list[str], what: str) -> LayerMeta:
    """Invert `pack_layer`.

    Raises
    ------
    MetadataError, UnknownSectionError
    """
    stored = dict(unpack_sections(Cursor(data, what), _FIELDS))
    context = _Context(crs)
    values: dict[str, Any] = {}
    # The modality first: the defaults of the other fields depend on it.
    for number in sorted(stored, key=lambda n: (n != _MODALITY, n)):
        cursor = Cursor(stored[number], f"{what}, field {number}")
        values |= _FIELDS[number][1](cursor, context)
        cursor.end()
        context.modality = values.get("modality", "")
    values = _defaults(context) | values
    missing = [
        f.name
        for f in dataclasses.fields(LayerMeta)
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    _need(not missing, what, f"{', '.join(missing)} missing")
    return LayerMeta(**values)


def _defaults(context: _Context) -> dict[str, Any]:
    """Return the defaults that depend on the modality."""
    if not context.modality:
        return {}
    defaults: dict[str, Any] = {"name": context.modality, "tokenizer": _mini_prefix(context.modality) + "1"}
    row = context.standard
    if row:
        defaults |= {"levels": row.levels, "dtype": row.dtype, "bands": row.bands, "units": row.units}
    return defaults
