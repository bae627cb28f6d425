"""The two steps between rasters and tiles where real bytes move: in one pass each.

`normalize_patchify` cuts a raster block into normalised tiles, `blend` puts overlapping decoded
tiles back together. Both run on the backends of `tmcodec.fsq.backends` and give the same bits on
all of them (on CUDA too).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmcodec.fsq.backends import Scale, Tiling, Weights, check_devices, choose

RASTER_DTYPES = (torch.float32, torch.uint8, torch.uint16, torch.int16)
TILE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def blend_weights(starts: Sequence[int], tile: int) -> Tensor:
    """Return weights ``(len(starts), tile)``, float32, that rise and fall where neighbours overlap.

    Parameters
    ----------
    starts
        First pixel of each tile along one axis, ascending.
    tile
        Side of a tile in pixels.
    """
    from tmcodec.rasters.blend import ramp

    weights = np.ones((len(starts), tile), np.float32)
    for left, right in zip(range(len(starts)), range(1, len(starts)), strict=False):
        shared = max(starts[left] + tile - starts[right], 0)
        if shared:
            weights[right, :shared] *= ramp(shared)
            weights[left, tile - shared :] *= ramp(shared)[::-1]
    return torch.from_numpy(weights)


def normalize_patchify(
    raster: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    tile: int,
    row_starts: Sequence[int],
    col_starts: Sequence[int],
    mask: Tensor | None = None,
    fill: float = 0.0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """Cut a raster into tiles of ``(value - mean) / std``.

    Parameters
    ----------
    raster
        ``(C, H, W)``: uint8, uint16, int16 or float32.
    mean, std
        C numbers each; float32 decides.
    tile
        Side of a tile in pixels.
    row_starts, col_starts
        First row of each row of tiles, first column of each column of tiles; a tile may lie partly
        or wholly outside the raster.
    mask
        ``(H, W)`` bool or uint8, 0 where values are unknown.
    fill
        What unknown, NaN and outside pixels become; 0 is the mean.
    dtype
        float32, float16 or bfloat16.
    backend
        See `tmcodec.fsq.backends.choose`.

    Returns
    -------
    Tensor
        ``(rows, cols, C, tile, tile)``.

    Raises
    ------
    ValueError, TypeError
        If shapes or data types do not fit.
    """
    run = _normalize_op if torch.compiler.is_compiling() else _normalize
    places = list(row_starts), list(col_starts)
    return run(raster, list(mean), list(std), tile, *places, mask, fill, dtype, backend or "")


def blend(
    tiles: Tensor,
    row_starts: Sequence[int],
    col_starts: Sequence[int],
    row_weights: Tensor,
    col_weights: Tensor,
    height: int,
    width: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mask: Tensor | None = None,
    fill: float = 0.0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """Average overlapping tiles into a raster: ``sum(w * tile) / sum(w) * std + mean``.

    Parameters
    ----------
    tiles
        ``(rows, cols, C, tile, tile)``: float32, float16 or bfloat16.
    row_starts, col_starts
        As in `normalize_patchify`.
    row_weights, col_weights
        ``(rows, tile)`` and ``(cols, tile)``, not negative, e.g. of `blend_weights`; a pixel's weight
        is the product. Sums run in float32, over tiles in order, row by row.
    height, width
        Size of the raster.
    mean, std
        C numbers each; None for 0 and 1.
    mask
        ``(H, W)`` bool or uint8, 0 where the result is `fill`.
    fill
        Value of masked pixels, of pixels without weight, and where the result is NaN.
    dtype
        float32, uint8, uint16 or int16. Integers are rounded half to even and saturate.
    backend
        See `tmcodec.fsq.backends.choose`.

    Returns
    -------
    Tensor
        ``(C, height, width)``.

    Raises
    ------
    ValueError, TypeError
        If shapes or data types do not fit.
    """
    channels = tiles.shape[2] if tiles.ndim == 5 else 0
    means = [0.0] * channels if mean is None else list(mean)
    stds = [1.0] * channels if std is None else list(std)
    run = _blend_op if torch.compiler.is_compiling() else _blend
    places = list(row_starts), list(col_starts), row_weights, col_weights, height, width
    return run(tiles, *places, means, stds, mask, fill, dtype, backend or "")


# --------------------------------------------------------------------------- plain calls and operators


def _numbers(
    mean: Sequence[float], std: Sequence[float], channels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    for values in (mean, std):
        if len(values) != channels:
            raise ValueError(f"{len(values)} numbers for {channels} channels")
    mean, std = ([float(v) for v in values] for values in (mean, std))
    return (
        torch.tensor(mean, dtype=torch.float32, device=device),
        torch.tensor(std, dtype=torch.float32, device=device),
    )


def _places(starts: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([int(s) for s in starts], dtype=torch.int64, device=device)


def _mask_bytes(mask: Tensor | None, values: Tensor, height: int, width: int) -> Tensor | None:
    """Return the mask of `values` as kernels take it."""
    if mask is None:
        return None
    check_devices(values, mask)
    if mask.shape != (height, width) or mask.dtype not in (torch.bool, torch.uint8):
        got = f"{mask.dtype} {tuple(mask.shape)}"
        raise ValueError(f"mask must be bool or uint8 {(height, width)}, not {got}")
    return mask.contiguous().view(torch.uint8)


def _check_dtype(what: str, dtype: torch.dtype, allowed: tuple[torch.dtype, ...]) -> None:
    if dtype not in allowed:
        raise TypeError(f"{what} must be one of {', '.join(map(str, allowed))}, not {dtype}")


def _normalize(
    raster: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    tile: int,
    row_starts: Sequence[int],
    col_starts: Sequence[int],
    mask: Tensor | None,
    fill: float,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    _check_dtype("raster", raster.dtype, RASTER_DTYPES)
    _check_dtype("dtype", dtype, TILE_DTYPES)
    if raster.ndim != 3 or tile < 0:
        raise ValueError(f"raster must be (C, H, W) and tile not negative, not {tuple(raster.shape)}, {tile}")
    channels, height, width = raster.shape
    device = raster.device
    scale = Scale(*_numbers(mean, std, channels, device), _mask_bytes(mask, raster, height, width), fill)
    tiling = Tiling(tile, _places(row_starts, device), _places(col_starts, device))
    kernels = choose(str(device), backend or None)
    return kernels.normalize_patchify(raster.detach().contiguous(), scale, tiling, dtype)


def _blend(
    tiles: Tensor,
    row_starts: Sequence[int],
    col_starts: Sequence[int],
    row_weights: Tensor,
    col_weights: Tensor,
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    mask: Tensor | None,
    fill: float,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    _check_dtype("tiles", tiles.dtype, TILE_DTYPES)
    _check_dtype("dtype", dtype, RASTER_DTYPES)
    grid = (len(row_starts), len(col_starts))
    if tiles.ndim != 5 or tiles.shape[:2] != grid or tiles.shape[3] != tiles.shape[4]:
        raise ValueError(f"tiles must be (rows, cols, C, tile, tile), not {tuple(tiles.shape)}")
    rows, cols, channels, tile, _ = tiles.shape
    if row_weights.shape != (rows, tile) or col_weights.shape != (cols, tile):
        raise ValueError(f"weights must be {(rows, tile)} and {(cols, tile)}")
    device = tiles.device
    scale = Scale(*_numbers(mean, std, channels, device), _mask_bytes(mask, tiles, height, width), fill)
    tiling = Tiling(tile, _places(row_starts, device), _places(col_starts, device))
    weights = Weights(*(w.to(device, torch.float32).contiguous() for w in (row_weights, col_weights)))
    kernels = choose(str(device), backend or None)
    return kernels.blend(tiles.detach().contiguous(), tiling, weights, scale, (height, width), dtype)


_normalize_op = torch.library.custom_op(
    "tmcodec::normalize_patchify",
    _normalize,
    mutates_args=(),
    schema="(Tensor raster, float[] mean, float[] std, SymInt tile, SymInt[] row_starts, SymInt[] col_starts,"
    " Tensor? mask, float fill, ScalarType dtype, str backend) -> Tensor",
)
_blend_op = torch.library.custom_op(
    "tmcodec::blend",
    _blend,
    mutates_args=(),
    schema="(Tensor tiles, SymInt[] row_starts, SymInt[] col_starts, Tensor row_weights, Tensor col_weights,"
    " SymInt height, SymInt width, float[] mean, float[] std, Tensor? mask, float fill, ScalarType dtype,"
    " str backend) -> Tensor",
)


# Operators pass all their arguments by place; these read the ones that decide the result's shape.


@_normalize_op.register_fake
def _(raster: Tensor, *arguments: Any) -> Tensor:
    tile, row_starts, col_starts, dtype = (arguments[i] for i in (2, 3, 4, 7))
    return raster.new_empty((len(row_starts), len(col_starts), raster.shape[0], tile, tile), dtype=dtype)


@_blend_op.register_fake
def _(tiles: Tensor, *arguments: Any) -> Tensor:
    height, width, dtype = (arguments[i] for i in (4, 5, 10))
    return tiles.new_empty((tiles.shape[2], height, width), dtype=dtype)
