"""Read any raster as physical values and validity, window by window."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import PurePath
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.errors import RasterioError, RasterioIOError

from tmcodec.errors import BandError, RasterOpenError, UnitsError, WindowError
from tmcodec.modalities import Modality, get_modality
from tmcodec.rasters.arrays import ArrayDataset, Dataset, has_mask_band, masks_differ, read_masks
from tmcodec.rasters.black import black_is_nodata
from tmcodec.rasters.classes import check_class_map, check_classes, map_classes, parse_class_map
from tmcodec.rasters.crs import crs_text
from tmcodec.rasters.gdal import (
    GDAL_ERRORS,
    LOCKS,
    CPLE_BaseError,
    cache_chosen,
    gdal_env,
    one_line,
    open_quietly,
)
from tmcodec.rasters.nodata import usable_nodata, valid_pixels
from tmcodec.rasters.product import (
    acquisition_time,
    all_bands,
    all_tags,
    decide_s2_offset,
    decide_scaling,
    infer_modality,
    nodata_values,
    select_bands,
)
from tmcodec.rasters.units import height_unit
from tmcodec.rasters.windows import IDENTITY, Transform, Window, window_transform
from tmcodec.texts import human_bytes

MAX_BLOCK = 1 << 31
"""Most bytes of a band's block, 2 GiB; GDAL reads blocks whole."""
_STRIP_BYTES = 64 << 20  # stored bytes read at once; bounds the copy beside the float32 result


class RasterSource:
    """An open raster that yields physical values; made by `open_raster`, used in ``with``.

    Attributes
    ----------
    modality : Modality
        Of class maps, with the legend that says whether class 0 is a gap: the table's, until another is put
        in its place.
    width, height : int
        Size in pixels, of the sub-window where one was asked for.
    crs : str or None
        ``"EPSG:n"``, WKT, or None.
    transform : tuple of 6 floats, or None
        Exactly the file's, moved to the sub-window; None is the identity.
    dtype : str
        Of the stored bands.
    nodata : int, float or None
        In the dtype; of the first band that has one; 0 where that in all bands is NO_DATA, undeclared
        (`black_is_nodata`). Integers whose bands have masks of their own get
        one, the modality's or the dtype's least: a GeoTIFF has one mask for all bands.
    mask_kind : str
        ``"mask"`` where there is no nodata value but a mask or alpha band, else ``"nodata"``.
    bands : tuple of str
        Canonical names, in the modality's order.
    scale, offset : float
        physical = stored * scale + offset.
    tagged : tuple of two floats
        The file's own scale and offset tags; (1, 0) without any, or where the caller gave a scale.
    unit : str
        That of the file's heights after its own tags, where `scale` turns it into metres; else empty.
    s2_offset : str
        ``"present"``, ``"absent"``, or ``""`` where it does not apply.
    time : datetime or None
        Of acquisition, UTC.
    tokenizer : str or None
        Whose tokens the raster was decoded from, by its tag.
    block_shape : tuple of int
        Rows and columns of the file's blocks.
    left_out : tuple of str
        Where the raster has no transform, what else says where it lies and is not read.
    description : str
        Short name of the source, for messages.
    """

    def __init__(
        self,
        dataset: Dataset,
        modality: Modality,
        *,
        s2_offset: str = "auto",
        scale: float | None = None,
        class_map: Mapping[int, int] | None = None,
        window: Window | None = None,
        owned: bool = True,
    ) -> None:
        self._dataset, self._owned, self._lock = dataset, owned, LOCKS.of(dataset)
        self._cache_chosen = cache_chosen()
        self._indexes = select_bands(dataset, modality)
        if class_map is not None and not modality.categorical:
            raise UnitsError(f"{modality.name} has no classes to map; leave --class-map out")
        self._class_map = dict(class_map) if class_map is not None else None
        self._origin = _checked_window(window, dataset)
        self.modality, self.bands = modality, modality.bands
        self.width, self.height = self._origin.width, self._origin.height
        self.dtype = _common_dtype(dataset, self._indexes)
        self._nodatas = nodata_values(dataset, self._indexes, modality)
        self._masked = has_mask_band(dataset, self._indexes)
        every = all_bands(dataset, self._indexes, modality)
        self._black = black_is_nodata(dataset, every, modality)
        self._further = every[len(self._indexes) :]
        self.nodata = self._output_nodata()
        self.mask_kind = "mask" if self._masked and self.nodata is None else "nodata"
        self.s2_offset = decide_s2_offset(dataset, s2_offset, modality)
        nodatas = [0] * len(self._indexes) if self._black else self._nodatas
        self.scale, self.offset = decide_scaling(dataset, modality, scale, self.s2_offset, nodatas)
        first = self._indexes[0] - 1
        tagged = (float(dataset.scales[first]), float(dataset.offsets[first]))
        self.tagged = tagged if scale is None else (1.0, 0.0)
        self.unit = self._own_unit(scale)
        if modality.categorical:
            check_classes(dataset, modality, self._class_map)
        self.time: datetime | None = acquisition_time(dataset)
        self.tokenizer: str | None = all_tags(dataset).get("TMCODEC_TOKENIZER")
        self.crs = crs_text(dataset.crs)
        self.transform = _moved_transform(dataset.transform, self._origin)
        self.left_out = _other_places(dataset) if self.transform is None else ()
        rows, cols = dataset.block_shapes[self._indexes[0] - 1]
        self.block_shape = (int(rows), int(cols))
        self.description = PurePath(dataset.name).name or "raster"

    def __enter__(self) -> RasterSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; a dataset that the caller opened stays open."""
        if self._owned:
            with self._lock:
                self._dataset.close()

    def read(self, window: Window) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Read one window; several threads may call this.

        Parameters
        ----------
        window
            Relative to the sub-window, where one was given to `open_raster`.

        Returns
        -------
        values : ndarray
            Shape (C, height, width), float32, physical units, finite. Invalid pixels hold
            something arbitrary; pass them through `fill_invalid` before a network.
        valid : ndarray
            Same shape, bool, exact for each band.

        Raises
        ------
        WindowError
            If the window is not inside the raster.
        RasterOpenError
            If the file cannot be read.
        UnitsError
            If a class id is unknown.
        """
        if not Window(0, 0, self.width, self.height).contains(window):
            raise WindowError(f"window {window} is not inside the raster of {self.width} x {self.height}; "
                              "clip it first")
        shape = (len(self._indexes), window.height, window.width)
        values, valid = np.empty(shape, np.float32), np.empty(shape, np.bool_)
        for first, last in self._strips(window):
            stored, masks = self._read_stored(self._indexes, window, first, last)
            for band in range(shape[0]):
                mask = None if masks is None else masks[band]
                self._convert(stored[band], band, mask, values[band, first:last], valid[band, first:last])
            if self._black:
                valid[:, first:last] &= self._seen(stored, window, first, last)
        return values, valid

    def _seen(self, stored: npt.NDArray[Any], window: Window, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Return where a band is not 0, of those of the file that were not asked for, too."""
        seen: npt.NDArray[np.bool_] = np.any(stored, axis=0)
        if self._further and not seen.all():
            seen |= np.any(self._read_stored(self._further, window, first, last)[0], axis=0)
        return seen

    def _strips(self, window: Window) -> Iterator[tuple[int, int]]:
        """Yield row ranges of the window that end at the file's block borders."""
        block = self.block_shape[0]
        row_bytes = len(self._indexes) * window.width * np.dtype(self.dtype).itemsize
        step = max(_STRIP_BYTES // (row_bytes * block), 1) * block
        top = self._origin.row + window.row
        first = 0
        while first < window.height:
            last = min(((top + first) // block) * block + step - top, window.height)
            yield first, last
            first = last

    def _read_stored(
        self, indexes: list[int], window: Window, first: int, last: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        row, col = self._origin.row + window.row, self._origin.col + window.col
        slices = ((row + first, row + last), (col, col + window.width))
        try:
            # All bands in one call: in a pixel-interleaved file they share their blocks.
            with self._lock, gdal_env(self._cache_chosen):
                stored = self._dataset.read(indexes, window=slices)
                masks = read_masks(self._dataset, indexes, slices) if self._masked else None
        except GDAL_ERRORS as error:
            raise RasterOpenError(f"{self.description}: cannot read window {window} ({one_line(error)}); "
                                  "check that the file is complete and open") from error
        return stored, masks

    def _convert(
        self,
        stored: npt.NDArray[Any],
        band: int,
        mask: npt.NDArray[np.bool_] | None,
        values: npt.NDArray[np.float32],
        valid: npt.NDArray[np.bool_],
    ) -> None:
        """Write one band's physical values and validity into `values` and `valid`, shapes (h, w)."""
        valid[...] = valid_pixels(stored, self._nodatas[band])
        if mask is not None:
            valid &= mask
        if self.modality.categorical:
            values[...] = 0
            values[valid] = map_classes(stored[valid], self._class_map)
            if self.modality.zero_is_no_data:
                valid &= values != 0
            return
        # float32 is exact for 16-bit integers; wider ones and float64 are scaled in float64.
        work = np.result_type(stored.dtype, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # nodata such as -3.4e38 may overflow
            # In place where float32 does: fresh memory for copies costs more than the arithmetic.
            scaled = values if work == np.float32 else np.empty(stored.shape, work)
            np.multiply(stored, work.type(self.scale), out=scaled, dtype=work)
            scaled += work.type(self.offset)
            if scaled is not values:
                values[...] = scaled
        finite = np.isfinite(values)
        if not finite.all():
            valid &= finite
            values[~finite] = 0

    def _own_unit(self, scale: float | None) -> str:
        if self.modality.units != "m" or scale is not None:
            return ""
        unit, metres = height_unit(self._dataset, self._indexes[0])
        return unit if metres != 1 else ""

    def _output_nodata(self) -> int | float | None:
        if self._black:
            return 0
        nodata = next((n for n in self._nodatas if n is not None), None)
        integers = np.dtype(self.dtype).kind in "iu"
        if nodata is None and integers and masks_differ(self._dataset, self._indexes):
            usual = usable_nodata(self.modality.nodata, self.dtype)
            return int(np.iinfo(self.dtype).min) if usual is None else usual
        if self._class_map is None or nodata is None:
            return nodata
        # The map renames classes, and the old nodata id may be another class's new one.
        return 0 if 0 < nodata < len(self.modality.classes) else nodata


def open_raster(
    src: Any,
    modality: str | None = None,
    *,
    s2_offset: str = "auto",
    scale: float | None = None,
    class_map: Mapping[int, int] | str | None = None,
    window: Window | None = None,
) -> RasterSource:
    """Open a raster for reading in physical units.

    Parameters
    ----------
    src
        A path, URL or ``/vsi`` path that rasterio opens; an open rasterio dataset, which
        stays open and may be given in several threads; an array (C, H, W) or (H, W), or a
        tuple of one and its profile (see `ArrayDataset`).
    modality
        Name of a row of the table; None infers it where the metadata makes it certain.
    s2_offset
        ``"auto"``, ``"present"`` or ``"absent"``, see `decide_s2_offset`.
    scale
        physical = stored * scale, before any tag.
    class_map
        For LULC: the file's ids to the table's, as a mapping or ``"10:2,20:9"``.
    window
        Sub-window; the source then looks as if the raster were only that.

    Raises
    ------
    RasterOpenError
        If `src` cannot be opened.
    ModalityError, BandError, OffsetUnknownError, UnitsError, WindowError
        If the raster does not say enough or does not fit; see `product`.
    """
    parsed = parse_class_map(class_map) if isinstance(class_map, str) else class_map
    if parsed is not None:
        check_class_map(parsed)
    named = get_modality(modality) if modality is not None else None
    dataset, owned = _open_dataset(src)
    try:
        with LOCKS.of(dataset), gdal_env():
            refuse_unusable(dataset)
            row = named or infer_modality(dataset)
            return RasterSource(dataset, row, s2_offset=s2_offset, scale=scale, class_map=parsed,
                                window=window, owned=owned)
    except BaseException as error:
        if owned:
            dataset.close()
        if isinstance(error, (RasterioError, RasterioIOError, CPLE_BaseError)):  # two roots before 1.4
            raise RasterOpenError(f"{dataset.name}: cannot be read ({one_line(error)}); "
                                  "check that the file is complete") from error
        raise


def own_modality(src: Any) -> str | None:
    """Return the modality that a raster decoded by tmcodec names, or None for any other raster.

    Raises
    ------
    RasterOpenError
        If `src` cannot be opened.
    """
    with _header(src) as dataset:
        return all_tags(dataset).get("TMCODEC_MODALITY")


def stored_dtypes(src: Any) -> tuple[str, ...]:
    """Return the dtype of each band of a raster.

    Raises
    ------
    RasterOpenError
        If `src` cannot be opened.
    """
    with _header(src) as dataset:
        return tuple(map(str, dataset.dtypes))


@contextmanager
def _header(src: Any) -> Iterator[Dataset]:
    """Open a raster for a look at what it says of itself."""
    dataset, owned = _open_dataset(src)
    try:
        with LOCKS.of(dataset):
            yield dataset
    finally:
        if owned:
            dataset.close()


def _open_dataset(src: Any) -> tuple[Dataset, bool]:
    """Return the dataset and whether it is ours to close."""
    if isinstance(src, tuple) and len(src) == 2 and isinstance(src[1], Mapping | None):
        return ArrayDataset(*src), True
    if isinstance(src, np.ndarray):  # masked ones, too
        return ArrayDataset(src), True
    if hasattr(src, "read_masks"):
        return src, False
    if not isinstance(src, str | os.PathLike):
        raise RasterOpenError(f"cannot open a {type(src).__name__}; give a path, an open rasterio dataset, "
                              "a NumPy array, or a tuple of an array and its profile")
    try:
        with gdal_env():
            dataset: Dataset = open_quietly(src)
    except GDAL_ERRORS as error:
        if os.path.isdir(src):
            raise RasterOpenError(f"{os.fspath(src)} is a folder; give a raster in it") from error
        message = f"cannot open {os.fspath(src)} ({one_line(error)}); check the path and the format"
        raise RasterOpenError(message) from error
    return dataset, True


def _common_dtype(dataset: Dataset, indexes: list[int]) -> str:
    dtypes = {dataset.dtypes[i - 1] for i in indexes}
    if len(dtypes) > 1:
        raise BandError(f"{dataset.name}: the bands have different dtypes {', '.join(sorted(dtypes))}; "
                        "convert them to one with gdal_translate -ot")
    dtype = str(dtypes.pop())
    if dtype in ("int64", "uint64"):
        raise BandError(f"{dataset.name}: has {dtype} values, which token files do not store; convert them "
                        "with gdal_translate -ot Int32")
    return dtype


def refuse_unusable(dataset: Dataset) -> None:
    """Refuse what no modality's values can be read from, before anything else is asked of a dataset.

    Raises
    ------
    RasterOpenError
        If it has subdatasets and no bands of its own, or GDAL has to hold more than `MAX_BLOCK` bytes to
        read a pixel.
    UnitsError
        If its values are complex.
    """
    _refuse_subdatasets(dataset)
    _refuse_complex(dataset)
    _refuse_huge_blocks(dataset)


def _refuse_subdatasets(dataset: Dataset) -> None:
    """A container such as a GeoPackage, SAFE or netCDF may have no bands of its own."""
    if dataset.count == 0:
        names = list(getattr(dataset, "subdatasets", ()))
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise RasterOpenError(f"{dataset.name}: has no bands of its own; open one of its subdatasets: "
                              f"{shown or 'there are none'}")


def _refuse_complex(dataset: Dataset) -> None:
    if any(str(dtype).startswith("complex") for dtype in dataset.dtypes):  # GDAL's complex_int16 too
        raise UnitsError(f"{dataset.name}: the values are complex; convert them to intensity in dB first")


def _refuse_huge_blocks(dataset: Dataset) -> None:
    """A file of a few hundred bytes may say that it is one strip of two thousand million pixels."""
    rows, cols = map(int, dataset.block_shapes[0])
    size = rows * cols * max(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    if size > MAX_BLOCK:
        raise RasterOpenError(f"{dataset.name}: blocks of {rows} x {cols} pixels take {human_bytes(size)} "
                              "each; write it in tiles first: gdal_translate -co TILED=YES")


def _checked_window(window: Window | None, dataset: Dataset) -> Window:
    whole = Window(0, 0, dataset.width, dataset.height)
    if window is not None and not whole.contains(window):
        raise WindowError(f"window {window} is not inside the raster of {whole.width} x {whole.height}; "
                          "give COL ROW WIDTH HEIGHT inside it")
    return window or whole


def _other_places(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of what places a raster on the map without a transform."""
    points: Any = getattr(dataset, "gcps", ([], None))[0]  # arrays have none
    rational = getattr(dataset, "rpcs", None)
    swath = "GEOLOCATION" in dataset.tag_namespaces()
    places = (("ground control points", points), ("RPCs", rational), ("geolocation arrays", swath))
    return tuple(name for name, there in places if there)


def _moved_transform(transform: Any, window: Window) -> Transform | None:
    a, b, c, d, e, f = (float(v) for v in tuple(transform)[:6])
    moved = (a, b, c, d, e, f)
    if (window.col, window.row) != (0, 0):
        moved = window_transform(moved, window)
    return None if moved == IDENTITY or not all(map(math.isfinite, moved)) else moved
