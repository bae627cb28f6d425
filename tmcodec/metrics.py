"""How far a reconstruction is from its original: errors in physical units, band by band.

Everything is computed over pixels that are valid in both pictures. What is not defined (no
valid pixel, a picture smaller than the SSIM window, a flat DEM) is NaN; the PSNR of identical
pictures is infinite.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tmcodec.errors import ShapeError, UnitsError
from tmcodec.modalities import S2_OFFSET, Modality

Real = npt.NDArray[np.floating[Any]]
Double = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

PEAKS = {
    "S2L2A": 10000.0,  # reflectance 1
    "S2L1C": 10000.0,
    "S2RGB": 255.0,
    "S1GRD": 50.0,  # dB between calm water and a corner reflector
    "S1RTC": 50.0,
    "NDVI": 2.0,  # -1..1
}
"""The peak of PSNR and SSIM, physical units. A DEM's is the range of the reference."""

SSIM_WINDOW = 7
"""Pixels; scikit-image's default for its uniform window."""


@dataclass(frozen=True)
class BandMetrics:
    """Errors of one band.

    Attributes
    ----------
    name
        Of the band.
    psnr
        dB.
    rmse, mae, bias
        Root mean square, mean absolute and mean signed error, physical units.
    ssim
        Structural similarity, at most 1.
    """

    name: str
    psnr: float
    rmse: float
    mae: float
    bias: float
    ssim: float


@dataclass(frozen=True)
class ImageMetrics:
    """Errors of a picture.

    Attributes
    ----------
    pixels
        How many pixels are valid in all bands of both pictures.
    peak
        What PSNR and SSIM call the full range, physical units.
    psnr
        dB, from the mean squared error of all bands together.
    rmse, mae
        Of all bands together, physical units.
    ssim
        Mean over the bands.
    sam
        Mean spectral angle in degrees, Sentinel-2 without its offset; None below three bands.
    ndvi_error
        Mean absolute error of the NDVI computed from both pictures; None without B04 and B08.
    bands
        The same for each band.
    """

    pixels: int
    peak: float
    psnr: float
    rmse: float
    mae: float
    ssim: float
    sam: float | None
    ndvi_error: float | None
    bands: tuple[BandMetrics, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON; what is NaN or infinite becomes None."""
        return {key: _jsonable(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class ClassMetrics:
    """Agreement of two class maps.

    Attributes
    ----------
    pixels
        How many pixels are valid in both.
    accuracy
        Share of them that agree, 0..1.
    miou
        Mean of `iou`.
    iou
        Intersection over union of each class that occurs in either map, by name.
    """

    pixels: int
    accuracy: float
    miou: float
    iou: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON; what is NaN becomes None."""
        return {key: _jsonable(value) for key, value in asdict(self).items()}


Metrics = ImageMetrics | ClassMetrics


def compute_metrics(reference: Real, other: Real, valid: Bool, modality: Modality) -> Metrics:
    """Compare two pictures of one modality.

    Parameters
    ----------
    reference, other
        Shape (C, H, W), physical units as in `tmcodec.modalities`, in its band order.
    valid
        Same shape; true where both are valid. Values elsewhere do not matter.
    modality
        Row of the table.

    Raises
    ------
    ShapeError
        If the shapes differ or do not fit the modality.
    """
    if not reference.shape == other.shape == valid.shape or len(reference) != len(modality.bands):
        raise ShapeError(
            f"pictures of {modality.name} to compare must all be ({len(modality.bands)}, H, W), "
            f"not {reference.shape}, {other.shape} and mask {valid.shape}"
        )
    if modality.categorical:
        return class_metrics(reference[0], other[0], valid[0], modality.classes)
    return image_metrics(reference, other, valid, modality)


def image_metrics(reference: Real, other: Real, valid: Bool, modality: Modality) -> ImageMetrics:
    """Compare two pictures with continuous values; parameters as for `compute_metrics`."""
    peak = peak_of(modality, reference, valid)
    bands = tuple(
        band_metrics(name, first, second, ok, peak)
        for name, first, second, ok in zip(modality.bands, reference, other, valid, strict=True)
    )
    weights = valid.sum(axis=(1, 2), dtype=np.int64)
    mse = _weighted_mean([b.rmse**2 for b in bands], weights)
    has_ndvi = "B04" in modality.bands and "B08" in modality.bands
    return ImageMetrics(
        pixels=int(valid.all(axis=0).sum()),
        peak=peak,
        psnr=psnr_of(mse, peak),
        rmse=math.sqrt(mse),
        mae=_weighted_mean([b.mae for b in bands], weights),
        ssim=_mean([b.ssim for b in bands]),
        sam=spectral_angle(reference, other, valid, _offset(modality)) if len(bands) >= 3 else None,
        ndvi_error=ndvi_error(reference, other, valid, modality) if has_ndvi else None,
        bands=bands,
    )


def peak_of(modality: Modality, reference: Real, valid: Bool) -> float:
    """Return the peak in physical units; where the table has none, the range of the reference."""
    if modality.name in PEAKS:
        return PEAKS[modality.name]
    values = reference[valid]
    return float(values.max() - values.min()) if values.size else math.nan


def psnr_of(mse: float, peak: float) -> float:
    """Return ``10 log10(peak**2 / mse)`` in dB: infinite for no error, NaN for no peak."""
    if math.isnan(mse) or not peak > 0:
        return math.nan
    return 10 * math.log10(peak**2 / mse) if mse > 0 else math.inf


def band_metrics(name: str, reference: Real, other: Real, valid: Bool, peak: float) -> BandMetrics:
    """Compare one band, shapes (H, W)."""
    if not valid.any():
        return BandMetrics(name, math.nan, math.nan, math.nan, math.nan, math.nan)
    error = other[valid].astype(np.float64) - reference[valid]
    mse = float(np.mean(error**2))
    return BandMetrics(
        name=name,
        psnr=psnr_of(mse, peak),
        rmse=math.sqrt(mse),
        mae=float(np.mean(np.abs(error))),
        bias=float(np.mean(error)),
        ssim=ssim(reference, other, valid, peak),
    )


def ssim(reference: Real, other: Real, valid: Bool, peak: float) -> float:
    """Return the structural similarity of one band, shapes (H, W).

    Invalid pixels get one value in both pictures and are left out of the mean, as is the
    border where the window does not fit: without a mask this is scikit-image's own figure.
    """
    from skimage import metrics as skimage_metrics

    structural_similarity: Any = skimage_metrics.structural_similarity  # has no annotations
    side = min(SSIM_WINDOW, (min(reference.shape) - 1) // 2 * 2 + 1)  # odd, not above the picture
    border = side // 2
    inner = (slice(border, -border),) * 2
    if side < 3 or not peak > 0 or not valid[inner].any():
        return math.nan
    fill = float(reference[valid].mean(dtype=np.float64))
    # float64: the window's variance is a difference of squares of numbers near 10000.
    first, second = (np.where(valid, plane, fill).astype(np.float64) for plane in (reference, other))
    _, score = structural_similarity(first, second, win_size=side, data_range=peak, full=True)
    return float(score[inner][valid[inner]].mean())


def spectral_angle(reference: Real, other: Real, valid: Bool, offset: float = 0.0) -> float:
    """Return the mean angle between the spectra of two pictures (C, H, W), in degrees.

    `offset` is taken off first: a constant in all bands would make every angle small. Pixels
    that are all zero have no direction and do not count.
    """
    shape = reference.shape[1:]
    product, first, second = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for one, two in zip(reference, other, strict=True):
        a, b = one.astype(np.float64) - offset, two.astype(np.float64) - offset
        product += a * b
        first += a * a
        second += b * b
    norm = np.sqrt(first) * np.sqrt(second)
    counted = valid.all(axis=0) & (norm > 0)
    if not counted.any():
        return math.nan
    cosine = np.clip(product[counted] / norm[counted], -1, 1)
    return float(np.degrees(np.arccos(cosine)).mean())


def ndvi_error(reference: Real, other: Real, valid: Bool, modality: Modality) -> float:
    """Return the mean absolute difference of the NDVI of two Sentinel-2 pictures (C, H, W).

    Negative reflectances (deep shadow after atmospheric correction) count as 0, so that the
    index stays within -1..1; pixels that are 0 in both bands have none and do not count.
    """
    red, nir = modality.bands.index("B04"), modality.bands.index("B08")
    first, some = _ndvi(reference[red], reference[nir], _offset(modality))
    second, also = _ndvi(other[red], other[nir], _offset(modality))
    counted = some & also & valid[red] & valid[nir]
    return float(np.abs(first - second)[counted].mean()) if counted.any() else math.nan


def class_metrics(reference: Real, other: Real, valid: Bool, names: tuple[str, ...]) -> ClassMetrics:
    """Compare two maps of class ids, shapes (H, W); `names` are the names of ids 0, 1, ...

    Raises
    ------
    UnitsError
        If a valid pixel has an id without a name.
    """
    count = len(names)
    if not valid.any():
        return ClassMetrics(0, math.nan, math.nan, {})
    for ids in (reference[valid], other[valid]):
        if not (ids.min() >= 0 and ids.max() < count):
            raise UnitsError(f"class ids {ids.min():g} to {ids.max():g}; the legend has 0 to {count - 1}")
    first, second = reference[valid].astype(np.int64), other[valid].astype(np.int64)
    confusion = np.bincount(first * count + second, minlength=count * count).reshape(count, count)
    both = np.diag(confusion)
    either = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    iou = {names[i]: float(both[i] / either[i]) for i in range(count) if either[i]}
    return ClassMetrics(int(first.size), float(both.sum() / first.size), _mean(list(iou.values())), iou)


def _offset(modality: Modality) -> float:
    return S2_OFFSET if modality.optical else 0.0


def _ndvi(red: Real, nir: Real, offset: float) -> tuple[Double, Bool]:
    """Return the index and where it is defined."""
    r = np.maximum(red.astype(np.float64) - offset, 0)
    n = np.maximum(nir.astype(np.float64) - offset, 0)
    total = n + r
    return (n - r) / np.where(total > 0, total, 1), total > 0


def _weighted_mean(values: list[float], weights: npt.NDArray[np.int64]) -> float:
    """Return the mean over all valid pixels of all bands; bands without any do not count."""
    total = int(weights.sum())
    parts = [v * int(w) for v, w in zip(values, weights, strict=True) if w]
    return math.fsum(parts) / total if total else math.nan


def _mean(values: list[float]) -> float:
    """Return the mean of those that are numbers."""
    numbers = [v for v in values if not math.isnan(v)]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _jsonable(value: Any) -> Any:
    """Return `value` with lists for tuples and None for what JSON cannot say."""
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
