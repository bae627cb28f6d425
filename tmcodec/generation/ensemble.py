"""Middle and spread of several samples, pixel by pixel: an uncertainty map.

Values: mean and standard deviation (of the K samples themselves, divided by K). Classes: the commonest, the
lowest id where several are, and its share of the samples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tmcodec.codec.decode import MAX_PIXELS, Job, Squares, Wanted, decode_squares, make_job, raster_tags
from tmcodec.codec.report import Stopwatch
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.modalities import get_modality
from tmcodec.rasters import RasterWriter, Window
from tmcodec.tokenfile import TokenFile

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def middle_and_spread(
    samples: Iterable[npt.NDArray[np.floating]], classes: int = 0
) -> tuple[Values, Values]:
    """Return mean and standard deviation, or the commonest class and its share.

    Parameters
    ----------
    samples
        One after the other, of one shape; none is kept.
    classes
        Number of classes; 0 for values.

    Returns
    -------
    middle, spread
        float32 of the shape of one sample.
    """
    return _counted(samples, classes) if classes else _summed(samples)


def _summed(samples: Iterable[npt.NDArray[np.floating]]) -> tuple[Values, Values]:
    """Return mean and standard deviation by running sums (Welford 1962): far from zero, squares cancel."""
    mean, squares, count = np.zeros(()), np.zeros(()), 0
    for count, sample in enumerate(samples, 1):
        off = sample.astype(np.float64) - mean
        mean = mean + off / count
        off *= sample - mean
        squares = squares + off
    return mean.astype(np.float32), np.sqrt(squares / count).astype(np.float32)


def _counted(samples: Iterable[npt.NDArray[np.floating]], classes: int) -> tuple[Values, Values]:
    """Return the commonest class, the lowest of equals, and its share."""
    ids = np.arange(classes)
    counts, number = np.zeros((), np.uint8), 0  # of 64 samples at most
    for number, sample in enumerate(samples, 1):  # noqa: B007  (how many there were)
        counts = counts + (sample == ids.reshape(-1, *[1] * sample.ndim))
    return counts.argmax(0).astype(np.float32), (counts.max(0) / number).astype(np.float32)


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
    """Decode a layer of several token files square by square and write middle and spread as GeoTIFFs.

    Memory holds one square and its sums, however many samples there are.

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
        for square in jobs[0].squares:
            parts = (_decoded(job, square, watch) for job in jobs)
            at, values, valid = next(parts)
            center, width = middle_and_spread(chain([values], (part[1] for part in parts)), classes)
            middle.write(at, center, valid)
            spread.write(at, width, valid)


def _decoded(job: Job, square: Window, watch: Stopwatch) -> tuple[Window, Values, Mask | None]:
    """Decode one square of a job; nothing of it stays behind."""
    (found,) = decode_squares(replace(job, squares=Squares(square, job.squares.side)), watch)
    return found


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
