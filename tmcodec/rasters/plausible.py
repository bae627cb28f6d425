"""Whether a raster's values can be what the modality says: their units, and fill values nobody declared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tmcodec.errors import BandError, UnitsError
from tmcodec.modalities import Modality

Values = npt.NDArray[np.float64]

FILLS = (-999.0, -9999.0, -32767.0, -32768.0, float(np.finfo(np.float32).min))
"""What programs put where nothing was measured."""
HIGH_FILLS = (9999.0, 32767.0, 65535.0)
"""The same above all elevations; in other modalities these are far outside the range, or saturated pixels."""
APART = 400.0
"""How far from all other stored values such a value stands."""
NEGATIVE = 0.2
"""Least share of negative values in a picture in dB: water, fields and forests are, a city's VH is."""

BRIGHTER = 3.0
"""Decibels by which VH does not exceed VV; medians of scenes lie 4 to 15 the other way."""


@np.errstate(over="ignore", invalid="ignore")  # values may be anything
def check_values(
    label: str, modality: Modality, stored: Values, scale: float, offset: float, floats: bool = False,
    array: bool = False,
) -> None:
    """Refuse values that are in another unit, or hold undeclared nodata.

    Parameters
    ----------
    label
        The raster, for messages.
    modality
        Its row of the table.
    stored
        Sampled values, 1-D, as stored.
    scale, offset
        physical = stored * scale + offset.
    floats
        Whether the raster is one of floats: a picture's may go from 0 to 1.
    array
        Whether it is an array in memory, whose nodata value stands in its profile.

    Raises
    ------
    UnitsError
    """
    if not stored.size or modality.categorical:
        return
    declared = "(profile['nodata'] = {})" if array else "(rio edit-info --nodata {} FILE)"
    _check_fill(label, modality, stored, scale, offset, declared)
    values = stored * scale + offset
    low, high = float(values.min()), float(values.max())
    if modality.units == "dB" and high > 0 and float(np.mean(values < 0)) < NEGATIVE:
        raise UnitsError(f"{label}: hardly a value is negative, which looks like linear power; convert with "
                         "10*log10 to dB first")
    if modality.name == "NDVI" and (low < -1.5 or high > 1.5):
        raise UnitsError(f"{label}: values from {low:g} to {high:g} are no NDVI; for scaled integers "
                         "pass --scale 0.0001 (or what fits)")
    if modality.name == "S2RGB" and (low < 0 or high > 255):
        raise UnitsError(f"{label}: values from {low:g} to {high:g} are no 8-bit picture; pass --scale, "
                         "or encode all bands as S2L2A")
    if modality.name == "S2RGB" and floats and 0 < high <= 1.5:
        raise UnitsError(f"{label}: floats up to {high:g} look like a picture from 0 to 1, not to 255; pass "
                         f"--scale {255 * scale:g}")
    middle, (least, most) = float(np.median(values)), modality.valid_range
    if not least <= middle <= most:
        raise UnitsError(f"{label}: values around {middle:g} are no {modality.name} in {modality.units}; "
                         f"that lies between {least:g} and {most:g}; pass --scale 0.01 (or what fits)")


def check_reflectance_scale(label: str, stored: Values, scale: float) -> None:
    """Refuse a caller's scale that leads to reflectance, as the product's own factor does, not x 10000.

    Rasters may be dark: digital numbers that are taken as they are, and reflectance times 10000, may be
    anything.

    Parameters
    ----------
    label
        The raster, for messages.
    stored
        Sampled values, 1-D, as stored.
    scale
        What the caller says that they are to be multiplied by.

    Raises
    ------
    UnitsError
    """
    whole = scale == 1 and not bool(np.any(stored % 1))
    if not stored.size or whole or abs(scale) >= 1e4:
        return
    bright = float(np.percentile(stored * scale, 99.9))
    if bright < 20:
        raise UnitsError(f"{label}: --scale {scale:g} leads to values up to {bright:.3g}, which look like "
                         f"reflectance; they must be reflectance x 10000: pass --scale {scale * 1e4:g}")


def check_polarisations(label: str, first: Values, second: Values) -> None:
    """Refuse bands without names whose second one is brighter than the first, which VH never is.

    Parameters
    ----------
    label
        The raster, for messages.
    first, second
        Sampled values in dB, 1-D.

    Raises
    ------
    BandError
    """
    if first.size and second.size and float(np.median(second) - np.median(first)) > BRIGHTER:
        raise BandError(f"{label}: the second band is brighter than the first: these look like VH, VV; "
                        "describe the bands, or put VV first")


def _check_fill(
    label: str, modality: Modality, stored: Values, scale: float, offset: float, declared: str
) -> None:
    """Refuse a lowest or highest value that looks like nodata.

    Elevation reaches as deep as some of these, but not without slopes. `declared` says how to declare the
    value, with a place for it.
    """
    least, most = modality.valid_range
    for fill, side in ((float(stored.min()), "below"), (float(stored.max()), "above")):
        others = stored[stored != fill]
        if others.size and float(np.abs(others - fill).min()) <= APART:
            continue
        outside = max(least - (fill * scale + offset), fill * scale + offset - most)
        if not (fill in FILLS and (modality.name == "DEM" or outside > 0)):
            far = outside > most - least or (modality.name == "DEM" and fill in HIGH_FILLS)
            if not (far and others.size and least <= float(np.median(others)) * scale + offset <= most):
                continue  # else all of it is in another unit
        exact = f"{fill:g}" if float(f"{fill:g}") == fill else f"{fill:.17g}"
        raise UnitsError(f"{label}: {exact} stands far {side} all other values and looks like nodata that is "
                         f"not declared; declare it {declared.format(exact)}")
