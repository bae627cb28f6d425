"""Logits to tokens: temperature, top-k, top-p, guidance, and noise that belongs to a place.

Order of the filters: logits are divided by the temperature first, then the k likeliest stay (top-k), then of
those the fewest that reach the share p (top-p). ``filtering="official"`` takes the nucleus before the
temperature, as TerraTorch does; with temperature 1 both are the same.

A token is drawn by inverting the cumulative probabilities at one uniform number. Those numbers come from
generators of their own, addressed by seed and place, never from torch's global state: neither the batch nor
the order of tiles changes what is drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tmcodec.errors import GenerationError

FILTERINGS = ("tempered", "official")

ROWS = 256
"""Rows of logits handled at once: bounds the sorted copies, 16 MB for 15360 tokens."""

NUCLEUS = 512
"""The nucleus is first looked for among so many tokens; only flat distributions need all sorted."""


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens from logits.

    Parameters
    ----------
    temperature
        Divides the logits; 0 takes the likeliest token.
    top_k
        Keep so many of the likeliest tokens; None keeps all.
    top_p
        Keep the fewest of the likeliest tokens that together reach this share, in (0, 1]; None keeps all.
    filtering
        ``"tempered"``: temperature before top-p; ``"official"``: after it, as TerraTorch.

    Raises
    ------
    GenerationError
        If a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = 0.8
    filtering: str = "tempered"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise GenerationError(f"temperature {self.temperature}; give a number from 0 up")
        if self.top_k is not None and self.top_k < 1:
            raise GenerationError(f"top-k {self.top_k}; give 1 or more, or leave it out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise GenerationError(f"top-p {self.top_p}; give a share above 0 and up to 1")
        if self.filtering not in FILTERINGS:
            raise GenerationError(
                f"unknown filtering {self.filtering!r}; choose one of {', '.join(FILTERINGS)}"
            )

    def describe(self) -> str:
        """Return a short text for tags."""
        filters = [("top-k", self.top_k), ("top-p", self.top_p)]
        kept = "".join(f" {name} {value:g}" for name, value in filters if value is not None)
        return f"temperature {self.temperature:g}{kept} {self.filtering}"

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 or self.top_k == 1


class Choice(NamedTuple):
    """Tokens drawn for N rows of logits.

    Attributes
    ----------
    tokens
        int64 (N,).
    log_probabilities
        float32 (N,), natural logarithm of what the logits gave the token, before temperature and filters.
    confidence
        float32 (N,), by which MaskGIT ranks: the logarithm of the probability with which the token was
        drawn, or `log_probabilities` where nothing is drawn.
    """

    tokens: Tensor
    log_probabilities: Tensor
    confidence: Tensor


# --------------------------------------------------------------------------- noise


def place_generator(seed: int, *place: int | str) -> torch.Generator:
    """Return a random generator on the CPU that belongs to a seed and a place.

    Parameters
    ----------
    seed
        0..2**64 - 1.
    place
        Whole numbers and names, e.g. row, column, sample and modality.
    """
    text = "/".join(map(str, (seed, *place))).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


# --------------------------------------------------------------------------- drawing


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Choice:
    """Draw one token for each row.

    Parameters
    ----------
    logits
        Any float dtype, (N, V).
    uniforms
        float64 (N,) in [0, 1); ignored where nothing is drawn.
    sampling
        Temperature and filters.
    """
    parts = [
        _choose(rows.float(), numbers, sampling)
        for rows, numbers in zip(logits.split(ROWS), uniforms.to(logits.device).split(ROWS), strict=True)
    ]
    return Choice(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Choice:
    total = torch.logsumexp(logits, -1)
    if sampling.greedy:
        tokens = logits.argmax(-1)
        own = logits.gather(-1, tokens[:, None])[:, 0] - total
        return Choice(tokens, own, own)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    drawn = torch.empty(len(logits), device=logits.device)
    for rows, log_probabilities, index in shortlist(logits, sampling):
        place = invert(log_probabilities, uniforms[rows])
        tokens[rows] = place if index is None else index.gather(-1, place[:, None])[:, 0]
        drawn[rows] = log_probabilities.gather(-1, place[:, None])[:, 0]
    return Choice(tokens, logits.gather(-1, tokens[:, None])[:, 0] - total, drawn)


def shortlist(logits: Tensor, sampling: Sampling) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Return what the filters leave of each row, as groups of rows.

    Returns
    -------
    list of (rows, log_probabilities, index)
        Row numbers (n,); log-probabilities (n, K), likeliest first, -inf for tokens filtered out; the tokens
        that they belong to, int64 (n, K), or None where it is all of them in their order.
    """
    every = torch.arange(len(logits), device=logits.device)
    if sampling.top_k is not None:
        values, index = logits.topk(min(sampling.top_k, logits.shape[-1]))
        return [(every, _nucleus(values, values, sampling), index)]
    if sampling.top_p is None or sampling.top_p >= 1:
        return [(every, torch.log_softmax(logits / sampling.temperature, -1), None)]
    values, index = logits.topk(min(NUCLEUS, logits.shape[-1]))
    reached = _shares(values, logits, sampling)[:, -1] > sampling.top_p
    groups: list[tuple[Tensor, Tensor, Tensor | None]] = []
    if bool(reached.any()):
        kept = _nucleus(values[reached], logits[reached], sampling)
        groups.append((every[reached], kept, index[reached]))
    if not bool(reached.all()):
        values, index = logits[~reached].sort(-1, descending=True)
        groups.append((every[~reached], _nucleus(values, values, sampling), index))
    return groups


def _shares(values: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the cumulative probabilities of sorted `values`, which are the highest of `logits`."""
    scale = 1.0 if sampling.filtering == "official" else sampling.temperature
    total = torch.logsumexp(logits / scale, -1, keepdim=True)
    return (values / scale - total).double().exp().cumsum(-1)


def _nucleus(values: Tensor, logits: Tensor, sampling: Sampling) -> Tensor:
    """Return log-probabilities of sorted `values` after top-p and temperature."""
    tempered = values / sampling.temperature
    if sampling.top_p is not None and sampling.top_p < 1:
        shares = _shares(values, logits, sampling)
        # A token stays where those before it have not yet exceeded p; the first one always does.
        gone = shares[:, :-1] > sampling.top_p
        tempered[:, 1:] = tempered[:, 1:].masked_fill(gone, -math.inf)
    return torch.log_softmax(tempered, -1)


def invert(log_probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the place in each row (n, K) where the cumulative probability passes a uniform number (n,)."""
    cumulative = log_probabilities.double().exp().cumsum(-1)
    found = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)[:, 0]
    return found.clamp_(max=log_probabilities.shape[-1] - 1)


# --------------------------------------------------------------------------- guidance


def guide(without: Tensor, conditional: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Combine logits with and without conditions (arXiv 2206.01714).

    Parameters
    ----------
    without
        Logits without the guided conditions.
    conditional
        (weight w, logits with the condition) each.

    Returns
    -------
    Tensor
        ``without + sum(w * (with - without))``.
    """
    guided = without.clone()
    for weight, logits in conditional:
        guided += weight * (logits - without)
    return guided
