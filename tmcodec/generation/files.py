"""Token files and rasters in, token files or GeoTIFFs of other modalities out, on the same map grid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmcodec.codec.decode import MAX_PIXELS, decode
from tmcodec.codec.encode import encode
from tmcodec.codec.report import Stopwatch
from tmcodec.errors import (
    LayerNotFoundError,
    LimitExceededError,
    MissingDependencyError,
    VocabularyError,
)
from tmcodec.generation.conditions import check_taken, encoder_spec, sequence_inputs
from tmcodec.generation.ensemble import write_spread
from tmcodec.generation.outputs import Outputs, plan_outputs, staging, target_layer
from tmcodec.generation.settings import Settings
from tmcodec.generation.sources import (
    LayerSource,
    PixelSource,
    Source,
    check_sources,
    is_token_file,
    open_layers,
    open_pixels,
    split_modality,
)
from tmcodec.generation.tiles import OVERLAP
from tmcodec.generation.tiling import Coordinates, Progress, TileJob, Tiler, tile_coordinates
from tmcodec.generation.tokenizers import tokenizer_of
from tmcodec.rasters import Window
from tmcodec.tokenfile import FileMeta, TokenFileWriter

if TYPE_CHECKING:
    from tmcodec.codec.tokenizer import Tokenizer
    from tmcodec.generation.models import LoadedGenerator

Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class GenerateReport:
    """Result of `generate_files`.

    Attributes
    ----------
    paths
        Files written.
    generator
        Name.
    sources, targets
        Modalities.
    width, height
        Of the rasters, in pixels.
    tokens
        Tokens generated for one sample of all targets, those of empty chunks left out.
    samples, seed
        As asked for.
    seconds, timings
        Wall clock, and the share of each stage.
    """

    paths: tuple[str, ...]
    generator: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    width: int
    height: int
    tokens: int
    samples: int
    seed: int
    seconds: float
    timings: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return asdict(self)


def generate_files(
    loaded: LoadedGenerator | str,
    srcs: Sources,
    out: str | os.PathLike[str],
    targets: Sequence[str],
    *,
    settings: Settings | None = None,
    format: str | None = None,
    seed: int = 0,
    coords: Coordinates | str | None = None,
    steps: int = 1,
    overlap: int = OVERLAP,
    layers: Sequence[str] = (),
    time: int = 0,
    s2_offset: str = "auto",
    scale: float | None = None,
    tokenizers: Sequence[Tokenizer] = (),
    batch_size: int = 16,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
    progress: Progress | None = None,
    device: str = "auto",
) -> GenerateReport:
    """Generate modalities from token files and rasters.

    Large rasters go in tiles of the generator's grid, streamed. The targets have the sources' CRS,
    transform and size; their pixels are valid where those of all sources are.

    Parameters
    ----------
    loaded
        A generator, or the name or file of one.
    srcs
        Token files, of which all layers are taken, and rasters, on the same pixels. ``"S2L2A=scene.tif"``
        says what a raster is where its bands do not. A raster goes in as pixels where the generator has an
        embedding for them, else it is encoded first.
    out
        A token file; a GeoTIFF; or a folder for several. See `format`.
    targets
        Modalities, in order.
    settings
        How to generate; None takes the defaults.
    format
        ``"tmc"``: one token file with a layer for each target. ``"tif"``: a GeoTIFF each, `out` itself where
        there is one target, else `out` with the modality in its name, or in the folder `out`. None: by the
        suffix of `out`.
    seed
        Decides everything drawn, whatever the batch size.
    coords
        (longitude, latitude) as a condition; ``"auto"``: the centre of each tile, where the generator takes
        coordinates and the raster has a CRS; None: none.
    steps
        Sampling steps of the tokenizers' decoders, for rasters; stored as default in token files.
    overlap
        Tokens that neighbouring tiles share; those that one tile made are settled for the next. 0:
        independent tiles.
    layers
        Only these layers of token files.
    time
        Step of their time axis.
    s2_offset, scale
        Of rasters, as for `tmcodec.encode`.
    tokenizers
        Loaded tokenizers, instead of those found by the names that the generator says.
    batch_size
        Tiles at once where they do not depend on each other.
    max_pixels
        Cap on the size of the rasters.
    overwrite
        Replace existing files.
    progress
        Called with (tiles done, tiles in all).
    device
        For a generator given by name.

    Returns
    -------
    GenerateReport
        With several samples, the first one is what is written; two GeoTIFFs for each target have the middle
        and the spread of all, see `tmcodec.generation.ensemble`.

    Raises
    ------
    TmcodecError
        A subclass for each way to fail; then nothing is written.
    """
    watch, how = Stopwatch(), settings or Settings()
    names = [name.upper() for name in targets]
    outputs = plan_outputs(out, names, how.samples, format, overwrite)
    paths = [srcs] if isinstance(srcs, str | os.PathLike) else list(srcs)
    generator = _loaded(loaded, device)
    given = {tok.modality.name: tok for tok in tokenizers}
    how.plans(generator.cfg, names, [])  # refuses targets before any work is done
    with staging(outputs, overwrite) as stage, ExitStack() as stack:
        opener = Opener(generator, given, stage, stack, watch, layers, time, s2_offset, scale)
        sources = opener.open(paths)
        first = sources[0].map_grid
        if first.width * first.height > max_pixels:
            raise LimitExceededError(
                f"{first.width} x {first.height} pixels are more than the limit of {max_pixels}; "
                "raise max_pixels if you trust the file"
            )
        toks = {name: tokenizer_of(generator, name, given) for name in names}
        settled = _coordinates(generator, coords, sources)
        job = _tile_job(generator, sources, toks, how, seed, settled, steps, overlap, batch_size)
        drafts = [stage / f"sample{k}.tmc" for k in range(how.samples)]
        tokens = _write_tokens(job, drafts, watch, progress)
        where = {"steps": steps, "seed": seed, "device": str(generator.device), "max_pixels": max_pixels}
        with watch("decode"):
            _write_rasters(outputs, stage, drafts, toks, where)
        if outputs.tokens is not None:
            drafts[0].replace(stage / outputs.tokens.name)
    return GenerateReport(
        paths=tuple(map(str, outputs.paths)),
        generator=generator.name,
        sources=tuple(source.modality for source in sources),
        targets=tuple(names),
        width=first.width,
        height=first.height,
        tokens=tokens,
        samples=how.samples,
        seed=seed,
        seconds=watch.seconds,
        timings=watch.timings,
    )


# --------------------------------------------------------------------------- in


@dataclass
class Opener:
    """Opens sources in one `ExitStack`; the attributes are parameters of `generate_files`."""

    loaded: LoadedGenerator
    given: Mapping[str, Tokenizer]
    stage: Path
    stack: ExitStack
    watch: Stopwatch
    layers: Sequence[str]
    time: int
    s2_offset: str
    scale: float | None

    def open(self, paths: Sequence[str | os.PathLike[str]]) -> list[Source]:
        """Open and check all sources.

        Raises
        ------
        TmcodecError
        """
        sources: list[Source] = []
        for path in paths:
            file, modality = split_modality(path)
            sources += self._layers(file) if is_token_file(file) else [self._raster(file, modality)]
        check_sources(sources)
        found = {source.layer for source in sources if isinstance(source, LayerSource)}
        missing = [name for name in self.layers if name not in found]
        if missing:
            known = ", ".join(sorted(found)) or "none"
            raise LayerNotFoundError(f"no source has a layer {missing[0]!r}; they have {known}")
        return sources

    def _layers(self, path: str) -> list[LayerSource]:
        name = Path(path).name
        return open_layers(self.loaded, path, self.stack, name=name, layers=self.layers, time=self.time)

    def _raster(self, path: str, modality: str | None) -> Source:
        """Open a raster as pixels where the generator takes them, else encode it."""
        name = Path(path).name
        raster = open_pixels(path, modality, self.stack, s2_offset=self.s2_offset, scale=self.scale)
        found = raster.modality.name
        if encoder_spec(self.loaded.cfg, found, "pixels") is not None:
            return PixelSource(name, raster, self.loaded.cfg.patch)
        check_taken(self.loaded.cfg, found)
        draft = self.stage / f"source-{found}.tmc"
        with self.watch("encode"):
            encode(
                path, draft, modality=found, tokenizer=tokenizer_of(self.loaded, found, self.given),
                s2_offset=self.s2_offset, scale=self.scale, balance=False, overwrite=True,
            )  # fmt: skip
        return open_layers(self.loaded, draft, self.stack, name=name)[0]


def _coordinates(
    loaded: LoadedGenerator, coords: Coordinates | str | None, sources: Sequence[Source]
) -> Coordinates | str | None:
    """Return the coordinates to use: none for ``"auto"`` where the generator has no words for them.

    Raises
    ------
    VocabularyError, ConditionError
        If coordinates were given and cannot be used.
    """
    if coords is None:
        return None
    pairs = tile_coordinates(coords, sources[0].map_grid, [Window(0, 0, 1, 1)], loaded.cfg.patch)
    if pairs is None:
        return None
    try:
        sequence_inputs(loaded, {"coords": pairs}, 1)
    except (VocabularyError, MissingDependencyError):
        if coords == "auto":
            return None
        raise
    return coords


# --------------------------------------------------------------------------- out


def _tile_job(
    loaded: LoadedGenerator,
    sources: Sequence[Source],
    toks: Mapping[str, Tokenizer],
    how: Settings,
    seed: int,
    coords: Coordinates | str | None,
    steps: int,
    overlap: int,
    batch_size: int,
) -> TileJob:
    """Put everything together that the tiles need."""
    conditions = [source.modality for source in sources] + (["coords"] if coords is not None else [])
    plans = how.plans(loaded.cfg, list(toks), conditions)
    masked = any(source.masked for source in sources)
    tags = provenance(loaded, sources, how, coords, overlap)
    metas = [
        target_layer(
            plan.spec.modality, toks[plan.spec.modality], sources[0], masked, steps, seed,
            {**tags, "TMCODEC_DECODING_STEPS": str(plan.steps)},
        )
        for plan in plans
    ]  # fmt: skip
    return TileJob(
        loaded, sources, plans, metas, how.chained, how.samples, seed, overlap, coords, batch_size
    )


def provenance(
    loaded: LoadedGenerator,
    sources: Sequence[Source],
    how: Settings,
    coords: Coordinates | str | None,
    overlap: int,
) -> dict[str, str]:
    """Return tags that say that a layer was generated, by what, from what, and how."""
    tags = {
        "TMCODEC_GENERATED": "yes",
        "TMCODEC_GENERATOR": loaded.name,
        "TMCODEC_GENERATOR_SHA256": loaded.sha256.hex(),
        "TMCODEC_GENERATED_FROM": " ".join(source.provenance for source in sources),
        "TMCODEC_ORDER": how.order,
        "TMCODEC_SCHEDULE": f"{how.schedule} {how.token_schedule or 'default'}",
        "TMCODEC_SAMPLING": how.sampling.describe(),
        "TMCODEC_OVERLAP": str(overlap),
    }
    if how.guidance is not None:
        tags["TMCODEC_GUIDANCE"] = str(how.guidance)
    if coords is not None:
        tags["TMCODEC_COORDS"] = coords if isinstance(coords, str) else f"{coords[0]:g} {coords[1]:g}"
    return tags


def _write_tokens(
    job: TileJob, drafts: Sequence[Path], watch: Stopwatch, progress: Progress | None
) -> int:
    """Generate all tiles and write a token file for each sample; return the tokens of one."""
    with ExitStack() as stack:
        writers = [stack.enter_context(TokenFileWriter(path, FileMeta(tuple(job.layers)))) for path in drafts]
        return Tiler(job, writers, watch).run(progress)


def _write_rasters(
    outputs: Outputs,
    stage: Path,
    drafts: Sequence[Path],
    toks: Mapping[str, Tokenizer],
    where: Mapping[str, Any],
) -> None:
    """Decode the first sample, and middle and spread of all."""
    for name, path in outputs.rasters.items():
        decode(drafts[0], stage / path.name, layer=name, tokenizer=toks[name], **where)
    for name, (middle, spread) in outputs.spread.items():
        targets = (stage / middle.name, stage / spread.name)
        write_spread(drafts, name, targets, toks[name], batch_size=16, **where)


def _loaded(loaded: LoadedGenerator | str, device: str) -> LoadedGenerator:
    if not isinstance(loaded, str):
        return loaded
    from tmcodec.generation.models import load_generator

    return load_generator(loaded, device)
