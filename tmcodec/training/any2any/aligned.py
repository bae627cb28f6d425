"""Aligned crops of several modalities, augmented alike, from folders of rasters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS

from tmcodec.errors import ConfigError, CorpusError, TmcodecError
from tmcodec.generation.sources import MapGrid
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

    Rasters of different folders belong together where their paths below the folders are equal, suffixes
    aside; they must have equal sizes and, where both say where they lie, lie on the same pixels.

    Parameters
    ----------
    rasters
        One folder a modality. With a folder's `skip_bad`, bad files there are passed over, and places that
        have no other are left out.
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

    Attributes
    ----------
    places
        Item of each folder, by modality.
    sizes
        Width and height of each place in pixels.
    left_out
        Names of places with a bad file.

    Raises
    ------
    ConfigError
        If folders, side or what is to be computed do not fit.
    CorpusError
        If no place is in all folders, two files of a folder have one path, rasters do not fit together, or a
        file is bad and its folder's `skip_bad` is off.
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
        self.places: list[dict[str, int]] = []
        self.sizes: list[tuple[int, int]] = []
        self.left_out: list[str] = []
        for name, place in self._match(names).items():
            self._add(name, place)
        if not self.places:
            raise CorpusError(f"all places have bad files, {self.left_out[0]} first; mend them")
        self.chances = self._chances()

    @property
    def modalities(self) -> tuple[str, ...]:
        """What a crop has, sorted."""
        return tuple(sorted((*self.rasters, *self.compute)))

    def describe(self) -> dict[str, object]:
        """Return all that its crops follow from, but for the rasters' contents and folders; plain values."""
        folders = {
            m: [f.source.name, f.s2_offset, f.scale, f.missing_bands, sorted((f.class_map or {}).items())]
            for m, f in self.rasters.items()
        }
        first = next(iter(self.rasters))
        places = [self.rasters[first].place_of(place[first]) for place in self.places]
        return {
            "rasters": folders, "places": places, "sizes": self.sizes, "compute": self.compute,
            "side": self.side, "warp": self.warp, "radiometry": self.radiometry, "min_valid": self.min_valid,
        }  # fmt: skip

    def _match(self, names: str) -> dict[str, dict[str, int]]:
        """Return the items of each folder that belong together, by the place's name."""
        items = {m: _items_by_place(folder) for m, folder in self.rasters.items()}
        common = sorted(set.intersection(*(set(i) for i in items.values())))
        common = _named(common, names)
        if not common:
            raise CorpusError(
                f"no file {names!r} is in all of {', '.join(self.rasters)} ({self._alone(items, names)}); "
                "paths below the folders must be equal"
            )
        return {name: {m: self._only(m, items[m][name]) for m in items} for name in common}

    def _alone(self, items: dict[str, dict[str, list[int]]], names: str) -> str:
        """Return a file of each folder that found no partner, for a message."""
        first = {m: next(iter(_named(sorted(places), names)), None) for m, places in items.items()}
        return ", ".join(
            f"none in {m}" if name is None else self.rasters[m].name_of(items[m][name][0])
            for m, name in first.items()
        )

    def _only(self, modality: str, items: list[int]) -> int:
        """Return the one item of a place in a folder; a bad one only where there is nothing else."""
        folder = self.rasters[modality]
        if len(items) > 1 and folder.skip_bad:  # a quicklook may lie beside its raster
            items = [i for i in items if _opens(folder, i)] or items[:1]
        if len(items) > 1:
            one, two = (folder.name_of(i) for i in items[:2])
            raise CorpusError(f"{one} and {two} have one name; keep one of them")
        return items[0]

    def _add(self, name: str, place: dict[str, int]) -> None:
        """Take a place; leave it out where a file is bad, and raise CorpusError where they do not fit."""
        grids = {}
        for modality, item in place.items():
            folder = self.rasters[modality]
            try:
                raster = folder.opened(item).raster
            except TmcodecError as error:
                folder.refuse(item, error)
                self.left_out.append(name)
                return
            grids[modality] = MapGrid(raster.width, raster.height, raster.crs, raster.transform)
        self._check_grids(place, grids)
        self.places.append(place)
        first = next(iter(grids.values()))
        self.sizes.append((first.width, first.height))

    def _check_grids(self, place: dict[str, int], grids: dict[str, MapGrid]) -> None:
        """Raise CorpusError where the rasters of a place differ in size, or lie elsewhere."""
        first = next(iter(grids))
        located = [m for m, g in grids.items() if g.crs is not None and g.transform is not None]
        for modality, grid in grids.items():
            name, size = self.rasters[modality].name_of(place[modality]), (grid.width, grid.height)
            wanted = (grids[first].width, grids[first].height)
            if size != wanted:
                raise CorpusError(f"{name}: {size} pixels, {first} has {wanted}; cut both to one extent")
            if modality in located and not _same_pixels(grid, grids[located[0]]):
                raise CorpusError(
                    f"{name}: {grid}, but {located[0]} has {grids[located[0]]}; bring both to the same pixels"
                )

    def _chances(self) -> npt.NDArray[np.float64]:
        """A place counts as the square root of its pixels."""
        sizes = np.array([float(np.prod(size)) for size in self.sizes]) ** 0.5
        return np.asarray(sizes / sizes.sum())

    def draw(self, rng: np.random.Generator) -> Place:
        """Draw a crop of every modality: float32 ``(C, side, side)``, filled, and validity of the same shape.

        Raises
        ------
        CorpusError
            If a file is bad and its folder's `skip_bad` is off, or no crop has enough valid pixels.
        """
        unread = ""
        for _ in range(TRIES):
            read = self._read(rng)
            if isinstance(read, str):
                unread = read
                continue
            crops = self._turned(self._warped(read, rng), rng)
            if min(float(valid.mean()) for _, valid in crops.values()) >= self.min_valid:
                return self._finished(crops, rng)
        if unread:
            raise CorpusError(
                f"{TRIES} crops in a row could not be read or had too few valid pixels ({unread}); "
                "mend such files or take them away"
            )
        raise CorpusError(
            f"{TRIES} crops in a row had too few valid pixels; lower min_valid or check the data"
        )

    def _read(self, rng: np.random.Generator) -> tuple[Place, bool] | str:
        """Read the same window of all rasters of a place; larger where it is to be warped.

        Where one cannot be read there and is to be left out, its name and why.
        """
        number = int(rng.choice(len(self.places), p=self.chances))
        warped = bool(rng.random() < self.warp)
        window = random_window(*self.sizes[number], self.side * 3 // 2 if warped else self.side, rng)
        crops: Place = {}
        for modality, item in self.places[number].items():
            folder = self.rasters[modality]
            try:
                crops[modality] = self._filled(modality, folder.opened(item).read(window))
            except TmcodecError as error:
                folder.refuse(item, error)
                return f"{folder.name_of(item)}: {error}"
        return crops, warped

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


def _same_pixels(one: MapGrid, other: MapGrid) -> bool:
    """Whether pixels coincide to a thousandth of one, in CRSs that may be spelt differently."""
    if one.crs != other.crs and CRS.from_user_input(one.crs) == CRS.from_user_input(other.crs):
        other = replace(other, crs=one.crs)
    return one.same(other)


def _named(places: Sequence[str], names: str) -> list[str]:
    """Return the places whose last part fits a pattern."""
    return [place for place in places if fnmatchcase(PurePosixPath(place).name, names)]


def _opens(folder: RasterFolder, item: int) -> bool:
    """Tell whether a file is a raster of the folder's modality; note it as bad where not."""
    try:
        folder.opened(item)
    except TmcodecError as error:
        folder.refuse(item, error)
        return False
    return True


def _items_by_place(folder: RasterFolder) -> dict[str, list[int]]:
    """Return the items of a folder by their places."""
    found: dict[str, list[int]] = {}
    for item in range(len(folder.files)):
        found.setdefault(folder.place_of(item), []).append(item)
    return found


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
