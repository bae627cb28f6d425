"""Drawing a picture from a denoiser that predicts the clean sample.

No global random state is read or set, and each call has a scheduler of its own, so decodes in several
threads do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tmcodec.errors import SamplerError
from tmcodec.samplers.schedule import (
    ANCESTRAL,
    TRAIN_STEPS,
    even_timesteps,
    named_scheduler,
    packed_timesteps,
    terramind_alpha_bar,
    trailing_timesteps,
)
from tmcodec.texts import shown

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``(noisy, timesteps (1,))`` to the clean sample, float32, of the same shape. Timesteps lie on the CPU,
where reading them waits for nothing."""

AddedNoise = Callable[[int], Tensor]
"""A step's number, from 1 on, to the noise that it adds."""

DEFAULT = "ddim"
OFFICIAL = "official"
PACKED = "ddim-packed"


def check_sampler(name: str) -> str:
    """Return `name` as it is stored in files; for diffusers' schedulers this loads diffusers.

    Raises
    ------
    SamplerError
        If there is no such sampler.
    """
    if not isinstance(name, str):
        raise SamplerError(f"sampler {shown(name)}; give a name, such as {DEFAULT}")
    if name.lower() in (DEFAULT, OFFICIAL, PACKED):
        return name.lower()
    named_scheduler(name, 2)
    return name


def sample(
    denoise: Denoise,
    noise: Tensor,
    steps: int,
    sampler: str = DEFAULT,
    added: AddedNoise | None = None,
) -> Tensor:
    """Turn `noise` into a clean sample.

    Parameters
    ----------
    denoise
        The network.
    noise
        Standard normal, float32, any shape.
    steps
        1..1000. One step is the network's answer to pure noise: an estimate of the mean.
    sampler
        ``"ddim"``: DDIM (arXiv 2010.02502) with eta 0, `steps` evenly spaced trailing timesteps, no clamp.
        ``"ddim-packed"``: the same at `packed_timesteps`.
        ``"official"``: TerraTorch's, operation by operation: its timesteps, clamp to -1..1.
        Else the name of a diffusers scheduler that draws no noise, or ``"DDPM"``, to which `added` gives it.
    added
        Standard normal noise of a step, from 1 on, of the shape of `noise`; the last step adds none.

    Raises
    ------
    SamplerError
        If the sampler is unknown, cannot take so many steps, or draws noise of its own.
    """
    if not 1 <= steps <= TRAIN_STEPS:
        raise SamplerError(f"{steps} sampling steps; give 1 to {TRAIN_STEPS}")
    if sampler == OFFICIAL:
        stride = TRAIN_STEPS // steps
        times = trailing_timesteps(steps)
        return ddim(denoise, noise, times, [t - stride for t in times], clamp=True)
    if sampler in (DEFAULT, PACKED):
        times = packed_timesteps(steps) if sampler == PACKED else even_timesteps(steps)
        return ddim(denoise, noise, times, [*times[1:], -1], clamp=False)
    scheduler = named_scheduler(sampler, steps)
    if type(scheduler).__name__ in ANCESTRAL:
        if added is None:
            raise SamplerError(f"sampler {sampler} adds noise at each step; give it, or use ddim")
        times = even_timesteps(steps)
        return ddim(denoise, noise, times, [*times[1:], -1], clamp=False, added=added)
    return _with_diffusers(denoise, noise, scheduler)


def ddim(
    denoise: Denoise,
    noise: Tensor,
    times: Sequence[int],
    following: Sequence[int],
    clamp: bool,
    added: AddedNoise | None = None,
) -> Tensor:
    """Run DDIM with eta 0; `following` are the timesteps that each step leads to, below 0 the end.

    As in TerraTorch, the direction to the noise comes from the estimate *before* it is clamped. With `added`
    eta is 1, which makes it DDPM: each step but the last replaces some of the noise by new.
    """
    signal = terramind_alpha_bar()
    x = noise
    for step, (t, after) in enumerate(zip(times, following, strict=True), 1):
        now, then = signal[t], signal[after] if after >= 0 else torch.ones_like(signal[t])
        clean = denoise(x, torch.tensor([t], device="cpu"))
        if after < 0:  # the noise's share is zero
            return clean.clamp(-1, 1) if clamp else clean
        direction = (x - now.sqrt() * clean) / (1 - now).sqrt()
        if clamp:
            clean = clean.clamp(-1, 1)
        fresh = (1 - then) / (1 - now) * (1 - now / then) if added else torch.zeros_like(now)
        # The difference is zero after the first timestep, where there is no signal, and must not round below.
        x = then.sqrt() * clean + (1 - then - fresh).clamp_min(0).sqrt() * direction
        if added:
            x = x + fresh.sqrt() * added(step)
    return x


def _with_diffusers(denoise: Denoise, noise: Tensor, scheduler: Any) -> Tensor:
    """Run the loop that all of diffusers' schedulers share."""
    x = noise * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        clean = denoise(scheduler.scale_model_input(x, t), t.reshape(1))
        try:
            x = scheduler.step(clean, t, x, return_dict=False)[0]
        except (NotImplementedError, ValueError) as err:
            name = type(scheduler).__name__
            raise SamplerError(f"{name} cannot sample from clean predictions ({err}); use another") from err
    return x
