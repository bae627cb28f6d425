"""Places of a token grid and those beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-6
"""Gain that is worth a change."""


def summit(gain: Tensor, corners: bool) -> Tensor:
    """Return the largest gain ``(B, rows, cols)`` among each place and its four or eight neighbours."""
    if corners:
        return F.max_pool2d(gain, 3, 1, 1)
    across, down = (F.max_pool2d(gain, k, 1, (k[0] // 2, k[1] // 2)) for k in ((1, 3), (3, 1)))
    return torch.maximum(across, down)


def around(values: Tensor) -> Tensor:
    """Return the sums of ``(B, rows, cols)`` over 3 x 3 places."""
    return F.avg_pool2d(values, 3, 1, 1, divisor_override=1)


def near(places: Tensor) -> Tensor:
    """Return which places have one of these within 3 x 3."""
    return F.max_pool2d(places.float(), 3, 1, 1) > 0
