"""``tmcodec models export``."""

from __future__ import annotations

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import debug_option, echo_json, echo_line, json_option, options
from tmcodec.texts import human_bytes


@click.command("export", cls=Command)
@click.argument("run", metavar="RUN", type=click.Path(exists=True))
@click.option("--name", required=True, help="Name of the tokenizer, e.g. my-s2-v1.")
@click.option("-o", "--output", "out", metavar="DIR", type=click.Path(),
              help="Folder to make; NAME by default.")
@click.option("--report", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
              help="report.json of tmcodec evaluate, whose figures the card tells.")
@click.option("--licence", metavar="SPDX", help="Licence of the weights, e.g. Apache-2.0.")
@click.option("--push-to-hub", "repo", metavar="REPO", help="Upload to this Hugging Face repository, too.")
@options(json_option, debug_option)
def export_command(
    run: str,
    name: str,
    out: str | None,
    report: str | None,
    licence: str | None,
    repo: str | None,
    as_json: bool,
) -> None:
    """Publish a training run: weights, model card, STAC item, checksums.

    RUN is a Lightning run's folder or a .ckpt. Averaged weights are written where the run kept an
    average. The network is used for --push-to-hub alone, which makes a private repository where
    there is none.
    """
    from tmcodec.publishing.export import export_run
    from tmcodec.publishing.hub import push_to_hub

    done = export_run(run, name, out, report=report, licence=licence)
    address = push_to_hub(done.folder, repo) if repo else None
    facts = done.facts
    if as_json:
        echo_json({"name": facts.name, "modality": facts.modality.name, "path": str(done.folder),
                   "bytes": done.size, "sha256": facts.sha256, "decodes": [n for n, _ in facts.decodes],
                   "address": address})
        return
    click.echo(f"{facts.name}: {human_bytes(done.size)}, weights {facts.sha256[:12]}, in {done.folder}")
    for origin, sha256 in facts.decodes:
        echo_line(f"decodes tokens of {origin} (weights {sha256[:12]}) too")
    if address:
        click.echo(f"pushed: {address}")
