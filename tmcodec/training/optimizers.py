"""One optimizer and one learning-rate schedule for a whole network, as Lightning wants them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from tmcodec.errors import ConfigError
from tmcodec.training.loop import schedule
from tmcodec.training.muon import make_muon

Params = Mapping[str, nn.Parameter]


@dataclass(frozen=True)
class OptimizerOptions:
    """How parameters move.

    Attributes
    ----------
    kind
        ``"muon"``: Muon (orthogonalised momentum) for the perceptrons' matrices and AdamW for the rest, AdamW
        alone where torch has no Muon (before 2.9). ``"adamw"``: AdamW for all.
    lr
        Peak learning rate; Muon's update is scaled to AdamW's size, so that one serves both.
    betas, weight_decay
        AdamW's. Muon decays by five times as much, as the embedded tokenizers were trained.
    warmup, floor
        Share of all steps that the rate rises for, and what is left of it at the end of a cosine.
    """

    kind: Literal["muon", "adamw"] = "muon"
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: float = 0.02
    floor: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"model.optimizer.lr is {self.lr}; give a number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"model.optimizer.weight_decay is {self.weight_decay}; give 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"model.optimizer.betas are {self.betas}; give two from 0 up to below 1")
        if not (0 <= self.warmup < 1 and 0 <= self.floor <= 1):
            raise ConfigError("model.optimizer.warmup and floor are shares; give 0 up to 1")


class Joint(Optimizer):
    """Several optimizers under one name, sharing parameter groups and state with it.

    Lightning accumulates, clips and scales gradients by itself only where there is one optimizer.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Make the parts look at this optimizer's groups and state."""
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `load_state_dict` read; the parts would keep the old lists otherwise."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Compute the loss where a closure is given, then let every part step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether a parameter is a hidden matrix of a `MixBlock`'s perceptron."""
    return parameter.ndim == 2 and (".up." in name or ".down." in name)


def build_optimizer(
    params: Params,
    options: OptimizerOptions,
    muon: bool | None = None,
    hidden: Callable[[str, nn.Parameter], bool] = is_hidden,
) -> Optimizer:
    """Make the optimizer of named parameters.

    Parameters
    ----------
    params
        By name.
    options
        See `OptimizerOptions`.
    muon
        Whether torch has Muon; None looks.
    hidden
        Which parameters are for Muon, by name.
    """
    wanted = options.kind == "muon" and (hasattr(torch.optim, "Muon") if muon is None else muon)
    matrices = {n: p for n, p in params.items() if wanted and hidden(n, p)}
    rest = [p for n, p in params.items() if n not in matrices]
    parts: list[Optimizer] = []
    if matrices:
        parts.append(make_muon(matrices.values(), options.lr, 5 * options.weight_decay))
    if rest:
        parts.append(
            torch.optim.AdamW(rest, options.lr, betas=options.betas, weight_decay=options.weight_decay)
        )
    return parts[0] if len(parts) == 1 else Joint(parts)


def factor_at(step: int, total: int, options: OptimizerOptions) -> float:
    """Return the learning rate's factor at optimizer step `step` of `total`.

    The first step is taken at ``1 / (warm-up steps + 1)`` of the peak rather than at nothing.
    """
    progress = (step + 1) / (total + 1)
    if progress < options.warmup:
        return progress / options.warmup
    cosine = (schedule(progress, options.warmup) - 0.02) / 0.98  # 1 to 0
    return options.floor + (1 - options.floor) * cosine
