"""Bands as a few principal components, with what a decoder must be told about them counted in bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Components:
    """Mean, axes and scale, as a decoder would get them: rounded to what is stored.

    Attributes
    ----------
    mean
        ``(C,)``, stored as float16; zero and not stored for a single band.
    axes
        ``(C, k)``, stored as int8 in 127ths; one and not stored for a single band.
    low
        ``(k,)``, each component's minimum, stored as float32.
    span
        Physical units from 0 to 1, stored as float32: one for all components, so that equal steps of the
        quantizer make equal errors.
    """

    mean: Float
    axes: Float
    low: Float
    span: float

    @property
    def bytes(self) -> int:
        """Bytes of side information."""
        bands, count = self.axes.shape
        return (2 * bands + bands * count if bands > 1 else 0) + 4 * count + 4

    def planes(self, values: Float) -> Float:
        """Return the components ``(k, H, W)`` in 0..1 of a picture ``(C, H, W)``."""
        flat = values.reshape(len(values), -1) - self.mean[:, None]
        # Rounded axes are not quite orthogonal: least squares, not the transpose.
        parts = np.linalg.pinv(self.axes.astype(np.float64)).astype(np.float32) @ flat
        scaled = (parts - self.low[:, None]) / np.float32(self.span)
        return np.clip(scaled, 0, 1).reshape(-1, *values.shape[1:]).astype(np.float32)

    def picture(self, planes: Float) -> Float:
        """Return the picture ``(C, H, W)`` of components ``(k, H, W)``."""
        parts = planes.reshape(len(planes), -1) * np.float32(self.span) + self.low[:, None]
        flat = self.axes @ parts + self.mean[:, None]
        return flat.reshape(-1, *planes.shape[1:]).astype(np.float32)


def fit_components(values: Float, valid: Bool, count: int) -> Components:
    """Return the `count` components of largest variance over the pixels that are valid in all bands.

    Parameters
    ----------
    values
        ``(C, H, W)``, physical units, finite.
    valid
        Same shape.
    count
        1 to C.
    """
    bands = len(values)
    everywhere = valid.all(axis=0)
    chosen = values[:, everywhere] if everywhere.any() else values.reshape(bands, -1)
    if bands == 1:
        mean, axes = np.zeros(1, np.float32), np.ones((1, 1), np.float32)
    else:
        mean = chosen.mean(axis=1, dtype=np.float64).clip(-65504, 65504)  # float16 ends there
        mean = mean.astype(np.float16).astype(np.float32)
        covariance = np.cov(chosen.astype(np.float64)) if chosen.shape[1] > 1 else np.eye(bands)
        vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :count]
        axes = (np.round(vectors * 127) / 127).astype(np.float32)
    bare = Components(mean, axes, np.zeros(axes.shape[1], np.float32), 1.0)
    parts = np.linalg.pinv(axes.astype(np.float64)) @ (chosen - mean[:, None])
    low = parts.min(axis=1).astype(np.float32)
    span = float(np.float32((parts.max(axis=1) - low).max()))
    return Components(bare.mean, bare.axes, low, span if span > 0 else 1.0)
