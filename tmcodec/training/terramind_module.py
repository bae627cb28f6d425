"""The Lightning module that trains tokenizers of TerraMind's layout, by TerraMind's recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tmcodec.codec.lineage import Lineage
from tmcodec.errors import ConfigError
from tmcodec.networks.terramind.config import TerraMindConfig
from tmcodec.samplers.schedule import TRAIN_STEPS, terramind_alpha_bar
from tmcodec.training.base import TrainingModule
from tmcodec.training.crops import Batch
from tmcodec.training.losses import LossTerm, check_some
from tmcodec.training.mini import one_hot
from tmcodec.training.optimizers import OptimizerOptions
from tmcodec.training.resize import random_windows
from tmcodec.training.stages import pull_back
from tmcodec.training.terramind_net import (
    Stage,
    TerraMindNet,
    checkpoint_activations,
    draw,
    freeze,
    initialise,
    with_statistics,
)
from tmcodec.training.terramind_start import config_of, open_terramind

RECIPE = OptimizerOptions(kind="adamw", lr=1.414e-4, betas=(0.9, 0.99), weight_decay=0.05)
"""How the released tokenizers moved, at 2048 crops a step."""


@dataclass(frozen=True)
class WindowOptions:
    """Windows of crops that the released tokenizers were trained on.

    Attributes
    ----------
    sizes
        Sides in pixels, one drawn a batch; multiples of what the decoder takes (32). None leaves crops as
        they are.
    scale
        Least share of a crop's area that is cut out before resizing.
    flip
        Chance of mirroring left and right.
    """

    sizes: Sequence[int] | None = (224, 256)
    scale: float = 0.8
    flip: float = 0.5


class TerraMindModule(TrainingModule):
    """Trains a stage of a tokenizer of TerraMind's layout.

    Parameters
    ----------
    net
        Sizes; without ``mean`` and ``std`` the modality's own. None takes the starting point's.
    stage
        ``"full"``: encoder, quantizer and decoder together; ``"decoder"``: the decoder alone;
        ``"chain"``: the decoder through its own few sampling steps; ``"distill"``: the decoder, in
        `student_steps`, against what it drew in `teacher_steps` before. The last two need a diffusion
        decoder.
    losses
        On the clean picture guessed at a random timestep (stages full and decoder), or on the drawn one.
        None: ``mse``, ``cross_entropy`` for class maps.
    optimizer
        None: AdamW as in the recipe.
    start
        Imported official name, checkpoint in official keys (``.pt``, ``.safetensors``), or a run's ``.ckpt``.
    windows
        See `WindowOptions`.
    hold
        Weight of a pull on latents beyond 4, which have hardly any gradient left; not in the recipe.
    sample_steps
        Sampling steps of pictures in validation.
    chain_steps, student_steps, teacher_steps
        Sampling steps of the stages.
    checkpoint_activations
        Whether to compute blocks again on the way back instead of keeping their insides.
    seed
        Of what the losses draw: noise, timesteps, windows.

    Raises
    ------
    ConfigError
        If something does not fit.
    """

    layout = "terramind"
    net: TerraMindNet

    def __init__(
        self,
        net: TerraMindConfig | None = None,
        stage: Stage = "full",
        losses: list[LossTerm] | None = None,
        optimizer: OptimizerOptions | None = None,
        start: str | None = None,
        windows: WindowOptions | None = None,
        hold: float = 0.0,
        sample_steps: int = 10,
        chain_steps: int = 4,
        student_steps: int = 1,
        teacher_steps: int = 20,
        checkpoint_activations: bool = False,
        seed: int = 0,
    ) -> None:
        check_some(losses)
        network, lineage = build(net, start, stage)
        freeze(network, stage)
        if losses is None:
            losses = [LossTerm("cross_entropy" if network.cfg.categorical else "mse")]
        super().__init__(network, network.cfg.modality, stage, losses, optimizer or RECIPE, lineage, seed)
        self.windows, self.hold = check_windows(windows or WindowOptions(), network.cfg), hold
        self.steps = check_steps(sample_steps, chain_steps, student_steps, teacher_steps)
        if stage == "distill":
            teacher = TerraMindNet(network.cfg)
            teacher.load_state_dict(network.state_dict())
            self._teacher = [teacher.decoder.requires_grad_(False).eval()]
        if checkpoint_activations:
            _light(network)

    def adopt(self, raw: Any) -> None:
        """Refuse a checkpoint of another network."""
        if config_of(raw) != self.net.cfg:
            raise ConfigError("the checkpoint is of another network; resume with its own config")

    def figures(self) -> set[str]:
        """Return what the stage measures."""
        return super().figures() | ({"hold"} if self.hold and self.stage == "full" else set())

    # ----------------------------------------------------------------------- steps

    def losses_of(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return weighted losses by name; in validation also the picture, sampled without clamp."""
        values, valid, generator = batch["values"], batch["valid"], self.generator(batch)
        classes = self.modality.categorical
        if self.training and self.windows.sizes is not None:
            w = self.windows
            values, valid = random_windows(values, valid, w.sizes or (), w.scale, w.flip, classes, generator)
        z = one_hot(values, self.net.cfg.channels) if classes else self.net.compander.compress(values)
        codes, latents = self.net.codes(z, self.stage == "full")
        picture: Tensor | None
        if classes:
            picture = self.net.logits(codes)
            found = self.compare(picture, values, valid)
        else:
            guess, truth = self._guess(z, codes, generator)
            found = self.compare(guess, truth, valid)
            picture = None if self.training else self._shown(codes, z, generator)
        if self.hold and self.stage == "full":
            found["hold"] = self.hold * pull_back(latents, valid)
        return found, picture

    def _guess(self, z: Tensor, codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what the stage predicts, and what it should, ``(B, C, H, W)``."""
        noise = torch.randn(z.shape, generator=generator, device=z.device)
        if self.stage == "chain":
            return self.net.draw(codes, noise, self.steps["chain"]), z
        if self.stage == "distill":
            with torch.no_grad():
                target = draw(self._teacher[0], codes, noise, self.steps["teacher"])
            return self.net.draw(codes, noise, self.steps["student"]), target
        t = torch.randint(0, TRAIN_STEPS, (len(z),), generator=generator, device=z.device)
        level = terramind_alpha_bar().to(z.device)[t].view(-1, 1, 1, 1)
        noisy = level.sqrt() * z + (1 - level).sqrt() * noise
        guess: Tensor = self.net.decoder(noisy, t, codes)
        return guess, z

    def _shown(self, codes: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """Return the picture that validation scores."""
        steps = {"chain": "chain", "distill": "student"}.get(self.stage, "sample")
        noise = torch.randn(z.shape, generator=generator, device=z.device)
        return self.net.draw(codes, noise, self.steps[steps])


def build(
    cfg: TerraMindConfig | None, start: str | None, stage: Stage
) -> tuple[TerraMindNet, Lineage | None]:
    """Make the network, from scratch or with a starting point's weights.

    Raises
    ------
    ConfigError
        If there is neither, the stage needs a starting point, or the two differ.
    """
    if start is None:
        if cfg is None or stage != "full":
            raise ConfigError(
                f"stage {stage} goes on from a trained tokenizer; give model.start"
                if cfg is not None
                else "give model.net, the network's sizes, or model.start, a tokenizer to go on from"
            )
        net = TerraMindNet(with_statistics(cfg))
        initialise(net)
        return net, None
    wanted = None if cfg is None else with_statistics(cfg)
    return open_terramind(start, wanted)


def check_windows(windows: WindowOptions, cfg: TerraMindConfig) -> WindowOptions:
    """Refuse sizes that the decoder cannot take, and shares that make no sense."""
    sizes = list(windows.sizes or [cfg.decode_multiple])
    if any(size < 1 or size % cfg.decode_multiple for size in sizes):
        raise ConfigError(f"model.windows.sizes must be multiples of {cfg.decode_multiple}")
    if not 0 < windows.scale <= 1 or not 0 <= windows.flip <= 1:
        raise ConfigError("model.windows: scale must lie above 0 and up to 1, flip in 0..1")
    return windows


def check_steps(sampled: int, chain: int, student: int, teacher: int) -> dict[str, int]:
    """Return the sampling steps by name; refuse what the sampler would."""
    steps = {"sample": sampled, "chain": chain, "student": student, "teacher": teacher}
    for name, count in steps.items():
        if not 1 <= count <= TRAIN_STEPS:
            raise ConfigError(f"model.{name}_steps must lie in 1..{TRAIN_STEPS}")
    if student >= teacher:
        raise ConfigError("model.student_steps must be fewer than model.teacher_steps")
    return steps


_light = checkpoint_activations
