"""Pictures of any modality, by the table's `Rendering`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tmcodec.modalities import Modality

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Byte = npt.NDArray[np.uint8]
Ranges = tuple[tuple[float, float], ...]
Stops = tuple[tuple[float, tuple[int, int, int]], ...]

INVALID_GREY = 128

# Position in 0..1 and colour. Hypsometric tints from lowland green to summit white.
_TERRAIN: Stops = (
    (0.0, (84, 141, 92)),
    (0.2, (158, 190, 120)),
    (0.4, (232, 222, 162)),
    (0.6, (200, 158, 104)),
    (0.8, (150, 112, 88)),
    (1.0, (250, 250, 250)),
)
_NDVI: Stops = (
    (0.0, (120, 72, 24)),
    (0.35, (250, 248, 240)),
    (0.65, (110, 170, 80)),
    (1.0, (8, 72, 24)),
)


def render_rgb(
    values: Float, valid: Bool, modality: Modality, ranges: Ranges | None = None
) -> tuple[Byte, Ranges]:
    """Render physical values as an RGB picture.

    Parameters
    ----------
    values
        Shape (C, H, W), physical units, in the modality's band order.
    valid
        Same shape; a pixel is shown where all bands of the picture are valid, else grey.
    modality
        Its rendering says which bands, which stretch and which colour map.
    ranges
        As returned for another picture, so that both share a stretch; None takes the
        table's, and where that has none the 2nd and 98th percentile.

    Returns
    -------
    picture : ndarray
        Shape (3, H, W), uint8.
    ranges : tuple
        ``(low, high)`` for each band of the picture, physical units.
    """
    shown, ok = _shown_bands(values, valid, modality)
    ranges = ranges or modality.rendering.ranges or tuple(_percentiles(band[ok]) for band in shown)
    colormap = modality.rendering.colormap
    if colormap == "classes":
        picture = _classes(shown[0], modality)
    elif colormap == "terrain":
        picture = _ramp(_stretch(shown[0], ranges[0]), _TERRAIN) * _hillshade(shown[0], ok, ranges[0])
    elif colormap == "ndvi":
        picture = _ramp(_stretch(shown[0], ranges[0]), _NDVI)
    else:
        stretched = [_stretch(band, limits) for band, limits in zip(shown, ranges, strict=True)]
        picture = np.stack(stretched) ** np.float32(modality.rendering.gamma) * np.float32(255)
    rgb = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    rgb[:, ~ok] = INVALID_GREY
    return rgb, ranges


def _shown_bands(values: Float, valid: Bool, modality: Modality) -> tuple[list[Float], Bool]:
    """Return the bands of the picture, invalid pixels 0, and where they all are valid."""
    names = {part for name in modality.rendering.bands for part in name.split("-")}
    used = [i for i, band in enumerate(modality.bands) if band in names]
    ok: Bool = np.all(valid[used] & np.isfinite(values[used]), axis=0)
    plane = {modality.bands[i]: np.where(ok, values[i], np.float32(0)) for i in used}
    shown = []
    for name in modality.rendering.bands:
        first, _, second = name.partition("-")
        shown.append(plane[first] - plane[second] if second else plane[first])
    return shown, ok


def _percentiles(values: Float) -> tuple[float, float]:
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [2, 98])
    return float(low), float(high)


def _stretch(band: Float, limits: tuple[float, float]) -> Float:
    """Map ``limits`` to 0..1 and clip; a flat band becomes 0 or 1 at its value's side."""
    low, high = limits
    span = np.float32(max(high - low, 1e-6))
    position: Float = np.clip((band - np.float32(low)) / span, 0, 1).astype(np.float32)
    return position


def _ramp(position: Float, stops: Stops) -> Float:
    """Interpolate between colour stops: (H, W) in 0..1 to (3, H, W) in 0..255."""
    places = [p for p, _ in stops]
    channels = [np.interp(position, places, [rgb[c] for _, rgb in stops]) for c in range(3)]
    return np.stack(channels).astype(np.float32)


def _hillshade(heights: Float, ok: Bool, limits: tuple[float, float]) -> Float:
    """Return a factor of about 0.5..1.2 for light from the north-west, shape (H, W).

    The pixel size is unknown here (or in degrees), so heights are exaggerated by the
    picture's own relief: the range over an eighth of its side is a slope of 45 degrees.
    """
    if min(heights.shape) < 2:
        return np.ones_like(heights)
    low, high = limits
    filled = np.where(ok, np.clip(heights, low, high), np.float32(low))
    factor = min(heights.shape) / 8 / max(high - low, 1.0)
    south, east = np.gradient(filled * np.float32(factor))
    # Surface normal (-east, -south, 1) against the light (-1, -1, 1.4) / 2.
    light = (east + south + np.float32(1.4)) / (2 * np.sqrt(east**2 + south**2 + 1))
    shade: Float = np.clip(0.5 + 0.7 * light, 0.4, 1.2).astype(np.float32)
    return shade


def _classes(ids: Float, modality: Modality) -> Float:
    palette = np.array(modality.colors, np.float32)
    index = np.clip(np.rint(ids), 0, len(palette) - 1).astype(np.intp)
    return np.moveaxis(palette[index], -1, 0)
