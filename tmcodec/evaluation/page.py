"""``report.json``, ``report.html`` and the plots, in one folder."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tmcodec.errors import MissingDependencyError
from tmcodec.evaluation.intervals import Interval
from tmcodec.evaluation.measures import MEASURES
from tmcodec.evaluation.plots import band_mean, draw_all, mean_rate
from tmcodec.evaluation.report import EQUAL, Method, Report
from tmcodec.evaluation.tiles import Tile
from tmcodec.modalities import Modality
from tmcodec.texts import human_bytes, plural, three_digits


def write_report(folder: Path, report: Report, tiles: Sequence[Tile], modality: Modality) -> None:
    """Write everything into an empty folder.

    Raises
    ------
    MissingDependencyError
        If jinja2 or matplotlib is missing.
    """
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    captions = draw_all(folder, report, tiles, modality)
    figures = [
        {"source": "data:image/png;base64," + base64.b64encode((folder / name).read_bytes()).decode(),
         "caption": caption, "name": name}
        for name, caption in captions.items()
    ]
    (folder / "report.html").write_text(render(report, figures), encoding="utf-8")


def render(report: Report, figures: Sequence[dict[str, str]]) -> str:
    """Return the page; every text goes through jinja2's escaping.

    Raises
    ------
    MissingDependencyError
        If jinja2 is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as err:
        raise MissingDependencyError(
            "the report needs the package jinja2; pip install 'tmcodec[evaluate]'"
        ) from err
    source = resources.files("tmcodec.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(
        report=report, figures=figures, sentences=sentences(report), means=means_table(report),
        against=against_table(report), bands=bands_table(report), scenes=scenes_table(report),
        tokens=tokens_table(report), missing=missing(report),
    )


# --------------------------------------------------------------------------- texts


def sentences(report: Report) -> list[str]:
    """Return what matters most, one sentence for each tokenizer at each first step count, and its rivals."""
    found = []
    measure = MEASURES[report.score]
    for name in dict.fromkeys(m.tokenizer for m in report.tokenizer_methods()):
        own = report.tokenizer_methods(name)
        first = own[0]
        mean = report.mean(first.key, report.score)
        text = f"{first.title}: {measure.title} {number(mean, measure.digits)} {measure.unit}".rstrip()
        text += f" over {plural(mean.count, 'scene')}"
        best = report.best_codec(name)
        if best is not None:
            gap = report.difference(first.key, best.key, report.score)
            text += f"; {signed(gap, measure.digits, measure.unit)} against {best.title}"
            text += ", the best codec at the same file size"
            exact = report.infinite(best.key, report.score)
            text += f" (exact on {plural(exact, 'further scene')})" if exact else ""
        found.append(text + ".")
        rest = [(m, report.mean(m.key, report.score).mean) for m in own]
        scored = [(m, s) for m, s in rest if s is not None]
        if len(scored) > 1:
            top = max(scored, key=lambda pair: pair[1])[0]
            gap = report.difference(first.key, top.key, report.score)
            text = f"{name}: {plural(first.steps, 'step')} has the best {measure.title}"
            if top is not first:
                text = f"{name}: {plural(first.steps, 'step')} against {top.steps}, the best: "
                text += signed(gap, measure.digits, measure.unit)
            found.append(text + ".")
    return found


def number(value: Interval, digits: int) -> str:
    """Return mean and interval as text."""
    if value.mean is None:
        return "–"
    text = fixed(value.mean, digits)
    if value.low is None or value.high is None:
        return text
    return f"{text} [{fixed(value.low, digits)}, {fixed(value.high, digits)}]"


def signed(value: Interval, digits: int, unit: str = "") -> str:
    """Return a difference as text, with its sign; a single scene has no interval."""
    if value.mean is None:
        return "–"
    text = f"{value.mean:+.{digits}f}"
    if value.low is not None and value.high is not None:
        text += f" [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"
    return f"{text} {unit}".rstrip().replace("-", "−")


def fixed(value: float, digits: int) -> str:
    """Return a number with a true minus; integers where they are large."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    return (three_digits(value) if abs(value) >= 1000 else f"{value:.{digits}f}").replace("-", "−")


# --------------------------------------------------------------------------- tables


def means_table(report: Report) -> dict[str, Any]:
    """Return the main table: a row a method, a column a measure, means with intervals."""
    used = [m for m in MEASURES if any(m in e.values for e in report.entries)]
    titles = [_title(MEASURES[m].title, MEASURES[m].unit, report) for m in used]
    rows = []
    for method in report.methods:
        entries = report.of(method.key)
        if method.factor != EQUAL or not entries:
            continue
        rows.append({
            "title": method.title, "kind": method.kind, "tokenizer": method.tokenizer, "scenes": len(entries),
            "whole": len(entries) == len(report.scenes), "bytes": _mean_bytes(report, method),
            "rate": fixed(rate, 4) if not math.isnan(rate := mean_rate(report, method)) else "–",
            "cells": [_cell(report, method, m) for m in used],
        })
    return {"titles": titles, "rows": rows, "better": [MEASURES[m].more for m in used]}


def _title(title: str, unit: str, report: Report) -> str:
    unit = {"units": "" if report.units == "1" else report.units}.get(unit, unit)
    return f"{title}, {unit}" if unit else title


def _cell(report: Report, method: Method, measure: str) -> dict[str, str]:
    value, digits = report.mean(method.key, measure), MEASURES[measure].digits
    both = value.low is not None and value.high is not None
    ends = f"{fixed(value.low or 0, digits)} … {fixed(value.high or 0, digits)}" if both else "n/a"
    mean = "–" if value.mean is None else fixed(value.mean, digits)
    infinite = report.infinite(method.key, measure)
    below = [ends] * bool(value.count) + [f"∞ on {infinite}"] * bool(infinite)
    return {"mean": mean, "ends": "; ".join(below)}


def _mean_bytes(report: Report, method: Method) -> str:
    found = [e.bytes - e.forgiven_bytes for e in report.of(method.key) if e.bytes is not None]
    return human_bytes(round(sum(found) / len(found))) if found else "no file"


def against_table(report: Report) -> list[dict[str, str]]:
    """Return the differences of scores, pair by pair over scenes, for each tokenizer and step count."""
    titles = {m.key: m.title for m in report.methods}
    digits = MEASURES[report.score].digits
    rows = []
    for found in report.differences():
        value = Interval(found["mean"], found["low"], found["high"], found["count"])
        rows.append({"first": titles[found["method"]], "second": titles[found["against"]],
                     "difference": signed(value, digits), "scenes": str(found["count"])})
    return rows


def bands_table(report: Report) -> dict[str, Any]:
    """Return RMSE, or IoU, of each band: rows methods, columns bands."""
    key = "iou" if report.units == "class" else "rmse"
    bands = list(dict.fromkeys(b for e in report.entries for b in e.bands))
    rows = []
    for method in report.methods:
        if method.factor == EQUAL and report.of(method.key):
            cells = [band_mean(report, method, b, key) for b in bands]
            digits = 3 if key == "iou" else None
            rows.append({"title": method.title, "cells": [
                "–" if math.isnan(c) else (f"{c:.3f}" if digits else three_digits(c)) for c in cells]})
    return {"what": "IoU" if key == "iou" else _title("RMSE", "units", report), "bands": bands, "rows": rows}


def scenes_table(report: Report) -> dict[str, Any]:
    """Return the score of each scene: rows scenes, columns methods at the token file's size."""
    methods = [m for m in report.methods if m.factor == EQUAL and report.of(m.key)]
    found = {(e.scene, e.method): e for e in report.entries}
    first = next(m for m in methods if m.kind == "tokenizer")
    digits, rows = MEASURES[report.score].digits, []
    for scene in report.scenes:
        cells = []
        for method in methods:
            entry = found.get((scene.name, method.key))
            value = entry.values.get(report.score) if entry is not None else None
            cells.append({"text": "–" if value is None else fixed(value, digits),
                          "hint": "" if entry is None else entry.setting or entry.note})
        size = found[scene.name, first.key].bytes or 0
        beyond = "" if scene.beyond_sigma is None else fixed(scene.beyond_sigma, 1)
        rows.append({
            "name": scene.name, "size": f"{scene.width} × {scene.height}", "valid": f"{scene.valid:.1%}",
            "raw": human_bytes(scene.raw_bytes), "file": human_bytes(size), "beyond": beyond, "cells": cells,
        })
    return {"titles": [m.title for m in methods], "rows": rows}


def tokens_table(report: Report) -> list[dict[str, str]]:
    """Return code usage, entropy and speed of each tokenizer."""
    rows = []
    for use in report.token_use:
        own = report.tokenizer_methods(use.tokenizer)
        decode = [(m, seconds_per_megapixel(report, m, "decode_seconds")) for m in own]
        rows.append({
            "tokenizer": use.tokenizer, "sha256": use.weights_sha256[:12], "tokens": f"{use.tokens:,}",
            "used": f"{use.used:,} of {use.codebook:,}",
            "most": f"{use.used / min(use.tokens, use.codebook):.1%}" if use.tokens else "–",
            "entropy": f"{use.entropy:.2f} of {math.log2(use.codebook):.2f}",
            "perplexity": f"{use.perplexity:.0f}",
            "bits": f"{use.bits:.2f}", "file_bits": f"{use.file_bits:.2f}",
            "encode": three_digits(seconds_per_megapixel(report, own[0], "encode_seconds")),
            "decode": ", ".join(f"{m.steps}: {three_digits(s)}" for m, s in decode),
        })
    return rows


def seconds_per_megapixel(report: Report, method: Method, which: str) -> float:
    """Return the seconds over the megapixels of all scenes."""
    pixels = {s.name: s.width * s.height for s in report.scenes}
    entries = report.of(method.key)
    total = sum(pixels[e.scene] for e in entries)
    return sum(getattr(e, which) or 0.0 for e in entries) / total * 1e6 if total else math.nan


def missing(report: Report) -> list[str]:
    """Say which codecs do not reach which sizes, and which means lack scenes where a measure is infinite."""
    lines = []
    for method in report.methods:
        failed = [e for e in report.entries if e.method == method.key and e.note]
        if failed and method.factor == EQUAL:
            limits = sorted(e.size_limit or 0 for e in failed)
            span = f"{limits[0]}" if limits[0] == limits[-1] else f"{limits[0]} to {limits[-1]}"
            share = f"{len(failed)} of {plural(len(report.scenes), 'scene')}"
            lines.append(f"{method.title}: nothing fits {span} bytes on {share}.")
    return [*dict.fromkeys(lines), *_infinite(report)]


def _infinite(report: Report) -> list[str]:
    """Say for each measure on how many scenes it is infinite, and by which methods."""
    lines = []
    for key, measure in MEASURES.items():
        out = report.left_out(key)
        if not out:
            continue
        by: dict[str, int] = {}
        for method in report.methods:
            size = "" if method.factor == EQUAL else f" at {method.factor:g} times the size"
            if count := report.infinite(method.key, key):
                title = f"{method.title}{size}"
                by[title] = max(count, by.get(title, 0))  # a codec is there once for each tokenizer
        share = f"{len(out)} of {plural(len(report.scenes), 'scene')}"
        why = ", the picture exact," if key == "psnr" else ""
        lines.append(
            f"{measure.title} is infinite{why} on {share} ({', '.join(f'{t}: {n}' for t, n in by.items())}), "
            "which its means and differences leave out for all methods."
        )
    return lines
