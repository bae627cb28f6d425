"""The energy score of drawn pictures: least, on average, where they are distributed as the truth is.

A squared error asks for the mean, and a denoiser that is asked for it draws less than there is. The energy
score (Gneiting and Raftery 2007, doi 10.1198/016214506000001437, section 4.3) of two pictures drawn for the
same tokens, ``(|a - x| + |b - x|) / 2 - |a - b| / 2`` for a norm, is strictly proper: no other distribution
scores better than the true one. So it can train a sampler of few steps as a whole (as in engression, arXiv
2307.00835), with neither a critic nor a teacher. Here it is taken over all 4 x 4 cells of each level of a
Laplacian pyramid, all bands of a cell together, so that strength, shape and scale of texture count, not
single pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SCALES = 4
"""Levels of the pyramid, of cells of 4, 8, 16 and 32 pixels."""

CELL = 4
"""Side of the cells of a level, in its pixels."""

SIDE = CELL * 2 ** (SCALES - 1)
"""Side of the coarsest cells, in pixels."""

RADIUS = 3
"""Cells around one whose relief weighs its errors, on each side."""

FLOOR = 0.05
"""Relief of the mean picture, in normalised units, below which errors are not weighed any higher."""


def pyramid(x: Tensor) -> list[Tensor]:
    """Return details at 1, 2 and 4 pixels and the means of 8, each ``(B, C, H / s, W / s)``."""
    levels = []
    for _ in range(SCALES - 1):
        low = F.avg_pool2d(x, 2)
        levels.append(x - F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False))
        x = low
    return [*levels, x]


def cell_norms(x: Tensor) -> Tensor:
    """Return the root mean square over a cell, summed over bands, ``(B, 1, H / 4, W / 4)``."""
    return (F.avg_pool2d(x.square().sum(1, keepdim=True), CELL) + 1e-8).sqrt()


def energy_score(truth: Tensor, one: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    """Return the mean energy score of two draws, a scalar.

    Parameters
    ----------
    truth, one, other
        ``(B, C, H, W)``; equal wherever nothing is to be compared.
    weights
        Of pixels, ``(B, 1, H, W)``. They may depend on tokens, and on the truth no more than in what is
        valid: else the score would not be proper.
    """
    score, side = truth.new_zeros(()), CELL
    for x, a, b in zip(pyramid(truth), pyramid(one), pyramid(other), strict=True):
        found = (cell_norms(a - x) + cell_norms(b - x) - cell_norms(a - b)) / 2
        share = F.avg_pool2d(weights, side)
        score = score + (share * found).sum() / share.sum().clamp_min(1e-6)
        side *= 2
    return score


def whole_cells(x: Tensor, row: int = 0, col: int = 0) -> Tensor:
    """Return ``(B, C, H, W)`` from `row` and `col` on, without what fills no cell of the coarsest level."""
    height, width = ((n - first) // SIDE * SIDE for n, first in zip(x.shape[-2:], (row, col), strict=True))
    return x[..., row : row + height, col : col + width]


def relief_weights(mean: Tensor) -> Tensor:
    """Return weights ``(B, 1, H, W)``, high where the mean picture varies little: noise on water is seen."""
    coarse = F.avg_pool2d(mean, CELL)

    def around(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (RADIUS,) * 4, mode="replicate"), 2 * RADIUS + 1, stride=1)

    spread = around((coarse - around(coarse)).square().sum(1, keepdim=True)).sqrt()
    weights = 1 / (spread + FLOOR * mean.shape[1] ** 0.5)
    return F.interpolate(weights, size=mean.shape[-2:], mode="nearest")
