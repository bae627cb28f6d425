"""Starting points: an embedded tokenizer, a weights file, or a run's checkpoint."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmcodec.codec.models import find_weights
from tmcodec.codec.weights import check_config, check_shapes, load_weights
from tmcodec.errors import ConfigError, WeightsError
from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.training.mini import start_from

CONFIG_KEY = "tokenizer_config"
"""Where a run's checkpoint keeps the network's configuration, as JSON."""

AVERAGE_KEY = "moving_average"
"""Where it keeps the averaged parameters, by name, if there are any."""


def net_of_checkpoint(path: Path) -> MiniNet:
    """Rebuild the network of a run's checkpoint, with the averaged weights where there are any; no pickled
    objects.

    Raises
    ------
    WeightsError
        If it is no checkpoint of a run.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        raw = json.loads(saved[CONFIG_KEY])
        tensors = {**saved["state_dict"], **saved.get(AVERAGE_KEY, {})}
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError,
            AttributeError, IndexError) as err:  # fmt: skip
        raise WeightsError(f"{path}: not a checkpoint of a training run ({type(err).__name__})") from err
    cfg = check_config(raw, path)
    net = MiniNet(cfg)
    weights: dict[str, Tensor] = {
        k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")
    }
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    check_shapes(shapes, {k: tuple(v.shape) for k, v in weights.items()}, path)
    net.load_state_dict(weights)
    return net


def open_start(start: str) -> MiniNet:
    """Open a starting point.

    Parameters
    ----------
    start
        Name of an embedded tokenizer, a ``.safetensors`` file, or a run's ``.ckpt``.

    Raises
    ------
    TokenizerNotFoundError, WeightsError
    """
    if start.endswith(".ckpt"):
        if not Path(start).is_file():
            raise ConfigError(f"model.start: no checkpoint {start}; check the path")
        return net_of_checkpoint(Path(start))
    return load_weights(find_weights(start))[0].train()


def build_net(cfg: MiniConfig | None, start: str | None) -> tuple[MiniNet, int]:
    """Make the network of a configuration, of a starting point, or of the first with weights of the second.

    Tensors that fit are copied, band by band where the modalities differ. Statistics of the same modality are
    taken over where the configuration has none.

    Returns
    -------
    net, copied
        The network in training mode, and how many tensors came from the starting point.

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
        return MiniNet(check_net(cfg)), 0
    source = open_start(start)
    if cfg is None:
        return source, len(source.state_dict())
    if cfg.modality == source.cfg.modality and not cfg.mean:
        cfg = replace(cfg, mean=source.cfg.mean, std=source.cfg.std)
    net = MiniNet(check_net(cfg))
    saved: dict[str, Any] = {"weights": source.state_dict(), "config": json.dumps(source.cfg.to_dict())}
    copied = start_from(net, saved)
    if not copied:
        raise ConfigError(f"model.start: no tensor of {start} fits model.net; compare their sizes")
    return net, copied


def check_net(cfg: MiniConfig) -> MiniConfig:
    """Refuse sizes out of range, as a weights file's header is checked."""
    try:
        return check_config(cfg.to_dict(), Path("model.net"))
    except WeightsError as err:
        raise ConfigError("model.net has sizes out of range or that do not fit each other") from err


def adopt(net: MiniNet, cfg: MiniConfig) -> None:
    """Give a network the statistics and residual components of `cfg`, which has its sizes."""
    fresh = MiniNet(cfg)
    for name in ("mean", "std"):
        getattr(net.compander, name).copy_(getattr(fresh.compander, name))
    net.residual_basis.copy_(fresh.residual_basis)
    net.residual_inverse.copy_(fresh.residual_inverse)
    net.cfg = cfg
