"""Original, reconstruction and error side by side in one picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tmcodec.atomic import atomic_path
from tmcodec.metrics import ImageMetrics, Metrics
from tmcodec.modalities import Modality
from tmcodec.rasters import render_rgb
from tmcodec.texts import human_bytes, human_ratio, plural, three_digits

if TYPE_CHECKING:
    from tmcodec.comparison import Comparison

Byte = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]

SMALLEST, LARGEST = 360, 900
"""Pixels of a panel's longer side: below it is enlarged, above it is reduced."""

_MARGIN, _GAP, _LINE, _BAR = 32, 20, 24, 10
_INK, _FAINT, _FRAME = (24, 28, 32), (96, 104, 112), (204, 208, 212)
_AGREES, _DIFFERS, _NOTHING = (236, 238, 240), (200, 24, 40), (128, 128, 128)
# White where nothing differs, so that the eye goes to what does.
_ERRORS: tuple[tuple[float, Colour], ...] = (
    (0.0, (255, 255, 255)),
    (0.25, (254, 224, 144)),
    (0.5, (253, 141, 60)),
    (0.75, (214, 30, 40)),
    (1.0, (92, 0, 40)),
)


@dataclass(frozen=True)
class Panels:
    """Two pictures of one modality, shapes (C, H, W), physical units."""

    original: npt.NDArray[np.float32]
    original_valid: npt.NDArray[np.bool_]
    other: npt.NDArray[np.float32]
    other_valid: npt.NDArray[np.bool_]
    modality: Modality


def save_side_by_side(path: Path, panels: Panels, result: Comparison, overwrite: bool = False) -> None:
    """Write the three panels with captions as PNG.

    Parameters
    ----------
    path
        Target.
    panels
        What to show; both pictures get the stretch of the original.
    result
        For the title and the captions.
    overwrite
        Replace an existing target.

    Raises
    ------
    TargetExistsError
        If the target exists and `overwrite` is false.
    """
    original, ranges = render_rgb(panels.original, panels.original_valid, panels.modality)
    other, _ = render_rgb(panels.other, panels.other_valid, panels.modality, ranges)
    error, top = error_picture(panels)
    names = ("original", "reconstruction", "error")
    details = _captions(result, panels.modality)
    captions = list(zip(names, details, strict=True))
    pictures = [scale_panel(np.moveaxis(picture, 0, -1)) for picture in (original, other, error)]
    page = _compose(pictures, captions, result, top)
    with atomic_path(path, overwrite) as temporary:
        page.save(temporary, format="PNG", optimize=True)


def error_picture(panels: Panels) -> tuple[Byte, float | None]:
    """Return the absolute error, mean of the bands, as colours (3, H, W), and the end of the scale.

    The scale ends at the 99th percentile; class maps have none, their pixels agree or differ.
    """
    both = panels.original_valid & panels.other_valid
    if panels.modality.categorical:
        differ = panels.original[0] != panels.other[0]
        shown = np.where(differ[None], _column(_DIFFERS), _column(_AGREES))
        return np.where(both[:1], shown, _column(_NOTHING)).astype(np.uint8), None
    total, count = np.zeros(both.shape[1:], np.float32), np.zeros(both.shape[1:], np.int32)
    for first, second, valid in zip(panels.original, panels.other, both, strict=True):
        total += np.where(valid, np.abs(second - first), np.float32(0))
        count += valid
    mean = total / np.maximum(count, 1)
    top = float(np.percentile(mean[count > 0], 99)) if count.any() else 0.0
    colours = _ramp(mean / np.float32(top if top > 0 else 1))
    return np.where(count > 0, colours, _column(_NOTHING)).astype(np.uint8), top


def scale_panel(picture: Byte) -> Image.Image:
    """Bring a picture (H, W, 3) to a size that suits a screen.

    Small ones are enlarged by a whole factor, pixels staying squares; large ones are averaged.
    """
    image = Image.fromarray(np.ascontiguousarray(picture))
    longer = max(image.size)
    if longer > LARGEST:
        width, height = (max(1, round(n * LARGEST / longer)) for n in image.size)
        return image.resize((width, height), Image.Resampling.BOX)
    factor = math.ceil(SMALLEST / longer)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


# --------------------------------------------------------------------------- the page


def _compose(
    panels: list[Image.Image], captions: list[tuple[str, str]], result: Comparison, top: float | None
) -> Image.Image:
    """Put title, panels, captions and the scale of errors on a white page."""
    title, subtitle = f"{result.modality} · {result.width} x {result.height} pixels", _subtitle(result)
    cell = max(SMALLEST, *(p.width for p in panels), *(_text_width(text, 15) for _, text in captions))
    inner = 3 * cell + 2 * _GAP
    lines = _wrap(subtitle, inner)
    head = _MARGIN + 40 + _LINE * len(lines) + 12
    foot = 12 + 2 * _LINE + (_BAR + _LINE + 4 if top is not None else 0) + _MARGIN - 8
    page = Image.new("RGB", (inner + 2 * _MARGIN, head + panels[0].height + foot), "white")
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN - 4), title, _INK, _font(26))
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + 36 + number * _LINE), line, _FAINT, _font(16))
    for number, (panel, (name, detail)) in enumerate(zip(panels, captions, strict=True)):
        left = _MARGIN + number * (cell + _GAP)
        page.paste(panel, (left, head))
        draw.rectangle((left - 1, head - 1, left + panel.width, head + panel.height), outline=_FRAME)
        under = head + panel.height + 12
        draw.text((left, under), name, _INK, _font(18))
        draw.text((left, under + _LINE), detail, _FAINT, _font(15))
    if top is not None:
        unit = "" if result.units == "1" else f" {result.units}"
        _draw_scale(page, (left, under + 2 * _LINE + 4), cell, f"{three_digits(top)}{unit} or more")
    return page


def _draw_scale(page: Image.Image, corner: tuple[int, int], width: int, end: str) -> None:
    """Draw the colours of the error panel as a bar from 0 to `end`."""
    colours = _ramp(np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (_BAR, width)))
    bar = np.ascontiguousarray(np.moveaxis(colours, 0, -1)).astype(np.uint8)
    page.paste(Image.fromarray(bar), corner)
    left, high = corner
    draw = ImageDraw.Draw(page)
    draw.rectangle((left - 1, high - 1, left + width, high + _BAR), outline=_FRAME)
    draw.text((left, high + _BAR + 4), "0", _FAINT, _font(14))
    draw.text((left + width, high + _BAR + 4), end, _FAINT, _font(14), anchor="ra")


def _subtitle(result: Comparison) -> str:
    parts = []
    if result.ratio is not None and result.reconstruction_bytes is not None:
        parts.append(f"{human_bytes(result.raw_bytes)} raw to {human_bytes(result.reconstruction_bytes)} "
                     f"({human_ratio(result.ratio)})")
    return "   ·   ".join([*parts, *headline(result.metrics, result.units)])


def headline(metrics: Metrics, units: str) -> list[str]:
    """Return the figures that say most, as short texts."""
    if not isinstance(metrics, ImageMetrics):
        return [f"accuracy {metrics.accuracy:.1%}", f"mIoU {metrics.miou:.1%}"]
    unit = "" if units == "1" else f" {units}"
    if not np.isfinite(metrics.rmse):
        return ["no pixel is valid in both"]
    identical = metrics.rmse == 0
    texts = ["identical" if identical else f"PSNR {metrics.psnr:.2f} dB", f"SSIM {metrics.ssim:.3f}"]
    texts.append(f"RMSE {three_digits(metrics.rmse)}{unit}")
    if metrics.sam is not None:
        texts.append(f"SAM {metrics.sam:.2f}°")
    if metrics.ndvi_error is not None:
        texts.append(f"NDVI error {metrics.ndvi_error:.3f}")
    return texts


def _captions(result: Comparison, modality: Modality) -> tuple[str, str, str]:
    how = Path(result.reconstruction).name
    if result.tokenizer is not None:
        how = f"{result.tokenizer}, {plural(result.steps or 1, 'step')}"
        how += f", seed {result.seed}" if (result.steps or 1) > 1 else ""
    error = "absolute, mean of the bands" if len(modality.bands) > 1 else "absolute"
    error = "red where the class differs" if modality.categorical else error
    return Path(result.original).name, how, error


def _wrap(text: str, width: int) -> list[str]:
    """Break at the dots where a line would be wider than the page."""
    lines: list[str] = []
    for part in text.split("   ·   "):
        longer = f"{lines[-1]}   ·   {part}" if lines else part
        if lines and _text_width(longer, 16) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _text_width(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text))


def _column(colour: Colour) -> npt.NDArray[np.uint8]:
    return np.array(colour, np.uint8)[:, None, None]


def _ramp(position: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Colours (3, H, W) in 0..255 for positions in 0..1."""
    places = [p for p, _ in _ERRORS]
    return np.stack([np.interp(position, places, [rgb[i] for _, rgb in _ERRORS]) for i in range(3)])
