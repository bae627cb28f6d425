"""Whole tokens tried in the place of others: what a search by gradients does not find in class maps.

A digit more or less makes another outline of other classes; slopes say little there, and single digits get
stuck. Tokens around fit often, as what they draw goes on here, and are the cheapest of all to code. So each
place tries its neighbours' tokens, mixtures with them, and steps of several digits at once. Places three
apart try at the same time, and what did not pay in the 3 x 3 tokens around is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tmcodec.codec.search.places import LEAST, around, near

if TYPE_CHECKING:
    from tmcodec.codec.search.descent import Descent

TURN = 4
"""Rounds of descent, and leaps, that take turns."""

IDLE = 4
"""Turns without any change after which there is nothing left to find."""

APART = 3
"""Tokens between places that try at once: the squares in which changes are judged do not overlap."""

AROUND = ((0, -1), (-1, 0), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""Rows and columns to the tokens around."""

FARTHEST = 2
"""Most that one digit steps."""

Cost = Callable[[Tensor], Tensor]


def run_and_leap(descent: Descent, digits: Tensor, effort: int) -> Tensor:
    """Return the digits ``(B, rows, cols, d)`` after so many rounds of descent and leaps together."""
    others, idle = other_tokens(descent.levels), 0
    for leaps, count in turns(effort):
        before = digits
        digits = leap(descent.cost, digits, others, count) if leaps else descent.run(digits, count)
        idle = idle + 1 if torch.equal(before, digits) else 0
        if idle == IDLE:
            break
    return digits


def turns(effort: int) -> Iterator[tuple[bool, int]]:
    """Yield whether it is the turn of leaps, and how many of them or of rounds.

    >>> list(turns(10))
    [(False, 4), (True, 4), (False, 2)]
    """
    for done in range(0, effort, TURN):
        yield done // TURN % 2 == 1, min(TURN, effort - done)


def leap(cost: Cost, digits: Tensor, others: Iterator[Callable[[Tensor], Tensor]], count: int) -> Tensor:
    """Return the digits ``(B, rows, cols, d)`` after each place has tried so many tokens.

    Parameters
    ----------
    cost
        Says what digits cost, each token ``(B, rows, cols)``.
    digits
        int64.
    others
        Say what to try instead of digits, as `other_tokens`.
    count
        Tokens that each place tries; each takes ten calls of `cost`.
    """
    for instead in islice(others, count):
        now = cost(digits)
        tried = instead(digits)
        for row in range(APART):
            for col in range(APART):
                here = torch.zeros_like(now, dtype=torch.bool)
                here[:, row::APART, col::APART] = True
                trial = torch.where(here[..., None], tried, digits)
                if torch.equal(trial, digits):  # as on open water
                    continue
                then = cost(trial)
                better = here & (around(then - now) < -LEAST)
                digits = torch.where(better[..., None], trial, digits)
                now = torch.where(near(better), then, now)
    return digits


def other_tokens(levels: Sequence[int], seed: int = 0) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield what to try, for ever: tokens around, mixtures with them, steps; by fours."""
    generator = torch.Generator().manual_seed(seed)
    top = torch.tensor(levels, device="cpu") - 1

    def draw(shape: torch.Size, high: int) -> Tensor:
        return torch.randint(high, shape, generator=generator, device="cpu")

    def mixed(digits: Tensor, place: tuple[int, int]) -> Tensor:
        return torch.where(draw(digits.shape, 2).to(digits.device) > 0, moved(digits, *place), digits)

    def stepped(digits: Tensor) -> Tensor:
        step = draw(digits.shape, 2 * FARTHEST + 1) - FARTHEST
        step = (step * draw(digits.shape, 2)).to(digits)
        return torch.minimum((digits + step).clamp_min(0), top.to(digits))

    for places in cycle((AROUND[:4], AROUND[4:])):
        yield from (lambda digits, place=place: moved(digits, *place) for place in places)
        yield from (lambda digits, place=place: mixed(digits, place) for place in places)
        yield from (stepped for _ in places)


def moved(digits: Tensor, down: int, right: int) -> Tensor:
    """Return at each place the digits so many rows down and columns to the right; beyond the edge its own."""
    rows, cols = (
        torch.arange(size, device=digits.device).add(by).clamp(0, size - 1)
        for size, by in zip(digits.shape[1:3], (down, right), strict=True)
    )
    return digits[:, rows][:, :, cols]
