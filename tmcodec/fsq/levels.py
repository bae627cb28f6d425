"""Arithmetic of finite scalar quantization: levels, basis, digits, indices, thresholds.

Legend: ``levels`` L_1..L_d, ``digits`` n_i in 0..L_i-1, ``basis`` cumprod(1, L_1, ..),
``index`` sum n_i basis_i (first digit fastest), ``codes`` what a decoder reads.

Two forms squash a latent z before it is rounded:

``"sigmoid"``
    TerraMind's: n = round(sigmoid(z) (L - 1)), code n / (L - 1) in [0, 1].
``"tanh"``
    The FSQ paper's (arXiv 2309.15505, appendix A.1): n - L // 2 = round(tanh(z + shift) half - offset),
    code (n - L // 2) / (L // 2) in [-1, 1]; see `tanh_bound`.

No torch here: the token file needs these numbers too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Form = Literal["sigmoid", "tanh"]
FORMS: tuple[Form, ...] = ("sigmoid", "tanh")

MAX_LEVEL = 65536
"""Most values of one channel."""

TANH_EPS = 1e-3
"""How far beyond the outermost values tanh reaches; the paper's and vector-quantize-pytorch's."""


def codebook_size(levels: Sequence[int]) -> int:
    """Return the number of distinct tokens, the product of `levels`."""
    return math.prod(levels)


def check_levels(levels: Sequence[int], form: str = "sigmoid") -> None:
    """Refuse what the quantizer cannot do.

    Raises
    ------
    ValueError
        If there is no level, one lies outside 2..65536, the codebook does not fit int32, or
        `form` is unknown.
    """
    if not levels or any(not 2 <= level <= MAX_LEVEL for level in levels):
        raise ValueError(f"levels {tuple(levels)} must be one or more integers in 2..{MAX_LEVEL}")
    if codebook_size(levels) > np.iinfo(np.int32).max:
        raise ValueError(f"levels {tuple(levels)} make {codebook_size(levels)} tokens, more than int32 holds")
    if form not in FORMS:
        raise ValueError(f"form {form!r} is none of {', '.join(FORMS)}")


def basis(levels: Sequence[int]) -> tuple[int, ...]:
    """Return the weight of each digit in an index: ``(1, L1, L1*L2, ...)``.

    >>> basis((8, 8, 8, 6, 5))
    (1, 8, 64, 512, 3072)
    """
    return tuple(math.prod(levels[:i]) for i in range(len(levels)))


def digits_to_indices(digits: npt.ArrayLike, levels: Sequence[int]) -> npt.NDArray[np.int32]:
    """Pack digits ``(..., d)`` into int32 indices ``(...)``."""
    weights = np.asarray(basis(levels), dtype=np.int64)
    return (np.asarray(digits, dtype=np.int64) * weights).sum(axis=-1).astype(np.int32)


def indices_to_digits(indices: npt.ArrayLike, levels: Sequence[int]) -> npt.NDArray[np.int32]:
    """Unpack indices ``(...)`` into int32 digits ``(..., d)``; the inverse of `digits_to_indices`."""
    column = np.asarray(indices, dtype=np.int64)[..., None]
    return (column // np.asarray(basis(levels)) % np.asarray(levels)).astype(np.int32)


# --------------------------------------------------------------------------- thresholds


def thresholds(level: int, form: Form = "sigmoid") -> npt.NDArray[np.float32]:
    """Return the ``level - 1`` latent values above which a digit is at least 1, 2, ...

    Rounding a squashed latent exceeds k where the latent exceeds the inverse of the squashing at
    the half-way point k + 1/2. Rounding is half to even, so a latent exactly on an edge below an
    even value goes up: that threshold is the next float32 below, and one rule,
    ``digit = sum(z > t)``, holds for all. NaN exceeds nothing: its digit is 0.
    """
    edges, goes_up = _sigmoid_edges(level) if form == "sigmoid" else _tanh_edges(level)
    values = np.array(edges, dtype=np.float32)
    return np.where(goes_up, np.nextafter(values, np.float32(-np.inf)), values)


def _sigmoid_edges(level: int) -> tuple[list[float], list[bool]]:
    """Return the logits of (k + 1/2) / (L - 1) and whether k + 1 is even."""
    edges = [(k + 0.5) / (level - 1) for k in range(level - 1)]
    return [math.log(p / (1 - p)) for p in edges], [k % 2 == 1 for k in range(level - 1)]


def _tanh_edges(level: int) -> tuple[list[float], list[bool]]:
    """Return the same for rounded values from -(L // 2) on; their parity decides ties."""
    half, offset, shift = tanh_bound(level)
    below = [k - level // 2 for k in range(level - 1)]
    return [math.atanh((n + 0.5 + offset) / half) - shift for n in below], [n % 2 == 1 for n in below]


class TanhBound(NamedTuple):
    """Constants of ``bound(z) = tanh(z + shift) * half - offset``."""

    half: float
    offset: float
    shift: float


def tanh_bound(level: int) -> TanhBound:
    """Return the tanh form's constants for one level.

    half = (L - 1)(1 + eps)/2; offset = 1/2 for even L, so that L whole numbers lie in the range;
    shift = atanh(offset / half), so that z = 0 gives bound 0. This is vector-quantize-pytorch's
    form. The paper's listing has 1 - eps and tan in place of 1 + eps and atanh: its tan is an
    approximation under which bound(0) is not 0, and with 1 - eps and atanh two levels have no
    finite shift.
    """
    half = (level - 1) * (1 + TANH_EPS) / 2
    offset = 0.5 if level % 2 == 0 else 0.0
    return TanhBound(half, offset, math.atanh(offset / half))


def code_scale(level: int, form: Form = "sigmoid") -> tuple[int, int]:
    """Return shift and span of ``code = (digit - shift) / span``."""
    return (0, level - 1) if form == "sigmoid" else (level // 2, level // 2)
