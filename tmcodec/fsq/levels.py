"""Integer arithmetic of finite scalar quantization: levels, basis, digits, indices, thresholds.

Legend: ``levels`` L_1..L_d, ``digits`` n_i in 0..L_i-1, ``codes`` n_i/(L_i-1) in [0, 1],
``basis`` cumprod(1, L_1, ..), ``index`` sum n_i basis_i (first digit fastest). This is
TerraMind's sigmoid form; the FSQ paper (arXiv 2309.15505) uses tanh and codes in [-1, 1].

No torch here: the token file needs these numbers too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def codebook_size(levels: Sequence[int]) -> int:
    """Return the number of distinct tokens, the product of `levels`."""
    return math.prod(levels)


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


def thresholds(level: int) -> npt.NDArray[np.float32]:
    """Return the ``level - 1`` latent values above which a digit is at least 1, 2, ...

    ``round(sigmoid(z) * (L - 1)) > k`` where z exceeds ``logit((k + 1/2) / (L - 1))``. Rounding
    is half to even, so a latent exactly on an odd edge goes up: that threshold is the next
    float32 below, and one rule, ``digit = sum(z > t)``, holds for all.
    """
    edges = [(k + 0.5) / (level - 1) for k in range(level - 1)]
    values = np.array([math.log(p / (1 - p)) for p in edges], dtype=np.float32)
    values[1::2] = np.nextafter(values[1::2], np.float32(-np.inf))
    return values
