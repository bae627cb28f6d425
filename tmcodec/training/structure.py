"""Losses that look at neighbourhoods: gradients, structural similarity at several scales, spectra."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tmcodec.errors import ConfigError
from tmcodec.training.losses import Loss, register
from tmcodec.training.pair import Pair, masked_mean


@register("gradient")
class Gradient(Loss):
    """Absolute error of the differences between neighbours, both ways, where both are valid."""

    def forward(self, pair: Pair) -> Tensor:
        miss, valid = pair.plain_guess - pair.plain_truth, pair.valid
        along = masked_mean(miss.diff(dim=-1).abs(), valid[..., 1:] & valid[..., :-1])
        down = masked_mean(miss.diff(dim=-2).abs(), valid[..., 1:, :] & valid[..., :-1, :])
        return (along + down) / 2


def structural_similarity(a: Tensor, b: Tensor, span: float, side: int) -> Tensor:
    """Return the SSIM map of ``(B, C, H, W)``, uniform windows of `side` pixels that lie inside the picture.

    Wang et al. 2004, with unbiased variances as scikit-image has them; ``(B, C, H - side + 1, W - side +
    1)``.
    """
    first, second = (0.01 * span) ** 2, (0.03 * span) ** 2

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, side, stride=1)

    # Around a common centre, so that squares of large means do not cancel.
    centre = b.mean((2, 3), keepdim=True).detach()
    x, y = a - centre, b - centre
    unbias = side**2 / (side**2 - 1)
    ma, mb = mean(x), mean(y)
    va, vb = ((mean(t * t) - m * m) * unbias for t, m in ((x, ma), (y, mb)))
    cov = (mean(x * y) - ma * mb) * unbias
    ma, mb = ma + centre, mb + centre
    luminance = (2 * ma * mb + first) / (ma * ma + mb * mb + first)
    return luminance * (2 * cov + second) / (va + vb + second)


@register("structure")
class MultiScaleStructure(Loss):
    """One minus the structural similarity of normalised bands, averaged over `scales` halvings.

    Parameters
    ----------
    scales
        How many; each halves the picture by 2x2 means. Scales smaller than the window are left out.
    side
        Of the uniform window, pixels, at most that of the crops; windows with a masked pixel are left out.
    span
        What SSIM calls the data range, in standard deviations.
    """

    def __init__(self, scales: int = 3, side: int = 7, span: float = 4.0) -> None:
        super().__init__()
        if scales < 1 or side < 3:
            raise ConfigError("loss structure needs at least one scale and windows of at least 3 pixels")
        self.scales, self.side, self.span = scales, side, span

    def forward(self, pair: Pair) -> Tensor:
        guess, truth, valid = pair.plain_guess, pair.plain_truth, pair.valid.float()
        parts = []
        for _ in range(self.scales):
            if min(guess.shape[-2:]) < self.side:
                break
            similar = structural_similarity(guess, truth, self.span, self.side)
            whole = F.avg_pool2d(valid, self.side, stride=1) > 1 - 0.5 / self.side**2
            parts.append(masked_mean(1 - similar, whole))
            guess, truth = F.avg_pool2d(guess, 2), F.avg_pool2d(truth, 2)
            valid = (F.avg_pool2d(valid, 2) > 0.9).float()
        if not parts:
            size = " x ".join(map(str, guess.shape[-2:]))
            raise ConfigError(f"loss structure: windows of {self.side} pixels do not fit crops of {size}")
        return torch.stack(parts).mean(0)


def log_spectrum(x: Tensor, floor: float) -> Tensor:
    """Return ``log(power + floor)`` of ``(B, C, H, W)`` after a Hann window: ``(B, C, H, W // 2 + 1)``.

    Power is that of the orthonormal transform, so white noise of unit variance has 9 / 64 everywhere, the
    mean square of the window.
    """
    rows, cols = (torch.hann_window(n, device=x.device, dtype=x.dtype) for n in x.shape[-2:])
    spectrum = torch.fft.rfft2(x * rows[:, None] * cols, norm="ortho")
    return torch.log(spectrum.real.square() + spectrum.imag.square() + floor)


@register("spectrum")
class Spectrum(Loss):
    """Absolute error of the log power spectrum: a lattice is a peak that the truth does not have.

    Blind to where things are, so it does not stand alone. Masked pixels are 0 in both pictures before
    the transform.

    Parameters
    ----------
    floor
        Power below which nothing is compared, in squared standard deviations.
    """

    def __init__(self, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, pair: Pair) -> Tensor:
        a, b = (log_spectrum(x, self.floor) for x in (pair.plain_guess, pair.plain_truth))
        return (a - b).abs().flatten(1).mean(1)
