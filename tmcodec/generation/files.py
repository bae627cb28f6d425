"""Token files and rasters in, token files or GeoTIFFs of other modalities out, on the same map grid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmcodec.codec.chunks import CHUNK, check_batch_size, chunk_of
from tmcodec.codec.decode import MAX_PIXELS, decode
from tmcodec.codec.report import Stopwatch
from tmcodec.errors import GenerationError, TargetError
from tmcodec.generation.decoding import Plan
from tmcodec.generation.ensemble import write_spread
from tmcodec.generation.outputs import Outputs, plan_outputs, staging, target_layer
from tmcodec.generation.settings import Settings, target_spec
from tmcodec.generation.sources import Opener, Source, split_modality
from tmcodec.generation.tiles import default_overlap
from tmcodec.generation.tiling import (
    Coordinates,
    Progress,
    TileJob,
    Tiler,
    usable_coordinates,
    write_tile_texts,
)
from tmcodec.generation.tokenizers import numbered, tokenizer_of
from tmcodec.modalities import get_modality
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
    texts
        Coordinates and captions by name, of the tile in the middle.
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
    texts: dict[str, str]
    seconds: float
    timings: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return asdict(self)


def generate_files(
    loaded: LoadedGenerator | str,
    srcs: Sources,
    out: str | os.PathLike[str] | None,
    targets: str | Sequence[str],
    *,
    texts: Sequence[str] = (),
    settings: Settings | None = None,
    format: str | None = None,
    seed: int = 0,
    coords: Coordinates | str | None = None,
    caption: str | None = None,
    steps: int = 1,
    overlap: int | None = None,
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
        embedding for them, else it is encoded first, to the encoder's own tokens.
    out
        A token file; a GeoTIFF; or a folder for several, which is made where its name ends in a slash. See
        `format`. None where there are only texts.
    targets
        Modality, or several, in order.
    texts
        ``"coords"`` and ``"caption"``: written from the tile in the middle, into the report.
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
    caption
        A text as a condition.
    steps
        Sampling steps of the tokenizers' decoders, for rasters; stored as default in token files.
    overlap
        Tokens that neighbouring tiles share; those that one tile made are settled for the next. 0:
        independent tiles. None: 4, or a third of a smaller tile.
    layers
        Only these layers of token files.
    time
        Step of their time axis.
    s2_offset, scale
        Of all rasters, as for `tmcodec.encode`.
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
    check_batch_size(batch_size)
    watch, how = Stopwatch(), settings or Settings()
    names, words = _targets(targets, out), list(texts)
    if not names and not words:
        raise TargetError("no target; name a modality, coords or caption")
    paths = [srcs] if isinstance(srcs, str | os.PathLike) else list(srcs)
    read = [split_modality(path)[0] for path in paths]
    outputs = plan_outputs(out if names else None, names, how.samples, format, overwrite, read)
    generator = _loaded(loaded, device)
    given = {tok.modality.name: tok for tok in tokenizers}
    specs = {name: target_spec(generator.cfg, name) for name in (*names, *words)}
    with staging(outputs, overwrite) as stage, ExitStack() as stack:
        opener = Opener(generator, given, stage, stack, watch, layers, time, s2_offset, scale, max_pixels)
        sources = opener.open(paths)
        first = sources[0].map_grid
        toks = {name: tokenizer_of(generator, name, given) for name in names}
        shared = default_overlap(generator.cfg.grid) if overlap is None else overlap
        settled = usable_coordinates(generator, coords, sources)
        job = _tile_job(generator, sources, toks, how, seed, (settled, caption), steps, shared, batch_size)
        drafts = [stage / f"sample{k}.tmc" for k in range(how.samples)]
        tokens = _write_tokens(job, drafts, watch, progress) if names else 0
        said = write_tile_texts(job, [specs[name] for name in words], how.sampling) if words else {}
        where = {"steps": steps, "seed": seed, "device": str(generator.device), "max_pixels": max_pixels}
        with watch("decode"):
            _write_rasters(outputs, stage, drafts, toks, where)
        if outputs.tokens is not None:
            drafts[0].replace(stage / outputs.tokens.name)
    return GenerateReport(
        paths=tuple(map(str, outputs.paths)),
        generator=generator.name,
        sources=tuple(source.modality for source in sources),
        targets=(*names, *words),
        width=first.width,
        height=first.height,
        tokens=tokens,
        samples=how.samples,
        seed=seed,
        texts=said,
        seconds=watch.seconds,
        timings=watch.timings,
    )


def _targets(targets: str | Sequence[str], out: str | os.PathLike[str] | None) -> list[str]:
    """Return the targets' names as the modality table has them."""
    names = [get_modality(name).name for name in ([targets] if isinstance(targets, str) else targets)]
    if names and out is None:
        raise GenerationError("no output for images; name a token file, a GeoTIFF or a folder")
    if len(set(names)) < len(names):
        raise TargetError(f"targets {', '.join(names)}; name each once")
    return names


# --------------------------------------------------------------------------- out


def _tile_job(
    loaded: LoadedGenerator,
    sources: Sequence[Source],
    toks: Mapping[str, Tokenizer],
    how: Settings,
    seed: int,
    words: tuple[Coordinates | str | None, str | None],
    steps: int,
    overlap: int,
    batch_size: int,
) -> TileJob:
    """Put everything together that the tiles need; `words` are coordinates and caption."""
    coords, caption = words
    given = [name for name, value in (("coords", coords), ("caption", caption)) if value is not None]
    conditions = [*(source.modality for source in sources), *given]
    plans = how.plans(loaded.cfg, list(toks), conditions, True, numbered(loaded), loaded.trust)
    how.check_drawn(plans)
    # The chunks of all targets are written together.
    chunk = min(map(chunk_of, toks.values()), default=CHUNK)
    tags = provenance(loaded, sources, how, words, overlap)
    metas = [
        target_layer(
            plan.spec.modality, toks[plan.spec.modality], sources, chunk, steps, seed,
            {**tags, **plan_tags(plan, index, how)},
        )
        for index, plan in enumerate(plans)
    ]  # fmt: skip
    return TileJob(
        loaded, sources, plans, metas, how.chained, how.samples, seed, overlap, coords, caption, batch_size
    )


def provenance(
    loaded: LoadedGenerator,
    sources: Sequence[Source],
    how: Settings,
    words: tuple[Coordinates | str | None, str | None],
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
    coords, caption = words
    if caption is not None:
        tags["TMCODEC_CAPTION"] = caption
    if coords is not None:
        tags["TMCODEC_COORDS"] = coords if isinstance(coords, str) else f"{coords[0]:g} {coords[1]:g}"
    return tags


def plan_tags(plan: Plan, index: int, how: Settings) -> dict[str, str]:
    """Return tags that say how one of the targets was made; `index` is its place among them."""
    tags = {"TMCODEC_DECODING_STEPS": str(plan.steps)}
    if index and how.chained and how.guidance is None:
        tags["TMCODEC_TRUST"] = f"{plan.trust:g}"
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
