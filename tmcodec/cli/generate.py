"""``tmcodec generate``."""

from __future__ import annotations

from typing import Any

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import (
    AnyCase,
    Whole,
    batch_size_option,
    debug_option,
    device_option,
    echo_json,
    echo_line,
    json_option,
    max_pixels_option,
    options,
    overwrite_option,
    progress_bar,
    quiet_option,
    s2_offset_option,
    scale_option,
)
from tmcodec.modalities import MODALITIES
from tmcodec.texts import human_seconds, plural

DEFAULT_MODEL = "mini-any2any-v1"
TARGETS = (*MODALITIES, "coords", "caption")


def _parse_coords(
    _: click.Context, __: click.Parameter, value: str | None
) -> tuple[float, float] | str | None:
    if value is None or value == "auto":
        return value
    try:
        lon, lat = map(float, value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither auto nor LON,LAT") from None
    return lon, lat


def _parse_guidance(
    _: click.Context, __: click.Parameter, items: tuple[str, ...]
) -> float | dict[str, float] | None:
    """Return one weight, or a weight by condition."""
    weights: dict[str, float] = {}
    for item in items:
        name, equals, weight = item.rpartition("=")
        name = name.lower() if name.lower() in ("coords", "caption") else name.upper()
        if name in weights:
            raise click.BadParameter(f"{name or 'a number'} is given twice")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise click.BadParameter(f"{item!r} is neither a number nor CONDITION=NUMBER") from None
        if bool(equals) != bool(name) or (len(items) > 1 and not name):
            raise click.BadParameter("give one number, or CONDITION=NUMBER for each condition")
    return weights.get("", weights or None)


def _parse_steps(_: click.Context, __: click.Parameter, value: str | None) -> int | list[int] | None:
    try:
        numbers = [int(part) for part in value.split(",")] if value is not None else []
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a whole number nor one a target, as 8,1") from None
    return numbers[0] if len(numbers) == 1 else numbers or None


@click.command("generate", cls=Command)
@click.argument("srcs", metavar="SRC...", nargs=-1, required=True)
@options(
    click.option("--to", "targets", multiple=True, required=True, metavar="MODALITY",
                 type=AnyCase(TARGETS),
                 help=f"What to make, in this order; may be repeated. One of {', '.join(TARGETS)}."),
    click.option("-o", "--output", "out", metavar="OUT", type=click.Path(),
                 help="Token file, GeoTIFF or folder/; not needed for coords and caption alone."),
    click.option("--format", type=click.Choice(["tmc", "tif"]),
                 help="One token file with a layer for each target, or a GeoTIFF each. Default: by the "
                      "suffix of OUT."),
    click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME|PATH",
                 help="Generator; see `tmcodec models list`."),
    click.option("--checkpoint", type=click.Path(dir_okay=False), metavar="PATH",
                 help="Weights of one of TerraMind's generators, instead of those fetched."),
    click.option("--order", type=click.Choice(["chained", "independent"]), default="chained",
                 show_default=True, help="Whether each target is a condition of the next."),
    click.option("--schedule", type=click.Choice(["nearest", "roar", "maskgit"]), default="nearest",
                 show_default=True,
                 help="Which tokens a step fills in: of all draws those nearest to what the network expects, "
                      "random ones, or the likeliest draws."),
    click.option("--token-schedule", type=click.Choice(["linear", "cosine", "half-cosine"]),
                 help="How many tokens a step fills in. Default: linear, cosine for maskgit."),
    click.option("--decoding-steps", metavar="N[,N...]", callback=_parse_steps,
                 help="Steps that fill in a target's tokens: one number, or one a target. Default: 8, "
                      "1 where means are taken."),
    click.option("--temperature", type=float, default=1.0, show_default=True, metavar="T",
                 help="Divides the logits, before top-k and top-p; 0 takes the likeliest token."),
    click.option("--top-p", type=float, default=0.8, show_default=True, metavar="P",
                 help="Draw among the fewest of the likeliest tokens that reach this share; 1 takes all."),
    click.option("--top-k", type=Whole(1), metavar="K", help="Draw among so many of the likeliest tokens."),
    click.option("--choice", type=click.Choice(["draw", "mean"]), default="draw", show_default=True,
                 help="Draw each token, or take the mean of what is possible: nearer to the truth pixel by "
                      "pixel, and smoother."),
    click.option("--guidance", multiple=True, metavar="W|CONDITION=W", callback=_parse_guidance,
                 help="Classifier-free guidance: a weight for all conditions, or one for each; may be "
                      "repeated."),
    click.option("--trust", type=float, metavar="W",
                 help="What targets made before count for as conditions of the next, 0 to 1. Default: 1, of "
                      f"{DEFAULT_MODEL} 0.25."),
    click.option("--samples", type=Whole(1, 64), default=1, show_default=True, metavar="K",
                 help="Draw so many, and write their mean and spread, too."),
    click.option("--seed", type=Whole(0, 2**64 - 1), default=0, show_default=True, metavar="N",
                 help="Decides everything that is drawn."),
    click.option("--coords", metavar="auto|LON,LAT", callback=_parse_coords,
                 help="Coordinates as a condition; auto takes each tile's, where model and raster have any."),
    click.option("--caption", metavar="TEXT", help="A text as a condition, for models that take one."),
    click.option("--steps", type=Whole(1, 1000), default=1, show_default=True, metavar="N",
                 help="Sampling steps of decoding to rasters; 1 is the mean."),
    click.option("--overlap", type=Whole(0), metavar="N",
                 help="Tokens that neighbouring tiles share; what one made is settled for the next. "
                      "Default: 4."),
    click.option("--layer", "layers", multiple=True, metavar="NAME",
                 help="Only this layer of the token files; may be repeated."),
    click.option("--time", type=Whole(0), default=0, show_default=True, metavar="N",
                 help="Step of their time axis, from 0."),
    click.option("--tokenizer", "tokenizers", multiple=True, metavar="NAME|PATH",
                 help="Tokenizer to use instead of the one that the generator names; may be repeated."),
    s2_offset_option,
    scale_option,
    max_pixels_option,
    device_option,
    batch_size_option,
    overwrite_option,
    json_option,
    quiet_option,
    debug_option,
)
def command(
    srcs: tuple[str, ...], targets: tuple[str, ...], out: str | None, model: str, checkpoint: str | None,
    tokenizers: tuple[str, ...], device: str, as_json: bool, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Generate other modalities from token files and rasters.

    Each SRC is a token file, of which all layers are taken, or a raster; MODALITY=scene.tif says what a
    raster is where its bands do not. All must lie on the same pixels; so does what is made.
    """
    texts = [target.lower() for target in targets if target.lower() in ("coords", "caption")]
    images = [target for target in targets if target.lower() not in ("coords", "caption")]
    if images and out is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    from tmcodec.generation.files import generate_files
    from tmcodec.generation.models import load_generator
    from tmcodec.generation.settings import DECODING_STEPS, Settings
    from tmcodec.generation.tokenizers import load_given

    named = ("order", "schedule", "token_schedule", "temperature", "top_k", "top_p", "guidance", "samples",
             "choice", "trust")  # fmt: skip
    how = {name: choices.pop(name) for name in named}
    usual = 1 if how["choice"] == "mean" else DECODING_STEPS
    asked = choices.pop("decoding_steps")
    settings = Settings(**how, decoding_steps=usual if asked is None else asked)
    loaded = load_generator(model, device, checkpoint=checkpoint)
    toks = [load_given(loaded, name, device) for name in tokenizers]
    with progress_bar("generating", quiet) as progress:
        report = generate_files(
            loaded, srcs, out, images, texts=texts, settings=settings, tokenizers=toks, progress=progress,
            **choices,
        )  # fmt: skip
    if as_json:
        echo_json(report.to_dict())
        return
    for name, text in report.texts.items():
        echo_line(f"{name}: {text}")
    if images and not quiet:
        paths, made, given = (", ".join(names) for names in (report.paths, images, report.sources))
        echo_line(f"{paths}: {made} from {given} by {report.generator}, "
                  f"{plural(report.tokens, 'token')}, in {human_seconds(report.seconds)}")
