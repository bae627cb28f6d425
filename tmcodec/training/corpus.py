"""Rasters in memory and random crops of them, for training small tokenizers on little data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import torch
import torch.nn.functional as F

from tmcodec.modalities import MODALITIES, S2_OFFSET, Modality
from tmcodec.rasters.classes import WORLDCOVER_TO_TERRAMIND

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """One raster: physical values ``(C, H, W)`` float32, their validity, and a sampling weight."""

    name: str
    values: Array
    valid: Mask
    weight: float


def read_scene(path: Path) -> tuple[Array, Mask, tuple[str, ...]]:
    """Read a raster whole: float32 values, validity and band names."""
    with rasterio.open(path) as src:
        raw = src.read()
        valid = np.stack([src.read_masks(i) for i in src.indexes]) > 0
        names = tuple(str(d) for d in src.descriptions)
    values = raw.astype(np.float32)
    ok: Mask = valid & np.isfinite(values) & (np.abs(values) < 1e30)
    return values, ok, names


def fill(values: Array, valid: Mask) -> Array:
    """Replace invalid values by their band's mean, so that no cliff is learnt."""
    for band, ok in zip(values, valid, strict=True):
        if not ok.all():
            band[~ok] = band[ok].mean() if ok.any() else 0.0
    return values


def with_offset(values: Array) -> Array:
    """Return Sentinel-2 digital numbers with the +1000 offset, whatever the file has.

    Reflectance in 0..1 is scaled first. A file whose darkest percent lies above 900 has it.
    """
    if np.percentile(values, 99.9) < 20:
        values = values * np.float32(10000)
    return values if np.percentile(values, 1) >= 900 else values + np.float32(S2_OFFSET)


def pick_bands(values: Array, valid: Mask, names: Sequence[str], wanted: Sequence[str]) -> tuple[Array, Mask]:
    """Select bands by name; a band that is missing comes back filled with 1010 and invalid."""
    out = np.full((len(wanted), *values.shape[1:]), 1010.0, np.float32)
    ok = np.zeros(out.shape, bool)
    for i, band in enumerate(wanted):
        if band in names:
            out[i], ok[i] = values[names.index(band)], valid[names.index(band)]
    return out, ok


def read_optical(path: Path, bands: Sequence[str]) -> tuple[Array, Mask]:
    """Sentinel-2 with the offset, in the order of `bands`."""
    values, valid, names = read_scene(path)
    return pick_bands(with_offset(fill(values, valid)), valid, names, bands)


def read_plain(path: Path, bands: Sequence[str]) -> tuple[Array, Mask]:
    """Rasters whose stored values are physical already."""
    values, valid, _ = read_scene(path)
    return fill(values, valid), valid


def read_rgb(path: Path, bands: Sequence[str]) -> tuple[Array, Mask]:
    """A true-colour picture: the provider's own, or rendered from Sentinel-2 bands."""
    if path.parent.name == "S2RGB":
        return read_plain(path, bands)
    values, valid = read_optical(path, bands)
    # The provider stretches each scene to its own range.
    low, high = np.percentile(values, (0.2, 99.8))
    return np.clip((values - low) / (high - low) * 255, 0, 255).round().astype(np.float32), valid


def read_ndvi(path: Path, bands: Sequence[str]) -> tuple[Array, Mask]:
    """NDVI: the provider's own, or from Sentinel-2's B08 and B04 with the offset removed."""
    if path.parent.name == "NDVI":
        return read_plain(path, bands)
    values, valid = read_optical(path, ("B08", "B04"))
    nir, red = np.maximum(values - S2_OFFSET, 0)
    ndvi = (nir - red) / np.maximum(nir + red, 1)
    ok: Mask = np.all(valid, axis=0, keepdims=True)
    return ndvi[None].astype(np.float32), ok


def read_classes(path: Path, bands: Sequence[str]) -> tuple[Array, Mask]:
    """Class ids in TerraMind's order; 0 is no data."""
    values, valid, _ = read_scene(path)
    if path.parent.name == "LULC_worldcover":
        mapped = np.zeros_like(values)
        for theirs, ours in WORLDCOVER_TO_TERRAMIND.items():
            mapped[values == theirs] = ours
        values = mapped
    values[~valid] = 0
    return values, valid & (values != 0)


READERS: dict[str, Callable[[Path, Sequence[str]], tuple[Array, Mask]]] = {
    "S2L2A": read_optical,
    "S2L1C": read_optical,
    "S2RGB": read_rgb,
    "S1GRD": read_plain,
    "S1RTC": read_plain,
    "DEM": read_plain,
    "NDVI": read_ndvi,
    "LULC": read_classes,
}


def load_scenes(root: Path, split: str, modality: Modality, folders: dict[str, float]) -> list[Scene]:
    """Load every raster of ``root/split/<folder>``.

    A folder's weight is shared among its files in proportion to the square root of their size,
    so that one large raster does not drown the chips.
    """
    scenes = []
    for folder, weight in folders.items():
        paths = sorted((root / split / folder).glob("*.tif"))
        loaded = [(p, *READERS[modality.name](p, modality.bands)) for p in paths]
        sizes = [float(v.shape[-1] * v.shape[-2]) ** 0.5 for _, v, _ in loaded]
        scenes += [
            Scene(f"{folder}/{p.stem}", v, ok, weight * s / sum(sizes))
            for (p, v, ok), s in zip(loaded, sizes, strict=True)
        ]
    return scenes


def warp_crop(values: Array, valid: Mask, side: int, rng: np.random.Generator) -> tuple[Array, Mask]:
    """Turn by any angle and zoom by 0.6 to 1.7, bilinearly, around the middle; `side` pixels come back.

    A handful of scenes has a handful of field patterns: what the network must not learn by heart.
    Where the turned square leaves the region, it is mirrored.
    """
    angle, zoom = rng.uniform(0, 2 * math.pi), math.exp(rng.uniform(math.log(0.6), math.log(1.7)))
    height, width = values.shape[1:]
    cos, sin = math.cos(angle) * side / zoom, math.sin(angle) * side / zoom
    theta = torch.tensor([[[cos / width, -sin / width, 0.0], [sin / height, cos / height, 0.0]]])
    grid = F.affine_grid(theta, [1, 1, side, side], align_corners=False)
    both = torch.from_numpy(np.concatenate([values, valid.astype(np.float32)])[None])
    turned = F.grid_sample(both, grid, padding_mode="reflection", align_corners=False)[0].numpy()
    return turned[: len(values)], turned[len(values) :] > 0.999


class CropSampler:
    """Random crops: place, turn, zoom, flip, sometimes a blend of two, then `augment`.

    Parameters
    ----------
    scenes
        What to draw from.
    crop
        Side in pixels.
    augment
        Radiometric change of one crop, or None.
    warp
        Chance of turning by any angle and zooming; else quarter turns.
    blend
        Chance of a weighted mean of two crops: spectra and patterns that no scene has.
    seed
        Decides everything.
    """

    def __init__(
        self,
        scenes: list[Scene],
        crop: int,
        augment: Callable[[Array, np.random.Generator], Array] | None,
        warp: float,
        blend: float,
        seed: int,
    ) -> None:
        self.scenes, self.crop, self.augment, self.warp, self.blend = scenes, crop, augment, warp, blend
        self.rng = np.random.default_rng(seed)
        weights = np.array([s.weight for s in scenes])
        self.chances = weights / weights.sum()

    def place(self) -> tuple[Array, Mask]:
        """Draw one crop: values ``(C, crop, crop)`` and validity."""
        rng = self.rng
        scene = self.scenes[rng.choice(len(self.scenes), p=self.chances)]
        warp = rng.random() < self.warp
        side = self.crop * 3 // 2 if warp else self.crop
        rows, cols = (self._span(n, side) for n in scene.values.shape[1:])
        values, valid = scene.values[:, rows, cols], scene.valid[:, rows, cols]
        if warp:
            values, valid = warp_crop(values, valid, self.crop, rng)
        short = [(0, 0), *((0, max(self.crop - n, 0)) for n in values.shape[1:])]
        values, valid = np.pad(values, short, mode="reflect"), np.pad(valid, short, mode="reflect")
        turns = int(rng.integers(4))
        values, valid = np.rot90(values, turns, (1, 2)), np.rot90(valid, turns, (1, 2))
        return (values[:, :, ::-1], valid[:, :, ::-1]) if rng.integers(2) else (values, valid)

    def _span(self, size: int, side: int) -> slice:
        start = int(self.rng.integers(max(size - side, 0) + 1))
        return slice(start, start + side)

    def one(self) -> tuple[Array, Mask]:
        """Draw one crop, blended with another at times, and change its radiometry."""
        values, valid = self.place()
        if self.rng.random() < self.blend:
            other, other_valid = self.place()
            share = np.float32(self.rng.uniform(0.1, 0.9))
            values, valid = values * share + other * (1 - share), valid & other_valid
        if self.augment is not None:
            values = self.augment(values, self.rng)
        return np.ascontiguousarray(values, np.float32), np.ascontiguousarray(valid)

    def batch(self, size: int) -> tuple[Array, Mask]:
        """Draw `size` crops, stacked."""
        drawn = [self.one() for _ in range(size)]
        return np.stack([v for v, _ in drawn]), np.stack([m for _, m in drawn])


def random_spectrum(bands: int, rng: np.random.Generator) -> Array:
    """Draw a gain for each band: tilt, bend, narrow bumps and a little noise over the spectrum.

    Water and soils have many colours; green water, red soils, chlorophyll's edge are peaks of one or
    two bands.
    """
    t = np.linspace(-1, 1, bands)
    tilt = rng.normal(0, 0.12) * t + rng.normal(0, 0.08) * (t**2 - 1 / 3)
    width, centres = rng.uniform(0.1, 0.4), rng.uniform(-1.2, 1.2, 3)
    bumps = rng.normal(0, 0.22, 3) @ np.exp(-(((t - centres[:, None]) / width) ** 2))
    return np.exp(rng.normal(0, 0.2) + tilt + bumps + rng.normal(0, 0.06, bands)).astype(np.float32)


def tint_material(reflectance: Array, rng: np.random.Generator) -> Array:
    """Recolour what one band ratio sets apart: water, soil or leaves alone, not the whole crop."""
    first, second = rng.choice(len(reflectance), 2, replace=False)
    ratio = np.log((np.maximum(reflectance[first], 0) + 100) / (np.maximum(reflectance[second], 0) + 100))
    spread = float(ratio.std()) + 1e-3
    edge = np.quantile(ratio[::4, ::4], rng.uniform(0.1, 0.9))
    share = 1 / (1 + np.exp(-4 * (ratio - edge) / spread))
    gain = random_spectrum(len(reflectance), rng)[:, None, None]
    return (reflectance * (1 + share * (gain - 1))).astype(np.float32)


def augment_optical(values: Array, rng: np.random.Generator) -> Array:
    """Change illumination, spectral balance and path radiance a little; at times one material's colour."""
    bands = len(values)
    reflectance = values - S2_OFFSET
    if rng.random() < 0.3:
        reflectance = tint_material(reflectance, rng)
    gain = random_spectrum(bands, rng)
    if rng.random() < 0.1:  # deserts, snow: brighter than anything in a small corpus
        gain *= rng.uniform(1, 3)
    haze = rng.normal(0, 40) + rng.normal(0, 15, bands)
    dn = reflectance * gain[:, None, None] + haze[:, None, None]
    return np.maximum(dn, -50).astype(np.float32) + np.float32(S2_OFFSET)


def augment_decibel(values: Array, rng: np.random.Generator) -> Array:
    """Shift each polarisation by a decibel or so."""
    return values + (rng.normal(0, 1.0) + rng.normal(0, 0.5, (len(values), 1, 1))).astype(np.float32)


def augment_height(values: Array, rng: np.random.Generator) -> Array:
    """Move and stretch the relief, so that a few ranges stand for many."""
    base = values.mean()
    stretch, lift = np.exp(rng.normal(0, 0.4)), rng.normal(0, 0.25) * abs(base) + rng.normal(0, 30)
    return ((values - base) * stretch + base + lift).astype(np.float32)


def augment_index(values: Array, rng: np.random.Generator) -> Array:
    """Scale and shift NDVI slightly, within its range."""
    return np.clip(values * np.exp(rng.normal(0, 0.1)) + rng.normal(0, 0.04), -1, 1).astype(np.float32)


def augment_picture(values: Array, rng: np.random.Generator) -> Array:
    """Change brightness and colour balance of an 8-bit picture."""
    gain = np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.05, (3, 1, 1)))
    return np.clip(values * gain + rng.normal(0, 6), 0, 255).astype(np.float32)


def augment_classes(values: Array, rng: np.random.Generator) -> Array:
    """Permute the classes at times: shapes recur, whatever they are called."""
    if rng.random() < 0.5:
        return values
    n = len(MODALITIES["LULC"].classes)
    order = np.concatenate([[0], 1 + rng.permutation(n - 1)])
    return order[values.astype(np.int64)].astype(np.float32)


AUGMENT: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "S2L2A": augment_optical,
    "S2L1C": augment_optical,
    "S2RGB": augment_picture,
    "S1GRD": augment_decibel,
    "S1RTC": augment_decibel,
    "DEM": augment_height,
    "NDVI": augment_index,
    "LULC": augment_classes,
}
