"""The group of all commands, which imports each only when it is called.

One file a subcommand. Their modules import nothing heavy at the top either, because
``tmcodec --help`` imports them all for their first lines.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from importlib import import_module
from typing import Any

import click

from tmcodec import __version__
from tmcodec.cli.options import debug_option

COMMANDS = (
    "encode", "decode", "info", "verify", "compare", "stack", "generate", "embed", "models", "train",
    "evaluate", "demo",
)  # fmt: skip
"""In the order of a first visit. ``tmcodec.cli.NAME`` has the command under the name ``command``."""


class LazyGroup(click.Group):
    """Commands that are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"tmcodec.cli.{cmd_name}").command
        return command


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"tmcodec {__version__}")
    ctx.exit()


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=LazyGroup, context_settings=_SETTINGS)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
    help="Print the version and exit.",
)
@debug_option
def cli() -> None:
    """Turn rasters into compact token files and back.

    A Sentinel-2 scene becomes a token file (.tmc) about a thousand times smaller; decoding
    gives a GeoTIFF at the same place on the map. Try `tmcodec demo` first.
    """


def _stopping_signals() -> list[signal.Signals]:
    """Return what batch systems, containers and closed terminals stop programs by."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    heard = hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN  # nohup has it ignored
    return [signal.SIGTERM, hangup] if hangup is not None and heard else [signal.SIGTERM]


_received: list[int] = []
"""The signal that stops the program, once it has come."""


def _terminate(number: int, _: Any) -> None:
    """End as Ctrl-C does, so that what is unfinished is removed; with the status that shells expect."""
    _received.append(number)
    for other in _stopping_signals():  # shell and kernel may both send one; the removing goes on
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


SPINS = 5_000
"""Times that an idle thread of GNU OpenMP, torch's on Linux, looks for work before it sleeps. Its own 300,000
are no faster on an idle machine, and up to four times as slow where others want the cores
(``benchmarks/busy.py``)."""


def _share_cores() -> None:
    """Have threads that wait leave the cores to others, unless told how to wait; before torch is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def main(args: list[str] | None = None) -> None:
    """Run the command line; the entry point of the package."""
    _share_cores()
    if threading.current_thread() is threading.main_thread():
        for number in _stopping_signals():
            signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may be no text in this locale
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(args=args if args is not None else sys.argv[1:], prog_name="tmcodec")
    except SystemExit:
        if _received:  # compiled code that is stopped in its midst may have made another error of it
            raise SystemExit(128 + _received[0]) from None
        raise
