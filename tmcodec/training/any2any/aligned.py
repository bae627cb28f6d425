"""Aligned crops of several modalities, augmented alike, from folders of rasters."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from tmcodec.errors import ConfigError, CorpusError
from tmcodec.modalities import MODALITIES, S2_OFFSET
from tmcodec.rasters.fill import fill_invalid
from tmcodec.training.corpus import AUGMENT, warp_crop
from tmcodec.training.sources import Crop, Mask, RasterFolder, Values, random_window

Place = dict[str, Crop]

COMPUTED = ("NDVI", "S2RGB")
"""What is computed from Sentinel-2 after its radiometry was changed, so that it goes with it."""
STRETCH = (0.2, 99.0)
"""Percentiles of a crop that a true-colour picture is stretched over; nearest to TerraMesh's own of those
tried."""
TRIES = 50


class AlignedRasters:
    """Crops of the same ground in several modalities.

    Rasters of different folders belong together where their file names are equal; they must have equal sizes.

    Parameters
    ----------
    rasters
        One folder a modality.
    compute
        ``NDVI`` and ``S2RGB``, from the Sentinel-2 folder.
    names
        Pattern of file names without suffix, e.g. ``"terramesh_*"``.
    side
        Of a crop in pixels, a multiple of 16; smaller rasters are mirrored.
    crops
        How many are wanted.
    warp
        Chance of turning by any angle and zooming; else quarter turns and flips.
    radiometry
        Chance of changing illumination, colours, backscatter and relief.
    min_valid
        Crops with a lower share of valid pixels are drawn again.
    """

    def __init__(
        self,
        rasters: list[RasterFolder],
        compute: Sequence[str] = (),
        names: str = "*",
        side: int = 224,
        crops: int = 1000,
        warp: float = 0.5,
        radiometry: float = 0.7,
        min_valid: float = 0.5,
    ) -> None:
        self.rasters = {folder.modality.name: folder for folder in rasters}
        self.compute = tuple(compute)
        self.side, self.crops, self.warp, self.radiometry = side, crops, warp, radiometry
        self.min_valid = min_valid
        if len(self.rasters) < len(rasters) or not rasters:
            raise ConfigError("a group takes one folder a modality, and at least one")
        if side < 16 or side % 16 or crops < 1:
            raise ConfigError("a group's side must be a multiple of 16, and crops above 0")
        self.optical = next((m for m, f in self.rasters.items() if f.modality.optical), None)
        wrong = [m for m in self.compute if m not in COMPUTED or m in self.rasters or self.optical is None]
        if wrong:
            raise ConfigError(
                f"{wrong[0]} cannot be computed here; a Sentinel-2 folder gives {' and '.join(COMPUTED)}"
            )
        self.places = self._match(names)
        self.chances = self._chances()

    @property
    def modalities(self) -> tuple[str, ...]:
        """What a crop has, sorted."""
        return tuple(sorted((*self.rasters, *self.compute)))

    def _match(self, names: str) -> list[dict[str, int]]:
        """Return the items of each folder that belong together."""
        stems = {m: {p.stem: i for i, p in enumerate(f.files)} for m, f in self.rasters.items()}
        common = set.intersection(*(set(s) for s in stems.values()))
        found = [
            {m: s[stem] for m, s in stems.items()} for stem in sorted(common) if fnmatchcase(stem, names)
        ]
        if not found:
            raise CorpusError(
                f"no file {names!r} is in all of {', '.join(self.rasters)}; file names must be equal"
            )
        for place in found:
            self._size(place)
        return found

    def _size(self, place: dict[str, int]) -> tuple[int, int]:
        """Return width and height of a place; CorpusError where its rasters differ."""
        sizes = {}
        for modality, item in place.items():
            raster = self.rasters[modality].opened(item).raster
            sizes[modality] = (raster.width, raster.height)
        first = next(iter(sizes))
        for modality, size in sizes.items():
            if size != sizes[first]:
                name = self.rasters[modality].name_of(place[modality])
                raise CorpusError(
                    f"{name}: {size} pixels, {first} has {sizes[first]}; cut both to one extent"
                )
        return sizes[first]

    def _chances(self) -> npt.NDArray[np.float64]:
        """A place counts as the square root of its pixels."""
        sizes = np.array([float(np.prod(self._size(place))) for place in self.places]) ** 0.5
        return np.asarray(sizes / sizes.sum())

    def draw(self, rng: np.random.Generator) -> Place:
        """Draw a crop of every modality: float32 ``(C, side, side)``, filled, and validity of the same shape.

        Raises
        ------
        CorpusError
            If a file is bad, or no crop has enough valid pixels.
        """
        for _ in range(TRIES):
            crops = self._turned(self._warped(self._read(rng), rng), rng)
            if min(float(valid.mean()) for _, valid in crops.values()) >= self.min_valid:
                return self._finished(crops, rng)
        raise CorpusError(
            f"{TRIES} crops in a row had too few valid pixels; lower min_valid or check the data"
        )

    def _read(self, rng: np.random.Generator) -> tuple[Place, bool]:
        """Read the same window of all rasters of a place; larger where it is to be warped."""
        place = self.places[int(rng.choice(len(self.places), p=self.chances))]
        warped = bool(rng.random() < self.warp)
        width, height = self._size(place)
        window = random_window(width, height, self.side * 3 // 2 if warped else self.side, rng)
        read = {m: self.rasters[m].opened(item).read(window) for m, item in place.items()}
        return {m: self._filled(m, crop) for m, crop in read.items()}, warped

    def _filled(self, modality: str, crop: Crop) -> Crop:
        values, valid = crop
        if MODALITIES[modality].categorical:
            return np.where(valid, values, np.float32(0)), valid
        return fill_invalid(values, valid, MODALITIES[modality].mean), valid

    def _warped(self, drawn: tuple[Place, bool], rng: np.random.Generator) -> Place:
        """Turn and zoom all modalities alike; class ids by their nearest pixel."""
        crops, warped = drawn
        if not warped:
            return {m: _mirrored(*crop, self.side) for m, crop in crops.items()}
        planes = {m: _one_hot(m, values) for m, (values, _) in crops.items()}
        whole = all(valid.all() for _, valid in crops.values())
        none = 0 if whole else 1  # planes of validity a modality
        masks = [np.all(valid, 0, keepdims=True)[:none] for _, valid in crops.values()]
        values, valid = warp_crop(np.concatenate([*planes.values()]), np.concatenate(masks), self.side, rng)
        out: Place = {}
        first = 0
        for i, (modality, part) in enumerate(planes.items()):
            last = first + len(part)
            ok = np.ones((1, self.side, self.side), bool) if whole else valid[i][None]
            out[modality] = _warped_back(modality, values[first:last], ok)
            first = last
        return out

    @staticmethod
    def _turned(crops: Place, rng: np.random.Generator) -> Place:
        """Turn all by the same quarters and flip them alike."""
        turns, flip = int(rng.integers(4)), -1 if rng.integers(2) else 1
        return {
            m: (np.rot90(v, turns, (1, 2))[:, :, ::flip], np.rot90(ok, turns, (1, 2))[:, :, ::flip])
            for m, (v, ok) in crops.items()
        }

    def _finished(self, crops: Place, rng: np.random.Generator) -> Place:
        """Change the radiometry, then compute what follows from Sentinel-2."""
        out: Place = {}
        for modality, (values, valid) in crops.items():
            values = np.ascontiguousarray(values, np.float32)
            changed = rng.random() < self.radiometry and not MODALITIES[modality].categorical
            out[modality] = (
                AUGMENT[modality](values, rng) if changed else values,
                np.ascontiguousarray(valid),
            )
        for modality in self.compute:
            assert self.optical is not None
            bands = MODALITIES[self.optical].bands
            out[modality] = computed(*out[self.optical], bands, modality)
        return out


def _mirrored(values: Values, valid: Mask, side: int) -> Crop:
    """Mirror what is smaller than `side` at its last rows and columns."""
    short = [(0, 0), *((0, max(side - n, 0)) for n in values.shape[1:])]
    return np.pad(values, short, mode="symmetric"), np.pad(valid, short, mode="symmetric")


def _one_hot(modality: str, values: Values) -> Values:
    """Return class ids ``(1, H, W)`` as planes; anything else as it is."""
    count = len(MODALITIES[modality].classes)
    if not count:
        return values
    return np.asarray(values == np.arange(count, dtype=np.float32)[:, None, None], np.float32)


def _warped_back(modality: str, planes: Values, valid: Mask) -> Crop:
    """Return classes as ids, the likeliest of each pixel; class 0, no data, is invalid."""
    if not MODALITIES[modality].categorical:
        return planes, np.broadcast_to(valid, planes.shape)
    ids = planes.argmax(0, keepdims=True).astype(np.float32)
    return ids, valid & (ids > 0)


def computed(values: Values, valid: Mask, bands: Sequence[str], modality: str) -> Crop:
    """Compute NDVI or a true-colour picture from Sentinel-2's digital numbers with the offset.

    Parameters
    ----------
    values, valid
        ``(C, H, W)``, bands as named.
    bands
        Names.
    modality
        ``"NDVI"``, or ``"S2RGB"`` stretched over percentiles of the crop, as providers do it scene by scene.
    """
    wanted = ("B08", "B04") if modality == "NDVI" else MODALITIES["S2RGB"].bands
    index = [list(bands).index(b) for b in wanted]
    picked, ok = values[index], valid[index]
    if modality == "NDVI":
        nir, red = np.maximum(picked - np.float32(S2_OFFSET), 0)
        both: Mask = ok.all(0, keepdims=True) & (nir + red > 0)
        return ((nir - red) / np.maximum(nir + red, 1))[None].astype(np.float32), both
    seen = picked[:, ::2, ::2]
    low, high = np.percentile(seen, STRETCH)
    shown = np.clip((picked - low) / max(high - low, 1) * 255, 0, 255).round().astype(np.float32)
    return shown, ok
