"""Random windows of crops at random sizes, as TerraMind's tokenizers were trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def random_windows(
    values: Tensor,
    valid: Tensor,
    sizes: Sequence[int],
    scale: float,
    flip: float,
    classes: bool,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Cut a random square out of each crop, resize all to one of the sizes, and mirror some.

    Parameters
    ----------
    values, valid
        ``(B, C, S, S)``, float32 and bool.
    sizes
        Sides in pixels, one drawn for the whole batch.
    scale
        Least share of a crop's area that its window has, above 0 to 1.
    flip
        Chance of mirroring left and right.
    classes
        Whether values are class ids, which are never interpolated.
    generator
        Decides everything.

    Returns
    -------
    values, valid
        ``(B, C, side, side)``. A pixel is valid where all that it was made from is.
    """
    device, full = values.device, values.shape[-1]
    side = sizes[int(torch.randint(len(sizes), (), generator=generator, device=device))]
    draws = torch.rand(len(values), 4, generator=generator, device=device).tolist()
    outs, masks = [], []
    for x, ok, (area, row, col, mirrored) in zip(values, valid, draws, strict=True):
        window = max(1, round(full * (scale + (1 - scale) * area) ** 0.5))
        top, left = int(row * (full - window + 1)), int(col * (full - window + 1))
        cut = (..., slice(top, top + window), slice(left, left + window))
        x, ok = resized(x[cut], ok[cut], side, classes)
        outs.append(x.flip(-1) if mirrored < flip else x)
        masks.append(ok.flip(-1) if mirrored < flip else ok)
    return torch.stack(outs), torch.stack(masks)


def resized(x: Tensor, valid: Tensor, side: int, classes: bool) -> tuple[Tensor, Tensor]:
    """Return ``(C, side, side)``: bilinear with anti-aliasing, the nearest of classes; and the mask."""
    if x.shape[-2:] == (side, side):
        return x, valid
    if classes:
        size = (side, side)
        near = F.interpolate(torch.stack([x, valid.to(x.dtype)]), size=size, mode="nearest-exact")
        return near[0], near[1] > 0.5
    planes = torch.stack([x, valid.to(x.dtype)])
    found = F.interpolate(planes, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return found[0], found[1] > 1 - 1e-4
