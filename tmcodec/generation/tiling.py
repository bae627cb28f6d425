"""Runs a generator over a large grid tile by tile, and writes token files as their chunks are finished.

Memory holds the tiles at work and one strip of the grid as high as a chunk and a tile, not the raster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from rasterio.warp import transform as warp

from tmcodec.codec.chunks import neutral_token
from tmcodec.codec.report import Stopwatch
from tmcodec.errors import ConditionError, TargetError
from tmcodec.generation.conditions import encoder_spec, image_inputs, sequence_inputs
from tmcodec.generation.decoding import MISSING, Plan, check_shown
from tmcodec.generation.engine import BATCH, Request, Stream, run
from tmcodec.generation.sampling import Sampling
from tmcodec.generation.sources import MapGrid, Source, some_valid
from tmcodec.generation.texts import write_texts
from tmcodec.generation.tiles import Strip, tile_count, tile_starts, tile_windows
from tmcodec.networks.generator.config import ModalitySpec
from tmcodec.networks.precision import inference
from tmcodec.rasters import Window
from tmcodec.rasters.crs import parse_crs
from tmcodec.rasters.gdal import GDAL_ERRORS
from tmcodec.rasters.windows import IDENTITY
from tmcodec.tokenfile import LayerMeta, TokenFileWriter

if TYPE_CHECKING:
    from tmcodec.generation.models import LoadedGenerator

Mask = npt.NDArray[np.bool_]
Progress = Callable[[int, int], None]
Coordinates = tuple[float, float]


@dataclass(frozen=True)
class TileJob:
    """What to generate for a whole grid.

    Attributes
    ----------
    loaded
        The generator.
    sources
        Conditions, all on the same pixels.
    plans
        Targets in their order.
    layers
        Their layers, in the same order.
    chained, samples, seed
        As for `generate`.
    overlap
        Tokens that neighbouring tiles share.
    coords
        (longitude, latitude) for all tiles, ``"auto"`` for the centre of each, or None.
    caption
        Text for all tiles, or None.
    batch_size
        Tiles at once where they do not depend on each other.
    """

    loaded: LoadedGenerator
    sources: Sequence[Source]
    plans: Sequence[Plan]
    layers: Sequence[LayerMeta]
    chained: bool
    samples: int
    seed: int
    overlap: int
    coords: Coordinates | str | None
    caption: str | None
    batch_size: int

    def __post_init__(self) -> None:
        if self.overlap and max(self.grid) > self.loaded.cfg.grid:
            for plan in self.plans:
                check_shown(plan.spec)
        taken = {source.modality for source in self.sources}
        for plan in self.plans:
            if plan.spec.modality in taken:
                raise TargetError(
                    f"{plan.spec.modality} is source and target; choose other layers with --layer, or targets"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of the whole raster."""
        place, patch = self.sources[0].map_grid, self.loaded.cfg.patch
        return -(-place.height // patch), -(-place.width // patch)

    def request(self, windows: Sequence[Window]) -> Request:
        """Return what to make of some tiles of one size; reads their conditions."""
        images = image_inputs(
            self.loaded, {s.modality: np.stack([s.tile(w) for w in windows]) for s in self.sources}
        )
        coords = tile_coordinates(self.coords, self.sources[0].map_grid, windows, self.loaded.cfg.patch)
        given = {"coords": coords, "caption": self.caption}
        some = {name: value for name, value in given.items() if value is not None}
        words = sequence_inputs(self.loaded, some, len(windows))
        grid = (windows[0].height, windows[0].width)
        count = len(windows)
        return Request(
            self.loaded.net, images, words, self.plans, self.chained, self.samples, count, grid
        )


class Tiler:
    """Goes over the tiles and hands finished chunks to the writers, one a sample."""

    def __init__(self, job: TileJob, writers: Sequence[TokenFileWriter], watch: Stopwatch) -> None:
        self.job, self.writers, self.watch = job, writers, watch
        self.meta = job.layers[0]
        self.grid = job.grid
        self.strips = [Strip(job.samples, self.meta.cols) for _ in job.plans]
        self.waiting: list[Window] = []
        self.next_chunk = 0
        self.tokens = 0

    def run(self, progress: Progress | None) -> int:
        """Generate everything; return the number of tokens that one sample of all targets has."""
        tile, overlap, done = self.job.loaded.cfg.grid, self.job.overlap, 0
        rows = tile_windows(*self.grid, tile, overlap)
        # Where the next row of tiles begins; after the last one nothing is needed any more.
        following = islice(chain(tile_starts(self.grid[0], tile, overlap), [self.grid[0]]), 1, None)
        for row, end in zip(rows, following, strict=True):
            for window in row:
                self.add(window)
                done += 1
                if progress is not None:
                    progress(done, tile_count(*self.grid, tile, overlap))
            self.work()
            self.flush(end)
        return self.tokens

    # ----------------------------------------------------------------- tiles

    def add(self, window: Window) -> None:
        """Take the next tile; run those that wait first, where it depends on them."""
        if any(window.intersect(other) for other in self.waiting):
            self.work()
        if not self._anything(window):
            return  # its tokens stay missing, and `flush` writes neutral ones
        fresh = all(bool((strip.read(window) == MISSING).all()) for strip in self.strips)
        if self.waiting and not fresh:
            self.work()
        self.waiting.append(window)
        if not fresh or len(self.waiting) >= self._at_once():
            self.work()

    def work(self) -> None:
        """Run the tiles that wait, as one batch."""
        windows, self.waiting = self.waiting, []
        if not windows:
            return
        with inference(self.job.loaded.device):
            with self.watch("read"):
                request, known = self.job.request(windows), self._known(windows)
            with self.watch("network"):
                streams = [Stream(self.job.seed, window.row, window.col) for window in windows]
                made = run(request, streams, known)
        for strip, plan in zip(self.strips, self.job.plans, strict=True):
            tokens = made[plan.spec.modality].tokens.to("cpu", torch.int32).numpy()
            for index, window in enumerate(windows):
                strip.place(window, tokens[:, index])

    def _at_once(self) -> int:
        return max(1, min(self.job.batch_size, BATCH // self.job.samples))

    def _known(self, windows: list[Window]) -> dict[str, torch.Tensor]:
        """Return the settled tokens of each target, ``(tiles * samples, rows * cols)``.

        Tiles without overlap may share tokens at the end of a row or column; a target that the encoder does
        not take is made anew there, and `Strip.place` keeps what came first.
        """
        found = {}
        for strip, plan in zip(self.strips, self.job.plans, strict=True):
            tokens = np.stack([strip.read(window) for window in windows]).reshape(
                len(windows) * self.job.samples, -1
            )
            if not plan.spec.encoder:
                tokens = np.full_like(tokens, MISSING)
            found[plan.spec.modality] = torch.from_numpy(tokens).to(self.job.loaded.device, torch.int64)
        return found

    # ----------------------------------------------------------------- pixels

    def valid(self, window: Window) -> Mask | None:
        """Return which pixels ``(h, w)`` are valid in all sources, None where all are."""
        masks = [mask for mask in (source.valid(window) for source in self.job.sources) if mask is not None]
        return np.logical_and.reduce(masks) if masks else None

    def _anything(self, window: Window) -> bool:
        mask = self.valid(window)
        return mask is None or bool(mask.any())

    # ----------------------------------------------------------------- chunks

    def flush(self, row: int) -> None:
        """Write the rows of chunks that end before token row `row`."""
        chunk = self.meta.chunk
        while self.next_chunk * chunk < self.grid[0]:
            top = self.next_chunk * chunk
            bottom = min(top + chunk, self.grid[0])
            if bottom > row:
                return
            with self.watch("write"):
                for number, left in enumerate(range(0, self.grid[1], chunk)):
                    width = min(chunk, self.grid[1] - left)
                    self._write(number, Window(left, top, width, bottom - top))
            self.next_chunk += 1
            for strip in self.strips:
                strip.drop(bottom)

    def _write(self, number: int, window: Window) -> None:
        """Write one chunk of every target and sample."""
        mask = self.valid(window)
        nothing = mask is not None and not mask.any()
        planes = None if mask is None or mask.all() else mask[None]
        for index, (strip, layer) in enumerate(zip(self.strips, self.job.layers, strict=True)):
            tokens = strip.read(window).copy()
            gone = tokens == MISSING
            if mask is not None:
                gone |= ~some_valid(mask, layer.patch)
            tokens[gone] = neutral_token(layer.levels)
            self.tokens += 0 if nothing else tokens[0].size
            for writer, sample in zip(self.writers, tokens, strict=True):
                writer.write_chunk(index, 0, self.next_chunk, number, None if nothing else sample, planes)


def write_tile_texts(job: TileJob, specs: Sequence[ModalitySpec], sampling: Sampling) -> dict[str, str]:
    """Write coordinates and captions of the tile in the middle, from the sources alone; first sample."""
    (rows, cols), tile = job.grid, job.loaded.cfg.grid
    height, width = min(rows, tile), min(cols, tile)
    window = Window((cols - width) // 2, (rows - height) // 2, width, height)
    with inference(job.loaded.device):
        request = replace(job.request([window]), plans=(), samples=1)
        streams = [Stream(job.seed, window.row, window.col)]
        texts = write_texts(job.loaded, request, specs, sampling, streams, {})
    return {name: text[0][0] for name, text in texts.items()}


def tile_coordinates(
    coords: Coordinates | str | None, grid: MapGrid, windows: Sequence[Window], patch: int
) -> list[Coordinates | None] | None:
    """Return (longitude, latitude) of each tile, None for tiles without; None where there are none at all.

    Raises
    ------
    ConditionError
        If `coords` is another text than ``"auto"``.
    """
    if coords is None:
        return None
    if not isinstance(coords, str):
        return [coords] * len(windows)
    if coords != "auto":
        raise ConditionError(f"coords {coords!r}; give auto, or longitude and latitude")
    return None if grid.crs is None else [centre(grid, window, patch) for window in windows]


def centre(grid: MapGrid, window: Window, patch: int) -> Coordinates | None:
    """Return (longitude, latitude) of the centre of a window in tokens; None where the CRS has none."""
    col = (window.col * patch + min(window.col_end * patch, grid.width)) / 2
    row = (window.row * patch + min(window.row_end * patch, grid.height)) / 2
    a, b, c, d, e, f = grid.transform or IDENTITY
    x, y = a * col + b * row + c, d * col + e * row + f
    try:
        lon, lat = warp(parse_crs(grid.crs or ""), "EPSG:4326", [x], [y])[:2]
    except GDAL_ERRORS:  # a local CRS, without a place on the globe, or a place outside the projection
        return None
    inside = -180 <= lon[0] <= 180 and -90 <= lat[0] <= 90
    return (float(lon[0]), float(lat[0])) if inside else None


def usable_coordinates(
    loaded: LoadedGenerator, coords: Coordinates | str | None, sources: Sequence[Source]
) -> Coordinates | str | None:
    """Return the coordinates to use: none for ``"auto"`` where the generator does not take any.

    Raises
    ------
    VocabularyError, ConditionError, MissingDependencyError
        If coordinates were given and cannot be used; also for ``"auto"`` where the generator takes them and
        their words are not here: what it makes must not depend on what was fetched before.
    """
    if tile_coordinates(coords, sources[0].map_grid, [], loaded.cfg.patch) is None:
        return None
    if coords == "auto" and encoder_spec(loaded.cfg, "coords", "sequence") is None:
        return None
    # Whether there are words is no question of a place; tiles without one are shown none.
    sequence_inputs(loaded, {"coords": (0.0, 0.0) if isinstance(coords, str) else coords}, 1)
    return coords
