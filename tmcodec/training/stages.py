"""What each stage trains, and how a reconstruction comes about in it.

``mean``      encoder, quantizer and mean decoder, from scratch or on;
``decoder``   the mean decoder alone: tokens stay what they are, and so does every token file;
``denoiser``  the diffusion decoder, on what the mean misses;
``chain``     the diffusion decoder through its own few sampling steps (as FlowMo's post-training);
``distill``   the diffusion decoder in few steps, to draw what it drew in many (arXiv 2101.02388);
``energy``    the diffusion decoder in few steps, by the energy score (`tmcodec.training.energy`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmcodec.errors import ConfigError
from tmcodec.networks.denoiser import Denoiser
from tmcodec.networks.height import HeightEncoder
from tmcodec.networks.mini import MiniNet
from tmcodec.samplers.sample import sample
from tmcodec.samplers.schedule import TRAIN_STEPS, terramind_alpha_bar
from tmcodec.training.energy import CELL, SIDE, energy_score, relief_weights, whole_cells
from tmcodec.training.rate import RateModel

Better = Callable[[Tensor, Tensor], Tensor]
"""From codes and normalised pictures to better codes."""

StageName = Literal["mean", "decoder", "denoiser", "chain", "distill", "energy"]

PARTS: dict[str, tuple[str, ...]] = {
    "mean": ("encoder.", "decoder."),
    "decoder": ("decoder.",),
    "denoiser": ("denoiser.",),
    "chain": ("denoiser.",),
    "distill": ("denoiser.",),
    "energy": ("denoiser.",),
}
"""Names of the parameters that a stage trains begin so."""


@dataclass
class Output:
    """What a forward pass gives.

    Attributes
    ----------
    picture
        ``(B, C, H, W)``, float32: normalised values, or logits.
    extra
        A loss that comes with the stage, a scalar.
    bits
        Mean bits a token, where a model of them is trained along.
    """

    picture: Tensor
    extra: Tensor
    bits: Tensor | None = None


def freeze(net: MiniNet, stage: StageName) -> None:
    """Let gradients reach what the stage trains, and nothing else.

    Raises
    ------
    ConfigError
        If there is nothing to train.
    """
    for name, parameter in net.named_parameters():
        # How strong a texture is comes into what is drawn alone; processes would wait for its gradient.
        idle = stage == "denoiser" and name.startswith("denoiser.gain.")
        parameter.requires_grad_(name.startswith(PARTS[stage]) and not idle)
    if not any(p.requires_grad for p in net.parameters()):
        raise ConfigError(f"stage {stage} has nothing to train in this network; it has no denoiser")


def codes_of(net: MiniNet, z: Tensor, trained: bool) -> tuple[Tensor, Tensor]:
    """Return codes and latents ``(B, rows, cols, d)``; without gradients where the encoder stays."""
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        latents = net.encoder(z)
        return net.fsq.quantize(latents), latents


def mean_picture(
    net: MiniNet,
    z: Tensor,
    valid: Tensor,
    stage: StageName,
    hold: float,
    rate: RateModel | None = None,
    better: Better | None = None,
) -> Output:
    """Encode, quantize, decode the mean; count the bits of the tokens where there is a `rate` model.

    `better` replaces the codes before they are decoded. Tokens without a pixel that is `valid` in any band,
    bool ``(B, C, H, W)``, are neither held nor counted.

    Latents far outside the outermost thresholds have no gradient left: beyond 4, `hold` pulls them back.
    """
    encodes = stage == "mean" and not isinstance(net.encoder, HeightEncoder)
    codes, latents = codes_of(net, z, encodes)
    mean, _ = net.decoder(codes if better is None else better(codes, z))
    extra = hold * pull_back(latents, valid) if encodes else mean.new_zeros(())
    if rate is None:
        return Output(mean.float(), extra)
    with torch.autocast(z.device.type, enabled=False):
        bits = mean_of_tokens(rate(latents.float(), codes.float()), valid)
    return Output(mean.float(), extra, bits)


def pull_back(latents: Tensor, valid: Tensor) -> Tensor:
    """Return how far latents ``(B, rows, cols, d)`` lie beyond 4, squared, on average over valid tokens."""
    return mean_of_tokens(F.relu(latents.float().abs() - 4).square().mean(-1), valid)


def mean_of_tokens(figures: Tensor, valid: Tensor) -> Tensor:
    """Average figures of tokens ``(B, rows, cols)`` over those with a pixel valid in a band; 0 without any.

    Parameters
    ----------
    figures
        One a token.
    valid
        bool ``(B, C, H, W)``, H and W multiples of rows and columns.
    """
    seen = F.adaptive_max_pool2d(valid.any(1).float(), figures.shape[1:]) > 0
    return torch.where(seen, figures, 0.0).sum() / seen.sum().clamp_min(1)


def frozen_mean(net: MiniNet, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean picture and the features for the denoiser, without gradients."""
    with torch.no_grad():
        mean, features = net.decoder(codes_of(net, z, False)[0])
        return mean.float(), features


def denoising_error(net: MiniNet, z: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
    """Return the squared error ``(B,)`` of one guess at a random timestep, over pixels valid in all bands."""
    from tmcodec.training.pair import masked_mean

    assert net.denoiser is not None
    mean, features = frozen_mean(net, z)
    clean = net.to_components(torch.where(valid, z - mean, 0.0)).clamp(-6, 6)
    # The last timestep is pure noise, where the answer is zero by construction.
    t = torch.randint(0, TRAIN_STEPS - 1, (len(z),), generator=generator, device=z.device)
    level = terramind_alpha_bar().to(z.device)[t]
    noise = torch.randn(clean.shape, generator=generator, device=z.device)
    noisy = level.sqrt().view(-1, 1, 1, 1) * clean + (1 - level).sqrt().view(-1, 1, 1, 1) * noise
    guess = net.denoiser(noisy, features, t, level.sqrt())
    return masked_mean((guess - clean).square(), valid.all(1, keepdim=True))


def sampled_picture(net: MiniNet, z: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Return mean plus a residual drawn in `steps` steps, ``(B, C, H, W)``, with gradients through all."""
    assert net.denoiser is not None
    mean, features = frozen_mean(net, z)
    return mean + net.from_components(drawn(net.denoiser, features, residual_noise(net, z, generator), steps))


def distilled_pictures(
    net: MiniNet, teacher: Denoiser, z: Tensor, few: int, many: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return what the denoiser draws in `few` steps and what `teacher` draws in `many` of the same noise.

    DDIM's path from noise to picture is a function (eta is 0), so one can be asked to be the other
    (arXiv 2101.02388). Gradients reach the first only.
    """
    assert net.denoiser is not None
    mean, features = frozen_mean(net, z)
    noise = residual_noise(net, z, generator)
    with torch.no_grad():
        target = mean + net.from_components(drawn(teacher, features, noise, many))
    return mean + net.from_components(drawn(net.denoiser, features, noise, few)), target


ENERGY_STEPS = (2, 2, 3, 4, 4, 6)
"""Sampling steps of stage ``energy``, drawn for each batch: few are what it is for."""


def energy_error(net: MiniNet, z: Tensor, valid: Tensor, generator: torch.Generator) -> Tensor:
    """Return the energy score of two residuals drawn in a few steps, a scalar with gradients through all."""
    assert net.denoiser is not None
    mean, features = frozen_mean(net, z)
    steps = ENERGY_STEPS[int(torch.randint(len(ENERGY_STEPS), (), generator=generator, device=z.device))]
    noise = torch.cat([residual_noise(net, z, generator) for _ in range(2)])
    parts = drawn(net.denoiser, features.repeat(2, 1, 1, 1), noise, steps)
    everywhere = valid.all(1, keepdim=True)
    with torch.autocast(z.device.type, enabled=False):
        # What the components cannot draw is no part of the comparison.
        truth = net.from_components(net.to_components(torch.where(everywhere, z - mean, 0.0)))
        one, other = (torch.where(everywhere, net.from_components(p.float()), 0.0) for p in parts.chunk(2))
        weights = everywhere * relief_weights(mean)
        # Cells at the denoiser's own places would not see how its cells fit together.
        most = min(2 * CELL, 1 + min(z.shape[-2:]) - SIDE)
        row, col = torch.randint(most, (2,), generator=generator, device=z.device).tolist()
        return energy_score(*(whole_cells(x, row, col) for x in (truth, one, other, weights)))


def residual_noise(net: MiniNet, z: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal noise ``(B, K, H, W)`` for the residual of `z`."""
    shape = (len(z), net.cfg.residual_channels, *z.shape[-2:])
    return torch.randn(shape, generator=generator, device=z.device)


def drawn(denoiser: Denoiser, features: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Return the residual's components that a denoiser draws from `noise`, float32."""
    return denoiser.strengthen(sample(denoiser.guess_with(features), noise, steps).float(), features)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that gradients reach, by name."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad}
