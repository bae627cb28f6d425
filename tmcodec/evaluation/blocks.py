"""What needs no codec: means of blocks, and a codebook of mean spectra or of class patterns."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.uint8]

PATCH = 16
"""Pixels on a side that one token stands for."""

_SAMPLE = 120_000  # of the training spectra; more change nothing and take minutes


def patch_means(values: Float, side: int = PATCH) -> Float:
    """Return the means ``(C, rows, cols)`` of squares of a picture ``(C, H, W)`` extended by its border."""
    _, height, width = values.shape
    padded = np.pad(values, ((0, 0), (0, -height % side), (0, -width % side)), mode="edge")
    rows, cols = padded.shape[1] // side, padded.shape[2] // side
    return padded.reshape(len(values), rows, side, cols, side).mean((2, 4), dtype=np.float32)


def enlarge(means: Float, shape: tuple[int, ...], side: int = PATCH) -> Float:
    """Return the bicubic picture of means ``(C, rows, cols)``, cut to the last two of `shape`."""
    if side == 1:
        return means[:, : shape[-2], : shape[-1]]
    grid = torch.from_numpy(np.ascontiguousarray(means))[None]
    big = F.interpolate(grid, scale_factor=side, mode="bicubic", align_corners=False)[0].numpy()
    return big[:, : shape[-2], : shape[-1]]


# --------------------------------------------------------------------------- k-means


def nearest(points: Float, centres: Float) -> npt.NDArray[np.int64]:
    """Return the index of the nearest centre of each point; shapes ``(n, C)`` and ``(m, C)``."""
    p, c = torch.from_numpy(points), torch.from_numpy(centres)
    half = (c * c).sum(1) / 2
    return torch.cat([(half - q @ c.T).argmin(1) for q in p.split(2048)]).numpy()


def kmeans(points: Float, count: int, rounds: int = 8, seed: int = 0) -> Float:
    """Return ``(count, C)`` centres by Lloyd's algorithm from random points.

    Empty clusters stay where they were; fewer points than centres are their own centres.
    """
    rng = np.random.default_rng(seed)
    if len(points) > _SAMPLE:
        points = points[rng.choice(len(points), _SAMPLE, replace=False)]
    centres = points[rng.choice(len(points), min(count, len(points)), replace=False)].copy()
    for _ in range(rounds):
        owner = nearest(points, centres)
        size = np.bincount(owner, minlength=len(centres))
        total = np.zeros(centres.shape, np.float64)
        np.add.at(total, owner, points)
        centres[size > 0] = total[size > 0] / size[size > 0, None]
    return centres


def spectra(values: Float, valid: Bool, shifts: int = 4) -> Float:
    """Return the mean spectra ``(n, C)`` of the wholly valid patches, at several shifts of their grid."""
    found, step = [], PATCH // shifts
    everywhere = np.asarray(valid.all(axis=0, keepdims=True))
    for dy in range(0, PATCH, step):
        for dx in range(0, PATCH, step):
            part, ok = values[:, dy:, dx:], everywhere[:, dy:, dx:].astype(np.float32)
            if min(part.shape[1:]):
                found.append(patch_means(part)[:, np.equal(patch_means(ok)[0], 1)].T)
    return np.concatenate(found) if found else np.empty((0, len(values)), np.float32)


def from_codebook(filled: Float, centres: Float) -> Float:
    """Return the picture whose patches have the nearest centre's spectrum, interpolated bicubically."""
    means = patch_means(filled)
    flat = np.ascontiguousarray(means.reshape(len(means), -1).T)
    chosen = centres[nearest(flat, centres)].T.reshape(means.shape)
    return enlarge(np.ascontiguousarray(chosen), filled.shape)


# --------------------------------------------------------------------------- classes


def majority(ids: Ids, side: int, classes: int) -> Ids:
    """Return the commonest class ``(rows, cols)`` of squares of a map ``(H, W)`` extended by its border."""
    padded = np.pad(ids, ((0, -ids.shape[0] % side), (0, -ids.shape[1] % side)), mode="edge")
    rows, cols = padded.shape[0] // side, padded.shape[1] // side
    parts = padded.reshape(rows, side, cols, side)
    votes = np.stack([(parts == c).sum(axis=(1, 3)) for c in range(classes)])
    return votes.argmax(axis=0).astype(np.uint8)


def repeat(ids: Ids, side: int, shape: tuple[int, ...]) -> Ids:
    """Return the map of squares of one class, cut to the last two of `shape`."""
    return ids.repeat(side, axis=0).repeat(side, axis=1)[: shape[-2], : shape[-1]]


def quarters(ids: Ids, classes: int) -> Ids:
    """Return the commonest classes ``(rows, cols, 4)`` of each patch's quarters."""
    halves = majority(ids, PATCH // 2, classes)
    halves = np.pad(halves, ((0, halves.shape[0] % 2), (0, halves.shape[1] % 2)), mode="edge")
    rows, cols = halves.shape[0] // 2, halves.shape[1] // 2
    return halves.reshape(rows, 2, cols, 2).transpose(0, 2, 1, 3).reshape(rows, cols, 4)


def count_patterns(ids: Ids, classes: int) -> Counter[tuple[int, ...]]:
    """Return how often each pattern, the classes of a patch's quarters, is in a map."""
    return Counter(tuple(p) for p in quarters(ids, classes).reshape(-1, 4).tolist())


def from_patterns(ids: Ids, book: Ids, classes: int) -> Ids:
    """Return the map whose patches have the pattern that agrees with most of their quarters."""
    own = quarters(ids, classes)
    rows, cols = own.shape[:2]
    agree = np.concatenate([np.equal(row[:, None, :], book[None]).sum(-1).argmax(-1) for row in own])
    halves = book[agree].reshape(rows, cols, 2, 2).transpose(0, 2, 1, 3).reshape(2 * rows, 2 * cols)
    return repeat(halves, PATCH // 2, ids.shape)
