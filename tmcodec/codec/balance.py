"""Fit and apply the radiometric balance: bands mixed, gains and offsets bilinear between nodes.

What a tokenizer's decoder misses on a new place is mostly low in frequency and alike over kilometres: a
material's colour, haze, the season's green. Least squares on what was decoded finds it while encoding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tmcodec.codec.balance_steps import NodeSums, choose_steps, least_squares
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.modalities import BalanceScale
from tmcodec.rasters.windows import Window
from tmcodec.tokenfile.balance import MAX_VALUE, Balance, node_counts

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Sums = npt.NDArray[np.float64]
Nodes = npt.NDArray[np.int32]

SPACING = 32
"""Tokens between nodes: 512 pixels, so that their integers cost about 0.2 bit a token."""

MARGIN = 2
"""Tokens along a cut where decoding misses its context: left out of the fit."""

BLOCK = 4
"""Side in tokens of what shares one place between the nodes while moments are gathered."""

STRIP = 32
"""Rows that are balanced at once: their temporaries stay in the cache."""

SHRINK = 0.02
"""Weight of the whole raster's statistics in each node's, relative: holds nodes with little evidence."""

MIX_DIVISOR = 128
"""Units of the integers of the mixing."""

COMPONENTS = 3
"""Most components of the mixing of bands."""

SLOPE = 5.0
"""Decibels that an e-fold of the file must bring: JPEG 2000 gains 1.8 dB from 0.7 of the bytes to all."""

CAST = 0.5
"""Share of that asked of the bits of gains and offsets: a cast is seen more than its squared error says."""


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
        self.scale, self.spacing, self.patch, self.bands = scale, spacing, patch, bands
        self.tokens = rows * cols
        # For each node, sums over pixels of (1, x, y) times (1, y), values over the pivot: all that
        # least squares of x on y and on any mixture of y need.
        self.moments = np.zeros((*node_counts(rows, cols, spacing), 1 + 2 * bands, 1 + bands))
        self.square_x = np.zeros(bands)

    def add(self, at: Window, decoded: Values, original: Values, valid: Mask) -> None:
        """Add pixels that were decoded.

        Parameters
        ----------
        at
            Where they lie in the raster, in pixels.
        decoded, original
            Float ``(bands, h, w)``, physical units.
        valid
            bool ``(bands, h, w)``; pixels count where all bands are, and are what a surface may have.
        """
        valid = valid & (original >= self.scale.low) & (original <= self.scale.high)
        side, step = BLOCK * self.patch, self.spacing * self.patch
        ok: npt.NDArray[np.bool_] = np.all(valid, axis=0)
        for band, plane in enumerate(original):
            self.square_x[band] += np.square(plane[ok] - self.scale.pivot, dtype=np.float64).sum()
        for top in range(0, at.height, side):
            rows = slice(top, top + side)
            found = _row_moments(decoded[:, rows], original[:, rows], valid[:, rows], side, self.scale.pivot)
            middle = at.row + (top + min(top + side, at.height)) / 2
            starts = np.arange(len(found)) * side
            middles = at.col + (starts + np.minimum(starts + side, at.width)) / 2
            down = hat_weights(np.array([middle / step - 0.5]), self.moments.shape[0])[0]
            across = hat_weights(middles / step - 0.5, self.moments.shape[1])
            line = np.tensordot(across, found, (0, 0))
            self.moments += down[:, None, None, None] * line

    def solve(self, mixing: bool = True) -> Balance:
        """Return the balance in whole steps, none of which costs more bytes than it brings.

        Parameters
        ----------
        mixing
            Whether bands may be mixed.
        """
        scale, whole = self.scale, self.moments.sum(axis=(0, 1))
        mix = self._mix(whole) if mixing else np.zeros((0, 2, self.bands))
        mixed = np.eye(self.bands) + mix[:, 0].T @ mix[:, 1] / MIX_DIVISOR**2
        sums = self._sums(mixed)
        # A bit more is worth so many decibels of the error that is left.
        bit = self._left(sums) * CAST * SLOPE / (8 * self._file_bytes) * np.log(10) / 10
        values = choose_steps(sums, scale, bit)
        return Balance(
            self.spacing,
            scale.pivot,
            scale.divisor,
            scale.step,
            _integers(values),
            MIX_DIVISOR,
            _integers(mix),
        )

    def _sums(self, mixed: Sums) -> NodeSums:
        """Return the sums of each node after mixing, with some of the whole raster's."""
        whole = self.moments.sum(axis=(0, 1))
        nodes = self.moments.reshape(-1, *whole.shape)
        return _node_sums(nodes + SHRINK * whole / len(nodes), mixed)

    def _left(self, sums: NodeSums) -> float:
        """Return the squared error after the gains and offsets of least squares."""
        gains, offsets = np.moveaxis(least_squares(sums, self.scale).astype(float), -1, 0)
        fitted = sums.error(1 + gains / self.scale.divisor, offsets * self.scale.step, self.scale).sum()
        return max(float(self.square_x.sum() * (1 + SHRINK) + fitted), 0.0)

    @property
    def _file_bytes(self) -> float:
        """About how long the file will be."""
        return 80 + 1.0 * self.tokens

    def _mix(self, whole: Sums) -> Sums:
        """Return the mixing ``(components, 2, bands)``: reduced-rank regression of what gains leave, on y.

        A component is taken while it brings more than its bytes would elsewhere.
        """
        n, none = whole[0, 0], np.zeros((0, 2, self.bands))
        if n == 0:
            return none
        x, y = np.split(whole[1:] / n, 2)
        cov_y = y[:, 1:] - np.outer(y[:, 0], y[:, 0])
        cov_xy = x[:, 1:] - np.outer(x[:, 0], y[:, 0])
        noise = self.scale.noise**2
        gains = np.clip((cov_xy.diagonal() + noise) / (cov_y.diagonal() + noise), 0.25, 4)
        variance_x = self.square_x / n - x[:, 0] ** 2
        left = float((variance_x - 2 * gains * cov_xy.diagonal() + gains**2 * cov_y.diagonal()).sum())
        slopes = np.linalg.solve(cov_y + noise * np.eye(self.bands), (cov_xy - gains[:, None] * cov_y).T).T
        explained, axes = np.linalg.eigh(slopes @ cov_y @ slopes.T)
        found = [none]
        for power, axis in list(zip(explained, axes.T, strict=True))[: -COMPONENTS - 1 : -1]:  # ascending
            if not self._worth_it(float(power), left):
                break
            left -= float(power)
            along, axis = slopes.T @ axis, axis / gains  # the gains come after
            # Both halves alike in size, so that rounding costs both alike.
            ratio = np.sqrt(np.abs(along).max() / np.abs(axis).max())
            pair = np.stack([axis * ratio, along / ratio]) * MIX_DIVISOR
            found.append(np.clip(np.round(pair), -MAX_VALUE, MAX_VALUE)[None])
        return np.concatenate(found)

    def _worth_it(self, explained: float, left: float) -> bool:
        """Whether taking `explained` from the squared error `left` is worth the bytes of a component."""
        if left <= 0 or explained <= 0:
            return False
        decibels = -10 * np.log10(max(1 - explained / left, 1e-9))
        return bool(decibels > SLOPE * 2 * self.bands / self._file_bytes)


def _node_sums(moments: Sums, mixed: Sums) -> NodeSums:
    """Return the sums of each node after mixing, from its moments ``(nodes, 1 + 2 bands, 1 + bands)``."""
    n = np.maximum(moments[:, 0, 0], 1e-9)
    x, y = np.split(moments[:, 1:], 2, axis=1)
    square = np.einsum("ba,nac,bc->nb", mixed, y[..., 1:], mixed)
    product = np.einsum("ba,nba->nb", mixed, x[..., 1:])
    return NodeSums(n, x[..., 0], y[..., 0] @ mixed.T, product, square)


def _integers(values: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(values.astype(np.int64).ravel().tolist())


def _row_moments(decoded: Values, original: Values, valid: Mask, side: int, pivot: float) -> Sums:
    """Return the moments of blocks of a row of blocks: (blocks, 1 + 2 bands, 1 + bands)."""
    ok: npt.NDArray[np.bool_] = np.all(valid, axis=0)
    # Not a product: what is not valid may be NaN.
    x, y = (np.where(ok, v - np.float32(pivot), np.float32(0)) for v in (original, decoded))
    both = np.concatenate([ok[None].astype(np.float32), x, y])
    width = both.shape[2]
    found = []
    for left in range(0, width, side):
        block = both[:, :, left : left + side].reshape(len(both), -1)
        found.append(block @ np.concatenate([block[:1], block[1 + len(x) :]]).T)
    return np.array(found, np.float64)


@np.errstate(over="ignore", invalid="ignore")  # a file may state any numbers; what is no value is clipped
def apply_balance(
    values: Values, at: Window, balance: Balance, nodes: Nodes, mix: Nodes, patch: int
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
    nodes, mix
        Its integers for one time step: ``(node rows, node cols, bands, 2)`` and ``(components, 2, bands)``.
    patch
        Pixels per token.

    Returns
    -------
    ndarray
        `values`.
    """
    pivot, step = np.float32(balance.pivot), balance.spacing * patch
    mixing = mix.astype(np.float32) / np.float32(balance.mix_divisor)
    scaled = _in_units(balance, nodes)
    cols = _node_places(np.arange(at.col, at.col_end), step, nodes.shape[1])
    for top in range(0, at.height, STRIP):
        strip = values[:, top : top + STRIP]
        rows = _node_places(np.arange(at.row + top, at.row + top + strip.shape[1]), step, nodes.shape[0])
        _mix_bands(strip, mixing, pivot)
        for band, plane in enumerate(strip):
            gain, offset = (_interpolate(scaled[:, :, band, k], rows, cols) for k in (0, 1))
            plane += gain * (plane - pivot) + offset
    return values


def gain_planes(
    balance: Balance, grid: tuple[int, int], at: Window, bands: int, patch: int
) -> tuple[Values, Values]:
    """Return gains and offsets over a window, for who applies them by other means.

    Parameters
    ----------
    balance
        Of one time step.
    grid
        Its tokens, ``(rows, cols)``.
    at
        The window, in pixels.
    bands
        Number of bands.
    patch
        Pixels per token.

    Returns
    -------
    gains, offsets : ndarray
        Float32 ``(bands, h, w)``, or ``(bands, 1, 1)`` with one node: the factor of what is over the pivot in
        what `apply_balance` adds, and the rest of it.
    """
    step, counts = balance.spacing * patch, node_counts(*grid, balance.spacing)
    scaled = _in_units(balance, np.array(balance.values, np.int32).reshape(*counts, bands, 2))
    rows = _node_places(np.arange(at.row, at.row_end), step, counts[0])
    cols = _node_places(np.arange(at.col, at.col_end), step, counts[1])
    gains, offsets = (
        np.stack([_interpolate(scaled[:, :, band, k], rows, cols) for band in range(bands)]) for k in (0, 1)
    )
    return gains, offsets


def _in_units(balance: Balance, nodes: Nodes) -> Values:
    """Return the nodes as the gains and offsets that their integers stand for."""
    return nodes.astype(np.float32) * np.array([1 / balance.divisor, balance.step], np.float32)


def _mix_bands(values: Values, mix: Values, pivot: np.float32) -> None:
    """Add the mixing in place, plane by plane: sums in one order, the same in every window."""
    along = [np.zeros(values.shape[1:], np.float32) for _ in mix]
    for band, plane in enumerate(values):
        for total, component in zip(along, mix, strict=True):
            total += component[1, band] * (plane - pivot)
    for band, plane in enumerate(values):
        for total, component in zip(along, mix, strict=True):
            plane += component[0, band] * total


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
        rows, cols = inner.relative_to(chunk).slices
        decoded = self._decode(tokens)[:, rows, cols]
        self.fit.add(inner, decoded, original[:, rows, cols], valid[:, rows, cols])

    def _decode(self, tokens: npt.NDArray[np.int32]) -> Values:
        """Decode a chunk as a raster of its own, so that tokenizers that work in tiles do so."""
        grid = (tokens.shape[0], tokens.shape[1])
        return self.tok.decode_context(torch.from_numpy(tokens)[None], 1, 0, (0, 0), grid)[0].cpu().numpy()

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
