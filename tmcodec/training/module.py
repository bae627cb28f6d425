"""The Lightning module that trains a small tokenizer, stage by stage."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tmcodec.errors import ConfigError
from tmcodec.modalities import get_modality
from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.samplers.schedule import TRAIN_STEPS
from tmcodec.training.base import TrainingModule
from tmcodec.training.crops import Batch
from tmcodec.training.data import TokenizerData
from tmcodec.training.losses import LossTerm, check_some
from tmcodec.training.mini import band_balance, network_input, residual_fields
from tmcodec.training.optimizers import OptimizerOptions
from tmcodec.training.rate import RateModel
from tmcodec.training.searched import SearchedCodes
from tmcodec.training.stages import (
    Output,
    StageName,
    denoising_error,
    distilled_pictures,
    energy_error,
    freeze,
    frozen_mean,
    mean_picture,
    sampled_picture,
)
from tmcodec.training.starting import adopt, build_net, textured

BASIS_BATCHES = 16
"""Batches that the components of the residual are estimated from."""


class TokenizerModule(TrainingModule):
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
    search
        Most rounds of search for better tokens before they are decoded (`tmcodec.codec.search`), stage
        ``decoder``: files hold such tokens. Each batch draws a number from 0 to this one.
    chain_steps
        Sampling steps of stages ``chain`` and ``distill``.
    teacher_steps
        Sampling steps of stage ``distill``'s teacher, the starting point.
    seed
        Of what the losses draw: noise, timesteps, shares of the balance.

    Raises
    ------
    ConfigError
        If something does not fit.
    """

    layout = "mini"
    net: MiniNet
    stage: StageName


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
        search: int = 0,
        chain_steps: int = 4,
        teacher_steps: int = 20,
        seed: int = 0,
    ) -> None:
        check_choices(stage, start, losses, hold, rate, search, chain_steps, teacher_steps)
        network, copied, lineage = build_net(net, start)
        if stage not in ("mean", "decoder") and get_modality(network.cfg.modality).categorical:
            raise ConfigError(
                f"stage {stage} trains a diffusion decoder, which class maps have not; take mean or decoder"
            )
        if stage == "energy":
            network = textured(network)
        freeze(network, stage)
        modality = network.cfg.modality
        terms = default_losses(modality, stage) if losses is None else losses
        super().__init__(network, modality, stage, terms, optimizer, lineage, seed)
        self.copied, self.balance, self.hold = copied, balance, hold
        self.rate, self.rate_model = rate, RateModel(network.cfg.levels) if rate else None
        self.better = SearchedCodes(network, lineage, search) if search else None
        self.chain_steps, self.teacher_steps = chain_steps, teacher_steps
        if stage == "distill":
            self._teacher = [copy.deepcopy(network.denoiser).requires_grad_(False).eval()]  # type: ignore[union-attr]

    # ----------------------------------------------------------------------- start and resume

    def measure(self, data: TokenizerData) -> None:
        """Measure statistics and residual components where the network has none."""
        cfg = self.net.cfg
        if not cfg.mean and not self.modality.categorical:
            found = data.statistics(cfg.compand, cfg.origin, cfg.knee)
            adopt(self.net, replace(cfg, mean=found.mean, std=found.std))
        cfg = self.net.cfg
        if self.stage in ("denoiser", "chain", "energy") and not (cfg.residual_std or cfg.residual_basis):
            basis = self._residual_components(data)
            self.net.set_residual_basis(basis)
            self.net.cfg = replace(self.net.cfg, **residual_fields(basis))

    @torch.no_grad()
    def _residual_components(self, data: TokenizerData) -> Tensor:
        """Return principal components ``(K, C)`` of what the mean misses, each as long as its deviation."""
        channels, count = self.net.cfg.channels, self.net.cfg.residual_channels
        loader = data.loader("train", BASIS_BATCHES * data.batch, endless=True, alone=True)
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

    def adopt(self, raw: Any) -> None:
        """Take the measured values of a checkpoint that goes on; refuse one of other sizes."""
        cfg = MiniConfig.from_dict(raw)
        measured = {"mean": (), "std": (), "residual_std": (), "residual_basis": ()}
        if replace(cfg, **measured) != replace(self.net.cfg, **measured):  # type: ignore[arg-type]
            raise ConfigError(
                "the checkpoint is of a network of other sizes than model.net; resume with its own config"
            )
        adopt(self.net, cfg)

    def figures(self) -> set[str]:
        """Return what the stage measures; those of single guesses or two draws have no picture to score."""
        if self.stage in ("denoiser", "energy"):
            return {"loss", "denoising" if self.stage == "denoiser" else "energy"}
        own = set() if self.stage == "distill" else {"hold"}
        return super().figures() | own | ({"rate"} if self.rate_model is not None else set())

    # ----------------------------------------------------------------------- steps

    def reconstruct(self, z: Tensor, valid: Tensor, generator: torch.Generator) -> Output:
        """Return what the stage makes of normalised pictures (one-hot classes) ``(B, C, H, W)``."""
        if self.stage in ("chain", "denoiser", "energy"):
            steps = self.chain_steps
            return Output(sampled_picture(self.net, z, steps, generator), z.new_zeros(()))
        better = None if self.better is None else partial(self.better, generator=generator)
        return mean_picture(self.net, z, valid, self.stage, self.hold, self.rate_model, better)

    def losses_of(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return weighted losses by name, and the picture where there is one."""
        values, valid, generator = batch["values"], batch["valid"], self.generator(batch)
        z = network_input(self.net, values, self.modality.categorical)
        if self.stage == "denoiser":
            return {"denoising": denoising_error(self.net, z, valid, generator).mean()}, None
        if self.stage == "energy":
            return {"energy": energy_error(self.net, z, valid, generator)}, None
        if self.stage == "distill":
            steps = self.chain_steps, self.teacher_steps
            student, teacher = distilled_pictures(self.net, self._teacher[0], z, *steps, generator)
            return self.compare(student, teacher, valid), student
        out = self.reconstruct(z, valid, generator)
        with torch.autocast(self.device.type, enabled=False):
            guess = self._balanced(out.picture, z, valid, generator) if self.balance else out.picture
        found = self.compare(guess, values if self.modality.categorical else z, valid)
        if out.bits is not None:
            found["rate"] = self.rate * out.bits
        return {**found, "hold": out.extra}, out.picture

    def _balanced(self, mean: Tensor, z: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
        gain, offset = band_balance(torch.where(valid, mean, 0.0), torch.where(valid, z, 0.0), valid)
        share = torch.rand((), generator=generator, device=mean.device)
        return mean + share * ((gain - 1) * mean + offset)


def default_losses(modality: str, stage: StageName) -> list[LossTerm]:
    """Return the losses of a stage where a configuration has none."""
    if stage in ("denoiser", "energy"):
        return []
    if get_modality(modality).categorical:
        return [LossTerm("cross_entropy")]
    return [LossTerm("mse")] if stage == "distill" else [LossTerm("mse"), LossTerm("decibel", 0.1)]


def check_choices(
    stage: StageName,
    start: str | None,
    losses: list[LossTerm] | None,
    hold: float,
    rate: float,
    search: int,
    chain_steps: int,
    teacher_steps: int,
) -> None:
    """Raise ConfigError where choices contradict each other."""
    if stage != "mean" and start is None:
        raise ConfigError(f"stage {stage} goes on from a trained tokenizer; give model.start")
    if chain_steps < 2:
        raise ConfigError("model.chain_steps must be at least 2; one step never runs the denoiser")
    if stage == "distill" and not chain_steps < teacher_steps <= TRAIN_STEPS:
        raise ConfigError(f"model.teacher_steps must lie above model.chain_steps, up to {TRAIN_STEPS}")
    if hold < 0 or rate < 0:
        raise ConfigError("model.hold and model.rate are weights; give 0 or more")
    if rate and stage != "mean":
        raise ConfigError(f"model.rate shapes tokens, and stage {stage} leaves them; leave it out")
    if search < 0 or (search and stage != "decoder"):
        raise ConfigError("model.search is for stage decoder, at least 0: other stages decode the encoder's")
    if stage not in ("denoiser", "energy"):
        check_some(losses)
    elif losses:
        raise ConfigError(f"stage {stage} has its own loss; leave model.losses out")
