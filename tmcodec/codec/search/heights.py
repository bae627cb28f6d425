"""Better heights than the means of patches, in steps as coarse as the error that is there anyway.

The decoder of elevation draws a surface through its tokens. The surface that comes nearest to the ground does
not go through the means of the patches, as a spline that approximates does not go through its points. So the
heights descend along the decoder's gradient (Adam, arXiv 1412.6980), each in units of the relief around it,
before they become integers.

How finely heights are stored follows from the error that is left: a uniform quantizer of step s adds
s^2 / 12, a bit halves the step, and a bit has a price in parts of the mean squared error of a token. Where
the ground is drawn better than elsewhere, steps are finer, too, or one hill would spoil the plain beside it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tmcodec.networks.height import HeightDecoder, local_statistics
from tmcodec.networks.mini import PATCH
from tmcodec.networks.terramind.inference import has_bf16
from tmcodec.tokenfile.context.coder import predictor_of
from tmcodec.tokenfile.context.heights import number_to_reflected, reflected_to_number
from tmcodec.tokenfile.context.settle import settle_numbers

Tokens = npt.NDArray[np.int32]

RATE = 0.05
"""Of learning, in parts of the relief; it falls to nothing linearly."""

BETAS = (0.8, 0.95)
"""Of Adam: memories of five and twenty rounds."""

PLAIN = 4.0
"""How much larger than around a token the error may be taken to be: twice as coarse steps."""

SPOILT = 1.1
"""How much larger the error around a token may become before its descent is taken back."""

LN4 = math.log(4)


def search_heights(
    decoder: HeightDecoder,
    weights: bytes,
    tokens: Tokens,
    picture: Tensor,
    mask: Tensor,
    effort: int,
    price: float,
) -> Tokens:
    """Return heights that decode nearer to the ground and are shorter to code.

    Parameters
    ----------
    decoder
        What draws the ground.
    weights
        SHA-256 of its tokenizer, which finds the tables; without any, no height moves to be shorter.
    tokens
        int32 ``(rows, cols)``.
    picture, mask
        float32 metres and bool ``(1, 1, 16 rows, 16 cols)``; what is not valid counts nothing.
    effort
        Rounds of descent.
    price
        Of a bit, in parts of the mean error of a token.

    Returns
    -------
    ndarray of int32
        The same shape.
    """
    levels = decoder.levels
    ground = Ground(decoder, picture, mask)
    numbers = torch.from_numpy(reflected_to_number(tokens, levels)).to(picture.device, torch.int64)[
        None, None
    ]
    start = decoder.scale.to_height(numbers)
    with torch.no_grad():
        before = ground.error(start)
    moved = decoder.scale.to_level(ground.descend(start, ground.weights(before), effort))
    found, error = ground.nearer((numbers, before), torch.where(ground.some, moved, numbers))
    flat = found[0, 0].cpu().numpy().astype(np.int32)
    predictor = predictor_of(weights, levels)
    if predictor is not None:
        steps = ground.steps(found, error, price)[0, 0].cpu().numpy()
        flat = settle_numbers(flat, steps, predictor, math.prod(levels))
    return number_to_reflected(flat, levels)


class Ground:
    """The true heights of a grid of tokens, and how far drawn ones are from them.

    Parameters
    ----------
    decoder
        What draws.
    picture, mask
        ``(B, 1, H, W)`` of whole patches.

    Attributes
    ----------
    some
        bool ``(B, 1, rows, cols)``: tokens with valid pixels. The others stay as they are.
    """

    def __init__(self, decoder: HeightDecoder, picture: Tensor, mask: Tensor) -> None:
        self.decoder, self.weight = decoder, mask.float()
        self.truth = torch.where(mask, picture, 0.0)
        self.pixels = F.avg_pool2d(self.weight, PATCH) * PATCH**2
        self.some = self.pixels > 0

    def error(self, heights: Tensor) -> Tensor:
        """Return the squared errors of each token's pixels, summed, ``(B, 1, rows, cols)``."""
        device = heights.device
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
            drawn, _ = self.decoder.draw(heights)
        return F.avg_pool2d((drawn - self.truth).square() * self.weight, PATCH) * PATCH**2

    def descend(self, start: Tensor, weight: Tensor, rounds: int) -> Tensor:
        """Return heights ``(B, 1, rows, cols)`` that are drawn nearer to the truth, errors weighed."""
        relief = local_statistics(start)[1]
        shift = torch.zeros_like(start, requires_grad=True)
        adam = torch.optim.Adam([shift], lr=RATE, betas=BETAS)
        for n in range(rounds):
            adam.param_groups[0]["lr"] = RATE * (1 - n / rounds)
            with torch.enable_grad():
                total = (weight * self.error(start + relief * shift)).sum()
                (shift.grad,) = torch.autograd.grad(total, shift)
            with torch.device("cpu"):  # where Adam counts its steps; torch 2.4 took the caller's default
                adam.step()
        return (start + relief * shift).detach()

    def weights(self, error: Tensor) -> Tensor:
        """Return what each token's error counts: half as it is, half relative to what it was around."""
        around = mean_around(error).clamp_min(1e-6)
        return (1 / error.mean((2, 3), keepdim=True).clamp_min(1e-6) + 1 / around) / 2

    def nearer(self, known: tuple[Tensor, Tensor], others: Tensor) -> tuple[Tensor, Tensor]:
        """Return `others` but where they spoil what is around, or `known` where that is not nearer.

        Numbers of levels and their errors, as `known` is.
        """
        numbers, before = known
        with torch.no_grad():
            after = self.error(self.decoder.scale.to_height(others))
            spoilt = mean_around(after) > SPOILT * mean_around(before)
            if spoilt.any():
                others = torch.where(spoilt, numbers, others)
                after = self.error(self.decoder.scale.to_height(others))
        return (others, after) if after.sum() < before.sum() else known

    def steps(self, numbers: Tensor, error: Tensor, price: float) -> Tensor:
        """Return the powers of two that numbers of levels may move by, int64 ``(B, 1, rows, cols)``.

        `error` is what they draw. d(s^2 / 12) per bit is s^2 ln(4) / 12; it may be `price` times the mean
        squared error, or four times the error around where that is less.
        """
        scale = self.decoder.scale
        everywhere = error.sum((2, 3), keepdim=True) / self.pixels.sum((2, 3), keepdim=True).clamp_min(1.0)
        each = torch.where(self.some, error / self.pixels.clamp_min(1.0), everywhere)
        # The geometric mean: a plain is spoilt sooner than a mountain beside it is improved.
        around = mean_around(each.clamp_min(1e-6).log()).exp()
        metres = (12 * price / LN4 * torch.minimum(everywhere, PLAIN * around)).sqrt()
        level = (scale.to_height(numbers + 1) - scale.to_height(numbers - 1)) / 2
        return torch.exp2((metres / level).clamp_min(1).log2().round()).long()


def mean_around(values: Tensor) -> Tensor:
    """Return the means of ``(B, 1, rows, cols)`` over 3 x 3 places, the border repeated."""
    return F.avg_pool2d(F.pad(values, (1, 1, 1, 1), mode="replicate"), 3, 1)
