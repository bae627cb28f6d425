"""Runs the targets of a request one after the other, for a batch of items of one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tmcodec.errors import TargetError
from tmcodec.generation.conditions import Grid, Image
from tmcodec.generation.decoding import MISSING, Conditions, Plan, check_shown, decode_target
from tmcodec.generation.sampling import place_generator
from tmcodec.networks.generator.model import Generator, Part

BATCH = 16
"""Items times samples that go through the network at once."""


class Stream(NamedTuple):
    """Where an item's noise comes from.

    Attributes
    ----------
    seed
        0..2**64 - 1.
    row, col
        Place of the item's first token in a larger raster.
    """

    seed: int
    row: int = 0
    col: int = 0


class Made(NamedTuple):
    """One target of K samples of B items.

    Attributes
    ----------
    tokens
        int64 ``(K, B, rows, cols)``.
    log_probabilities
        float32, same shape.
    """

    tokens: Tensor
    log_probabilities: Tensor


@dataclass(frozen=True)
class Request:
    """What to make of what, checked.

    Attributes
    ----------
    net
        The network.
    images
        Image conditions by modality, of one batch and grid.
    sequences
        Coordinates and captions.
    plans
        Image targets in their order.
    chained
        Whether each target is a condition of the next.
    samples
        Samples of each item, K.
    batch
        Items, B.
    grid
        Rows and columns of all image tokens.
    """

    net: Generator
    images: Mapping[str, Image]
    sequences: Mapping[str, Part]
    plans: Sequence[Plan]
    chained: bool
    samples: int
    batch: int
    grid: Grid

    def __post_init__(self) -> None:
        for index, plan in enumerate(self.plans):
            if plan.steps > 1 or (self.chained and index < len(self.plans) - 1):
                check_shown(plan.spec)

    def conditions(self) -> Conditions:
        """Return what the encoder is shown."""
        parts = {**{name: image.part() for name, image in self.images.items()}, **self.sequences}
        return Conditions(self.net, parts, self.batch, self.samples, self.grid)

    def known(self) -> dict[str, Tensor]:
        """Return the tokens of targets that are inputs too, int64 ``(B * K, rows * cols)``.

        Raises
        ------
        TargetError
            If nothing is missing, or the input is pixels.
        """
        both = {plan.spec.modality: plan.spec for plan in self.plans if plan.spec.modality in self.images}
        found = {}
        for name, spec in both.items():
            image = self.images[name]
            if image.spec.key != spec.key or not bool(image.hidden.any()):
                raise TargetError(f"{name} is input and target; mark the tokens to make with {MISSING}")
            found[name] = image.known().repeat_interleave(self.samples, 0)
        return found

    def items(self, some: slice) -> Request:
        """Return the request for some of the items."""
        sequences = {
            name: replace(
                part, values=part.values[some], padding=None if part.padding is None else part.padding[some]
            )
            for name, part in self.sequences.items()
        }
        images = {name: image.items(some) for name, image in self.images.items()}
        return replace(self, images=images, sequences=sequences, batch=len(range(self.batch)[some]))


def run(
    request: Request, streams: Sequence[Stream], known: Mapping[str, Tensor] | None = None
) -> dict[str, Made]:
    """Make all targets.

    Parameters
    ----------
    request
        What to make of what.
    streams
        One for each item.
    known
        Tokens of targets that are settled, int64 ``(B * K, rows * cols)`` with `MISSING` for the others,
        the samples of one item beside each other.

    Returns
    -------
    dict
        By modality, in the order of the targets.
    """
    known = request.known() if known is None else known
    if any(len(set((tokens == MISSING).sum(1).tolist())) > 1 for tokens in known.values()):
        return _one_by_one(request, streams, known)
    conditions = request.conditions()
    rows, cols = request.grid
    shape = (request.batch, request.samples, rows, cols)
    empty = torch.full((shape[0] * shape[1], rows * cols), MISSING, device=request.net.mask_token.device)
    made = {}
    for plan in request.plans:
        name = plan.spec.modality
        noise = generators(streams, request.samples, name)
        tokens, scores = decode_target(conditions, plan, known.get(name, empty), noise)
        if request.chained and plan is not request.plans[-1]:
            conditions.add(name, Part(plan.spec.key, tokens, None, request.grid))
        made[name] = Made(tokens.view(shape).transpose(0, 1), scores.view(shape).transpose(0, 1))
    return made


def run_in_batches(request: Request, streams: Sequence[Stream]) -> dict[str, Made]:
    """Do what `run` does, a few items at a time: memory does not grow with the batch."""
    step = max(1, BATCH // request.samples)
    if request.batch <= step:
        return run(request, streams)
    known = request.known()
    parts = []
    for first in range(0, request.batch, step):
        some = slice(first, first + step)
        rows = slice(some.start * request.samples, some.stop * request.samples)
        parts.append(run(request.items(some), streams[some], {n: t[rows] for n, t in known.items()}))
    return _joined(parts)


def _one_by_one(request: Request, streams: Sequence[Stream], known: Mapping[str, Tensor]) -> dict[str, Made]:
    """Run items that miss different numbers of tokens, each alone."""
    copies, parts = request.samples, []
    for index, stream in enumerate(streams):
        rows = slice(index * copies, (index + 1) * copies)
        one = request.items(slice(index, index + 1))
        parts.append(run(one, [stream], {name: tokens[rows] for name, tokens in known.items()}))
    return _joined(parts)


def _joined(parts: Sequence[Mapping[str, Made]]) -> dict[str, Made]:
    """Join what was made of some items each."""
    return {
        name: Made(*(torch.cat(tensors, 1) for tensors in zip(*(part[name] for part in parts), strict=True)))
        for name in parts[0]
    }


def generators(streams: Sequence[Stream], samples: int, name: str) -> list[torch.Generator]:
    """Return the noise of each sample of each item, the samples of one item beside each other."""
    return [
        place_generator(seed, row, col, sample, name)
        for seed, row, col in streams
        for sample in range(samples)
    ]
