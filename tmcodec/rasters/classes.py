"""Class ids of a raster in the table's legend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tmcodec.errors import UnitsError
from tmcodec.modalities import MODALITIES, Modality
from tmcodec.rasters.arrays import Dataset
from tmcodec.rasters.product import label_of, sample_values, select_bands
from tmcodec.texts import shown

WORLDCOVER_TO_TERRAMIND: dict[int, int] = {
    0: 0,  # no data
    10: 2,  # tree cover -> trees
    20: 9,  # shrubland -> rangeland
    30: 9,  # grassland -> rangeland
    40: 4,  # cropland -> crops
    50: 5,  # built-up -> built area
    60: 6,  # bare or sparse vegetation -> bare ground
    70: 7,  # snow and ice
    80: 1,  # permanent water
    90: 3,  # herbaceous wetland -> flooded vegetation
    95: 3,  # mangroves -> flooded vegetation
    100: 9,  # moss and lichen -> rangeland
}
"""ESA WorldCover's class ids to TerraMind's."""


def parse_class_map(text: str) -> dict[int, int]:
    """Read ``"10:2,20:9"`` (theirs to ours) or the name ``"worldcover"``.

    Raises
    ------
    UnitsError
        If the text is malformed, an id is repeated, or a target is no class.
    """
    if names_worldcover(text):
        return dict(WORLDCOVER_TO_TERRAMIND)
    mapping: dict[int, int] = {}
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", item)
        if match is None:
            raise UnitsError(f"--class-map has the item {item.strip()!r}; write OLD:NEW,... or worldcover")
        if int(match[1]) in mapping:
            raise UnitsError(f"--class-map maps class {int(match[1])} twice; name each class once")
        mapping[int(match[1])] = int(match[2])
    check_class_map(mapping)
    return mapping


def names_worldcover(text: str) -> bool:
    """Tell whether a class map is the ready-made one, by its name in any spelling."""
    return text.strip().lower() == "worldcover"


def check_class_map(class_map: Mapping[int, int]) -> None:
    """Raise `UnitsError` where an id is no whole number, as 3.0 is, or a target no class of the table."""
    if not isinstance(class_map, Mapping):
        raise UnitsError(f"class_map is {shown(class_map)}; give a mapping, theirs to ours, or '10:2,20:9'")
    classes = MODALITIES["LULC"].classes
    for source, target in class_map.items():
        if not (_whole(source) and _whole(target)):
            raise UnitsError(f"class_map has {source!r}: {target!r}; give whole numbers, theirs to ours")
        if not 0 <= target < len(classes):
            raise UnitsError(f"--class-map maps to class {target}; choose one of 0..{len(classes) - 1}")


def _whole(number: Any) -> bool:
    try:
        return bool(int(number) == number)
    except (TypeError, ValueError, OverflowError):
        return False


def map_classes(ids: npt.NDArray[Any], class_map: Mapping[int, int] | None) -> npt.NDArray[np.float32]:
    """Return class ids of the table, float32, same shape.

    Parameters
    ----------
    ids
        Valid stored ids, any real dtype.
    class_map
        Theirs to ours. Every id must be in it: passing unknown ids through would mix two
        legends. None means that the ids are the table's.

    Raises
    ------
    UnitsError
        If an id is unknown or out of range.
    """
    table = class_map if class_map is not None else {i: i for i in range(len(MODALITIES["LULC"].classes))}
    present = np.unique(ids)
    unknown = [float(v) for v in present if float(v) not in table]
    if unknown:
        known = f"0..{len(table) - 1}" if class_map is None else "the given map"
        raise UnitsError(f"class ids {', '.join(f'{v:g}' for v in unknown[:8])} are not in {known}; "
                         "pass --class-map OLD:NEW,... (or --class-map worldcover) with all ids")
    mapped = np.array([table[int(v)] for v in present], np.float32)
    return mapped[np.searchsorted(present, ids)]


def check_classes(dataset: Dataset, modality: Modality, class_map: Mapping[int, int] | None) -> None:
    """Raise `UnitsError` where sampled class ids are unknown, before any network runs."""
    values = sample_values(dataset, select_bands(dataset, modality))
    if values.size:
        try:
            map_classes(values, class_map)
        except UnitsError as error:
            raise UnitsError(f"{label_of(dataset)}: {error}") from None
