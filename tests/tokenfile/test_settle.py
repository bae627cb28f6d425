"""Elevation tokens that are shorter to code: how far they move, where they stay, what is saved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tmcodec.tokenfile.context.coder import context_decode, context_encode, predictor_of
from tmcodec.tokenfile.context.heights import neighbours, number_to_reflected, reflected_to_number
from tmcodec.tokenfile.context.settle import rough_steps, settle, settle_numbers
from tmcodec.tokenfile.registered import REGISTERED

LEVELS = (8, 8, 8, 6, 5)
SIZE = 15360
DEM = next(bytes.fromhex(sha) for name, sha in REGISTERED.values() if name == "mini-dem-v2")
OTHERS = [bytes.fromhex(sha) for name, sha in REGISTERED.values() if "-dem-" not in name]
WEST = (256, 0, 0, 0, 0, 0)

sides = st.integers(1, 9)
grids = hnp.arrays(np.int32, st.tuples(sides, sides), elements=st.integers(0, SIZE - 1))


def mountains(side: int = 24, seed: int = 0) -> np.ndarray:
    """Return numbers with bends of about a hundred between neighbours."""
    rng = np.random.default_rng(seed)
    return (8000 + np.cumsum(rng.normal(0, 60, (side, side)), axis=0)).astype(np.int32)


def test_numbers_by_hand() -> None:
    # Predicted from the west: 100, then 16 after 13, of which 5 is nearer to 8 above than to nothing.
    numbers = np.array([[100, 113, 121, 119]], np.int32)
    steps = np.array([[1, 8, 8, 1]])
    # 113 is 13 above 100, in eights 16; 121 is 5 above 116, in eights 8; 119 stays.
    assert settle_numbers(numbers, steps, WEST, SIZE).tolist() == [[100, 116, 124, 119]]


def test_half_a_step_goes_away_from_the_prediction_and_none_leaves_the_range() -> None:
    numbers = np.array([[2, 6, 0, 5]], np.int32)
    # 6 is 4 above 2: half of 8, up to 10, which does not exist; 0 is 6 below 6, in eights -2; both stay.
    assert settle_numbers(numbers, np.array([[1, 8, 8, 1]]), WEST, 10).tolist() == [[2, 6, 0, 5]]
    assert settle_numbers(numbers, np.array([[1, 8, 8, 1]]), WEST, 11).tolist() == [[2, 10, 2, 5]]


def test_steps_by_hand() -> None:
    numbers = np.zeros((5, 5), np.int32)
    numbers[2, 2] = 1000
    # In the middle lie the peak, (-2000)^2 twice, and the four beside it, 1000^2 each: of eighteen.
    roughness = np.sqrt((2 * 2000**2 + 4 * 1000**2) / 18)
    assert rough_steps(numbers)[2, 2] == 2 ** int(np.log2(roughness / 8)) == 64


@given(st.integers(-40, 40), st.integers(-40, 40), st.integers(1, 12), st.integers(1, 12))
def test_planes_stay_however_steep(across: int, down: int, rows: int, cols: int) -> None:
    y, x = np.mgrid[:rows, :cols]
    plane = (7000 + across * x + down * y).astype(np.int32)
    inner = rough_steps(plane)[2:-2, 2:-2]  # beyond the edge the plane is mirrored and bends
    assert np.all(inner == 1)


@given(grids)
@settings(max_examples=50, deadline=None)
def test_numbers_move_by_half_a_step_at_most(numbers: np.ndarray) -> None:
    weights = predictor_of(DEM, LEVELS)
    assert weights is not None
    steps = rough_steps(numbers)
    moved = settle_numbers(numbers, steps, weights, SIZE)
    assert np.all(2 * np.abs(moved - numbers) <= steps)
    assert moved.min() >= 0 and moved.max() < SIZE
    # Where one moved, its distance from the prediction is a whole number of steps.
    guess = np.clip(np.tensordot(np.array(weights), neighbours(moved), 1) + 128 >> 8, 0, SIZE - 1)
    assert np.all(((moved - guess) % steps == 0) | (moved == numbers))


def test_mountains_take_fewer_bytes() -> None:
    tokens = number_to_reflected(mountains(), LEVELS)
    settled = settle(tokens, LEVELS, DEM)
    before, after = (context_encode(t, LEVELS, DEM) for t in (tokens, settled))
    assert before is not None and after is not None
    assert len(after) < 0.75 * len(before)
    assert (before[0], after[0]) == (1, 2)  # each with the tables that were trained on its like
    np.testing.assert_array_equal(context_decode(after, settled.shape, LEVELS, DEM), settled)
    numbers = reflected_to_number(settled, LEVELS)
    assert np.abs(numbers - mountains()).max() <= rough_steps(mountains()).max() / 2


@pytest.mark.parametrize("tokenizer", [*OTHERS, b"\0" * 32])
def test_tokens_that_are_no_numbers_stay(tokenizer: bytes) -> None:
    tokens = number_to_reflected(mountains(8), LEVELS)
    assert settle(tokens, LEVELS, tokenizer) is tokens
