"""Write a run as a folder that can be published: complete, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from tmcodec.codec.models import EMBEDDED
from tmcodec.codec.store import file_sha256
from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.errors import ConfigError, TargetExistsError, TargetFolderError
from tmcodec.publishing.card import write_card
from tmcodec.publishing.facts import (
    Facts,
    commit_of_code,
    figures_of_report,
    figures_of_run,
    make_modality,
)
from tmcodec.publishing.runs import RunFiles, find_run, licence_of, recipe_of, sources_of
from tmcodec.publishing.stac import Published, make_item

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,98}[A-Za-z0-9]")
"""What MLM takes as a name, and what no file system minds."""


@dataclass(frozen=True)
class Exported:
    """What `export_run` wrote.

    Attributes
    ----------
    folder
        With ``<name>.safetensors``, ``README.md``, ``item.json`` and ``SHA256SUMS``.
    facts
        What they tell.
    size
        Bytes of the weights file.
    """

    folder: Path
    facts: Facts
    size: int


def export_run(
    run: str | os.PathLike[str],
    name: str,
    out: str | os.PathLike[str] | None = None,
    *,
    report: str | os.PathLike[str] | None = None,
    licence: str | None = None,
) -> Exported:
    """Write the averaged weights of a run with card, STAC item and checksums.

    Parameters
    ----------
    run
        A Lightning run's folder, or a ``.ckpt``.
    name
        Of the tokenizer.
    out
        The folder to make; None is `name`, here. It must not exist.
    report
        ``report.json`` of `tmcodec evaluate` on these weights, whatever their name was there; without it the
        run's last validation is told.
    licence
        SPDX identifier or text; None is the one that the run's callback WeightsFile was given.

    Raises
    ------
    ConfigError
        If the name is no good, the run or report cannot be read, or the report is on other weights.
    WeightsError
        If the checkpoint is damaged or not of a run.
    TargetExistsError, TargetFolderError
        If the folder exists, or cannot be made.
    """
    check_name(name)
    target = Path(out) if out is not None else Path(name)
    if os.path.lexists(target):
        raise TargetExistsError(f"{target} exists; give another folder with -o")
    files = find_run(Path(run))
    with whole_folder(target) as folder:
        facts = write_weights(files, folder / f"{name}.safetensors", name, report, licence)
        write_rest(folder, facts)
        size = (folder / f"{name}.safetensors").stat().st_size
    return Exported(target, facts, size)


def check_name(name: str) -> None:
    """Refuse names that others have, or that are no names."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a tokenizer; use letters, digits, dots, - and _")
    if name in EMBEDDED or name in OFFICIAL:
        raise ConfigError(f"{name} are other weights, which never change; choose another name")


def write_weights(
    files: RunFiles,
    path: Path,
    name: str,
    report: str | os.PathLike[str] | None,
    licence: str | None,
) -> Facts:
    """Write the weights file and return what there is to tell."""
    from tmcodec.training.starting import read_run
    from tmcodec.training.weights_file import write_run

    saved = read_run(files.checkpoint)
    stated = licence if licence is not None else licence_of(files.config)
    notes = {"licence": stated or "not stated", "training": f"stage {saved.stage}, {saved.steps} steps"}
    net, sha256, origins = write_run(saved, path, name, notes, overwrite=False)
    config = json.loads(json.dumps(net.cfg.to_dict()))
    modality = make_modality(config)
    if report is None:
        figures = figures_of_run(saved.metrics)
    else:
        figures = figures_of_report(Path(report), modality, sha256.hex())
    return Facts(
        name=name,
        layout=saved.layout,
        modality=modality,
        config=config,
        sha256=sha256.hex(),
        parameters=sum(p.numel() for p in net.state_dict().values()),
        decodes=tuple((o.name, o.sha256.hex()) for o in origins),
        licence=stated,
        sources=sources_of(files.config),
        recipe=recipe_of(files.config),
        stage=saved.stage,
        steps=saved.steps,
        figures=figures,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        commit=commit_of_code(),
    )


def write_rest(folder: Path, facts: Facts) -> None:
    """Write card, item and checksums beside the weights."""
    weights = f"{facts.name}.safetensors"
    (folder / "README.md").write_text(write_card(facts), encoding="utf-8")
    shutil.copymode(folder / "README.md", folder / weights)  # safetensors lets the owner alone read its files
    known = {n: describe(folder / n) for n in (weights, "README.md")}
    item = json.dumps(make_item(facts, known), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "item.json").write_text(item + "\n", encoding="utf-8")
    known["item.json"] = describe(folder / "item.json")
    sums = "".join(f"{known[n].sha256}  {n}\n" for n in sorted(known))
    (folder / "SHA256SUMS").write_text(sums, encoding="ascii")


def describe(path: Path) -> Published:
    """Return a file's size and checksum."""
    return Published(path.stat().st_size, file_sha256(path))


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that gets its name if the block succeeds, and goes if not.

    Raises
    ------
    TargetExistsError, TargetFolderError
        If the target exists, or its parent does not.
    """
    parent = target.absolute().parent
    if not parent.is_dir():
        raise TargetFolderError(f"{target}: the folder {target.parent} does not exist; create it first")
    temporary = parent / f".{target.name[:100]}.{secrets.token_hex(6)}.part"
    temporary.mkdir()
    try:
        yield temporary
        if os.path.lexists(target):
            raise TargetExistsError(f"{target} exists; give another folder with -o")
        os.rename(temporary, target)
    except BaseException:  # KeyboardInterrupt too must leave nothing behind
        shutil.rmtree(temporary, ignore_errors=True)
        raise
