"""Means over scenes with bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean over scenes.

    Attributes
    ----------
    mean
        Of the finite values; None without any.
    low, high
        Ends of the 95 % interval: percentiles of the means of 10,000 draws of as many scenes with
        replacement. None below two scenes.
    count
        Scenes.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int


def interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Return mean and percentile bootstrap interval (Efron, 1979) of one value a scene."""
    found = np.array([v for v in values if math.isfinite(v)], np.float64)
    if not found.size:
        return Interval(None, None, None, 0)
    mean = float(found.mean())
    if found.size < 2:
        return Interval(mean, None, None, 1)
    rng = np.random.default_rng(seed)
    # In parts: ten thousand draws of ten thousand scenes would be 800 MB.
    parts = max(1, found.size * RESAMPLES // 2**22)
    means = np.concatenate(
        [found[rng.integers(found.size, size=(n, found.size))].mean(axis=1) for n in _split(RESAMPLES, parts)]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), int(found.size))


def _split(total: int, parts: int) -> list[int]:
    return [total // parts + (i < total % parts) for i in range(parts)]
