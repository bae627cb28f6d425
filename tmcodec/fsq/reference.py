"""Finite scalar quantization in plain PyTorch: the definition that all kernels are compared with.

Quantizing counts decision thresholds (see `tmcodec.fsq.levels.thresholds`), so no exponential
decides a token and every backend gives the same digits for the same float. Functions are paired:
`latents_to_digits` and `codes_of_digits`, `digits_to_indices` and `indices_to_digits`.
Channels are the last axis unless stated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tmcodec.fsq.backends import Kernels, Layer, Scale, Tiling, Weights
from tmcodec.fsq.grid import Grid


@lru_cache(maxsize=1024)
def _constant(grid: Grid, name: str, device: torch.device) -> Tensor:
    """Return one array of the grid as a tensor; copied to a device once."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training
        return torch.from_numpy(getattr(grid, name).copy()).to(device)


def latents_to_digits(latents: Tensor, grid: Grid) -> Tensor:
    """Return int64 digits of latents ``(..., d)``; float32 decides whatever the input's dtype."""
    values = latents.float()
    thresholds = _constant(grid, "thresholds", latents.device).split([level - 1 for level in grid.levels])
    found = [
        torch.bucketize(z.contiguous(), t.contiguous(), right=False)
        for z, t in zip(values.unbind(-1), thresholds, strict=True)
    ]
    # bucketize puts NaN behind all edges; here it exceeds none.
    return torch.stack(found, dim=-1).masked_fill(values.isnan(), 0)


def digits_to_codes(digits: Tensor, grid: Grid) -> Tensor:
    """Return float32 codes of digits ``(..., d)``."""
    shift, span = (_constant(grid, name, digits.device) for name in ("code_shift", "code_span"))
    return (digits - shift) / span


def codes_to_digits(codes: Tensor, grid: Grid) -> Tensor:
    """Return int64 digits of codes ``(..., d)``, which may be rounded to half precision."""
    shift, span = (_constant(grid, name, codes.device) for name in ("code_shift", "code_span"))
    return (codes.float() * span + shift).round().long()


def digits_to_indices(digits: Tensor, grid: Grid) -> Tensor:
    """Pack digits ``(..., d)`` into int32 indices ``(...)``; sums run in integers."""
    return (digits * _constant(grid, "basis", digits.device)).sum(-1, dtype=torch.int64).int()


def indices_to_digits(indices: Tensor, grid: Grid) -> Tensor:
    """Unpack indices ``(...)`` into int64 digits ``(..., d)``."""
    basis, levels = (_constant(grid, name, indices.device) for name in ("basis", "level_array"))
    return indices.long().unsqueeze(-1) // basis % levels


def squash(latents: Tensor, grid: Grid) -> Tensor:
    """Return in float32 what the rounding rounds, on the scale of the codes."""
    z = latents.float()
    if grid.form == "sigmoid":
        return z.sigmoid()
    # grad_gain is 4 half / (L // 2). The offset is left out: only the gradient is used.
    shift, gain = (_constant(grid, name, latents.device) for name in ("grad_shift", "grad_gain"))
    return (z + shift).tanh() * (gain / 4)


def quantize(latents: Tensor, grid: Grid) -> Tensor:
    """Return float32 codes, exact; the gradient passes straight through to the squashing."""
    squashed = squash(latents, grid)
    nothing = squashed - squashed.detach()  # 0 with a gradient; NaN where the latent is
    return digits_to_codes(latents_to_digits(latents, grid), grid) + nothing.masked_fill(nothing.isnan(), 0)


class TorchKernels(Kernels):
    """The kernels' interface in plain PyTorch, on any device; see `tmcodec.fsq.native.NativeKernels`."""

    name = "torch"

    def quantize(
        self, grid: Grid, latents: Tensor, codes: bool = True, indices: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return codes (outer, d, inner) and indices (outer, inner) of latents, as asked for."""
        digits = latents_to_digits(latents.movedim(1, -1), grid)
        code = digits_to_codes(digits, grid).movedim(-1, 1).contiguous() if codes else None
        return code, digits_to_indices(digits, grid) if indices else None

    def dequantize(self, grid: Grid, indices: Tensor) -> Tensor:
        """Return codes (outer, d, inner) of int32 indices (outer, inner)."""
        return digits_to_codes(indices_to_digits(indices, grid), grid).movedim(-1, 1).contiguous()

    def backward(self, grid: Grid, latents: Tensor, grad_codes: Tensor) -> Tensor:
        """Return the gradient of latents (outer, d, inner) for that of the codes, float32."""
        z = latents.movedim(1, -1).float()
        shift, gain = (_constant(grid, name, latents.device) for name in ("grad_shift", "grad_gain"))
        e = torch.exp(-grid.grad_rate * (z + shift).abs())
        return (grad_codes * (gain * e / (1 + e).square()).movedim(-1, 1)).to(latents.dtype).contiguous()

    def project_quantize(
        self, grid: Grid, x: Tensor, layer: Layer, latents: bool = False, codes: bool = True
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return latents (n, d), codes (n, d), as asked for, and indices (n) of x (n, dim)."""
        with torch.autocast(x.device.type, enabled=False):
            latent = F.linear(x.float(), *layer)
        digits = latents_to_digits(latent, grid)
        code = digits_to_codes(digits, grid) if codes else None
        return latent if latents else None, code, digits_to_indices(digits, grid)

    def dequantize_project(self, grid: Grid, indices: Tensor, layer: Layer, dtype: Any) -> Tensor:
        """Return (n, dim) of `dtype` for indices (n) and a weight (dim, d)."""
        codes = digits_to_codes(indices_to_digits(indices, grid), grid)
        with torch.autocast(indices.device.type, enabled=False):
            return F.linear(codes, *layer).to(dtype)

    def normalize_patchify(self, raster: Tensor, scale: Scale, tiling: Tiling, dtype: Any) -> Tensor:
        """Return tiles (rows, cols, C, tile, tile); see `tmcodec.fsq.rasters.normalize_patchify`."""
        z = (raster.float() - scale.mean[:, None, None]) / scale.std[:, None, None]
        z = _fill_unknown(z, scale)
        tile, tops, lefts = tiling.tile, tiling.row_starts.tolist(), tiling.col_starts.tolist()
        shape = (len(tops), len(lefts), raster.shape[0], tile, tile)
        tiles = torch.full(shape, scale.fill, dtype=dtype, device=raster.device)
        for r, top in enumerate(tops):
            rows, place_rows = _overlap(top, tile, raster.shape[1])
            for c, left in enumerate(lefts):
                cols, place_cols = _overlap(left, tile, raster.shape[2])
                tiles[r, c, :, place_rows, place_cols] = z[:, rows, cols].to(dtype)
        return tiles

    def blend(
        self, tiles: Tensor, tiling: Tiling, weights: Weights, scale: Scale, size: tuple[int, int], dtype: Any
    ) -> Tensor:
        """Return a raster (C, height, width); see `tmcodec.fsq.rasters.blend`."""
        sums = torch.zeros((tiles.shape[2], *size), device=tiles.device)
        total = torch.zeros(size, device=tiles.device)
        for r, top in enumerate(tiling.row_starts.tolist()):
            rows, from_rows = _overlap(top, tiling.tile, size[0])
            for c, left in enumerate(tiling.col_starts.tolist()):
                cols, from_cols = _overlap(left, tiling.tile, size[1])
                weight = weights.rows[r, from_rows, None] * weights.cols[c, from_cols]
                value = weight * tiles[r, c, :, from_rows, from_cols].float()
                sums[:, rows, cols] += torch.where(weight != 0, value, 0.0)
                total[rows, cols] += weight
        value = sums / total * scale.std[:, None, None] + scale.mean[:, None, None]
        return _to_raster(_fill_unknown(value, scale), dtype)


def _overlap(start: int, length: int, size: int) -> tuple[slice, slice]:
    """Return where start..start+length lies in 0..size, and the same part counted from `start`."""
    first, last = min(max(start, 0), size), min(max(start + length, 0), size)
    return slice(first, last), slice(first - start, last - start)


def _fill_unknown(values: Tensor, scale: Scale) -> Tensor:
    known = ~values.isnan() if scale.mask is None else ~values.isnan() & (scale.mask != 0)
    return torch.where(known, values, values.new_tensor(scale.fill))


def _to_raster(values: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return values.to(dtype)
    limits = torch.iinfo(dtype)
    return values.clamp(limits.min, limits.max).round().to(torch.int32).to(dtype)
