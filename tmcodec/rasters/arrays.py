"""The part of an open rasterio dataset that we use, and arrays that look like it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.transform import Affine

from tmcodec.errors import RasterOpenError
from tmcodec.texts import shown

Slices = tuple[tuple[int, int], tuple[int, int]]
"""``((row, row_end), (col, col_end))``, rasterio's plain form of a window."""


class Dataset(Protocol):
    """What the readers ask of a dataset; ``rasterio.DatasetReader`` has it all."""

    name: str
    count: int
    width: int
    height: int
    crs: Any
    transform: Any
    dtypes: Sequence[str]
    nodatavals: Sequence[float | None]
    descriptions: Sequence[str | None]
    scales: Sequence[float]
    offsets: Sequence[float]
    units: Sequence[str | None]
    block_shapes: Sequence[tuple[int, int]]
    colorinterp: Sequence[Any]
    mask_flag_enums: Sequence[Sequence[Any]]

    def tags(self, bidx: int = 0, ns: str | None = None) -> dict[str, str]:
        """Return the tags of the dataset or of one band, in one domain."""

    def tag_namespaces(self, bidx: int = 0) -> list[str]:
        """Return the names of the other tag domains."""

    def overviews(self, bidx: int) -> list[int]:
        """Return the decimation factors of a band's overviews."""

    def read(
        self, indexes: Any, *, window: Slices | None = None, out_shape: tuple[int, ...] | None = None
    ) -> npt.NDArray[Any]:
        """Read bands (1-based), shape (C, h, w)."""

    def read_masks(
        self, indexes: Any, *, window: Slices | None = None, out_shape: tuple[int, ...] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Read mask bands, shape (C, h, w), 0 where invalid."""

    def close(self) -> None:
        """Release the file."""


def has_mask_band(dataset: Dataset, indexes: Sequence[int]) -> bool:
    """True where one of the bands (1-based) has a mask that is not its nodata value."""
    return unused_alpha(dataset, indexes) is not None or _have_masks(dataset, indexes)


def _have_masks(dataset: Dataset, indexes: Sequence[int]) -> bool:
    return any(_has_mask(dataset.mask_flag_enums[i - 1], dataset.nodatavals[i - 1]) for i in indexes)


def _has_mask(flags: Sequence[Any], nodata: float | None) -> bool:
    """Tell whether a band has a mask band, an alpha band, or a mask of its own, which has no flags."""
    if MaskFlags.nodata in flags:
        # GDAL derives a mask from nodata too; that one is computed by `valid_pixels`, exactly and per band.
        # Without a nodata value the tag NODATA_VALUES says which colour is none, in all bands at once.
        return nodata is None
    return MaskFlags.all_valid not in flags


def unused_alpha(dataset: Dataset, indexes: Sequence[int]) -> int | None:
    """Return the alpha band (1-based) where GDAL takes the bands' masks from elsewhere, as a nodata value."""
    alphas = [i for i, interp in enumerate(dataset.colorinterp, 1) if interp == ColorInterp.alpha]
    used = all(MaskFlags.alpha in dataset.mask_flag_enums[i - 1] for i in indexes)
    return alphas[0] if alphas and not used else None


def read_masks(
    dataset: Dataset,
    indexes: Sequence[int],
    window: Slices | None = None,
    out_shape: tuple[int, ...] | None = None,
) -> npt.NDArray[np.bool_]:
    """Read the masks of bands (1-based), shape (C, h, w), true where both mask and alpha band say valid.

    Without the masks that GDAL derives from nodata values where an alpha band is all that is left.
    """
    alpha = unused_alpha(dataset, indexes)
    if alpha is None:
        return dataset.read_masks(list(indexes), window=window, out_shape=out_shape) > 0
    shape = out_shape and (1, *out_shape[1:])
    seen = dataset.read([alpha], window=window, out_shape=shape) > 0
    if _have_masks(dataset, indexes):
        return seen & (dataset.read_masks(list(indexes), window=window, out_shape=out_shape) > 0)
    return np.repeat(seen, len(indexes), axis=0)


def masks_differ(dataset: Dataset, indexes: Sequence[int]) -> bool:
    """True where the bands (1-based) have masks of their own, not one for all."""
    return len(indexes) > 1 and any(not dataset.mask_flag_enums[i - 1] for i in indexes)


class ArrayDataset:
    """A numpy array with a profile, dressed as a dataset. Nothing is copied.

    Parameters
    ----------
    array
        Shape (C, H, W) or (H, W), real numbers; bool is taken as uint8, float16 as float32.
    profile
        Optional keys, most as in rasterio: ``crs`` (anything that rasterio's CRS takes),
        ``transform`` (Affine or 6-tuple in its order, not GDAL's), ``nodata``, ``descriptions`` (one string a
        band), ``scale`` and ``offset`` (one number or one a band; physical = stored *
        scale + offset as in GDAL), ``units`` (as `descriptions`), ``tags``, ``name``, ``mask``
        ((H, W) or (C, H, W), true where valid; true everywhere is none). Other keys are ignored,
        so that ``dataset.profile`` will do.

    Attributes
    ----------
    all_valid : bool
        Whether a mask said that every pixel is valid, so that no value marks others undeclared.

    Raises
    ------
    RasterOpenError
        If the array or the profile is malformed.
    """

    def __init__(self, array: npt.ArrayLike, profile: Mapping[str, Any] | None = None) -> None:
        given = dict(profile or {})
        own = ~np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
        self._array = _three_dimensional(np.asarray(array))
        self.count, self.height, self.width = map(int, self._array.shape)
        self.name = str(given.get("name", "array"))
        self.dtypes: Sequence[str] = (self._array.dtype.name,) * self.count
        self.crs: Any = _parse_crs(given.get("crs"))
        self.transform: Any = _parse_transform(given.get("transform"))
        nodata = _number("nodata", given.get("nodata"))
        if np.asarray(array).dtype == np.float16:
            nodata = _as_float16(nodata)
        self.nodatavals: Sequence[float | None] = (nodata,) * self.count
        self.descriptions: Sequence[str | None] = self._texts("descriptions", given.get("descriptions"))
        self.scales: Sequence[float] = self._numbers("scale", given.get("scale"), 1.0)
        self.offsets: Sequence[float] = self._numbers("offset", given.get("offset"), 0.0)
        self.units: Sequence[str | None] = self._texts("units", given.get("units"))
        self.block_shapes: Sequence[tuple[int, int]] = ((min(256, self.height), self.width),) * self.count
        self.colorinterp: Sequence[Any] = (ColorInterp.undefined,) * self.count
        self._tags = _parse_tags(given.get("tags"))
        self._mask = self._parse_mask(given.get("mask"))
        if own is not None:
            self._mask = own.reshape(self._array.shape) if self._mask is None else self._mask & own
        self.all_valid = self._mask is not None and bool(self._mask.all())
        if self.all_valid:  # the raster that is decoded from it needs no mask band to say so
            self._mask = None
        self.mask_flag_enums: Sequence[Sequence[Any]] = (self._mask_flags(),) * self.count

    def _numbers(self, key: str, value: Any, usual: float) -> tuple[float, ...]:
        values = (value,) * self.count if np.ndim(value) == 0 else self._per_band(key, value)
        numbers = (_number(key, v) for v in values)
        return tuple(usual if number is None else float(number) for number in numbers)

    def _texts(self, key: str, value: Any) -> tuple[str | None, ...]:
        one_for_all = value is None or isinstance(value, str)
        texts = (value,) * self.count if one_for_all else self._per_band(key, value)
        if not all(text is None or isinstance(text, str) for text in texts):
            raise RasterOpenError(f"profile[{key!r}] is {shown(value)}; give texts, one a band")
        return texts

    def _per_band(self, key: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, Sequence | np.ndarray):
            raise RasterOpenError(f"profile[{key!r}] is {shown(value)}; give a list, one a band")
        if len(value) != self.count:
            raise RasterOpenError(f"profile[{key!r}] has {len(value)} entries for {self.count} bands; "
                                  "give one a band")
        return tuple(value)

    def _mask_flags(self) -> list[MaskFlags]:
        if self._mask is None:
            return [MaskFlags.all_valid]
        # Band by band: comparing all at once would make another array of their size.
        same = self._mask.strides[0] == 0 or all(np.array_equal(self._mask[0], band) for band in self._mask)
        return [MaskFlags.per_dataset] if same else []

    def _parse_mask(self, mask: npt.ArrayLike | None) -> npt.NDArray[np.bool_] | None:
        if mask is None:
            return None
        try:
            numbers = np.asarray(mask)
        except ValueError:  # a ragged list
            numbers = np.empty(0, np.object_)
        if numbers.dtype.kind not in "biuf" or (numbers.dtype.kind == "f" and np.isnan(numbers).any()):
            raise RasterOpenError("profile['mask'] is not true or false everywhere; give booleans")
        flags = numbers.astype(np.bool_, copy=False)
        if flags.shape not in ((self.height, self.width), self._array.shape):
            raise RasterOpenError(f"profile['mask'] has shape {flags.shape}; give that of the array")
        return np.broadcast_to(flags, self._array.shape)

    def tags(self, bidx: int = 0, ns: str | None = None) -> dict[str, str]:
        """Return the profile's tags; bands and other domains have none."""
        return {} if bidx or ns else dict(self._tags)

    def tag_namespaces(self, bidx: int = 0) -> list[str]:
        """Return no names: arrays have one domain."""
        return []

    def overviews(self, bidx: int) -> list[int]:
        """Return no factors: arrays have no overviews."""
        return []

    def read(
        self, indexes: Any, *, window: Slices | None = None, out_shape: tuple[int, ...] | None = None
    ) -> npt.NDArray[Any]:
        """Return bands (1-based), shape (C, h, w); `out_shape` is not needed without overviews."""
        return _cut(self._array, indexes, window)

    def read_masks(
        self, indexes: Any, *, window: Slices | None = None, out_shape: tuple[int, ...] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Return 255 where valid and 0 elsewhere, shape (C, h, w)."""
        mask = np.ones(self._array.shape, np.bool_) if self._mask is None else self._mask
        return _cut(mask, indexes, window).astype(np.uint8) * np.uint8(255)

    def close(self) -> None:
        """Do nothing; the array belongs to the caller."""


def _three_dimensional(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape:
        raise RasterOpenError(f"array has shape {array.shape}; give (bands, rows, cols) or (rows, cols)")
    if array.dtype.kind not in "biuf":
        raise RasterOpenError(f"array has dtype {array.dtype}; give integers or floats")
    # GDAL 3.10 knows neither bool nor float16, and the file written later is GDAL's.
    as_stored = {"bool": "uint8", "float16": "float32"}.get(array.dtype.name)
    if array.dtype.name in ("int64", "uint64"):  # NumPy's own choice for class maps and sums
        limits = np.iinfo(np.int32)
        if array.min() < limits.min or array.max() > limits.max:
            raise RasterOpenError(f"array has {array.dtype} values beyond 32 bits; give int32 or floats")
        as_stored = "int32"
    return array.astype(as_stored) if as_stored else array


def _number(key: str, value: Any) -> float | None:
    """Return a number of a profile as it is; raise where it is none."""
    if value is None or isinstance(value, int | float):
        return value
    if not isinstance(value, np.integer | np.floating):
        raise RasterOpenError(f"profile[{key!r}] is {shown(value)}; give a number")
    number: float = value.item()
    return number


def _as_float16(nodata: float | None) -> float | None:
    """Return `nodata` rounded as float16 stores it (-9999 is -10000), unless that is infinite."""
    if nodata is None:
        return None
    with np.errstate(over="ignore"):
        rounded = float(np.float16(nodata))
    return nodata if math.isinf(rounded) else rounded


def _parse_tags(tags: Any) -> dict[str, str]:
    if tags is not None and not isinstance(tags, Mapping):
        raise RasterOpenError(f"profile['tags'] is {shown(tags)}; give a mapping of names to texts")
    return {str(name): str(text) for name, text in (tags or {}).items()}


def _parse_transform(transform: Any) -> tuple[float, ...]:
    if transform is None:
        return (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    try:
        six = tuple(float(v) for v in tuple(transform)[:6])
    except (TypeError, ValueError):
        six = ()
    if len(six) < 6:
        raise RasterOpenError(f"profile['transform'] is {shown(transform)}; give an Affine or six numbers")
    a, b, c, _, e, _ = six
    if c == e == 0 and a and b and not isinstance(transform, Affine):  # in this order no map has such a grid
        raise RasterOpenError(f"profile['transform'] is {shown(transform)}, in GDAL's order; "
                              "give Affine.from_gdal of it")
    return six


def _parse_crs(crs: Any) -> Any:
    try:
        return CRS.from_user_input(crs) if crs else None
    except Exception as error:  # rasterio raises CRSError, PROJ and type errors here
        raise RasterOpenError(f"profile['crs'] is no CRS ({error}); give 'EPSG:n' or WKT") from error


def _cut(array: npt.NDArray[Any], indexes: Any, window: Slices | None) -> npt.NDArray[Any]:
    (row, row_end), (col, col_end) = window or ((0, array.shape[1]), (0, array.shape[2]))
    return array[np.asarray(indexes) - 1, row:row_end, col:col_end]
