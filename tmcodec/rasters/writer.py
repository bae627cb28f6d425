"""Write physical values as a GeoTIFF, window by window; the file appears complete or not at all."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.shutil
from rasterio.crs import CRS
from rasterio.transform import Affine

from tmcodec.atomic import SIDECARS, atomic_path
from tmcodec.errors import RasterWriteError, TmcodecError, WindowError
from tmcodec.modalities import Modality
from tmcodec.rasters.crs import parse_crs
from tmcodec.rasters.gdal import GDAL_ERRORS, WORKERS, cache_chosen, gdal_env, one_line, open_quietly
from tmcodec.rasters.nodata import usable_nodata
from tmcodec.rasters.windows import IDENTITY, Transform, Window

_TILE = 256  # a row of tiles of 10980 x 12 16-bit bands then fits GDAL's cache of 256 MB four times
_COG_TILE = 512  # the COG driver's default and what remote readers expect
_FULL = 2**20  # bytes left on a disk on which nothing more can be written


class RasterWriter:
    """Write a GeoTIFF in a ``with`` block.

    Parameters
    ----------
    path
        Target; a temporary file beside it is renamed when the block ends well.
    width, height
        Size in pixels.
    bands
        Band descriptions.
    dtype
        Stored dtype, one that GeoTIFF has.
    crs
        ``"EPSG:n"``, WKT, or None. One that GeoTIFF has no keys for goes into a sidecar, ``.aux.xml``.
    transform
        Affine 6-tuple, None for the identity.
    nodata
        Value of masked pixels, or None.
    mask_kind
        ``"mask"`` writes an internal mask band instead of a nodata value.
    units
        Unit of the values once `tagged` is applied, one for all bands or one each.
    tags
        Written as they are.
    modality
        Clips values to the modality's range, adds its name as a tag and, for classes, the
        colour map.
    scale, offset
        stored = (physical - offset) / scale.
    tagged
        GDAL's scale and offset to tag the bands with; (1, 0) writes none.
    cog
        Write a Cloud Optimized GeoTIFF, with overviews.
    overwrite
        Replace an existing target, and remove its sidecars (`tmcodec.atomic.SIDECARS`).
    compress
        ``"deflate"`` or ``"zstd"``.

    Raises
    ------
    RasterWriteError
        If the options contradict each other or the file cannot be written.
    TargetExistsError
        On entry, if the target or a sidecar of that name exists and `overwrite` is false.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        height: int,
        bands: Sequence[str],
        dtype: str,
        crs: str | None = None,
        transform: Transform | None = None,
        nodata: float | None = None,
        mask_kind: str = "nodata",
        units: str | Sequence[str] = "",
        tags: Mapping[str, str] | None = None,
        modality: Modality | None = None,
        scale: float = 1.0,
        offset: float = 0.0,
        tagged: tuple[float, float] = (1.0, 0.0),
        cog: bool = False,
        overwrite: bool = False,
        compress: str = "deflate",
    ) -> None:
        self.path, self.width, self.height = Path(path), width, height
        self.bands, self.dtype = tuple(bands), np.dtype(dtype)
        self.nodata = None if nodata is None or mask_kind == "mask" else usable_nodata(nodata, dtype)
        if mask_kind != "mask" and nodata is not None and self.nodata is None:
            raise RasterWriteError(f"nodata {nodata} does not fit into {dtype}; choose a value that does")
        self._masked, self._modality = mask_kind == "mask", modality
        self._crs, self._transform = crs, transform
        self._units = (units,) * len(self.bands) if isinstance(units, str) else tuple(units)
        self._tags = dict(tags or {})
        self._scale, self._offset, self._tagged = scale, offset, tagged
        self._cog, self._overwrite, self._compress = cog, overwrite, compress
        self._cache_chosen = cache_chosen()
        self._final = self._draft = self.path
        self._stack: ExitStack | None = None
        self._dataset: Any = None

    # ----------------------------------------------------------------- opening and closing

    def __enter__(self) -> RasterWriter:
        if not self.path.parent.is_dir():
            raise RasterWriteError(f"cannot write {self.path}: its folder does not exist; create it first")
        with ExitStack() as stack:
            self._final = self._reserve(stack)
            # A COG is a rewritten copy: its overviews come before the data.
            self._draft = self._final.with_suffix(".draft.tif") if self._cog else self._final
            stack.callback(self._discard)
            self._create()
            self._stack = stack.pop_all()
        return self

    def _reserve(self, stack: ExitStack) -> Path:
        try:
            return stack.enter_context(atomic_path(self.path, self._overwrite, SIDECARS))
        except TmcodecError:
            raise
        except OSError as error:
            raise self._failed(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is None:
            return
        if error is not None:
            stack.__exit__(kind, error, trace)
            return
        try:
            with stack:  # removes the temporary files where finishing fails
                self._finish()
        except TmcodecError:
            raise
        except OSError as failure:  # the sync or the rename
            raise self._failed(failure) from failure

    def _create(self) -> None:
        try:
            with self._gdal():
                self._dataset = open_quietly(self._draft, "w", **self._profile())
                self._describe()
        except GDAL_ERRORS as error:
            raise self._failed(error) from error

    @contextmanager
    def _gdal(self) -> Iterator[None]:
        """Enter GDAL's environment with sidecars, which users turn off: a CRS may have no other place."""
        with gdal_env(self._cache_chosen), rasterio.Env(GDAL_PAM_ENABLED=True):
            yield

    def _profile(self) -> dict[str, Any]:
        profile: dict[str, Any] = {
            "driver": "GTiff", "width": self.width, "height": self.height, "count": len(self.bands),
            "dtype": self.dtype.name, "crs": self._parsed_crs(), "nodata": self.nodata,
            "tiled": True, "blockxsize": _TILE, "blockysize": _TILE, "interleave": "band",
            "compress": self._compress, "predictor": self._predictor,
            "bigtiff": "IF_SAFER", "num_threads": self._threads,
        }
        if self._cog:
            profile.update(compress="zstd", zstd_level=1)  # read once, then thrown away
        elif self._compress == "deflate":
            profile["zlevel"] = 1  # a third of the time of level 6, and files 5 % larger
        if self._transform is not None and self._transform != IDENTITY:
            profile["transform"] = Affine(*self._transform)
        if self._is_rgb():
            profile["photometric"] = "RGB"
        return profile

    def _is_rgb(self) -> bool:
        return self.bands == ("B04", "B03", "B02") and self.dtype == np.uint8

    def _parsed_crs(self) -> CRS | None:
        return parse_crs(self._crs) if self._crs else None

    def _describe(self) -> None:
        self._dataset.descriptions = self.bands
        if self._tagged != (1.0, 0.0):
            self._dataset.scales, self._dataset.offsets = ((v,) * len(self.bands) for v in self._tagged)
        if any(self._units):
            self._dataset.units = self._units
        tags = dict(self._tags)
        if self._modality is not None:
            tags.setdefault("TMCODEC_MODALITY", self._modality.name)
        tags.pop("ns", None)  # rasterio would take it for the domain of all others
        self._dataset.update_tags(**tags)
        colors = self._modality.colors if self._modality is not None else ()
        if colors and self.dtype == np.uint8 and len(self.bands) == 1:
            self._dataset.write_colormap(1, {i: (*rgb, 255) for i, rgb in enumerate(colors)})

    def _finish(self) -> None:
        try:
            with self._gdal():
                self._dataset.close()
                self._keep_units()
                if self._cog:
                    rasterio.shutil.copy(self._draft, self._final, driver="COG", **self._cog_options())
                _check_complete(self._final)
        except GDAL_ERRORS as error:
            raise self._failed(error) from error

    def _keep_units(self) -> None:
        """Write the units again where the file has others.

        GDAL leaves out a unit that the vertical axis of the CRS says, too, and then makes that axis one of
        metres where the unit has no code: feet came back as metres.
        """
        with open_quietly(self._draft) as dataset:
            kept = tuple(unit or "" for unit in dataset.units) == self._units or not any(self._units)
        if not kept:
            with open_quietly(self._draft, "r+") as dataset:
                dataset.units = self._units

    @property
    def _predictor(self) -> int:
        """GeoTIFF's: of floats, of differences, or none; libtiff 4.3 has none for integers of 64 bits."""
        if self.dtype.kind == "f":
            return 3
        return 2 if self.dtype.itemsize < 8 else 1

    @property
    def _threads(self) -> int | str:
        """GDAL's own; beside a mask band they read freed memory, and say "Bad value 11 for ExtraSamples"."""
        return 1 if self._masked else WORKERS.count

    def _cog_options(self) -> dict[str, Any]:
        categorical = self._modality is not None and self._modality.categorical
        return {"compress": self._compress, "predictor": "NO" if self._predictor == 1 else "YES",
                "blocksize": _COG_TILE, "bigtiff": "IF_SAFER",
                "num_threads": self._threads,
                "overview_resampling": "MODE" if categorical else "AVERAGE"}

    def _discard(self) -> None:
        if self._dataset is not None:
            # Without it GDAL says on stderr what a full disk does to an unfinished file.
            with gdal_env(self._cache_chosen):
                self._dataset.close()
        if self._draft != self._final:
            for ending in ("", *SIDECARS):
                Path(f"{self._draft}{ending}").unlink(missing_ok=True)

    def _failed(self, error: BaseException) -> TmcodecError:
        # Of a full disk GDAL says that it cannot read back what it wrote.
        if self.path.parent.is_dir() and shutil.disk_usage(self.path.parent).free < _FULL:
            return RasterWriteError(f"cannot write {self.path}: no space left on its disk; free some")
        said = one_line(error)
        for hidden in (self._draft, self._final):
            said = said.replace(str(hidden), self.path.name).replace(hidden.name, self.path.name)
        return RasterWriteError(f"cannot write {self.path} ({said}); check the options, the disk and the "
                                "permissions")

    # ----------------------------------------------------------------- values

    def write(
        self, window: Window, values: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Write one window; windows may come in any order, whole rows of tiles are fastest.

        Parameters
        ----------
        window
            Where the values go.
        values
            Shape (C, height, width), float32, physical units.
        valid
            Same shape, or None where all pixels are valid. With a mask band a pixel of integers is
            valid where all its bands are; floats are NaN band by band, and the mask tells where any band
            is valid. Values that are not finite are never valid.

        Raises
        ------
        WindowError
            If the window lies outside the raster or the shapes differ.
        RasterWriteError
            If a pixel is invalid and the file has no way to say so, or writing fails.
        """
        if self._stack is None:
            raise RasterWriteError(f"cannot write {self.path}: it is not open; use a with block")
        self._check_shapes(window, values, valid)
        stored = np.empty(values.shape, self.dtype)
        ok = np.isfinite(values) if valid is None else valid & np.isfinite(values)
        for band in range(len(values)):
            stored[band] = self.to_stored(values[band], ok[band])
        slices = ((window.row, window.row_end), (window.col, window.col_end))
        try:
            with self._gdal():
                self._dataset.write(stored, window=slices)
                if self._masked:
                    # The option is read when the mask band is made, with the first window.
                    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                        some = ok.any(axis=0) if self.dtype.kind == "f" else ok.all(axis=0)
                        self._dataset.write_mask(some, window=slices)
        except GDAL_ERRORS as error:
            raise self._failed(error) from error

    def _check_shapes(self, window: Window, values: npt.NDArray[Any], valid: npt.NDArray[Any] | None) -> None:
        shape = (len(self.bands), window.height, window.width)
        if values.shape != shape or (valid is not None and valid.shape != shape):
            raise WindowError(f"values or validity have not the shape {shape} of the window; pass that")
        if not Window(0, 0, self.width, self.height).contains(window):
            raise WindowError(f"window {window} is not inside the raster of {self.width} x {self.height}; "
                              "clip it first")

    @np.errstate(over="ignore", invalid="ignore")  # a file may state any scale
    def to_stored(self, values: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Return one band as it is stored: scaled, clipped, rounded, invalid pixels marked.

        Parameters
        ----------
        values
            Shape (h, w), physical units.
        valid
            Same shape.

        Returns
        -------
        ndarray
            Same shape, the file's dtype. A valid pixel never has the nodata value: it moves
            by one step, towards its exact value where the range allows. Class ids do not
            move, for their neighbours are other classes; they become 0, "no data".
        """
        low, high = self._limits()
        # float32 rounds 16-bit integers right and takes half the time; wider ones need float64.
        work = np.float32 if self.dtype.itemsize <= 2 else np.float64
        exact = (np.where(valid, values, 0).astype(work) - work(self._offset)) / work(self._scale)
        clipped = np.clip(exact, low, high)
        stored = (np.rint(clipped) if self.dtype.kind in "iu" else clipped).astype(self.dtype)
        if self.nodata is not None and not math.isnan(self.nodata):
            hit = valid & (stored == self.dtype.type(self.nodata))
            if hit.any():
                stored[hit] = self._beside_nodata(exact[hit], low, high)
        if not valid.all():
            stored[~valid] = self._invalid_value()
        return stored

    def _limits(self) -> tuple[float, float]:
        """Return the lowest and highest stored value of both the dtype and the modality, as float64."""
        low, high = -math.inf, math.inf
        if self._modality is not None:
            ends = sorted((v - self._offset) / self._scale for v in self._modality.valid_range)
            low, high = ends[0], ends[1]
        if self.dtype.kind in "iu":
            info = np.iinfo(self.dtype)
            top = float(info.max)
            top = math.nextafter(top, 0) if int(top) > info.max else top  # 2**63 does not fit into int64
            # Whole limits: rounding a clipped 0.6 must not leave a range that ends at 0.7.
            low = max(float(np.ceil(low)), float(info.min))
            high = min(float(np.floor(high)), top)
        return low, high

    def _beside_nodata(self, exact: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[Any]:
        assert self.nodata is not None
        if self._modality is not None and self._modality.categorical:
            return np.zeros(exact.shape, self.dtype)
        nodata = self.dtype.type(self.nodata)
        if self.dtype.kind in "iu":
            above, below = self.nodata + 1, self.nodata - 1
        else:
            above, below = (np.nextafter(nodata, self.dtype.type(end)) for end in (np.inf, -np.inf))
        down = (exact < float(nodata)) & (below >= low) | (above > high)
        return np.where(down, below, above).astype(self.dtype)

    def _invalid_value(self) -> float:
        if self.nodata is not None:
            return self.nodata
        if self.dtype.kind == "f":
            return math.nan
        if self._masked or (self._modality is not None and self._modality.zero_is_no_data):
            return 0
        raise RasterWriteError(f"cannot write {self.path}: pixels are masked, but it has no nodata value; "
                               "give one or mask_kind='mask'")


def _check_complete(path: Path) -> None:
    """Raise where a block is missing, lies beyond the end of the file or cannot be decoded.

    GDAL flushes late and while closing; a full disk shows there as a line on stderr and
    raises nothing. Reading back costs little beside what made the values.
    """
    size = path.stat().st_size
    with open_quietly(path) as dataset:
        rows, cols = dataset.block_shapes[0]
        pixel = dataset.interleaving is not None and dataset.interleaving.name == "pixel"
        for row in range(-(-dataset.height // rows)):
            for band in range(1, 2 if pixel else dataset.count + 1):
                ends = [_block_end(dataset, band, row, col) for col in range(-(-dataset.width // cols))]
                if not all(0 < end <= size for end in ends):
                    raise OSError(f"blocks of band {band} were not written")
            dataset.read(window=((row * rows, min((row + 1) * rows, dataset.height)), (0, dataset.width)))


def _block_end(dataset: Any, band: int, row: int, col: int) -> int:
    start = dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band)
    length = dataset.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=band)
    return int(start or 0) + int(length or 0)
