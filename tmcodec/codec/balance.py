"""Fit and apply the radiometric balance: gains and offsets of each band, bilinear between nodes.

What a tokenizer's decoder misses on a new place is mostly low in frequency and alike over kilometres: a
material's colour, haze, the season's green. Least squares on what was decoded finds it while encoding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.modalities import BalanceScale
from tmcodec.rasters.windows import Window
from tmcodec.tokenfile.balance import MAX_VALUE, Balance, node_counts

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Sums = npt.NDArray[np.float64]

SPACING = 32
"""Tokens between nodes: 512 pixels, so that a balance costs about 0.2 bit a token."""

MARGIN = 2
"""Tokens along a cut where decoding misses its context: left out of the fit."""

SHRINK = 0.02
"""Weight of the whole raster's statistics in each node's, relative: holds nodes with little evidence."""


def hat_weights(positions: npt.NDArray[np.float64], nodes: int) -> npt.NDArray[np.float64]:
    """Return the bilinear weights ``(len(positions), nodes)`` of positions in units of nodes.

    Node i lies at position i; beyond the first and last node their weight is 1.
    """
    at = np.clip(positions, 0, nodes - 1)
    return np.clip(1 - np.abs(at[:, None] - np.arange(nodes)), 0, None)


class BalanceFit:
    """Gathers, window by window, what decides the balance of one raster.

    Parameters
    ----------
    rows, cols
        Token grid.
    patch
        Pixels per token.
    bands
        Number of bands.
    scale
        See `tmcodec.modalities.BalanceScale`.
    spacing
        Tokens between nodes.
    """

    def __init__(
        self, rows: int, cols: int, patch: int, bands: int, scale: BalanceScale, spacing: int = SPACING
    ) -> None:
        self.scale, self.spacing, self.patch = scale, spacing, patch
        self.shape = node_counts(rows, cols, spacing)
        # For each node and band: pixels, and sums of y, x, y*y, x*y, all over the pivot.
        self.sums = np.zeros((*self.shape, bands, 5))

    def add(self, at: Window, decoded: Values, original: Values, valid: Mask) -> None:
        """Add pixels that were decoded.

        Parameters
        ----------
        at
            Where they lie in the raster, in pixels, aligned to patches.
        decoded, original
            Float ``(bands, h, w)``, physical units.
        valid
            bool ``(bands, h, w)``; the others are left out.
        """
        patch, step = self.patch, self.spacing * self.patch
        sums = np.stack([
            _patch_sums(d, o, v, patch, self.scale.pivot)
            for d, o, v in zip(decoded, original, valid, strict=True)
        ], axis=2)  # fmt: skip
        rows, cols = sums.shape[:2]
        row_at = (at.row + (np.arange(rows) + 0.5) * patch) / step - 0.5
        col_at = (at.col + (np.arange(cols) + 0.5) * patch) / step - 0.5
        by_row = np.tensordot(hat_weights(row_at, self.shape[0]), sums, (0, 0))
        self.sums += np.tensordot(hat_weights(col_at, self.shape[1]), by_row, (0, 1)).swapaxes(0, 1)

    def solve(self) -> Balance:
        """Return the balance, rounded to its steps."""
        whole = self.sums.sum(axis=(0, 1))
        n, y, x, yy, xy = np.moveaxis(self.sums + SHRINK * whole / np.prod(self.shape), -1, 0)
        n = np.maximum(n, 1e-9)
        mean_y, mean_x = y / n, x / n
        noise = self.scale.noise**2
        gain = (xy / n - mean_x * mean_y + noise) / (np.maximum(yy / n - mean_y**2, 0) + noise)
        scale = self.scale
        gains = np.round(np.clip(gain - 1, -0.75, 3) * scale.divisor)
        offset = mean_x - (1 + gains / scale.divisor) * mean_y  # goes with the rounded gain
        offsets = np.clip(np.round(offset / scale.step), -MAX_VALUE, MAX_VALUE)
        values = np.stack([gains, offsets], axis=-1).astype(np.int64).ravel()
        return Balance(self.spacing, scale.pivot, scale.divisor, scale.step, tuple(values.tolist()))


def _patch_sums(
    decoded: Values, original: Values, valid: Mask, patch: int, pivot: float
) -> Sums:
    """Return the five sums of one band over each patch: ``(rows, cols, 5)``."""
    w = valid.astype(np.float32)
    # Not a product: what is not valid may be NaN.
    y, x = (np.where(valid, v - np.float32(pivot), np.float32(0)) for v in (decoded, original))
    rows, cols = -(-decoded.shape[0] // patch), -(-decoded.shape[1] // patch)
    short = ((0, rows * patch - decoded.shape[0]), (0, cols * patch - decoded.shape[1]))

    def total(values: Values) -> Sums:
        whole = np.pad(values, short) if short != ((0, 0), (0, 0)) else values
        summed: Sums = whole.reshape(rows, patch, cols, patch).sum(axis=(1, 3), dtype=np.float64)
        return summed

    return np.stack([total(w), total(y), total(x), total(y * y), total(x * y)], axis=-1)


def apply_balance(
    values: Values, at: Window, balance: Balance, nodes: npt.NDArray[np.int32], patch: int
) -> Values:
    """Balance decoded values in place.

    Parameters
    ----------
    values
        Float32 ``(bands, h, w)``, physical units.
    at
        Where they lie in the raster, in pixels. The result for a pixel does not depend on the window.
    balance
        The layer's.
    nodes
        Its integers for one time step, ``(node rows, node cols, bands, 2)``.
    patch
        Pixels per token.

    Returns
    -------
    ndarray
        `values`.
    """
    step = balance.spacing * patch
    rows = _node_places(np.arange(at.row, at.row_end), step, nodes.shape[0])
    cols = _node_places(np.arange(at.col, at.col_end), step, nodes.shape[1])
    steps = np.array([1 / balance.divisor, balance.step], np.float32)
    scaled = nodes.astype(np.float32) * steps
    for band, plane in enumerate(values):
        gain, offset = (_interpolate(scaled[:, :, band, k], rows, cols) for k in (0, 1))
        plane += gain * (plane - np.float32(balance.pivot)) + offset
    return values


Places = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Values]


def _node_places(pixels: npt.NDArray[np.intp], step: int, nodes: int) -> Places:
    """Return, for pixels along one axis, the node before, the node after, and the share of the latter."""
    at = np.clip((pixels + 0.5) / step - 0.5, 0, nodes - 1)
    before = np.floor(at).astype(np.intp)
    return before, np.minimum(before + 1, nodes - 1), (at - before).astype(np.float32)


def _interpolate(nodes: Values, rows: Places, cols: Places) -> Values:
    """Interpolate one plane of nodes bilinearly, element by element: the same in every window."""
    if nodes.size == 1:
        return nodes.reshape(1, 1)
    above, below, down = rows
    left, right, across = cols
    lines = nodes[above] * (1 - down)[:, None] + nodes[below] * down[:, None]
    plane = lines[:, left] * (1 - across) + lines[:, right] * across
    return plane.astype(np.float32, copy=False)


# --------------------------------------------------------------------------- probing while encoding


class BalanceProbe:
    """Decodes what was just encoded, chunk by chunk, and fits the raster's balance to it.

    Parameters
    ----------
    tok
        Tokenizer that made the tokens.
    width, height
        Of the raster, in pixels.
    scale
        The modality's.
    """

    def __init__(self, tok: Tokenizer, width: int, height: int, scale: BalanceScale) -> None:
        self.tok, self.width, self.height = tok, width, height
        rows, cols = -(-height // tok.patch), -(-width // tok.patch)
        self.fit = BalanceFit(rows, cols, tok.patch, len(tok.modality.bands), scale)

    def add(self, chunk: Window, tokens: npt.NDArray[np.int32], original: Values, valid: Mask) -> None:
        """Decode a chunk and add it to the fit.

        Parameters
        ----------
        chunk
            Its pixels in the raster.
        tokens
            int32 ``(rows, cols)``.
        original, valid
            ``(bands, h, w)`` over its pixels: float32 in physical units, bool.
        """
        inner = self.trusted(chunk)
        decoded = self.tok.decode(torch.from_numpy(tokens)[None])[0].cpu().numpy()
        rows, cols = inner.relative_to(chunk).slices
        self.fit.add(inner, decoded[:, rows, cols], original[:, rows, cols], valid[:, rows, cols])

    def trusted(self, chunk: Window) -> Window:
        """Return the chunk without a margin where it was cut from the raster, if that leaves anything."""
        margin = MARGIN * self.tok.patch
        left, top = (margin if start else 0 for start in (chunk.col, chunk.row))
        right = margin if chunk.col_end < self.width else 0
        bottom = margin if chunk.row_end < self.height else 0
        width, height = chunk.width - left - right, chunk.height - top - bottom
        if width <= 0 or height <= 0:
            return chunk
        return Window(chunk.col + left, chunk.row + top, width, height)
