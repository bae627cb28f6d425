"""Losses by name, with weights in the configuration.

Each takes a `Pair` and returns one value a sample, ``(B,)``. Masked pixels count nowhere: what compares
pixels leaves them out, what looks at neighbourhoods sees the same constant there in both pictures.

A loss of another package is registered by importing a module that uses `register`.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmcodec.errors import ConfigError, ModalityError
from tmcodec.metrics import PEAKS
from tmcodec.modalities import Modality
from tmcodec.training.pair import Pair, masked_mean

LOSSES: dict[str, type[Loss]] = {}
"""Classes by the name that configurations use."""

L = TypeVar("L", bound="type[Loss]")


class Loss(nn.Module):
    """Compares a `Pair`; `classes` says whether it is for class maps or for pictures."""

    classes = False

    def check(self, modality: Modality) -> None:
        """Raise ModalityError where the loss has no meaning for a modality."""
        if self.classes != modality.categorical:
            kind = "class maps" if self.classes else "pictures"
            raise ModalityError(f"this loss is for {kind}, not for {modality.name}")

    def forward(self, pair: Pair) -> Tensor:
        """Return ``(B,)``, float32."""
        raise NotImplementedError


@dataclass(frozen=True)
class LossTerm:
    """One line of a configuration: a loss by name, its weight and its options."""

    name: str
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"loss {self.name}: its weight is {self.weight}; give 0 or more")


def register(name: str) -> Callable[[L], L]:
    """Put a class into the table under `name`."""

    def add(cls: L) -> L:
        LOSSES[name] = cls
        return cls

    return add


def labels_of(terms: Sequence[LossTerm]) -> list[str]:
    """Return what logs call the losses of a configuration: their names, with numbers from the second on.

    Two LPIPS of different trunks are ``lpips`` and ``lpips-2``.
    """
    seen: Counter[str] = Counter()
    labels = []
    for term in terms:
        seen[term.name] += 1
        labels.append(term.name if seen[term.name] == 1 else f"{term.name}-{seen[term.name]}")
    return labels


def check_some(losses: Sequence[LossTerm] | None) -> None:
    """Refuse an empty list, by which nothing would be trained; None asks for the stage's own."""
    if losses is not None and not losses:
        raise ConfigError("model.losses is empty; name one at least, or leave the key out")


def make_loss(term: LossTerm, modality: Modality) -> Loss:
    """Make the loss of a line.

    Raises
    ------
    ConfigError
        If there is no such loss, it has no such option, or the modality has not what it needs.
    MissingDependencyError
        If it needs a package that is not installed.
    """
    from tmcodec.training import imagenet, perceptual, structure  # noqa: F401  (they register theirs)

    if term.name not in LOSSES:
        raise ConfigError(f"unknown loss {term.name!r}; choose one of {', '.join(sorted(LOSSES))}")
    cls = LOSSES[term.name]
    known = [p for p in inspect.signature(cls).parameters if p not in ("args", "kwargs")]
    unknown = sorted(set(term.options) - set(known))
    if unknown:
        raise ConfigError(
            f"loss {term.name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        )
    try:
        loss = cls(**term.options)
        loss.check(modality)
    except (TypeError, ModalityError) as err:
        raise ConfigError(f"loss {term.name}: {err}") from err
    return loss


# --------------------------------------------------------------------------- pixels


@register("mse")
class MeanSquaredError(Loss):
    """Squared error of normalised values."""

    def forward(self, pair: Pair) -> Tensor:
        return masked_mean((pair.plain_guess - pair.plain_truth).square(), pair.valid)


@register("l1")
class MeanAbsoluteError(Loss):
    """Absolute error of normalised values."""

    def forward(self, pair: Pair) -> Tensor:
        return masked_mean((pair.plain_guess - pair.plain_truth).abs(), pair.valid)


@register("charbonnier")
class Charbonnier(Loss):
    """``sqrt(error**2 + epsilon**2) - epsilon``: absolute error with a round tip, 0 for no error."""

    def __init__(self, epsilon: float = 0.03) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, pair: Pair) -> Tensor:
        miss = pair.plain_guess - pair.plain_truth
        return masked_mean((miss.square() + self.epsilon**2).sqrt() - self.epsilon, pair.valid)


@register("decibel")
class Decibel(Loss):
    """Logarithm of each crop's squared error in physical units over the peak: what PSNR measures.

    Errors become physical by the slope of the companding at the truth, exact to first order and cheap. A crop
    of dark water counts as much as one of clouds.
    """

    def __init__(self, peak: float | None = None) -> None:
        super().__init__()
        self.peak = peak

    def forward(self, pair: Pair) -> Tensor:
        peak = self.peak or PEAKS.get(pair.modality.name, 1000.0)
        slope = pair.compander.slope(pair.physical_truth) / peak
        miss = (pair.plain_guess - pair.plain_truth) * slope
        return torch.log(masked_mean(miss.square(), pair.valid) + 1e-6)


# --------------------------------------------------------------------------- spectra


@register("spectral_angle")
class SpectralAngle(Loss):
    """Angle between the spectra of pixels valid in all bands, radians.

    Computed as ``2 atan2(|u - v|, |u + v|)`` of unit vectors (Kahan), whose gradient stays finite at angle 0,
    where that of the arc cosine does not. Sentinel-2's offset is taken off first.
    """

    def check(self, modality: Modality) -> None:
        """Refuse fewer than three bands."""
        super().check(modality)
        if len(modality.bands) < 3:
            raise ModalityError(
                f"a spectral angle needs three bands, {modality.name} has {len(modality.bands)}"
            )

    def forward(self, pair: Pair) -> Tensor:
        u, v = (
            F.normalize(x - pair.offset, dim=1, eps=1e-3) for x in (pair.physical_guess, pair.physical_truth)
        )
        apart, along = (x.square().sum(1, keepdim=True) for x in (u - v, u + v))
        tiny = 1e-12
        angle = 2 * torch.atan2((apart + tiny).sqrt(), (along + tiny).sqrt())
        return masked_mean(angle, pair.everywhere)


def ndvi(values: Tensor, red: int, nir: int, offset: float) -> tuple[Tensor, Tensor]:
    """Return the index ``(B, 1, H, W)`` of physical values and where it is defined, as `tmcodec.metrics`."""
    r, n = ((values[:, i : i + 1] - offset).clamp_min(0) for i in (red, nir))
    total = r + n
    return (n - r) / total.clamp_min(1.0), total > 0


@register("ndvi")
class NdviError(Loss):
    """Absolute error of the NDVI computed from both pictures."""

    def check(self, modality: Modality) -> None:
        """Refuse modalities without red and near infrared."""
        super().check(modality)
        if not {"B04", "B08"} <= set(modality.bands):
            raise ModalityError(f"an NDVI needs bands B04 and B08, {modality.name} has not both")

    def forward(self, pair: Pair) -> Tensor:
        red, nir = pair.bands(("B04", "B08"))
        guess, some = ndvi(pair.physical_guess, red, nir, pair.offset)
        truth, also = ndvi(pair.physical_truth, red, nir, pair.offset)
        valid = pair.valid[:, red : red + 1] & pair.valid[:, nir : nir + 1]
        return masked_mean((guess - truth).abs(), valid & some & also)


# --------------------------------------------------------------------------- classes


@register("cross_entropy")
class CrossEntropy(Loss):
    """Cross-entropy of class logits, nats.

    Parameters
    ----------
    class_weights
        One a class; a pixel counts as much as its true class weighs (weighted mean, as in torch). None: all
        1.
    """

    classes = True
    weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def check(self, modality: Modality) -> None:
        """Refuse another number of weights than of classes."""
        super().check(modality)
        if self.weights is not None and len(self.weights) != len(modality.classes):
            raise ModalityError(f"{len(self.weights)} class weights for {len(modality.classes)} classes")

    def forward(self, pair: Pair) -> Tensor:
        ids = torch.where(pair.valid[:, 0], pair.truth[:, 0], 0).long()
        logits = torch.where(pair.valid[:, :1], pair.guess, 0.0)
        miss = F.cross_entropy(logits, ids, reduction="none")
        share = pair.valid[:, 0].float()
        if self.weights is not None:
            share = share * self.weights[ids]
        missed = torch.where(share > 0, miss, 0.0) * share
        return missed.flatten(1).sum(1) / share.flatten(1).sum(1).clamp_min(1e-6)
