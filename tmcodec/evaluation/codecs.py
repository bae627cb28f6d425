"""Classical codecs for planes in 0..1, with one quality each: JPEG 2000, JPEG XL, AVIF, WebP.

JPEG 2000 is OpenJPEG through GDAL, 16 bits and as many components as there are planes. The others come from
``imagecodecs``; their planes lie below each other in one grey picture, so that one header serves all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tmcodec.errors import MissingDependencyError

Float = npt.NDArray[np.float32]
Byte = npt.NDArray[np.uint8]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Codec:
    """A lossy codec, and the lossless mode that class maps get.

    Attributes
    ----------
    key, title
        Short name, and the one for people.
    pack
        Planes ``(k, H, W)`` in 0..1 and a position in 0..1 from smallest to best to a file's bytes.
    unpack
        Bytes and the shape back to planes.
    rounds
        Halvings of 0..1 that find the best position: more than the codec has qualities are in vain.
    pack_exactly
        Class ids ``(H, W)`` uint8 to a file's bytes without loss; None where there is no such mode here.
    """

    key: str
    title: str
    pack: Callable[[Float, float], bytes]
    unpack: Callable[[bytes, Shape], Float]
    rounds: int = 10
    pack_exactly: Callable[[Byte], bytes] | None = None


def imagecodecs() -> Any:
    """Import imagecodecs.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        import imagecodecs as found
    except ImportError as err:
        raise MissingDependencyError(
            "JPEG XL, AVIF and WebP need the package imagecodecs; pip install 'tmcodec[evaluate]'"
        ) from err
    return found


# --------------------------------------------------------------------------- JPEG 2000


def _pack_jpeg2000(planes: Float, place: float) -> bytes:
    from rasterio.io import MemoryFile

    from tmcodec.rasters.gdal import open_quietly

    stored = np.round(planes * 65535).astype(np.uint16)
    quality = 1e-4 * math.pow(1e6, place)  # GDAL's percent of the raw size
    options = {"CODEC": "J2K", "QUALITY": f"{quality:.6g}", "REVERSIBLE": "NO", "YCBCR420": "NO"}
    with MemoryFile(ext=".j2k") as memory:
        with open_quietly(
            memory.name, "w", driver="JP2OpenJPEG", count=len(stored), height=stored.shape[1],
            width=stored.shape[2], dtype="uint16", **options,
        ) as dst:
            dst.write(stored)
        return bytes(memory.getbuffer())


def _unpack_jpeg2000(data: bytes, shape: Shape) -> Float:
    from rasterio.io import MemoryFile

    from tmcodec.rasters.gdal import open_quietly

    with MemoryFile(data, ext=".j2k") as memory, open_quietly(memory.name) as src:
        return (src.read().astype(np.float32) / np.float32(65535)).reshape(shape)


# --------------------------------------------------------------------------- imagecodecs


def _below(planes: Float, top: int, dtype: Any) -> npt.NDArray[Any]:
    """Return planes as one grey picture, one below the other."""
    return np.round(planes.reshape(-1, planes.shape[2]) * top).astype(dtype)


def _pack_jpegxl(planes: Float, place: float) -> bytes:
    # 25 is the largest distance that libjxl takes; higher efforts do not measure better here.
    distance = 25.0 * math.pow(0.1 / 25.0, place)
    return bytes(imagecodecs().jpegxl_encode(_below(planes, 65535, np.uint16), distance=distance, effort=3))


def _unpack_jpegxl(data: bytes, shape: Shape) -> Float:
    return (imagecodecs().jpegxl_decode(data).astype(np.float32) / np.float32(65535)).reshape(shape)


def _grey(planes: Float) -> Byte:
    """Return planes as a picture of three equal bands: these codecs have no lossy grey here."""
    grey: Byte = _below(planes, 255, np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _pack_avif(planes: Float, place: float) -> bytes:
    level = 1 + round(98 * place)  # 100 is lossless
    return bytes(imagecodecs().avif_encode(_grey(planes), level, pixelformat="yuv420", speed=6, numthreads=1))


def _unpack_avif(data: bytes, shape: Shape) -> Float:
    return (imagecodecs().avif_decode(data)[..., 1].astype(np.float32) / np.float32(255)).reshape(shape)


def _pack_webp(planes: Float, place: float) -> bytes:
    return bytes(imagecodecs().webp_encode(_grey(planes), 100 * place, lossless=False, method=6))


def _unpack_webp(data: bytes, shape: Shape) -> Float:
    return (imagecodecs().webp_decode(data)[..., 1].astype(np.float32) / np.float32(255)).reshape(shape)


def _exact_jpegxl(ids: Byte) -> bytes:
    return bytes(imagecodecs().jpegxl_encode(ids, lossless=True, effort=9))


def _exact_webp(ids: Byte) -> bytes:
    return bytes(imagecodecs().webp_encode(np.repeat(ids[..., None], 3, axis=2), lossless=True, method=6))


CODECS = {
    codec.key: codec
    for codec in (
        Codec("jp2", "JPEG 2000", _pack_jpeg2000, _unpack_jpeg2000),
        Codec("jxl", "JPEG XL", _pack_jpegxl, _unpack_jpegxl, 8, _exact_jpegxl),
        Codec("avif", "AVIF", _pack_avif, _unpack_avif, 7),
        Codec("webp", "WebP", _pack_webp, _unpack_webp, 8, _exact_webp),
    )
}
"""By key, in the order of reports."""
