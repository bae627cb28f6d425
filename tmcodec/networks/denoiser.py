"""The diffusion decoder of the small tokenizers: predicts what the mean picture misses.

The diffused variable is the residual z - mean(codes), divided by its standard deviation or projected on
a few principal components over the bands. At pure noise the best
guess of a residual is zero by construction (the mean decoder is trained for it), so the output
is multiplied by sqrt(alpha_bar): one step gives exactly the mean, the best PSNR, and costs no
denoiser at all; more steps add texture. Time embedding as in DDPM (arXiv 2006.11239).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmcodec.networks.blocks import MixBlock, cells_to_image, image_to_cells
from tmcodec.samplers.sample import Denoise
from tmcodec.samplers.schedule import terramind_alpha_bar

if TYPE_CHECKING:
    from tmcodec.networks.mini import MiniConfig

CELL = 4
TIME_CHANNELS = 64
SPREAD = 6
"""Cells on each side over which the strength of texture is averaged: it differs from field to field, not from
token to token."""


def time_features(timesteps: Tensor, channels: int = TIME_CHANNELS) -> Tensor:
    """Return sinusoidal features ``(B, channels)`` of integer timesteps 0..999 ``(B,)``."""
    half = channels // 2
    places = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    freqs = torch.exp(-math.log(10000.0) * places / half)
    angles = timesteps.float()[:, None] * freqs[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def lap_window(device: torch.device | str = "cpu") -> Tensor:
    """Return ``(8, 8)`` weights; squares of those that overlap by half add up to one (Princen-Bradley).

    They are computed on the device that needs them: a copy to it may wait for it.
    """
    places = torch.arange(2 * CELL, dtype=torch.float32, device=device)
    sine = torch.sin(math.pi * (places + 0.5) / (2 * CELL))
    return sine[:, None] * sine


def lap(x: Tensor) -> Tensor:
    """Gather the 8 x 8 pixels around each cell, windowed: ``(B, K, H, W)`` to ``(B, H/4, W/4, 64 K)``.

    Beyond the edges there are zeros.
    """
    b, k, height, width = x.shape
    padded = F.pad(x, (CELL // 2,) * 4)
    parts = F.unfold(padded, 2 * CELL, stride=CELL).view(b, k, -1, height // CELL, width // CELL)
    windowed = parts * lap_window(x.device).flatten().to(x)[:, None, None]
    return windowed.flatten(1, 2).permute(0, 2, 3, 1)


def unlap(cells: Tensor, channels: int) -> Tensor:
    """Add up windowed cells ``(B, h, w, 64 K)`` to ``(B, K, 4 h, 4 w)``; undoes `lap` but at the edges."""
    b, rows, cols, _ = cells.shape
    parts = cells.view(b, rows, cols, channels, -1) * lap_window(cells.device).flatten().to(cells)
    size = ((rows + 1) * CELL, (cols + 1) * CELL)
    folded = F.fold(
        parts.permute(0, 3, 4, 1, 2).reshape(b, -1, rows * cols), size, 2 * CELL, stride=CELL
    )
    half = CELL // 2
    return folded[..., half:-half, half:-half]


class Denoiser(nn.Module):
    """Noisy residual ``(B, K, H, W)``, signal level and features to the clean residual."""

    def __init__(self, cfg: MiniConfig) -> None:
        super().__init__()
        dim, channels = cfg.denoiser_dim, cfg.residual_channels
        self.lapped = cfg.lapped
        area = (2 * CELL if cfg.lapped else CELL) ** 2
        self.embed = nn.Linear(channels * area + cfg.refine, dim)
        self.time = nn.Sequential(nn.Linear(TIME_CHANNELS, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(MixBlock(dim, 5, 2.0) for _ in range(cfg.denoiser_blocks))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, channels * area)
        # Mixes pixels across the borders of cells, so that their lattice does not show.
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels) if cfg.smooth else None
        if self.smooth is not None:
            nn.init.dirac_(self.smooth.weight, groups=channels)
        # How strong texture is differs from place to place far more than its shape: water and towns.
        self.gain = nn.Linear(cfg.refine, channels) if cfg.lapped else None
        if self.gain is not None:
            nn.init.zeros_(self.gain.weight)
            nn.init.constant_(self.gain.bias, math.log(math.e - 1))
        # A window's middle lies up to half a window from the pixel, and what it sees as far from the middle.
        self.halo_pixels = cfg.denoiser_blocks * 2 * CELL + (2 * CELL if cfg.lapped else CELL)
        # Bilinear interpolation reaches one more cell.
        self.gain_halo_pixels = (SPREAD + 1) * CELL if cfg.lapped else 0

    def forward(self, noisy: Tensor, features: Tensor, timesteps: Tensor, signal: Tensor) -> Tensor:
        """Predict the residual.

        Parameters
        ----------
        noisy
            ``(B, K, H, W)``, unit variance.
        features
            ``(B, H/4, W/4, refine)`` from the decoder.
        timesteps
            ``(B,)``, 0..999.
        signal
            ``(B,)``, sqrt(alpha_bar) of each timestep; 0 at pure noise.
        """
        cells = lap(noisy) if self.lapped else image_to_cells(noisy.permute(0, 2, 3, 1), CELL)
        x = self.embed(torch.cat([cells, features.to(cells.dtype)], dim=-1))
        shift = self.time(time_features(timesteps).to(x.dtype))
        for block in self.blocks:
            x = block(x, shift)
        drawn = self.out(self.norm(x))
        if self.lapped:
            clean = unlap(drawn.float(), noisy.shape[1])
        else:
            clean = cells_to_image(drawn, CELL).permute(0, 3, 1, 2)
        if self.smooth is not None:
            clean = self.smooth(clean)
        return clean.float() * signal.view(-1, 1, 1, 1)

    def guess_with(self, features: Tensor) -> Denoise:
        """Return the denoiser as samplers call it, for `features` of the decoder.

        A timestep is read on the CPU, and written to the device by kernels: no step waits for it.
        """
        levels = terramind_alpha_bar()

        def denoise(noisy: Tensor, times: Tensor) -> Tensor:
            signal = float(levels[times.long()].sqrt())
            if signal == 0:
                return torch.zeros_like(noisy)
            filled = partial(torch.full, (len(noisy),), device=noisy.device)
            guess: Tensor = self(
                noisy, features, filled(times.item(), dtype=times.dtype), filled(signal, dtype=levels.dtype)
            )
            return guess

        return denoise

    def strengthen(self, residual: Tensor, features: Tensor) -> Tensor:
        """Return a drawn residual ``(B, K, H, W)`` as strong as the features say; as it is without gains."""
        if self.gain is None:
            return residual
        wanted = F.pad(self.gain(features).float().permute(0, 3, 1, 2), (SPREAD,) * 4, mode="replicate")
        gains = F.softplus(F.avg_pool2d(wanted, 2 * SPREAD + 1, stride=1))
        return residual * F.interpolate(gains, scale_factor=CELL, mode="bilinear", align_corners=False)
