"""How far a token is from what the network expects, and the token that is nearest to it.

A drawn token is one plausible value; its error holds the spread of them all. The mean has the least squared
error that can be expected, and neighbours that do not know of each other do not disagree. It is smooth.

Between the two: of several draws some lie nearer to the mean than others, and those are worth keeping
(`CodeMeans.savings`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tmcodec.tokenfile.coders import digits_to_tokens, tokens_to_digits
from tmcodec.tokenfile.context.heights import number_to_reflected, reflected_to_number


class CodeMeans:
    """Turns probabilities of tokens into the token of their mean.

    Parameters
    ----------
    levels
        FSQ levels.
    numbers
        Whether the digits are a number in a reflected mixed radix (`tmcodec.networks.height`) and not a code.
    """

    def __init__(self, levels: tuple[int, ...], numbers: bool) -> None:
        self.levels, self.numbers = levels, numbers
        tokens = np.arange(math.prod(levels), dtype=np.int32)
        heights = reflected_to_number(tokens, levels)[:, None]
        values = heights if numbers else tokens_to_digits(tokens, levels).T
        self.values = torch.from_numpy(values.astype(np.float32))
        self.units = self.values / self.values.amax(0)  # 0..1 in each, as the decoder gets them

    def tokens(self, probabilities: Tensor) -> Tensor:
        """Return int64 (N,) tokens for probabilities (N, V)."""
        means = probabilities @ self.values.to(probabilities.device)
        rounded = means.round().cpu().numpy().astype(np.int32)
        if self.numbers:
            found = number_to_reflected(rounded[:, 0].clip(0, len(self.values) - 1), self.levels)
        else:
            digits = rounded.clip(0, np.array(self.levels) - 1).astype(np.uint8)
            found = digits_to_tokens(digits.T, self.levels)
        return torch.from_numpy(found.astype(np.int64)).to(probabilities.device)

    def savings(self, probabilities: Tensor, tokens: Tensor) -> Tensor:
        """Return the squared error that keeping a token saves over drawing another, as expected.

        The true value is as likely as the network says, so a token's expected error is the variance of the
        codes plus its distance from their mean, and another's, which is at the variance from the mean on
        average, twice the variance. The difference is the variance less the distance.

        Parameters
        ----------
        probabilities
            (N, V).
        tokens
            (N,).

        Returns
        -------
        Tensor
            (N,), sums over digits of squares, each digit's range being 1 (of numbers, their range).
        """
        units = self.units.to(probabilities.device)
        means = probabilities @ units
        variances = probabilities @ units.square() - means.square()
        return (variances - (units[tokens] - means).square()).sum(-1)


@lru_cache(maxsize=16)
def code_means(levels: tuple[int, ...], numbers: bool) -> CodeMeans:
    """Return the `CodeMeans` of a codebook, made once."""
    return CodeMeans(levels, numbers)
