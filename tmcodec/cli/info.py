"""``tmcodec info``: what stands in a token file's header. No torch, no rasterio."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

import click

from tmcodec import __version__
from tmcodec.cli.command import Command
from tmcodec.cli.options import debug_option, echo_json, echo_line, echo_rows, json_option, options
from tmcodec.codec.models import looks_at_tiles
from tmcodec.modalities import MODALITIES
from tmcodec.texts import human_bytes, human_ratio, plural, three_digits

if TYPE_CHECKING:
    from tmcodec.tokenfile import Layer, LayerMeta, TokenFile

BEYOND = 1e15
"""Coordinates from here on have no digits after the point, and are on no map."""

_PACKAGES = ("numpy", "rasterio", "torch", "diffusers", "safetensors", "zstandard", "google-crc32c", "fsspec")


@click.command("info", cls=Command)
@click.argument("file", metavar="FILE.tmc", required=False)
@options(
    click.option("--system", is_flag=True, help="Print versions and devices instead, for bug reports."),
    json_option,
    debug_option,
)
def command(file: str | None, system: bool, as_json: bool) -> None:
    """Show what is in FILE.tmc.

    Layers, place on the map, tokenizers and sizes. Only the header is read, of a URL too.
    """
    if system == (file is not None):
        raise click.UsageError("Give either FILE.tmc or --system.")
    if file is None:
        facts = system_facts()
        if as_json:
            echo_json(facts)
        else:
            echo_rows([(name, str(value)) for name, value in facts.items()], indent=0)
        return
    from tmcodec.tokenfile import TokenFile

    with TokenFile.open(file) as opened:
        report = describe_file(opened, file)
    if as_json:
        echo_json(report)
    else:
        print_file(report)


# --------------------------------------------------------------------------- facts


def describe_file(file: TokenFile, name: str) -> dict[str, Any]:
    """Return all that the header says, as plain types."""
    layers = [describe_layer(layer, file.header_bytes // len(file)) for layer in file.layers.values()]
    raw = sum(layer["raw_bytes"] for layer in layers)
    return {
        "path": name,
        "version": file.version,
        "file_bytes": file.size,
        "header_bytes": file.header_bytes,
        "raw_bytes": raw,
        "ratio": raw / file.size,
        "tags": dict(file.meta.tags),
        "layers": layers,
    }


def describe_layer(layer: Layer, header_share: int) -> dict[str, Any]:
    """Return what the header says about one layer; its bytes include its share of the header."""
    from tmcodec.tokenfile.classes import unpack_set

    meta = layer.meta
    facts = {f.name: getattr(meta, f.name) for f in dataclasses.fields(meta)}
    tokens = _stored_tokens(layer)
    size = layer.payload_bytes + header_share
    raw = meta.width * meta.height * len(meta.bands) * _item_size(meta.dtype) * len(meta.times)
    return {
        **facts,
        "weights_sha256": meta.weights_sha256.hex(),
        "nodata": meta.nodata if meta.nodata is None or math.isfinite(meta.nodata) else str(meta.nodata),
        "times": [None if time is None else time.isoformat() for time in meta.times],
        "tags": dict(meta.tags),
        "balance": _balance(meta),
        "class_sets": [list(unpack_set(number)) or None for number in meta.class_sets],
        "pixel_size": _pixel_size(meta),
        "bounds": _bounds(meta),
        "codebook_size": meta.codebook_size,
        "token_rows": meta.rows,
        "token_cols": meta.cols,
        "tokens": tokens,
        "chunks": meta.chunks,
        "empty_chunks": meta.chunks - len(layer.index.ordinals),
        "bytes": size,
        "raw_bytes": raw,
        "ratio": raw / size,
        "bits_per_token": 8 * size / tokens if tokens else None,
    }


def _balance(meta: LayerMeta) -> dict[str, Any] | None:
    """Return the balance's scale, and its integers nested as time, row, column, band, (gain, offset)."""
    if meta.balance is None:
        return None
    nodes = meta.balance.nodes(meta.rows, meta.cols, len(meta.times), len(meta.bands))
    return {**vars(meta.balance), "values": nodes.tolist()}


def _stored_tokens(layer: Layer) -> int:
    """Count the tokens of chunks that are not empty; those at the edge are smaller."""
    grid, side = layer.meta.grid, layer.meta.chunk
    total = 0
    for ordinal in layer.index.ordinals.tolist():
        row, col = divmod(ordinal % grid.chunks, grid.chunk_cols)
        total += min(side, grid.rows - row * side) * min(side, grid.cols - col * side)
    return total


def _item_size(dtype: str) -> int:
    return int("".join(c for c in dtype if c.isdigit())) // 8


def _pixel_size(meta: LayerMeta) -> list[float] | None:
    """Return width and height; None without a transform, and where they overflow, which JSON cannot say."""
    if meta.transform is None:
        return None
    a, b, _, d, e, _ = meta.transform
    return _finite([math.hypot(a, d), math.hypot(b, e)])


def _bounds(meta: LayerMeta) -> list[float] | None:
    """Return left, bottom, right, top of all corners; None without a transform, and where they overflow."""
    if meta.transform is None:
        return None
    a, b, c, d, e, f = meta.transform
    corners = [(col, row) for col in (0, meta.width) for row in (0, meta.height)]
    xs = [a * col + b * row + c for col, row in corners]
    ys = [d * col + e * row + f for col, row in corners]
    # One NaN among the corners may hide from min and max.
    return [min(xs), min(ys), max(xs), max(ys)] if _finite(xs + ys) else None


def _finite(values: list[float]) -> list[float] | None:
    return values if all(map(math.isfinite, values)) else None


# --------------------------------------------------------------------------- for people


def print_file(report: dict[str, Any]) -> None:
    """Print the report of `describe_file`."""
    layers = report["layers"]
    echo_line(f"{report['path']}: {_size(report, 'file_bytes')}, {plural(len(layers), 'layer')}, "
              f"header {human_bytes(report['header_bytes'])}, format {report['version']}")
    echo_rows([(key, value) for key, value in report["tags"].items()])
    for layer in layers:
        click.echo()
        echo_line(_heading(layer))
        echo_rows(_rows(layer))


def _heading(layer: dict[str, Any]) -> str:
    known = MODALITIES.get(layer["modality"])
    named = layer["name"] if layer["name"] == layer["modality"] else f"{layer['name']} ({layer['modality']})"
    return f"{named}: {known.title}" if known is not None else named


def _rows(layer: dict[str, Any]) -> list[tuple[str, str]]:
    bits, empty = layer["bits_per_token"], layer["empty_chunks"]
    return [
        ("raster", f"{layer['width']} x {layer['height']} pixels, {plural(len(layer['bands']), 'band')} of "
                   f"{layer['dtype']}, {_nodata(layer)}"),
        ("bands", " ".join(layer["bands"])),
        ("units", layer["units"] if layer["units"] != "1" else ""),
        ("values", _values(layer)),
        ("CRS", _crs(layer["crs"])),
        ("pixel", " x ".join(_decimal(v) for v in layer["pixel_size"]) if layer["pixel_size"] else ""),
        ("bounds", _place(layer)),
        ("time", _times(layer["times"])),
        ("tokenizer", f"{layer['tokenizer']}, weights {layer['weights_sha256'][:12]}"),
        ("tokens", f"{layer['token_rows']} rows x {layer['token_cols']} columns of {layer['patch']} x "
                   f"{layer['patch']} pixels, {layer['codebook_size']:,} codes"
                   + (f", made in tiles of {layer['tile']}" if looks_at_tiles(layer["tokenizer"]) else "")),
        ("chunks", f"{layer['chunks']:,} of {layer['chunk']} x {layer['chunk']} tokens"
                   + (f", {empty:,} empty" if empty else "")),
        ("decoding", f"{plural(layer['steps'], 'step')} of {layer['sampler']}, seed {layer['seed']} "
                     "by default"),
        ("balance", _nodes(layer["balance"], layer["patch"])),
        ("classes", _classes(layer)),
        ("size", _size(layer, "bytes") + (f", {three_digits(bits)} bits per token" if bits else "")),
        ("text", layer["description"]),
        *layer["tags"].items(),
    ]


def _size(report: dict[str, Any], key: str) -> str:
    small, raw = human_bytes(report[key]), human_bytes(report["raw_bytes"])
    return f"{small} for {raw} raw ({human_ratio(report['ratio'])})"


def _nodata(layer: dict[str, Any]) -> str:
    if layer["mask_kind"] == "mask":
        return "mask band"
    value = layer["nodata"]
    if "int" in layer["dtype"] and isinstance(value, float) and value.is_integer():
        value = int(value)  # files may have it as a float
    return "no nodata value" if value is None else f"nodata {value}"


def _nodes(balance: dict[str, Any] | None, patch: int) -> str:
    """Say how many nodes a balance has, and how far they are apart."""
    if balance is None:
        return ""
    rows, cols = len(balance["values"][0]), len(balance["values"][0][0])
    if rows == cols == 1:
        return "a gain and an offset for each band"
    return f"gain and offset of each band at {rows} x {cols} nodes, {balance['spacing'] * patch} pixels apart"


def _classes(layer: dict[str, Any]) -> str:
    """Name the classes of a map, at any of its dates; nothing where they are not known of all."""
    from tmcodec.codec.terramind_models import modality_of

    sets = layer["class_sets"]
    if not all(sets) or layer["modality"] not in MODALITIES:
        return ""
    legend = modality_of(layer["tokenizer"], layer["modality"]).classes
    ids = sorted(set().union(*sets))
    return ", ".join(legend[i] if i < len(legend) else str(i) for i in ids)


def _values(layer: dict[str, Any]) -> str:
    """Say how stored values become physical ones, where they are not the same."""
    texts = []
    if layer["s2_offset"]:
        texts.append(f"Sentinel-2 offset of 1000 {layer['s2_offset']}")
    elif layer["scale"] != 1 or layer["offset"] != 0:
        texts.append(f"physical = stored * {layer['scale']:g} {layer['offset']:+g}")
    if layer["s2_offset"] and layer["scale"] != 1:
        texts.append(f"stored values x {layer['scale']:g}")
    return ", ".join(texts)


def _crs(crs: str | None) -> str:
    """Return the code, or of WKT the name, which is its first quoted text."""
    if crs is None:
        return "none"
    if not crs.endswith("]"):
        return crs
    kind, _, rest = crs.partition("[")
    return f"{rest.split(chr(34))[1] if chr(34) in rest else kind} (WKT)"


def _place(layer: dict[str, Any]) -> str:
    if layer["bounds"] is None:
        return "none" if layer["transform"] is None else "too large for a number"
    return " ".join(map(_decimal, layer["bounds"]))


def _times(times: list[str | None]) -> str:
    known = [time for time in times if time is not None]
    if len(times) == 1:
        return _moment(known[0]) if known else ""
    if not known:
        return f"{len(times)} dates, none known"
    unknown = len(times) - len(known)
    more = f", {unknown} unknown" if unknown else ""
    span = _moment(known[0]) if len(known) == 1 else f"{_moment(min(known))} to {_moment(max(known))}"
    return f"{len(times)} dates, {span}{more}"


def _moment(iso: str) -> str:
    return iso.replace("T", " ").replace("+00:00", " UTC")


def _decimal(value: float) -> str:
    """Return a coordinate without a tail of digits that no map has, and without three hundred before it."""
    return f"{value:.9f}".rstrip("0").rstrip(".") if abs(value) < BEYOND else f"{value:g}"


# --------------------------------------------------------------------------- the system


def system_facts() -> dict[str, Any]:
    """Return versions and devices; this imports torch and rasterio."""
    from importlib import metadata

    from tmcodec.fsq.backends import describe

    facts: dict[str, Any] = {"tmcodec": __version__, "python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["system"] = platform.platform()
    facts["processors"] = _processors()
    return {**facts, **_gdal(), **_devices(), **describe(try_cuda=True)}


def _processors() -> int:
    """Return those that this process may use: in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gdal() -> dict[str, Any]:
    try:
        import rasterio
    except ImportError as error:
        return {"GDAL": f"not usable ({error})"}
    return {"GDAL": rasterio.__gdal_version__}


def _devices() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"CUDA": f"torch is not usable ({error})"}
    if not torch.cuda.is_available():
        return {"CUDA": "no device"}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"CUDA": f"{torch.version.cuda}: {', '.join(names)}"}
