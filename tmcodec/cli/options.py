"""Options that several commands share, and what they have in common."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tmcodec.cli.command import DEBUG
from tmcodec.modalities import MODALITIES
from tmcodec.texts import printable

F = TypeVar("F", bound=Callable[..., Any])
Progress = Callable[[int, int], None]

MAX_PIXELS = 2**31
"""The library's default cap; written again because importing it would import numpy."""


class Whole(click.IntRange):
    """A whole number in a range that the help leaves out: it would only say 2**64 - 1."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; say the range where it is outside."""
        number = click.INT.convert(value, param, ctx)
        if (self.min is not None and number < self.min) or (self.max is not None and number > self.max):
            self.fail(f"{number} is out of range; give {self.min} "
                      + ("or more" if self.max is None else f"to {self.max}"))
        return number

    def _describe_range(self) -> str:
        return ""


if TYPE_CHECKING:
    _Names = click.Choice[str]
else:  # which takes no type before click 8.2
    _Names = click.Choice


class AnyCase(_Names):
    """One of several names in small letters or capitals; messages have them as they are written."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(list(names), case_sensitive=False)

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Return what is said where a name is none of them."""
        return f"{value!r} is not one of {', '.join(self.choices)}."

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what is said where there is no name."""
        return f"Choose from {', '.join(self.choices)}."


def _set_debug(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[DEBUG] = True


def _check_device(_: click.Context, __: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:N")
    return value


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set_debug,
    help="Show the traceback of an error.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress bar, no report.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing target.")
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda", callback=_check_device,
    help="Where the networks run; auto takes a GPU where there is one.",
)
batch_size_option = click.option(
    "--batch-size", type=Whole(1), default=16, show_default=True, metavar="N",
    help="Tiles processed at once; fewer need less memory.",
)
modality_option = click.option(
    "-m", "--modality", type=AnyCase(MODALITIES),
    metavar="|".join(MODALITIES),
    help="What the raster is; by default inferred where its band descriptions make it certain.",
)
s2_offset_option = click.option(
    "--s2-offset", type=click.Choice(["auto", "present", "absent"]), default="auto", show_default=True,
    help="Whether 1000 was added to Sentinel-2 digital numbers (processing baseline 04.00 and later); "
    "auto asks the metadata.",
)
scale_option = click.option(
    "--scale", type=float, metavar="FACTOR",
    help="physical = stored * FACTOR, e.g. 10000 for reflectance in 0..1; by default from tags and values.",
)
class_map_option = click.option(
    "--class-map", metavar="OLD:NEW,...|worldcover", help="For LULC: the file's class ids to TerraMind's.",
)
window_option = click.option(
    "--window", type=int, nargs=4, metavar="COL ROW W H", help="Only this part, in pixels.",
)
layer_option = click.option(
    "--layer", metavar="NAME", help="Layer of the token file; not needed where there is one only.",
)
time_option = click.option(
    "--time", type=Whole(0), default=0, show_default=True, metavar="N",
    help="Step of the time axis, from 0.",
)
tokenizer_option = click.option(
    "--tokenizer", metavar="NAME|PATH",
    help="Tokenizer, or .safetensors or .pt file of one; see `tmcodec models list`.",
)
checkpoint_option = click.option(
    "--checkpoint", type=click.Path(dir_okay=False), metavar="PATH",
    help="Weights of one of TerraMind's tokenizers, .pt or .safetensors, instead of those fetched.",
)
precision_option = click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True,
    help="For TerraMind's tokenizers; auto is fp32 for encoding, bf16 for decoding where hardware has it.",
)
sampler_option = click.option(
    "--sampler", metavar="NAME",
    help="ddim; official, which repeats TerraTorch's pictures; or a diffusers scheduler. By default as the "
    "file says.",
)
samples_option = click.option(
    "--samples", type=Whole(1, 64), default=1, show_default=True, metavar="N",
    help="Average of so many pictures from different noise.",
)
max_pixels_option = click.option(
    "--max-pixels", type=Whole(1), default=MAX_PIXELS, show_default=True, metavar="N",
    help="Refuse to decode more; raise it only for files that you trust.",
)
steps_option = click.option(
    "--steps", type=Whole(1, 1000), metavar="N",
    help="Sampling steps: 1 has the best PSNR, a few add texture. By default as the file says.",
)
seed_option = click.option(
    "--seed", type=Whole(0, 2**64 - 1), metavar="N",
    help="Seed of the sampled texture. By default as the file says.",
)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Apply options so that ``--help`` lists them in the order given."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Progress | None]:
    """Yield a callable ``(done, total)`` that moves a bar on stderr, or None where none is wanted.

    There is no bar where stderr is not a terminal: logs do not want one.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def echo_json(value: Any) -> None:
    """Print a report as JSON; NaN is not JSON, and reports have None instead."""
    click.echo(json.dumps(value, indent=2, allow_nan=False, default=str))


def echo_line(text: str) -> None:
    """Print one line that has texts of files in it."""
    click.echo(printable(text))


def echo_rows(rows: list[tuple[str, str]], indent: int = 2) -> None:
    """Print names and values in two columns; rows with an empty value are left out."""
    shown = [(printable(name), printable(value)) for name, value in rows if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{' ' * indent}{name:<{width}}  {value}")


def echo_table(header: list[str], rows: list[list[str]], left: int = 1, indent: int = 2) -> None:
    """Print a table; the first `left` columns are flush left, the others flush right."""
    lines = [[printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))]
    for row in lines:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo(" " * indent + "  ".join(cells).rstrip())
