"""Starting points: an embedded tokenizer, a weights file, or a run's checkpoint."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmcodec.codec.lineage import Lineage, Origin, parse_decodes, tokens_digest
from tmcodec.codec.models import EMBEDDED, RETIRED, find_weights
from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.codec.weights import as_stored, check_config, check_shapes, content_hash, load_weights
from tmcodec.errors import ConfigError, WeightsError
from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.training.mini import start_from

CONFIG_KEY = "tokenizer_config"
"""Where a run's checkpoint keeps the network's configuration, as JSON."""

AVERAGE_KEY = "moving_average"
"""Where it keeps the averaged parameters, by name, if there are any."""

LINEAGE_KEY = "tokenizer_lineage"
"""Where it keeps what the run started from, as JSON, if from anything."""

STAGE_KEY = "tokenizer_stage"
"""Where it says what was trained."""

METRICS_KEY = "tokenizer_metrics"
"""Where it keeps the figures of the last validation."""

LAYOUT_KEY = "tokenizer_layout"
"""Where it says which layout the network has; a checkpoint without it is of a small tokenizer."""


@dataclass(frozen=True)
class SavedRun:
    """A run's checkpoint, read as plain tensors.

    Attributes
    ----------
    path
        The file.
    layout
        ``"mini"`` or ``"terramind"``.
    config
        Of the network, not yet checked.
    weights
        Of the network, averaged where the run averaged.
    lineage
        What the run started from, or None.
    stage, steps
        What was trained last and for how many steps of the optimizer; "" where it is not known.
    metrics
        Of the last validation.
    """

    path: Path
    layout: str
    config: Any
    weights: dict[str, Tensor]
    lineage: Lineage | None
    stage: str
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)


def read_run(path: Path) -> SavedRun:
    """Read a run's checkpoint; no pickled objects.

    Raises
    ------
    WeightsError
        If it is no checkpoint of a run.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        raw = json.loads(saved[CONFIG_KEY])
        tensors = {**saved["state_dict"], **saved.get(AVERAGE_KEY, {})}
        known = saved.get(LINEAGE_KEY)
        lineage = None if known is None else Lineage.from_json(known, path)
        layout, stage = str(saved.get(LAYOUT_KEY, "mini")), str(saved.get(STAGE_KEY, ""))
        steps = int(saved.get("global_step", 0))
        metrics = {str(k): float(v) for k, v in dict(saved.get(METRICS_KEY, {})).items()}
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError,
            AttributeError, IndexError) as err:  # fmt: skip
        raise WeightsError(f"{path}: not a checkpoint of a training run ({type(err).__name__})") from err
    weights = {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}
    return SavedRun(path, layout, raw, weights, lineage, stage, steps, metrics)


def net_of_checkpoint(path: Path) -> MiniNet:
    """Rebuild the small network of a run's checkpoint, with the averaged weights where there are any.

    Raises
    ------
    WeightsError
        If it is no checkpoint of a run, or of another layout.
    """
    return net_of_run(read_run(path))


def net_of_run(run: SavedRun) -> MiniNet:
    """Do what `net_of_checkpoint` does, from what `read_run` read."""
    if run.layout != "mini":
        raise WeightsError(f"{run.path}: it is of layout {run.layout}, not of a small tokenizer")
    net = MiniNet(check_config(run.config, run.path))
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    check_shapes(shapes, {k: tuple(v.shape) for k, v in run.weights.items()}, run.path)
    net.load_state_dict(run.weights)
    return net


def lineage_of(net: MiniNet, origins: tuple[Origin, ...]) -> Lineage:
    """Return the lineage of what starts from `net`, which is the first of `origins` or decodes them."""
    return Lineage(tokens_digest(net), origins)


def find_start(start: str) -> Path:
    """Return the weights file of a starting point: what a tokenizer's name stands for, or a file.

    Raises
    ------
    ConfigError
        If it is neither.
    TokenizerNotFoundError
        If it is no weights file, or its weights are not on this computer.
    """
    if not (start in EMBEDDED or start in RETIRED or start in OFFICIAL or Path(start).is_file()):
        raise ConfigError(
            f"model.start: {start} is neither a file nor a tokenizer's name; `tmcodec models` lists the names"
        )
    return find_weights(start)


def open_start(start: str) -> tuple[MiniNet, Lineage]:
    """Open a starting point.

    Parameters
    ----------
    start
        Name of an embedded tokenizer, a ``.safetensors`` file, or a run's ``.ckpt``.

    Returns
    -------
    net, lineage
        The network, and whose tokens it makes. A checkpoint stands for the weights file that its run would
        write of it.

    Raises
    ------
    ConfigError, TokenizerNotFoundError, WeightsError
    """
    if start.endswith(".ckpt"):
        if not Path(start).is_file():
            raise ConfigError(f"model.start: no checkpoint {start}; check the path")
        run = read_run(Path(start))
        net = net_of_run(run)
        own = Origin(Path(start).stem, content_hash(*as_stored(net)))
        earlier = run.lineage.decoded_by(tokens_digest(net)) if run.lineage else ()
        return net, lineage_of(net, (own, *earlier))
    path = find_start(start)
    net, name, sha256, notes = load_weights(path)
    return net.train(), lineage_of(net, (Origin(name, sha256), *parse_decodes(notes, path)))


def build_net(cfg: MiniConfig | None, start: str | None) -> tuple[MiniNet, int, Lineage | None]:
    """Make the network of a configuration, of a starting point, or of the first with weights of the second.

    Tensors that fit are copied, band by band where the modalities differ. Statistics of the same modality are
    taken over where the configuration has none.

    Returns
    -------
    net, copied, lineage
        The network in training mode, how many tensors came from the starting point, and its lineage.

    Raises
    ------
    ConfigError
        If there is neither, or nothing fits.
    """
    if start is None:
        if cfg is None:
            raise ConfigError(
                "give model.net, the network's sizes, or model.start, a tokenizer to go on from"
            )
        return MiniNet(check_net(cfg)), 0, None
    source, lineage = open_start(start)
    if cfg is None:
        return source, len(source.state_dict()), lineage
    if cfg.modality == source.cfg.modality and not cfg.mean:
        cfg = replace(cfg, mean=source.cfg.mean, std=source.cfg.std)
    net = MiniNet(check_net(cfg))
    saved: dict[str, Any] = {"weights": source.state_dict(), "config": json.dumps(source.cfg.to_dict())}
    copied = start_from(net, saved)
    if not copied:
        raise ConfigError(f"model.start: no tensor of {start} fits model.net; compare their sizes")
    return net, copied, lineage


def textured(net: MiniNet) -> MiniNet:
    """Return the network with a denoiser of overlapping windows, which says how strong its residual is.

    Tensors of equal shape are taken over.
    """
    if net.denoiser is None or net.denoiser.lapped:
        return net
    found = MiniNet(replace(net.cfg, lapped=True))
    shapes = {k: v.shape for k, v in found.state_dict().items()}
    found.load_state_dict({k: v for k, v in net.state_dict().items() if v.shape == shapes[k]}, strict=False)
    return found.train(net.training)


def check_net(cfg: MiniConfig) -> MiniConfig:
    """Refuse sizes out of range, as a weights file's header is checked."""
    try:
        return check_config(cfg.to_dict(), Path("model.net"))
    except WeightsError as err:
        raise ConfigError(str(err).replace("the configuration in its header", "it", 1)) from err


def adopt(net: MiniNet, cfg: MiniConfig) -> None:
    """Give a network the statistics and residual components of `cfg`, which has its sizes."""
    fresh = MiniNet(cfg)
    for name in ("mean", "std"):
        getattr(net.compander, name).copy_(getattr(fresh.compander, name))
    net.residual_basis.copy_(fresh.residual_basis)
    net.residual_inverse.copy_(fresh.residual_inverse)
    net.cfg = cfg
