"""Companding: physical units to the space in which the small tokenizers measure errors, and back.

On plain z-scores clouds and snow own the squared error and dark forests get what is left.
A square root over reflectance (an asinh over heights) gives each decade its share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tmcodec.fsq.curves import Curve

KINDS = ("linear", "sqrt", "asinh")


class Compander(nn.Module):
    """Invertible, monotone map from physical values to roughly standard-normal ones.

    Parameters
    ----------
    kind
        ``"linear"``: v; ``"sqrt"``: sign(u) (sqrt(|u| + knee) - sqrt(knee)) with u = v - origin;
        ``"asinh"``: asinh((v - origin) / knee).
    origin, knee
        Physical value of zero, and where the curve bends.
    mean, std
        One a band, of the companded values.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, kind: str, origin: float, knee: float, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown companding {kind!r}")
        self.kind, self.origin, self.knee = kind, origin, knee
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def curve(self, v: Tensor) -> Tensor:
        """Apply the curve alone, without mean and std."""
        u = v - self.origin
        if self.kind == "sqrt":
            return u.sign() * ((u.abs() + self.knee).sqrt() - self.knee**0.5)
        if self.kind == "asinh":
            return torch.asinh(u / self.knee)
        return u

    def uncurve(self, y: Tensor) -> Tensor:
        """Invert `curve`."""
        if self.kind == "sqrt":
            return y.sign() * ((y.abs() + self.knee**0.5).square() - self.knee) + self.origin
        if self.kind == "asinh":
            return torch.sinh(y) * self.knee + self.origin
        return y + self.origin

    def slope(self, v: Tensor) -> Tensor:
        """Return d(physical)/d(normalised) at physical `v`: turns small errors into physical ones."""
        u = (v - self.origin).abs()
        if self.kind == "sqrt":
            return (u + self.knee).sqrt() * 2 * self.std
        if self.kind == "asinh":
            return (u.square() + self.knee**2).sqrt() * self.std
        return self.std.expand_as(v)

    def compress(self, v: Tensor) -> Tensor:
        """Map physical ``(..., C, H, W)`` to normalised values."""
        return (self.curve(v) - self.mean) / self.std

    def expand(self, z: Tensor) -> Tensor:
        """Map normalised ``(..., C, H, W)`` back to physical values."""
        return self.uncurve(z * self.std + self.mean)

    def constants(self) -> Curve:
        """Return what the fused kernels take."""
        return Curve(self.kind, self.origin, self.knee, self.mean, self.std)

    def compress_bands(self, v: Tensor) -> Tensor:
        """Do what `compress` does band by band, without gradients: twice as fast on large pictures.

        The temporaries of one band stay in the cache and in the allocator's hands.
        """
        out = torch.empty_like(v)
        for band, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            out[:, band] = (self.curve(v[:, band]) - mean) / std
        return out

    def expand_bands(self, z: Tensor, low: float, high: float) -> Tensor:
        """Do what `expand` does band by band, and clip to ``low .. high``."""
        out = torch.empty_like(z)
        for band, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            out[:, band] = self.uncurve(z[:, band] * std + mean).clamp_(low, high)
        return out
