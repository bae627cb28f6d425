"""Weights stored as their difference to an embedded tokenizer's: a third of the bytes, or less.

A tokenizer that was trained on from another one is near to it. Its file names the base, in the header's
strings ``base`` and ``base_sha256``, and leaves out the tensors that are equal. A tensor NAME that moved is
stored as

- ``NAME.steps``, uint8: whole steps of -7 to 7, row by row, plus 8, two in a byte, the first one in the low
  half; and
- ``NAME.scale``, float16 ``(rows,)``: the size of a row's step, rows being those of the first axis;

its values are the base's plus steps times scale, rounded once to half precision. That arithmetic is exact in
float64, so the tensors, and with them the tokenizer's content hash, are the same on every machine. Tensors
under their own name are stored whole. numpy alone, since headers are read without torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Half = npt.NDArray[np.float16]
Array = npt.NDArray[np.generic]

STEPS, SCALE = ".steps", ".scale"
MOST = 7
"""Largest step, up and down."""
SHARES = np.arange(0.4, 1.001, 0.05)
"""Scales tried, as shares of the one that no difference exceeds."""


def pack_difference(tensor: Half, base: Half) -> tuple[npt.NDArray[np.uint8], Half]:
    """Return steps and scales of ``tensor - base``; `unpack_difference` gives the tensor back, nearly.

    Each row has the scale, of a few, whose squared error is least.

    Parameters
    ----------
    tensor, base
        float16 of one shape, at least one axis.

    Returns
    -------
    steps
        uint8 ``(ceil(n / 2),)``.
    scale
        float16 ``(rows,)``.
    """
    rows = len(tensor)
    gap = (tensor.astype(np.float64) - base.astype(np.float64)).reshape(rows, -1)
    most = np.abs(gap).max(1, initial=0.0) / MOST
    scale, least = most.astype(np.float16), np.full(rows, np.inf)
    steps = np.zeros(gap.shape, np.int8)
    for share in SHARES:
        tried = (most * share).astype(np.float16)
        size = np.where(tried > 0, tried, 1).astype(np.float64)[:, None]
        found = np.clip(np.rint(gap / size), -MOST, MOST) * (tried > 0)[:, None]
        error = ((gap - found * size) ** 2).sum(1)
        better = error < least
        scale[better], steps[better], least[better] = tried[better], found[better], error[better]
    flat = np.append(steps.ravel(), [0] * (steps.size % 2)).astype(np.uint8) + np.uint8(MOST + 1)
    return (flat[0::2] & 15) | (flat[1::2] << 4), scale


def unpack_difference(steps: Array, scale: Array, base: Half) -> Half:
    """Return the tensor, float16 of the base's shape.

    Raises
    ------
    ValueError
        If steps and scales do not fit the base.
    """
    rows, size = len(base), base.size
    if steps.dtype != np.uint8 or steps.shape != (-(-size // 2),):
        raise ValueError(f"steps are {steps.dtype} {steps.shape} for {size} numbers")
    if scale.dtype != np.float16 or scale.shape != (rows,):
        raise ValueError(f"scales are {scale.dtype} {scale.shape} for {rows} rows")
    flat = np.stack([steps & np.uint8(15), steps >> np.uint8(4)], 1).ravel()[:size]
    whole = flat.astype(np.float64).reshape(rows, -1) - (MOST + 1)
    with np.errstate(over="ignore", invalid="ignore"):  # the loader refuses what is not finite, by name
        moved = base.astype(np.float64).reshape(rows, -1) + whole * scale.astype(np.float64)[:, None]
        return moved.astype(np.float16).reshape(base.shape)


def subtract(tensors: Mapping[str, Half], base: Mapping[str, Half]) -> dict[str, Array]:
    """Return what a file stores of `tensors`, given all tensors of the base.

    Matrices and kernels become differences; vectors, which are few numbers, and what the base has not are
    stored whole; what is equal is left out.
    """
    stored: dict[str, Array] = {}
    for name, tensor in tensors.items():
        same = name in base and base[name].shape == tensor.shape
        if same and np.array_equal(base[name], tensor):
            continue
        if same and tensor.ndim > 1:
            stored[name + STEPS], stored[name + SCALE] = pack_difference(tensor, base[name])
        else:
            stored[name] = tensor
    return stored


def add(stored: Mapping[str, Array], base: Mapping[str, Half]) -> dict[str, Array]:
    """Return all tensors of a file that `subtract` made.

    Raises
    ------
    ValueError
        If a difference is to nothing, or does not fit.
    """
    tensors: dict[str, Array] = dict(base)
    for name, values in stored.items():
        own = name.removesuffix(STEPS)
        if name.endswith(SCALE) and name.removesuffix(SCALE) + STEPS in stored:
            continue
        if own == name:
            tensors[name] = values
        elif own in stored or own not in base or own + SCALE not in stored or not base[own].ndim:
            raise ValueError(f"{own} has no base, no scale, or is there twice")
        else:
            tensors[own] = unpack_difference(values, stored[own + SCALE], base[own])
    return tensors
