"""Where crops come from: a source draws windows of one modality, reads them lazily and can skip bad files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tmcodec.errors import ConfigError, CorpusError, ModalityError, TmcodecError
from tmcodec.modalities import S2_OFFSET, Modality, canonical_band, get_modality
from tmcodec.rasters.arrays import Dataset
from tmcodec.rasters.classes import parse_class_map
from tmcodec.rasters.fill import fill_invalid
from tmcodec.rasters.gdal import GDAL_ERRORS, gdal_env, one_line, open_quietly
from tmcodec.rasters.reader import RasterSource, refuse_unusable
from tmcodec.rasters.windows import Window

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Crop = tuple[Values, Mask]
Offset = Literal["auto", "present", "absent", "darkest"]

SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".nc", ".png", ".jpg")
TRIES = 8
"""Windows drawn from one file before another file is chosen, where too few pixels are valid."""
OPEN_FILES = 16
STATISTICS_WINDOW = 512


class CropSource(ABC):
    """Draws crops of one modality.

    Attributes
    ----------
    modality
        Row of the table; crops have its bands, in physical units.
    weight
        Share of the crops, relative to other sources.
    skip_bad
        Whether a bad file is left out and counted; else it is an error that names it.
    bad
        What was left out, wholly or where it could not be read, and why, by name: a record, which decides on
        no crop.
    """

    def __init__(self, modality: str, weight: float, skip_bad: bool, min_valid: float) -> None:
        if not weight > 0 or not 0 <= min_valid <= 1:
            raise ConfigError("a source's weight must be above 0 and min_valid within 0..1")
        self.modality, self.weight = get_modality(modality), weight
        self.skip_bad, self.min_valid = skip_bad, min_valid
        self.bad: dict[str, str] = {}
        self._useless: set[int] = set()
        self._searched: set[int] = set()

    @property
    @abstractmethod
    def shares(self) -> npt.NDArray[np.float64]:
        """How much each item counts, sum 1; an item is a file or a sample of a shard."""

    @abstractmethod
    def name_of(self, item: int) -> str:
        """Return what errors call an item."""

    @abstractmethod
    def read(self, item: int, rng: np.random.Generator, side: int) -> Crop:
        """Read a window of at most `side` pixels a side anywhere.

        Raises
        ------
        CorpusError
            If no window of the item can be read; before anything is drawn.
        TmcodecError
            If this one cannot.
        """

    @abstractmethod
    def windows(self, item: int) -> Iterator[Crop]:
        """Yield all of an item, window by window."""

    def bands_there(self, item: int) -> slice | list[int]:
        """Return which bands an item has at all; all of them, unless a subclass knows better."""
        return slice(None)

    def draw(self, rng: np.random.Generator, side: int) -> Crop:
        """Draw a crop: float32 ``(C, h, w)``, h and w at most `side`, invalid pixels filled, and its
        validity.

        It depends on `rng` and the files alone, not on what was drawn before.

        Raises
        ------
        TmcodecError
            If a file is bad and `skip_bad` is off; CorpusError if all seem to be.
        """
        for _ in range(100):
            item = int(rng.choice(len(self.shares), p=self.shares))
            found = self._try(item, rng, side)
            if found is not None:
                return found
        few = "; ".join(f"{k}: {v}" for k, v in list(self.bad.items())[:2])
        raise CorpusError(f"no usable crop in 100 files ({few or 'too few valid pixels'}); check the data")

    def _try(self, item: int, rng: np.random.Generator, side: int) -> Crop | None:
        """Read a crop of an item; None where it is to be left out.

        An item that is bad as a whole leaves `rng` as it was, met for the first time or known: else crops
        would depend on who has met it before.
        """
        if item in self._useless:
            return None
        before = rng.bit_generator.state
        try:
            for _ in range(TRIES):
                values, valid = self.read(item, rng, side)
                if valid.any() and valid[self.bands_there(item)].mean() >= self.min_valid:
                    return self._filled(values, valid), valid
            self._require_valid(item)
        except CorpusError as error:
            self.refuse(item, error)
            self._useless.add(item)
            rng.bit_generator.state = before
        except TmcodecError as error:  # this window alone: others may be whole
            self.refuse(item, error)
            self._searched.add(item)  # in vain: what cannot be read might be valid
        return None

    def _filled(self, values: Values, valid: Mask) -> Values:
        """Return a crop as `tmcodec.encode` gives it to networks: there is no class between two classes."""
        if self.modality.categorical:
            return np.where(valid, values, np.float32(0))
        return fill_invalid(values, valid, self.modality.mean)

    def _require_valid(self, item: int) -> None:
        """Raise CorpusError where no pixel of an item is valid: unlucky windows are not the file's fault.

        Looked for once.
        """
        if item in self._searched:
            return
        if not any(valid.any() for _, valid in self.windows(item)):
            raise CorpusError("it has no valid pixel")
        self._searched.add(item)

    def refuse(self, item: int, error: TmcodecError) -> None:
        """Note a bad item, to be left out, or raise CorpusError that names it."""
        name, reason = self.name_of(item), str(error)
        if not self.skip_bad:
            message = reason if name in reason else f"{name}: {reason}"
            raise CorpusError(f"{message}; mend it, or set skip_bad to leave such files out") from error
        self.bad[name] = reason


def reflect(values: Values, valid: Mask, side: int) -> Crop:
    """Mirror what is smaller than `side` at its last rows and columns."""
    short = [(0, 0), *((0, max(side - n, 0)) for n in values.shape[1:])]
    if not any(after for _, after in short):
        return values, valid
    return np.pad(values, short, mode="symmetric"), np.pad(valid, short, mode="symmetric")


def random_window(width: int, height: int, side: int, rng: np.random.Generator) -> Window:
    """Return a window of `side` pixels, or of what there is, anywhere in the raster."""
    col, row = (int(rng.integers(max(n - side, 0) + 1)) for n in (width, height))
    return Window(col, row, min(side, width), min(side, height))


class RasterFolder(CropSource):
    """Rasters of a folder, or one raster, read window by window through rasterio.

    Parameters
    ----------
    path
        A folder, searched through all its subfolders, or a file.
    modality
        Of the crops.
    weight
        See `CropSource`.
    derive
        Modality of the files where it is another: NDVI and S2RGB are computed from S2L2A or S2L1C.
    s2_offset
        ``"auto"``, ``"present"``, ``"absent"``; ``"darkest"`` takes Sentinel-2's offset for present where the
        darkest percent of the file lies at 900 or above, for corpora whose files do not say.
    scale, class_map
        See `tmcodec.rasters.open_raster`; ``class_map: worldcover`` is the one of ESA's WorldCover.
    missing_bands
        ``"error"``, or ``"invalid"``: a band that a file has not is masked there, and no loss sees it.
    skip_bad, min_valid
        See `CropSource`; a window with a lower share of valid pixels than `min_valid`, of the bands that the
        file has, is not used.
    by_size
        Whether a file counts as the square root of its pixels, so that one large raster neither vanishes
        among chips nor drowns them; opens every file once. Else all count alike.

    Raises
    ------
    CorpusError
        If there is no raster, or one cannot be opened and `skip_bad` is off.
    """

    def __init__(
        self,
        path: str,
        modality: str,
        weight: float = 1.0,
        derive: str | None = None,
        s2_offset: Offset = "auto",
        scale: float | None = None,
        class_map: str | None = None,
        missing_bands: Literal["error", "invalid"] = "error",
        skip_bad: bool = False,
        min_valid: float = 0.1,
        by_size: bool = True,
    ) -> None:
        super().__init__(modality, weight, skip_bad, min_valid)
        self.source = get_modality(derive or modality)
        check_derivation(self.source, self.modality)
        absent = [b for b in self.modality.bands if b not in self.source.bands]
        if self.modality.optical and absent and missing_bands == "error":
            raise ConfigError(f"{self.source.name} has no {absent[0]}; set missing_bands to invalid")
        self.s2_offset, self.scale, self.missing_bands = s2_offset, scale, missing_bands
        self.class_map = parse_class_map(class_map) if class_map else None
        self.path, self.files = Path(path), list_rasters(Path(path))
        self._open: OrderedDict[int, _Opened] = OrderedDict()
        self._process = os.getpid()
        sizes = self._sizes() if by_size else np.ones(len(self.files))
        if not sizes.any():
            raise CorpusError(
                f"{path}: none of its {len(self.files)} rasters can be used ({next(iter(self.bad.values()))})"
            )
        self._shares = sizes / sizes.sum()

    def _sizes(self) -> npt.NDArray[np.float64]:
        """Open every file once; bad ones get nothing."""
        sizes = np.zeros(len(self.files))
        for item in range(len(self.files)):
            try:
                opened = self.opened(item)
                sizes[item] = (opened.raster.width * opened.raster.height) ** 0.5
            except TmcodecError as error:
                self.refuse(item, error)
        return sizes

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """See `CropSource`."""
        return self._shares

    def name_of(self, item: int) -> str:
        """Return the file's path."""
        return str(self.files[item])

    def place_of(self, item: int) -> str:
        """Return where a file lies below the folder, without its suffix; of a single file, its name."""
        file = self.files[item]
        below = Path(file.name) if file == self.path else file.relative_to(self.path)
        return below.with_suffix("").as_posix()

    def opened(self, item: int) -> _Opened:
        """Return an open file; the last few stay open, in this process alone."""
        if self._process != os.getpid():  # a forked worker must not share file positions with its parent
            self._open, self._process = OrderedDict(), os.getpid()
        if item in self._open:
            self._open.move_to_end(item)
        else:
            self._open[item] = _Opened(self.files[item], self)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        return self._open[item]

    def read(self, item: int, rng: np.random.Generator, side: int) -> Crop:
        """See `CropSource`; the place is drawn evenly."""
        opened = self.opened(item)
        return opened.read(random_window(opened.raster.width, opened.raster.height, side, rng))

    def bands_there(self, item: int) -> slice | list[int]:
        """See `CropSource`."""
        return self.opened(item).there

    def windows(self, item: int) -> Iterator[Crop]:
        """See `CropSource`; windows of 512 pixels."""
        opened, side = self.opened(item), STATISTICS_WINDOW
        for row in range(0, opened.raster.height, side):
            for col in range(0, opened.raster.width, side):
                rows, cols = min(side, opened.raster.height - row), min(side, opened.raster.width - col)
                yield opened.read(Window(col, row, cols, rows))

    def __getstate__(self) -> dict[str, object]:
        """Leave open files behind where workers are spawned."""
        return {**self.__dict__, "_open": OrderedDict()}


def list_rasters(path: Path) -> list[Path]:
    """Return the rasters of a folder in order of their paths, or the file itself.

    Raises
    ------
    CorpusError
        If there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CorpusError(f"{path}: no such folder or file; check the path in the configuration")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise CorpusError(f"{path}: no raster in this folder ({', '.join(SUFFIXES)}); check the path")
    return found


class _Opened:
    """One open raster and how its values become the source's modality."""

    def __init__(self, path: Path, folder: RasterFolder) -> None:
        self.folder = folder
        try:
            with gdal_env():
                self.dataset: Dataset = open_quietly(path)
        except GDAL_ERRORS as error:
            raise CorpusError(f"{path}: cannot be opened ({one_line(error)})") from error
        try:
            with gdal_env():
                refuse_unusable(self.dataset)
                self.row = self._bands_there(self.dataset)
                self.raster = self._source()
                self.lift, self.stretch = self._look()
        except BaseException as error:
            self.dataset.close()
            if isinstance(error, TmcodecError):
                raise CorpusError(f"{path}: {error}") from error
            if isinstance(error, GDAL_ERRORS):  # what scaling is told from could not be read
                raise CorpusError(
                    f"{path}: cannot be read ({one_line(error)}); check that the file is complete"
                ) from error
            raise

    def _source(self) -> RasterSource:
        folder = self.folder
        offset = "present" if folder.s2_offset == "darkest" else folder.s2_offset
        return RasterSource(
            self.dataset,
            self.row,
            s2_offset=offset if self.row.optical else "auto",
            scale=folder.scale,
            class_map=folder.class_map,
            owned=True,
        )

    def close(self) -> None:
        self.raster.close()

    @property
    def there(self) -> slice | list[int]:
        """The bands of the folder's modality that the file gives."""
        wanted = self.folder.modality
        if wanted.name in ("NDVI", "S2RGB") or self.row.bands == wanted.bands:
            return slice(None)
        return [i for i, band in enumerate(wanted.bands) if band in self.row.bands]

    def _bands_there(self, dataset: Dataset) -> Modality:
        """Return the row of the table, less bands that are missing where that is allowed."""
        row = self.folder.source
        if self.folder.modality.name == "NDVI" != row.name:
            return replace(row, bands=("B04", "B08"))
        if self.folder.modality.name == "S2RGB" != row.name:
            return replace(row, bands=("B04", "B03", "B02"))
        if self.folder.missing_bands == "error":
            return row
        there = {canonical_band(row, str(d)) for d in dataset.descriptions}
        return replace(row, bands=tuple(b for b in row.bands if b in there) or row.bands)

    def _look(self) -> tuple[float, tuple[float, float]]:
        """Return what is to be added to the values, and the range that a picture is stretched over."""
        wanted = self.folder.s2_offset == "darkest" and self.row.optical
        picture = self.folder.modality.name == "S2RGB" != self.row.name
        if not wanted and not picture:
            return 0.0, (0.0, 1.0)
        parts = [values[valid] for values, valid in map(self.raster.read, self._glances())]
        seen = np.concatenate(parts)
        if not seen.size:
            return 0.0, (0.0, 1.0)
        lift = S2_OFFSET if wanted and np.percentile(seen, 1) < 900 else 0.0
        low, high = np.percentile(seen, (0.2, 99.8)) + lift
        return lift, (float(low), float(max(high, low + 1)))

    def _glances(self) -> list[Window]:
        """Return the whole of a small raster, or 25 windows spread evenly over a large one."""
        width, height, side = self.raster.width, self.raster.height, 128
        if width * height <= 25 * side**2:
            return [Window(0, 0, width, height)]
        rows, cols = (np.linspace(0, max(n - side, 0), 5).astype(int) for n in (height, width))
        return [Window(int(c), int(r), min(side, width), min(side, height)) for r in rows for c in cols]

    def read(self, window: Window) -> Crop:
        """Read a window as the folder's modality."""
        values, valid = self.raster.read(window)
        if self.lift:
            values += np.float32(self.lift)
        return derived(values, valid, self.row, self.folder.modality, self.stretch)


def check_derivation(source: Modality, target: Modality) -> None:
    """Raise ModalityError where nobody knows how to make one modality from the other."""
    from_optical = source.optical and (target.optical or target.name in ("NDVI", "S2RGB"))
    radar = {source.name, target.name} == {"S1GRD", "S1RTC"}
    if source.name != target.name and not from_optical and not radar:
        raise ModalityError(f"{target.name} cannot be derived from {source.name}")


def derived(
    values: Values, valid: Mask, row: Modality, target: Modality, stretch: tuple[float, float]
) -> Crop:
    """Turn values of `row`'s bands into those of `target`."""
    if target.name == "NDVI" and row.name != "NDVI":
        red, nir = np.maximum(values - np.float32(S2_OFFSET), 0)
        both: Mask = valid.all(axis=0, keepdims=True) & (red + nir > 0)
        return ((nir - red) / np.maximum(nir + red, 1))[None].astype(np.float32), both
    if target.name == "S2RGB" and row.name != "S2RGB":
        low, high = stretch
        return np.clip((values - low) / (high - low) * 255, 0, 255).round().astype(np.float32), valid
    if row.bands == target.bands:
        return values, valid
    out = np.zeros((len(target.bands), *values.shape[1:]), np.float32)
    ok = np.zeros(out.shape, bool)
    for i, band in enumerate(target.bands):
        if band in row.bands:
            out[i], ok[i] = values[row.bands.index(band)], valid[row.bands.index(band)]
    return out, ok
