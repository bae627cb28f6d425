"""One training stage: optimise some parameters by the clock, average them, survive a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmcodec.training.muon import make_muon

Params = dict[str, nn.Parameter]
Log = Callable[[int, float, float, dict[str, Tensor]], None]

SAVE_EVERY = 240.0
"""Seconds between checkpoints."""

LOG_EVERY = 200
"""Steps between lines of the log."""


def make_optimizers(params: Params, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices of the perceptrons, AdamW for all the rest.

    Muon (orthogonalised momentum) learns these small networks in fewer steps; its update is scaled
    to AdamW's size, so that one learning rate serves both. AdamW alone where torch has no Muon (before 2.9).
    """
    there = hasattr(torch.optim, "Muon")
    hidden = [p for n, p in params.items() if there and p.ndim == 2 and (".up." in n or ".down." in n)]
    chosen = {id(p) for p in hidden}
    rest = [p for p in params.values() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if hidden:
        optimizers.append(make_muon(hidden, lr, 0.05))
    if rest:
        optimizers.append(torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01))
    return optimizers


def schedule(progress: float, warmup: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, then a cosine down to 2 %."""
    if progress < warmup:
        return progress / warmup
    x = min((progress - warmup) / (1 - warmup), 1.0)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * x))


class Stage:
    """Optimises `params` for a given time and leaves their moving average in them.

    Parameters
    ----------
    params
        By name.
    step_loss
        Draws a batch and returns its loss.
    minutes
        Wall clock, interruptions not counted.
    lr
        Peak learning rate.
    log
        Called with (step, seconds, mean loss, averaged parameters).
    state
        Checkpoint; the stage goes on from it where it exists.
    """

    def __init__(
        self,
        params: Params,
        step_loss: Callable[[], Tensor],
        minutes: float,
        lr: float,
        log: Log,
        state: Path,
    ) -> None:
        self.params, self.step_loss, self.lr, self.log, self.state = params, step_loss, lr, log, state
        self.limit = minutes * 60
        self.optimizers = make_optimizers(params, lr)
        self.average = {n: p.detach().clone() for n, p in params.items()}
        self.step, spent = 0, 0.0
        if state.exists():
            spent = self.restore()
        self.start = time.perf_counter() - spent

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self.start

    def run(self) -> None:
        """Train until the time is up."""
        saved, losses = self.spent, list[float]()
        while self.spent < self.limit:
            losses.append(self.advance())
            if self.step % LOG_EVERY == 0:
                self.log(self.step, self.spent, sum(losses) / len(losses), self.average)
                losses.clear()
            if self.spent - saved > SAVE_EVERY:
                saved = self.spent
                self.save()
        self.save()
        for name, p in self.params.items():
            p.data.copy_(self.average[name])

    def advance(self) -> float:
        """Take one step of all optimizers and move the average."""
        factor = schedule(min(self.spent / self.limit, 1.0))
        for opt in self.optimizers:
            opt.zero_grad(set_to_none=True)
            for group in opt.param_groups:
                group["lr"] = self.lr * factor
        loss = self.step_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.params.values()), 1.0)
        for opt in self.optimizers:
            opt.step()
        self.step += 1
        decay = min(0.998, 1 - 1 / (self.step + 1))
        with torch.no_grad():
            for name, p in self.params.items():
                self.average[name].lerp_(p, 1 - decay)
        return float(loss.detach())

    def save(self) -> None:
        """Write the checkpoint under a temporary name and rename it."""
        content: dict[str, Any] = {
            "params": {n: p.detach() for n, p in self.params.items()},
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "spent": self.spent,
            "step": self.step,
        }
        partial = self.state.with_suffix(".tmp")
        torch.save(content, partial)
        partial.replace(self.state)

    def restore(self) -> float:
        """Read the checkpoint; return the seconds already spent."""
        content = torch.load(self.state, weights_only=True)
        for name, p in self.params.items():
            p.data.copy_(content["params"][name])
        self.average = content["average"]
        for opt, saved in zip(self.optimizers, content["optimizers"], strict=True):
            opt.load_state_dict(saved)
        self.step = content["step"]
        return float(content["spent"])
