"""TerraMind's diffusion decoder: guided diffusion's UNet on cells of 4x4 pixels.

The network of "Diffusion Models Beat GANs" (arXiv 2105.05233) without scale-shift norm, with one head,
predicting the clean picture. The codes are upsampled to the cells and concatenated to the noisy input.
Names of submodules are those of the official checkpoints' keys.

Legend: B pictures, C bands, h = H / 4 and w = W / 4 cells, E = 4 * ``unet_channels``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tmcodec.networks.terramind.config import TerraMindConfig

GROUPS = 32


def time_features(timesteps: Tensor, channels: int) -> Tensor:
    """Return features ``(B, channels)`` of timesteps ``(B,)``: cosines first, periods up to 10000."""
    half = channels // 2
    places = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    freqs = torch.exp(-math.log(10000.0) * places / half)
    angles = timesteps.float()[:, None] * freqs[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class GroupNorm(nn.GroupNorm):
    """Group norm with float32 statistics and weights, whatever the input; keeps the input's dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype or x.device.type == "cpu":  # CPU kernels sum half types in float32
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(x.float()).to(x.dtype)


class ResBlock(nn.Module):
    """Two convolutions with the time embedding ``(B, E)`` added between them, residual."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(inputs), nn.SiLU(inplace=True), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))
        self.out_layers = nn.Sequential(  # the third holds the place of the official dropout
            GroupNorm(outputs),
            nn.SiLU(inplace=True),
            nn.Identity(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        same = inputs == outputs
        self.skip_connection: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x)
        h.add_(self.emb_layers(embedding).to(h.dtype)[:, :, None, None])
        return self.out_layers(h).add_(self.skip_connection(x))


class AttentionBlock(nn.Module):
    """One-head attention over all cells, residual; ``(B, D, h, w)`` to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.norm(x).flatten(2)  # (B, D, N)
        q, k, v = self.qkv(cells).transpose(1, 2)[:, None].chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2)).view_as(x)


class Downsample(nn.Module):
    """Halve both sides by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double both sides, nearest, and convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.ModuleList):
    """Layers run in order; residual blocks get the time embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class PatchedUNet(nn.Module):
    """Noisy picture ``(B, C, H, W)``, timesteps and codes to the clean picture ``(B, C, H, W)``."""

    def __init__(self, cfg: TerraMindConfig) -> None:
        super().__init__()
        self.cell, self.base = cfg.unet_patch, cfg.unet_channels
        embedding, pixels = 4 * cfg.unet_channels, cfg.channels * cfg.unet_patch**2
        self.time_embed = nn.Sequential(
            nn.Linear(self.base, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        first = self.base * cfg.unet_multipliers[0]
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(pixels + len(cfg.levels), first, 3, padding=1)])])
        width, skips = self._build_down(cfg, first, embedding)
        self.middle_block = Stage(
            [ResBlock(width, width, embedding), AttentionBlock(width), ResBlock(width, width, embedding)]
        )
        self.output_blocks = nn.ModuleList()
        width = self._build_up(cfg, width, skips, embedding)
        self.out = nn.Sequential(
            GroupNorm(width), nn.SiLU(inplace=True), nn.Conv2d(width, pixels, 3, padding=1)
        )

    def _build_down(self, cfg: TerraMindConfig, width: int, embedding: int) -> tuple[int, list[int]]:
        """Add the stages of the descent; return the last width and the widths kept for the ascent."""
        skips, factor = [width], 1
        for level, multiplier in enumerate(cfg.unet_multipliers):
            for _ in range(cfg.unet_blocks):
                stage = Stage([ResBlock(width, multiplier * self.base, embedding)])
                width = multiplier * self.base
                if factor in cfg.unet_attention:
                    stage.append(AttentionBlock(width))
                self.input_blocks.append(stage)
                skips.append(width)
            if level < len(cfg.unet_multipliers) - 1:
                self.input_blocks.append(Stage([Downsample(width)]))
                skips.append(width)
                factor *= 2
        return width, skips

    def _build_up(self, cfg: TerraMindConfig, width: int, skips: list[int], embedding: int) -> int:
        """Add the stages of the ascent; return the last width."""
        factor = 2 ** (len(cfg.unet_multipliers) - 1)
        for level, multiplier in reversed(list(enumerate(cfg.unet_multipliers))):
            for i in range(cfg.unet_blocks + 1):
                stage = Stage([ResBlock(width + skips.pop(), multiplier * self.base, embedding)])
                width = multiplier * self.base
                if factor in cfg.unet_attention:
                    stage.append(AttentionBlock(width))
                if level and i == cfg.unet_blocks:
                    stage.append(Upsample(width))
                    factor //= 2
                self.output_blocks.append(stage)
        return width

    def forward(self, noisy: Tensor, timesteps: Tensor, codes: Tensor) -> Tensor:
        """Predict the clean picture.

        Parameters
        ----------
        noisy
            float32 ``(B, C, H, W)``, normalised.
        timesteps
            ``(B,)`` or ``(1,)``, 0..999.
        codes
            float32 ``(B, d, rows, cols)`` in [0, 1].

        Returns
        -------
        Tensor
            float32 ``(B, C, H, W)``.
        """
        cells = F.pixel_unshuffle(noisy, self.cell)
        condition = F.interpolate(codes, size=cells.shape[-2:], mode="nearest")
        x = torch.cat([cells, condition], dim=1)
        embedding = self.time_embed(time_features(timesteps, self.base))
        kept: list[Tensor] = []
        for stage in self.input_blocks:
            x = stage(x, embedding)
            kept.append(x)
        x = self.middle_block(x, embedding)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, kept.pop()], dim=1), embedding)
        return F.pixel_shuffle(self.out(x).float(), self.cell)
