"""Bits of digits by the trained part of the context coder, in floating point and with gradients.

What adapts while a chunk is coded is left out: it depends on the order, and a chip has hardly any.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tmcodec.tokenfile.context.model import REACH, TOP, ContextModel, Network, layout, slot_rows

MOST = TOP / 2**8
"""Largest activation."""


def _real(numbers: npt.NDArray[np.integer], shift: int, device: torch.device) -> Tensor:
    """Return fixed point numbers of so many fractional bits as float32."""
    return torch.from_numpy(np.ldexp(numbers.astype(np.float32), -shift)).to(device)


class TokenBits:
    """How many bits the digits of grids take, for digits given as one-hot vectors side by side.

    Parameters
    ----------
    model
        Tables of chunks on their own. Without a trained network every token counts nothing.
    device
        Where to compute.
    """

    def __init__(self, model: ContextModel, device: torch.device) -> None:
        self.levels, self.order = model.levels, model.order
        self.ends = np.cumsum(model.levels).tolist()
        self.trained = model.network is not None
        if model.network is not None:
            self._take(model, model.network, device)

    def _take(self, model: ContextModel, net: Network, device: torch.device) -> None:
        """Turn the integers of `Network` into the real numbers that they stand for."""
        lay, size = layout(model), self.ends[-1]
        starts, _ = slot_rows(model, net.slots)
        first = _real(net.first, 9, device)
        # The first layer as a convolution over the one-hot vectors and a channel for "outside".
        self.around = first.new_zeros(first.shape[1], size + 1, 2 * REACH + 1, 2 * REACH + 1)
        for (_, dy, dx), rows in zip(net.slots.tolist(), starts.tolist(), strict=True):
            tap = self.around[:, :, dy + REACH, dx + REACH]
            for row, end, level in zip(rows, self.ends, self.levels, strict=True):
                tap[:, end - level : end] += first[row : row + level].T
                tap[:, size] += first[row + level]
        self.around_bias = _real(net.first_bias, 9, device)
        self.second, self.second_bias = _real(net.second, 10, device), _real(net.second_bias, 18, device)
        self.heads, self.head_bias = _real(net.heads, 10, device), _real(net.head_bias, 18, device)
        previous, last = _real(net.previous, 10, device), _real(net.last, 12, device)
        bias = _real(net.last_bias, 16, device)
        self.last, self.last_bias, self.previous = {}, {}, {}
        for n, k in enumerate(self.order):
            rows = slice(int(lay.last[k]), int(lay.last[k]) + self.levels[k])
            self.last[k], self.last_bias[k] = last[rows].T, bias[rows]
            for j in self.order[:n]:
                row = int(lay.previous[k, j])
                self.previous[k, j] = previous[row : row + self.levels[j]]

    def part(self, hot: Tensor, k: int) -> Tensor:
        """Return the entries ``(..., level)`` of digit k in ``(..., sum of levels)``."""
        return hot[..., self.ends[k] - self.levels[k] : self.ends[k]]

    def __call__(self, hot: Tensor) -> Tensor:
        """Return the bits ``(B, rows, cols)`` of one-hot digits ``(B, rows, cols, sum of levels)``.

        Gradients tell what another digit would cost by itself and, to first order, those after it.
        """
        bits = torch.zeros_like(hot[..., 0])
        if not self.trained:
            return bits
        hidden = self._hidden(hot)
        for n, k in enumerate(self.order):
            g = hidden @ self.heads[k] + self.head_bias[k]
            for j in self.order[:n]:
                g = g + self.part(hot, j) @ self.previous[k, j]
            logits = g.clamp(0, MOST) @ self.last[k] + self.last_bias[k]
            costs = -F.log_softmax(logits * math.log(2), -1) / math.log(2)
            bits = bits + (costs * self.part(hot, k)).sum(-1)
        return bits

    def _hidden(self, hot: Tensor) -> Tensor:
        """Return the two layers that all digits of a token share, ``(B, rows, cols, h2)``."""
        inside = F.pad(hot.permute(0, 3, 1, 2), (REACH,) * 4)
        outside = F.pad(torch.zeros_like(hot[:, None, ..., 0]), (REACH,) * 4, value=1.0)
        around = F.conv2d(torch.cat([inside, outside], 1), self.around).permute(0, 2, 3, 1)
        h = (around + self.around_bias).clamp(0, MOST)
        return (h @ self.second + self.second_bias).clamp(0, MOST)
