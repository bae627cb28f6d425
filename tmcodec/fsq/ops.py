"""The kernels as functions of tensors, differentiable and known to ``torch.compile``.

Each function exists twice: as a custom operator ``torch.ops.tmcodec.*`` with fake and autograd
implementations, and as a plain call of the backend's kernel, which the functions here take where
nothing is compiled or differentiated (a custom operator costs more than a small kernel).

Legend: latents and codes have d channels at ``axis``; indices have their shape without it. Codes
are float32, since n / (L - 1) is no bfloat16 number; indices are int32. ``backend`` is one of
`tmcodec.fsq.backends.NAMES`, None for the fastest there is (custom operators say ``""``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tmcodec.fsq.backends import Kernels, Layer, check_devices, choose
from tmcodec.fsq.grid import Grid, make_grid

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WIDE = (torch.int64, torch.uint32, torch.uint64)
"""Integers that int32 does not hold."""


# --------------------------------------------------------------------------- arguments and layout


def _normal_axis(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} does not exist in {ndim} dimensions")
    return axis % ndim


def _check_latents(latents: Tensor, grid: Grid, axis: int) -> int:
    """Return the normal axis of latents that fit the grid."""
    if latents.dtype not in FLOATS:
        raise TypeError(f"latents must be float32, float64, float16 or bfloat16, not {latents.dtype}")
    axis = _normal_axis(axis, latents.ndim)
    if latents.shape[axis] != grid.dims:
        found = latents.shape[axis]
        raise ValueError(f"latents have {found} channels at axis {axis}, the levels {grid.dims}")
    return axis


def _check_projection(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"x must be float32, float64, float16 or bfloat16, not {x.dtype}")
    if weight.shape != (grid.dims, x.shape[-1]) or (bias is not None and bias.shape != (grid.dims,)):
        raise ValueError(f"weight {tuple(weight.shape)} takes no x {tuple(x.shape)} to {grid.dims} levels")
    check_devices(x, weight, bias)


def _check_expansion(
    indices: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid, dtype: torch.dtype
) -> None:
    _check_indices(indices)
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, not {dtype}")
    fits = weight.ndim == 2 and weight.shape[1] == grid.dims
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(f"weight {tuple(weight.shape)} takes no codes of {grid.dims} levels")
    check_devices(indices, weight, bias)


def _check_indices(indices: Tensor) -> None:
    if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype == torch.bool:
        raise TypeError(f"indices must be integers, not {indices.dtype}")


def _memory_place(tensor: Tensor, axis: int) -> int:
    """Return where the channels lie in memory: `axis`, or in a permuted view the last or second place."""
    for place in (axis, tensor.ndim - 1, 1):
        if place < tensor.ndim and tensor.movedim(axis, place).is_contiguous():
            return place
    return axis


def _to_blocks(tensor: Tensor, axis: int, place: int) -> Tensor:
    """Return (outer, d, inner), contiguous, with the channels at `place`; a view where it can be."""
    moved = tensor.movedim(axis, place).contiguous()
    return moved.view(moved.shape[:place].numel(), moved.shape[place], moved.shape[place + 1 :].numel())


def _from_blocks(blocks: Tensor, like: Tensor, axis: int, place: int) -> Tensor:
    """Undo `_to_blocks`."""
    return blocks.view(like.movedim(axis, place).shape).movedim(place, axis)


def _empty_codes(latents: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Return what `_from_blocks` would, without values."""
    place = _memory_place(latents, axis)
    return latents.new_empty(latents.movedim(axis, place).shape, dtype=dtype).movedim(place, axis)


def _without(shape: torch.Size, axis: int) -> torch.Size:
    return shape[:axis] + shape[axis + 1 :]


def _kernels(tensor: Tensor, grid: Grid | None, backend: str | None) -> Kernels:
    device = str(tensor.device)
    found = choose(device, backend or None)
    return found if grid is None or found.supports(grid) else choose(device, "torch")


def _layer(weight: Tensor, bias: Tensor | None) -> Layer:
    """Return parameters as kernels take them: float32, contiguous."""
    dense = [None if t is None else t.detach().float().contiguous() for t in (weight, bias)]
    assert dense[0] is not None
    return Layer(dense[0], dense[1])


def _as_operator(*tensors: Tensor | None) -> bool:
    """Tell whether a call must be seen by the compiler or by autograd."""
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


# --------------------------------------------------------------------------- plain calls


def _quantize(
    latents: Tensor, grid: Grid, axis: int, backend: str | None, codes: bool, indices: bool
) -> tuple[Tensor | None, Tensor | None]:
    axis = _check_latents(latents, grid, axis)
    place = _memory_place(latents, axis)
    blocks = _to_blocks(latents.detach(), axis, place)
    code, index = _kernels(latents, grid, backend).quantize(grid, blocks, codes, indices)
    return (
        None if code is None else _from_blocks(code, latents, axis, place),
        None if index is None else index.view(_without(latents.shape, axis)),
    )


def _wrapped(indices: Tensor, grid: Grid) -> Tensor:
    """Return int32 indices with the same digits; wider ones wrap at the codebook, not at 32 bits."""
    if indices.dtype not in WIDE:
        return indices.to(torch.int32)
    size, wide = math.prod(grid.levels), indices.to(torch.int64)
    rest = wide.remainder(size)
    if indices.dtype == torch.uint64:  # from 2^63 on it is negative now, 2^64 less
        rest = torch.where(wide < 0, (rest + 2**64 % size).remainder(size), rest)
    return rest.to(torch.int32)


def _dequantize(indices: Tensor, grid: Grid, axis: int, backend: str | None) -> Tensor:
    _check_indices(indices)
    axis = _normal_axis(axis, indices.ndim + 1)
    before, after = indices.shape[:axis], indices.shape[axis:]
    blocks = _wrapped(indices, grid).contiguous().view(before.numel(), after.numel())
    return _kernels(indices, grid, backend).dequantize(grid, blocks).view(*before, grid.dims, *after)


def _backward(grad_codes: Tensor, latents: Tensor, grid: Grid, axis: int, backend: str | None) -> Tensor:
    axis = _check_latents(latents, grid, axis)
    check_devices(latents, grad_codes)
    place = _memory_place(latents, axis)
    blocks = _to_blocks(latents.detach(), axis, place)
    grads = _to_blocks(grad_codes.detach().float(), axis, place)
    found = _kernels(latents, grid, backend).backward(grid, blocks, grads)
    return _from_blocks(found, latents, axis, place)


def _project_quantize(
    x: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid, backend: str | None, latents: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    _check_projection(x, weight, bias, grid)
    rows = x.detach().contiguous().view(x.shape[:-1].numel(), x.shape[-1])
    project = _kernels(x, grid, backend).project_quantize
    latent, code, index = project(grid, rows, _layer(weight, bias), latents, True)
    assert code is not None
    shape = (*x.shape[:-1], grid.dims)
    return None if latent is None else latent.view(shape), code.view(shape), index.view(x.shape[:-1])


def _dequantize_project(
    indices: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid, dtype: torch.dtype, backend: str | None
) -> Tensor:
    _check_expansion(indices, weight, bias, grid, dtype)
    flat = _wrapped(indices, grid).contiguous().view(-1)
    out = _kernels(indices, grid, backend).dequantize_project(grid, flat, _layer(weight, bias), dtype)
    return out.view(*indices.shape, weight.shape[0])


# --------------------------------------------------------------------------- custom operators

# Their schemas are written out: torch 2.4 infers none from annotations that are strings.


@torch.library.custom_op(
    "tmcodec::fsq_quantize",
    mutates_args=(),
    schema="(Tensor latents, SymInt[] levels, str form, SymInt axis, str backend) -> (Tensor, Tensor)",
)
def _quantize_op(
    latents: Tensor, levels: Sequence[int], form: str, axis: int, backend: str
) -> tuple[Tensor, Tensor]:
    codes, indices = _quantize(latents, make_grid(levels, form), axis, backend, True, True)
    assert codes is not None
    assert indices is not None
    return codes, indices


@_quantize_op.register_fake
def _(latents: Tensor, levels: Sequence[int], form: str, axis: int, backend: str) -> tuple[Tensor, Tensor]:
    axis = _check_latents(latents, make_grid(levels, form), axis)
    indices = latents.new_empty(_without(latents.shape, axis), dtype=torch.int32)
    return _empty_codes(latents, axis, torch.float32), indices


@torch.library.custom_op(
    "tmcodec::fsq_indices",
    mutates_args=(),
    schema="(Tensor latents, SymInt[] levels, str form, SymInt axis, str backend) -> Tensor",
)
def _indices_op(latents: Tensor, levels: Sequence[int], form: str, axis: int, backend: str) -> Tensor:
    indices = _quantize(latents, make_grid(levels, form), axis, backend, False, True)[1]
    assert indices is not None
    return indices


@_indices_op.register_fake
def _(latents: Tensor, levels: Sequence[int], form: str, axis: int, backend: str) -> Tensor:
    axis = _check_latents(latents, make_grid(levels, form), axis)
    return latents.new_empty(_without(latents.shape, axis), dtype=torch.int32)


@torch.library.custom_op(
    "tmcodec::fsq_dequantize",
    mutates_args=(),
    schema="(Tensor indices, SymInt[] levels, str form, SymInt axis, str backend) -> Tensor",
)
def _dequantize_op(indices: Tensor, levels: Sequence[int], form: str, axis: int, backend: str) -> Tensor:
    return _dequantize(indices, make_grid(levels, form), axis, backend)


@_dequantize_op.register_fake
def _(indices: Tensor, levels: Sequence[int], form: str, axis: int, backend: str) -> Tensor:
    axis = _normal_axis(axis, indices.ndim + 1)
    return indices.new_empty((*indices.shape[:axis], len(levels), *indices.shape[axis:]), dtype=torch.float32)


@torch.library.custom_op(
    "tmcodec::fsq_backward",
    mutates_args=(),
    schema="(Tensor grad_codes, Tensor latents, SymInt[] levels, str form, SymInt axis, str backend)"
    " -> Tensor",
)
def _backward_op(
    grad_codes: Tensor, latents: Tensor, levels: Sequence[int], form: str, axis: int, backend: str
) -> Tensor:
    return _backward(grad_codes, latents, make_grid(levels, form), axis, backend)


@_backward_op.register_fake
def _(
    grad_codes: Tensor, latents: Tensor, levels: Sequence[int], form: str, axis: int, backend: str
) -> Tensor:
    return _empty_codes(latents, _normal_axis(axis, latents.ndim), latents.dtype)


def _save_latents(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    latents, *ctx.arguments = inputs
    ctx.save_for_backward(latents)
    ctx.mark_non_differentiable(output[1])


def _quantize_gradients(
    ctx: Any, grad_codes: Tensor, grad_indices: Tensor | None
) -> tuple[Tensor | None, ...]:
    (latents,) = ctx.saved_tensors
    return _backward_op(grad_codes, latents, *ctx.arguments), None, None, None, None


_quantize_op.register_autograd(_quantize_gradients, setup_context=_save_latents)


@torch.library.custom_op(
    "tmcodec::fsq_project_quantize",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, SymInt[] levels, str form, str backend)"
    " -> (Tensor, Tensor, Tensor)",
)
def _project_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, levels: Sequence[int], form: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    latents, codes, indices = _project_quantize(x, weight, bias, make_grid(levels, form), backend, True)
    assert latents is not None
    return codes, indices, latents


@_project_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, levels: Sequence[int], form: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    _check_projection(x, weight, bias, make_grid(levels, form))
    shape = (*x.shape[:-1], len(levels))
    indices = x.new_empty(x.shape[:-1], dtype=torch.int32)
    return x.new_empty(shape, dtype=torch.float32), indices, x.new_empty(shape, dtype=torch.float32)


def _save_projection(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, *ctx.arguments = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _project_gradients(
    ctx: Any, grad_codes: Tensor, grad_indices: Tensor | None, grad_latents: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight, latents = ctx.saved_tensors
    levels, form, backend = ctx.arguments
    grad = _backward_op(grad_codes, latents, levels, form, -1, backend)
    rows = grad.reshape(-1, weight.shape[0])
    grad_x = (grad @ weight.float()).to(x.dtype)
    grad_weight = (rows.t() @ x.reshape(-1, x.shape[-1]).float()).to(weight.dtype)
    grad_bias = None if ctx.bias_dtype is None else rows.sum(0).to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, None, None, None


_project_op.register_autograd(_project_gradients, setup_context=_save_projection)


@torch.library.custom_op(
    "tmcodec::fsq_dequantize_project",
    mutates_args=(),
    schema="(Tensor indices, Tensor weight, Tensor? bias, SymInt[] levels, str form, ScalarType dtype,"
    " str backend) -> Tensor",
)
def _expand_op(
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    levels: Sequence[int],
    form: str,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    return _dequantize_project(indices, weight, bias, make_grid(levels, form), dtype, backend)


@_expand_op.register_fake
def _(
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    levels: Sequence[int],
    form: str,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    _check_expansion(indices, weight, bias, make_grid(levels, form), dtype)
    return indices.new_empty((*indices.shape, weight.shape[0]), dtype=dtype)


def _save_expansion(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    indices, weight, bias, levels, form, _, backend = inputs
    ctx.arguments = (levels, form, -1, backend)
    ctx.weight_dtype, ctx.bias_dtype = weight.dtype, None if bias is None else bias.dtype
    ctx.save_for_backward(indices)


def _expand_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    codes = _dequantize_op(indices, *ctx.arguments)
    rows = grad.reshape(-1, grad.shape[-1]).float()
    grad_weight = (rows.t() @ codes.reshape(-1, codes.shape[-1])).to(ctx.weight_dtype)
    grad_bias = None if ctx.bias_dtype is None else rows.sum(0).to(ctx.bias_dtype)
    return None, grad_weight, grad_bias, None, None, None, None


_expand_op.register_autograd(_expand_gradients, setup_context=_save_expansion)


# --------------------------------------------------------------------------- the functions to call


def quantize(
    latents: Tensor, levels: Sequence[int], form: str = "sigmoid", axis: int = -1, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return codes and indices of latents in one pass.

    Parameters
    ----------
    latents
        float32, float64, float16 or bfloat16 with d = ``len(levels)`` channels at `axis`, any strides.
        float32 decides: float64 is rounded to it. NaN has digit 0 (and its gradient is NaN).
    levels
        Values of each channel, e.g. ``(8, 8, 8, 6, 5)``.
    form
        ``"sigmoid"`` or ``"tanh"``; see `tmcodec.fsq.levels`.
    axis
        Where the channels are: -1 for channel-last, 1 for channel-first.
    backend
        See `tmcodec.fsq.backends.choose`.

    Returns
    -------
    codes, indices
        float32 of the shape of `latents`, int32 of that shape without `axis`. The gradient of codes
        passes straight through the rounding to the squashing (sigmoid or tanh).

    Raises
    ------
    ValueError, TypeError
        If shape, levels or data type do not fit.
    BackendError
        If `backend` cannot run here.
    """
    if _as_operator(latents):
        codes, indices = _quantize_op(latents, list(levels), form, axis, backend or "")
        return codes, indices
    code, index = _quantize(latents, make_grid(levels, form), axis, backend, True, True)
    assert code is not None
    assert index is not None
    return code, index


def quantize_indices(
    latents: Tensor, levels: Sequence[int], form: str = "sigmoid", axis: int = -1, backend: str | None = None
) -> Tensor:
    """Return the indices of `quantize` only."""
    if torch.compiler.is_compiling():
        return _indices_op(latents, list(levels), form, axis, backend or "")
    index = _quantize(latents, make_grid(levels, form), axis, backend, False, True)[1]
    assert index is not None
    return index


def dequantize(
    indices: Tensor, levels: Sequence[int], form: str = "sigmoid", axis: int = -1, backend: str | None = None
) -> Tensor:
    """Return float32 codes of integer `indices`; channels at `axis` of the result.

    Indices outside the codebook wrap: digits are ``indices // basis % levels``.
    """
    if torch.compiler.is_compiling():
        return _dequantize_op(indices, list(levels), form, axis, backend or "")
    return _dequantize(indices, make_grid(levels, form), axis, backend)


def project_quantize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    levels: Sequence[int],
    form: str = "sigmoid",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return codes and indices of ``linear(x, weight, bias)``, reading `x` once.

    Parameters
    ----------
    x
        ``(..., dim)``, any float type.
    weight, bias
        ``(d, dim)`` and ``(d,)`` or None, as of `torch.nn.Linear`. Sums run in float32, in an order
        that differs between backends: a latent within rounding of an edge may fall on either side.
    levels, form, backend
        As in `quantize`.

    Returns
    -------
    codes, indices
        float32 ``(..., d)`` and int32 ``(...)``. The gradient is that of `quantize` after the layer.
    """
    if _as_operator(x, weight, bias):
        codes, indices, _ = _project_op(x, weight, bias, list(levels), form, backend or "")
        return codes, indices
    _, codes, indices = _project_quantize(x, weight, bias, make_grid(levels, form), backend, False)
    return codes, indices


def dequantize_project(
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    levels: Sequence[int],
    form: str = "sigmoid",
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """Return ``linear(codes of indices, weight, bias)`` as `dtype`, without storing the codes.

    `weight` is ``(dim, d)``, `bias` ``(dim,)`` or None; the result ``(..., dim)``. It has a gradient
    for both.
    """
    if _as_operator(weight, bias):
        return _expand_op(indices, weight, bias, list(levels), form, dtype, backend or "")
    return _dequantize_project(indices, weight, bias, make_grid(levels, form), dtype, backend)
