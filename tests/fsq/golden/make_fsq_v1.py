"""Make fsq_v1.json: latents at and around every edge, with their digits and indices.

    python tests/fsq/golden/make_fsq_v1.py

Independent of tmcodec: edges come from 60-digit decimal arithmetic, digits from exact comparisons.
Latents are ``float.hex`` texts, since decimal texts hide the last bit.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal, getcontext
from pathlib import Path

import numpy as np

getcontext().prec = 60
HALF = Decimal(1) / 2
EPS = Decimal("0.001")
LEVELS = [(8, 8, 8, 6, 5), (7, 5, 5, 5, 5), (2, 3, 4), (16,), (5, 100), (2, 2, 2, 2, 2, 2, 2, 2, 2)]
SPECIAL = [
    0.0,
    -0.0,
    math.nan,
    math.inf,
    -math.inf,
    1e30,
    -1e30,
    2.0**-149,
    -(2.0**-149),
    2.0**-126,
    -(2.0**-126),
]


def nearest_float32(value: Decimal) -> np.float32:
    """Round once: through float64 it could be rounded twice."""
    guess = np.float32(float(value))
    around = [np.nextafter(guess, np.float32(s)) for s in (-np.inf, np.inf)] + [guess]
    return min(around, key=lambda f: abs(Decimal(float(f)) - value))


def atanh(x: Decimal) -> Decimal:
    return ((1 + x) / (1 - x)).ln() / 2


def edge(level: int, k: int, form: str) -> tuple[Decimal, bool]:
    """Return where digit k becomes k + 1, and whether the tie goes up (half to even)."""
    if form == "sigmoid":
        p = (k + HALF) / (level - 1)
        return (p / (1 - p)).ln(), k % 2 == 1
    half = (level - 1) * (1 + EPS) / 2
    offset = HALF if level % 2 == 0 else Decimal(0)
    value = k - level // 2
    return atanh((value + HALF + offset) / half) - atanh(offset / half), value % 2 == 1


def decimal_thresholds(level: int, form: str) -> list[np.float32]:
    """Return the thresholds of the rule ``digit = sum(z > t)``."""
    found = []
    for k in range(level - 1):
        value, up = edge(level, k, form)
        t = nearest_float32(value)
        found.append(np.nextafter(t, np.float32(-np.inf)) if up else t)
    return found


def channel_values(level: int, form: str) -> list[float]:
    values = []
    for k in range(level - 1):
        t = nearest_float32(edge(level, k, form)[0])
        below, above = (np.nextafter(t, np.float32(s)) for s in (-np.inf, np.inf))
        values += [float(v) for v in (np.nextafter(below, np.float32(-np.inf)), below, t, above)]
    return SPECIAL + values


def digit(z: float, thresholds: list[np.float32]) -> int:
    return sum(z > float(t) for t in thresholds)


def case(levels: tuple[int, ...], form: str) -> dict[str, object]:
    columns = [channel_values(level, form) for level in levels]
    rows = max(map(len, columns))
    # Shift the channels against each other, so that neighbours of an edge meet other digits.
    latents = [[column[(i + 3 * c) % len(column)] for c, column in enumerate(columns)] for i in range(rows)]
    thresholds = [decimal_thresholds(level, form) for level in levels]
    digits = [[digit(z, t) for z, t in zip(row, thresholds, strict=True)] for row in latents]
    basis = [math.prod(levels[:c]) for c in range(len(levels))]
    return {
        "levels": levels,
        "form": form,
        "latents": [[z.hex() for z in row] for row in latents],
        "digits": digits,
        "indices": [sum(n * b for n, b in zip(row, basis, strict=True)) for row in digits],
    }


if __name__ == "__main__":
    cases = [case(levels, form) for form in ("sigmoid", "tanh") for levels in LEVELS]
    lines = ",\n".join(json.dumps(c) for c in cases)
    Path(__file__).with_name("fsq_v1.json").write_text(f"[\n{lines}\n]\n")
