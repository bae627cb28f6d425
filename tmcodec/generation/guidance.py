"""Which conditions each pass of classifier-free guidance sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import NamedTuple

from tmcodec.errors import GenerationError
from tmcodec.texts import shown


class Passes(NamedTuple):
    """Sets of conditions, by name, whose logits are combined.

    Attributes
    ----------
    without
        What every pass sees.
    conditional
        (weight, conditions) of the passes that are weighed against it; none where guidance is off, and then
        `without` holds all conditions.
    """

    without: frozenset[str]
    conditional: tuple[tuple[float, frozenset[str]], ...]


def passes(
    guidance: float | Mapping[str, float] | None,
    names: Iterable[str],
    made: Iterable[str] = (),
    trust: float = 1.0,
) -> Passes:
    """Return the passes that guidance takes.

    Parameters
    ----------
    guidance
        None or 1: one pass with all conditions. A number w: all conditions against none of them. A mapping
        of conditions to weights: each named condition on its own, with those that are not named, against
        those that are not named.
    names
        Conditions at hand.
    made
        Those of them that the generator made.
    trust
        What all of those together count for, where there is no guidance: they are weighed against what was
        given. 1: as much as what was given.
    """
    every = frozenset(names)
    if guidance is None and trust != 1 and every & set(made):
        return Passes(every - set(made), ((trust, every),))
    if guidance is None or guidance == 1 or not every:
        return Passes(every, ())
    if not isinstance(guidance, Mapping):
        return Passes(frozenset(), ((float(guidance), every),))
    without = every - set(guidance)
    named = [(float(w), without | {name}) for name, w in guidance.items() if name in every]
    return Passes(without, tuple(named))


MAX_WEIGHT = 1000.0
"""Largest weight: more says nothing, and logits times it must stay in single precision."""


def check_trust(trust: float | None, guidance: float | Mapping[str, float] | None) -> None:
    """Refuse a trust that is not in 0..1, or beside guidance, which says more.

    Raises
    ------
    GenerationError
    """
    if trust is None:
        return
    if not isinstance(trust, Real) or not 0 <= trust <= 1:
        raise GenerationError(f"trust {shown(trust)}; give 0 to 1")
    if guidance is not None:
        raise GenerationError("trust and guidance; give one of them, guidance can name what was made, too")


def check_guidance(guidance: float | Mapping[str, float] | None, known: Iterable[str]) -> None:
    """Refuse weights that are not finite, and names that are neither conditions nor targets.

    Raises
    ------
    GenerationError
    """
    if guidance is None:
        return
    names = set(known)
    weights = dict(guidance) if isinstance(guidance, Mapping) else {"": guidance}
    for name, weight in weights.items():
        if isinstance(guidance, Mapping) and name not in names:
            raise GenerationError(
                f"guidance names {name!r}, which is no condition here; name one of {', '.join(sorted(names))}"
            )
        if not isinstance(weight, Real) or not -MAX_WEIGHT <= weight <= MAX_WEIGHT:
            raise GenerationError(
                f"guidance weight {shown(weight)}; give one within {MAX_WEIGHT:g}, 1 for none"
            )
