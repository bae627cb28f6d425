"""Units of heights: as a band states them in many spellings, or as the vertical axis of its CRS has them."""

from __future__ import annotations

import re
from typing import Any

from tmcodec.errors import UnitsError
from tmcodec.rasters.arrays import Dataset

_FOOT = ("foot", "feet", "ft")
_SURVEY = ("us survey {}", "{} us survey", "survey {}", "{} survey", "us {}", "{} us", "us{}", "{}us")
_INTERNATIONAL = ("{}", "international {}", "{} international", "intl {}", "{} intl")

IN_METRES: dict[str, float] = {
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters", "mtr", "mtrs", "mètre", "mètres"), 1.0),
    **dict.fromkeys((form.format(foot) for form in _INTERNATIONAL for foot in _FOOT), 0.3048),
    **dict.fromkeys((form.format(foot) for form in _SURVEY for foot in _FOOT), 1200 / 3937),
    "sft": 1200 / 3937,
    **dict.fromkeys(("yd", "yds", "yard", "yards"), 0.9144),
    **{
        prefix + unit: factor
        for short, long, factor in (
            ("k", "kilo", 1e3), ("d", "deci", 1e-1), ("c", "centi", 1e-2), ("m", "milli", 1e-3)
        )
        for prefix, units in ((short, ("m",)), (long, ("metre", "metres", "meter", "meters")))
        for unit in units
    },
}  # fmt: skip
"""Length of units of heights, by their names as `_plain` leaves them."""

_DATUM = re.compile(
    r"\b(above|over|from|the|mean|sea|level|msl|amsl|asl|geoid|ellipsoid|ellipsoidal|orthometric|height|heights"
    r"|elevation|vertical|datum|navd ?(19)?88|ngvd ?(19)?29|egm ?(19|20)?\d\d|wgs ?(19)?84|grs ?(19)?80"
    r"|evrf ?\d{4}|dhhn ?\d{2,4}|cgvd ?\d{2,4}|igld ?\d{2,4}|unknown|none|undefined|unspecified)\b"
)
"""What a height is measured from, and words for no unit: they do not change how long one is."""


def height_unit(dataset: Dataset, index: int) -> tuple[str, float]:
    """Return the unit of a band's heights (1-based) and its length in metres.

    Where the band states none, the vertical axis of its CRS does; where that says nothing, it is metres.

    Raises
    ------
    UnitsError
        If the band states a unit that is not known.
    """
    unit = (dataset.units[index - 1] or "").strip()
    name = _plain(unit)
    if not name:
        return _vertical_unit(dataset.crs)
    if name not in IN_METRES:
        raise UnitsError(f"its heights are in {unit[:60]!r}, an unknown unit; pass --scale so that stored * "
                         "scale is in m")
    return unit, IN_METRES[name]


def _plain(unit: str) -> str:
    """Return a unit's bare name: small letters and blanks, without brackets, dots and the datum."""
    text = re.sub(r"[_-]", " ", unit.lower().replace(".", "").replace("'", ""))
    text = _DATUM.sub(" ", re.sub(r"[][(){},;:]", " ", text))
    return " ".join(text.split())


def _vertical_unit(crs: Any) -> tuple[str, float]:
    """Return the unit of the vertical axis of a compound CRS and its length; metres where there is none."""
    wkt = str(crs.to_wkt(version="WKT2_2019")) if crs else ""
    found = re.search(r'VERTCRS\[.*?LENGTHUNIT\["([^"]+)",([-+.\deE]+)', wkt, re.DOTALL)
    if found is None:
        return "m", 1.0
    return found[1], IN_METRES.get(_plain(found[1]), float(found[2]))  # WKT rounds the length
