"""Mean and standard deviation of each band over whole corpora, window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tmcodec.errors import CorpusError, TmcodecError
from tmcodec.networks.compand import Compander
from tmcodec.training.sources import CropSource

Double = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BandStatistics:
    """Statistics of companded values, and of what.

    Attributes
    ----------
    mean, std
        One a band.
    pixels
        Valid pixels, one number a band.
    items, skipped
        Files or samples that were read, and that were left out as bad.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: tuple[int, ...]
    items: int
    skipped: int


def item_moments(source: CropSource, item: int, curve: Compander) -> tuple[Double, Double, Double]:
    """Return count, mean and sum of squared differences of each band of an item, merged window by window.

    Chan, Golub and LeVeque's update: no difference of large sums.
    """
    bands = len(source.modality.bands)
    count, mean, spread = np.zeros(bands), np.zeros(bands), np.zeros(bands)
    for values, valid in source.windows(item):
        curved = curve.curve(torch.from_numpy(np.ascontiguousarray(values))).numpy().astype(np.float64)
        for band in range(bands):
            picked = curved[band][valid[band]]
            if not picked.size:
                continue
            total = count[band] + picked.size
            shift = picked.mean() - mean[band]
            spread[band] += ((picked - picked.mean()) ** 2).sum() + shift**2 * count[
                band
            ] * picked.size / total
            mean[band] += shift * picked.size / total
            count[band] = total
    return count, mean, spread


def band_statistics(
    sources: Sequence[CropSource], compand: str = "linear", origin: float = 0.0, knee: float = 1.0
) -> BandStatistics:
    """Read all of the sources once; memory holds one window.

    Each item counts as often as its crops are drawn: by its source's weight and its share there.

    Parameters
    ----------
    sources
        Of one modality.
    compand, origin, knee
        See `tmcodec.networks.compand.Compander`; linear gives statistics in physical units.

    Raises
    ------
    TmcodecError
        If a file is bad and its source does not skip such.
    CorpusError
        If a band has no valid pixel anywhere, or one value everywhere.
    """
    modality, curve = sources[0].modality, Compander(compand, origin, knee, [0.0], [1.0])
    first, second, total, pixels = (np.zeros(len(modality.bands)) for _ in range(4))
    items = 0
    for source in sources:
        for item in np.flatnonzero(source.shares):
            try:
                count, mean, spread = item_moments(source, int(item), curve)
            except TmcodecError as error:
                source.refuse(int(item), error)
                continue
            items += 1
            pixels += count
            weight = np.where(count > 0, source.weight * source.shares[item], 0.0)
            first += weight * mean
            second += weight * (spread / np.maximum(count, 1) + mean**2)
            total += weight
    if not total.all():
        missing = ", ".join(b for b, t in zip(modality.bands, total, strict=True) if not t)
        raise CorpusError(f"no valid pixel of {missing} in {items} files; check the data")
    mean = first / total
    variance = second / total - mean**2
    flat = variance <= 1e-12 * (1 + mean**2)  # what rounding leaves of nothing
    if flat.any():
        names = ", ".join(b for b, one in zip(modality.bands, flat, strict=True) if one)
        raise CorpusError(
            f"one value everywhere in {names}, and no deviation to normalise by; check the data, or give "
            "model.net.mean and std"
        )
    std = np.sqrt(variance)
    skipped = sum(len(s.bad) for s in sources)
    plain = tuple(map(float, mean)), tuple(map(float, std)), tuple(map(int, pixels))
    return BandStatistics(*plain, items, skipped)
