"""What card and STAC item tell about a tokenizer, gathered once."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmcodec import __version__
from tmcodec.errors import ConfigError
from tmcodec.modalities import Modality, get_modality

MAX_REPORT = 64 << 20
"""Bytes of an evaluation's report that are read."""


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes
    ----------
    name, value
        What was measured, and the result.
    note
        On what, with which interval.
    """

    name: str
    value: float
    note: str


@dataclass(frozen=True)
class Facts:
    """Everything that is told about a tokenizer.

    Attributes
    ----------
    name, layout
        Of the tokenizer, and ``"mini"`` or ``"terramind"``.
    modality
        Row of the modality table.
    config
        Of the network, plain types.
    sha256
        Content hash in hex, the one that token files store.
    parameters
        Numbers in all tensors.
    decodes
        Earlier tokenizers whose tokens it decodes: name and hash.
    licence
        SPDX identifier or text; ``""`` where it is not stated.
    sources
        Of the training data, see `tmcodec.publishing.runs.sources_of`.
    recipe
        See `tmcodec.publishing.runs.recipe_of`.
    stage, steps
        What was trained last, for how many steps of the optimizer.
    figures
        From the run's validation, or an evaluation's report.
    created
        When it was exported, ISO 8601 in UTC.
    version, commit
        Of tmcodec that exported it.
    """

    name: str
    layout: str
    modality: Modality
    config: Mapping[str, Any]
    sha256: str
    parameters: int
    decodes: tuple[tuple[str, str], ...]
    licence: str
    sources: list[dict[str, Any]]
    recipe: dict[str, Any]
    stage: str
    steps: int
    figures: tuple[Figure, ...]
    created: str
    version: str = __version__
    commit: str = ""

    @property
    def architecture(self) -> str:
        """The network in words."""
        if self.layout == "mini":
            kind = "height codes" if self.config.get("kind") == "height" else "convolutional encoder"
            return f"{kind}, FSQ, mean decoder" + (", residual diffusion" if self._denoises else "")
        decoder = "ViT decoder" if self.modality.categorical else "diffusion UNet"
        return f"ViT encoder, FSQ, {decoder}"

    @property
    def _denoises(self) -> bool:
        return bool(self.config.get("denoiser_blocks", 0))

    @property
    def codes(self) -> int:
        """Size of the codebook."""
        return math.prod(self.config["levels"])

    @property
    def channels(self) -> int:
        """Bands in; classes are one-hot inside."""
        return len(self.modality.bands)


def commit_of_code() -> str:
    """Return the commit of the working copy that this package is in, or ``""``."""
    folder = Path(__file__).resolve().parent
    try:
        # An installed package may lie in somebody else's repository: ask whether this file is tracked.
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        return _git(folder, "rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def figures_of_run(metrics: Mapping[str, float]) -> tuple[Figure, ...]:
    """Return the figures of a run's last validation, which its checkpoint keeps."""
    note = "last validation of the run, mean over crops"
    return tuple(
        Figure(name.removeprefix("val/"), value, note) for name, value in sorted(metrics.items())
    )


def figures_of_report(path: Path, modality: Modality, sha256: str) -> tuple[Figure, ...]:
    """Return the figures of the weights `sha256` in an evaluation's ``report.json``, means over scenes.

    Raises
    ------
    ConfigError
        If it is no such report, or of another modality or other weights.
    """
    try:
        if path.stat().st_size > MAX_REPORT:
            raise ValueError("too large")
        raw = json.loads(path.read_text(encoding="utf-8"))
        of = str(raw["modality"])
        weights = {str(u["tokenizer"]): str(u["weights_sha256"]) for u in raw["token_use"]}
        own = {
            m["key"] for m in raw["methods"]
            if m["kind"] == "tokenizer" and weights[m["tokenizer"]] == sha256
        }
        found = tuple(
            Figure(f"{r['measure']} ({r['method']})", float(r["mean"]), _interval(r))
            for r in raw["summary"] if r["method"] in own and r["mean"] is not None
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise ConfigError(f"{path}: not a report of tmcodec evaluate; give its report.json") from err
    if of != modality.name:
        raise ConfigError(f"{path}: a report on {of}, but the tokenizer is for {modality.name}")
    if not own:
        others = " and ".join(weights.values())
        raise ConfigError(f"{path}: a report on weights {others}, but the run's are {sha256}; evaluate these")
    return found


def _interval(row: Mapping[str, Any]) -> str:
    """Say how many scenes a mean is of, and its interval."""
    count = f"{int(row['count'])} scenes"
    if row.get("low") is None or row.get("high") is None:
        return count
    return f"{count}, 95 % interval {float(row['low']):.4g} to {float(row['high']):.4g}"


def make_modality(config: Mapping[str, Any]) -> Modality:
    """Return the row of the modality table of a network's configuration."""
    return get_modality(str(config["modality"]))
