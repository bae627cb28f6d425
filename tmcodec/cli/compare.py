"""``tmcodec compare``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import (
    batch_size_option,
    class_map_option,
    debug_option,
    device_option,
    echo_json,
    echo_line,
    echo_rows,
    echo_table,
    json_option,
    layer_option,
    max_pixels_option,
    modality_option,
    options,
    overwrite_option,
    progress_bar,
    quiet_option,
    s2_offset_option,
    scale_option,
    seed_option,
    steps_option,
    time_option,
    tokenizer_option,
    window_option,
)
from tmcodec.texts import human_bytes, human_ratio, plural, three_digits

if TYPE_CHECKING:
    from tmcodec.comparison import Comparison
    from tmcodec.metrics import BandMetrics, ClassMetrics, ImageMetrics


@click.command("compare", cls=Command)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@options(
    click.option("--plot", type=click.Path(dir_okay=False), metavar="OUT.png",
                 help="Write original, reconstruction and error side by side."),
    layer_option,
    time_option,
    steps_option,
    seed_option,
    window_option,
    modality_option,
    s2_offset_option,
    scale_option,
    class_map_option,
    tokenizer_option,
    max_pixels_option,
    device_option,
    batch_size_option,
    overwrite_option,
    json_option,
    quiet_option,
    debug_option,
)
def command(a: str, b: str, as_json: bool, quiet: bool, **choices: Any) -> None:
    """Compare A, a token file or raster, with the original raster B.

    Prints errors in physical units, band by band, and the bytes of both. Modality and
    Sentinel-2 offset are taken from the token file, or from the raster that says them.
    """
    from tmcodec.comparison import compare

    with progress_bar("decoding", quiet) as progress:
        result = compare(a, b, progress=progress, **choices)
    if as_json:
        echo_json(result.to_dict())
    elif not quiet:
        print_comparison(result)
        if choices["plot"]:
            click.echo(f"side by side: {choices['plot']}")


def print_comparison(result: Comparison) -> None:
    """Print a comparison for people."""
    from tmcodec.metrics import ClassMetrics

    echo_line(f"{result.reconstruction} against {result.original}: {result.modality}, "
              f"{result.width} x {result.height} pixels")
    if isinstance(result.metrics, ClassMetrics):
        rows = _print_classes(result.metrics)
    else:
        rows = _print_bands(result.metrics, result.units)
    echo_rows([
        *rows,
        ("size", _sizes(result)),
        ("decoded", _decoded(result)),
        ("place", _place(result)),
        ("mask", _mask(result.mask_agreement)),
    ])


def _print_bands(metrics: ImageMetrics, units: str) -> list[tuple[str, str]]:
    """Print the table of bands; return the rows that follow it."""
    unit = f" {units}" if units != "1" else ""
    header = ["band", "PSNR dB", "SSIM", f"RMSE{unit}", f"MAE{unit}", f"bias{unit}"]
    rows = [[band.name, *_cells(band), _sig(band.bias)] for band in metrics.bands]
    if len(rows) > 1:
        rows.append(["all", *_cells(metrics), ""])
    echo_table(header, rows)
    return [
        ("peak", f"{_sig(metrics.peak)}{unit}, of PSNR and SSIM"),
        ("pixels", f"{metrics.pixels:,} valid in both"),
        ("SAM", "" if metrics.sam is None else f"{_fixed(metrics.sam, 3)} degrees"),
        ("NDVI error", "" if metrics.ndvi_error is None else f"{_fixed(metrics.ndvi_error, 4)} on average"),
    ]


def _cells(errors: BandMetrics | ImageMetrics) -> list[str]:
    return [_fixed(errors.psnr, 2), _fixed(errors.ssim, 4), _sig(errors.rmse), _sig(errors.mae)]


def _print_classes(metrics: ClassMetrics) -> list[tuple[str, str]]:
    """Print the table of classes; return the rows that follow it."""
    echo_table(["class", "IoU"], [[name, _fixed(iou, 4)] for name, iou in metrics.iou.items()])
    return [
        ("accuracy", _fixed(metrics.accuracy, 4)),
        ("mIoU", _fixed(metrics.miou, 4)),
        ("pixels", f"{metrics.pixels:,} valid in both"),
    ]


def _sizes(result: Comparison) -> str:
    if result.reconstruction_bytes is None:
        return f"{human_bytes(result.raw_bytes)} raw"
    size = f"{human_bytes(result.reconstruction_bytes)} for {human_bytes(result.raw_bytes)} raw"
    size += f" ({human_ratio(result.ratio)})" if result.ratio is not None else ""
    return size + (f"; original file {human_bytes(result.original_bytes)}" if result.original_bytes else "")


def _decoded(result: Comparison) -> str:
    if result.tokenizer is None or result.steps is None:
        return ""
    seed = f", seed {result.seed}" if result.steps > 1 else ""
    return f"{result.tokenizer}, {plural(result.steps, 'step')}{seed}"


def _place(result: Comparison) -> str:
    if result.crs_equal and result.transform_equal:
        return "same CRS and transform"
    if result.crs_equal:
        return "same CRS, another transform"
    return "another CRS, same transform" if result.transform_equal else "another CRS and transform"


def _mask(agreement: float) -> str:
    return "same" if agreement == 1 else f"{agreement:.4%} of the values agree"


def _fixed(value: float, digits: int) -> str:
    return _odd(value) or f"{value:.{digits}f}"


def _sig(value: float) -> str:
    return _odd(value) or three_digits(value)


def _odd(value: float) -> str:
    """Return the text for what is no ordinary number."""
    if math.isnan(value):
        return "-"
    return "identical" if math.isinf(value) else ""
