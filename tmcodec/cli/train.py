"""``tmcodec train fit|validate|test|stats|tokens|generator``."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import debug_option, echo_json, echo_rows, json_option, options
from tmcodec.errors import MissingDependencyError

_FORWARD = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": ["-h", "--help"]}
_FLAGS = {
    "--fast_dev_run": "--trainer.fast_dev_run=true",
    "--lr_find": "--lr_find=true",
    "--overwrite": "--overwrite=true",
}
"""Flags with underscores and with hyphens, as Lightning's command line takes them."""


@click.group("train")
@debug_option
def command() -> None:
    """Train a tokenizer by a YAML file; needs the extra ``train``.

    `tmcodec train fit -c configs/mini/s2l2a.yaml` trains; every key of the file can also be
    given as an option, `--trainer.max_steps 1000`, and an unknown one is an error. `tmcodec
    train fit -c FILE --print_config` shows all of them. See docs/training.md.
    """


def import_run() -> Any:
    """Import the training stack.

    Raises
    ------
    MissingDependencyError
        If a package of the extra is missing.
    """
    try:
        from tmcodec.training import run
    except ModuleNotFoundError as err:
        if (err.name or "").startswith("tmcodec"):
            raise
        raise MissingDependencyError(
            f"training needs the package {err.name}; pip install 'tmcodec[train]'"
        ) from err
    return run


def translate(args: tuple[str, ...]) -> list[str]:
    """Write the short flags out; those that a value follows keep it."""
    if not args:
        raise click.UsageError("give a configuration: -c FILE")
    written = []
    for arg, after in zip(args, (*args[1:], "--"), strict=True):
        flag = _FLAGS.get(arg.replace("-", "_").replace("__", "--", 1)) if arg.startswith("--") else None
        if flag is not None and after.lower() in ("true", "false"):
            flag = flag.removesuffix("=true")
        written.append(arg if flag is None else flag)
    return written


def _run(name: str, args: tuple[str, ...]) -> None:
    import_run().run(name, translate(args))


@command.command("fit", cls=Command, context_settings=_FORWARD)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@debug_option
def fit_command(args: tuple[str, ...]) -> None:
    """Train, or go on with --ckpt_path LAST.ckpt. Flags: --fast-dev-run, --lr-find."""
    _run("fit", args)


@command.command("validate", cls=Command, context_settings=_FORWARD)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@debug_option
def validate_command(args: tuple[str, ...]) -> None:
    """Compute losses and PSNR on the validation crops, --ckpt_path CKPT."""
    _run("validate", args)


@command.command("test", cls=Command, context_settings=_FORWARD)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@debug_option
def test_command(args: tuple[str, ...]) -> None:
    """Compute losses and PSNR on the test crops, --ckpt_path CKPT."""
    _run("test", args)


def import_any2any() -> Any:
    """Import the training stack of generators; errors as `import_run`."""
    import_run()
    from tmcodec.training.any2any import run

    return run


@command.command("generator", cls=Command, context_settings=_FORWARD)
@click.argument("stage", type=click.Choice(["fit", "validate", "test"]))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@debug_option
def generator_command(stage: str, args: tuple[str, ...]) -> None:
    """Pre-train an any-to-any transformer on token files.

    `tmcodec train generator fit -c configs/any2any/mini.yaml`, or go on with --ckpt_path LAST.ckpt.
    """
    import_any2any().run(stage, translate(args))


@command.command("tokens", cls=Command, context_settings=_FORWARD)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--part", type=(int, int), default=(0, 1), metavar="I N", help="Write every N-th shard from shard I."
)
@options(json_option, debug_option)
def tokens_command(args: tuple[str, ...], part: tuple[int, int], as_json: bool) -> None:
    """Write a corpus of aligned token grids: tokenize once, train many times.

    `tmcodec train tokens -c configs/any2any/mini-tokens.yaml`; several processes may write a part each.
    """
    paths = import_any2any().tokens(translate(args), part)
    if as_json:
        echo_json([str(path) for path in paths])
        return
    size = sum(path.stat().st_size for path in paths)
    echo_rows([("shards", f"{len(paths):,}"), ("bytes", f"{size:,}")])


@command.command("stats", cls=Command, context_settings=_FORWARD)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@options(json_option, debug_option)
def stats_command(args: tuple[str, ...], as_json: bool) -> None:
    """Stream the training data once; print mean and std of each band for model.net."""
    found = import_run().statistics(translate(args))
    if as_json:
        echo_json(dataclasses.asdict(found))
        return
    click.echo("model:\n  net:")
    for name in ("mean", "std"):
        click.echo(f"    {name}: [{', '.join(f'{v:.6g}' for v in getattr(found, name))}]")
    echo_rows(
        [
            ("pixels", " ".join(f"{n:,}" for n in found.pixels)),
            ("read", str(found.items)),
            ("skipped", str(found.skipped)),
        ]
    )
