"""Compare a reconstruction with its original: rasters or token files, in physical units."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tmcodec.codec.arrays import with_profile
from tmcodec.errors import (
    LimitExceededError,
    ModalityError,
    NotATokenFileError,
    OffsetUnknownError,
    SizeMismatchError,
    TmcodecError,
)
from tmcodec.metrics import Metrics, compute_metrics
from tmcodec.modalities import Modality, get_modality
from tmcodec.rasters import (
    IDENTITY,
    RasterSource,
    Window,
    as_window,
    open_raster,
    own_modality,
    stored_dtypes,
)
from tmcodec.tokenfile import MAX_PIXELS, Layer, LayerMeta, TokenFile

if TYPE_CHECKING:
    from tmcodec.codec.tokenizer import Tokenizer

Progress = Callable[[int, int], None]
Rectangle = tuple[int, int, int, int]
Transform = tuple[float, ...]

_PLACE_TOLERANCE = 1e-3  # of a pixel: text formats round the transform


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. The second argument is the original, unless only it is a token file.

    Attributes
    ----------
    original, reconstruction
        Names of the two.
    modality, units
        What the values are, and the unit of the metrics.
    width, height
        In pixels.
    raw_bytes
        ``width * height * bands * itemsize`` of the original.
    original_bytes, reconstruction_bytes
        Sizes of the files; None for what is not a local file. Of a token file with several
        layers or dates, what is compared here.
    ratio
        `raw_bytes` over `reconstruction_bytes`; None for a window.
    crs_equal, transform_equal
        Whether both lie at the same place, within a thousandth of a pixel.
    mask_agreement
        Share of the pixels, band by band, that are valid in both or in neither.
    tokenizer, steps, seed
        How the reconstruction was decoded; None where it is a raster.
    metrics
        See `tmcodec.metrics`.
    """

    original: str
    reconstruction: str
    modality: str
    units: str
    width: int
    height: int
    raw_bytes: int
    original_bytes: int | None
    reconstruction_bytes: int | None
    ratio: float | None
    crs_equal: bool
    transform_equal: bool
    mask_agreement: float
    tokenizer: str | None
    steps: int | None
    seed: int | None
    metrics: Metrics

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {**vars(self), "metrics": self.metrics.to_dict()}


@dataclass(frozen=True)
class _Picture:
    """One side: values in physical units, shape (C, H, W), and what the report says about it."""

    name: str
    modality: Modality
    values: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    dtype: str
    crs: str | None
    transform: Transform
    bytes: int | None
    layer: LayerMeta | None = None
    steps: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class _Reading:
    """How to read a raster; see `tmcodec.rasters.open_raster`."""

    modality: str | None
    s2_offset: str
    scale: float | None
    class_map: Mapping[int, int] | str | None
    window: Rectangle | None


def compare(
    a: Any,
    b: Any,
    *,
    layer: str | None = None,
    time: int = 0,
    steps: int | None = None,
    seed: int | None = None,
    modality: str | None = None,
    s2_offset: str = "auto",
    scale: float | None = None,
    class_map: Mapping[int, int] | str | None = None,
    window: Rectangle | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    device: str = "auto",
    batch_size: int = 16,
    count_bytes_of: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Comparison:
    """Compare a raster or token file with a raster.

    Both are held in memory; give a `window` of large ones.

    Parameters
    ----------
    a
        The reconstruction: token file or raster, told apart by the first bytes. Arrays go with their profile,
        as ``(array, profile)``; see `tmcodec.encode`.
    b
        The original. Where only `b` is a token file, the two change places.
    layer, time, steps, seed, tokenizer, device, batch_size, max_pixels
        As for `tmcodec.decode`; of no effect on rasters.
    modality, s2_offset, scale, class_map
        As for `tmcodec.encode`, for the rasters. With a token file they are known from its
        layer, the scale of rasters of its dtype only; of two rasters, what one says about itself holds
        for the other too.
    window
        ``(col, row, width, height)`` in pixels: the same part of both.
    count_bytes_of
        File whose size counts as the reconstruction's: the token file that a raster was
        decoded from.
    plot
        Write original, reconstruction and error side by side to this PNG, named .png.
    overwrite
        Replace an existing picture.
    progress
        Called with (windows decoded, windows in all).

    Returns
    -------
    Comparison

    Raises
    ------
    SizeMismatchError
        If the two differ in size.
    LimitExceededError
        If a raster has more than 2^31 pixels, of which no window is compared.
    TargetNameError
        If `plot` is one of the files read, or not named .png.
    TmcodecError
        As from `tmcodec.decode` and `tmcodec.encode`.
    """
    if plot is not None:
        from tmcodec.atomic import check_picture_name, check_target

        check_picture_name(plot, a, b, count_bytes_of)
        check_target(plot, overwrite)
    a, b = with_profile(a), with_profile(b)
    if is_token_file(b) and not is_token_file(a):
        a, b = b, a
    decoding = {
        "layer": layer, "time": time, "steps": steps, "seed": seed, "window": window, "tokenizer": tokenizer,
        "device": device, "batch_size": batch_size, "progress": progress, "max_pixels": max_pixels,
    }
    reconstruction, original = _load_both(
        a, b, decoding, _Reading(modality, s2_offset, scale, class_map, window)
    )
    if reconstruction.layer is not None:  # which knows its classes; a raster has the table's names for them
        original = replace(original, modality=reconstruction.modality)
    if count_bytes_of is not None:
        reconstruction = replace(reconstruction, bytes=os.path.getsize(count_bytes_of))
    both = original.valid & reconstruction.valid
    metrics = compute_metrics(original.values, reconstruction.values, both, original.modality)
    result = _report(original, reconstruction, metrics, whole=window is None)
    if plot is not None:
        _plot(plot, original, reconstruction, result, overwrite)
    return result


def is_token_file(source: Any) -> bool:
    """Return whether `source` begins like a token file, whatever its suffix says.

    Damaged ones count: opening them then says what is wrong.
    """
    if not isinstance(source, str | os.PathLike) and not hasattr(source, "seek"):
        return False  # an array or an open dataset
    try:
        TokenFile.open(source).close()
    except NotATokenFileError as error:
        return type(error) is not NotATokenFileError
    except TmcodecError as error:
        # A file that only rasterio can reach (or with a package that we lack) is a raster.
        return not isinstance(error, ImportError)
    except (OSError, ValueError):
        return False
    return True


# --------------------------------------------------------------------------- reading both sides


def _load_both(a: Any, b: Any, decoding: dict[str, Any], how: _Reading) -> tuple[_Picture, _Picture]:
    """Return reconstruction and original."""
    if not is_token_file(a):
        return _two_rasters(a, b, how)
    first = _decoded(a, decoding)
    if is_token_file(b):
        second = _decoded(b, decoding)
        _check_alike(_side(first), _side(second))
        return first, second
    with _open_like(b, first, how) as source:
        _check_alike(_side(first), _side_of(b, source))
        return first, _from_raster(b, source)


def _two_rasters(a: Any, b: Any, how: _Reading) -> tuple[_Picture, _Picture]:
    """Read two rasters; modality and offset that only one of them tells hold for both."""
    named = replace(how, modality=how.modality or _ask(a, b, how))
    with _open_either(a, b, named) as one:
        known = replace(named, s2_offset=one.s2_offset or "auto")
        with _open_either(b, a, known) as two:
            _check_alike(_side_of(a, one), _side_of(b, two))
            return _from_raster(a, one), _from_raster(b, two)


def _ask(a: Any, b: Any, how: _Reading) -> str:
    """Return the modality that one of two rasters says it has."""
    for source in (a, b):
        try:
            with _open(source, replace(how, s2_offset="present", window=None)) as raster:
                return raster.modality.name
        except ModalityError as error:
            problem = error
    raise problem


def _open_either(a: Any, b: Any, how: _Reading) -> RasterSource:
    """Open `a`; where it says nothing about Sentinel-2's offset, `b` does."""
    try:
        return _open(a, how)
    except OffsetUnknownError as problem:
        try:
            with _open(b, how) as other:
                return _open(a, replace(how, s2_offset=other.s2_offset))
        except OffsetUnknownError:
            raise problem from None


def _open(source: Any, how: _Reading) -> RasterSource:
    part = None if how.window is None else as_window(how.window)
    # What tmcodec decoded has the table's classes already, whatever the other raster has.
    mapped = how.class_map if how.class_map is None or own_modality(source) != "LULC" else None
    return open_raster(
        source, how.modality, s2_offset=how.s2_offset, scale=how.scale, class_map=mapped, window=part
    )


def _open_like(source: Any, decoded: _Picture, how: _Reading) -> RasterSource:
    """Open the original of a decoded layer, which says what the original's numbers mean."""
    layer = decoded.layer
    assert layer is not None
    named = get_modality(how.modality).name if how.modality is not None else layer.modality
    if named != layer.modality:
        raise ModalityError(f"{decoded.name} holds {layer.modality}, not {named}; leave --modality out")
    told = how.s2_offset != "auto" or how.scale is not None
    if told:
        return _open(source, replace(how, modality=named))
    like = replace(how, modality=named, s2_offset=layer.s2_offset or "auto")
    if layer.scale != 1 and layer.dtype in stored_dtypes(source):  # another dtype has a scaling of its own
        like = replace(like, scale=layer.scale)
    raster = _open(source, like)
    if raster.modality.categorical:
        raster.modality = decoded.modality  # whose class 0 may be no gap
    elif raster.dtype == layer.dtype:
        raster.scale, raster.offset = layer.scale, layer.offset  # what its encoder decided, tags or not
    return raster


def _decoded(source: Any, decoding: dict[str, Any]) -> _Picture:
    """Decode a layer of a token file."""
    from tmcodec.codec.decode import decode_array, pick_layer
    from tmcodec.codec.terramind_models import modality_of

    with TokenFile.open(source, max_pixels=decoding["max_pixels"]) as file:
        layer = pick_layer(file, decoding["layer"])
        meta, size = layer.meta, _stored_bytes(file, layer, decoding["time"])
    array, profile = decode_array(source, **decoding)
    values = array.astype(np.float32)
    values *= np.float32(meta.scale)
    values += np.float32(meta.offset)
    return _Picture(
        name=_name(source), modality=modality_of(meta.tokenizer, meta.modality), values=values,
        valid=profile["valid"],
        dtype=meta.dtype, crs=profile["crs"], transform=tuple(profile["transform"] or IDENTITY)[:6],
        bytes=size, layer=meta,
        steps=int(meta.steps if decoding["steps"] is None else decoding["steps"]),
        seed=int(meta.seed if decoding["seed"] is None else decoding["seed"]),
    )


def _stored_bytes(file: TokenFile, layer: Layer, time: int) -> int:
    """Return the bytes of the file; of one layer and date with its share of the header in a stack."""
    dates = sum(len(each.meta.times) for each in file.layers.values())
    if dates == 1:
        return int(file.size)
    here = layer.index.ordinals // layer.meta.grid.chunks == time
    payload = int(layer.index.lengths[here].sum())
    return payload + int(file.header_bytes) // dates


def _from_raster(source: Any, raster: RasterSource) -> _Picture:
    """Read all of an open raster.

    Raises
    ------
    LimitExceededError
        If no decoded raster could be so large.
    """
    if raster.width * raster.height > MAX_PIXELS:
        raise LimitExceededError(
            f"{_name(source)}: {raster.width} x {raster.height} pixels are too many to hold in memory; "
            "compare a --window"
        )
    values, valid = raster.read(Window(0, 0, raster.width, raster.height))
    local = isinstance(source, str | os.PathLike) and os.path.isfile(source)
    return _Picture(
        name=_name(source), modality=raster.modality, values=values, valid=valid, dtype=raster.dtype,
        crs=raster.crs, transform=raster.transform or IDENTITY,
        bytes=os.path.getsize(source) if local else None,
    )


def _name(source: Any) -> str:
    named = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    return os.fspath(named) if isinstance(named, str | os.PathLike) else "array"


# --------------------------------------------------------------------------- the report


class _Side(NamedTuple):
    """What must agree before two pictures can be compared, known before a raster is read."""

    name: str
    modality: str
    width: int
    height: int


def _side(picture: _Picture) -> _Side:
    _, height, width = picture.values.shape
    return _Side(picture.name, picture.modality.name, width, height)


def _side_of(source: Any, raster: RasterSource) -> _Side:
    return _Side(_name(source), raster.modality.name, raster.width, raster.height)


def _check_alike(one: _Side, two: _Side) -> None:
    """Refuse two of other modalities or sizes."""
    if one.modality != two.modality:
        raise ModalityError(
            f"{one.name} is {one.modality}, {two.name} is {two.modality}; compare two of one modality"
        )
    if one[2:] != two[2:]:
        raise SizeMismatchError(
            f"{one.name} has {one.width} x {one.height} pixels, {two.name} {two.width} x {two.height}; "
            "compare rasters of one size, the same --window of both, or, with a token file of a window, that"
            " window cut out of the raster"
        )


def _report(original: _Picture, other: _Picture, metrics: Metrics, whole: bool) -> Comparison:
    bands, height, width = original.values.shape
    raw = width * height * bands * np.dtype(original.dtype).itemsize
    return Comparison(
        original=original.name,
        reconstruction=other.name,
        modality=original.modality.name,
        units=original.modality.units,
        width=width,
        height=height,
        raw_bytes=raw,
        original_bytes=original.bytes,
        reconstruction_bytes=other.bytes,
        ratio=raw / other.bytes if whole and other.bytes else None,
        crs_equal=_same_crs(original.crs, other.crs),
        transform_equal=_same_place(original.transform, other.transform, width, height),
        mask_agreement=float((original.valid == other.valid).mean()),
        tokenizer=other.layer.tokenizer if other.layer is not None else None,
        steps=other.steps,
        seed=other.seed,
        metrics=metrics,
    )


def _same_crs(one: str | None, two: str | None) -> bool:
    if not one or not two or one == two:
        return (one or None) == (two or None)
    from rasterio.errors import CRSError

    from tmcodec.rasters.crs import parse_crs

    try:
        return bool(parse_crs(one) == parse_crs(two))
    except CRSError:  # a token file may hold any text
        return False


def _same_place(one: Transform, two: Transform, width: int, height: int) -> bool:
    """Return whether all corners agree within a thousandth of a pixel."""
    a, b, _, d, e, _ = one
    tolerance = _PLACE_TOLERANCE * min(math.hypot(a, d), math.hypot(b, e))
    apart = 0.0
    for col, row in ((0, 0), (width, 0), (0, height), (width, height)):
        x, y = ((t[0] * col + t[1] * row + t[2], t[3] * col + t[4] * row + t[5]) for t in (one, two))
        apart = max(apart, math.hypot(x[0] - y[0], x[1] - y[1]))
    # Numbers beyond float64 have no distance.
    return one == two or (math.isfinite(tolerance) and apart <= tolerance)


def _plot(
    path: str | os.PathLike[str], original: _Picture, other: _Picture, result: Comparison, overwrite: bool
) -> None:
    from tmcodec.plot import Panels, save_side_by_side

    panels = Panels(original.values, original.valid, other.values, other.valid, original.modality)
    save_side_by_side(Path(path), panels, result, overwrite)
