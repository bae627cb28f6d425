"""Companding fused with what lies next to it in the small tokenizers, on the CPU, without gradients.

The first and the last step of `tmcodec.networks.mini` touch every value of the picture, and in plain
PyTorch several times. Here each is one pass of the native kernels (``csrc/curve_kernels.h``). Where
there are none, the functions return None and the network does its own steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tmcodec.fsq.backends import check_devices, choose

if TYPE_CHECKING:
    from tmcodec.fsq.native import NativeKernels


class Curve(NamedTuple):
    """A compander's constants; see `tmcodec.networks.compand.Compander`.

    Mean and standard deviation are float32 with one value a channel.
    """

    kind: str
    origin: float
    knee: float
    mean: Tensor
    std: Tensor


def compand_cells(picture: Tensor, curve: Curve, cell: int) -> Tensor | None:
    """Compand a physical picture, average 2x2 pixels and gather them into cells.

    Parameters
    ----------
    picture
        ``(B, C, H, W)``, H and W multiples of ``2 * cell``.
    curve
        Its ``kind`` ``"linear"`` or ``"sqrt"``.
    cell
        Side of a cell in averaged pixels.

    Returns
    -------
    Tensor or None
        float32 ``(B, H / 2cell, W / 2cell, cell * cell * C)``, channels fastest:
        ``image_to_cells(avg_pool2d(compress(picture), 2))``, each operation rounded to float32 in that
        order, on every machine alike. None where no kernel fits.
    """
    kernels = _kernels(picture, curve)
    if kernels is None or picture.shape[2] % (2 * cell) or picture.shape[3] % (2 * cell):
        return None
    return kernels.compand_cells(picture.contiguous(), curve, cell)


def expand_double(half: Tensor, curve: Curve, low: float, high: float) -> Tensor | None:
    """Double a normalised picture bilinearly and expand it to physical values within ``low .. high``.

    Returns
    -------
    Tensor or None
        float32 ``(B, C, 2H, 2W)`` of ``(B, C, H, W)``, within a few roundings of
        ``expand(interpolate(half, scale_factor=2, mode="bilinear"))``; None where no kernel fits.
    """
    kernels = _kernels(half, curve)
    return None if kernels is None else kernels.expand_double(half.contiguous(), curve, low, high)


def _kernels(values: Tensor, curve: Curve) -> NativeKernels | None:
    """Return the native kernels where they can do this call, which nobody differentiates or traces."""
    if curve.kind not in ("linear", "sqrt") or values.dtype != torch.float32 or values.device.type != "cpu":
        return None
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return None
    kernels = choose("cpu")
    if kernels.name != "native":
        return None
    check_devices(values, curve.mean, curve.std)
    from tmcodec.fsq.native import NativeKernels

    assert isinstance(kernels, NativeKernels)
    return kernels
