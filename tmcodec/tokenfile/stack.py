"""Put token files together: modalities as layers, dates along the time axis."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import pairwise
from operator import itemgetter
from typing import IO, Any

from tmcodec.atomic import check_token_name
from tmcodec.errors import StackError
from tmcodec.modalities import MODALITIES
from tmcodec.tokenfile.balance import join_balances
from tmcodec.tokenfile.classes import join_sets
from tmcodec.tokenfile.layer import Layer
from tmcodec.tokenfile.metadata import SCALE_TAG, FileMeta, LayerMeta
from tmcodec.tokenfile.reader import TokenFile
from tmcodec.tokenfile.writer import TokenFileWriter

Source = str | os.PathLike[str] | IO[bytes]
_Step = tuple[Layer, int]

_BEGINNING = datetime.min.replace(tzinfo=timezone.utc)
# What may differ between files of one layer: times, balances, sets of classes and what marks invalid pixels
# are merged, texts kept where they agree.
_FREE = {"times", "tags", "description", "balance", "class_sets", "nodata", "mask_kind"}


def stack(sources: Iterable[Source], target: Source, overwrite: bool = False) -> FileMeta:
    """Combine token files of one footprint into one.

    Layers of different names stand beside each other in the order of the sources. Layers of
    one name must agree in everything but times, tags and description; their time steps are
    sorted, one without a time comes first. Tags and descriptions are kept where all have the same.
    A date may have a nodata value or a mask where another has none: all get what one of them has,
    the nodata value where both are there.
    Chunks are copied undecoded, with their checksums checked; only those coded with another time step
    as their reference are coded anew.

    Parameters
    ----------
    sources
        Paths, URLs or binary file objects.
    target, overwrite
        As for `TokenFileWriter`.

    Returns
    -------
    FileMeta
        Metadata of the new file.

    Raises
    ------
    StackError
        If the files do not fit together; the message says why.
    TokenFileError
        If a source is bad.
    OSError
        As from the builtin `open`, where a source cannot be opened.
    TargetNameError
        If the target is one of the sources, or called like a raster.
    """
    if isinstance(sources, str | os.PathLike):
        raise StackError(f"stack takes a list of token files; give [{os.fspath(sources)!r}, ...]")
    sources = list(sources or ())
    if not sources:
        raise StackError("nothing to stack; name at least one token file")
    if isinstance(target, str | os.PathLike):
        check_token_name(target, *sources)
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(TokenFile.open(source)) for source in sources]
        groups: dict[str, list[Layer]] = {}
        for file in files:
            for layer in file.layers.values():
                groups.setdefault(layer.meta.name, []).append(layer)
        _check_footprints([layer.meta for group in groups.values() for layer in group])
        steps = [_sorted_steps(group) for group in groups.values()]
        layers = tuple(_merge_meta(s, g) for s, g in zip(steps, groups.values(), strict=True))
        meta = FileMeta(layers, _agreeing([file.meta.tags for file in files]))
        with TokenFileWriter(target, meta, overwrite, sparse=True) as writer:
            for number, layer_steps in enumerate(steps):
                _copy_chunks(writer, number, layer_steps)
    return meta


def _copy_chunks(writer: TokenFileWriter, number: int, steps: Sequence[_Step]) -> None:
    """Copy the chunks of a layer that carry something, in their new order; the others are empty again."""
    times = {step: time for time, step in enumerate(steps)}
    found = [
        (times[layer, old], row, col, layer, old)
        for layer in dict.fromkeys(layer for layer, _ in steps)
        for old, row, col in layer.places()
    ]
    for time, row, col, layer, old in sorted(found, key=itemgetter(0, 1, 2)):
        writer.write_raw_chunk(number, time, row, col, layer.plain_chunk(old, row, col))


def _sorted_steps(group: Sequence[Layer]) -> list[_Step]:
    """Return the time steps of layers of one name, sorted; raise where two have the same time."""
    steps = [(layer, i) for layer in group for i in range(len(layer.meta.times))]
    if len(group) == 1:
        return steps  # one file's own order is its business
    steps.sort(key=lambda step: _time(step) or _BEGINNING)
    for before, after in pairwise(steps):
        if _time(before) == _time(after):
            when = _time(after)
            text = f"at {when:%Y-%m-%d %H:%M:%S.%f} UTC" if when else "without an acquisition time"
            names = " and ".join(dict.fromkeys(layer.file_name for layer, _ in (before, after)))
            raise StackError(
                f"{names}: layer {group[0].meta.name!r} has two time steps {text}; leave one out, or encode"
                " its raster with a tag ACQUISITION_DATE"
            )
    return steps


def _time(step: _Step) -> datetime | None:
    """Return the acquisition time of a step."""
    layer, i = step
    return layer.meta.times[i]


def _merge_meta(steps: Sequence[_Step], group: Sequence[Layer]) -> LayerMeta:
    """Return the metadata of layers of one name; raise where they differ in more than they may."""
    first = group[0].meta
    for layer in group[1:]:
        for field in dataclasses.fields(LayerMeta):
            if field.name not in _FREE:
                _check_same(field.name, group[0], layer)
        one, other = first.tags.get(SCALE_TAG), layer.meta.tags.get(SCALE_TAG)
        if one != other:  # what stored values mean, which one layer says once
            raise StackError(
                f"{group[0].file_name} and {layer.file_name}: layer {first.name!r}: the rasters' scale and"
                f" offset tags differ, {one or 'none'} and {other or 'none'}; give both the same, or none"
            )
    descriptions = {layer.meta.description for layer in group}
    nodata, mask_kind = _merge_nodata(group)
    return first.replace(
        nodata=nodata,
        mask_kind=mask_kind,
        times=tuple(map(_time, steps)),
        tags=_agreeing([layer.meta.tags for layer in group]),
        description=first.description if len(descriptions) == 1 else "",
        balance=join_balances([(layer.meta.balance, i, len(layer.meta.times)) for layer, i in steps]),
        class_sets=join_sets([(layer.meta.class_sets, i) for layer, i in steps]),
    )


def _check_same(field: str, first: Layer, other: Layer) -> None:
    """Raise unless two layers of one name have the same in a field of their metadata."""
    one, two = getattr(first.meta, field), getattr(other.meta, field)
    # As tuples: they compare by identity first, so that a NaN nodata equals itself.
    if (one,) != (two,):
        raise StackError(
            f"{first.file_name} and {other.file_name}: layer {first.meta.name!r}: {field} differs,"
            f" {_show(one)} and {_show(two)}; encode both alike"
        )


def _merge_nodata(group: Sequence[Layer]) -> tuple[float | int | None, str]:
    """Return nodata value and mask kind of layers of one name; raise where two have different values.

    Files hold what is valid, not the value that marks it, and decoding moves valid pixels off that value.
    So a date without one, or with a mask, decodes right with another's value. A mask is one for all bands,
    and gives way to a value. Classes cannot be moved off it: the value may be a class of the other date.
    """
    named = [layer for layer in group if layer.meta.nodata is not None]
    for layer in named[1:]:
        _check_same("nodata", named[0], layer)
    nodata = named[0].meta.nodata if named else None
    row = MODALITIES.get(group[0].meta.modality)
    if nodata is not None and row is not None and row.categorical and 0 <= nodata < len(row.classes):
        for layer in group:
            _check_same("nodata", named[0], layer)
    kinds = {layer.meta.mask_kind for layer in group}
    if len(kinds) == 1:
        return nodata, kinds.pop()
    return nodata, "mask" if nodata is None else "nodata"


def _agreeing(all_tags: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the tags that every source has, with one value."""
    first, *others = all_tags
    return {key: value for key, value in first.items() if all(tags.get(key) == value for tags in others)}


def _show(value: Any) -> str:
    """Return a value for an error message, hashes as hex, long ones cut."""
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --------------------------------------------------------------------------- footprints


def _check_footprints(layers: Sequence[LayerMeta]) -> None:
    """Raise unless all georeferenced layers cover the same ground within half a (coarse) pixel."""
    placed = [layer for layer in layers if layer.crs is not None and layer.transform is not None]
    for layer in placed[1:]:
        first = placed[0]
        if layer.crs != first.crs:
            raise StackError(
                f"layers {first.name!r} and {layer.name!r} have different CRSs, {_show(first.crs)} and"
                f" {_show(layer.crs)}; warp the rasters to one"
            )
        tolerance = max(_pixel(first), _pixel(layer)) / 2
        bounds, other = _bounds(first), _bounds(layer)
        if any(abs(a - b) > tolerance for a, b in zip(bounds, other, strict=True)):
            raise StackError(
                f"layers {first.name!r} and {layer.name!r} have different footprints, {bounds} and {other};"
                " cut the rasters to one"
            )


def _bounds(meta: LayerMeta) -> tuple[float, float, float, float]:
    """Return (left, bottom, right, top) of a georeferenced layer."""
    assert meta.transform is not None
    a, b, c, d, e, f = meta.transform
    corners = [(col, row) for col in (0, meta.width) for row in (0, meta.height)]
    xs = [a * col + b * row + c for col, row in corners]
    ys = [d * col + e * row + f for col, row in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _pixel(meta: LayerMeta) -> float:
    """Return the longer side of a pixel in units of the CRS."""
    assert meta.transform is not None
    a, b, _, d, e, _ = meta.transform
    return max(float(abs(complex(a, d))), float(abs(complex(b, e))))
