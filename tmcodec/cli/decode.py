"""``tmcodec decode``."""

from __future__ import annotations

from typing import Any

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import (
    batch_size_option,
    checkpoint_option,
    debug_option,
    device_option,
    echo_json,
    echo_line,
    json_option,
    layer_option,
    max_pixels_option,
    options,
    overwrite_option,
    precision_option,
    progress_bar,
    quiet_option,
    sampler_option,
    samples_option,
    seed_option,
    steps_option,
    time_option,
    tokenizer_option,
    window_option,
)
from tmcodec.texts import human_seconds, plural


@click.command("decode", cls=Command)
@click.argument("src", metavar="SRC.tmc")
@click.argument("dst", metavar="DST.tif", type=click.Path(dir_okay=False))
@options(
    layer_option,
    time_option,
    steps_option,
    seed_option,
    sampler_option,
    samples_option,
    window_option,
    click.option("--bounds", type=float, nargs=4, metavar="LEFT BOTTOM RIGHT TOP",
                 help="Only this part, in the raster's CRS."),
    click.option("--cog", is_flag=True, help="Write a Cloud Optimized GeoTIFF."),
    click.option("--salvage", is_flag=True, help="Decode what is intact; the rest is nodata."),
    tokenizer_option,
    checkpoint_option,
    precision_option,
    max_pixels_option,
    device_option,
    batch_size_option,
    overwrite_option,
    json_option,
    quiet_option,
    debug_option,
)
def command(src: str, dst: str, as_json: bool, quiet: bool, **choices: Any) -> None:
    """Decode the token file SRC.tmc to the GeoTIFF DST.tif.

    The GeoTIFF has the size, place on the map, data type, bands and nodata of the raster
    that was encoded.
    """
    if choices["window"] is not None and choices["bounds"] is not None:
        raise click.UsageError("--window and --bounds exclude each other; give one.")
    from tmcodec.codec.decode import decode

    with progress_bar("decoding", quiet) as progress:
        report = decode(src, dst, progress=progress, **choices)
    if report.lost_chunks:
        lost = plural(report.lost_chunks, "chunk")
        click.echo(f"tmcodec: warning: {lost} damaged and left as nodata", err=True)
    if as_json:
        echo_json(report.to_dict())
    elif not quiet:
        how = plural(report.steps, "step") + (f", seed {report.seed}" if report.steps > 1 else "")
        made = f" from tokens of {report.tokens_of}" if report.tokens_of != report.tokenizer else ""
        echo_line(f"{dst}: {report.width} x {report.height} pixels of {report.modality} with "
                  f"{report.tokenizer}{made}, {how}, in {human_seconds(report.seconds)}")
