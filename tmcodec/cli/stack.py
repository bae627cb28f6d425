"""``tmcodec stack``."""

from __future__ import annotations

import os

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import (
    debug_option,
    echo_json,
    echo_line,
    json_option,
    options,
    overwrite_option,
    quiet_option,
)
from tmcodec.texts import human_bytes, plural


@click.command("stack", cls=Command)
@click.argument("sources", metavar="SRC.tmc...", nargs=-1, required=True)
@click.argument("dst", metavar="DST.tmc", type=click.Path(dir_okay=False))
@options(overwrite_option, json_option, quiet_option, debug_option)
def command(sources: tuple[str, ...], dst: str, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Put token files of one footprint into DST.tmc.

    Modalities become layers beside each other; dates of one modality become its time axis.
    Tokens are copied as they are.
    """
    from tmcodec.tokenfile import stack

    meta = stack(sources, dst, overwrite)
    size = os.path.getsize(dst)
    layers = [{"name": layer.name, "times": len(layer.times)} for layer in meta.layers]
    if as_json:
        echo_json({"path": dst, "file_bytes": size, "layers": layers})
    elif not quiet:
        named = ", ".join(layer.name + _dates(len(layer.times)) for layer in meta.layers)
        echo_line(f"{dst}: {plural(len(meta.layers), 'layer')} ({named}), {human_bytes(size)}")


def _dates(count: int) -> str:
    return f" on {count} dates" if count > 1 else ""
