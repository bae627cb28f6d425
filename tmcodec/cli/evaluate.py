"""``tmcodec evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import (
    AnyCase,
    Whole,
    batch_size_option,
    class_map_option,
    debug_option,
    device_option,
    echo_json,
    echo_line,
    echo_table,
    json_option,
    options,
    overwrite_option,
    progress_bar,
    quiet_option,
    s2_offset_option,
    scale_option,
)
from tmcodec.errors import MissingDependencyError
from tmcodec.modalities import MODALITIES

if TYPE_CHECKING:
    from tmcodec.evaluation.report import Report


def _numbers(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}: give whole numbers with commas, as 1,4") from None


def _names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _offsets(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found = []
    for text in values:
        pattern, _equals, told = text.rpartition("=")
        if not pattern or told not in ("present", "absent"):
            raise click.BadParameter(f"{text!r}: give PATTERN=present or PATTERN=absent")
        found.append((pattern, told))
    return tuple(found)


@click.command("evaluate", cls=Command)
@options(
    click.option("--tokenizer", "tokenizers", multiple=True, metavar="NAME|PATH",
                 help="Tokenizer, or weights file of one; repeat it to compare several of one modality."),
    click.option("--data", multiple=True, required=True, metavar="DIR",
                 help="Folder of rasters, searched below too; may be repeated."),
    click.option("--steps", default="1", show_default=True, metavar="N,N", callback=_numbers,
                 help="Sampling steps, each a row of the report."),
    click.option("--report", "report_to", metavar="OUT", type=click.Path(),
                 help="Write report.json, report.html and plots into this new folder."),
    click.option("-m", "--modality", type=AnyCase(MODALITIES), metavar="|".join(MODALITIES),
                 help="Evaluate the embedded tokenizer of this modality; not needed beside --tokenizer."),
    click.option("--baselines", default="jp2,jxl,avif,webp,blocks,kmeans", show_default=True, callback=_names,
                 metavar="NAME,NAME", help="What to compare with at equal file size; none for nothing."),
    click.option("--train", multiple=True, metavar="DIR",
                 help="Rasters that k-means learns its codebook from; without them it is left out."),
    click.option("--lpips", metavar="WEIGHTS.pth", type=click.Path(),
                 help="torchvision's AlexNet, VGG16 or SqueezeNet 1.1; without it LPIPS is left out."),
    click.option("--checkpoint", "checkpoints", multiple=True, metavar="[NAME=]PATH",
                 help="Weights of one of TerraMind's tokenizers."),
    s2_offset_option,
    click.option("--s2-offset-of", multiple=True, metavar="PATTERN=present|absent", callback=_offsets,
                 help="The same for files whose names match, such as 'S2A*=absent'; may be repeated."),
    scale_option,
    class_map_option,
    click.option("--skip-bad", is_flag=True, help="Leave out rasters that cannot be used, and list them."),
    click.option("--max-pixels", type=Whole(1), default=2**24, metavar="N",
                 help="Refuse larger rasters, which are held in memory; 4096 x 4096 by default."),
    click.option("--seed", type=Whole(0, 2**64 - 1), default=0, show_default=True, metavar="N",
                 help="Seed of the sampled texture."),
    device_option,
    batch_size_option,
    overwrite_option,
    json_option,
    quiet_option,
    debug_option,
)
def command(data: tuple[str, ...], report_to: str | None, as_json: bool, quiet: bool, **choices: Any) -> None:
    """Evaluate tokenizers on rasters, beside classical codecs at the same file size.

    Rates are those of real files. Needs the extra ``evaluate``; see docs/evaluation.md.
    """
    try:
        from tmcodec.evaluation.run import evaluate
    except ModuleNotFoundError as err:
        if (err.name or "").startswith("tmcodec"):
            raise
        raise MissingDependencyError(
            f"evaluation needs the package {err.name}; pip install 'tmcodec[evaluate]'"
        ) from err
    with progress_bar("scenes", quiet) as progress:
        report = evaluate(data, report=report_to, progress=progress, **choices)
    if as_json:
        echo_json(report.to_dict())
    elif not quiet:
        print_report(report)
        if report_to:
            click.echo(f"report: {report_to}/report.html")


def print_report(report: Report) -> None:
    """Print the means over scenes for people."""
    from tmcodec.evaluation.page import means_table, missing, sentences

    table = means_table(report)
    rows = [
        [row["title"], str(row["scenes"]), row["bytes"], *(cell["mean"] for cell in row["cells"])]
        for row in table["rows"]
    ]
    echo_table(["method", "scenes", "bytes", *table["titles"]], rows)
    for line in (*sentences(report), *missing(report), *report.notes):
        echo_line(line)
    if report.skipped:
        echo_line(f"skipped {len(report.skipped)}: {', '.join(report.skipped)}")
