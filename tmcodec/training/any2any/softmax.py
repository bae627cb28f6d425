"""Cross-entropy over a large vocabulary from a part of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def sampled_cross_entropy(
    y: Tensor,
    tokens: Tensor,
    embed: Callable[[Tensor], Tensor],
    vocabulary: int,
    negatives: int,
    generator: torch.Generator,
) -> Tensor:
    """Return the cross-entropy of tokens, the softmax's sum estimated.

    Exact are the terms of all tokens that occur in `tokens`; of the others, `negatives` are drawn evenly
    and stand for all: the estimate of the sum is unbiased, and with all of them drawn the result is the
    full cross-entropy.

    Parameters
    ----------
    y
        ``(n, D)``.
    tokens
        int64 ``(n,)``.
    embed
        Maps tokens ``(k,)`` to their vectors ``(k, D)``; the logits are products with them.
    vocabulary
        Number of tokens.
    negatives
        How many are drawn.
    generator
        On the CPU; decides which.

    Returns
    -------
    Tensor
        float32 ``(n,)``.
    """
    there, index = torch.unique(tokens, return_inverse=True)
    rest = torch.ones(vocabulary, dtype=torch.bool)
    rest[there.cpu()] = False
    absent = rest.nonzero()[:, 0]
    drawn = absent[torch.randperm(len(absent), generator=generator)[:negatives]].to(tokens.device)
    bias = torch.zeros(len(there) + len(drawn), dtype=y.dtype, device=y.device)
    if len(drawn):
        bias[len(there) :] = math.log(len(absent) / len(drawn))  # each stands for so many
    vectors = embed(torch.cat([there, drawn])[None])[0].to(y.dtype)
    return F.cross_entropy(F.linear(y, vectors, bias).float(), index, reduction="none")
