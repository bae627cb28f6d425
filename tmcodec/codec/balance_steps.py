"""Choose the integers of a balance: near the least squares, and short to code.

Rounding every gain and offset to the nearest step spends bits where nothing is seen of them. Here each pair
is moved to where error plus price is least, in turn, until nothing moves: quantization optimised for rate and
distortion (Sullivan and Wiegand 1998, doi 10.1109/79.733497).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tmcodec.modalities import BalanceScale
from tmcodec.tokenfile.balance import MAX_VALUE, golomb_orders

Sums = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

SWEEPS = 4
"""Times that each node is looked at, at most; nearly all are settled after two."""
NEAR = 2
"""Steps that a gain moves at most at a time."""
LEAST_GAIN, MOST_GAIN = 0.25, 4.0


@dataclass(frozen=True)
class NodeSums:
    """Sums over the pixels around each node: ``(nodes,)`` the first, ``(nodes, bands)`` the others.

    Attributes
    ----------
    n
        Pixels.
    x, y, xy, yy
        Of the raster, of what is to become like it, of their product and of the latter's square; values over
        the pivot.
    """

    n: Sums
    x: Sums
    y: Sums
    xy: Sums
    yy: Sums

    def error(self, gains: Sums, offsets: Sums, scale: BalanceScale) -> Sums:
        """Return the squared error of ``(nodes, bands, ...)`` gains and offsets, but for the sum of x².

        Contrast below the scale's noise counts against a gain.
        """
        sums = (self.n, self.x, self.y, self.xy, self.yy)
        n, x, y, xy, yy = (s.reshape(s.shape + (1,) * (gains.ndim - s.ndim)) for s in sums)
        fit = gains**2 * yy + offsets**2 * n + 2 * gains * offsets * y - 2 * gains * xy - 2 * offsets * x
        return np.asarray(fit + n * (scale.noise * (gains - 1)) ** 2)

    def part(self, node: int) -> NodeSums:
        """Return the sums of one node."""
        one = slice(node, node + 1)
        return NodeSums(self.n[one], self.x[one], self.y[one], self.xy[one], self.yy[one])


def least_squares(sums: NodeSums, scale: BalanceScale) -> Integers:
    """Return the gains and offsets of least error, each rounded: ``(nodes, bands, 2)``."""
    n = sums.n[:, None]
    mean_x, mean_y, noise = sums.x / n, sums.y / n, scale.noise**2
    gain = (sums.xy / n - mean_x * mean_y + noise) / (np.maximum(sums.yy / n - mean_y**2, 0) + noise)
    gains = np.round((np.clip(gain, LEAST_GAIN, MOST_GAIN) - 1) * scale.divisor)
    return np.stack([gains, _offsets(sums, gains, scale)], axis=-1).astype(np.int64)


def _offsets(sums: NodeSums, gains: Sums, scale: BalanceScale) -> Sums:
    """Return the best rounded offsets of rounded gains, both ``(nodes, bands, ...)``."""
    n, x, y = (s.reshape(s.shape + (1,) * (gains.ndim - s.ndim)) for s in (sums.n, sums.x, sums.y))
    best = (x - (1 + gains / scale.divisor) * y) / n / scale.step
    return np.asarray(np.clip(np.round(best), -MAX_VALUE, MAX_VALUE))


def choose_steps(sums: NodeSums, scale: BalanceScale, bit: float) -> Integers:
    """Return gains and offsets ``(nodes, bands, 2)`` of little error and few bits.

    Parameters
    ----------
    sums
        See there; nodes in the order in which they are coded.
    scale
        Their steps.
    bit
        What a bit costs, in squared error.
    """
    values = least_squares(sums, scale)
    for _ in range(SWEEPS):
        steps = np.diff(values.reshape(len(values), -1), axis=0, prepend=0).reshape(-1)
        orders = golomb_orders(_zigzag(steps).tolist())
        before = values.copy()
        for node in range(len(values)):
            around = [values[i] for i in (node - 1, node + 1) if 0 <= i < len(values)]
            last = values[node - 1] if node else np.zeros_like(values[0])
            values[node] = _best(sums.part(node), scale, bit, orders, values[node], last, around[node > 0 :])
        if np.array_equal(values, before):
            break
    return values


def _best(
    sums: NodeSums,
    scale: BalanceScale,
    bit: float,
    orders: list[int],
    own: Integers,
    last: Integers,
    following: list[Integers],
) -> Integers:
    """Return the best pairs ``(bands, 2)`` of one node, between the node before and the one after."""
    known = [own, last, *following, np.zeros_like(own)]
    nearby = [own[:, 0] + d for d in range(-NEAR, NEAR + 1)]
    gains = np.stack(nearby + [one[:, 0] for one in known], axis=1)
    gains = np.clip(gains, *(np.round((np.array([LEAST_GAIN, MOST_GAIN]) - 1) * scale.divisor).astype(int)))
    middle = _offsets(sums, gains[None].astype(float), scale)[0].astype(np.int64)
    around = [middle + d for d in (-1, 0, 1)]
    offsets = np.stack(around + [one[:, 1:] + 0 * middle for one in known], axis=2)
    offsets = np.clip(offsets, -MAX_VALUE, MAX_VALUE)
    pairs = np.stack([gains[:, :, None] + 0 * offsets, offsets], axis=-1)  # (bands, gains, offsets, 2)
    cost = sums.error(1 + pairs[None, ..., 0] / scale.divisor, pairs[None, ..., 1] * scale.step, scale)[0]
    for k, order in enumerate(orders):
        cost = cost + bit * _bits(pairs[..., k] - last[:, k, None, None], order)
        for after in following:
            cost = cost + bit * _bits(after[:, k, None, None] - pairs[..., k], order)
    flat = cost.reshape(len(own), -1).argmin(axis=1)
    return np.asarray(pairs.reshape(len(own), -1, 2)[np.arange(len(own)), flat])


def _zigzag(values: Integers) -> Integers:
    return np.asarray((values << 1) ^ (values >> 63))


def _bits(differences: Integers, order: int) -> Integers:
    """Return the lengths of the Golomb codes of zigzagged differences."""
    digits = np.floor(np.log2(_zigzag(differences) + (1 << order))).astype(np.int64)
    return np.asarray(2 * digits + 1 - order)
