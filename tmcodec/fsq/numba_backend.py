"""The kernels in numba, for installs without a C++ compiler. CPU only.

The functions mirror ``csrc/fsq_kernels.h``, without its cache blocks. They take float32: numba has
no bfloat16, and other formats convert exactly (float64 rounds, as the definition says).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from tmcodec.fsq.backends import Kernels, Layer, Scale, Tiling, Weights
from tmcodec.fsq.grid import Grid

LANES = 16

_MOST_THREADS = numba.get_num_threads()  # as many as numba starts; more is an error

Function = TypeVar("Function", bound=Callable[..., None])


def _jit(function: Function) -> Function:
    compiled: Any = njit(nogil=True, cache=True, parallel=True, error_model="numpy")(function)
    return cast(Function, compiled)


@njit(nogil=True, cache=True, inline="always")
def _digit(value: float, thresholds: Any, first: int, count: int) -> int:
    """Count the thresholds that `value` exceeds, by halving where they are many."""
    if count <= 64:
        digit = 0
        for k in range(first, first + count):
            digit += value > thresholds[k]
        return digit
    low, size = first, count
    while size > 0:
        half = size // 2
        if value > thresholds[low + half]:
            low, size = low + half + 1, size - half - 1
        else:
            size = half
    return low - first


@_jit
def _quantize(
    latents: Any, levels: Any, thresholds: Any, shift: Any, span: Any, codes: Any, indices: Any
) -> None:
    outer, dims, inner = latents.shape
    want_codes, want_indices = codes.size > 0, indices.size > 0
    for at in prange(outer * inner):
        o, i = at // inner, at % inner
        first, weight, index = 0, np.int64(1), np.int64(0)
        for c in range(dims):
            digit = _digit(latents[o, c, i], thresholds, first, levels[c] - 1)
            index += digit * weight
            if want_codes:
                codes[o, c, i] = (np.float32(digit) - shift[c]) / span[c]
            weight *= levels[c]
            first += levels[c] - 1
        if want_indices:
            indices[o, i] = index


@_jit
def _dequantize(indices: Any, levels: Any, shift: Any, span: Any, codes: Any) -> None:
    outer, dims, inner = codes.shape
    for at in prange(outer * inner):
        o, i = at // inner, at % inner
        rest = np.int64(indices[o, i])
        for c in range(dims):
            digit = rest % levels[c]  # the floor's remainder, as in Python
            codes[o, c, i] = (np.float32(digit) - shift[c]) / span[c]
            rest = (rest - digit) // levels[c]


@_jit
def _backward(latents: Any, grad_codes: Any, rate: Any, shift: Any, gain: Any, out: Any) -> None:
    outer, dims, inner = latents.shape
    one = np.float32(1)
    for at in prange(outer * inner):
        o, i = at // inner, at % inner
        for c in range(dims):
            e = np.exp(-rate * abs(latents[o, c, i] + shift[c]))
            out[o, c, i] = grad_codes[o, c, i] * (gain[c] * e / ((one + e) * (one + e)))


@_jit
def _project(x: Any, weight: Any, bias: Any, out: Any) -> None:
    """Sum in 16 lanes and then pairwise, so that the bits are those of the compiled kernel."""
    n, dim = x.shape
    dims = weight.shape[0]
    for row in prange(n):
        lanes = np.empty(LANES, np.float32)
        for c in range(dims):
            lanes[:] = 0
            for j in range(0, dim - dim % LANES, LANES):
                for lane in range(LANES):
                    lanes[lane] += x[row, j + lane] * weight[c, j + lane]
            for j in range(dim - dim % LANES, dim):
                lanes[j % LANES] += x[row, j] * weight[c, j]
            half = LANES // 2
            while half > 0:
                for lane in range(half):
                    lanes[lane] += lanes[lane + half]
                half //= 2
            out[row, c] = lanes[0] + bias[c] if bias.size else lanes[0]


@_jit
def _expand(codes: Any, weight: Any, bias: Any, out: Any) -> None:
    n, dims = codes.shape
    dim = out.shape[1]
    for row in prange(n):
        for j in range(dim):
            out[row, j] = bias[j] if bias.size else np.float32(0)
        for c in range(dims):
            value = codes[row, c]
            for j in range(dim):
                out[row, j] += value * weight[c, j]


@_jit
def _normalize(
    raster: Any, mask: Any, mean: Any, std: Any, fill: Any, row_starts: Any, col_starts: Any, tiles: Any
) -> None:
    rows, cols, channels, tile, _ = tiles.shape
    height, width = raster.shape[1:]
    masked = mask.size > 0
    for unit in prange(rows * cols * channels * tile):
        row = unit % tile
        channel = unit // tile % channels
        place = unit // tile // channels
        r, c = place // cols, place % cols
        y = row_starts[r] + row
        for col in range(tile):
            x = col_starts[c] + col
            value = np.float32(fill)
            if 0 <= y < height and 0 <= x < width and not (masked and mask[y, x] == 0):
                z = (np.float32(raster[channel, y, x]) - mean[channel]) / std[channel]
                if z == z:
                    value = z
            tiles[r, c, channel, row, col] = value


@_jit
def _blend(
    tiles: Any, row_starts: Any, col_starts: Any, row_weights: Any, col_weights: Any,
    mask: Any, mean: Any, std: Any, fill: Any, low: Any, high: Any, raster: Any,
) -> None:  # fmt: skip
    rows, cols, channels, tile, _ = tiles.shape
    height, width = raster.shape[1:]
    masked, whole = mask.size > 0, low < high
    for unit in prange(channels * height):
        channel, y = unit // height, unit % height
        sums, weights = np.zeros(width, np.float32), np.zeros(width, np.float32)
        for r in range(rows):
            row = y - row_starts[r]
            if row < 0 or row >= tile:
                continue
            for c in range(cols):
                start = col_starts[c]
                for col in range(max(-start, 0), min(tile, width - start)):
                    weight = row_weights[r, row] * col_weights[c, col]
                    if weight != 0:
                        sums[start + col] += weight * tiles[r, c, channel, row, col]
                        weights[start + col] += weight
        for x in range(width):
            value = sums[x] / weights[x] * std[channel] + mean[channel]
            if value != value or (masked and mask[y, x] == 0):
                value = np.float32(fill)
            if whole:
                value = np.rint(min(max(value, low), high))
            raster[channel, y, x] = value


def _use_torchs_threads() -> None:
    """Follow ``torch.set_num_threads``, e.g. in data loader workers."""
    numba.set_num_threads(max(1, min(torch.get_num_threads(), _MOST_THREADS)))


def _array(tensor: Tensor | None) -> Any:
    """Return a tensor as float32 NumPy; of integers their own type; of None an empty array."""
    if tensor is None:
        return np.empty(0, np.float32)
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _scale(scale: Scale) -> tuple[Any, Any, Any, Any]:
    """Return mask, mean, std and fill as the functions above take them."""
    mask = np.empty((0, 0), np.uint8) if scale.mask is None else scale.mask.numpy()
    return mask, _array(scale.mean), _array(scale.std), np.float32(scale.fill)


class NumbaKernels(Kernels):
    """The kernels' interface in numba; see `tmcodec.fsq.native.NativeKernels`."""

    name = "numba"

    def quantize(
        self, grid: Grid, latents: Tensor, codes: bool = True, indices: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return codes (outer, d, inner) and indices (outer, inner) of latents, as asked for."""
        _use_torchs_threads()
        outer, dims, inner = latents.shape
        code = np.empty((outer, dims, inner) if codes else (0, 0, 0), np.float32)
        index = np.empty((outer, inner) if indices else (0, 0), np.int32)
        if outer * inner:
            constants = grid.level_array, grid.thresholds, grid.code_shift, grid.code_span
            _quantize(_array(latents), *constants, code, index)
        return torch.from_numpy(code) if codes else None, torch.from_numpy(index) if indices else None

    def dequantize(self, grid: Grid, indices: Tensor) -> Tensor:
        """Return codes (outer, d, inner) of int32 indices (outer, inner)."""
        _use_torchs_threads()
        outer, inner = indices.shape
        codes = np.empty((outer, grid.dims, inner), np.float32)
        if outer * inner:
            _dequantize(_array(indices), grid.level_array, grid.code_shift, grid.code_span, codes)
        return torch.from_numpy(codes)

    def backward(self, grid: Grid, latents: Tensor, grad_codes: Tensor) -> Tensor:
        """Return the gradient of latents (outer, d, inner) for that of the codes, float32."""
        _use_torchs_threads()
        out = np.empty(tuple(latents.shape), np.float32)
        if out.size:
            rate = np.float32(grid.grad_rate)
            _backward(_array(latents), _array(grad_codes), rate, grid.grad_shift, grid.grad_gain, out)
        return torch.from_numpy(out).to(latents.dtype)

    def project_quantize(
        self, grid: Grid, x: Tensor, layer: Layer, latents: bool = False, codes: bool = True
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return latents (n, d), codes (n, d), as asked for, and indices (n) of x (n, dim)."""
        _use_torchs_threads()
        out = np.empty((x.shape[0], grid.dims), np.float32)
        if out.size:
            _project(_array(x), _array(layer.weight), _array(layer.bias), out)
        latent = torch.from_numpy(out)
        code, index = self.quantize(grid, latent.unsqueeze(-1), codes, True)
        assert index is not None
        return latent if latents else None, None if code is None else code.squeeze(-1), index.squeeze(-1)

    def dequantize_project(self, grid: Grid, indices: Tensor, layer: Layer, dtype: Any) -> Tensor:
        """Return (n, dim) of `dtype` for indices (n) and a weight (dim, d)."""
        codes = self.dequantize(grid, indices.unsqueeze(-1)).squeeze(-1)
        out = np.empty((indices.numel(), layer.weight.shape[0]), np.float32)
        if out.size:
            _expand(_array(codes), _array(layer.weight.t().contiguous()), _array(layer.bias), out)
        return torch.from_numpy(out).to(dtype)

    def normalize_patchify(self, raster: Tensor, scale: Scale, tiling: Tiling, dtype: Any) -> Tensor:
        """Return tiles (rows, cols, C, tile, tile); see `tmcodec.fsq.rasters.normalize_patchify`."""
        _use_torchs_threads()
        rows, cols = tiling.row_starts.numpy(), tiling.col_starts.numpy()
        tiles = np.empty((rows.size, cols.size, raster.shape[0], tiling.tile, tiling.tile), np.float32)
        if tiles.size:
            _normalize(_array(raster), *_scale(scale), rows, cols, tiles)
        return torch.from_numpy(tiles).to(dtype)

    def blend(
        self, tiles: Tensor, tiling: Tiling, weights: Weights, scale: Scale, size: tuple[int, int], dtype: Any
    ) -> Tensor:
        """Return a raster (C, height, width); see `tmcodec.fsq.rasters.blend`."""
        _use_torchs_threads()
        raster = torch.empty((tiles.shape[2], *size), dtype=dtype)
        low, high = (0, 0) if dtype.is_floating_point else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        limits = np.float32(low), np.float32(high)
        places = (
            tiling.row_starts.numpy(),
            tiling.col_starts.numpy(),
            _array(weights.rows),
            _array(weights.cols),
        )
        if raster.numel():
            _blend(_array(tiles), *places, *_scale(scale), *limits, raster.numpy())
        return raster
