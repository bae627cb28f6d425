"""Rasters to token files, in windows, so that memory does not grow with the raster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from numbers import Integral
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from tmcodec.atomic import check_token_name
from tmcodec.codec.arrays import with_profile
from tmcodec.codec.balance import BalanceProbe
from tmcodec.codec.chunks import (
    ChunkBoard,
    Mask,
    Tokens,
    check_batch_size,
    chunk_of,
    neutral_token,
    side_of_batch,
)
from tmcodec.codec.models import default_model, load_tokenizer
from tmcodec.codec.pipeline import WriteBehind, read_ahead
from tmcodec.codec.report import EncodeReport, Stopwatch
from tmcodec.codec.revision import Revision
from tmcodec.codec.terramind_models import OFFICIAL, modality_of
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.errors import (
    MetadataError,
    ModalityError,
    RasterOpenError,
    SamplerError,
    TokenizerMismatchError,
    UnitsError,
)
from tmcodec.rasters import (
    RasterSource,
    Window,
    as_window,
    fill_invalid,
    grid_windows,
    open_raster,
    padded_size,
    parse_time,
)
from tmcodec.rasters.classes import names_worldcover
from tmcodec.samplers.sample import check_sampler
from tmcodec.samplers.schedule import TRAIN_STEPS
from tmcodec.texts import shown
from tmcodec.tokenfile import FileMeta, LayerMeta, TokenFileWriter
from tmcodec.tokenfile.classes import pack_set
from tmcodec.tokenfile.metadata import SCALE_TAG, UNIT_TAG
from tmcodec.tokenfile.prelude import MAGIC
from tmcodec.tokenfile.writer import check_token_target

Progress = Callable[[int, int], None]

DATE_TAG = "ACQUISITION_DATE"
"""Tag of the caller's that is the time of the layer, too."""
OWN_TAGS = "TMCODEC_"
"""What the names of tmcodec's own tags begin with."""


def check_steps(steps: int) -> int:
    """Return the sampling steps.

    Raises
    ------
    SamplerError
    """
    if not isinstance(steps, Integral) or not 1 <= steps <= TRAIN_STEPS:
        raise SamplerError(f"steps {shown(steps)}; give a whole number from 1 to {TRAIN_STEPS}")
    return int(steps)


def encode(
    src: Any,
    dst: str | os.PathLike[str] | IO[bytes],
    *,
    modality: str | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    s2_offset: str = "auto",
    scale: float | None = None,
    class_map: Mapping[int, int] | str | None = None,
    window: tuple[int, int, int, int] | None = None,
    device: str = "auto",
    batch_size: int = 16,
    steps: int = 1,
    seed: int = 0,
    sampler: str = "ddim",
    balance: bool | None = None,
    tags: Mapping[str, str] | None = None,
    profile: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    precision: str = "auto",
    tile: int = 256,
    exact: bool = False,
    effort: int | None = None,
    bit_price: float | None = None,
) -> EncodeReport:
    """Encode a raster to a token file.

    Parameters
    ----------
    src
        A path or URL that rasterio opens, an open dataset, or an array ``(C, H, W)`` or ``(H, W)``
        (with `profile`, or as ``(array, profile)``).
    dst
        Path of the token file, or a writable binary file object.
    modality
        Key of the modality table; None infers it from the band descriptions.
    tokenizer
        Name, weights file or loaded tokenizer; None takes the embedded one of the modality.
    s2_offset
        ``"present"``, ``"absent"`` or ``"auto"`` (from the product's metadata): whether
        Sentinel-2's +1000 is in the data.
    scale
        physical = stored * scale, e.g. 10000 for reflectance in 0..1; None decides from tags and
        values.
    class_map
        For LULC: ``{theirs: ours}``, ``"10:2,20:9"`` or ``"worldcover"``.
    window
        ``(col, row, width, height)`` in pixels of the part to encode.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    batch_size
        Native tiles processed at once.
    steps, seed, sampler
        Stored in the file as defaults for decoding; 1 to 1000 steps.
    balance
        Whether to store gains and offsets that bring the decoded bands nearer to the raster (two small
        integers a band for every 512 pixels), at the price of decoding once. None: for Sentinel-2's bands
        with the embedded tokenizers.
    tags
        Free texts to store. ``ACQUISITION_DATE``, in ISO 8601 with year, month and day, is also the time
        that the file states, whatever the raster says; empty it is no tag.
    profile
        For arrays alone: ``crs``, ``transform``, ``nodata``, ``descriptions``, ``scale`` and ``offset``
        (value = stored * scale + offset), ``units``, ``tags``, ``name``, and ``mask`` or ``valid``, true
        where valid, ``(H, W)`` or ``(C, H, W)``. Other keys change nothing, so that rasterio's profiles and
        those of `tmcodec.decode_array` will do.
    overwrite
        Replace an existing file.
    progress
        Called with (windows done, windows in all).
    checkpoint, precision, tile
        As for `tmcodec.load_tokenizer`, where `tokenizer` is a name or file.
    exact
        Whether to store the encoder's tokens as they are, not beside `bit_price` or an `effort` above 0.
        Otherwise those of the embedded tokenizers are searched. TerraMind's never change.
    effort
        Rounds of the search for tokens that decode nearer to the raster and are shorter to code
        (`tmcodec.codec.search`); 0 for none, and then elevation's move by up to a sixteenth of the local
        roughness (`tmcodec.tokenfile.context.settle`). None: 24 for up to 9,709 tokens (1568 x 1568 pixels),
        fewer for more, none for more than 65,536 (elevation: one).
    bit_price
        What the search pays for a bit, in parts of the mean error of a token: 0 looks for the nearest picture
        whatever it takes, 1 for small files. None: the modality's.

    Returns
    -------
    EncodeReport

    Raises
    ------
    TmcodecError
        A subclass for each way to fail; nothing is left under the target name.
    """
    if isinstance(dst, str | os.PathLike):
        check_token_name(dst, src)
    check_token_target(dst, overwrite)
    refuse_token_file(src)
    watch = Stopwatch()
    source, steps = with_profile(src, profile), check_steps(steps)
    part = as_window(window) if window is not None else None
    check_batch_size(batch_size)
    with open_raster(
        source, modality, s2_offset=s2_offset, scale=scale, class_map=class_map, window=part
    ) as raster:
        if scale is not None and raster.modality.categorical:
            raise UnitsError(f"{raster.description}: land cover has classes and no scale; "
                             "leave it out, or map classes by --class-map")
        how = {"checkpoint": checkpoint, "precision": precision, "tile": tile}
        tok = resolve_tokenizer(tokenizer, raster.modality.name, device, how)
        take_legend(raster, tok, class_map)
        sampler = tok.check_sampler(check_sampler(sampler))
        layer = replace(layer_meta(raster, tok, steps, seed, tags), sampler=sampler)
        with TokenFileWriter(dst, FileMeta((layer,)), overwrite=overwrite) as writer:
            probe = make_probe(raster, tok, balance)
            revision = Revision(tok, layer, exact, effort, bit_price, probe)
            stored = encode_layer(raster, tok, writer, layer, batch_size, watch, progress, probe, revision)
            if probe is not None:
                writer.set_balance(0, probe.fit.solve())
    raw = raster.width * raster.height * len(raster.bands) * np.dtype(raster.dtype).itemsize
    return EncodeReport(
        path=str(Path(dst)) if isinstance(dst, str | os.PathLike) else "<file object>",
        modality=raster.modality.name,
        tokenizer=tok.name,
        width=raster.width,
        height=raster.height,
        bands=len(raster.bands),
        tokens=stored,
        raw_bytes=raw,
        file_bytes=writer.size,
        s2_offset=raster.s2_offset,
        seconds=watch.seconds,
        timings=watch.timings,
        warnings=tuple(
            f"{raster.description}: its {kind} are not kept; warp it to a grid to keep its place on the map"
            for kind in raster.left_out
        ),
    )


def refuse_token_file(src: Any) -> None:
    """Refuse a token file, which GDAL would only call a format that it does not know.

    Raises
    ------
    RasterOpenError
    """
    if not isinstance(src, str | os.PathLike) or not os.path.isfile(src):
        return
    head = b""
    with contextlib.suppress(OSError), open(src, "rb") as file:  # what cannot be read is GDAL's to say
        head = file.read(len(MAGIC))
    if head == MAGIC:
        raise RasterOpenError(
            f"{os.fspath(src)} is a token file already; give the raster that it was made of, or decode it"
        )


def resolve_tokenizer(
    tokenizer: str | os.PathLike[str] | Tokenizer | None, modality: str, device: str, how: Mapping[str, Any]
) -> Tokenizer:
    """Load the tokenizer where it is a name or path, and check that it is of this modality.

    `how` are further arguments of `load_tokenizer`.
    """
    if isinstance(tokenizer, Tokenizer):
        tok = tokenizer
    else:
        name = default_model(modality) if tokenizer is None else tokenizer
        official = OFFICIAL.get(str(name))
        if official is not None:  # whose weights may have to be fetched
            _check_modality(official.name, official.modality, modality)
        tok = load_tokenizer(name, device, **how)
    _check_modality(tok.name, tok.modality.name, modality)
    return tok


def _check_modality(tokenizer: str, own: str, modality: str) -> None:
    if own != modality:
        raise TokenizerMismatchError(
            f"tokenizer {tokenizer} is for {own}, the raster is {modality}; choose another"
        )


def take_legend(raster: RasterSource, tok: Tokenizer, class_map: Mapping[int, int] | str | None) -> None:
    """Read classes as the tokenizer means them: its class 0 may be no gap, as the table's is.

    Raises
    ------
    UnitsError
        If it has other classes than the table, and the class map is ready-made for the table's; if the raster
        was decoded by a tokenizer of other classes, and there is no class map.
    """
    classes = tok.modality.classes
    if raster.tokenizer not in (None, tok.name) and class_map is None:
        theirs = modality_of(str(raster.tokenizer), raster.modality.name).classes
        if theirs != classes:
            raise UnitsError(
                f"{raster.description}: its ids are those of {shown(raster.tokenizer)}, "
                f"{_legend(theirs)}; those of {tok.name} are {_legend(classes)}; give --class-map OLD:NEW,..."
            )
    if classes != raster.modality.classes and isinstance(class_map, str) and names_worldcover(class_map):
        named = _legend(classes)
        raise UnitsError(f"{tok.name} has classes of its own ({named}); give --class-map OLD:NEW,... to them")
    raster.modality = replace(raster.modality, classes=classes)


def _legend(classes: Sequence[str]) -> str:
    return ", ".join(f"{i} {name}" for i, name in enumerate(classes))


def layer_meta(
    raster: RasterSource, tok: Tokenizer, steps: int, seed: int, tags: Mapping[str, str] | None
) -> LayerMeta:
    """Describe the raster and its tokens.

    Raises
    ------
    MetadataError
        If a tag has the name of one of tmcodec's own, or an acquisition date is none.
    """
    if not isinstance(tags, Mapping | None) or not all(isinstance(key, str) for key in tags or {}):
        raise MetadataError(f"tags {shown(tags)}; give a mapping of names to texts")
    # An empty date, as a script's variable that is not set, is no tag.
    kept = {key: text for key, text in (tags or {}).items() if key.upper() != DATE_TAG or str(text).strip()}
    for key in kept:
        if key.upper().startswith(OWN_TAGS):
            raise MetadataError(f"tag {key}: names with {OWN_TAGS} are tmcodec's own; choose another")
    if raster.modality.optical and raster.tagged != (1.0, 0.0):
        kept[SCALE_TAG] = " ".join(f"{value:.12g}" for value in raster.tagged)
    if raster.unit:
        kept[UNIT_TAG] = " ".join([*(f"{value:.12g}" for value in raster.tagged), raster.unit])
    return LayerMeta(
        name=raster.modality.name,
        modality=raster.modality.name,
        tokenizer=tok.name,
        weights_sha256=tok.sha256,
        levels=tok.levels,
        width=raster.width,
        height=raster.height,
        dtype=raster.dtype,
        bands=raster.bands,
        patch=tok.patch,
        tile=tok.tile,
        chunk=chunk_of(tok),
        units=raster.modality.units,
        scale=raster.scale,
        offset=raster.offset,
        s2_offset=raster.s2_offset,
        nodata=raster.nodata,
        mask_kind=raster.mask_kind,
        crs=raster.crs,
        transform=raster.transform,
        times=(tagged_time(kept) or raster.time,),
        steps=steps,
        seed=seed,
        tags=kept,
    )


def tagged_time(tags: Mapping[str, str]) -> datetime | None:
    """Return the time of the tag ``ACQUISITION_DATE``, or None without one.

    Raises
    ------
    MetadataError
        If it is no date.
    """
    for key, text in tags.items():
        if key.upper() == DATE_TAG:
            time = parse_time(str(text))
            if time is None:
                raise MetadataError(f"tag {key}: {shown(text)} is no date with year, month and day; "
                                    "write it as 2020-12-31 or 2020-12-31T10:30:00Z")
            return time
    return None


def make_probe(raster: RasterSource, tok: Tokenizer, wanted: bool | None) -> BalanceProbe | None:
    """Return what fits the raster's balance, where one is wanted.

    Raises
    ------
    ModalityError
        If it is asked for and the modality has none.
    """
    scale = raster.modality.balance
    if wanted and scale is None:
        raise ModalityError(f"{raster.modality.name} has no radiometric balance; leave --balance out")
    if scale is None or wanted is False or (wanted is None and not tok.balanced):
        return None
    return BalanceProbe(tok, raster.width, raster.height, scale)


def encode_layer(
    raster: RasterSource,
    tok: Tokenizer,
    writer: TokenFileWriter,
    layer: LayerMeta,
    batch_size: int,
    watch: Stopwatch,
    progress: Progress | None,
    probe: BalanceProbe | None,
    revision: Revision,
) -> int:
    """Encode chunk by chunk, reading one square ahead and coding one chunk behind; count tokens."""
    span = layer.chunk * tok.patch
    side = side_of_batch(batch_size, tok.tile, span)
    squares = [
        (chunk, Window(chunk.col + s.col, chunk.row + s.row, s.width, s.height))
        for chunk in grid_windows(raster.width, raster.height, span)
        for s in grid_windows(chunk.width, chunk.height, side)
    ]

    def load(item: tuple[Window, Window]) -> tuple[npt.NDArray[np.float32], Mask]:
        with watch("read"):
            return raster.read(tok.encoder_context(item[1], raster.width, raster.height))

    stored = 0
    board = ChunkBoard(tok, len(raster.bands), keep_values=probe is not None or revision.effort > 0)
    with WriteBehind() as behind:
        for done, ((chunk, square), (values, valid)) in enumerate(read_ahead(load, squares), 1):
            board.start(chunk)
            with watch("network"):
                context = tok.encoder_context(square, raster.width, raster.height)
                tokens = encode_square(tok, values, valid, context, square)
                board.place(chunk, square, tokens, values, valid, context)
            last = (square.col_end, square.row_end) == (chunk.col_end, chunk.row_end)
            if last:
                coded, mask = board.finish()
                if coded is not None:
                    with watch("search"):
                        coded = revision.of(coded, board)
                stored += 0 if coded is None else coded.size
                if probe is not None and coded is not None:
                    with watch("balance"):
                        probe.add(chunk, coded, board.values, board.valid)

                def write(at: Window = chunk, t: Tokens | None = coded, m: Mask | None = mask) -> None:
                    with watch("write"):
                        writer.write_chunk(0, 0, at.row // span, at.col // span, t, m)

                behind.submit(write)
            if progress is not None:
                progress(done, len(squares))
    writer.set_class_sets(0, [pack_set(board.classes)])
    return stored


def encode_square(
    tok: Tokenizer, values: npt.NDArray[np.float32], valid: Mask, context: Window, square: Window
) -> Tokens:
    """Encode one square that was read with its context; return the tokens of the square alone."""
    patch = tok.patch
    rows, cols = square.relative_to(context).slices
    if not valid[:, rows, cols].any():
        shape = (padded_size(square.height, patch) // patch, padded_size(square.width, patch) // patch)
        return np.full(shape, neutral_token(tok.levels), np.int32)
    if not tok.modality.categorical:
        values = fill_invalid(values, valid, tok.modality.mean)
    values = reflect_to_patch(values, patch)
    tokens = tok.encode_context(torch.from_numpy(values)[None])[0].cpu().numpy()
    row, col = (square.row - context.row) // patch, (square.col - context.col) // patch
    return tokens[row : row + -(-square.height // patch), col : col + -(-square.width // patch)]


def reflect_to_patch(values: npt.NDArray[np.float32], patch: int) -> npt.NDArray[np.float32]:
    """Extend the last row and column by reflection up to a multiple of `patch`."""
    h, w = values.shape[1:]
    short = ((0, 0), (0, padded_size(h, patch) - h), (0, padded_size(w, patch) - w))
    return np.pad(values, short, mode="reflect") if any(map(any, short)) else values
