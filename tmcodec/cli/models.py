"""``tmcodec models list|show``."""

from __future__ import annotations

from typing import Any

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import debug_option, echo_json, echo_rows, echo_table, json_option, options
from tmcodec.cli.weights_header import WeightsHeader, read_header
from tmcodec.codec.models import EMBEDDED, find_weights
from tmcodec.errors import TokenizerError
from tmcodec.texts import human_bytes


@click.group("models")
def command() -> None:
    """List the tokenizers in the package, or show one."""


@command.command("list", cls=Command)
@options(json_option, debug_option)
def list_command(as_json: bool) -> None:
    """List the embedded tokenizers."""
    found = {name: _header_or_none(name) for name in EMBEDDED}
    if as_json:
        echo_json([_facts(name, header) for name, header in found.items()])
        return
    rows = [[name, EMBEDDED[name].modality, *_cells(header)] for name, header in found.items()]
    echo_table(["NAME", "MODALITY", "PARAMETERS", "SIZE", "SHA-256"], rows, left=2, indent=0)


@command.command("show", cls=Command)
@click.argument("name", metavar="NAME|PATH")
@options(json_option, debug_option)
def show_command(name: str, as_json: bool) -> None:
    """Show what is known about a tokenizer: its weights, training and configuration."""
    header = read_header(find_weights(name))
    label = header.notes.get("name", name)
    if as_json:
        echo_json({**_facts(label, header), "config": header.config, "notes": header.notes})
        return
    click.echo(label)
    echo_rows([
        ("modality", str(header.config.get("modality", ""))),
        ("parameters", f"{header.parameters:,}"),
        ("size", human_bytes(header.size)),
        ("SHA-256", header.sha256),
        ("file", str(header.path)),
        *((key, value) for key, value in sorted(header.notes.items()) if key not in ("name", "format")),
    ])
    click.echo("configuration")
    echo_rows([(key, _short(value)) for key, value in header.config.items() if key != "modality"])


def _header_or_none(name: str) -> WeightsHeader | None:
    """Return the header; None for weights that are missing or damaged, so that the others are listed."""
    try:
        return read_header(EMBEDDED[name].path)
    except TokenizerError:
        return None


def _facts(name: str, header: WeightsHeader | None) -> dict[str, Any]:
    if header is None:
        return {"name": name, "modality": EMBEDDED[name].modality, "usable": False}
    return {
        "name": name,
        "modality": header.config.get("modality"),
        "usable": True,
        "parameters": header.parameters,
        "bytes": header.size,
        "sha256": header.sha256,
        "path": str(header.path),
    }


def _cells(header: WeightsHeader | None) -> list[str]:
    if header is None:
        return ["-", "-", "missing or damaged"]
    return [f"{header.parameters:,}", human_bytes(header.size), header.sha256[:12]]


def _short(value: Any) -> str:
    """Return a setting as text, numbers of a list with four digits."""
    if isinstance(value, list):
        return " ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
