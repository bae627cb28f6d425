"""How many tokens of which modality are shown, and how many are asked for.

As 4M (arXiv 2312.06647) and TerraMind (arXiv 2504.11171) do it: a budget of input tokens and one of target
tokens are shared among the modalities by a Dirichlet draw each. Small concentrations give samples of
nearly one modality, large ones even shares. What is a target is never an input. Integers and numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tmcodec.errors import ConfigError

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """One way of sharing budgets; several are drawn by their weights.

    Attributes
    ----------
    inputs, targets
        Concentration of the Dirichlet by modality; a modality that is not named, or has 0, is left out.
    weight
        Relative to the other mixtures.
    """

    inputs: Mapping[str, float]
    targets: Mapping[str, float]
    weight: float = 1.0


@dataclass(frozen=True)
class Budgets:
    """Sizes of the draws.

    Attributes
    ----------
    inputs, targets
        Smallest and largest budget in tokens of one sample, drawn evenly.
    mixtures
        At least one; those without any input or target among a sample's modalities are passed over.
    """

    inputs: tuple[int, int] = (49, 294)
    targets: tuple[int, int] = (49, 147)
    mixtures: Sequence[Mixture] = field(default_factory=tuple)

    def check(self) -> None:
        """Raise ConfigError where a size is out of range."""
        for name, (low, high) in (("inputs", self.inputs), ("targets", self.targets)):
            if not 1 <= low <= high:
                raise ConfigError(
                    f"budgets.{name} must be two numbers of tokens, the first from 1 to the second"
                )
        for mixture in self.mixtures:
            values = [*mixture.inputs.values(), *mixture.targets.values(), mixture.weight]
            if min(values, default=0) < 0 or not mixture.weight > 0:
                raise ConfigError("concentrations of a mixture must not be negative, and its weight above 0")
        if not self.mixtures:
            raise ConfigError("budgets.mixtures is empty; name at least one with inputs and targets")


def allot(total: int, shares: npt.NDArray[np.float64], room: Counts) -> Counts:
    """Share `total` tokens by `shares`, none getting more than its `room`.

    What does not fit goes to the others, again by their shares; fractions go to the largest. The sum is
    ``min(total, room.sum())`` exactly.

    Parameters
    ----------
    total
        Tokens.
    shares
        ``(n,)``, not negative.
    room
        ``(n,)`` tokens that there are.

    Returns
    -------
    ndarray of int64, ``(n,)``
    """
    counts = np.zeros(len(room), np.int64)
    left = min(int(total), int(room.sum()))
    while left:
        gap = room - counts
        part = np.where(gap > 0, shares, 0.0)
        if not part.sum() > 0:
            part = (gap > 0).astype(np.float64)
        ideal = left * part / part.sum()
        whole = np.minimum(np.floor(ideal).astype(np.int64), gap)
        if not whole.any():  # fractions only: one token each, the largest first
            first = np.argsort(-np.minimum(ideal, gap), kind="stable")[:left]
            whole[first[gap[first] > 0]] = 1
        counts += whole
        left -= int(whole.sum())
    return counts


def draw_counts(
    budgets: Budgets, modalities: Sequence[str], room: int, rng: np.random.Generator
) -> tuple[Counts, Counts]:
    """Draw how many input and target tokens each modality gives.

    Parameters
    ----------
    budgets
        Sizes and mixtures.
    modalities
        What the sample has; `room` tokens of each.
    room
        Tokens of a window.
    rng
        Decides everything.

    Returns
    -------
    inputs, targets
        int64 ``(len(modalities),)``. At least one target; inputs and targets of a modality together are at
        most `room`.

    Raises
    ------
    ConfigError
        If no mixture has a target among the modalities.
    """
    usable = [m for m in budgets.mixtures if _fits(m, modalities)]
    if not usable:
        raise ConfigError(
            f"no mixture of budgets has inputs and targets among {', '.join(modalities)}; add one to the "
            "configuration"
        )
    weights = np.array([m.weight for m in usable])
    mixture = usable[int(rng.choice(len(usable), p=weights / weights.sum()))]
    shown, asked = (
        np.array([alphas.get(m, 0.0) for m in modalities]) for alphas in (mixture.inputs, mixture.targets)
    )
    want_in, want_out = (int(rng.integers(low, high + 1)) for low, high in (budgets.inputs, budgets.targets))
    full = np.full(len(modalities), room, np.int64)
    # One token is kept back where a modality is both input and the only target.
    keep = (asked > 0) & (np.count_nonzero(asked) == 1)
    inputs = allot(want_in, _dirichlet(shown, rng), np.where(shown > 0, full - keep, 0))
    targets = allot(want_out, _dirichlet(asked, rng), np.where(asked > 0, full - inputs, 0))
    if not targets.any():  # all candidates are shown whole: take some of one back
        i = int(np.flatnonzero(asked > 0)[0])
        back = min(want_out, int(inputs[i]))
        inputs[i] -= back
        targets[i] = back
    return inputs, targets


def _fits(mixture: Mixture, modalities: Sequence[str]) -> bool:
    """Tell whether a mixture has something to show and something to ask for."""
    return all(
        any(alphas.get(m, 0.0) > 0 for m in modalities) for alphas in (mixture.inputs, mixture.targets)
    )


def _dirichlet(alphas: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw shares; 0 where the concentration is 0."""
    out = np.zeros(len(alphas))
    there = alphas > 0
    out[there] = rng.dirichlet(alphas[there])
    return np.nan_to_num(out)


def draw_positions(
    valid: npt.NDArray[np.bool_], inputs: int, targets: int, rng: np.random.Generator
) -> tuple[Counts, Counts]:
    """Draw which positions of each sample's window are shown and which are asked for.

    Invalid tokens come last: they are used only where there are not enough others, and then the caller
    masks them.

    Parameters
    ----------
    valid
        ``(B, n)``: which tokens stand for data.
    inputs, targets
        How many; together at most n.
    rng
        Where the draws come from.

    Returns
    -------
    inputs, targets
        int64 ``(B, inputs)`` and ``(B, targets)``, without a position in common.
    """
    order = np.argsort(rng.random(valid.shape) + ~valid, axis=1)
    return order[:, :inputs], order[:, inputs : inputs + targets]
