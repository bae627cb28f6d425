"""Read from a raster's metadata what its numbers mean.

Tags, band descriptions, scales, offsets and product names tell the modality, the bands,
Sentinel-2's radiometric offset, the scaling and the time. Nothing is guessed: where the
metadata says nothing, the error names the option that does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from numbers import Real
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from tmcodec.errors import BandError, ModalityError, OffsetUnknownError, UnitsError
from tmcodec.modalities import MODALITIES, S2_OFFSET, Modality, canonical_band, get_modality
from tmcodec.rasters.arrays import ArrayDataset, Dataset, Slices, has_mask_band, read_masks
from tmcodec.rasters.nodata import usable_nodata, valid_pixels
from tmcodec.rasters.plausible import check_polarisations, check_reflectance_scale, check_values
from tmcodec.rasters.units import height_unit
from tmcodec.texts import shown

# --------------------------------------------------------------------------- texts

_PRODUCT_TIME = re.compile(
    r"S[12][A-D]_(?:MSIL(?:1C|2A)|(?:IW|EW|SM|S\d|WV)_[A-Z]{3}[A-Z_])\w*?_?(\d{8}T\d{5,6})(?!\d)"
)
_PRODUCT_BASELINE = re.compile(r"S2[A-D]_MSIL(?:1C|2A)_\d{8}T\d{6}_N(\d{2})(\d{2})_")
_ADD_OFFSET = re.compile(r"(RADIO|BOA)_ADD_OFFSET")
_LEVEL_1C = re.compile(r"MSIL1C|S2MSI1C|LEVEL-1C", re.IGNORECASE)
_LEVEL_2A = re.compile(r"MSIL2A|S2MSI2A|LEVEL-2A", re.IGNORECASE)
_GRD = re.compile(r"(?<![A-Z])GRD[FHM]?(?![A-Z])", re.IGNORECASE)
_RTC = re.compile(r"(?<![A-Z])RTC\d{0,2}(?![A-Z])", re.IGNORECASE)


def all_tags(dataset: Dataset) -> dict[str, str]:
    """Return the tags of all domains and bands, keys in capitals; the dataset's own come first."""
    merged: dict[str, str] = {}
    # XML domains hold a document, not items; the two others describe storage, not the product.
    namespaces = [n for n in dataset.tag_namespaces()
                  if not n.startswith("xml:") and n not in ("IMAGE_STRUCTURE", "DERIVED_SUBDATASETS")]
    sources = [dataset.tags(), *(dataset.tags(ns=n) for n in namespaces)]
    sources += [dataset.tags(index) for index in range(1, dataset.count + 1)]
    for source in sources:
        for key, value in source.items():
            merged.setdefault(key.upper(), str(value))
    return merged


def _texts(dataset: Dataset) -> str:
    """Return all that may hold a product name, one text a line."""
    return "\n".join([dataset.name, *all_tags(dataset).values(), *filter(None, dataset.descriptions)])


def label_of(dataset: Dataset) -> str:
    """Return what messages call a raster: its file's name."""
    return PurePath(dataset.name).name or "raster"


# --------------------------------------------------------------------------- modality and bands


def _data_indexes(dataset: Dataset) -> list[int]:
    """Return the 1-based bands that are not alpha."""
    return [i for i, interp in enumerate(dataset.colorinterp, 1) if getattr(interp, "name", "") != "alpha"]


def _band_name(modality: Modality, description: str) -> str | None:
    # GDAL's Sentinel-2 driver writes "B4, central wavelength 665 nm".
    return canonical_band(modality, description) or canonical_band(modality, description.split(",")[0])


def infer_modality(dataset: Dataset) -> Modality:
    """Return the modality where the metadata makes it certain.

    Certain is our own ``TMCODEC_MODALITY`` tag, or band descriptions that are exactly one
    modality's set of names, together with the dtype (S2RGB), the absence of a Level-1C
    product name (S2L2A), and GRD or RTC in a name or tag (Sentinel-1).

    Raises
    ------
    ModalityError
        Otherwise; the message lists the candidates by band count and dtype.
    """
    indexes = _data_indexes(dataset)
    own = MODALITIES.get(all_tags(dataset).get("TMCODEC_MODALITY", ""))
    if own is not None and len(own.bands) == len(indexes):
        return own
    descriptions = [dataset.descriptions[i - 1] or "" for i in indexes]
    matches = [m for m in MODALITIES.values() if _names_match(m, descriptions)]
    matches = [_of_level(m, dataset) for m in matches if not _contradicted(m, dataset)]
    if len(matches) == 1:
        return matches[0]
    raise ModalityError(_ask_for_modality(dataset, matches or _candidates(dataset)))


def _names_match(modality: Modality, descriptions: Sequence[str]) -> bool:
    if len(modality.bands) == 1:  # "height" or "classes" may be anything: no aliases here
        return tuple(descriptions) == modality.bands
    names = [_band_name(modality, d) for d in descriptions]
    return len(names) == len(modality.bands) and set(names) == set(modality.bands)


def _of_level(modality: Modality, dataset: Dataset) -> Modality:
    """Return Level 2A for thirteen bands of a product of that level: some converters keep an empty B10."""
    texts = _texts(dataset) if modality.name == "S2L1C" else ""
    return MODALITIES["S2L2A"] if _LEVEL_2A.search(texts) and not _LEVEL_1C.search(texts) else modality


def _contradicted(modality: Modality, dataset: Dataset) -> bool:
    if modality.name == "S2L2A":
        return _LEVEL_1C.search(_texts(dataset)) is not None
    if modality.name == "S2RGB":
        return dataset.dtypes[0] != "uint8"
    if modality.units == "dB":
        # The folder may be called anything; the file's name and tags speak of the product.
        text = _texts(dataset).replace(dataset.name, label_of(dataset), 1)
        grd, rtc = _GRD.search(text) is not None, _RTC.search(text) is not None
        return grd == rtc or grd != (modality.name == "S1GRD")
    return False


def _candidates(dataset: Dataset) -> list[Modality]:
    """Return the modalities of that band count whose values the dtype can hold."""
    count, dtype = len(_data_indexes(dataset)), np.dtype(dataset.dtypes[0])
    fits = [m for m in MODALITIES.values() if len(m.bands) == count]
    if dtype.kind == "f":
        fits = [m for m in fits if not m.categorical and m.dtype != "uint8"]
    if dtype == np.uint8:
        fits = [m for m in fits if m.dtype == "uint8" or count == 1]
    return fits


def _ask_for_modality(dataset: Dataset, candidates: Sequence[Modality]) -> str:
    what = f"{label_of(dataset)}: {len(_data_indexes(dataset))} band(s) of {dataset.dtypes[0]}"
    names = " or ".join(m.name for m in candidates)
    if names:
        return f"{what} and the metadata leave the modality open; pass --modality {names}"
    known = ", ".join(f"{m.name} ({len(m.bands)} bands)" for m in MODALITIES.values())
    return f"{what} fit no modality as they are; pass --modality with one of {known}"


def select_bands(dataset: Dataset, modality: Modality) -> list[int]:
    """Return the 1-based band of each of the modality's bands, in the modality's order.

    By description where descriptions are there; other bands and any order are allowed.
    Without any description, S2RGB by colour interpretation where red, green and blue are there
    once each, else by position where the count matches. Alpha bands do not count.

    Raises
    ------
    BandError
        If a band is missing or two bands claim the same name.
    """
    indexes, wanted = _data_indexes(dataset), len(modality.bands)
    if not any(dataset.descriptions[i - 1] for i in indexes):
        colored = _colored_bands(dataset) if modality.name == "S2RGB" else None
        if colored is not None:
            return colored
        if len(indexes) == wanted:
            return indexes
        raise BandError(f"{label_of(dataset)}: {modality.name} needs {wanted} bands, the file has "
                        f"{len(indexes)} without descriptions; describe them as {' '.join(modality.bands)}")
    found: dict[str, int] = {}
    for index in indexes:
        name = _band_name(modality, dataset.descriptions[index - 1] or "")
        if name in found:
            raise BandError(f"{label_of(dataset)}: bands {found[name]} and {index} are both called {name}; "
                            "rename one")
        if name is not None:
            found[name] = index
    missing = [b for b in modality.bands if b not in found]
    if missing and wanted == len(indexes) == 1 and not _names_a_band(dataset.descriptions[indexes[0] - 1]):
        return indexes  # the only band of the file, under a free text such as "SRTM 30 m"
    if missing:
        raise BandError(f"{label_of(dataset)}: {modality.name} misses the bands {' '.join(missing)}; "
                        "add them or set the band descriptions")
    return [found[b] for b in modality.bands]


def _colored_bands(dataset: Dataset) -> list[int] | None:
    """Return the 1-based red, green and blue band, None where these are not there once each."""
    names = [getattr(interp, "name", "") for interp in dataset.colorinterp]
    colors = ("red", "green", "blue")
    return [names.index(c) + 1 for c in colors] if all(names.count(c) == 1 for c in colors) else None


def _names_a_band(description: str | None) -> bool:
    return any(_band_name(m, description or "") for m in MODALITIES.values())


# --------------------------------------------------------------------------- Sentinel-2 offset


def decide_s2_offset(dataset: Dataset, choice: str, modality: Modality) -> str:
    """Return ``"present"`` where 1000 was added to the digital numbers, ``"absent"`` where not.

    Parameters
    ----------
    dataset
        Open raster.
    choice
        ``"present"``, ``"absent"``, or ``"auto"``: ask the metadata.
    modality
        Modalities without the offset give ``""``.

    Raises
    ------
    OffsetUnknownError
        If the metadata says nothing, or contradicts itself.
    BandError
        As `select_bands`, where the metadata is asked.
    """
    if not modality.optical:
        return ""
    if choice != "auto":
        return _checked_choice(choice)
    verdicts = _offset_evidence(dataset, select_bands(dataset, modality)[0])
    if len(verdicts) == 1:
        return verdicts.pop()
    why = "contradicts itself about" if verdicts else "does not say anything about"
    raise OffsetUnknownError(f"{label_of(dataset)}: the metadata {why} Sentinel-2's radiometric offset; "
                             "pass --s2-offset present (baseline 04.00 or later, not harmonised) or absent")


def _checked_choice(choice: str) -> str:
    if choice not in ("present", "absent"):
        raise OffsetUnknownError(f"s2_offset {choice!r} is unknown; choose auto, present or absent")
    return choice


def _offset_evidence(dataset: Dataset, index: int) -> set[str]:
    """Return what the metadata says, scale and offset of that band (1-based); values outrank the baseline."""
    tags = all_tags(dataset)
    if tags.get("TMCODEC_S2_OFFSET") in ("present", "absent"):
        return {tags["TMCODEC_S2_OFFSET"]}
    added = {_verdict(n != 0) for k, v in tags.items() if _ADD_OFFSET.search(k) for n in _numbers(v)}
    if added:
        return added
    verdicts = _baseline_evidence(dataset, tags)
    scale, offset = dataset.scales[index - 1], dataset.offsets[index - 1]
    if _near(scale, 1e-4) and _near(offset, -0.1):
        verdicts.add("present")
    elif _near(scale, 1e-4) and verdicts == {"present"}:
        verdicts.add("absent")  # "reflectance is 0.0001 * stored": the offset was taken off, or forgotten
    return verdicts


def _baseline_evidence(dataset: Dataset, tags: Mapping[str, str]) -> set[str]:
    baselines = [_number(v) for k, v in tags.items() if re.fullmatch(r"(S2:)?PROCESSING_BASELINE", k)]
    if not baselines:
        baselines = [float(f"{a}.{b}") for a, b in _PRODUCT_BASELINE.findall(_texts(dataset))]
    return {_verdict(b >= 4.0) for b in baselines if b is not None}


def _verdict(present: bool) -> str:
    return "present" if present else "absent"


def _number(text: str) -> float | None:
    """Return a finite number, None where the text is none: ``nan`` says nothing."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _numbers(text: str) -> list[float]:
    """Return the numbers of texts such as ``-1000``, ``[0, 0]``, ``0,0``; none where there is more."""
    found = [_number(part) for part in re.split(r"[\s,;]+", text.strip(" \t[](){}")) if part]
    return [] if None in found else [n for n in found if n is not None]


def _near(value: float, target: float) -> bool:
    return abs(value - target) <= 1e-8  # tags written from float32 are off in the ninth digit


# --------------------------------------------------------------------------- nodata


def nodata_values(
    dataset: Dataset, indexes: Sequence[int], modality: Modality | None = None
) -> list[int | float | None]:
    """Return the nodata value of each band (1-based), in the dtype, None where a band has none.

    Where a Sentinel-2 raster declares none, the tag ``SPECIAL_VALUE_NODATA`` counts: GDAL writes it,
    and sets no nodata value. Other modalities may have been computed from such a product, and
    their 0 is a value.
    """
    declared = [usable_nodata(dataset.nodatavals[i - 1], dataset.dtypes[i - 1]) for i in indexes]
    if modality is None or not modality.optical or any(n is not None for n in declared):
        return declared
    special = _number(all_tags(dataset).get("SPECIAL_VALUE_NODATA", ""))
    return [usable_nodata(special, dataset.dtypes[i - 1]) for i in indexes]


def all_bands(dataset: Dataset, indexes: Sequence[int], modality: Modality) -> list[int]:
    """Return bands (1-based) and, after them, the modality's others that the file describes.

    The modality may name only the bands that are read; others of the table tell dark water from NO_DATA.
    """
    whole = get_modality(modality.name)
    described = [i for i in _data_indexes(dataset) if _band_name(whole, dataset.descriptions[i - 1] or "")]
    return [*indexes, *(i for i in described if i not in indexes)]


# --------------------------------------------------------------------------- scaling

_FULL_READ = 1 << 20  # pixels; smaller rasters are sampled whole
_SPOTS, SPOT = 4, 96  # otherwise a grid of 4 x 4 spots of 96 x 96 pixels
_SAMPLED_BANDS = 3
_MOST_ROWS = 1024  # of a block that strips are as high as


def sample_values(
    dataset: Dataset, indexes: Sequence[int], nodatas: Sequence[int | float | None] | None = None
) -> npt.NDArray[np.float64]:
    """Return valid stored values from all over the raster, 1-D, float64.

    Small rasters give all values, large ones those of an overview or of a grid of small
    windows; where these hold nodata only, strips are read until one holds data. At most
    three bands. Empty where the raster has no valid pixel. Nodata values are those given, else
    those declared.
    """
    bands = list(indexes)[:_SAMPLED_BANDS]
    nodatas = nodata_values(dataset, bands) if nodatas is None else nodatas[: len(bands)]
    for window, out_shape in sample_plan(dataset, bands):
        values = _valid_values(dataset, bands, nodatas, window, out_shape)
        if values.size:
            return values
    return np.empty(0)


def sample_plan(
    dataset: Dataset, bands: Sequence[int]
) -> Iterator[tuple[list[Slices], tuple[int, ...] | None]]:
    """Yield windows to sample and the shape to read them in: the next ones for where these hold nothing."""
    h, w = dataset.height, dataset.width
    if w * h > _FULL_READ:
        factors = [f for f in dataset.overviews(bands[0]) if w * h / f**2 <= _FULL_READ]
        if factors:
            yield [((0, h), (0, w))], (len(bands), max(h // factors[0], 1), max(w // factors[0], 1))
        yield [((y, min(y + SPOT, h)), (x, min(x + SPOT, w))) for y in _spots(h) for x in _spots(w)], None
    rows, block = max(_FULL_READ // w, 1), int(dataset.block_shapes[bands[0] - 1][0])
    if block <= _MOST_ROWS:
        rows = -(-rows // block) * block  # else each block is decoded again for every strip that touches it
    for row in range(0, h, rows):
        yield [((row, min(row + rows, h)), (0, w))], None


def _spots(size: int) -> list[int]:
    return sorted({max(size * (2 * i + 1) // (2 * _SPOTS) - SPOT // 2, 0) for i in range(_SPOTS)})


def _valid_values(
    dataset: Dataset,
    bands: Sequence[int],
    nodatas: Sequence[int | float | None],
    windows: Iterable[Slices],
    out_shape: tuple[int, ...] | None,
) -> npt.NDArray[np.float64]:
    parts = []
    for window in windows:
        stored = dataset.read(list(bands), window=window, out_shape=out_shape)
        masked = has_mask_band(dataset, bands)
        masks = read_masks(dataset, bands, window, out_shape) if masked else None
        for i, (nodata, band) in enumerate(zip(nodatas, stored, strict=True)):
            valid = valid_pixels(band, nodata)
            parts.append(band[valid if masks is None else valid & masks[i]].astype(np.float64))
    return np.concatenate(parts) if parts else np.empty(0)


def decide_scaling(
    dataset: Dataset,
    modality: Modality,
    scale: float | None = None,
    s2_offset: str = "present",
    nodatas: Sequence[int | float | None] | None = None,
) -> tuple[float, float]:
    """Return ``(scale, offset)`` so that physical = stored * scale + offset.

    Parameters
    ----------
    dataset
        Open raster.
    modality
        Its row of the table; the physical units are the table's.
    scale
        The caller's word, before any tag.
    s2_offset
        As from `decide_s2_offset`; ``"absent"`` adds the 1000 that the statistics expect.
    nodatas
        Of each of the modality's bands, left out of the sample; None takes those declared.

    Raises
    ------
    UnitsError
        If the values cannot be in the modality's units.
    """
    if scale is not None and not (isinstance(scale, Real) and math.isfinite(scale) and scale != 0):
        raise UnitsError(f"--scale {shown(scale)} is not usable; give a finite number other than 0")
    if modality.categorical:
        return 1.0, 0.0
    indexes = select_bands(dataset, modality)
    values = sample_values(dataset, indexes, nodatas)
    factor, shift = (float(scale), 0.0) if scale is not None else _tagged_scaling(dataset, indexes, modality)
    if modality.optical:
        if scale is None:
            dtype = dataset.dtypes[indexes[0] - 1]
            factor, shift = _to_digital_numbers(label_of(dataset), values, dtype, factor, shift)
        else:
            check_reflectance_scale(label_of(dataset), values, factor)
        shift += S2_OFFSET if s2_offset == "absent" else 0.0
    floats = np.dtype(dataset.dtypes[indexes[0] - 1]).kind == "f"
    check_values(
        label_of(dataset), modality, values, factor, shift, floats, isinstance(dataset, ArrayDataset)
    )
    if modality.units == "dB" and not any(dataset.descriptions[i - 1] for i in indexes):
        one, two = (sample_values(dataset, [i], n) for i, n in zip(indexes, _each(nodatas), strict=True))
        check_polarisations(label_of(dataset), one * factor + shift, two * factor + shift)
    return factor, shift


def _each(nodatas: Sequence[int | float | None] | None) -> list[list[int | float | None] | None]:
    """Return the nodata values of two bands one by one."""
    return [None, None] if nodatas is None else [[n] for n in nodatas]


def _tagged_scaling(dataset: Dataset, indexes: Sequence[int], modality: Modality) -> tuple[float, float]:
    """Return the scaling that the bands' tags state, into the modality's units where they name others."""
    pairs = {(float(dataset.scales[i - 1]), float(dataset.offsets[i - 1])) for i in indexes}
    if len(pairs) > 1:
        raise UnitsError(f"{label_of(dataset)}: the bands have different scales or offsets; "
                         "pass one --scale for all of them")
    scale, offset = pairs.pop()
    if not (math.isfinite(scale) and scale != 0 and math.isfinite(offset)):
        raise UnitsError(f"{label_of(dataset)}: its tags say scale {scale:g} and offset {offset:g}, which "
                         f"leave no values; pass --scale so that stored * scale is in {modality.units}")
    if modality.units != "m":
        return scale, offset
    try:
        unit = height_unit(dataset, indexes[0])[1]
    except UnitsError as error:
        raise UnitsError(f"{label_of(dataset)}: {error}") from None
    return scale * unit, offset * unit


def _to_digital_numbers(
    label: str, values: npt.NDArray[np.float64], dtype: str, factor: float, shift: float
) -> tuple[float, float]:
    """Turn a scaling that leads to reflectance into one that leads to reflectance x 10000; refuse percent."""
    if not values.size:  # nothing is valid: reflectance as its neighbours in time have it, by the dtype
        return (1e4, 0.0) if np.dtype(dtype).kind == "f" else (1.0, 0.0)
    scaled = np.dtype(dtype).kind == "f" or factor != 1
    bright = float(np.percentile(values * factor + shift, 99.9)) if scaled else math.inf
    if bright < 20:
        # -0.1 takes off the very offset that the statistics want to stay in.
        kept = S2_OFFSET if _near(shift, -0.1) else 0.0
        # Rounded, because tags written from float32 are off in the eighth digit.
        return float(f"{factor * 1e4:.7g}"), round(shift * 1e4 + kept, 3) + 0.0
    if bright < 110 and (factor != 1 or bool(np.any(values % 1))):
        raise UnitsError(f"{label}: values up to {bright:.3g} look like reflectance in percent; pass --scale "
                         f"{factor * 100:g}, or --scale {factor:g} for very dark digital numbers")
    if dtype == "uint8":
        raise UnitsError(f"{label}: 8-bit values are no digital numbers; pass --scale so that "
                         "stored * scale is reflectance x 10000")
    return factor, shift


# --------------------------------------------------------------------------- time

_TIME_KEYS = (
    "TMCODEC_TIME",
    "DATATAKE_1_DATATAKE_SENSING_START",
    "PRODUCT_START_TIME",
    "ACQUISITION_DATE",
    "DATETIME",
)
_ISO = re.compile(
    r"(\d{4})([-:]?)(\d\d)\2(\d\d)"
    r"(?:[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?)?"
)


def acquisition_time(dataset: Dataset) -> datetime | None:
    """Return when the scene was taken, UTC, or None where nothing says so.

    Sensing times in tags come first, then a Sentinel product name in the file's name, and
    last ``TIFFTAG_DATETIME``, which often is the time of processing.
    """
    tags = all_tags(dataset)
    for key in _TIME_KEYS:
        time = parse_time(tags.get(key, ""))
        if time is not None:
            return time
    named = _PRODUCT_TIME.search(dataset.name)
    if named is not None:
        day, clock = named[1].split("T")
        try:  # BigEarthNet drops the leading zero of the hour
            return datetime.strptime(day + clock.zfill(6), "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)
        except ValueError:
            pass
    return parse_time(tags.get("TIFFTAG_DATETIME", ""))


def parse_time(text: str) -> datetime | None:
    """Read ISO 8601 or TIFF's ``YYYY:MM:DD HH:MM:SS``; no zone means UTC; None where neither fits.

    ISO's basic form, ``20201231T103000Z``, is taken, too; a year, a month or a week alone is no time.
    """
    match = _ISO.fullmatch(text.strip())
    if match is None:
        return None
    year, _, month, day, hour, minute, second, fraction, zone = match.groups()
    iso = f"{year}-{month}-{day}T{hour or '00'}:{minute or '00'}:{second or '00'}.{(fraction or '0')[:6]:0<6}"
    # Spelt out, for Python 3.10 reads no other form.
    offset = "+00:00" if zone in (None, "Z") else f"{zone[:3]}:{zone[3:].lstrip(':') or '00'}"
    try:
        return datetime.fromisoformat(iso + offset).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None
