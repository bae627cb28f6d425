"""What every trained tokenizer's Lightning module shares: losses, logs, scores, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from tmcodec.codec.lineage import Lineage
from tmcodec.errors import ConfigError
from tmcodec.metrics import PEAKS
from tmcodec.modalities import Modality, get_modality
from tmcodec.training.crops import Batch
from tmcodec.training.data import TokenizerData
from tmcodec.training.losses import LossTerm, labels_of, make_loss
from tmcodec.training.monitors import check_monitors
from tmcodec.training.optimizers import OptimizerOptions, build_optimizer, factor_at
from tmcodec.training.pair import Pair, masked_mean
from tmcodec.training.resume import ResumableModule
from tmcodec.training.starting import CONFIG_KEY, LAYOUT_KEY, LINEAGE_KEY, METRICS_KEY, STAGE_KEY


class TrainingModule(ResumableModule):
    """Trains a network that has ``cfg`` and ``compander``; the layouts are subclasses.

    Parameters
    ----------
    net
        The network.
    modality
        Key of the modality table.
    stage
        Name of what is trained, for the notes.
    losses
        Lines of name, weight and options, see `tmcodec.training.losses`.
    optimizer
        See `OptimizerOptions`.
    lineage
        What the run started from, or None.
    seed
        Of what the losses draw.

    Notes
    -----
    Draws depend on the seed and the numbers of the crops, not on what was drawn before; so a resumed run
    and one in several processes draw the same.
    """

    layout = ""
    """Name of the layout in checkpoints."""

    net: Any

    def __init__(
        self,
        net: nn.Module,
        modality: str,
        stage: str,
        losses: Sequence[LossTerm],
        optimizer: OptimizerOptions | None,
        lineage: Lineage | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.net, self.stage, self.seed, self.lineage = net, stage, seed, lineage
        self.modality: Modality = get_modality(modality)
        self.options = optimizer or OptimizerOptions()
        self.lr = self.options.lr  # under this name the learning-rate finder sets it
        self.terms, self.labels = list(losses), labels_of(losses)
        # Plain lists: frozen networks, those of losses and a layout's teacher, are no part of the checkpoint.
        self._losses: list[nn.Module] = [make_loss(term, self.modality) for term in self.terms]
        self._teacher: list[Any] = []
        self._measured: dict[str, float] = {}

    # ----------------------------------------------------------------------- for the layouts

    def losses_of(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return weighted losses by name, and the picture where there is one, normalised or logits."""
        raise NotImplementedError

    def measure(self, data: TokenizerData) -> None:
        """Measure what is missing on the training data, before the first step of a fresh run."""

    def adopt(self, raw: Any) -> None:
        """Take the configuration of a checkpoint that goes on; refuse one of another network."""
        raise NotImplementedError

    # ----------------------------------------------------------------------- start and resume

    def setup(self, stage: str) -> None:
        """Compare the data with the network, and measure what is missing and no checkpoint brings."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, TokenizerData):
            return
        if data.modality != self.modality.name:
            raise ConfigError(f"the data are {data.modality}, the tokenizer is for {self.modality.name}")
        if stage == "fit":
            self._check_class_weights(data)
        if stage == "fit" and not self.trainer.ckpt_path:
            self.measure(data)

    def _check_class_weights(self, data: TokenizerData) -> None:
        """Refuse weights of classes where the training crops' ids are permuted."""
        weighted = any(term.options.get("class_weights") is not None for term in self.terms)
        if weighted and self.modality.categorical and data.augmentation["radiometry"]:
            raise ConfigError(
                "class_weights go by class ids, which data.radiometry permutes; set data.radiometry to false"
            )

    def figures(self) -> set[str]:
        """Return the names of what validation measures, without ``val/``."""
        return {"loss", "accuracy" if self.modality.categorical else "psnr", *self.labels}

    def on_fit_start(self) -> None:
        """Check what callbacks ask for; move the frozen networks to where the module is by now."""
        check_monitors(self.trainer, self.figures(), f"stage {self.stage}")
        self.place_frozen()

    def on_validation_start(self) -> None:
        """Move the frozen networks to where the module is by now."""
        self.place_frozen()

    on_test_start = on_validation_start

    def place_frozen(self) -> None:
        """Move frozen networks, which are no submodules, to the module's device."""
        for network in (*self._losses, *self._teacher):
            network.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration, measured values included, and what the run started from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CONFIG_KEY] = json.dumps(self.net.cfg.to_dict())
        checkpoint[LAYOUT_KEY], checkpoint[STAGE_KEY] = self.layout, self.stage
        found = {k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith("val/")}
        self._measured = found or self._measured  # of a run that goes on, the last ones are the checkpoint's
        if self._measured:
            checkpoint[METRICS_KEY] = self._measured
        if self.lineage is not None:
            checkpoint[LINEAGE_KEY] = self.lineage.to_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the measured values of a run that goes on; refuse one of another layout, stage or network."""
        if checkpoint.get(LAYOUT_KEY, "mini") != self.layout:
            raise ConfigError("the checkpoint is of another layout; resume with its own config")
        if CONFIG_KEY not in checkpoint:
            raise ConfigError("the checkpoint is not of a tokenizer; resume with its own config")
        stage = checkpoint.get(STAGE_KEY, self.stage)
        if stage != self.stage:
            raise ConfigError(
                f"the checkpoint is of stage {stage}, not {self.stage}; resume with its own config, "
                "or go on from it by model.start"
            )
        self.adopt(json.loads(checkpoint[CONFIG_KEY]))
        super().on_load_checkpoint(checkpoint)
        self._measured = dict(checkpoint.get(METRICS_KEY, {}))

    # ----------------------------------------------------------------------- steps

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch but for the numbers of its crops: on the CPU, reading one waits for no device."""
        rest = {name: value for name, value in batch.items() if name != "number"}
        return {**super().transfer_batch_to_device(rest, device, dataloader_idx), "number": batch["number"]}

    def generator(self, batch: Batch) -> torch.Generator:
        """Return the source of everything that the losses of a batch draw."""
        number = int(batch["number"][0])
        mixed = (self.seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 1) % 2**63
        return torch.Generator(self.device).manual_seed(mixed)

    def compare(self, guess: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Return the weighted losses of a picture by label, in float32."""
        with torch.autocast(self.device.type, enabled=False):
            pair = Pair(guess.float(), truth, valid, self.modality, self.net.compander)
            return {
                label: term.weight * loss(pair).mean()
                for label, term, loss in zip(self.labels, self.terms, self._losses, strict=True)
            }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the weighted losses."""
        found, _ = self.losses_of(batch)
        total = torch.stack(list(found.values())).sum()
        size = len(batch["values"])
        self.log("train/loss", total, prog_bar=True, batch_size=size)
        for name, value in found.items():
            self.log(f"train/{name}", value, batch_size=size)
        self.log("data/skipped", batch["skipped"].max().float(), reduce_fx="max", batch_size=size)
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Log losses and PSNR (accuracy for classes); return the picture in physical units or class ids."""
        return self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Do what `validation_step` does, on the test crops."""
        return self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, part: str) -> Tensor | None:
        found, picture = self.losses_of(batch)
        size = len(batch["values"])
        values: dict[str, Tensor] = {"loss": torch.stack(list(found.values())).sum(), **found}
        shown = None if picture is None else self._physical(picture)
        if shown is not None:
            name = "accuracy" if self.modality.categorical else "psnr"
            values[name] = self.score(shown, batch["values"], batch["valid"]).mean()
        for name, value in values.items():
            self.log(
                f"{part}/{name}",
                value,
                on_epoch=True,
                on_step=False,
                sync_dist=True,
                batch_size=size,
                prog_bar=name in ("loss", "psnr", "accuracy"),
            )
        return shown

    def _physical(self, picture: Tensor) -> Tensor:
        if self.modality.categorical:
            return picture.argmax(1, keepdim=True).float()
        expanded: Tensor = self.net.compander.expand_bands(picture, *self.modality.valid_range)
        return expanded

    def score(self, shown: Tensor, values: Tensor, valid: Tensor) -> Tensor:
        """Return each crop's PSNR in dB (of heights with a peak of 1000 m), or its accuracy, ``(B,)``."""
        if self.modality.categorical:
            return masked_mean((shown == values).float(), valid)
        peak = PEAKS.get(self.modality.name, 1000.0)
        mse = masked_mean((shown - values).square(), valid)
        return 20 * math.log10(peak) - 10 * torch.log10(mse.clamp_min(1e-12))

    # ----------------------------------------------------------------------- optimisation

    def make_optimizer(self) -> Optimizer:
        """Return the optimizer of all that gradients reach."""
        params = {n: p for n, p in self.named_parameters() if p.requires_grad}
        return build_optimizer(params, replace(self.options, lr=self.lr))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule over all steps of the run.

        Raises
        ------
        ConfigError
            If the run has no end.
        """
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total) or total < 1:
            raise ConfigError(
                "the learning rate's schedule needs an end; set trainer.max_steps or trainer.max_epochs"
            )
        optimizer = self.make_optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: factor_at(step, int(total), self.options)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
