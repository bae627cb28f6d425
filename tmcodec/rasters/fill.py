"""Replace invalid pixels smoothly, so that networks see no cliff at a nodata border.

Push-pull pyramid (Gortler et al., The Lumigraph, 1996): means of the valid pixels of 2x2
blocks on the way up; on the way down each gap takes the interpolated coarser level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


def fill_invalid(values: Float, valid: Bool, fallback: float | Sequence[float] = 0.0) -> Float:
    """Replace invalid pixels by smooth continuations of the valid ones.

    Parameters
    ----------
    values
        Shape (C, H, W), float32, any unit. Invalid pixels may hold anything.
    valid
        Shape (C, H, W). NaN and infinity count as invalid even where this says otherwise.
    fallback
        Value for a band without any valid pixel, one for all bands or one each; the
        modality's mean is a good choice.

    Returns
    -------
    ndarray
        Finite, float32, same shape; valid pixels unchanged. The very input where nothing
        has to be replaced.
    """
    usable = valid & np.isfinite(values)
    if usable.all():
        return values
    fallbacks = np.broadcast_to(np.asarray(fallback, np.float32), (len(values),))
    filled = values.copy()
    for band, ok, default in zip(filled, usable, fallbacks, strict=True):
        if not ok.any():
            band[...] = default
        elif not ok.all():
            band[...] = _push_pull(np.where(ok, band, np.float32(0)), ok.astype(np.float32))
    return filled


def _push_pull(values: Float, weights: Float) -> Float:
    """Fill where `weights` is 0; shapes (H, W); at least one weight is positive."""
    if (weights > 0).all():
        return values
    coarse = _pull(_push_pull(*_push(values, weights)), values.shape)
    return np.where(weights > 0, values, coarse)


def _push(values: Float, weights: Float) -> tuple[Float, Float]:
    """Halve both axes: weighted means and mean weights of 2x2 blocks."""
    odd = ((0, values.shape[0] % 2), (0, values.shape[1] % 2))
    v, w = _blocks(np.pad(values, odd)), _blocks(np.pad(weights, odd))
    total = w.sum(axis=0)
    # Normalise the weights before the product: sums of large values would overflow.
    share = w / np.where(total > 0, total, np.float32(1))
    return (v * share).sum(axis=0, dtype=np.float32), total / np.float32(4)


def _blocks(image: Float) -> Float:
    """Return the four pixels of each 2x2 block, shape (4, H/2, W/2)."""
    return np.stack([image[0::2, 0::2], image[0::2, 1::2], image[1::2, 0::2], image[1::2, 1::2]])


def _pull(coarse: Float, shape: tuple[int, ...]) -> Float:
    """Double both axes by linear interpolation at pixel centres and crop to `shape`."""
    rows = _double(coarse)[: shape[0]]
    return np.ascontiguousarray(_double(rows.T)[: shape[1]].T)


def _double(image: Float) -> Float:
    """Double the first axis; the border repeats its last pixel."""
    near, quarter = np.float32(0.75) * image, np.float32(0.25)
    out = np.empty((2 * image.shape[0], image.shape[1]), np.float32)
    out[0::2] = near + quarter * np.concatenate([image[:1], image[:-1]])
    out[1::2] = near + quarter * np.concatenate([image[1:], image[-1:]])
    return out
