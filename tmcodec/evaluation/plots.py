"""The report's pictures: rate against distortion, bands, scenes, steps, and the worst tiles side by side."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tmcodec.errors import MissingDependencyError
from tmcodec.evaluation.measures import MEASURES
from tmcodec.evaluation.report import EQUAL, Method, Report
from tmcodec.evaluation.tiles import Tile
from tmcodec.modalities import Modality
from tmcodec.rasters import render_rgb
from tmcodec.texts import plural

# Okabe and Ito's colours, which people with any colour vision tell apart.
_TOKENIZERS = ("#0072b2", "#cc79a7", "#009e73", "#56b4e9")
_BASELINES = {
    "jp2": "#d55e00", "jxl": "#e69f00", "avif": "#8c564b", "webp": "#b5a400", "blocks": "#777777",
    "kmeans": "#333333",
}
_SHORT = {"jp2": "JPEG 2000", "jxl": "JPEG XL", "avif": "AVIF", "webp": "WebP"}


def figure(width: float, height: float) -> Any:
    """Return an empty figure, inches, that needs no display.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as err:
        raise MissingDependencyError(
            "plots need the package matplotlib; pip install 'tmcodec[evaluate]'"
        ) from err
    made = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(made)
    return made


def draw_all(folder: Path, report: Report, tiles: Sequence[Tile], modality: Modality) -> dict[str, str]:
    """Write the plots that this report has; ``{file name: caption}`` in the order of the page."""
    score = MEASURES[report.score]
    made = {}
    if _rate_distortion(folder / "rate_distortion.png", report):
        made["rate_distortion.png"] = (
            f"{score.title} against size, means over the scenes. Codecs have the token files' size, twice "
            "and four times that; hollow circles: the codec's own markers are forgiven. A codec is drawn "
            "where it fits all scenes."
        )
    if _scenes(folder / "scenes.png", report):
        made["scenes.png"] = f"{score.title} of each scene at the token file's size."
        if report.left_out(report.score):
            made["scenes.png"] += " Exact pictures, whose PSNR is infinite, have no mark."
    if _bands(folder / "bands.png", report):
        what = "RMSE of each band, root of the mean square over scenes"
        made["bands.png"] = what + " that both have, at the token file's size."
    if _steps(folder / "steps.png", report):
        made["steps.png"] = "One sampling step against several; bars are 95 % intervals over the scenes."
    if tiles:
        _worst(folder / "worst.png", report, tiles, modality)
        made["worst.png"] = (
            "The tiles where the first tokenizer errs most, one a scene; all pictures of a row share the "
            "original's stretch. The codec is the best one at the token file's size."
        )
    return made


def colour_of(report: Report, method: Method) -> str:
    """Return a method's colour, the same in all plots."""
    if method.kind != "tokenizer":
        return _BASELINES[method.baseline]
    names = list(dict.fromkeys(m.tokenizer for m in report.tokenizer_methods()))
    return _TOKENIZERS[names.index(method.tokenizer) % len(_TOKENIZERS)]


def mean_rate(report: Report, method: Method, left_out: Collection[str] = ()) -> float:
    """Return the mean bits per pixel that count, without some scenes; NaN where there is no file."""
    pixels = {s.name: s.width * s.height for s in report.scenes}
    rates = [
        8 * (e.bytes - e.forgiven_bytes) / pixels[e.scene]
        for e in report.of(method.key)
        if e.bytes is not None and e.scene not in left_out
    ]
    return float(np.mean(rates)) if rates else math.nan


# --------------------------------------------------------------------------- rate and distortion


def _rate_distortion(path: Path, report: Report) -> bool:
    """Draw points of tokenizers and curves of codecs."""
    fig = figure(8.2, 5)
    axes = fig.add_subplot()
    whole = [m for m in report.methods if len(report.of(m.key)) == len(report.scenes)]
    for name, key in dict.fromkeys((m.baseline, m.tokenizer) for m in whole if m.kind == "codec"):
        curve = sorted(
            (m for m in whole if (m.baseline, m.tokenizer, m.kind) == (name, key, "codec")),
            key=lambda m: m.factor,
        )
        counted = [_point(report, m) for m in curve if m.headers == "counted"]
        colour = _BASELINES[name]
        if counted:
            axes.plot(*zip(*counted, strict=True), "-o", color=colour, ms=5, label=_short(curve[0]))
        for free in (_point(report, m) for m in curve if m.headers == "free"):
            axes.plot(*free, "o", ms=6, mfc="white", mec=colour)
            if curve[0].factor == EQUAL and curve[0].headers == "counted":
                axes.plot(*zip(counted[0], free, strict=True), ":", color=colour, lw=1)
    for method in whole:
        if method.headers == "none" and not math.isnan(mean_rate(report, method)):
            colour = _BASELINES[method.baseline]
            axes.plot(*_point(report, method), "D", color=colour, ms=6, label=method.title)
        elif method.kind == "tokenizer":
            colour, first = colour_of(report, method), method.steps == _first_steps(report)
            place, fill = _point(report, method), colour if first else "white"
            axes.plot(*place, "s", ms=9, mec=colour, mfc=fill, mew=1.6, zorder=5,
                      label=method.tokenizer if first else None)
            axes.annotate(plural(method.steps, "step"), place, (8, -3), fontsize=8, color=colour,
                          textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("bits per pixel, all bands together")
    _label(axes, report)
    _plain_ticks(axes)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))  # one line a codec, whatever the tokenizers
    fig.legend(unique.values(), unique.keys(), loc="outside right upper", fontsize=8, frameon=False)
    fig.savefig(path)
    return True


def _point(report: Report, method: Method) -> tuple[float, float]:
    mean = report.mean(method.key, report.score).mean
    rate = mean_rate(report, method, report.left_out(report.score))
    return rate, math.nan if mean is None else mean


def _plain_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label(axes: Any, report: Report) -> None:
    measure = MEASURES[report.score]
    peak = f", peak {report.peak:g}" if report.peak and report.score == "psnr" else ""
    axes.set_ylabel(f"{measure.title}{', dB' if measure.unit else ''}{peak}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


# --------------------------------------------------------------------------- scenes, bands, steps


def shown_methods(report: Report) -> list[Method]:
    """Return what deserves a place in every picture: tokenizers at their first steps and best rivals."""
    first = _first_steps(report)
    found = [m for m in report.tokenizer_methods() if m.steps == first]
    for tokenizer in [m.tokenizer for m in found][:1]:
        best = report.best_codec(tokenizer)
        found += [best] if best is not None else []
        floors = [m for m in report.methods if (m.tokenizer, m.kind) == (tokenizer, "floor")]
        found += [m for m in floors if report.of(m.key)]
    return found


def _first_steps(report: Report) -> int:
    return report.tokenizer_methods()[0].steps


def _scenes(path: Path, report: Report) -> bool:
    """Draw one row of dots a scene."""
    first = report.tokenizer_methods()[0]
    shown = [
        m for m in report.methods
        if (m.kind == "tokenizer" and m.steps == first.steps)
        or (m.kind != "tokenizer" and (m.tokenizer, m.factor) == (first.tokenizer, EQUAL))
    ]
    shown = [
        m for m in shown if m.headers != "free"
    ]
    names = [s.name for s in report.scenes]
    fig = figure(8.2, 1.4 + 0.32 * len(names))
    axes = fig.add_subplot()
    for method in shown:
        points = [(e.values.get(report.score, math.nan), names.index(e.scene)) for e in report.of(method.key)]
        if points:
            tokenizer = method.kind == "tokenizer"
            marker = "|" if tokenizer else ("D" if method.headers == "none" else "o")
            axes.plot(
                *zip(*points, strict=True), marker, color=colour_of(report, method), label=method.title,
                ms=17 if tokenizer else 6, mew=3 if tokenizer else 1, zorder=3 if tokenizer else 4,
                mfc="white" if "unquantized" in method.title else None,
                mec="white" if method.kind == "codec" else None,
            )
    axes.set_yticks(range(len(names)), [_ellipsis(n) for n in names], fontsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    _label(axes, report)
    axes.set_xlabel(axes.get_ylabel())
    axes.set_ylabel("")
    fig.legend(loc="outside right upper", fontsize=8, frameon=False)
    fig.savefig(path)
    return True


def _bands(path: Path, report: Report) -> bool:
    """Draw one group of bars a band, or a class."""
    shown = shown_methods(report)
    key = "iou" if report.units == "class" else "rmse"
    bands = list(dict.fromkeys(b for m in shown for e in report.of(m.key) for b in e.bands))
    if len(bands) < 2:
        return False
    fig = figure(8.2, 3.8)
    axes = fig.add_subplot()
    width = 0.8 / len(shown)
    for number, method in enumerate(shown):
        heights = [band_mean(report, method, band, key) for band in bands]
        places = np.arange(len(bands)) - 0.4 + width * (number + 0.5)
        hatch = "///" if "unquantized" in method.title else None
        axes.bar(places, heights, width * 0.92, label=method.title, color=colour_of(report, method),
                 hatch=hatch, edgecolor="white", linewidth=0)
    axes.set_xticks(range(len(bands)), bands, rotation=30 if key == "iou" else 0)
    unit = f", {report.units}" if report.units not in ("1", "class") else ""
    axes.set_ylabel("IoU" if key == "iou" else f"RMSE{unit}")
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    fig.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    fig.savefig(path)
    return True


def band_mean(report: Report, method: Method, band: str, key: str) -> float:
    """Return a band's figure over the scenes: root mean square of RMSEs, mean of others."""
    found = [e.bands[band][key] for e in report.of(method.key) if key in e.bands.get(band, {})]
    if not found:
        return math.nan
    return math.sqrt(float(np.mean(np.square(found)))) if key == "rmse" else float(np.mean(found))


def _steps(path: Path, report: Report) -> bool:
    """Draw score, LPIPS and spectrum over the number of steps."""
    counts = sorted({m.steps for m in report.tokenizer_methods()})
    if len(counts) < 2:
        return False
    measures = [m for m in ("psnr", "ssim", "lpips", "spectrum_error") if _has(report, m)]
    fig = figure(8.2, 2.9)
    for number, measure in enumerate(measures, 1):
        axes = fig.add_subplot(1, len(measures), number)
        for name in dict.fromkeys(m.tokenizer for m in report.tokenizer_methods()):
            line = report.tokenizer_methods(name)
            found = [report.mean(m.key, measure) for m in line]
            means = [math.nan if i.mean is None else i.mean for i in found]
            ends = [[0 if i.low is None else abs((i.mean or 0) - e) for i, e in zip(found, side, strict=True)]
                    for side in ([i.low or 0 for i in found], [i.high or 0 for i in found])]
            axes.errorbar([m.steps for m in line], means, yerr=ends, fmt="-s", ms=5, capsize=3,
                          color=colour_of(report, line[0]), label=name)
        shown = MEASURES[measure]
        axes.set_title(f"{shown.title}{f', {shown.unit}' if shown.unit else ''}", fontsize=9)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(c) for c in counts])
        axes.minorticks_off()
        axes.set_xlabel("steps", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles = axes.get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    fig.savefig(path)
    return True


def _has(report: Report, measure: str) -> bool:
    return any(measure in e.values for e in report.entries)


# --------------------------------------------------------------------------- worst tiles


def _worst(path: Path, report: Report, tiles: Sequence[Tile], modality: Modality) -> None:
    """Draw one row a tile: original, tokenizers at their first and last steps, best codec."""
    columns = _tile_columns(report)
    fig = figure(2.1 * (len(columns) + 1), 2.13 * len(tiles) + 0.4)
    grid = fig.subplots(len(tiles), len(columns) + 1, squeeze=False)
    for place, (row, tile) in enumerate(zip(grid, tiles, strict=True)):
        picture, ranges = render_rgb(tile.original, tile.valid, modality)
        shown: list[tuple[str, Any]] = [("original", picture)]
        for method in columns:
            found = tile.pictures.get(method.key)
            rendered = None if found is None else render_rgb(found, tile.valid, modality, ranges)[0]
            shown.append((_short(method), rendered))
        for number, (axes, (title, rgb)) in enumerate(zip(row, shown, strict=True)):
            axes.set_xticks([])
            axes.set_yticks([])
            if rgb is None:
                axes.text(0.5, 0.5, "nothing fits\nthe size", ha="center", va="center", fontsize=8,
                          transform=axes.transAxes)
            else:
                axes.imshow(np.moveaxis(rgb, 0, -1), interpolation="nearest")
            if place == 0:
                axes.set_title(title, fontsize=8)
            if number == 0:
                axes.set_ylabel(_ellipsis(tile.scene, 30), fontsize=6)
    fig.savefig(path)


def _tile_columns(report: Report) -> list[Method]:
    """Return tokenizers at the first and last step count, and the best codec of the first."""
    columns = []
    for name in dict.fromkeys(m.tokenizer for m in report.tokenizer_methods()):
        own = report.tokenizer_methods(name)
        columns += [own[0]] if len(own) == 1 else [own[0], own[-1]]
    best = report.best_codec(columns[0].tokenizer)
    return [*columns, *([best] if best is not None else [])]


def _short(method: Method) -> str:
    if method.kind == "tokenizer":
        return method.title.replace(", ", "\n")
    return _SHORT.get(method.baseline, method.title)


def _ellipsis(text: str, longest: int = 44) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2 - 1]}…{text[-longest // 2 :]}"
