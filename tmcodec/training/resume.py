"""Runs that go on: what a checkpoint must have of this one, and gradients of a step that is not complete."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from tmcodec.errors import ConfigError

GRADIENTS_KEY = "accumulated_gradients"
"""Where a checkpoint keeps the gradients of a step that is not complete, by parameter."""


def batches_taken(batches: int, trainer: Trainer | None) -> int:
    """Return how many of an epoch's `batches` a trainer takes: ``limit_train_batches``, a number or a share.

    An epoch of a stream ends there: what is left of it would be an epoch of its own, of fewer batches.
    """
    limit = 1.0 if trainer is None else trainer.limit_train_batches
    taken = min(limit, batches) if isinstance(limit, int) else int(batches * limit)
    return max(taken, 1)


class ResumableModule(LightningModule):
    """Goes on in the middle of an accumulated step: its gradients so far are in the checkpoint.

    Lightning saves where a validation falls between two batches of a step, and after the first batch of a run
    that goes on, whatever ``every_n_train_steps`` is. Batches count as given there, and what they added up
    would be lost.

    Notes
    -----
    Of several processes the mean is kept, which the step is taken with. Strategies that cut parameters up
    (FSDP) keep nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._amid = False
        self._added_up: dict[str, Tensor] = {}

    def on_train_start(self) -> None:
        """Take up the gradients that a checkpoint brought."""
        for name, parameter in self.named_parameters() if self._added_up else ():
            kept = self._added_up.get(name)
            parameter.grad = None if kept is None else kept.to(parameter)
        self._amid, self._added_up = bool(self._added_up), {}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Note that a step has begun."""
        self._amid = True

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Note that it is taken."""
        self._amid = False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the gradients of a step that is not complete."""
        alone = self.trainer.world_size == 1
        if self._amid and (alone or isinstance(self.trainer.strategy, DDPStrategy)):
            checkpoint[GRADIENTS_KEY] = self._gradients()

    def _gradients(self) -> dict[str, Tensor]:
        """Return the gradients so far, on the mean over all processes."""
        reduce = self.trainer.strategy.reduce
        parameters = dict(self.named_parameters())
        # Batches of other processes may ask for other parameters, and all must reduce the same ones.
        own = torch.tensor([p.grad is not None for p in parameters.values()], device=self.device)
        somewhere = reduce(own.int(), reduce_op="sum").tolist()
        found = {}
        for (name, parameter), count in zip(parameters.items(), somewhere, strict=True):
            if count:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                found[name] = reduce(grad.detach().clone(), reduce_op="mean")
        return found

    def make_optimizer(self) -> Optimizer:
        """Return the optimizer of what is trained."""
        raise NotImplementedError

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit, before Lightning does; keep its gradients for the first
        batch.

        Raises
        ------
        ConfigError
            If it has other parameters than the module, or, where a fit goes on, another optimizer.
        """
        odd = sorted(checkpoint["state_dict"].keys() ^ self.state_dict().keys())
        if odd:
            raise ConfigError(
                f"the checkpoint and this configuration do not both have {odd[0]}; resume with its own config"
            )
        states = checkpoint.get("optimizer_states")
        if states and self.trainer.state.fn == TrainerFn.FITTING:
            groups = (states[0]["param_groups"], self.make_optimizer().param_groups)
            saved, own = ([len(group["params"]) for group in part] for part in groups)
            if saved != own:
                raise ConfigError(
                    "the checkpoint's optimizer moves other parameters than model.optimizer, or moves them "
                    "otherwise; resume with its own config"
                )
        self._added_up = dict(checkpoint.get(GRADIENTS_KEY, {}))
