"""The elevation tokenizer: a token is its patch's mean height, and the decoder knows terrain.

A learnt code cannot beat the mean on flat land, where half a metre counts, and needs none in the
mountains, where the heights around tell the slopes. So the encoder only averages, on a scale finer
near sea level; FSQ's digits are the level's mixed-radix digits, every other run reversed so that
neighbouring heights differ in one digit by one. All learning goes into the decoder: it sees heights
relative to their surroundings and in units of the local relief, so that a hill is a hill at any
altitude, and adds what a bicubic interpolation misses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmcodec.fsq import codebook_size
from tmcodec.networks.blocks import enlarge
from tmcodec.networks.compand import Compander

if TYPE_CHECKING:
    from tmcodec.networks.mini import MiniConfig, MiniDecoder

PATCH = 16
AROUND = 2
"""Tokens on each side whose heights make the local mean and relief."""

TEXTURE = 0.45
"""What a mean picture misses is at most this part of the relief, on most terrain that it was trained on."""


def reflected_digits(index: Tensor, levels: Sequence[int]) -> Tensor:
    """Write ``index`` in mixed radix, last digit slowest, as a reflected (Gray) code.

    Integers ``(...)`` become int64 digits ``(..., d)``; adding one changes one digit by one.
    """
    digits, rest = [], index.long()
    weight = codebook_size(levels)
    flipped = torch.zeros_like(rest)  # whether the number written so far is odd
    for level in reversed(levels):
        weight //= level
        digit = rest // weight
        rest = rest % weight
        shown = torch.where(flipped == 1, level - 1 - digit, digit)
        digits.append(shown)
        # The faster digits run backwards below every odd value, so that they meet at the turn.
        flipped = (flipped * level + digit) % 2
    return torch.stack(digits[::-1], dim=-1)


def from_reflected(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """Return the integers ``(...)`` of digits ``(..., d)``; the inverse of `reflected_digits`."""
    index = torch.zeros_like(digits[..., 0])
    flipped = torch.zeros_like(index)
    for place in reversed(range(len(levels))):
        level = levels[place]
        shown = digits[..., place]
        digit = torch.where(flipped == 1, level - 1 - shown, shown)
        index = index * level + digit
        flipped = index % 2
    return index


class HeightScale(nn.Module):
    """Heights in metres to the integers 0..K-1 of an asinh scale, and back."""

    def __init__(self, compander: Compander, levels: Sequence[int], low: float, high: float) -> None:
        super().__init__()
        self.compander = compander
        self.count = codebook_size(levels)
        # On the CPU even where the network is only sketched on the meta device.
        ends = compander.curve(torch.tensor([low, high], dtype=torch.float64, device="cpu")).tolist()
        self.low, self.step = ends[0], (ends[1] - ends[0]) / (self.count - 1)

    def to_level(self, height: Tensor) -> Tensor:
        """Return the nearest level, int64."""
        position = (self.compander.curve(height.double()) - self.low) / self.step
        return position.round().clamp(0, self.count - 1).long()

    def to_height(self, level: Tensor) -> Tensor:
        """Return the height in metres of a level, float32."""
        return self.compander.uncurve(level.double() * self.step + self.low).float()


class HeightEncoder(nn.Module):
    """Normalised picture ``(B, 1, H, W)`` to latents ``(B, H/16, W/16, d)`` of the mean height."""

    def __init__(self, cfg: MiniConfig, scale: HeightScale) -> None:
        super().__init__()
        self.levels, self.scale = tuple(cfg.levels), scale
        self.halo = 0

    def forward(self, z: Tensor) -> Tensor:
        mean = F.avg_pool2d(self.scale.compander.expand(z), PATCH)[:, 0]
        digits = reflected_digits(self.scale.to_level(mean), self.levels)
        spans = torch.tensor(self.levels, dtype=torch.float32, device=z.device) - 1
        # The middle of each digit's bin; the outer bins end nowhere, six is far inside.
        return torch.logit(digits / spans).clamp(-6, 6).float()


class HeightDecoder(nn.Module):
    """Codes ``(B, rows, cols, d)`` to the mean picture and to features for the denoiser."""

    def __init__(self, cfg: MiniConfig, scale: HeightScale, detail: MiniDecoder) -> None:
        super().__init__()
        self.levels, self.scale, self.detail, self.slopes = tuple(cfg.levels), scale, detail, cfg.slopes
        self.halo = detail.halo + AROUND + 2  # bicubic reaches two tokens

    def heights(self, codes: Tensor) -> Tensor:
        """Return the mean height of each token in metres, ``(B, 1, rows, cols)``."""
        spans = torch.tensor(self.levels, device=codes.device) - 1
        digits = (codes.float() * spans).round().long()
        return self.scale.to_height(from_reflected(digits, self.levels))[:, None]

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``(B, 1, H, W)``, normalised, and features ``(B, H/4, W/4, refine)``."""
        metres, features = self.draw(self.heights(codes))
        return self.scale.compander.compress(metres), features

    def draw(self, height: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ground in metres ``(B, 1, H, W)`` that mean heights ``(B, 1, rows, cols)`` stand for.

        And the features of `forward`.
        """
        mean, relief = local_statistics(height)
        relative = torch.cat([(height - mean) / relief, relief.log() / 3 - 1], dim=1)
        detail, features = self.detail.paint(relative.permute(0, 2, 3, 1))
        smooth = enlarge(height, PATCH, self.slopes)
        spread = F.interpolate(relief, scale_factor=PATCH, mode="bilinear", align_corners=False)
        return smooth + detail * spread, features


    def texture(self, codes: Tensor, std: float) -> Tensor:
        """Return by how much less than `std` texture may deviate, ``(B, 1, H, W)`` in 0..1.

        The denoiser knows one scale, that of mountains: drawn on a plain, its noise would be hills.

        Parameters
        ----------
        codes
            ``(B, rows, cols, d)``.
        std
            Of the texture that the denoiser draws, in normalised units.
        """
        height = self.heights(codes)
        relief = F.interpolate(
            local_statistics(height)[1], scale_factor=PATCH, mode="bilinear", align_corners=False
        )
        metres = std * self.scale.compander.slope(enlarge(height, PATCH, self.slopes))
        return (TEXTURE * relief / metres).clamp_max(1)


def local_statistics(height: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of ``(B, 1, rows, cols)`` over the tokens around, in metres.

    One metre is added to the deviation: below it there is noise, not relief.
    """
    side = 2 * AROUND + 1
    padded = F.pad(height, (AROUND,) * 4, mode="replicate")
    mean = F.avg_pool2d(padded, side, stride=1)
    # Differences first: squares of heights would cancel in float32.
    parts = F.unfold(padded, side).view(len(height), side * side, *height.shape[-2:])
    variance = (parts - mean).square().mean(1, keepdim=True)
    return mean, (variance + 1e-6).sqrt() + 1
