"""Samplers of the diffusion decoders: the noise schedule, timesteps, seeded noise, sampling."""

from __future__ import annotations

from tmcodec.samplers.noise import block_noise
from tmcodec.samplers.schedule import TRAIN_STEPS, alpha_bar, make_scheduler

__all__ = ["TRAIN_STEPS", "alpha_bar", "block_noise", "make_scheduler"]
