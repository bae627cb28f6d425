"""What to evaluate: tokenizers, steps and baselines, checked and loaded before the first raster is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from tmcodec.codec.models import default_model, load_tokenizer
from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.errors import EvaluationError
from tmcodec.evaluation.perception import Perception, has_composite
from tmcodec.evaluation.scenes import Reading
from tmcodec.modalities import Modality, get_modality

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Job:
    """What to evaluate, settled before the first raster is read."""

    tokenizers: tuple[Tokenizer, ...]
    modality: Modality
    reading: Reading
    steps: tuple[int, ...]
    baselines: tuple[str, ...]
    device: str
    batch_size: int
    seed: int
    perception: Perception | None


def load_tokenizers(
    wanted: Sequence[str | Tokenizer], modality: str | None, checkpoints: Sequence[str], device: str
) -> tuple[Tokenizer, ...]:
    """Load all tokenizers.

    Raises
    ------
    EvaluationError
        If there is none, they are of several modalities, or share a name.
    """
    if not wanted and modality is None:
        raise EvaluationError("no tokenizer; give --tokenizer, or --modality for the embedded one")
    named = list(wanted) or [default_model(get_modality(modality or "").name)]
    weights = _checkpoints(checkpoints, [n for n in named if isinstance(n, str) and n in OFFICIAL])
    toks = tuple(
        load_tokenizer(os.fspath(n), device, checkpoint=weights.get(os.fspath(n)))
        if not isinstance(n, Tokenizer) else n
        for n in named
    )
    kinds = {t.modality.name for t in toks} | ({get_modality(modality).name} if modality else set())
    if len(kinds) > 1:
        both = " and ".join(sorted(kinds))
        raise EvaluationError(f"{both} in one evaluation; give tokenizers of one modality")
    if len({t.name for t in toks}) < len(toks):
        raise EvaluationError("two tokenizers have the same name; export one of them under another")
    return toks


def _checkpoints(given: Sequence[str], official: Sequence[str]) -> dict[str, str]:
    """Return the weights file of each official tokenizer that was given one."""
    found = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals:
            if len(official) != 1:
                raise EvaluationError(f"checkpoint {text}: which tokenizer is it of? give NAME=PATH")
            name, path = official[0], text
        if name not in official:
            raise EvaluationError(f"checkpoint {text}: {name} is none of the official tokenizers evaluated")
        found[name] = path
    return found


def check_steps(steps: Sequence[int], modality: Modality) -> tuple[int, ...]:
    """Return the step counts in order, without repetition; class maps have one."""
    if not steps or any(not 1 <= s <= 1000 for s in steps):
        raise EvaluationError(f"steps {list(steps)}: give at least one number in 1..1000")
    return (1,) if modality.categorical else tuple(dict.fromkeys(steps))


def load_perception(weights: PathLike | None, modality: Modality) -> Perception | None:
    if weights is None or not has_composite(modality):
        return None
    return Perception(weights, modality)
