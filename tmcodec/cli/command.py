"""A command that ends in one line where it fails, also when it hangs under another group."""

from __future__ import annotations

import errno
import os
import traceback
from typing import Any

import click

from tmcodec.errors import TargetExistsError, TmcodecError
from tmcodec.texts import printable

DEBUG = "tmcodec.debug"
"""Key in ``ctx.meta``, which all nested contexts share."""


class Command(click.Command):
    """Catches what a user can do something about and exits with status 1."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse ``-``, which other programs take for a stream and which would be a file of that name."""
        rest = super().parse_args(ctx, args)
        for param in self.params:
            value = ctx.params.get(param.name or "")
            named = isinstance(param, click.Argument) or isinstance(param.type, click.Path)
            if named and "-" in map(str, value if isinstance(value, tuple) else (value,)):
                what = "standard input and output are not supported; name a file (./- if it is called so)"
                raise click.BadParameter(what, ctx, param)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (TmcodecError, OSError, MemoryError, KeyboardInterrupt, RuntimeError) as error:
            message = describe(error)
            # click.exceptions.Exit and Abort are RuntimeErrors; a broken pipe is click's business.
            if message is None or ctx.meta.get(DEBUG):
                raise
            if any(param.name == "max_pixels" for param in self.params):
                message = as_option(message)
            click.echo(f"tmcodec: error: {printable(message)}", err=True)
            ctx.exit(1)


def describe(error: BaseException) -> str | None:
    """Return one line for the user, or None for what is not the user's business."""
    if isinstance(error, TargetExistsError):
        return one_line(str(error)).replace("pass overwrite", "pass --overwrite")
    if isinstance(error, TmcodecError):
        return one_line(str(error)) or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; no unfinished file was left behind"
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
        return "out of memory; lower --batch-size, take a --window, or use --device cpu"
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        return _os_error(error)
    return None


def as_option(message: str) -> str:
    """Return a message of the library with the option's name in place of the parameter's."""
    return message.replace("max_pixels=", "--max-pixels ").replace("max_pixels", "--max-pixels")


def one_line(text: str) -> str:
    """Return `text` without line breaks and double blanks."""
    return " ".join(text.split())


def _os_error(error: OSError) -> str:
    if error.strerror is None:
        return one_line(str(error)) or type(error).__name__
    what = error.strerror[:1].lower() + error.strerror[1:]
    if _is_of_printing(error):
        return f"cannot print the report ({what}); any file that was written is complete"
    if error.errno == errno.ENOSPC:
        what += "; nothing was written"
    place = error.filename if error.filename is not None else error.filename2
    return f"{os.fsdecode(place)}: {what}" if isinstance(place, str | bytes | os.PathLike) else what


def _is_of_printing(error: OSError) -> bool:
    """Tell a report that cannot be printed, which always comes last, from a target that cannot be written."""
    return any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _is_torch_out_of_memory(error: BaseException) -> bool:
    """Recognise it by name: torch may not be imported at all."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
