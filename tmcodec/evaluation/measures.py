"""How far a picture is from its original: `tmcodec.metrics`, and what only an evaluation needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tmcodec.errors import MissingDependencyError
from tmcodec.evaluation.perception import Perception
from tmcodec.metrics import ClassMetrics, compute_metrics, peak_of, psnr_of
from tmcodec.modalities import S2_OFFSET, Modality

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Values = dict[str, float]


@dataclass(frozen=True)
class Measure:
    """A row of reports: title, unit, whether more is better (None: neither), digits."""

    title: str
    unit: str
    more: bool | None
    digits: int


MEASURES = {
    "psnr": Measure("PSNR", "dB", True, 2),
    "rmse": Measure("RMSE", "units", False, 3),
    "ssim": Measure("SSIM", "", True, 3),
    "sam": Measure("SAM", "°", False, 2),
    "ergas": Measure("ERGAS", "%", False, 2),
    "lpips": Measure("LPIPS", "", False, 3),
    "ndvi_error": Measure("NDVI error", "", False, 4),
    "spectrum_error": Measure("gradient spectrum", "dB", False, 2),
    "beyond_sigma": Measure("beyond ±1σ", "%", None, 1),
    "accuracy": Measure("accuracy", "", True, 3),
    "miou": Measure("mIoU", "", True, 3),
}
"""In the order of reports."""

SPECTRUM_FLOOR = 1e-4
"""Power below this share of the original's counts as this share: differences end at 40 dB."""


def measure(
    reference: Float, other: Float, valid: Bool, modality: Modality, perception: Perception | None = None
) -> tuple[Values, dict[str, Values]]:
    """Compare two pictures.

    Parameters
    ----------
    reference, other
        ``(C, H, W)``, physical units.
    valid
        Same shape; nothing else counts.
    modality
        Row of the table.
    perception
        LPIPS; None leaves it out.

    Returns
    -------
    whole : dict
        Values by the keys of `MEASURES`; what is not defined is left out.
    bands : dict
        PSNR, RMSE and bias of each band, or ``iou`` of each class, by name.
    """
    found = compute_metrics(reference, other, valid, modality)
    if isinstance(found, ClassMetrics):
        whole = {"accuracy": found.accuracy, "miou": found.miou}
        return _numbers(whole), {name: {"iou": iou} for name, iou in found.iou.items()}
    whole = {
        "psnr": found.psnr,
        "rmse": found.rmse,
        "ssim": found.ssim,
        "sam": math.nan if found.sam is None else found.sam,
        "ergas": ergas(reference, other, valid, modality),
        "lpips": math.nan if perception is None else perception.distance(reference, other, valid, modality),
        "ndvi_error": math.nan if found.ndvi_error is None else found.ndvi_error,
        "spectrum_error": spectrum_error(reference, other, valid),
        "beyond_sigma": 100 * beyond_sigma(other, valid, modality),
    }
    bands = {b.name: _numbers({"psnr": b.psnr, "rmse": b.rmse, "bias": b.bias}) for b in found.bands}
    return _numbers(whole), bands


def score(reference: Float, other: Float, valid: Bool, modality: Modality) -> Values:
    """Return PSNR alone, or accuracy; parameters as for `measure`."""
    if modality.categorical:
        return _numbers({"accuracy": float((reference == other)[valid].mean())})
    mse = float(np.square(other - reference)[valid].mean(dtype=np.float64))
    return _numbers({"psnr": psnr_of(mse, peak_of(modality, reference, valid))})


def ergas(reference: Float, other: Float, valid: Bool, modality: Modality) -> float:
    """Return ERGAS in percent of the bands' means, pixels of equal size (torchmetrics), reflectance without
    offset.

    NaN for all but optical pictures: it divides by means, which for dB, heights and indices mean nothing.
    """
    pixels = valid.all(axis=0)
    if not (modality.optical or modality.name == "S2RGB") or not pixels.any():
        return math.nan
    import torch

    offset = S2_OFFSET if modality.optical else 0.0
    # It knows no mask: the valid pixels go in as a picture of one column.
    first, second = (torch.from_numpy(p[:, pixels].astype(np.float64) - offset) for p in (reference, other))
    function = torchmetrics_image().error_relative_global_dimensionless_synthesis
    # torchmetrics writes 100 / ratio with ratio = the larger over the smaller pixel size.
    return float(function(second[None, :, :, None], first[None, :, :, None], ratio=1))


def torchmetrics_image() -> Any:
    """Import torchmetrics' functional image metrics.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    from tmcodec.training.torchvision_operators import stand_in

    stand_in()  # torchmetrics imports torchvision wherever it finds it
    try:
        import torchmetrics.functional.image as found
    except (ImportError, RuntimeError, OSError) as err:
        raise MissingDependencyError(
            "evaluation needs the package torchmetrics; pip install 'tmcodec[evaluate]'"
        ) from err
    return found


def spectrum_error(reference: Float, other: Float, valid: Bool) -> float:
    """Return how far the gradients' power spectra are apart: mean of the absolute differences in dB.

    The spectrum is that of the first differences along rows and columns under a Hann window, summed over
    rings of one frequency each, up to Nyquist; mean over rings and bands. Differences that touch an invalid
    pixel are zero in both pictures. A picture that is smoother than its original has less power at high
    frequencies, a checkerboard more: both count.
    """
    errors = []
    for first, second, ok in zip(reference, other, valid, strict=True):
        one, two = (_ring_power(np.where(ok, p, np.float32(0)), ok) for p in (first, second))
        seen = one > 0
        if seen.any():
            ratio = np.maximum(two[seen] / one[seen], SPECTRUM_FLOOR)
            errors.append(float(np.mean(np.abs(10 * np.log10(ratio)))))
    return math.fsum(errors) / len(errors) if errors else math.nan


def _ring_power(band: Float, ok: Bool) -> npt.NDArray[np.float64]:
    """Return the gradients' power in rings of frequency, shape (rings,), without the mean."""
    if min(band.shape) < 4:
        return np.zeros(0)
    rings = max(2, min(min(band.shape) // 2, 64))
    total = np.zeros(rings + 1)
    for axis in (0, 1):
        step = np.diff(band.astype(np.float64), axis=axis)
        both = ok[1:] & ok[:-1] if axis == 0 else ok[:, 1:] & ok[:, :-1]
        step *= both
        window = np.hanning(step.shape[0] + 2)[1:-1, None] * np.hanning(step.shape[1] + 2)[1:-1]
        power = np.abs(np.fft.rfft2(step * window)) ** 2 / step.size
        radius = np.hypot(np.fft.fftfreq(step.shape[0])[:, None], np.fft.rfftfreq(step.shape[1]))
        ring = np.minimum(np.rint(radius * 2 * rings).astype(np.intp), rings + 1)
        total += np.bincount(ring.ravel(), power.ravel(), rings + 2)[: rings + 1]
    return total[1:]


def beyond_sigma(values: Float, valid: Bool, modality: Modality) -> float:
    """Return the share of valid values further than one standard deviation from TerraMind's mean."""
    shape = (-1, 1, 1)
    mean, std = (np.array(s, np.float32).reshape(shape) for s in (modality.mean, modality.std))
    count = int(valid.sum())
    return float((np.abs(values - mean) > std)[valid].sum() / count) if count else math.nan


def _numbers(values: Values) -> Values:
    return {key: float(value) for key, value in values.items() if not math.isnan(value)}
