"""The Lightning module that trains a small tokenizer, stage by stage."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from tmcodec.errors import ConfigError
from tmcodec.metrics import PEAKS
from tmcodec.modalities import get_modality
from tmcodec.networks.mini import MiniConfig
from tmcodec.training.crops import Batch
from tmcodec.training.data import TokenizerData
from tmcodec.training.losses import LossTerm, make_loss
from tmcodec.training.mini import band_balance, network_input, residual_fields
from tmcodec.training.optimizers import OptimizerOptions, build_optimizer, factor_at
from tmcodec.training.pair import Pair, masked_mean
from tmcodec.training.rate import RateModel
from tmcodec.training.stages import (
    Output,
    StageName,
    denoising_error,
    freeze,
    frozen_mean,
    mean_picture,
    sampled_picture,
    trainable,
)
from tmcodec.training.starting import CONFIG_KEY, LINEAGE_KEY, adopt, build_net

BASIS_BATCHES = 16
"""Batches that the components of the residual are estimated from."""


class TokenizerModule(LightningModule):
    """Trains one stage of a `tmcodec.networks.mini.MiniNet`.

    Parameters
    ----------
    net
        Sizes; without ``mean`` and ``std`` they are measured on the training data before the first step. None
        takes the starting point's.
    stage
        See `tmcodec.training.stages`. Stages other than ``mean`` need a starting point.
    losses
        Lines of name, weight and options, see `tmcodec.training.losses`. None: ``mse`` and 0.1 ``decibel``,
        ``cross_entropy`` for class maps. The denoiser's stage has its own squared error and takes none.
    optimizer
        See `OptimizerOptions`.
    start
        Embedded tokenizer, ``.safetensors`` file or a run's ``.ckpt``.
    balance
        Whether the codec will store a radiometric balance: a random share of each crop's best gain and offset
        is then applied before the losses, because a crop is smaller than what shares a balance in a file.
    hold
        Weight of the pull on latents beyond 4.
    rate
        Weight of the bits a token that a small context model needs (`tmcodec.training.rate`), stage ``mean``;
        0 leaves it out.
    chain_steps
        Sampling steps of stage ``chain``.
    seed
        Of what the losses draw: noise, timesteps, shares of the balance.

    Notes
    -----
    Draws depend on the seed and the numbers of the crops, not on what was drawn before; so a resumed run
    and one in several processes draw the same.
    """

    def __init__(
        self,
        net: MiniConfig | None = None,
        stage: StageName = "mean",
        losses: list[LossTerm] | None = None,
        optimizer: OptimizerOptions | None = None,
        start: str | None = None,
        balance: bool = False,
        hold: float = 1e-3,
        rate: float = 0.0,
        chain_steps: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if stage != "mean" and start is None:
            raise ConfigError(f"stage {stage} goes on from a trained tokenizer; give model.start")
        if chain_steps < 2:
            raise ConfigError("model.chain_steps must be at least 2; one step never runs the denoiser")
        if rate and stage != "mean":
            raise ConfigError(f"model.rate shapes tokens, and stage {stage} leaves them; leave it out")
        self.net, self.copied, self.lineage = build_net(net, start)
        self.rate, self.rate_model = rate, RateModel(self.net.cfg.levels) if rate else None
        self.stage, self.balance, self.hold, self.seed = stage, balance, hold, seed
        self.chain_steps = chain_steps
        self.modality = get_modality(self.net.cfg.modality)
        self.options = optimizer or OptimizerOptions()
        self.lr = self.options.lr  # under this name the learning-rate finder sets it
        freeze(self.net, stage)
        if stage == "denoiser" and losses:
            raise ConfigError("stage denoiser has its own loss; leave model.losses out")
        self.terms = self._default_losses() if losses is None else losses
        # A plain list: frozen networks of losses are no part of the checkpoint.
        self._losses: list[nn.Module] = [make_loss(term, self.modality) for term in self.terms]

    def _default_losses(self) -> list[LossTerm]:
        if self.stage == "denoiser":
            return []
        if self.modality.categorical:
            return [LossTerm("cross_entropy")]
        return [LossTerm("mse"), LossTerm("decibel", 0.1)]

    # ----------------------------------------------------------------------- start and resume

    def setup(self, stage: str) -> None:
        """Measure statistics and residual components where they are missing and no checkpoint brings them."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, TokenizerData):
            return
        if data.modality != self.modality.name:
            raise ConfigError(f"the data are {data.modality}, the tokenizer is for {self.modality.name}")
        if stage == "fit" and not self.trainer.ckpt_path:
            self._measure(data)

    def _measure(self, data: TokenizerData) -> None:
        cfg = self.net.cfg
        if not cfg.mean and not self.modality.categorical:
            found = data.statistics(cfg.compand, cfg.origin, cfg.knee)
            adopt(self.net, replace(cfg, mean=found.mean, std=found.std))
        cfg = self.net.cfg
        if self.stage in ("denoiser", "chain") and not (cfg.residual_std or cfg.residual_basis):
            basis = self._residual_components(data)
            self.net.set_residual_basis(basis)
            self.net.cfg = replace(self.net.cfg, **residual_fields(basis))

    @torch.no_grad()
    def _residual_components(self, data: TokenizerData) -> Tensor:
        """Return principal components ``(K, C)`` of what the mean misses, each as long as its deviation."""
        channels, count = self.net.cfg.channels, self.net.cfg.residual_channels
        loader = data.loader("train", BASIS_BATCHES * data.batch, endless=True)
        total, weight = torch.zeros(channels, channels), torch.zeros(channels, channels)
        for batch in loader:
            z = self.net.compander.compress(batch["values"])
            valid = batch["valid"]
            error = torch.where(valid, frozen_mean(self.net, z)[0] - z, 0.0).movedim(1, 0).flatten(1)
            ok = valid.movedim(1, 0).flatten(1).float()
            total += error @ error.T
            weight += ok @ ok.T
        covariance = total / weight.clamp_min(1)
        if count == channels:
            return torch.diag(covariance.diagonal().clamp_min(1e-8).sqrt())
        variances, vectors = torch.linalg.eigh(covariance)
        return (vectors * variances.clamp_min(1e-8).sqrt()).T.flip(0)[:count].contiguous()

    def on_fit_start(self) -> None:
        """Move the frozen networks of losses to where the module is by now."""
        for loss in self._losses:
            loss.to(self.device)

    on_validation_start = on_test_start = on_fit_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration, measured values included, and what the run started from."""
        checkpoint[CONFIG_KEY] = json.dumps(self.net.cfg.to_dict())
        checkpoint["tokenizer_stage"] = self.stage
        if self.lineage is not None:
            checkpoint[LINEAGE_KEY] = self.lineage.to_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the measured values of a run that goes on."""
        cfg = MiniConfig.from_dict(json.loads(checkpoint[CONFIG_KEY]))
        measured = {"mean": (), "std": (), "residual_std": (), "residual_basis": ()}
        if replace(cfg, **measured) != replace(self.net.cfg, **measured):  # type: ignore[arg-type]
            raise ConfigError(
                "the checkpoint is of a network of other sizes than model.net; resume with its own config"
            )
        adopt(self.net, cfg)

    # ----------------------------------------------------------------------- steps

    def generator(self, batch: Batch) -> torch.Generator:
        """Return the source of everything that the losses of a batch draw."""
        number = int(batch["number"][0])
        mixed = (self.seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 1) % 2**63
        return torch.Generator(self.device).manual_seed(mixed)

    def reconstruct(self, z: Tensor, generator: torch.Generator) -> Output:
        """Return what the stage makes of normalised pictures (one-hot classes) ``(B, C, H, W)``."""
        if self.stage in ("chain", "denoiser"):
            steps = self.chain_steps
            return Output(sampled_picture(self.net, z, steps, generator), z.new_zeros(()))
        return mean_picture(self.net, z, self.stage, self.hold, self.rate_model)

    def losses_of(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return weighted losses by name, and the picture where there is one."""
        values, valid, generator = batch["values"], batch["valid"], self.generator(batch)
        categorical = self.modality.categorical
        z = network_input(self.net, values, categorical)
        if self.stage == "denoiser":
            return {"denoising": denoising_error(self.net, z, valid, generator).mean()}, None
        out = self.reconstruct(z, generator)
        with torch.autocast(self.device.type, enabled=False):
            guess = self._balanced(out.picture, z, valid, generator) if self.balance else out.picture
            truth = values if categorical else z
            pair = Pair(guess, truth, valid, self.modality, self.net.compander)
            found = {
                term.name: term.weight * loss(pair).mean()
                for term, loss in zip(self.terms, self._losses, strict=True)
            }
        if out.bits is not None:
            found["rate"] = self.rate * out.bits
        return {**found, "hold": out.extra}, out.picture

    def _balanced(self, mean: Tensor, z: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
        gain, offset = band_balance(torch.where(valid, mean, 0.0), torch.where(valid, z, 0.0), valid)
        share = torch.rand((), generator=generator, device=mean.device)
        return mean + share * ((gain - 1) * mean + offset)

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
        return self.net.compander.expand_bands(picture, *self.modality.valid_range)

    def score(self, shown: Tensor, values: Tensor, valid: Tensor) -> Tensor:
        """Return each crop's PSNR in dB (of heights with a peak of 1000 m), or its accuracy, ``(B,)``."""
        if self.modality.categorical:
            return masked_mean((shown == values).float(), valid)
        peak = PEAKS.get(self.modality.name, 1000.0)
        mse = masked_mean((shown - values).square(), valid)
        return 20 * math.log10(peak) - 10 * torch.log10(mse.clamp_min(1e-12))

    # ----------------------------------------------------------------------- optimisation

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
        options = replace(self.options, lr=self.lr)
        optimizer = build_optimizer(trainable(self), options)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: factor_at(step, int(total), options)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
