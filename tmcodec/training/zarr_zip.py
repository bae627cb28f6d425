"""Read one array of a zipped Zarr v2 group: zipfile, JSON, numcodecs; no objects, nothing unbounded."""

from __future__ import annotations

import io
import itertools
import json
import math
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from tmcodec.errors import CorpusError, MissingDependencyError

COMPRESSORS = ("blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma")
FILTERS = ("shuffle", "delta", "fixedscaleoffset", "bitround")
MAX_BYTES = 1 << 28
"""Most bytes of an array, 256 MiB; a sample of 13 bands at 264 x 264 pixels has 2 MB."""


def read_array(data: bytes, key: str) -> npt.NDArray[Any]:
    """Return array `key` of a zipped Zarr v2 group.

    Raises
    ------
    CorpusError
        If the archive is damaged, has no such array, or one of an unknown layout or compressor.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            meta = json.loads(_member(archive, f"{key}/.zarray"))
            return _assemble(archive, key, meta)
    except KeyError as err:
        raise CorpusError(f"no array {key!r} in it ({err.args[0]})") from err
    except (zipfile.BadZipFile, zlib.error, ValueError, TypeError, AttributeError, RuntimeError, OSError,
            EOFError, NotImplementedError, IndexError, RecursionError) as err:  # fmt: skip
        raise CorpusError(f"not a readable zipped Zarr array {key!r} ({err})") from err


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a member whose stated size is sane."""
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise ValueError(f"{name} is larger than {MAX_BYTES} bytes")
    return archive.read(name)


def _assemble(archive: zipfile.ZipFile, key: str, meta: dict[str, Any]) -> npt.NDArray[Any]:
    """Put the chunks together; one that is missing holds the fill value."""
    dtype = np.dtype(meta["dtype"])
    shape, chunks = (tuple(int(n) for n in meta[k]) for k in ("shape", "chunks"))
    if dtype.kind not in "iufb" or len(shape) != len(chunks) or min((*shape, *chunks), default=0) < 1:
        raise ValueError(f"dtype {dtype}, shape {shape}, chunks {chunks}")
    if max(math.prod(shape), math.prod(chunks)) * dtype.itemsize > MAX_BYTES:
        raise ValueError(f"an array of {shape} is larger than {MAX_BYTES} bytes")
    fill = meta.get("fill_value")
    out = np.full(shape, 0 if fill is None else fill, dtype)
    names = set(archive.namelist())
    separator = meta.get("dimension_separator", ".")
    for place in itertools.product(*(range(math.ceil(n / c)) for n, c in zip(shape, chunks, strict=True))):
        name = f"{key}/{separator.join(map(str, place))}"
        if name in names:
            chunk = _decode(_member(archive, name), meta, dtype, chunks)
            target = tuple(
                slice(i * c, min(i * c + c, n)) for i, c, n in zip(place, chunks, shape, strict=True)
            )
            out[target] = chunk[tuple(slice(0, s.stop - s.start) for s in target)]
    return out


def _decode(
    raw: bytes, meta: dict[str, Any], dtype: np.dtype[Any], chunks: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Decompress a chunk and undo its filters."""
    size = math.prod(chunks) * dtype.itemsize
    data: Any = raw
    if meta.get("compressor"):
        data = _codec(meta["compressor"], COMPRESSORS).decode(raw, out=None)
    for config in reversed(meta.get("filters") or []):
        data = _codec(config, FILTERS).decode(data)
    values = np.frombuffer(np.ascontiguousarray(data), dtype=dtype)
    if values.nbytes != size:
        raise ValueError(f"a chunk has {values.nbytes} bytes, not {size}")
    return values.reshape(chunks, order=meta.get("order", "C"))


def _codec(config: dict[str, Any], allowed: tuple[str, ...]) -> Any:
    """Return numcodecs' codec of a configuration; none that could run code."""
    try:
        import numcodecs
    except ImportError as err:
        raise MissingDependencyError(
            "reading Zarr samples needs the package numcodecs; pip install 'tmcodec[train]'"
        ) from err
    if config.get("id") not in allowed:
        raise ValueError(f"compressor or filter {config.get('id')!r}; known are {', '.join((*allowed,))}")
    return numcodecs.get_codec(dict(config))
