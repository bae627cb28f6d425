"""What the header says: metadata of the file and of each layer, and what values are allowed.

`tmcodec.tokenfile.fields` turns them into bytes and back.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from tmcodec.errors import LayerNotFoundError, MetadataError
from tmcodec.texts import shown
from tmcodec.tokenfile.balance import Balance, check_balance
from tmcodec.tokenfile.binary import encode_utf8
from tmcodec.tokenfile.classes import check_sets
from tmcodec.tokenfile.geometry import TokenGrid

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

SCALE_TAG = "TMCODEC_SCALE"
"""Tag of a layer: the scale and offset tags of a Sentinel-2 raster, which mean reflectance to its readers."""
UNIT_TAG = "TMCODEC_UNIT"
"""Tag of a layer: scale and offset tags and the unit of a raster of heights, where that is not metres."""

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
    balance
        Gains and offsets that bring decoded bands nearer to the raster, or None.
    class_sets
        Of class maps: a number for each time step, in which bit i is set where the map has class i; 0 where
        that is unknown, empty where it is of all. See `tmcodec.tokenfile.classes`.

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
    balance: Balance | None = None
    class_sets: tuple[int, ...] = ()

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

    def check_time(self, time: int) -> None:
        """Raise unless there is such a time step.

        Raises
        ------
        LayerNotFoundError
        """
        if not isinstance(time, numbers.Integral) or not 0 <= time < len(self.times):
            step = time if isinstance(time, numbers.Integral) else shown(time)
            raise LayerNotFoundError(
                f"layer {self.name!r} has no time step {step}; it has {len(self.times)}, from 0"
            )

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
        object.__setattr__(self, "tags", sorted_tags(self.tags))
        need(
            1 <= len(self.layers) <= MAX_COUNT, "layers", f"{len(self.layers)} layers; 1 to {MAX_COUNT} fit"
        )
        names = [layer.name for layer in self.layers]
        need(len(set(names)) == len(names), "layers", "two layers have the same name")

    def __hash__(self) -> int:
        return hash(self.layers)


def _values(meta: LayerMeta) -> tuple[object, ...]:
    """Return the fields of `meta` in order."""
    return tuple(getattr(meta, f.name) for f in dataclasses.fields(meta))


# --------------------------------------------------------------------------- checks


def need(condition: bool, name: str, message: str) -> None:
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
            raise MetadataError(f"{name}: {shown(value)} has the wrong type") from None

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
    put("class_sets", lambda v: _normal_sets(v, len(meta.times)))
    object.__setattr__(meta, "tags", sorted_tags(meta.tags))


def _normal_nodata(value: Any) -> float | int | None:
    """Return a Python int, float or None; every NaN becomes the same object."""
    if value is None:
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if not isinstance(value, numbers.Real):
        raise TypeError
    return _NAN if math.isnan(value) else float(value)


def _normal_sets(sets: Any, times: int) -> tuple[int, ...]:
    """Return a number for each time step, of which one alone holds for all; none where none says a class."""
    numbers = tuple(operator.index(number) for number in sets)
    if not any(numbers):
        return ()
    return numbers * times if len(numbers) == 1 else numbers


def _normal_time(time: datetime | None) -> datetime | None:
    """Return `time` in UTC; a naive one is taken for UTC."""
    if time is None:
        return None
    utc = time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
    return utc.replace(fold=0)  # means nothing in UTC, and is not stored


def sorted_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return `tags` checked and sorted by the UTF-8 bytes of their keys."""
    need(
        isinstance(tags, Mapping) and len(tags) <= MAX_COUNT, "tags", f"not a mapping of at most {MAX_COUNT}"
    )
    for key, value in tags.items():
        _check_text("tag name", key, 1, MAX_NAME)
        _check_text(f"tag {key[:40]!r}", value, 0, MAX_TEXT)
    return dict(sorted(tags.items(), key=lambda item: item[0].encode("utf-8")))


def _check_text(name: str, text: object, low: int, high: int) -> None:
    """Check that `text` is a str of `low` to `high` bytes of UTF-8."""
    if not isinstance(text, str):
        raise MetadataError(f"{name}: {shown(text)} is not a text")
    size = len(encode_utf8(text, high, name))
    need(size >= low, name, "is empty")


def _check_layer(meta: LayerMeta) -> None:
    """Check every field of `meta`."""
    for name in ("name", "modality", "tokenizer"):
        _check_text(name, getattr(meta, name), 1, MAX_NAME)
    for name in ("units", "sampler"):
        _check_text(name, getattr(meta, name), 0, MAX_NAME)
    _check_text("description", meta.description, 0, MAX_TEXT)
    need(len(meta.weights_sha256) == 32, "weights_sha256", f"{len(meta.weights_sha256)} bytes, not 32")
    need(meta.dtype in DTYPE_IDS, "dtype", f"{meta.dtype!r} is none of {', '.join(DTYPE_IDS)}")
    need(
        meta.s2_offset in S2_OFFSET_IDS, "s2_offset", f"{meta.s2_offset!r} is none of '', 'present', 'absent'"
    )
    need(meta.mask_kind in MASK_KIND_IDS, "mask_kind", f"{meta.mask_kind!r} is neither 'nodata' nor 'mask'")
    need(1 <= len(meta.bands) <= MAX_COUNT, "bands", f"{len(meta.bands)} bands; 1 to {MAX_COUNT} fit")
    for band in meta.bands:
        _check_text("band name", band, 0, MAX_NAME)
    _check_numbers(meta)
    _check_geometry(meta)
    _check_georeference(meta)
    if meta.balance is not None:
        check_balance(meta.balance, meta.rows, meta.cols, len(meta.times), len(meta.bands))
    check_sets(meta.class_sets, len(meta.times))


def _check_numbers(meta: LayerMeta) -> None:
    """Check levels, scale, offset, nodata, steps and seed."""
    levels_fit = len(meta.levels) <= 31 and all(2 <= level <= MAX_LEVEL for level in meta.levels)
    need(
        levels_fit and len(meta.levels) > 0,
        "levels",
        f"{shown(meta.levels)} are not 1 to 31 levels of 2 to {MAX_LEVEL}",
    )
    need(
        meta.codebook_size <= MAX_CODEBOOK, "levels", f"a codebook of {meta.codebook_size} does not fit int32"
    )
    need(math.isfinite(meta.scale) and meta.scale != 0, "scale", f"{meta.scale} is not a finite factor")
    need(math.isfinite(meta.offset), "offset", f"{meta.offset} is not finite")
    if isinstance(meta.nodata, int):
        need(-(2**63) <= meta.nodata < 2**63, "nodata", f"{meta.nodata} does not fit into 64 bits")
    need(1 <= meta.steps <= MAX_STEPS, "steps", f"{meta.steps} is not in 1..{MAX_STEPS}")
    need(0 <= meta.seed <= MAX_SEED, "seed", f"{meta.seed} is not in 0..{MAX_SEED}")


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
        need(1 <= value <= high, name, f"{value} is not in 1..{high}")
    need(meta.tile % meta.patch == 0, "tile", f"{meta.tile} is no multiple of the patch of {meta.patch}")
    side = meta.patch * meta.chunk
    need(side <= MAX_CHUNK_PIXELS, "chunk", f"{side} pixels a side, more than {MAX_CHUNK_PIXELS}")
    need(1 <= len(meta.times) <= MAX_TIMES, "times", f"{len(meta.times)} time steps; 1 to {MAX_TIMES} fit")
    need(
        meta.chunks <= MAX_CHUNKS, "chunk", f"{meta.chunks} chunks, more than {MAX_CHUNKS}; use larger ones"
    )


def _check_georeference(meta: LayerMeta) -> None:
    """Check CRS and transform."""
    if meta.crs is not None:
        _check_text("crs", meta.crs, 1, MAX_CRS)
    if meta.transform is not None:
        need(len(meta.transform) == 6, "transform", f"{len(meta.transform)} coefficients, not 6")
        need(all(map(math.isfinite, meta.transform)), "transform", f"{meta.transform} is not finite")
