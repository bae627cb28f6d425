"""Middle and spread of several samples, pixel by pixel: an uncertainty map.

Values: mean and standard deviation (of the K samples themselves, divided by K). Classes: the commonest, the
lowest id where several are, and its share of the samples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tmcodec.codec.decode import MAX_PIXELS, Job, Wanted, decode_squares, make_job, raster_tags
from tmcodec.codec.report import Stopwatch
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.modalities import get_modality
from tmcodec.rasters import RasterWriter
from tmcodec.tokenfile import TokenFile

Values = npt.NDArray[np.float32]


def middle_and_spread(samples: npt.NDArray[np.floating], classes: int = 0) -> tuple[Values, Values]:
    """Return mean and standard deviation, or the commonest class and its share.

    Parameters
    ----------
    samples
        ``(K, ...)``.
    classes
        Number of classes; 0 for values.

    Returns
    -------
    middle, spread
        float32 of the shape of one sample.
    """
    if not classes:
        exact = samples.astype(np.float64)
        return exact.mean(0).astype(np.float32), exact.std(0).astype(np.float32)
    counts = np.stack([(samples == i).sum(0) for i in range(classes)])
    return counts.argmax(0).astype(np.float32), (counts.max(0) / len(samples)).astype(np.float32)


def write_spread(
    files: Sequence[str | os.PathLike[str]],
    layer: str,
    targets: tuple[Path, Path],
    tokenizer: Tokenizer,
    *,
    steps: int,
    seed: int,
    device: str,
    batch_size: int,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Decode a layer of several token files side by side and write middle and spread as GeoTIFFs.

    Memory holds one square of each sample.

    Parameters
    ----------
    files
        One token file a sample, alike but for the tokens.
    layer
        Name of the layer.
    targets
        Where middle and spread go.
    tokenizer
        That of the layer.
    steps, seed, device, batch_size, max_pixels
        As for `tmcodec.decode`.
    """
    with ExitStack() as stack:
        wanted = Wanted(layer, 0, steps, seed, None, None, False, None, 1)
        opened = [stack.enter_context(TokenFile.open(path, max_pixels=max_pixels)) for path in files]
        jobs = [make_job(file, wanted, tokenizer, device, batch_size, max_pixels, {}) for file in opened]
        classes = len(get_modality(jobs[0].layer.modality).classes)
        middle, spread = (
            stack.enter_context(_writer(jobs[0], path, spread, len(files)))
            for path, spread in zip(targets, (False, True), strict=True)
        )
        watch = Stopwatch()
        for squares in zip(*(decode_squares(job, watch) for job in jobs), strict=True):
            at, _, valid = squares[0]
            center, width = middle_and_spread(np.stack([values for _, values, _ in squares]), classes)
            middle.write(at, center, valid)
            spread.write(at, width, valid)


def _writer(job: Job, path: Path, spread: bool, samples: int) -> RasterWriter:
    """Return a writer of float32, or of class ids; the spread of values is in their own units."""
    meta, row = job.layer.meta, get_modality(job.layer.modality)
    ids = row.categorical and not spread
    # A nodata value of the modality may be a possible value here.
    nodata = meta.nodata if ids else math.nan
    kinds = {(False, False): "mean", (False, True): "standard deviation", (True, False): "commonest class",
             (True, True): "share of the commonest class"}  # fmt: skip
    kind = kinds[row.categorical, spread]
    tags = {**raster_tags(job), "TMCODEC_SAMPLES": str(samples), "TMCODEC_STATISTIC": kind}
    return RasterWriter(
        path,
        width=meta.width,
        height=meta.height,
        bands=meta.bands,
        dtype=meta.dtype if ids else "float32",
        crs=meta.crs,
        transform=meta.transform,
        nodata=nodata,
        mask_kind=meta.mask_kind if ids else "nodata",
        units="1" if row.categorical and spread else meta.units,
        tags=tags,
        modality=None if spread else row,
    )
