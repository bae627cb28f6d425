"""Arrays and their profiles, as callers give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tmcodec.errors import RasterOpenError


def with_profile(source: Any, profile: Mapping[str, Any] | None = None) -> Any:
    """Return what `tmcodec.rasters.open_raster` takes.

    Parameters
    ----------
    source
        A path, a dataset, an array, or an array with its profile, ``(array, profile)``.
    profile
        Of an array; an empty one is none. Its ``valid``, as `tmcodec.decode_array` returns it, is another
        word for ``mask``.

    Raises
    ------
    RasterOpenError
        If there is a profile beside something that is no array, or it has both words.
    """
    empty = isinstance(profile, Mapping) and not profile  # says nothing, beside whatever source
    if profile is not None and not empty:
        if not isinstance(source, np.ndarray):
            kind = type(source).__name__
            raise RasterOpenError(f"profile goes with a NumPy array, not with a {kind}; leave it out for a "
                                  "raster, give numpy.asarray of anything else")
        source = source, profile
    if not isinstance(source, tuple) or len(source) != 2 or not isinstance(source[1], Mapping):
        return source
    array, given = source[0], dict(source[1])
    if given.get("valid") is not None:
        if given.get("mask") is not None:
            raise RasterOpenError("profile has mask and valid, which mean the same; leave one out")
        given["mask"] = given.pop("valid")
    return array, given
