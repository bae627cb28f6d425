"""A reconstruction and its truth, in the units that losses ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tmcodec.modalities import S2_OFFSET, Modality
from tmcodec.networks.compand import Compander


@dataclass
class Pair:
    """What losses compare; only valid pixels of `guess` and `truth` mean anything.

    Attributes
    ----------
    guess, truth
        float32 ``(B, C, H, W)``, normalised; of class maps `guess` is logits ``(B, K, H, W)`` and `truth`
        ids ``(B, 1, H, W)``.
    valid
        bool ``(B, C, H, W)`` (class maps: one channel).
    modality
        Row of the table.
    compander
        From physical units to normalised ones and back.
    """

    guess: Tensor
    truth: Tensor
    valid: Tensor
    modality: Modality
    compander: Compander

    @cached_property
    def everywhere(self) -> Tensor:
        """Pixels valid in all bands, bool ``(B, 1, H, W)``."""
        return self.valid.all(1, keepdim=True)

    @cached_property
    def plain_truth(self) -> Tensor:
        """The truth with zeros, the band's mean, at masked pixels."""
        return torch.where(self.valid, self.truth, 0.0)

    @cached_property
    def plain_guess(self) -> Tensor:
        """The guess with the same zeros: neighbourhoods of masked pixels look alike in both, and no gradient
        passes."""
        return torch.where(self.valid, self.guess, 0.0)

    @cached_property
    def physical_truth(self) -> Tensor:
        """The truth in physical units, the band's mean at masked pixels."""
        return self.compander.expand(self.plain_truth)

    @cached_property
    def physical_guess(self) -> Tensor:
        """The guess in physical units."""
        return self.compander.expand(self.plain_guess)

    @property
    def offset(self) -> float:
        """What is black: Sentinel-2's radiometric offset, else 0."""
        return S2_OFFSET if self.modality.optical else 0.0

    def bands(self, names: tuple[str, ...]) -> list[int]:
        """Return the channels of bands by name; a name that is missing is a ValueError."""
        return [self.modality.bands.index(name) for name in names]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over valid elements of each sample, ``(B, ...)`` to ``(B,)``; 0 where none is valid.

    Whatever stands at masked elements, NaN included, reaches neither the mean nor the gradient.
    """
    m = mask.expand_as(x).flatten(1)
    return torch.where(m, x.flatten(1), 0.0).sum(1) / m.sum(1).clamp_min(1)
