"""Tokens that are numbers: predict them from their neighbours, and code how far the guess was off.

The elevation tokenizer's digits are a number in a reflected mixed radix (`tmcodec.networks.height`).
Digits of neighbouring heights tell little; the height itself is nearly a plane. So the token is turned
into its number, predicted by a weighted mean of six neighbours, and replaced by the folded error, a
token of the same codebook whose slow digits are nearly always 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Levels = tuple[int, ...]


def reflected_to_number(tokens: Tokens, levels: Levels) -> Tokens:
    """Return the numbers whose reflected digits the tokens are: int32, same shape."""
    number = np.zeros_like(tokens)
    weight = math.prod(levels)
    for level in reversed(levels):
        weight //= level
        shown = tokens // weight % level
        # The faster digits run backwards below every odd value.
        digit = np.where(number % 2 == 1, level - 1 - shown, shown)
        number = number * level + digit
    return number.astype(np.int32)


def number_to_reflected(numbers: Tokens, levels: Levels) -> Tokens:
    """Invert `reflected_to_number`."""
    tokens, above = np.zeros_like(numbers), np.zeros_like(numbers)
    weight = math.prod(levels)
    for level in reversed(levels):
        weight //= level
        digit = numbers // weight % level
        tokens += np.where(above % 2 == 1, level - 1 - digit, digit) * weight
        above = above * level + digit
    return tokens.astype(np.int32)


def neighbours(numbers: Tokens) -> NDArray[np.int64]:
    """Return (6, rows, cols): W, N, NW, NE, WW, NN of each place.

    Outside the chunk: W is N, else 0; N is W; NW is W in the first row, N in the first column;
    NE is N; WW is W; NN is N.
    """
    w, n, nw, ne, ww, nn = np.zeros((6, *numbers.shape), np.int64)
    w[:, 1:], n[1:] = numbers[:, :-1], numbers[:-1]
    w[:, 0], n[0] = n[:, 0], w[0]
    nw[1:, 1:], nw[0], nw[1:, 0] = numbers[:-1, :-1], w[0], n[1:, 0]
    ne[1:, :-1], ne[0], ne[1:, -1] = numbers[:-1, 1:], n[0], n[1:, -1]
    ww[:, 2:], ww[:, :2] = numbers[:, :-2], w[:, :2]
    nn[2:], nn[:2] = numbers[:-2], n[:2]
    return np.stack([w, n, nw, ne, ww, nn])


def neighbours_at(numbers: list[list[int]], r: int, c: int) -> tuple[int, int, int, int, int, int]:
    """Return what `neighbours` has at one place, of rows of which that place and later ones may be unset."""
    here, above = numbers[r], numbers[r - 1] if r else None
    n = above[c] if above is not None else (here[c - 1] if c else 0)
    w = here[c - 1] if c else n
    nw = (above[c - 1] if c else n) if above is not None else w
    ne = above[c + 1] if above is not None and c + 1 < len(here) else n
    ww = here[c - 2] if c > 1 else w
    nn = numbers[r - 2][c] if r > 1 else n
    return w, n, nw, ne, ww, nn


def number_errors(numbers: Tokens, weights: tuple[int, ...], size: int) -> Tokens:
    """Return the folded errors of prediction, int32 in ``range(size)``.

    Parameters
    ----------
    numbers
        int32 (rows, cols) in ``range(size)``.
    weights
        Six, in 256ths; see `neighbours`.
    size
        The codebook's.
    """
    guess = np.clip(np.tensordot(np.array(weights), neighbours(numbers), 1) + 128 >> 8, 0, size - 1)
    error = numbers - guess
    both = np.minimum(guess, size - 1 - guess)  # so far, errors of both signs exist
    far = np.abs(error)
    folded = np.where(far > both, both + far, np.where(error > 0, 2 * far - 1, 2 * far))
    return folded.astype(np.int32)


def undo_errors(errors: Tokens, weights: tuple[int, ...], size: int) -> Tokens:
    """Invert `number_errors`, token by token; the kernels do the same, faster."""
    rows, cols = errors.shape
    out: list[list[int]] = [[0] * cols for _ in range(rows)]
    for r, line in enumerate(errors.tolist()):
        for c, folded in enumerate(line):
            total = sum(k * x for k, x in zip(weights, neighbours_at(out, r, c), strict=True))
            out[r][c] = unfold(folded, min(max(total + 128 >> 8, 0), size - 1), size)
    return np.array(out, np.int32).reshape(errors.shape)


def unfold(folded: int, guess: int, size: int) -> int:
    """Return the number of a folded error."""
    both = min(guess, size - 1 - guess)
    if folded > 2 * both:
        return guess + folded - both if guess == both else guess - (folded - both)
    return guess + (folded + 1) // 2 if folded % 2 else guess - folded // 2
