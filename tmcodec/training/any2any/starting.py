"""What a run starts from: a generator's weights file, or a run's checkpoint."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmcodec.errors import ConfigError, WeightsError
from tmcodec.networks.generator.config import GeneratorConfig
from tmcodec.networks.generator.model import Generator
from tmcodec.training.any2any.grids import TokenizerId
from tmcodec.training.starting import AVERAGE_KEY

CONFIG_KEY = "generator_config"
"""Where a run's checkpoint keeps the network's configuration, as JSON."""
TOKENIZERS_KEY = "generator_tokenizers"
"""Where it keeps the tokenizers of its tokens, as JSON."""


def read_checkpoint(path: Path) -> tuple[GeneratorConfig, dict[str, Tensor], dict[str, TokenizerId]]:
    """Read a run's checkpoint as plain tensors: configuration, weights (averaged where there are any),
    tokenizers.

    Raises
    ------
    WeightsError
        If it is no checkpoint of such a run.
    """
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        cfg = GeneratorConfig.from_dict(json.loads(saved[CONFIG_KEY]))
        tensors = {**saved["state_dict"], **saved.get(AVERAGE_KEY, {})}
        made = {m: TokenizerId.from_plain(t) for m, t in json.loads(saved[TOKENIZERS_KEY]).items()}
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError,
            AttributeError, IndexError) as err:  # fmt: skip
        raise WeightsError(
            f"{path}: not a checkpoint of a generator's training ({type(err).__name__})"
        ) from err
    return cfg, {n.removeprefix("net."): t for n, t in tensors.items() if n.startswith("net.")}, made


def generator_of_checkpoint(path: Path) -> tuple[Generator, dict[str, TokenizerId]]:
    """Rebuild the network of a run's checkpoint for evaluation, with averaged weights; also its tokenizers.

    Raises
    ------
    WeightsError
    """
    cfg, tensors, made = read_checkpoint(path)
    net = Generator(cfg)
    try:
        net.load_state_dict(untied(net, tensors))
    except RuntimeError as err:
        raise WeightsError(f"{path}: its tensors do not fit its configuration") from err
    return net.eval(), made


def untied(net: Generator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors that share memory one value: averages are kept under the first of their names alone."""
    first: dict[int, str] = {}
    out = dict(tensors)
    for name, tensor in net.state_dict(keep_vars=True).items():
        owner = first.setdefault(id(tensor), name)
        if owner in tensors:
            out[name] = tensors[owner]
    return out


def open_start(start: str) -> dict[str, Tensor]:
    """Return the tensors of a starting point, by the network's names.

    Parameters
    ----------
    start
        A run's ``.ckpt``, or what `tmcodec.load_generator` takes.

    Raises
    ------
    ConfigError
        If there is no such checkpoint.
    TmcodecError
        What `tmcodec.load_generator` raises.
    """
    if start.endswith(".ckpt"):
        if not Path(start).is_file():
            raise ConfigError(f"model.start: no checkpoint {start}; check the path")
        return generator_of_checkpoint(Path(start))[0].state_dict()
    from tmcodec.generation.models import load_generator

    tensors: dict[str, Tensor] = load_generator(start, device="cpu").trainable().state_dict()
    return tensors


def copy_fitting(net: Generator, tensors: dict[str, Tensor]) -> int:
    """Copy tensors of equal name and shape; return how many.

    Raises
    ------
    ConfigError
        If none fits.
    """
    own = net.state_dict()
    fitting = {n: t for n, t in tensors.items() if n in own and own[n].shape == t.shape}
    if not fitting:
        raise ConfigError("model.start: none of its tensors fits model.net; compare their sizes")
    net.load_state_dict(fitting, strict=False)
    return len(fitting)
