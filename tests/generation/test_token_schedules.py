"""Token schedules: sums, parts, and the values that others publish."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmcodec.errors import GenerationError
from tmcodec.generation.schedules import (
    TOKEN_SCHEDULES,
    cosine_schedule,
    half_cosine_schedule,
    linear_schedule,
    token_schedule,
)


@given(st.sampled_from(sorted(TOKEN_SCHEDULES)), st.integers(0, 500), st.integers(1, 600))
def test_parts_add_up_and_none_is_empty(name: str, total: int, steps: int) -> None:
    parts = TOKEN_SCHEDULES[name](total, steps)
    assert sum(parts) == total
    assert len(parts) == min(total, steps)
    assert all(part >= 1 for part in parts)


@given(st.integers(1, 500), st.integers(1, 100))
def test_linear_is_an_integer_ramp_cut_up_largest_part_first(total: int, steps: int) -> None:
    ramp = np.diff([total * i // steps for i in range(steps + 1)])
    assert linear_schedule(total, steps) == sorted((int(n) for n in ramp if n), reverse=True)


@pytest.mark.parametrize("steps", [2, 4, 8, 12])
def test_cosine_leaves_the_share_of_the_paper_masked(steps: int) -> None:
    left = 196 - np.cumsum(cosine_schedule(196, steps))
    expected = [196 * math.cos(math.pi / 2 * (i + 1) / steps) for i in range(steps)]
    assert np.abs(left - expected).max() <= 0.5


def test_half_cosine_by_hand() -> None:
    # (1 + cos(pi i / 4)) / 2 = 0.8536, 0.5, 0.1464 of 196 stay masked: 167, 98, 29.
    assert half_cosine_schedule(196, 4) == [29, 69, 69, 29]


def test_maskgit_takes_cosine_and_others_linear() -> None:
    assert token_schedule(None, "maskgit", 16, 4) == [1, 4, 5, 6]
    assert token_schedule(None, "roar", 16, 4) == [4, 4, 4, 4]
    assert token_schedule(None, "nearest", 16, 4) == [4, 4, 4, 4]
    assert token_schedule("linear", "maskgit", 16, 4) == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("name", "order", "steps", "message"),
    [
        (None, "rora", 4, "choose one of nearest, roar, maskgit"),
        ("sine", "roar", 4, "choose one of linear, cosine"),
        (None, "roar", 0, "0 decoding steps"),
        (None, "roar", 5000, "5000 decoding steps"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused(
    name: str | None, order: str, steps: int, message: str
) -> None:
    with pytest.raises(GenerationError, match=message):
        token_schedule(name, order, 16, steps)
