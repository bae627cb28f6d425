"""Choose among tokens that mean nearly the same height those that are short to code.

An elevation token is a height on a scale fine enough for flat land; in the mountains, where the ground
between two tokens bends by a hundred metres, its last digits are noise that costs two bits a token. There a
height may move by a little of these bends, to a round distance from what the coder expects: rate-distortion
optimised quantization, as encoders of video do it. The stream and its decoders know nothing of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tmcodec.tokenfile.context.coder import predictor_of
from tmcodec.tokenfile.context.heights import (
    Levels,
    Tokens,
    neighbours_at,
    number_to_reflected,
    reflected_to_number,
)

SHARE = 8
"""A step is at most this part of the roughness, so that a height moves by a sixteenth of it at most."""


def settle(tokens: Tokens, levels: Levels, tokenizer: bytes) -> Tokens:
    """Return tokens that mean nearly the same and are shorter to code.

    Parameters
    ----------
    tokens
        int32 (rows, cols) of a chunk.
    levels
        FSQ levels.
    tokenizer
        SHA-256 of its weights, which finds the tables.

    Returns
    -------
    ndarray of int32
        The same shape. Only tokens that the tables call numbers change: for all others nothing is known of
        which tokens mean nearly the same.
    """
    predictor = predictor_of(tokenizer, levels)
    if predictor is None:
        return tokens
    numbers = reflected_to_number(tokens, levels)
    settled = settle_numbers(numbers, rough_steps(numbers), predictor, math.prod(levels))
    return number_to_reflected(settled, levels)


def rough_steps(numbers: Tokens) -> NDArray[np.int64]:
    """Return how coarse each number may be: the largest power of two in an eighth of the roughness, or 1.

    The roughness is the root mean square of the second differences, across and down, at the 3 x 3 places
    around. A plane has none, however steep: the decoder draws it to a fraction of a step.
    """
    rows, cols = numbers.shape
    padded = np.pad(numbers.astype(np.int64), 2, mode="reflect" if min(rows, cols) > 2 else "edge")
    middle = 2 * padded[1:-1, 1:-1]
    across = padded[1:-1, :-2] + padded[1:-1, 2:] - middle
    down = padded[:-2, 1:-1] + padded[2:, 1:-1] - middle
    squares = across * across + down * down
    total = sum(squares[r : r + rows, c : c + cols] for r in range(3) for c in range(3))  # of 18
    steps = np.ones((rows, cols), np.int64)
    while np.any(coarser := 18 * np.square(2 * SHARE * steps) <= total):
        steps[coarser] *= 2
    return steps


def settle_numbers(
    numbers: Tokens, steps: NDArray[np.int64], weights: tuple[int, ...], size: int
) -> Tokens:
    """Move each number to the nearest whole number of steps from what is predicted of those before it.

    Parameters
    ----------
    numbers
        int32 (rows, cols) in ``range(size)``.
    steps
        int64 (rows, cols), 1 or above; where it is 1, and where the result would leave the range, a number
        stays.
    weights
        Six, in 256ths; see `tmcodec.tokenfile.context.heights.neighbours`.
    size
        The codebook's.
    """
    out: list[list[int]] = []
    for line, coarse in zip(numbers.tolist(), steps.tolist(), strict=True):
        out.append(line)
        for c, step in enumerate(coarse):
            if step > 1:
                near = neighbours_at(out, len(out) - 1, c)
                guess = sum(k * x for k, x in zip(weights, near, strict=True)) + 128 >> 8
                guess = min(max(guess, 0), size - 1)
                error = line[c] - guess
                moved = guess + ((2 * abs(error) + step) // (2 * step)) * (step if error > 0 else -step)
                line[c] = moved if 0 <= moved < size else line[c]
    return np.array(out, np.int32).reshape(numbers.shape)
