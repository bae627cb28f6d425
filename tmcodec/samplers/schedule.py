"""Noise schedule and scheduler of the diffusion decoders, TerraMind's numbers through diffusers.

1000 steps, linear betas 1e-4..0.02 rescaled to zero terminal SNR (arXiv 2305.08891, algorithm 1),
prediction of the clean sample, trailing timesteps; unlike TerraMind's, nothing is clamped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from torch import Tensor

TRAIN_STEPS = 1000


def make_scheduler(steps: int) -> DDIMScheduler:
    """Return diffusers' DDIM scheduler set to `steps` trailing timesteps (4: 999, 749, 499, 249)."""
    # Imported here: diffusers takes seconds to load, and one-step decoding never needs it.
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="sample",
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def alpha_bar() -> Tensor:
    """Return the share of signal variance at each of the 1000 timesteps, float32; the last is 0."""
    alphas: Tensor = make_scheduler(1).alphas_cumprod
    return alphas
