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
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tmcodec.errors import GenerationError
from tmcodec.generation.means import CodeMeans
from tmcodec.texts import shown

FILTERINGS = ("tempered", "official")
CHOICES = ("draw", "mean")

ROWS = 64
"""Rows of logits handled at once: copies of 4 to 8 MB for 15360 tokens, which stay in caches."""

DEVICE_ROWS = 1024
"""The same off the CPU, where small sorts leave most of a device idle: copies of 60 to 130 MB."""


LEAST_TEMPERATURE = 1e-3
"""Below, quotients of logits leave single precision, and with it all meaning."""


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
    choice
        ``"draw"``; ``"mean"``: the token nearest to the mean of the codes, without temperature and filters.
        Sequences are drawn all the same.

    Raises
    ------
    GenerationError
        If a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = 0.8
    filtering: str = "tempered"
    choice: str = "draw"

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("top-k", self.top_k), ("top-p", self.top_p)):
            if not isinstance(value, Real) and (value is not None or name == "temperature"):
                raise GenerationError(f"{name} {shown(value)}; give a number")
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature <= 1 / LEAST_TEMPERATURE:
            most = 1 / LEAST_TEMPERATURE
            raise GenerationError(
                f"temperature {self.temperature}; give 0, or {LEAST_TEMPERATURE:g} to {most:g}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise GenerationError(f"top-k {self.top_k}; give 1 or more, or leave it out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise GenerationError(f"top-p {self.top_p}; give a share above 0 and up to 1")
        if self.filtering not in FILTERINGS:
            raise GenerationError(
                f"unknown filtering {self.filtering!r}; choose one of {', '.join(FILTERINGS)}"
            )

        if self.choice not in CHOICES:
            raise GenerationError(f"unknown choice {self.choice!r}; choose one of {', '.join(CHOICES)}")

    def describe(self) -> str:
        """Return a short text for tags."""
        if self.choice == "mean":
            return "mean of the codes"
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
        float32 (N,), by which tokens are ranked that are to be kept: with codes the squared error that
        keeping this one saves; without them (MaskGIT) the logarithm of the probability with which it was
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


def choose(
    logits: Tensor,
    uniforms: Tensor,
    sampling: Sampling,
    means: CodeMeans | None = None,
    codes: CodeMeans | None = None,
) -> Choice:
    """Draw one token for each row, or take the mean.

    Parameters
    ----------
    logits
        Any float dtype, (N, V).
    uniforms
        float64 (N,) in [0, 1); ignored where nothing is drawn.
    sampling
        Temperature and filters.
    means
        Of the codebook; where it is given, nothing is drawn.
    codes
        Of the codebook; where it is given, tokens are ranked by what keeping them saves.
    """
    size = ROWS if logits.device.type == "cpu" else DEVICE_ROWS
    parts = []
    for rows, numbers in zip(logits.split(size), uniforms.to(logits.device).split(size), strict=True):
        rows = rows.float()
        part = _mean(rows, means) if means is not None else _choose(rows, numbers, sampling)
        if codes is not None:
            part = part._replace(confidence=codes.savings(rows.softmax(-1), part.tokens))
        parts.append(part)
    return Choice(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _mean(logits: Tensor, means: CodeMeans) -> Choice:
    tokens = means.tokens(logits.softmax(-1))
    own = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    return Choice(tokens, own, own)


def _choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Choice:
    total = torch.logsumexp(logits, -1)
    if sampling.greedy:
        tokens = logits.argmax(-1)
        own = logits.gather(-1, tokens[:, None])[:, 0] - total
        return Choice(tokens, own, own)
    log_probabilities = filtered(logits, sampling)
    tokens = invert(log_probabilities, uniforms)
    drawn = log_probabilities.gather(-1, tokens[:, None])[:, 0]
    return Choice(tokens, logits.gather(-1, tokens[:, None])[:, 0] - total, drawn)


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return log-probabilities (N, V) after temperature, top-k and top-p; -inf for tokens filtered out.

    Tokens as likely as the last one that is kept are kept, too.
    """
    tempered = logits / sampling.temperature
    share = 1.0 if sampling.top_p is None else sampling.top_p
    if sampling.top_k is None and share == 1:
        return torch.log_softmax(tempered, -1)
    values = descending(logits if sampling.filtering == "official" else tempered)
    if sampling.top_k is not None:
        values = values[:, : sampling.top_k]
    last = torch.full((len(values), 1), values.shape[1] - 1, device=values.device)
    if share < 1:
        shares = torch.softmax(values, -1, dtype=torch.float64).cumsum(-1)
        # A token stays where those before it have not yet exceeded p; the first one always does.
        last = (shares[:, :-1] <= share).sum(-1, keepdim=True)
    compared = logits if sampling.filtering == "official" else tempered
    return torch.log_softmax(tempered.masked_fill(compared < values.gather(-1, last), -math.inf), -1)


def descending(values: Tensor) -> Tensor:
    """Sort each row, highest first. NumPy sorts numbers some twenty times faster than PyTorch on a CPU."""
    if values.device.type != "cpu":
        return values.sort(-1, descending=True).values
    return torch.from_numpy(np.sort(-values.numpy(), -1)).neg_()


def invert(log_probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the token in each row (N, V) where the cumulative probability passes a uniform number (N,)."""
    cumulative = log_probabilities.exp().cumsum(-1, dtype=torch.float64)
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
