"""``tmcodec train generator`` and ``tmcodec train tokens``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from tmcodec.errors import ConfigError
from tmcodec.texts import shortened
from tmcodec.training.any2any.callbacks import GeneratorFile
from tmcodec.training.any2any.data import TokenData
from tmcodec.training.any2any.module import Any2AnyModule
from tmcodec.training.any2any.tokens import Report, TokenPlan, write_corpus
from tmcodec.training.callbacks import MovingAverage
from tmcodec.training.run import TrainingCLI, check_text, command_line
from tmcodec.training.sources import RasterFolder  # noqa: F401  (configurations name it without its module)

# Configurations name these without their module; jsonargparse finds what is imported.
CALLBACKS: tuple[type[Callback], ...] = (MovingAverage, GeneratorFile)


def build(args: Sequence[str], run_it: bool) -> TrainingCLI:
    """Parse, instantiate and, if asked to, run a generator's configuration.

    Raises
    ------
    ConfigError
        If a key is unknown or a value does not fit.
    """
    return command_line(Any2AnyModule, TokenData, args, run_it)


def run(command: str, args: Sequence[str]) -> TrainingCLI:
    """Run ``fit``, ``validate`` or ``test`` of a generator with the rest of the command line.

    Raises
    ------
    TmcodecError
        For what the user can mend.
    """
    return build([command, *args], run_it=True)


def read_plan(args: Sequence[str]) -> TokenPlan:
    """Parse the configuration of a token corpus: ``-c FILE`` and options such as ``--out DIR``.

    Raises
    ------
    ConfigError
        If a key is unknown or a value does not fit.
    TmcodecError
        If rasters are missing or bad.
    """
    check_text(args)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", "--config", action="config")
    parser.add_class_arguments(TokenPlan, None)
    try:
        parsed = parser.parse_args(list(args))
        found = parser.instantiate_classes(parsed)
    except ArgumentError as err:
        raise ConfigError(shortened(err)) from err
    values = {k: v for k, v in found.items() if k != "config"}
    return TokenPlan(**values)


def tokens(args: Sequence[str], part: tuple[int, int], report: Report | None = None) -> list[Path]:
    """Write a token corpus, or the part of it that is this process's.

    Raises
    ------
    TmcodecError
        For what the user can mend.
    """
    plan = read_plan(args)
    missed = {name for group in plan.groups for name in group.left_out}
    if missed:
        rank_zero_info(f"{len(missed)} places are left out, whose files are bad: {_some(missed)}")
    known = _bad_files(plan)
    paths = write_corpus(plan, part, report)
    if found := _bad_files(plan) - known:
        rank_zero_info(f"{len(found)} files could not be read everywhere: {_some(found)}")
    return paths


def _bad_files(plan: TokenPlan) -> set[str]:
    return {name for group in plan.groups for folder in group.rasters.values() for name in folder.bad}


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
