"""``tmcodec models list|show|pull|import``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tmcodec.cli.command import Command
from tmcodec.cli.generators import (
    generator_facts,
    generator_header,
    import_other,
    pull_other,
    words_facts,
)
from tmcodec.cli.models_export import export_command
from tmcodec.cli.options import (
    debug_option,
    echo_json,
    echo_line,
    echo_rows,
    echo_table,
    json_option,
    options,
)
from tmcodec.cli.weights_header import read_header
from tmcodec.codec.lineage import DECODES, parse_decodes
from tmcodec.codec.models import EMBEDDED, find_weights, texture_path
from tmcodec.codec.store import WeightsHeader, read_stored, stored_path
from tmcodec.codec.terramind_models import OFFICIAL, OfficialModel
from tmcodec.errors import TokenizerError
from tmcodec.texts import human_bytes

if TYPE_CHECKING:
    from tmcodec.codec.terramind_weights import Checkpoint


@click.group("models")
def command() -> None:
    """List, show, fetch, import and publish tokenizers and generators."""


command.add_command(export_command)


@command.command("list", cls=Command)
@options(json_option, debug_option)
def list_command(as_json: bool) -> None:
    """List the tokenizers and generators in the package, those on this computer, and those to be had.

    embedded: in the package. imported: on this computer, ready. cached: fetched by another program,
    imported at the first use. obtainable: `tmcodec models pull` fetches it; gated ones need HF_TOKEN.
    """
    facts = [*map(_embedded_facts, EMBEDDED), *map(_official_facts, OFFICIAL.values()), *generator_facts()]
    if as_json:
        echo_json(facts)
        return
    rows = [[f["name"], f["modality"], f["where"], *_cells(f)] for f in facts]
    echo_table(["NAME", "MODALITY", "WHERE", "PARAMETERS", "SIZE", "SHA-256"], rows, left=3, indent=0)


@command.command("show", cls=Command)
@click.argument("name", metavar="NAME|PATH")
@options(json_option, debug_option)
def show_command(name: str, as_json: bool) -> None:
    """Show what is known about a tokenizer, generator or vocabulary: weights, training, configuration."""
    words = words_facts(name)
    if words is not None:
        _echo_words(words, as_json)
        return
    header = generator_header(name)
    if header is None:
        path = find_weights(name)
        header = read_stored(path) or read_header(path)
    label, texture = header.notes.get("name", name), _texture(header)
    if as_json:
        more = {"config": header.config, "notes": header.notes, "texture": texture}
        echo_json({**_facts(label, header), **more})
        return
    echo_line(label)
    echo_rows([
        ("modality", str(header.config.get("modality", ""))),
        ("parameters", f"{header.parameters:,}"),
        ("size", human_bytes(header.size)),
        ("SHA-256", header.sha256),
        ("file", str(header.path)),
        *([("texture", f"{texture['name']}, SHA-256 {texture['sha256']}")] if texture else []),
        *((key, _note(header, key)) for key in sorted(header.notes) if key not in ("name", "format")),
    ])
    click.echo("configuration")
    echo_rows([(key, _short(value)) for key, value in header.config.items() if key != "modality"])


def _echo_words(facts: dict[str, Any], as_json: bool) -> None:
    """Show a vocabulary."""
    if as_json:
        echo_json(facts)
        return
    echo_line(facts["name"])
    echo_rows([
        ("modality", facts["modality"]),
        ("size", human_bytes(facts["bytes"])),
        ("SHA-256", facts["sha256"]),
        ("file", facts["path"]),
    ])


def _texture(header: WeightsHeader) -> dict[str, str] | None:
    """Return name and hash of the texture that lies beside a weights file, None where there is none."""
    path = texture_path(header.path)
    if not path.is_file():
        return None
    found = read_header(path)
    return {"name": str(found.notes.get("name", path.stem)), "sha256": found.sha256}


@command.command("pull", cls=Command)
@click.argument("name", metavar="NAME")
@options(json_option, debug_option)
def pull_command(name: str, as_json: bool) -> None:
    """Fetch an official tokenizer or generator from the Hugging Face Hub and import it.

    HF_HUB_OFFLINE, HF_HOME and HF_TOKEN count; the weights of version 0.1 are gated and need the token.
    """
    from tmcodec.codec.models import pull

    _echo_imported(pull_other(name) or _imported(pull(name)), as_json)


@command.command("import", cls=Command)
@click.argument("path", metavar="PATH", type=click.Path(exists=True, dir_okay=False))
@click.option("--as", "name", metavar="NAME",
              help="Official name of what it is; not needed where the file name or its header says so.")
@options(json_option, debug_option)
def import_command(path: str, name: str | None, as_json: bool) -> None:
    """Convert a checkpoint, .pt or .safetensors, to safetensors on this computer.

    After that its name works everywhere, and encoding reads the encoder's third of the file only.
    """
    from tmcodec.codec.models import import_weights

    _echo_imported(import_other(Path(path), name) or _imported(import_weights(path, name)), as_json)


def _imported(found: Checkpoint) -> dict[str, Any]:
    return {"name": found.name, "bytes": found.path.stat().st_size, "sha256": found.sha256.hex(),
            "path": str(found.path)}


def _echo_imported(facts: dict[str, Any], as_json: bool) -> None:
    """Report what was written."""
    if as_json:
        echo_json(facts)
        return
    size, sha256 = human_bytes(facts["bytes"]), facts["sha256"][:12]
    echo_line(f"{facts['name']}: {size}, weights {sha256}, in {facts['path']}")


def _embedded_facts(name: str) -> dict[str, Any]:
    """Return what the list says; weights that are missing or damaged do not hide the others."""
    try:
        return {**_facts(name, read_header(EMBEDDED[name].path)), "where": "embedded"}
    except TokenizerError:
        return {"name": name, "modality": EMBEDDED[name].modality, "usable": False,
                "where": "missing or damaged"}


def _official_facts(model: OfficialModel) -> dict[str, Any]:
    """Return what the list says of an official tokenizer, without reading its weights."""
    path = stored_path(model.name)
    stored = read_stored(path) if path.is_file() else None
    if stored is not None:
        return {**_facts(model.name, stored), "where": "imported"}
    from tmcodec.codec.hub import cached

    where = "cached" if cached(model) is not None else "gated" if model.gated else "obtainable"
    return {"name": model.name, "modality": model.modality, "usable": False, "where": where,
            "repository": model.repo}


def _facts(name: str, header: WeightsHeader) -> dict[str, Any]:
    return {
        "name": name,
        "modality": header.config.get("modality"),
        "usable": True,
        "parameters": header.parameters,
        "bytes": header.size,
        "sha256": header.sha256,
        "path": str(header.path),
    }


def _cells(facts: dict[str, Any]) -> list[str]:
    if not facts["usable"]:
        return ["-", "-", "-"]
    return [f"{facts['parameters']:,}", human_bytes(facts["bytes"]), facts["sha256"][:12]]


def _note(header: WeightsHeader, key: str) -> str:
    """Return a string of the header; of the tokenizers whose tokens it decodes, their names and hashes."""
    if key != DECODES:
        return _listed(header.notes[key])
    origins = parse_decodes(header.notes, header.path)
    return ", ".join(f"tokens of {o.name}, weights {o.sha256.hex()[:12]}" for o in origins)


def _listed(note: str) -> str:
    """Return a note, one that is a JSON object as its entries; of tokenizers, names and hashes."""
    try:
        found = json.loads(note)
    except (ValueError, RecursionError):
        return note
    if not isinstance(found, dict):
        return note
    named = all(isinstance(entry, dict) and {"name", "sha256"} <= set(entry) for entry in found.values())
    return ", ".join(
        f"{key} {entry['name']} ({str(entry['sha256'])[:12]})" if named else f"{key} {_short(entry)}"
        for key, entry in found.items()
    )


def _short(value: Any) -> str:
    """Return a setting as text, numbers of a list, or of its lists, with four digits."""
    if not isinstance(value, list):
        return _number(value)
    return " ".join(
        " ".join(map(_number, v)) if isinstance(v, list) else
        str(v.get("key", "")) if isinstance(v, dict) else _number(v)
        for v in value
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
