"""Noise schedule and schedulers of the diffusion decoders, TerraMind's numbers through diffusers.

1000 steps, linear betas 1e-4..0.02 rescaled to zero terminal SNR (arXiv 2305.08891, algorithm 1),
prediction of the clean sample, trailing timesteps; unlike TerraMind's, nothing is clamped.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tmcodec.errors import SamplerError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from torch import Tensor

TRAIN_STEPS = 1000

ANCESTRAL = ("DDPMScheduler", "DDPMParallelScheduler")
"""Their steps are DDIM's with eta 1 (arXiv 2010.02502, section 4.1), and need no scheduler to draw noise."""

_SCHEDULE = {
    "num_train_timesteps": TRAIN_STEPS,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "sample",
    "clip_sample": False,
}


def make_scheduler(steps: int) -> DDIMScheduler:
    """Return diffusers' DDIM scheduler set to `steps` trailing timesteps (4: 999, 749, 499, 249)."""
    # Imported here: diffusers takes seconds to load, and one-step decoding never needs it.
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(**_SCHEDULE)
    scheduler.set_timesteps(steps)
    return scheduler


def named_scheduler(name: str, steps: int) -> Any:
    """Return a diffusers scheduler by the name of its class, with or without ``Scheduler`` at its end.

    Parameters
    ----------
    name
        E.g. ``"DPMSolverMultistep"`` or ``"UniPCMultistepScheduler"``; upper and lower case alike.
    steps
        Sampling steps.

    Raises
    ------
    SamplerError
        If diffusers has no such class, it cannot follow this noise schedule, or it draws noise of its own.
    """
    import diffusers.schedulers as found

    wanted = name.lower().removesuffix("scheduler") + "scheduler"
    known = {n.lower(): n for n in dir(found) if n.endswith("Scheduler") and not n.startswith(("Flax", "_"))}
    cls = getattr(found, known.get(wanted, ""), None)  # some that are listed are no longer there
    if cls is None:
        raise SamplerError(f"unknown sampler {name!r}; use ddim, official or a diffusers scheduler's name")
    missing = {"prediction_type", "beta_schedule"} - inspect.signature(cls.__init__).parameters.keys()
    if missing:
        raise SamplerError(f"sampler {name} has no {' and no '.join(sorted(missing))}; choose another")
    try:
        scheduler = _scheduler(cls, steps)
    except _REFUSALS as err:
        raise SamplerError(f"sampler {name} cannot take {steps} steps of this schedule ({err})") from err
    if cls.__name__ not in ANCESTRAL and _draws(cls):
        raise SamplerError(
            f"sampler {name} draws noise of its own at each step, in which windows and tiles would differ; "
            "use ddim, DDPM, DPMSolverMultistep or UniPCMultistep"
        )
    return scheduler


LEFT_NOISE = 0.1
"""Share of the noise that a scheduler may leave in a picture; some end at the least noise, 0.01, not at none.
Those of diffusers that run backwards, from a picture to noise, leave it all."""

_REFUSALS = (ValueError, TypeError, NotImplementedError, IndexError, ImportError)


def _scheduler(cls: Any, steps: int) -> Any:
    """Return a scheduler of a class on this noise schedule."""
    accepted = inspect.signature(cls.__init__).parameters
    scheduler = cls(**{k: v for k, v in _SCHEDULE.items() if k in accepted})
    scheduler.set_timesteps(steps)
    return scheduler


@lru_cache(maxsize=64)
def _draws(cls: Any) -> bool:
    """Tell whether a scheduler draws noise, by taking three steps.

    Many take a generator that they use only with other settings than these.

    Raises
    ------
    SamplerError
        If it cannot step from clean predictions, or ends elsewhere than they do.
    """
    import torch

    generator = torch.Generator()
    before = generator.get_state()
    try:
        scheduler = _scheduler(cls, 3)
        x = torch.ones(1, 1, 8, 8) * float(scheduler.init_noise_sigma)
        draws = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": generator} if draws else {}
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)  # some warn where it is left out
            x = scheduler.step(torch.zeros_like(x), t, x, return_dict=False, **extra)[0]
    except _REFUSALS as err:
        name = cls.__name__
        raise SamplerError(f"{name} cannot sample from clean predictions ({err}); use another") from err
    if not bool((x.abs() < LEFT_NOISE).all()):  # infinities and NaN, too
        raise SamplerError(f"{cls.__name__} does not lead from noise to a picture; use another")
    return not torch.equal(generator.get_state(), before)


def alpha_bar() -> Tensor:
    """Return the share of signal variance at each of the 1000 timesteps, float32; the last is 0."""
    alphas: Tensor = make_scheduler(1).alphas_cumprod
    return alphas


def terramind_alpha_bar() -> Tensor:
    """Return the same as TerraTorch computes it, operation by operation, float32 ``(1000,)``.

    Needs no diffusers, and differs from `alpha_bar` by no more than rounding.
    """
    import torch

    betas = torch.linspace(1e-4, 0.02, TRAIN_STEPS, dtype=torch.float32, device="cpu")
    roots = (1 - betas).cumprod(0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    roots -= last
    roots *= first / (first - last)
    rescaled = roots**2
    rescaled_betas = 1 - torch.cat([rescaled[:1], rescaled[1:] / rescaled[:-1]])
    return (1 - rescaled_betas).cumprod(0)


def trailing_timesteps(steps: int) -> list[int]:
    """Return TerraTorch's timesteps: from 999 down in strides of ``1000 // steps``.

    Where `steps` does not divide 1000 there are more of them: 7 gives 8, 30 gives 31.

    >>> trailing_timesteps(7)
    [999, 857, 715, 573, 431, 289, 147, 5]
    """
    return [t - 1 for t in range(TRAIN_STEPS, 0, -(TRAIN_STEPS // steps))]


def even_timesteps(steps: int) -> list[int]:
    """Return `steps` timesteps from 999 down, evenly spaced: diffusers' trailing ones.

    >>> even_timesteps(4)
    [999, 749, 499, 249]
    """
    # numpy's own arange: its sums decide which way 520.5 rounds, and whether there is one too many.
    return [int(t) - 1 for t in np.round(np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS / steps))][:steps]


def packed_timesteps(steps: int) -> list[int]:
    """Return timesteps from 999 down that lie denser where there is less noise: half of them below 250.

    Texture is decided there; at high noise the estimate of the clean picture hardly moves. From 45 steps
    on some fall together, and there are fewer than `steps`.

    >>> packed_timesteps(4)
    [999, 561, 249, 61]
    """
    picked = {round(TRAIN_STEPS * (1 - i / steps) ** 2) - 1 for i in range(steps)}
    return sorted((t for t in picked if t >= 0), reverse=True)
