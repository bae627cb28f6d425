"""Finding a run's checkpoint and configuration, and what of them may be told to others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmcodec.errors import ConfigError, MissingDependencyError

MAX_CONFIG = 1 << 20
"""Bytes of a configuration that are read."""


@dataclass(frozen=True)
class RunFiles:
    """Where a run's parts are.

    Attributes
    ----------
    checkpoint
        The ``.ckpt`` file.
    config
        Contents of the ``config.yaml`` that Lightning wrote; empty where there is none.
    """

    checkpoint: Path
    config: Mapping[str, Any] = field(default_factory=dict)


def find_run(path: Path) -> RunFiles:
    """Find checkpoint and configuration.

    Parameters
    ----------
    path
        A ``.ckpt``, or a run's folder: the one with ``checkpoints``, or one above it that holds one run only.

    Raises
    ------
    ConfigError
        If there is no checkpoint, or more than one and none is the last.
    """
    if path.is_file():
        checkpoint = path
    elif path.is_dir():
        checkpoint = _in_folder(path)
    else:
        raise ConfigError(f"{path}: no such run; give a Lightning run's folder or a .ckpt file")
    if checkpoint.suffix != ".ckpt":
        raise ConfigError(f"{path}: not a .ckpt file; give a Lightning run's folder or checkpoint")
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        if (folder / "config.yaml").is_file():
            return RunFiles(checkpoint, read_config(folder / "config.yaml"))
    return RunFiles(checkpoint)


def _in_folder(folder: Path) -> Path:
    """Return the last checkpoint of the only run in a folder, or its only checkpoint."""
    # Where a fit finds another's last.ckpt, Lightning writes last-v1.ckpt beside it.
    patterns = ("last*.ckpt", "checkpoints/last*.ckpt", "**/last*.ckpt", "**/*.ckpt")
    found = next((paths for p in patterns if (paths := sorted(folder.glob(p)))), [])
    if not found:
        raise ConfigError(f"{folder}: no checkpoint in it; train with ModelCheckpoint, or give a .ckpt file")
    if len(found) > 1:
        names = ", ".join(str(p.relative_to(folder)) for p in found[:4])
        raise ConfigError(f"{folder}: several checkpoints ({names}); give one of them")
    return found[0]


def read_config(path: Path) -> Mapping[str, Any]:
    """Read a configuration without building anything from it.

    Raises
    ------
    ConfigError
        If it is no YAML mapping, or too large for one.
    """
    try:
        import yaml  # type: ignore[import-untyped]

        if path.stat().st_size > MAX_CONFIG:
            raise ValueError("too large")
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("no mapping")
    except ImportError as err:
        raise MissingDependencyError("reading runs needs PyYAML; pip install 'tmcodec[train]'") from err
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as err:
        reason = str(err).splitlines()[0]
        raise ConfigError(f"{path}: not a run's configuration ({reason}); move it away or mend it") from err
    return raw


TRAINER = ("max_steps", "max_epochs", "max_time", "precision", "accumulate_grad_batches", "gradient_clip_val",
           "devices", "num_nodes", "strategy")  # fmt: skip
DATA = ("side", "batch", "epoch", "radiometry", "geometry", "warp", "blend", "seed")
"""Keys that a recipe is told with; others hold paths, or say nothing about the weights."""


def recipe_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a reader needs to train the same: no path beyond the names of folders, no host."""
    model = _mapping(config.get("model"))
    told: dict[str, Any] = dict(_mapping(model.get("init_args"))) or dict(model)
    if "class_path" in model:
        told = {"module": str(model["class_path"]).rsplit(".", 1)[-1], **told}
    told.pop("net", None)  # the weights file holds it
    if isinstance(told.get("start"), str):
        told["start"] = Path(told["start"]).name
    trainer, data = _mapping(config.get("trainer")), _mapping(config.get("data"))
    recipe = {
        "model": _without_paths({k: v for k, v in told.items() if v is not None}),
        "trainer": {k: trainer[k] for k in TRAINER if trainer.get(k) is not None},
        "data": {k: data[k] for k in DATA if data.get(k) is not None},
    }
    recipe["trainer"].update(_average(trainer))
    return {name: part for name, part in recipe.items() if part}


def sources_of(config: Mapping[str, Any], part: str = "train") -> list[dict[str, Any]]:
    """Return the data sources of a configuration: the folder's own name, its kind, modality and weight."""
    listed = _mapping(config.get("data")).get(part)
    found = []
    for source in listed if isinstance(listed, list) else []:
        args = _mapping(_mapping(source).get("init_args"))
        kind = str(_mapping(source).get("class_path", "")).rsplit(".", 1)[-1]
        name = Path(str(args.get("path", ""))).name or "unnamed"
        entry = {"name": name, "kind": kind, "modality": args.get("modality"), "weight": args.get("weight")}
        found.append({k: v for k, v in entry.items() if v is not None})
    return found


def licence_of(config: Mapping[str, Any]) -> str:
    """Return the licence that the callback WeightsFile was given, or ``""``."""
    callbacks = _mapping(config.get("trainer")).get("callbacks")
    for callback in callbacks if isinstance(callbacks, list) else []:
        args = _mapping(_mapping(callback).get("init_args"))
        if str(_mapping(callback).get("class_path", "")).endswith("WeightsFile"):
            licence = str(args.get("licence") or "")
            return "" if licence == "not stated" else licence
    return ""


def _average(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decay of the moving average, if there is one."""
    callbacks = trainer.get("callbacks")
    for callback in callbacks if isinstance(callbacks, list) else []:
        if str(_mapping(callback).get("class_path", "")).endswith("MovingAverage"):
            decay = _mapping(_mapping(callback).get("init_args")).get("decay")
            return {} if decay is None else {"moving_average": decay}
    return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _without_paths(value: Any) -> Any:
    """Shorten every text that looks like a path to its last part."""
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(v) for v in value]
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return value.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return value
