"""The decoding loop: one target's tokens, filled in step by step.

The encoder runs once for each set of conditions. Tokens already filled in are conditions of the next step, as
in TerraMind, so an iterative decoding of S steps takes S encoder passes, and a single step takes one that all
targets of an independent order share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tmcodec.errors import TargetError
from tmcodec.generation.guidance import passes
from tmcodec.generation.means import CodeMeans
from tmcodec.generation.sampling import Sampling, choose, guide
from tmcodec.generation.schedules import token_schedule
from tmcodec.networks.generator.config import ModalitySpec
from tmcodec.networks.generator.model import Encoded, Generator, Part

MISSING = -1
"""Marks tokens that are not known."""


@dataclass(frozen=True)
class Plan:
    """How one target is made.

    Attributes
    ----------
    spec
        Its tokens.
    steps
        Decoding steps.
    order, token_schedule
        Names of `schedules.ORDERS` and of `schedules.TOKEN_SCHEDULES` or None.
    sampling
        Temperature and filters.
    guidance, trust
        As `guidance.passes` takes them.
    means
        Takes means of codes in place of draws, or None.
    codes
        The codes by which the order ``"nearest"`` ranks; None in the others.
    """

    spec: ModalitySpec
    steps: int = 1
    order: str = "roar"
    token_schedule: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    guidance: float | Mapping[str, float] | None = None
    trust: float = 1.0
    means: CodeMeans | None = None
    codes: CodeMeans | None = None

    @property
    def drawn(self) -> bool:
        """Whether samples may differ: by tokens that are drawn, or by a random order of several steps."""
        certain = self.means is not None or self.sampling.greedy
        return not certain or (self.order == "roar" and self.steps > 1)


class Conditions:
    """What the encoder is shown of a batch, by name, and its encodings.

    Parameters
    ----------
    net
        The network.
    parts
        Conditions of B items.
    batch
        B.
    copies
        How many times each item is sampled. Everything generated has B * copies items, those of one item
        beside each other.
    grid
        Rows and columns of all image tokens.
    """

    def __init__(
        self, net: Generator, parts: Mapping[str, Part], batch: int, copies: int, grid: tuple[int, int]
    ) -> None:
        self.net, self.batch, self.copies, self.grid = net, batch, copies, grid
        self._shared = dict(parts)
        self._own: dict[str, Part] = {}
        self._encoded: dict[frozenset[str], Encoded] = {}

    @property
    def names(self) -> frozenset[str]:
        """Names of all conditions."""
        return frozenset(self._shared) | frozenset(self._own)

    def add(self, name: str, part: Part) -> None:
        """Add a generated target, of B * copies items, as a condition of those to come."""
        self._shared.pop(name, None)
        self._own[name] = part
        self._encoded = {names: e for names, e in self._encoded.items() if name not in names}

    def encoded(self, names: frozenset[str], known: Part | None = None) -> Encoded:
        """Encode some of the conditions, together with the known tokens of the target where there are any."""
        if known is None and names in self._encoded:
            return self._encoded[names]
        shared = [part for name, part in self._shared.items() if name in names]
        own = [part for name, part in self._own.items() if name in names]
        own += [] if known is None else [known]
        if own:
            encoded = self.net.encode([*(repeat_part(part, self.copies) for part in shared), *own])
        elif shared:
            encoded = repeat_encoded(self.net.encode(shared), self.copies)
        else:
            encoded = self.net.nothing(self.batch * self.copies)
        if known is None:
            self._encoded[names] = encoded
        return encoded

    def logits(self, plan: Plan, positions: Tensor, known: Part | None, hidden: str) -> Tensor:
        """Return guided logits ``(B * copies, m, V)`` of mask tokens at `positions`.

        Parameters
        ----------
        plan
            The target.
        positions
            int64 ``(B * copies, m)``.
        known
            Tokens of the target that are known.
        hidden
            Name of the condition not to show: the target itself.
        """

        def predict(names: frozenset[str]) -> Tensor:
            encoded = self.encoded(names, known)
            return self.net.predict(encoded, plan.spec.key, positions, self.grid)

        wanted = passes(plan.guidance, self.names - {hidden}, self._own, plan.trust)
        without = predict(wanted.without)
        if not wanted.conditional:
            return without
        return guide(without, [(w, predict(names)) for w, names in wanted.conditional])


def decode_target(
    conditions: Conditions, plan: Plan, known: Tensor, noise: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """Fill in the missing tokens of one target.

    Parameters
    ----------
    conditions
        What the encoder is shown.
    plan
        The target and how to make it.
    known
        int64 ``(B * copies, rows * cols)``, `MISSING` where a token is to be made; equally many in all items.
    noise
        A generator for each item.

    Returns
    -------
    tokens, log_probabilities
        int64 and float32, shape of `known`; the logarithm of the probability that the network gave each
        token when it was drawn, 0 for those that were known.

    Raises
    ------
    TargetError
        If tokens of the target must be shown to the encoder and it has no embedding for them.
    """
    tokens, scores = known.clone(), torch.zeros(known.shape, dtype=torch.float32, device=known.device)
    queue = missing_positions(known)
    if plan.order == "roar":
        queue = shuffled(queue, noise)
    parts = token_schedule(plan.token_schedule, plan.order, queue.shape[1], plan.steps)
    for count in parts:
        asked = queue[:, :count] if plan.order == "roar" else queue
        logits = conditions.logits(plan, asked, known_part(plan, tokens, conditions.grid), plan.spec.modality)
        uniforms = draw_uniforms(asked.shape[1], noise)
        choice = choose(logits.flatten(0, 1), uniforms.flatten(), plan.sampling, plan.means, plan.codes)
        drawn, own, sure = (value.view(asked.shape) for value in choice)
        if plan.order != "roar":
            best = sure.topk(count).indices
            rest = torch.ones_like(queue, dtype=torch.bool).scatter_(1, best, False)
            queue = queue[rest].view(len(queue), -1)
            asked, drawn, own = (value.gather(1, best) for value in (asked, drawn, own))
        else:
            queue = queue[:, count:]
        tokens.scatter_(1, asked, drawn)
        scores.scatter_(1, asked, own)
    return tokens, scores


def missing_positions(known: Tensor) -> Tensor:
    """Return the positions ``(B, m)`` of what is missing, ascending; m is the same for all items."""
    missing = known == MISSING
    return missing.nonzero()[:, 1].view(len(known), -1)


def known_part(plan: Plan, tokens: Tensor, grid: tuple[int, int]) -> Part | None:
    """Return the known tokens of a target as a condition, None where there are none.

    Raises
    ------
    TargetError
        If the encoder has no embedding for them.
    """
    there = tokens != MISSING
    if not bool(there.any()):
        return None
    check_shown(plan.spec)
    positions = there.nonzero()[:, 1].view(len(tokens), -1)
    return Part(plan.spec.key, tokens.gather(1, positions), positions, grid)


def check_shown(spec: ModalitySpec) -> None:
    """Refuse to show the encoder a target that it has no embedding for.

    Raises
    ------
    TargetError
    """
    if not spec.encoder:
        raise TargetError(
            f"the generator takes no {spec.modality} tokens as input; make it in one decoding step, last or "
            "independently, and without overlap"
        )


def shuffled(positions: Tensor, noise: Sequence[torch.Generator]) -> Tensor:
    """Return the positions of each item in a random order of its own."""
    size = positions.shape[1]
    order = torch.stack([torch.randperm(size, generator=g) for g in noise])
    return positions.gather(1, order.to(positions.device))


def draw_uniforms(count: int, noise: Sequence[torch.Generator]) -> Tensor:
    """Return float64 ``(B, count)`` in [0, 1), each row from its own generator."""
    return torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in noise])


# --------------------------------------------------------------------------- batches


def repeat_part(part: Part, copies: int) -> Part:
    """Return a part with each item `copies` times."""
    if copies == 1:
        return part

    def repeated(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.repeat_interleave(copies, 0)

    return replace(
        part,
        values=part.values.repeat_interleave(copies, 0),
        positions=repeated(part.positions),
        padding=repeated(part.padding),
    )


def repeat_encoded(encoded: Encoded, copies: int) -> Encoded:
    """Return an encoding with each item `copies` times."""
    if copies == 1:
        return encoded
    padding = encoded.padding
    return replace(
        encoded,
        context=encoded.context.repeat_interleave(copies, 0),
        padding=None if padding is None else padding.repeat_interleave(copies, 0),
    )
