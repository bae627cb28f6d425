"""The constants of one level list as arrays, as every backend reads them. No torch here."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tmcodec.fsq import levels as lv

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Grid:
    """Constants of a product grid; the rules that use them stand in ``csrc/tmcodec.h``.

    Attributes
    ----------
    levels, form
        As given to `make_grid`.
    level_array, basis
        int32, shape (d,).
    thresholds
        Those of channel 0, then of channel 1, ...; float32.
    code_shift, code_span
        ``code = (digit - code_shift) / code_span`` in float32; shape (d,).
    grad_rate, grad_shift, grad_gain
        The squashing's derivative is ``gain * e / (1 + e)**2`` with ``e = exp(-rate * |z + shift|)``.
    """

    levels: tuple[int, ...]
    form: lv.Form
    level_array: Ints
    basis: Ints
    thresholds: Floats
    code_shift: Floats
    code_span: Floats
    grad_rate: float
    grad_shift: Floats
    grad_gain: Floats

    @property
    def dims(self) -> int:
        """Number of channels."""
        return len(self.levels)


def make_grid(levels: Sequence[int], form: str = "sigmoid") -> Grid:
    """Return the constants of a level list; `ValueError` as from `tmcodec.fsq.levels.check_levels`."""
    try:
        whole = tuple(operator.index(level) for level in levels)
    except TypeError:
        raise ValueError(f"levels {levels!r} are not all integers") from None
    return _make_grid(whole, form)


@lru_cache(maxsize=256)
def _make_grid(levels: tuple[int, ...], form: lv.Form) -> Grid:
    lv.check_levels(levels, form)
    scales = np.array([lv.code_scale(level, form) for level in levels], np.float32)
    rate, shift, gain = _gradient_constants(levels, form)
    return Grid(
        levels=levels,
        form=form,
        level_array=np.array(levels, np.int32),
        basis=np.array(lv.basis(levels), np.int32),
        thresholds=np.concatenate([lv.thresholds(level, form) for level in levels]),
        code_shift=scales[:, 0].copy(),
        code_span=scales[:, 1].copy(),
        grad_rate=rate,
        grad_shift=np.array(shift, np.float32),
        grad_gain=np.array(gain, np.float32),
    )


def _gradient_constants(levels: tuple[int, ...], form: lv.Form) -> tuple[float, list[float], list[float]]:
    """sigmoid' = e / (1 + e)^2 with e = exp(-|z|); tanh' = 4 e / (1 + e)^2 with e = exp(-2 |z|)."""
    if form == "sigmoid":
        return 1.0, [0.0] * len(levels), [1.0] * len(levels)
    bounds = [lv.tanh_bound(level) for level in levels]
    gains = [4 * bound.half / (level // 2) for bound, level in zip(bounds, levels, strict=True)]
    return 2.0, [bound.shift for bound in bounds], gains
