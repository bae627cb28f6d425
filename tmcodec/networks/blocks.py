"""Layers shared by the small tokenizers. Tensors are channel-last: (B, rows, cols, channels)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tmcodec.networks.linear import Linear


class MixBlock(nn.Module):
    """Depth-wise convolution, then a two-layer perceptron, both residual-scaled (ConvNeXt's order).

    Almost all weight lies in the perceptron, whose cost is one pixel's, so that the block is
    cheap on the token grid; the convolution brings in ``kernel // 2`` neighbours on each side.

    Parameters
    ----------
    dim
        Channels.
    kernel
        Side of the depth-wise kernel, odd.
    expansion
        Hidden width of the perceptron over `dim`.
    """

    def __init__(self, dim: int, kernel: int = 5, expansion: float = 3.0) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        self.mix = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = Linear(dim, hidden)
        self.down = Linear(hidden, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Map ``(B, rows, cols, dim)`` to the same shape; `shift` (B, dim) is added after the norm."""
        mixed = self.mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        normed = self.norm(mixed)
        if shift is not None:
            normed = normed + shift[:, None, None, :]
        return x + self.scale * self.down(self.up.gelu(normed))


def cells_to_image(cells: Tensor, factor: int) -> Tensor:
    """Spread channels of channel-last cells over ``factor`` x ``factor`` finer cells (pixel shuffle).

    ``(B, rows, cols, factor*factor*c)`` becomes ``(B, rows*factor, cols*factor, c)``.
    """
    b, rows, cols, channels = cells.shape
    c = channels // factor**2
    split = cells.reshape(b, rows, cols, factor, factor, c)
    return split.permute(0, 1, 3, 2, 4, 5).reshape(b, rows * factor, cols * factor, c)


def image_to_cells(image: Tensor, factor: int) -> Tensor:
    """Gather ``factor`` x ``factor`` blocks into channels; the inverse of `cells_to_image`."""
    b, rows, cols, c = image.shape
    split = image.reshape(b, rows // factor, factor, cols // factor, factor, c)
    gathered = split.permute(0, 1, 3, 2, 4, 5)
    return gathered.reshape(b, rows // factor, cols // factor, factor * factor * c)
