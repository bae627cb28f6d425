"""How many tokens each decoding step fills in. Integers only.

Linear: equal parts. Cosine: MaskGIT's (arXiv 2202.04200), few tokens first and many at the end; after step i
of S the share cos(pi/2 * i/S) is still masked. Half-cosine: the one of 4M and TerraTorch, few tokens at both
ends; (1 + cos(pi * i/S)) / 2 is still masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral

from tmcodec.errors import GenerationError
from tmcodec.texts import shown

ORDERS = ("nearest", "roar", "maskgit")
"""ROAR fills in tokens in random order. The others draw all that are missing and keep some: MaskGIT the
likeliest, `nearest` those nearest to what the network expects."""

MAX_STEPS = 4096


def linear_schedule(total: int, steps: int) -> list[int]:
    """Return `steps` equal parts of `total`, the larger ones first, as TerraTorch's linear schedule.

    >>> linear_schedule(10, 4)
    [3, 3, 2, 2]
    """
    steps = _checked(total, steps)
    part, rest = divmod(total, steps) if steps else (0, 0)
    return [part + (i < rest) for i in range(steps)]


def cosine_schedule(total: int, steps: int) -> list[int]:
    """Return MaskGIT's parts of `total`.

    >>> cosine_schedule(16, 4)
    [1, 4, 5, 6]
    """
    steps = _checked(total, steps)
    return _parts(total, [math.cos(math.pi / 2 * i / steps) for i in range(1, steps)])


def half_cosine_schedule(total: int, steps: int) -> list[int]:
    """Return the parts of `total` that 4M and TerraTorch call cosine; a step of theirs may be empty.

    >>> half_cosine_schedule(16, 4)
    [2, 6, 6, 2]
    """
    steps = _checked(total, steps)
    return _parts(total, [(1 + math.cos(math.pi * i / steps)) / 2 for i in range(1, steps)])


TOKEN_SCHEDULES: dict[str, Callable[[int, int], list[int]]] = {
    "linear": linear_schedule,
    "cosine": cosine_schedule,
    "half-cosine": half_cosine_schedule,
}


def token_schedule(name: str | None, order: str, total: int, steps: int) -> list[int]:
    """Return how many of `total` tokens each step fills in.

    Parameters
    ----------
    name
        Key of `TOKEN_SCHEDULES`; None is cosine for MaskGIT and linear for the others.
    order
        One of `ORDERS`.
    total
        Tokens to fill in.
    steps
        Decoding steps; no more than `total` are taken.

    Returns
    -------
    list of int
        Every one at least 1, together `total`; empty where `total` is 0.

    Raises
    ------
    GenerationError
        If a name is unknown or `steps` is not in 1..4096.
    """
    if order not in ORDERS:
        raise GenerationError(f"unknown schedule {order!r}; choose one of {', '.join(ORDERS)}")
    chosen = name or ("cosine" if order == "maskgit" else "linear")
    if chosen not in TOKEN_SCHEDULES:
        raise GenerationError(
            f"unknown token schedule {chosen!r}; choose one of {', '.join(TOKEN_SCHEDULES)}"
        )
    return TOKEN_SCHEDULES[chosen](total, steps)


def _checked(total: int, steps: int) -> int:
    """Return the steps that are taken: one token each at least."""
    if not isinstance(steps, Integral) or not 1 <= steps <= MAX_STEPS:
        raise GenerationError(f"{shown(steps)} decoding steps; give 1 to {MAX_STEPS}, a whole number")
    return min(steps, total)


def _parts(total: int, masked: list[float]) -> list[int]:
    """Return the parts between shares that are still masked, each at least 1."""
    left, parts = total, []
    for i, share in enumerate(masked):
        after = len(masked) - i  # steps still to come, a token each
        keep = min(max(round(total * share), after), left - 1)
        parts.append(left - keep)
        left = keep
    return [*parts, left] if total else []
