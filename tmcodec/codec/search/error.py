"""How far the decoded mean is from the picture, token by token, with gradients.

Pictures are compared at half resolution, where the mean's details end. Half of the error is taken in the
companded space, where each decade of brightness has its share, half in physical units, which PSNR is of;
both are relative to the error at the start, so that prices in bits mean the same everywhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tmcodec.networks.mini import PATCH, MiniDecoder, MiniNet
from tmcodec.networks.terramind.inference import has_bf16

FLOOR = 1e-4
"""Squared error in normalised units, and cross-entropy in nats, that needs no improvement."""


class TokenError:
    """Error of each token of a grid; 1 on average over valid ground for the codes that are looked at first.

    Parameters
    ----------
    net
        Its decoder has to be a `MiniDecoder`.
    values
        float32 ``(C, H, W)`` of whole patches, physical units; class ids have C = 1.
    valid
        bool ``(C, H, W)``; other pixels count nothing, whatever they hold.
    """

    def __init__(self, net: MiniNet, values: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> None:
        assert isinstance(net.decoder, MiniDecoder)
        self.compander, self.decoder = net.compander, net.decoder
        device = net.residual_basis.device
        x = torch.from_numpy(np.where(valid, values, 0)).to(device)
        weight = torch.from_numpy(valid).to(device, torch.float32)
        self.tokens = weight.amax(0).mean() * (x.shape[1] // PATCH) * (x.shape[2] // PATCH)
        self.classes = x.shape[0] == 1 and net.cfg.channels > 1
        self.scales: tuple[Tensor, ...] | None = None
        if self.classes:
            self.truth, self.weight = x.long(), weight[None]
            return
        self.weight = F.avg_pool2d(weight[None], 2)
        share = self.weight.clamp_min(1e-9)
        z = torch.where(weight > 0, self.compander.compress(x), 0.0)
        self.truth, self.normalised = (F.avg_pool2d(v[None], 2) / share for v in (x, z))

    def draw(self, codes: Tensor) -> Tensor:
        """Decode codes ``(rows, cols, d)``: the mean at half resolution, or logits of classes."""
        device = codes.device.type
        with torch.autocast(device, torch.bfloat16, enabled=has_bf16(codes.device)):
            cells = codes[None] * 2 - 1
            found = self.decoder.paint(cells)[0] if self.classes else self.decoder.sketch(cells)[0]
        return found.float()

    def __call__(self, codes: Tensor) -> Tensor:
        """Return the errors ``(rows, cols)`` of codes ``(rows, cols, d)`` in 0..1."""
        found = self.draw(codes)
        errors = self._kinds(found)
        if self.scales is None:
            floors = self._floors(found)
            self.scales = tuple(
                self.tokens / (e.detach().sum() + f).clamp_min(1e-12) / len(errors)
                for e, f in zip(errors, floors, strict=True)
            )
        total = torch.stack([e * s for e, s in zip(errors, self.scales, strict=True)]).sum(0)
        side = total.shape[-1] // codes.shape[1]
        return F.avg_pool2d(total[:, None], side)[0, 0] * side**2

    def _kinds(self, found: Tensor) -> list[Tensor]:
        """Return the kinds of error ``(1, h, w)``, each pixel's."""
        if self.classes:
            return [F.cross_entropy(found, self.truth, reduction="none") * self.weight[:, 0]]
        normalised = (found - self.normalised).square() * self.weight
        physical = (self.compander.expand(found) - self.truth).square() * self.weight
        return [normalised.sum(1), physical.sum(1)]

    def _floors(self, found: Tensor) -> list[Tensor]:
        """Return what of each kind's sum needs no improvement."""
        if self.classes:
            return [FLOOR * self.weight.sum()]
        slope = self.compander.slope(self.truth)
        return [FLOOR * self.weight.sum(), FLOOR * (slope.square() * self.weight).sum()]

    def bends(self, codes: Tensor, draws: int = 2) -> Tensor:
        """Return the second derivatives ``(rows, cols, d)`` of the error by each digit's code, about.

        Those of Gauss and Newton, from gradients of random projections (Hutchinson's estimator; for classes
        from labels drawn as the decoder says, Fisher's information), averaged over 3 x 3 tokens. After
        `__call__`.
        """
        assert self.scales is not None
        generator = torch.Generator().manual_seed(0)
        codes = codes.detach().requires_grad_()
        with torch.enable_grad():
            found = self.draw(codes)
            total = torch.zeros_like(codes)
            for left in reversed(range(draws)):
                probe = self._probe(found, generator)
                (slope,) = torch.autograd.grad(probe, codes, retain_graph=left > 0)
                total += slope.square()
        grid = F.pad((total / draws).permute(2, 0, 1)[None], (1, 1, 1, 1), mode="replicate")
        return F.avg_pool2d(grid, 3, 1)[0].permute(1, 2, 0)

    def _probe(self, found: Tensor, generator: torch.Generator) -> Tensor:
        """Return a number whose gradient squared is on average the second derivative."""
        assert self.scales is not None
        if self.classes:
            chances = found.detach().softmax(1)
            uniform = torch.rand(self.truth.shape, generator=generator).to(found.device)
            drawn = (chances.cumsum(1) < uniform[:, None]).sum(1).clamp_max(found.shape[1] - 1)
            nats = F.cross_entropy(found, drawn, reduction="none")
            return (nats * (self.scales[0] * self.weight[:, 0]).sqrt()).sum()
        slope = self.compander.slope(self.compander.expand(found.detach()))
        weight = 2 * self.weight * (self.scales[0] + self.scales[1] * slope.square())
        signs = torch.randint(0, 2, found.shape, generator=generator).to(found.device) * 2.0 - 1.0
        return (found * weight.sqrt() * signs).sum()
