"""Finite scalar quantization in plain PyTorch: TerraMind's sigmoid form.

Quantizing counts decision thresholds (see `tmcodec.fsq.levels.thresholds`), so no
exponential decides a token and every backend gives the same digits for the same float.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tmcodec.fsq import levels as lv


class FSQ(nn.Module):
    """Quantize latents to a product grid of ``levels`` and back.

    Parameters
    ----------
    levels
        Number of values of each latent channel, e.g. ``(8, 8, 8, 6, 5)``.

    Notes
    -----
    All tensors are channel-last: latents and codes ``(..., d)``, indices ``(...)``.
    Buffers are not persistent, so checkpoints hold no quantizer keys (as TerraMind's).
    """

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.codebook_size = lv.codebook_size(self.levels)
        self._thresholds = [torch.from_numpy(lv.thresholds(n)) for n in self.levels]
        spans = torch.tensor(self.levels, dtype=torch.float32) - 1
        self.register_buffer("spans", spans, persistent=False)
        self.register_buffer("basis", torch.tensor(lv.basis(self.levels)), persistent=False)
        self.register_buffer("moduli", torch.tensor(self.levels), persistent=False)

    def digits(self, latents: Tensor) -> Tensor:
        """Return int64 digits of ``latents``; float32 decides whatever the input's dtype."""
        columns = latents.float().unbind(-1)
        found = [
            torch.bucketize(z.contiguous(), t.to(z.device), right=False)
            for z, t in zip(columns, self._thresholds, strict=True)
        ]
        return torch.stack(found, dim=-1)

    def quantize(self, latents: Tensor) -> Tensor:
        """Return codes in [0, 1]; the gradient passes straight through to the sigmoid."""
        squashed = latents.float().sigmoid()
        codes = self.digits(latents) / self.spans
        return squashed + (codes - squashed).detach()

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """Pack codes ``(..., d)`` into int32 indices; sums run in integers."""
        digits = (codes.float() * self.spans).round().long()
        return (digits * self.basis).sum(-1).int()

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Unpack indices ``(...)`` into float32 codes ``(..., d)``."""
        digits = indices.long().unsqueeze(-1) // self.basis % self.moduli
        return digits / self.spans

    def latents_to_indices(self, latents: Tensor) -> Tensor:
        """Return int32 indices of ``latents``."""
        return (self.digits(latents) * self.basis).sum(-1).int()
