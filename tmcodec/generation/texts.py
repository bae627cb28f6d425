"""Coordinates and captions as targets: words one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tmcodec.generation.conditions import vocabulary_of
from tmcodec.generation.decoding import draw_uniforms
from tmcodec.generation.engine import Made, Request, Stream, generators
from tmcodec.generation.sampling import Sampling, choose
from tmcodec.networks.generator.config import ModalitySpec
from tmcodec.networks.generator.model import Part

if TYPE_CHECKING:
    from tmcodec.generation.models import LoadedGenerator


def write_texts(
    loaded: LoadedGenerator,
    request: Request,
    specs: Sequence[ModalitySpec],
    sampling: Sampling,
    streams: Sequence[Stream],
    made: Mapping[str, Made],
) -> dict[str, list[list[str]]]:
    """Write texts from the conditions, and in a chain from the images generated before them.

    Guidance does not take part. A text is no condition of the next.

    Parameters
    ----------
    loaded
        The generator.
    request
        The conditions.
    specs
        Sequences to write.
    sampling
        Temperature and filters.
    streams
        One for each item.
    made
        Images generated before.

    Returns
    -------
    dict
        By name: K lists of B texts.

    Raises
    ------
    VocabularyError
        If the words are not on this computer.
    """
    conditions = request.conditions()
    if request.chained:
        for plan in request.plans:
            tokens = made[plan.spec.modality].tokens.transpose(0, 1).flatten(0, 1).flatten(1)
            conditions.add(plan.spec.modality, Part(plan.spec.key, tokens, None, request.grid))
    texts: dict[str, list[list[str]]] = {}
    for spec in specs:
        vocabulary = vocabulary_of(loaded, spec.modality)
        noise = generators(streams, request.samples, spec.modality)

        def pick(logits: Tensor, noise: list[torch.Generator] = noise) -> Tensor:
            return choose(logits, draw_uniforms(1, noise)[:, 0], sampling).tokens

        start, stop = (vocabulary.mark(spec.modality, name) for name in ("[S_1]", "[S_2]"))
        encoded = conditions.encoded(conditions.names)
        words = request.net.predict_sequence(encoded, spec.key, start, stop, pick).tolist()
        items = [vocabulary.decode(spec.modality, row[1:]) for row in words]
        texts[spec.modality] = [items[k :: request.samples] for k in range(request.samples)]
    return texts
