"""The radiometric balance inside the search: what decoded bands will go through, fitted anew now and then.

Tokens and balance are chosen in turns, each for the other as it is: what a few bytes of balance mend is no
token's business. Bands are not mixed meanwhile: tokens would come to need a mixing that does not pay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tmcodec.codec.balance import BalanceFit, gain_planes
from tmcodec.modalities import BalanceScale
from tmcodec.networks.mini import PATCH
from tmcodec.rasters.windows import Window

HALF = PATCH // 2
"""Pixels of a token at half resolution, where the search compares."""


class SearchBalance:
    """Balance of one chunk at half resolution.

    Parameters
    ----------
    scale
        The modality's.
    original
        ``(bands, h, w)`` at half resolution, physical units.
    valid
        bool ``(bands, h, w)``: pixels that count.
    """

    def __init__(self, scale: BalanceScale, original: Tensor, valid: Tensor) -> None:
        self.scale = scale
        self.original, self.valid = original.cpu().numpy(), valid.cpu().numpy()
        height, width = original.shape[1:]
        self.grid, self.at = (height // HALF, width // HALF), Window(0, 0, width, height)
        self.gains = self.offsets = original.new_zeros(len(original), 1, 1)

    def fit(self, decoded: Tensor) -> None:
        """Fit the balance to what tokens decode to, ``(bands, h, w)``, as encoding does at the end."""
        fit = BalanceFit(*self.grid, HALF, len(decoded), self.scale)
        fit.add(self.at, decoded.cpu().numpy(), self.original, self.valid)
        found = gain_planes(fit.solve(mixing=False), self.grid, self.at, len(decoded), HALF)
        self.gains, self.offsets = (torch.from_numpy(plane).to(self.gains) for plane in found)

    def __call__(self, values: Tensor) -> Tensor:
        """Return decoded ``(..., bands, h, w)`` balanced."""
        return values + self.gains * (values - self.scale.pivot) + self.offsets
