"""The rasters of an evaluation: finding them, and reading one whole in physical units."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tmcodec.errors import EvaluationError, TmcodecError
from tmcodec.modalities import Modality
from tmcodec.rasters import Window, fill_invalid, open_raster

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img")
"""Of what counts as a raster in a folder."""

MAX_PIXELS = 2**24
"""Default cap on a raster, 4096 on a side: it is held in memory as float32 a few times over."""


@dataclass(frozen=True)
class Reading:
    """How to read the rasters; see `tmcodec.rasters.open_raster`.

    Attributes
    ----------
    modality
        Row of the table.
    s2_offset, scale, class_map
        As `tmcodec.encode` takes them.
    s2_offset_of
        ``(pattern, "present" or "absent")``: the first pattern that a file's name matches decides.
    max_pixels
        Cap on width times height.
    """

    modality: Modality
    s2_offset: str = "auto"
    s2_offset_of: tuple[tuple[str, str], ...] = ()
    scale: float | None = None
    class_map: Mapping[int, int] | str | None = None
    max_pixels: int = MAX_PIXELS

    def offset_of(self, path: Path) -> str:
        """Return what `tmcodec.encode` is told about Sentinel-2's offset in this file."""
        told = (told for pattern, told in self.s2_offset_of if fnmatch(path.name, pattern))
        return next(told, self.s2_offset)


@dataclass(frozen=True)
class Scene:
    """One raster in memory.

    Attributes
    ----------
    name
        Folder and file name without suffix; what `short_names` says where there are several.
    path
        The file.
    values, valid
        ``(C, H, W)``: float32 in physical units, and what is valid.
    filled
        `values` with smooth continuations where nothing is valid, as the codec's networks see them.
    raw_bytes
        ``width * height * bands * itemsize``.
    step, origin
        Physical units between neighbouring values of an integer raster (0: the raster is of floats), and the
        physical value of a stored 0.
    """

    name: str
    path: Path
    values: Float = field(repr=False)
    valid: Bool = field(repr=False)
    filled: Float = field(repr=False)
    raw_bytes: int
    step: float = 0.0
    origin: float = 0.0

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.values.shape[1] * self.values.shape[2]

    def as_stored(self, values: Float) -> Float:
        """Round a picture as a raster of this one's dtype would; decoding a token file does it, too."""
        if not self.step:
            return values
        step, origin = np.float32(self.step), np.float32(self.origin)
        return np.rint((values - origin) / step) * step + origin


def find_rasters(folders: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the rasters in the folders and below them, sorted; a file stands for itself.

    A raster that several of the folders have, or that a link leads to again, is returned once.

    Raises
    ------
    EvaluationError
        If a folder does not exist, or none has a raster.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.exists():
            raise EvaluationError(f"{folder} does not exist; give a folder of rasters")
        inside = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        found += [folder] if folder.is_file() else inside
    if not found:
        names = ", ".join(str(f) for f in folders) or "no folder"
        raise EvaluationError(f"{names}: no raster ({', '.join(SUFFIXES)}); give a folder that has some")
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def short_names(paths: Iterable[Path], suffix: bool = False) -> dict[Path, str]:
    """Return a name for each raster, by its absolute path: folder and file name.

    Where two would have the same, they get as many folders more in front as tell them apart.

    Parameters
    ----------
    paths
        The rasters.
    suffix
        Keep the files' suffixes. Otherwise they are kept only in a folder where the names need them, as of
        ``a.tif`` and ``a.jp2``.
    """
    whole = list(dict.fromkeys(p.absolute() for p in paths))
    stems = Counter((p.parent, p.stem) for p in whole)
    kept = {folder for (folder, _), count in stems.items() if suffix or count > 1}
    parts = {p: (*p.parts[1:-1], p.name if p.parent in kept else p.stem) for p in whole}
    names = {p: "/".join(parts[p][-2:]) for p in whole}
    for depth in range(3, max(map(len, parts.values()), default=0) + 1):
        count = Counter(names.values())
        names = {p: name if count[name] == 1 else "/".join(parts[p][-depth:]) for p, name in names.items()}
    return names


def read_scene(path: Path, how: Reading, name: str | None = None) -> Scene:
    """Read a raster whole; without a name it has its folder's and its own.

    Raises
    ------
    EvaluationError
        If it cannot be used: unreadable, other bands, too large, nothing valid. The message names it.
    """
    try:
        with open_raster(
            path, how.modality.name, s2_offset=how.offset_of(path), scale=how.scale, class_map=how.class_map
        ) as raster:
            if raster.width * raster.height > how.max_pixels:
                size = f"{raster.width} x {raster.height} pixels"
                raise EvaluationError(f"{size} are more than {how.max_pixels}; raise max_pixels")
            raster.modality = how.modality  # with the legend of the tokenizers
            values, valid = raster.read(Window(0, 0, raster.width, raster.height))
            dtype = np.dtype(raster.dtype)
            step = raster.scale if dtype.kind in "iu" else 0.0
            origin = raster.offset
    except (TmcodecError, OSError) as err:
        raise EvaluationError(_named(path, err)) from err
    if not valid.any():
        raise EvaluationError(f"{path}: no pixel is valid; leave it out, or skip bad rasters")
    filled = fill_invalid(values, valid, how.modality.mean)
    name = short_names([path])[path.absolute()] if name is None else name
    return Scene(name, path, values, valid, filled, values.size * dtype.itemsize, step, origin)


def _named(path: Path, err: BaseException) -> str:
    """Return the message with the file's path in front, unless it has it already."""
    text = " ".join(str(err).split())
    return text if os.fspath(path) in text else f"{path}: {text}"
