"""Coordinate reference systems as token files hold them: a code or WKT."""

from __future__ import annotations

import re
from typing import Any

from rasterio.crs import CRS
from rasterio.errors import CRSError

from tmcodec.rasters.gdal import GDAL_ERRORS


def crs_text(crs: Any) -> str | None:
    """Return ``"EPSG:n"`` where that code means exactly this CRS, else its WKT; None for no CRS."""
    if not crs:
        return None
    code = crs.to_epsg(confidence_threshold=100)
    if code is not None and CRS.from_epsg(code) == crs:
        return f"EPSG:{code}"
    try:
        return str(crs.to_wkt())
    except GDAL_ERRORS:  # WKT 1 cannot say everything
        return str(crs.to_wkt(version="WKT2_2019"))


_CRS_CODE = re.compile(r"[A-Za-z]\w*:\w+")
_CRS_WKT = re.compile(r"\s*[A-Za-z]\w*\s*[\[(]")


def parse_crs(text: str) -> CRS:
    """Return the CRS of a token file's text: a code such as ``"EPSG:n"``, or WKT.

    GDAL takes much else, too: it fetches URLs and opens files. A token file may come from anyone.

    Raises
    ------
    CRSError
        If the text is neither, or not valid.
    """
    if _CRS_CODE.fullmatch(text):
        return CRS.from_string(text)
    if not _CRS_WKT.match(text):
        raise CRSError("its CRS is neither a code such as EPSG:32632 nor WKT")
    return CRS.from_wkt(text)
