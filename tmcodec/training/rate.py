"""How many bits the context coder will want for a grid of tokens, with gradients for the encoder.

A small network says how likely each digit is, given tokens left of and above it and the digits of the
same token before it, as the coder of token files does (`tmcodec.tokenfile.context`). The cost of a
digit is taken between those of the two digits next to the unrounded value, so that its gradient points
to the likelier one: a rate term as in learned compression (Ballé et al. 2018, arXiv 1802.01436), for
tokens that are rounded and not noisy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv(nn.Conv2d):
    """5 x 5 convolution that sees the rows above and what lies left in its own row."""

    seen: Tensor

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 5, padding=2)
        seen = torch.zeros(1, 1, 5, 5)
        seen[..., :2, :] = 1
        seen[..., 2, :2] = 1
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.seen, self.bias)


class RateModel(nn.Module):
    """Bits of token grids.

    Parameters
    ----------
    levels
        FSQ levels.
    width
        Channels of the hidden layers.
    """

    def __init__(self, levels: Sequence[int], width: int = 96) -> None:
        super().__init__()
        self.levels = tuple(levels)
        # One more channel tells what lies outside the grid from what is zero.
        self.around = CausalConv(len(self.levels) + 1, width)
        self.mix = nn.Linear(width, width)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width + k, width), nn.GELU(), nn.Linear(width, level))
            for k, level in enumerate(self.levels)
        )

    def forward(self, latents: Tensor, codes: Tensor) -> Tensor:
        """Return the bits of each token.

        Parameters
        ----------
        latents
            ``(B, rows, cols, d)``, before squashing; only what lies between two digits is used of them.
        codes
            ``(B, rows, cols, d)`` in 0..1, with a straight-through gradient.

        Returns
        -------
        Tensor
            float32 ``(B, rows, cols)``.
        """
        centred = codes * 2 - 1
        inside = torch.ones_like(centred[..., :1])
        grid = torch.cat([centred, inside], -1).permute(0, 3, 1, 2)
        features = F.gelu(self.around(grid)).permute(0, 2, 3, 1)
        features = F.gelu(self.mix(features))
        bits = torch.zeros_like(features[..., 0])
        for k, (level, head) in enumerate(zip(self.levels, self.heads, strict=True)):
            logits = head(torch.cat([features, centred[..., :k]], -1))
            bits = bits + between(-F.log_softmax(logits, -1), latents[..., k].sigmoid() * (level - 1))
        return bits / math.log(2)


def between(costs: Tensor, place: Tensor) -> Tensor:
    """Interpolate costs ``(..., L)`` of the digits 0 to L - 1 at `place` ``(...)`` in 0..L - 1, linearly.

    The mean over places that are equally far from both digits is the mean cost of rounding them, and the
    slope is how much the next digit costs more.
    """
    low = place.detach().floor().clamp(0, costs.shape[-1] - 2).long()
    share = place - low
    below, above = (costs.gather(-1, (low + n)[..., None])[..., 0] for n in (0, 1))
    return below + share * (above - below)
