"""Token files to rasters, in windows with the context that makes seams impossible."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from tmcodec.atomic import SIDECARS, check_geotiff_name, check_target
from tmcodec.codec.balance import apply_balance
from tmcodec.codec.chunks import check_batch_size, neutral_token, side_of_batch
from tmcodec.codec.encode import Progress, check_steps
from tmcodec.codec.models import load_tokenizer
from tmcodec.codec.pipeline import WriteBehind, read_ahead
from tmcodec.codec.report import DecodeReport, Stopwatch
from tmcodec.codec.tokenizer import Tokenizer, check_samples
from tmcodec.errors import (
    ChunkError,
    LayerNotFoundError,
    LimitExceededError,
    SamplerError,
    TokenizerMismatchError,
    TruncatedFileError,
    WindowError,
)
from tmcodec.modalities import get_modality
from tmcodec.rasters import (
    RasterWriter,
    Window,
    align_out,
    as_window,
    window_from_bounds,
    window_transform,
)
from tmcodec.samplers.sample import OFFICIAL, check_sampler
from tmcodec.texts import listed, printable, shown
from tmcodec.tokenfile import Layer, LayerMeta, LayerWindow, TokenFile
from tmcodec.tokenfile.classes import unpack_set
from tmcodec.tokenfile.metadata import SCALE_TAG, UNIT_TAG

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Source = str | os.PathLike[str] | IO[bytes]

MAX_PIXELS = 2**31
"""Default cap on the pixels of a decoded raster, 46,000 on a side: stops decompression bombs."""


def decode(
    src: Source,
    dst: str | os.PathLike[str],
    *,
    layer: str | None = None,
    time: int = 0,
    steps: int | None = None,
    seed: int | None = None,
    window: tuple[int, int, int, int] | None = None,
    bounds: tuple[float, float, float, float] | None = None,
    cog: bool = False,
    salvage: bool = False,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    device: str = "auto",
    batch_size: int = 16,
    overwrite: bool = False,
    progress: Progress | None = None,
    max_pixels: int = MAX_PIXELS,
    sampler: str | None = None,
    samples: int = 1,
    checkpoint: str | os.PathLike[str] | None = None,
    precision: str = "auto",
) -> DecodeReport:
    """Decode a token file to a GeoTIFF.

    Parameters
    ----------
    src
        Path, URL or seekable binary file object of the token file.
    dst
        Path of the GeoTIFF, named .tif or alike, or without suffix. A CRS that it has no keys for lies beside
        it, in ``DST.aux.xml``.
    layer
        Name of the layer; None where the file has one only.
    time
        Step of the time axis.
    steps, seed
        Sampling steps (1 is the mean and has the best PSNR; a few add texture) and the seed of their
        noise; None takes the file's.
    window, bounds
        Part to decode: ``(col, row, width, height)`` in pixels, or ``(left, bottom, right, top)`` in
        the raster's CRS.
    cog
        Write a Cloud Optimized GeoTIFF.
    salvage
        Decode what is intact and mark damaged chunks as nodata.
    tokenizer
        Name, weights file or loaded tokenizer; None takes the one that the file names.
    device, batch_size, overwrite, progress
        As for `tmcodec.encode`.
    max_pixels
        Cap on the size of the raster.
    sampler
        ``"ddim"``, ``"official"`` (TerraTorch's), or another that `tmcodec.samplers.sample.sample` takes;
        None takes the file's.
    samples
        Average of so many pictures from different noise, nearer to the mean.
    checkpoint, precision
        As for `tmcodec.load_tokenizer`, where `tokenizer` is a name or file.

    Returns
    -------
    DecodeReport

    Raises
    ------
    TmcodecError
        A subclass for each way to fail; nothing is left under the target name.
    OSError
        As from the builtin `open`, where the token file cannot be opened.
    """
    watch = Stopwatch()
    check_geotiff_name(dst, src)
    check_target(dst, overwrite, SIDECARS)
    with TokenFile.open(src, max_pixels=max_pixels, salvage=salvage) as file:
        wanted = Wanted(layer, time, steps, seed, window, bounds, salvage, sampler, samples)
        how = {"checkpoint": checkpoint, "precision": precision}
        job = make_job(file, wanted, tokenizer, device, batch_size, max_pixels, how)
        with make_writer(job, dst, cog, overwrite) as writer, WriteBehind() as behind:
            total = len(job.squares)
            for done, (at, values, valid) in enumerate(decode_squares(job, watch), 1):

                def write(at: Window = at, values: Values = values, valid: Mask | None = valid) -> None:
                    with watch("write"):
                        writer.write(at, values, valid)

                behind.submit(write)
                if progress is not None:
                    progress(done, total)
            behind.wait()
        lost = count_damaged(job) if salvage else 0
    return DecodeReport(
        path=str(Path(dst)),
        layer=job.layer.name,
        modality=job.layer.modality,
        tokenizer=job.tokenizer.name,
        tokens_of=job.layer.tokenizer,
        width=job.window.width,
        height=job.window.height,
        steps=job.steps,
        seed=job.seed,
        sampler=job.sampler,
        lost_chunks=lost,
        seconds=watch.seconds,
        timings=watch.timings,
    )


def decode_array(
    src: Source,
    *,
    layer: str | None = None,
    time: int = 0,
    steps: int | None = None,
    seed: int | None = None,
    window: tuple[int, int, int, int] | None = None,
    bounds: tuple[float, float, float, float] | None = None,
    salvage: bool = False,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    device: str = "auto",
    batch_size: int = 16,
    progress: Progress | None = None,
    max_pixels: int = MAX_PIXELS,
    sampler: str | None = None,
    samples: int = 1,
    checkpoint: str | os.PathLike[str] | None = None,
    precision: str = "auto",
) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Decode a token file to an array.

    Parameters and exceptions are those of `decode`.

    Returns
    -------
    array
        ``(C, H, W)`` in the raster's dtype, masked pixels as nodata.
    profile
        ``crs``, ``transform``, ``nodata``, ``dtype``, ``descriptions``, ``width``, ``height``,
        ``count`` as rasterio names them, ``valid``, bool ``(C, H, W)``, and ``scale``, ``offset`` and
        ``units``, GDAL's tags: value = stored * scale + offset, in that unit.
    """
    watch = Stopwatch()
    with TokenFile.open(src, max_pixels=max_pixels, salvage=salvage) as file:
        wanted = Wanted(layer, time, steps, seed, window, bounds, salvage, sampler, samples)
        how = {"checkpoint": checkpoint, "precision": precision}
        job = make_job(file, wanted, tokenizer, device, batch_size, max_pixels, how)
        writer = make_writer(job, "array.tif", cog=False, overwrite=True)  # converts; never opened
        shape = (len(job.layer.bands), job.window.height, job.window.width)
        array, mask = np.empty(shape, job.layer.dtype), np.ones(shape, np.bool_)
        total = len(job.squares)
        for done, (at, values, valid) in enumerate(decode_squares(job, watch), 1):
            rows, cols = at.slices
            if valid is not None:
                mask[:, rows, cols] = valid
            for band, plane in enumerate(values):
                array[band, rows, cols] = writer.to_stored(plane, mask[band, rows, cols])
            if progress is not None:
                progress(done, total)
    scale, offset, unit = tagged_scaling(job.layer.meta)
    profile = {
        "crs": job.layer.crs,
        "transform": window_transform(job.layer.transform, job.window),
        "nodata": writer.nodata,
        "dtype": job.layer.dtype,
        "descriptions": job.layer.bands,
        "width": job.window.width,
        "height": job.window.height,
        "count": shape[0],
        "valid": mask,
        "scale": scale,
        "offset": offset,
        "units": unit,
    }
    return array, profile


@dataclass(frozen=True)
class Wanted:
    """What the caller asked for, as `decode` takes it."""

    layer: str | None
    time: int
    steps: int | None
    seed: int | None
    window: tuple[int, int, int, int] | None
    bounds: tuple[float, float, float, float] | None
    salvage: bool
    sampler: str | None
    samples: int


@dataclass(frozen=True)
class Squares:
    """The squares of the raster's grid of `side` pixels that cover `area`, cut to it, row by row.

    Made one by one: a file of thirty bytes may have eight million of them.
    """

    area: Window
    side: int

    def __len__(self) -> int:
        rows, cols = self._ranges()
        return len(rows) * len(cols)

    def __iter__(self) -> Iterator[Window]:
        rows, cols = self._ranges()
        for row in rows:
            for col in cols:
                square = Window(col, row, self.side, self.side).intersect(self.area)
                assert square is not None
                yield square

    def _ranges(self) -> tuple[range, range]:
        """Return the first rows and the first columns of the squares."""
        area, side = self.area, self.side
        return (
            range(area.row // side * side, area.row_end, side),
            range(area.col // side * side, area.col_end, side),
        )


@dataclass(frozen=True)
class Job:
    """What to decode, settled before anything is allocated.

    Attributes
    ----------
    window
        Pixels of the raster that are wanted.
    squares
        Parts of it, each decoded at once.
    """

    layer: Layer
    tokenizer: Tokenizer
    time: int
    steps: int
    seed: int
    sampler: str
    samples: int
    salvage: bool
    window: Window
    squares: Squares


def make_job(
    file: TokenFile,
    wanted: Wanted,
    tokenizer: str | os.PathLike[str] | Tokenizer | None,
    device: str,
    batch_size: int,
    max_pixels: int,
    how: Mapping[str, Any],
) -> Job:
    """Find layer and window, check the size, and load the tokenizer that belongs to the tokens."""
    layer = pick_layer(file, wanted.layer)
    layer.meta.check_time(wanted.time)
    check_batch_size(batch_size)
    check_samples(wanted.samples)
    seed = layer.seed if wanted.seed is None else check_seed(wanted.seed)
    steps = check_steps(layer.steps if wanted.steps is None else wanted.steps)
    area = pick_window(layer, wanted)
    asked = None if wanted.sampler is None else check_sampler(wanted.sampler)
    if area.width * area.height > max_pixels:
        raise LimitExceededError(
            f"{area.width} x {area.height} pixels are more than the limit of {max_pixels}; "
            "decode a window, or raise max_pixels"
        )
    tok = matching_tokenizer(layer, tokenizer, device, how)
    sampler = stored_sampler(layer, tok, steps) if asked is None else tok.check_sampler(asked)
    # Not the tile that the file says, which could be as large as the raster.
    side = side_of_batch(batch_size, tok.tile, layer.chunk * layer.patch)
    return Job(
        layer=layer,
        tokenizer=tok,
        time=wanted.time,
        steps=steps,
        seed=seed,
        sampler=sampler,
        samples=wanted.samples,
        salvage=wanted.salvage,
        window=area,
        squares=Squares(area, side),
    )


def stored_sampler(layer: Layer, tok: Tokenizer, steps: int) -> str:
    """Return the sampler that the file names, checked where decoding needs one.

    One step may need none, and so no package that has it.

    Raises
    ------
    SamplerError
        If it is unknown or refused; earlier versions stored some that are.
    """
    name: str = layer.sampler
    if tok.draws_noise(steps):
        try:
            check_sampler(name)
        except SamplerError as error:
            said = f"the file names a sampler that cannot be used ({error}); pass another with --sampler"
            raise SamplerError(said) from error
    return name


def check_seed(seed: int) -> int:
    """Return the seed; those beyond 64 bits would be others, cut.

    Raises
    ------
    SamplerError
    """
    if not isinstance(seed, Integral) or not 0 <= seed < 2**64:
        raise SamplerError(f"seed {shown(seed)}; give a whole number from 0 to {2**64 - 1}")
    return int(seed)


def pick_layer(file: TokenFile, name: str | None) -> Layer:
    """Return the layer of that name, or the only one."""
    if name is not None:
        return file[name]
    if len(file) != 1:
        name = next(iter(file.layers.values())).file_name
        raise LayerNotFoundError(f"{name} has layers {listed(file)}; choose one with --layer")
    return file[next(iter(file))]


def pick_window(layer: Layer, wanted: Wanted) -> Window:
    """Return the pixels wanted; all of them where neither window nor bounds are given."""
    whole = Window(0, 0, layer.width, layer.height)
    if wanted.bounds is not None:
        if wanted.window is not None:
            raise WindowError("window and bounds exclude each other; give one")
        return window_from_bounds(wanted.bounds, layer.transform, layer.width, layer.height)
    if wanted.window is None:
        return whole
    area = as_window(wanted.window)
    if not whole.contains(area):
        raise WindowError(
            f"window {area} is not inside the raster of {layer.width} x {layer.height}; clip it first"
        )
    return area


def matching_tokenizer(
    layer: Layer, tokenizer: str | os.PathLike[str] | Tokenizer | None, device: str, how: Mapping[str, Any]
) -> Tokenizer:
    """Load the tokenizer and refuse one whose encoder did not make these tokens."""
    if isinstance(tokenizer, Tokenizer):
        tok = tokenizer
    else:
        name = layer.tokenizer if tokenizer is None else tokenizer
        tok = load_tokenizer(name, device, tile=layer.tile, **how)
    if not tok.reads(layer.weights_sha256):
        raise TokenizerMismatchError(
            f"layer {printable(layer.name)} was made by {printable(layer.tokenizer)} with weights "
            f"{layer.weights_sha256.hex()}, but {tok.name} here has {tok.sha256.hex()}; "
            "give the right weights with --tokenizer"
        )
    _check_described(layer, tok)
    return tok


def _check_described(layer: Layer, tok: Tokenizer) -> None:
    """Refuse a layer that does not describe the tokens of its tokenizer; no encoder writes one."""
    name = printable(layer.name)
    for what, stored, own in (
        ("modality", get_modality(layer.modality).name, tok.modality.name),
        ("levels", layer.levels, tok.levels),
        ("patch", layer.patch, tok.patch),
    ):
        if stored != own:
            raise TokenizerMismatchError(
                f"layer {name} has the {what} {stored}, but {tok.name}, which it names, has {own}; "
                "encode the raster again"
            )
    if tok.modality.categorical and (layer.meta.scale, layer.meta.offset) != (1, 0):
        raise TokenizerMismatchError(
            f"layer {name} scales class ids, which are names; encode the raster again"
        )
    beyond = max(layer.meta.class_sets, default=0).bit_length() - len(tok.modality.classes)
    if tok.modality.categorical and beyond > 0:
        raise TokenizerMismatchError(
            f"layer {name} has classes that {tok.name} does not know; encode the raster again"
        )
    if len(tok.modality.bands) != len(layer.bands):
        raise TokenizerMismatchError(
            f"layer {name} has {len(layer.bands)} bands, but {tok.name} decodes to "
            f"{len(tok.modality.bands)}; give the right weights with --tokenizer"
        )


def make_writer(job: Job, dst: str | os.PathLike[str], cog: bool, overwrite: bool) -> RasterWriter:
    """Return the GeoTIFF writer that gives the raster its old form back."""
    layer = job.layer
    *tagged, unit = tagged_scaling(layer.meta)
    mask_kind = layer.mask_kind
    if job.salvage and layer.nodata is None and np.dtype(layer.dtype).kind in "iu":
        mask_kind = "mask"  # lost pixels need a way to be marked
    return RasterWriter(
        dst,
        width=job.window.width,
        height=job.window.height,
        bands=layer.bands,
        dtype=layer.dtype,
        crs=layer.crs,
        transform=window_transform(layer.transform, job.window),
        nodata=layer.nodata,
        mask_kind=mask_kind,
        units=unit,
        tags=raster_tags(job),
        modality=job.tokenizer.modality,
        scale=layer.scale,
        offset=layer.offset,
        tagged=(tagged[0], tagged[1]),
        cog=cog,
        overwrite=overwrite,
    )


def tagged_scaling(layer: LayerMeta) -> tuple[float, float, str]:
    """Return scale and offset tags and the unit that the raster had: what its values mean to any reader.

    Digital numbers of Sentinel-2 are scaled otherwise (reflectance x 10000, offset in), and so are heights
    that are not in metres: the tags of these are kept in the layer's tags.
    """
    if get_modality(layer.modality).optical:
        unit = layer.units if layer.scale == 1 else ""
        return (*_numbers(layer.tags.get(SCALE_TAG, "")), unit)
    *numbers, unit = layer.tags.get(UNIT_TAG, "").split(" ", 2)
    if len(numbers) == 2 and unit:
        return (*_numbers(" ".join(numbers)), unit)
    return layer.scale, layer.offset, layer.units


def _numbers(text: str) -> tuple[float, float]:
    """Read a scale and an offset; (1, 0) where the text has none that could be."""
    try:
        scale, offset = map(float, text.split())
    except ValueError:
        return 1.0, 0.0
    return (scale, offset) if math.isfinite(offset) and math.isfinite(scale) and scale else (1.0, 0.0)


def raster_tags(job: Job) -> dict[str, str]:
    """Say in the GeoTIFF where it comes from; `tmcodec encode` reads offset and time back."""
    layer, acquired = job.layer, job.layer.times[job.time]
    tags = {
        "TMCODEC_TOKENIZER": layer.tokenizer,
        "TMCODEC_WEIGHTS_SHA256": layer.weights_sha256.hex(),
        "TMCODEC_STEPS": str(job.steps),
        "TMCODEC_SEED": str(job.seed),
        "TMCODEC_SAMPLER": job.sampler,
    }
    if job.tokenizer.sha256 != layer.weights_sha256:  # a retrained decoder of the same tokens
        tags["TMCODEC_DECODER"] = job.tokenizer.name
        tags["TMCODEC_DECODER_SHA256"] = job.tokenizer.sha256.hex()
    if job.steps > 1 and job.tokenizer.texture is not None:
        tags["TMCODEC_TEXTURE"] = job.tokenizer.texture.name
        tags["TMCODEC_TEXTURE_SHA256"] = job.tokenizer.texture.sha256.hex()
    if layer.s2_offset:
        tags["TMCODEC_S2_OFFSET"] = layer.s2_offset
    if acquired is not None:
        tags["TMCODEC_TIME"] = acquired.isoformat()
    return {**{key: value for key, value in layer.tags.items() if key not in (SCALE_TAG, UNIT_TAG)}, **tags}


def count_damaged(job: Job) -> int:
    """Count the damaged chunks that the wanted window touches."""
    layer, patch = job.layer, job.layer.patch
    outer = align_out(job.window, patch, layer.width, layer.height)
    lost = 0
    for chunk_row, chunk_col in layer.filled(token_window(outer, patch), job.time):
        try:
            layer.check_chunk(job.time, chunk_row, chunk_col)
        except (ChunkError, TruncatedFileError):
            lost += 1
    return lost


def token_window(area: Window, patch: int) -> tuple[int, int, int, int]:
    """Return the (col, row, width, height) in tokens of a patch-aligned window in pixels."""
    col, row = area.col // patch, area.row // patch
    return col, row, -(-area.col_end // patch) - col, -(-area.row_end // patch) - row


def decode_squares(job: Job, watch: Stopwatch) -> Iterator[tuple[Window, Values, Mask | None]]:
    """Yield ``(window in the output, values (C, h, w), valid (C, h, w) or None)`` of each square."""
    layer, patch = job.layer, job.tokenizer.patch
    balance, integers = layer.meta.balance, balance_integers(job)

    def context_of(square: Window) -> Window:
        return job.tokenizer.decoder_context(square, layer.width, layer.height, job.steps, job.sampler)

    def load(square: Window) -> LayerWindow:
        with watch("read"):
            return layer.read(token_window(context_of(square), patch), job.time, job.salvage)

    for square, read in read_ahead(load, job.squares):
        context = context_of(square)
        rows, cols = square.relative_to(context).slices
        valid = None
        if read.valid is not None:
            valid = np.broadcast_to(read.valid, (len(layer.bands), *read.valid.shape[1:]))[:, rows, cols]
        with watch("network"):
            values = decode_context(job, read, context, valid)[:, rows, cols]
            if balance is not None and integers is not None:
                apply_balance(values, square, balance, *integers, patch)
        yield square.relative_to(job.window), values, valid


def balance_integers(job: Job) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None:
    """Return nodes and mixing of the layer's balance at the wanted time, or None where it has none."""
    meta = job.layer.meta
    if meta.balance is None:
        return None
    times, bands = len(meta.times), len(meta.bands)
    nodes = meta.balance.nodes(meta.rows, meta.cols, times, bands)[job.time]
    return nodes, meta.balance.mixes(times, bands)[job.time]


def decode_context(job: Job, read: LayerWindow, context: Window, valid: Mask | None) -> Values:
    """Run the network over one square's tokens and their context; ``(C, h, w)``, physical units."""
    patch = job.tokenizer.patch
    if valid is not None and not valid.any():
        return np.zeros((len(job.layer.bands), context.height, context.width), np.float32)
    tokens = read.tokens.copy()
    tokens[read.empty | ~read.intact] = neutral_token(job.tokenizer.levels)
    origin = (context.row // patch, context.col // patch)
    grid = (job.layer.meta.rows, job.layer.meta.cols)
    picture = job.tokenizer.decode_context(
        torch.from_numpy(tokens)[None], job.steps, job.seed, origin, grid, job.sampler, job.samples,
        classes_of(job),
    )
    return picture[0].cpu().numpy()


def classes_of(job: Job) -> tuple[int, ...] | None:
    """Return the classes that the file says the map has; None where it may have any.

    TerraTorch knows nothing of them, so the official sampler names whatever is likeliest.
    """
    sets = job.layer.meta.class_sets
    if not (sets and sets[job.time] and job.tokenizer.modality.categorical) or job.sampler == OFFICIAL:
        return None
    return unpack_set(sets[job.time])
