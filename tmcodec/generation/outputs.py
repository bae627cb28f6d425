"""What `tmcodec generate` writes: names, metadata, and several files that appear together or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tmcodec.atomic import (
    GEOTIFF_SUFFIXES,
    RASTER_SUFFIXES,
    SIDECARS,
    check_geotiff_name,
    check_target,
    check_token_name,
    put_in_place,
)
from tmcodec.errors import GenerationError, TargetNameError
from tmcodec.modalities import get_modality
from tmcodec.tokenfile import LayerMeta

if TYPE_CHECKING:
    from tmcodec.codec.tokenizer import Tokenizer
    from tmcodec.generation.sources import Source

FORMATS = ("tmc", "tif")
FOREIGN = (".tmc", *(suffix for suffix in RASTER_SUFFIXES if suffix not in GEOTIFF_SUFFIXES))
"""Names that neither a GeoTIFF nor a new folder of them should have."""
SPREAD = {False: ("mean", "std"), True: ("majority", "share")}
"""What is written of several samples, for values and for classes."""


@dataclass(frozen=True)
class Outputs:
    """Where everything goes.

    Attributes
    ----------
    tokens
        The token file, or None.
    rasters
        GeoTIFF by modality; empty for token files.
    spread
        Two GeoTIFFs by modality, the middle and the spread of several samples.
    folder
        Folder to make for them, or None.
    """

    tokens: Path | None
    rasters: dict[str, Path]
    spread: dict[str, tuple[Path, Path]]
    folder: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """All files."""
        one = [self.tokens] if self.tokens is not None else []
        return [*one, *self.rasters.values(), *(path for pair in self.spread.values() for path in pair)]

    def sidecars(self, path: Path) -> tuple[str, ...]:
        """Endings of what would be read along with one of them."""
        return () if path == self.tokens else SIDECARS


def plan_outputs(
    out: str | os.PathLike[str] | None,
    targets: Sequence[str],
    samples: int,
    format: str | None,
    overwrite: bool,
    sources: Sequence[str | os.PathLike[str]] = (),
) -> Outputs:
    """Settle names, before any work is done.

    Parameters
    ----------
    out
        A token file; a GeoTIFF, whose name gets each modality where there are several; or a folder for them,
        one that is there or whose name ends in a slash. None writes nothing.
    targets
        Modalities.
    samples
        More than one adds middle and spread.
    format
        ``"tmc"``, ``"tif"``, or None: by the suffix of `out`, a token file where that says nothing.
    overwrite
        Whether files that exist may be replaced.
    sources
        Files that are read, which no output may replace.

    Raises
    ------
    GenerationError
        If the format is unknown.
    TargetExistsError, TargetFolderError, TargetNameError
    """
    if out is None:
        return Outputs(None, {}, {})
    path = Path(out)
    inside = path.is_dir() or os.fspath(out).endswith(("/", os.sep))
    tiff = path.suffix.lower() in GEOTIFF_SUFFIXES and not inside
    chosen = format or ("tif" if tiff or inside else "tmc")
    if chosen not in FORMATS:
        raise GenerationError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    if chosen == "tmc" and inside:
        raise GenerationError(f"{path} is a folder, and a token file holds all targets; name a file")
    if chosen == "tif" and not inside and path.suffix.lower() in FOREIGN:
        raise TargetNameError(f"{path}: what is written are GeoTIFFs; name it .tif, or a folder for them")
    folder = path if chosen == "tif" and not tiff else None
    stem = f"{path.stem}_" if folder is None else ""
    where, suffix = (path.parent, path.suffix if tiff else ".tif") if folder is None else (folder, ".tif")
    rasters: dict[str, Path] = {}
    if chosen == "tif":
        alone = folder is None and len(targets) == 1
        rasters = {name: path if alone else where / f"{stem}{name}{suffix}" for name in targets}
    spread = {}
    for name in targets if samples > 1 else ():
        middle, wide = (
            where / f"{stem}{name}_{kind}{suffix}" for kind in SPREAD[get_modality(name).categorical]
        )
        spread[name] = (middle, wide)
    outputs = Outputs(path if chosen == "tmc" else None, rasters, spread, folder)
    check_names(outputs, sources)
    check_outputs(outputs, overwrite)
    return outputs


def check_names(outputs: Outputs, sources: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse names that say something else than what is written, and those of the sources."""
    for path in outputs.paths:
        check = check_token_name if path == outputs.tokens else check_geotiff_name
        check(path, *sources)


def check_outputs(outputs: Outputs, overwrite: bool) -> None:
    """Refuse targets that cannot be written."""
    if outputs.folder is not None and not outputs.folder.is_dir():
        check_target(outputs.folder, overwrite=False)
        return
    for path in outputs.paths:
        check_target(path, overwrite, outputs.sidecars(path))


@contextmanager
def staging(outputs: Outputs, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to write the files to, under their own names; they move at the end, if all went well.

    It lies where the targets do, since a rename across file systems is not atomic: in their folder, which may
    be a mount point or a link to another disk, or beside it where it is yet to be made.
    """
    folder, near = outputs.folder, next(iter(outputs.paths), None)
    parent = None if near is None else near.parent
    if folder is not None:
        parent = folder.resolve() if folder.is_dir() else folder.parent
    stage = Path(tempfile.mkdtemp(prefix=".tmcodec-", suffix=".part", dir=parent))
    try:
        yield stage
        check_outputs(outputs, overwrite)
        if outputs.folder is not None:
            outputs.folder.mkdir(exist_ok=True)
        for path in outputs.paths:
            put_in_place(stage / path.name, path, outputs.sidecars(path))
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def target_layer(
    modality: str,
    tok: Tokenizer,
    sources: Sequence[Source],
    chunk: int,
    steps: int,
    seed: int,
    tags: Mapping[str, str],
) -> LayerMeta:
    """Describe the tokens of one target, on the map grid of the sources.

    Pixels are valid where those of all sources are. A modality without a nodata value gets a mask. The time
    is that of the first source that has one.
    """
    row, grid = get_modality(modality), sources[0].map_grid
    masked = any(source.masked for source in sources)
    time = next((source.time for source in sources if source.time is not None), None)
    return LayerMeta(
        name=modality,
        modality=modality,
        tokenizer=tok.name,
        weights_sha256=tok.sha256,
        levels=tok.levels,
        width=grid.width,
        height=grid.height,
        dtype=row.dtype,
        bands=row.bands,
        patch=tok.patch,
        tile=tok.tile,
        chunk=chunk,
        units=row.units,
        s2_offset="present" if row.optical else "",
        nodata=row.nodata,
        mask_kind="mask" if masked and row.nodata is None else "nodata",
        crs=grid.crs,
        transform=grid.transform,
        times=(time,),
        steps=steps,
        seed=seed,
        tags=tags,
    )
