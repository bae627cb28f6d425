"""``tmcodec encode``."""

from __future__ import annotations

from typing import Any

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import (
    Whole,
    batch_size_option,
    checkpoint_option,
    class_map_option,
    debug_option,
    device_option,
    echo_json,
    echo_line,
    json_option,
    modality_option,
    options,
    overwrite_option,
    precision_option,
    progress_bar,
    quiet_option,
    s2_offset_option,
    scale_option,
    tokenizer_option,
    window_option,
)
from tmcodec.texts import human_bytes, human_ratio, human_seconds, plural, printable, three_digits


def _parse_tags(_: click.Context, __: click.Parameter, items: tuple[str, ...]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{item!r} is not KEY=VALUE")
        if key in tags:
            raise click.BadParameter(f"{key} is there twice; give each tag once")
        tags[key] = value
    return tags


@click.command("encode", cls=Command)
@click.argument("src", metavar="SRC")
@click.argument("dst", metavar="DST.tmc", type=click.Path(dir_okay=False))
@options(
    modality_option,
    tokenizer_option,
    s2_offset_option,
    scale_option,
    class_map_option,
    window_option,
    click.option("--steps", type=Whole(1, 1000), default=1, show_default=True, metavar="N",
                 help="Sampling steps that decoding takes by default; 1 has the best PSNR."),
    click.option("--seed", type=Whole(0, 2**64 - 1), default=0, show_default=True, metavar="N",
                 help="Seed that decoding takes by default."),
    click.option("--sampler", default="ddim", show_default=True, metavar="NAME",
                 help="Sampler that decoding takes by default: ddim, official or a diffusers scheduler."),
    click.option("--balance/--no-balance", default=None,
                 help="Store gains and offsets that bring decoded bands nearer to the raster, two numbers "
                      "a band for every 512 pixels. Default: for Sentinel-2 with the embedded tokenizers."),
    click.option("--exact", is_flag=True,
                 help="Store the encoder's tokens as they are. Otherwise better ones are searched."),
    click.option("--effort", type=Whole(0, 1000), default=None, metavar="N",
                 help="Rounds of the search for tokens that decode nearer to the raster and are shorter to "
                      "code; 0 for none. Default: 24, fewer above 1568 x 1568 pixels, none above "
                      "4096 x 4096 (elevation: one)."),
    click.option("--bit-price", type=float, default=None, metavar="P",
                 help="What the search pays for a bit, in parts of the mean error: 0 for the nearest "
                      "picture, 1 for small files. Default: the modality's, 0.03 to 0.2."),
    click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", callback=_parse_tags,
                 help="Text to store in the file; may be repeated. "
                      "ACQUISITION_DATE=2020-12-31 is its time, too."),
    checkpoint_option,
    precision_option,
    click.option("--tile", type=click.Choice(["256", "224"]), default="256", show_default=True,
                 callback=lambda _, __, value: int(value),
                 help="For TerraMind's tokenizers: pixels per side of the tiles; tokens depend on it."),
    device_option,
    batch_size_option,
    overwrite_option,
    json_option,
    quiet_option,
    debug_option,
)
def command(src: str, dst: str, as_json: bool, quiet: bool, **choices: Any) -> None:
    """Encode the raster SRC to the token file DST.tmc.

    SRC is a file or URL that rasterio opens, such as scene.tif, /vsicurl/https://... or
    s3://bucket/scene.tif.
    """
    from tmcodec.codec.encode import encode

    with progress_bar("encoding", quiet) as progress:
        report = encode(src, dst, progress=progress, **choices)
    for warning in report.warnings:
        click.echo(f"tmcodec: warning: {printable(warning)}", err=True)
    if as_json:
        echo_json(report.to_dict())
    elif not quiet:
        bits = f" of {three_digits(report.bits_per_token)} bits" if report.tokens else ", no pixel is valid"
        click.echo(f"{dst}: {human_bytes(report.raw_bytes)} raw to {human_bytes(report.file_bytes)} "
                   f"({human_ratio(report.ratio)}), {plural(report.tokens, 'token')}{bits}, "
                   f"in {human_seconds(report.seconds)}")
        offset = f", Sentinel-2 offset of 1000 {report.s2_offset}" if report.s2_offset else ""
        echo_line(f"  {report.modality} by {report.tokenizer}{offset}")
