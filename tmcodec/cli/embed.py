"""``tmcodec embed``."""

from __future__ import annotations

from typing import Any

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import (
    Whole,
    debug_option,
    device_option,
    echo_json,
    json_option,
    max_pixels_option,
    options,
    overwrite_option,
    progress_bar,
    quiet_option,
    s2_offset_option,
    scale_option,
)
from tmcodec.texts import plural, printable


@click.command("embed", cls=Command)
@click.argument("sources", metavar="SRC...", nargs=-1, required=True)
@options(
    click.option("-o", "--output", required=True, metavar="OUT", type=click.Path(dir_okay=False),
                 help="File to write: .npz with vectors and names, or .npy."),
    click.option("--model", default="mini-any2any-v1", show_default=True, metavar="NAME|PATH",
                 help="Generator whose encoder embeds."),
    click.option("--per", type=click.Choice(["file", "tile"]), default="file", show_default=True,
                 help="One vector a file, or one for each tile of the generator's grid."),
    click.option("--block", "layer", type=int, default=-1, show_default=True, metavar="N",
                 help="Block of the encoder whose output is taken."),
    click.option("--layer", "layers", multiple=True, metavar="NAME",
                 help="Layer of token files to take, by default all; may be repeated."),
    click.option("--time", type=Whole(0, 2**31), default=0, show_default=True, metavar="N",
                 help="Time step of token files."),
    s2_offset_option,
    scale_option,
    max_pixels_option,
    device_option,
    overwrite_option,
    json_option,
    quiet_option,
    debug_option,
)
def command(sources: tuple[str, ...], output: str, overwrite: bool, as_json: bool, quiet: bool,
            **choices: Any) -> None:
    """Embed token files and rasters as vectors, for search and few-shot classification.

    All layers of a token file go in together. MODALITY=PATH says what a raster is. A file without a valid
    pixel is left out, with a warning.
    """
    from tmcodec.embeddings import check_embeddings, embed_files

    check_embeddings(output, overwrite)
    with progress_bar("embedding", quiet) as progress:
        found = embed_files(sources, progress=progress, **choices)
    found.save(output, overwrite)
    for name in found.empty:
        click.echo(f"tmcodec: warning: {printable(name)} has no valid pixel, and no vector", err=True)
    count, width = found.vectors.shape
    if as_json:
        echo_json({"path": output, "model": found.model, "vectors": count, "dimensions": width,
                   "names": list(found.names), "empty": list(found.empty)})
    elif not quiet:
        click.echo(f"{output}: {plural(count, 'vector')} of {width} numbers, by {found.model}")
