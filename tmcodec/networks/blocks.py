"""Layers shared by the small tokenizers. Tensors are channel-last: (B, rows, cols, channels)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmcodec.networks.linear import Linear, plain_inference

STRIP = 1 << 19
"""Hidden values of a perceptron that are worked on at once in inference: 2 MB, what a cache holds."""


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
        if plain_inference(x):
            return self._in_strips(x, mixed, shift)
        return x + self.scale * self._perceive(mixed, None if shift is None else shift[:, None, None, :])

    def _perceive(self, mixed: Tensor, shift: Tensor | None) -> Tensor:
        """Return what the perceptron makes of mixed values ``(..., dim)``."""
        normed = self.norm(mixed)
        return self.down(self.up.gelu(normed if shift is None else normed + shift))

    def _in_strips(self, x: Tensor, mixed: Tensor, shift: Tensor | None) -> Tensor:
        """Do the same without gradients, some cells at a time: hidden values then never leave the cache.

        Fresh memory for those of a whole picture costs more than the products do.
        """
        out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        step = max(STRIP // self.up.out_features, 64)
        for image, (before, after) in enumerate(zip(x.flatten(1, 2), out.flatten(1, 2), strict=True)):
            move = None if shift is None else shift[image]
            parts = (t.split(step) for t in (before, mixed[image].flatten(0, 1), after))
            for old, values, new in zip(*parts, strict=True):
                torch.add(old, self._perceive(values, move).mul_(self.scale), out=new)
        return out


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


def enlarge(x: Tensor, factor: int, slopes: bool) -> Tensor:
    """Interpolate ``(B, C, h, w)`` bicubically to `factor` times the size.

    With `slopes` by Keys' kernel of a = -1/2 (doi 10.1109/TASSP.1981.1163711), which reproduces planes; torch
    takes it only together with its antialiasing, which does nothing when a picture grows. Otherwise a = -3/4.
    """
    return F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False, antialias=slopes)
