"""``tmcodec verify``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tmcodec.cli.command import Command, as_option, one_line
from tmcodec.cli.options import debug_option, echo_json, echo_line, json_option, max_pixels_option, options
from tmcodec.errors import TokenFileError
from tmcodec.texts import plural

if TYPE_CHECKING:
    from tmcodec.tokenfile import Problem


@click.command("verify", cls=Command)
@click.argument("file", metavar="FILE.tmc")
@options(json_option, max_pixels_option, debug_option)
@click.pass_context
def command(ctx: click.Context, file: str, as_json: bool, max_pixels: int) -> None:
    """Check every chunk of FILE.tmc and say what is damaged.

    Exit status 0 where all is well, else 1. No tokenizer is needed. What is intact of a
    damaged file comes back with `tmcodec decode --salvage`.
    """
    from tmcodec.tokenfile import verify

    try:
        report = verify(file, max_pixels=max_pixels)
    except TokenFileError as error:
        if not as_json:
            raise
        echo_json(_unreadable(error))
        ctx.exit(1)
    if as_json:
        echo_json(asdict(report))
    elif report.ok:
        click.echo(f"{file}: intact, {plural(report.chunks, 'chunk')}")
    else:
        for problem in report.problems:
            echo_line(describe_problem(problem, file))
        damaged = sum(problem.chunk_row >= 0 for problem in report.problems)
        found = f"{damaged} of {plural(report.chunks, 'chunk')} damaged"
        hint = "; decode --salvage reads the rest" if damaged < report.chunks else ""
        click.echo(f"tmcodec: error: {file}: {found}{hint}", err=True)
    ctx.exit(0 if report.ok else 1)


def describe_problem(problem: Problem, file: str) -> str:
    """Return file, place and what is wrong, each named once."""
    message = as_option(one_line(problem.message.removeprefix(f"{file}: ")))
    if problem.chunk_row >= 0 and "chunk (" not in message:
        chunk = f"chunk ({problem.chunk_row}, {problem.chunk_col})"
        place = f"layer {problem.layer!r}, time {problem.time}, {chunk}"
        return f"{file}: {place}: {message.removeprefix(file + ' ')}"
    return f"{file}: {message}"


def _unreadable(error: TokenFileError) -> dict[str, Any]:
    """Return the report of a file whose header is bad, in the form of the others."""
    whole = {"layer": "", "time": -1, "chunk_row": -1, "chunk_col": -1}
    problem = {**whole, "error": type(error).__name__, "message": one_line(str(error))}
    return {"ok": False, "problems": [problem], "chunks": 0}
