"""What a nodata value means in the dtype of a file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]


def usable_nodata(nodata: float | None, dtype: str) -> int | float | None:
    """Return `nodata` as the dtype stores it, or None where no pixel can have that value.

    An integer dtype cannot hold NaN, a fraction or a value out of its range; GDAL passes
    such values on all the same, and they mark nothing. A float32 file may quote its nodata
    with more digits than float32 has (-3.4028234663852886e+38): it is rounded to float32.
    """
    if nodata is None:
        return None
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        info = np.iinfo(kind)
        whole = math.isfinite(nodata) and float(nodata).is_integer() and info.min <= int(nodata) <= info.max
        return int(nodata) if whole else None
    largest = float(np.finfo(kind).max)
    if math.isfinite(nodata) and abs(nodata) > largest:
        return math.copysign(largest, nodata)  # GDAL clamps it likewise
    return float(kind.type(nodata))


def valid_pixels(stored: npt.NDArray[Any], nodata: int | float | None) -> Bool:
    """Return where `stored` holds data: not the nodata value, not NaN, not infinite.

    Parameters
    ----------
    stored
        Any shape, in the dtype of the file; the comparison is exact in that dtype.
    nodata
        As from `usable_nodata`.
    """
    valid = np.isfinite(stored) if stored.dtype.kind == "f" else np.ones(stored.shape, np.bool_)
    if nodata is not None and not math.isnan(nodata):
        valid &= stored != stored.dtype.type(nodata)
    return valid
