"""`tmcodec.evaluate`: every scene through every tokenizer and baseline, then the report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tmcodec.codec.decode import decode_array
from tmcodec.codec.encode import encode
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.errors import EvaluationError, MissingDependencyError, TmcodecError
from tmcodec.evaluation.baselines import (
    BASELINES,
    Floor,
    Lessons,
    baseline_methods,
    check_baselines,
    codebook_bytes,
    floor_picture,
    make_searches,
    unquantized_blocks,
)
from tmcodec.evaluation.folder import check_apart, check_folder, report_folder
from tmcodec.evaluation.machine import machine, versions
from tmcodec.evaluation.measures import beyond_sigma, measure, score, torchmetrics_image
from tmcodec.evaluation.perception import NO_COMPOSITE, NO_WEIGHTS
from tmcodec.evaluation.report import EQUAL, Entry, Method, Report, SceneFacts
from tmcodec.evaluation.request import Job, check_steps, load_perception, load_tokenizers
from tmcodec.evaluation.scenes import MAX_PIXELS, Reading, Scene, find_rasters, read_scene, short_names
from tmcodec.evaluation.tiles import KEPT, Tile, add_picture, worst_tile
from tmcodec.evaluation.tokens import TokenCount
from tmcodec.fsq import codebook_size
from tmcodec.metrics import PEAKS
from tmcodec.modalities import get_modality
from tmcodec.texts import plural
from tmcodec.tokenfile import LayerMeta, TokenFile

Progress = Callable[[int, int], None]
PathLike = str | os.PathLike[str]
Float = npt.NDArray[np.float32]


def evaluate(
    data: PathLike | Sequence[PathLike],
    *,
    tokenizers: Sequence[str | Tokenizer] = (),
    modality: str | None = None,
    steps: Sequence[int] = (1,),
    baselines: Sequence[str] = BASELINES,
    train: Sequence[PathLike] = (),
    report: PathLike | None = None,
    overwrite: bool = False,
    checkpoints: Sequence[str] = (),
    lpips: PathLike | None = None,
    s2_offset: str = "auto",
    s2_offset_of: Sequence[tuple[str, str]] = (),
    scale: float | None = None,
    class_map: Mapping[int, int] | str | None = None,
    device: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    skip_bad: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Report:
    """Evaluate tokenizers of one modality on rasters, beside what one could use at the same file size.

    Parameters
    ----------
    data
        Folders (searched below, too) or files.
    tokenizers
        Names, weights files or loaded tokenizers; none takes the embedded one of `modality`.
    modality
        Needed where no tokenizer says it.
    steps
        Sampling steps, each a row of the report; class maps have one only.
    baselines
        Of ``jp2``, ``jxl``, ``avif``, ``webp``, ``blocks``, ``kmeans``; ``("none",)`` for none.
    train
        Folders that the k-means codebook is learnt from; without any it is left out.
    report
        Folder to write: ``report.json``, ``report.html`` and PNG plots. None writes nothing.
    overwrite
        Replace a folder that holds a report.
    checkpoints
        Weights of TerraMind's tokenizers: ``PATH`` for the only one, or ``NAME=PATH``.
    lpips
        Trunk weights for LPIPS, see `tmcodec.evaluation.perception.Perception`; None leaves it out.
    s2_offset, scale, class_map
        As for `tmcodec.encode`.
    s2_offset_of
        ``(pattern, "present" or "absent")`` for files whose names match, before `s2_offset`.
    device, batch_size, seed
        As for `tmcodec.encode` and `tmcodec.decode`.
    skip_bad
        Leave out rasters that cannot be used, and list them, instead of raising.
    max_pixels
        Cap on one raster; it is held in memory.
    progress
        Called with (scenes done, scenes in all).

    Returns
    -------
    Report

    Raises
    ------
    EvaluationError
        If something cannot be evaluated; the message names the raster.
    MissingDependencyError
        If a package of the extra ``evaluate`` is missing.
    TmcodecError
        As from `tmcodec.load_tokenizer`.
    """
    if report is not None:
        check_folder(report, overwrite)
    torchmetrics_image()
    folders = [data] if isinstance(data, str | os.PathLike) else list(data)
    paths = find_rasters(folders)
    if report is not None:
        check_apart(report, [*paths, *map(Path, train)])
    toks = load_tokenizers(tokenizers, modality, checkpoints, device)
    row = get_modality(toks[0].modality.name)
    row = replace(row, classes=toks[0].modality.classes)  # class 0 is a gap in some legends alone
    reading = Reading(row, s2_offset, tuple(s2_offset_of), scale, class_map, max_pixels)
    job = Job(
        toks, row, reading, check_steps(steps, row), check_baselines(baselines, bool(train)), device,
        batch_size, seed, load_perception(lpips, row),
    )
    learnt = find_rasters(train) if "kmeans" in job.baselines else []
    run = Run(job, skip_bad, short_names(paths), short_names([*paths, *learnt], suffix=True))
    if learnt:
        run.learn_floors(learnt)
    run.warm_up(paths)
    for done, path in enumerate(paths, 1):
        run.add(path)
        if progress is not None:
            progress(done, len(paths))
    settings = {
        "data": [Path(f).name for f in folders], "train": [Path(f).name for f in train],
        "steps": list(job.steps), "baselines": list(job.baselines), "seed": seed, "s2_offset": s2_offset,
        "s2_offset_of": [list(pair) for pair in s2_offset_of],
    }
    found = run.report(settings, lpips is None)
    if report is not None:
        with report_folder(report, overwrite) as folder:
            from tmcodec.evaluation.page import write_report

            write_report(folder, found, run.tiles, row)
    return found


@dataclass(frozen=True)
class Encoded:
    """One scene's token file by one tokenizer; `path` is there no longer than its temporary folder."""

    path: Path
    meta: LayerMeta
    file_bytes: int
    payload_bytes: int
    tokens: npt.NDArray[np.int32]
    seconds: float


class Run:
    """Collects what is found, scene by scene.

    Parameters
    ----------
    job, skip_bad
        What to do, and whether to go on without rasters that cannot be used.
    names, files
        What scenes and skipped files are called, by absolute path.
    """

    def __init__(
        self, job: Job, skip_bad: bool, names: Mapping[Path, str], files: Mapping[Path, str]
    ) -> None:
        self.job, self.skip_bad = job, skip_bad
        self.names, self.files = names, files
        self.methods = [
            Method(f"{t.name}@{s}", f"{t.name}, {plural(s, 'step')}", "tokenizer", t.name, steps=s)
            for t in job.tokenizers for s in job.steps
        ]
        for tok in job.tokenizers:
            self.methods += baseline_methods(job.modality, job.baselines, tok.name)
        self.scenes: list[SceneFacts] = []
        self.entries: list[Entry] = []
        self.skipped: dict[str, str] = {}
        self.notes: list[str] = []
        self.tiles: list[Tile] = []
        self.floors: dict[int, Floor] = {}
        self.counts = {t.name: TokenCount(t) for t in job.tokenizers}

    # ----------------------------------------------------------------------- before the scenes

    def learn_floors(self, paths: Sequence[Path]) -> None:
        """Learn a codebook for each size that the tokenizers have."""
        lessons = Lessons(self.job.modality)
        for path in paths:
            scene = self._read(path)
            if scene is not None:
                lessons.add(scene)
        for size in {codebook_size(t.levels) for t in self.job.tokenizers}:
            floor = lessons.learn(size)
            if floor is None:
                self.notes.append("k-means left out: no training raster has a whole valid patch")
            else:
                self.floors[size] = floor

    def warm_up(self, paths: Sequence[Path]) -> None:
        """Take a corner of the first usable raster there and back, so that no time has loading in it."""
        for path in paths:
            try:
                scene = read_scene(path, self.job.reading)
                height, width = (min(n, 64) for n in scene.values.shape[1:])
                with tempfile.TemporaryDirectory() as folder:
                    for number, tok in enumerate(self.job.tokenizers):
                        target = Path(folder) / f"{number}.tmc"
                        file = self._encode(scene, tok, target, (0, 0, width, height))
                        for steps in self.job.steps:
                            self._decode(file, tok, steps)
                return
            except TmcodecError:
                continue  # the loop over all scenes will say it

    # ----------------------------------------------------------------------- scenes

    def add(self, path: Path) -> None:
        """Evaluate one raster, or skip it."""
        scene = self._read(path)
        if scene is None:
            return
        try:
            files, entries, tile = self._tokenizers(scene)
        except MissingDependencyError:
            raise  # no raster is better
        except TmcodecError as err:
            self._bad(path, f"{path}: {err}", err)
            return
        modality = self.job.modality
        _, height, width = scene.values.shape
        sigma = None if modality.categorical else 100 * beyond_sigma(scene.values, scene.valid, modality)
        self.scenes.append(
            SceneFacts(scene.name, width, height, float(scene.valid.mean()), scene.raw_bytes, sigma)
        )
        self.entries += entries
        for name, file in files.items():
            self.counts[name].add(file.tokens, file.payload_bytes, file.file_bytes)
        searches = make_searches(scene, modality, self.job.baselines)
        for tok in self.job.tokenizers:
            for method in (m for m in self.methods if m.kind != "tokenizer" and m.tokenizer == tok.name):
                self._baseline_entry(scene, method, files[tok.name].file_bytes, searches, tile)
        self.tiles = sorted([*self.tiles, tile], key=lambda t: -t.error)[:KEPT]

    def _read(self, path: Path) -> Scene | None:
        try:
            return read_scene(path, self.job.reading, self.names.get(path.absolute()))
        except EvaluationError as err:
            self._bad(path, str(err), err)
            return None

    def _bad(self, path: Path, message: str, err: BaseException) -> None:
        if not self.skip_bad:
            raise EvaluationError(f"{message}; --skip-bad leaves such rasters out") from err
        self.skipped[self.files[path.absolute()]] = message.removeprefix(f"{path}: ")

    def _tokenizers(self, scene: Scene) -> tuple[dict[str, Encoded], list[Entry], Tile]:
        """Take a scene through all tokenizers; one picture at a time is in memory."""
        files, entries, tiles = {}, [], list[Tile]()
        with tempfile.TemporaryDirectory() as folder:
            for number, tok in enumerate(self.job.tokenizers):
                files[tok.name] = file = self._encode(scene, tok, Path(folder) / f"{number}.tmc", None)
                for steps in self.job.steps:
                    entries.append(self._tokenizer_entry(scene, tok, file, steps, tiles))
        return files, entries, tiles[0]

    def _encode(
        self, scene: Scene, tok: Tokenizer, file: Path, window: tuple[int, int, int, int] | None
    ) -> Encoded:
        """Encode to a real file."""
        reading = self.job.reading
        begin = time.perf_counter()
        done = encode(
            scene.path, file, modality=self.job.modality.name, tokenizer=tok, window=window,
            s2_offset=reading.offset_of(scene.path), scale=reading.scale, class_map=reading.class_map,
            batch_size=self.job.batch_size,
        )
        seconds = time.perf_counter() - begin
        with TokenFile.open(file) as opened:
            layer = opened[next(iter(opened))]
            tokens = layer.tokens()[~layer.empty()]
            return Encoded(file, layer.meta, done.file_bytes, layer.payload_bytes, tokens, seconds)

    def _decode(self, file: Encoded, tok: Tokenizer, steps: int) -> tuple[Float, float]:
        """Return the picture, physical units, and the seconds that it took."""
        job, begin = self.job, time.perf_counter()
        array, _ = decode_array(
            file.path, tokenizer=tok, steps=steps, seed=job.seed, batch_size=job.batch_size
        )
        values = array.astype(np.float32) * np.float32(file.meta.scale) + np.float32(file.meta.offset)
        return values, time.perf_counter() - begin

    def _tokenizer_entry(
        self, scene: Scene, tok: Tokenizer, file: Encoded, steps: int, tiles: list[Tile]
    ) -> Entry:
        """Decode and measure; the first picture decides which tile is shown of all."""
        job, key = self.job, f"{tok.name}@{steps}"
        values, seconds = self._decode(file, tok, steps)
        whole, bands = measure(scene.values, values, scene.valid, job.modality, job.perception)
        if not tiles:
            tiles.append(worst_tile(scene, values, job.modality))
        add_picture(tiles[0], key, values)
        return Entry(
            scene.name, key, None, file.file_bytes, file.payload_bytes, encode_seconds=file.seconds,
            decode_seconds=seconds, values=whole, bands=bands,
        )

    def _baseline_entry(
        self, scene: Scene, method: Method, token_bytes: int, searches: Mapping[str, Any], tile: Tile
    ) -> None:
        modality, entry = self.job.modality, Entry(scene.name, method.key)
        if method.headers == "none":
            values = self._floor(scene, method)
            if values is None:
                return
            size = self._floor_bytes(scene, method)
            entry = replace(entry, bytes=size, payload_bytes=size)
        else:
            limit = int(token_bytes * method.factor)
            entry = replace(entry, size_limit=limit)
            found = searches[method.baseline].best(limit, method.headers == "free")
            if found is None:
                self.entries.append(replace(entry, note=f"nothing fits {limit} bytes"))
                return
            values = found.values
            entry = replace(entry, bytes=found.bytes, forgiven_bytes=found.forgiven, setting=found.setting)
        values = scene.as_stored(values)
        if method.factor != EQUAL:  # a point of the rate-distortion plot
            found_score = score(scene.values, values, scene.valid, modality)
            self.entries.append(replace(entry, values=found_score))
            return
        whole, bands = measure(scene.values, values, scene.valid, modality, self.job.perception)
        self.entries.append(replace(entry, values=whole, bands=bands))
        add_picture(tile, method.key, values)

    def _floor(self, scene: Scene, method: Method) -> Float | None:
        if method.baseline == "blocks":
            return unquantized_blocks(scene, self.job.modality)
        floor = self.floors.get(self._codebook(method))
        return None if floor is None else floor_picture(scene, self.job.modality, floor)

    def _floor_bytes(self, scene: Scene, method: Method) -> int | None:
        if method.baseline == "blocks":
            return None
        tokens = -(-scene.values.shape[1] // 16) * -(-scene.values.shape[2] // 16)
        return codebook_bytes(tokens, self._codebook(method))

    def _codebook(self, method: Method) -> int:
        return next(codebook_size(t.levels) for t in self.job.tokenizers if t.name == method.tokenizer)

    # ----------------------------------------------------------------------- after the scenes

    def report(self, settings: dict[str, Any], no_weights: bool) -> Report:
        """Return everything found.

        Raises
        ------
        EvaluationError
            If no raster could be used.
        """
        if not self.scenes:
            reason = next(iter(self.skipped.values()), "no raster")
            raise EvaluationError(f"none of the rasters can be used (the first: {reason}); see --modality")
        row = self.job.modality
        if not row.categorical and self.job.perception is None:
            self.notes.append(f"LPIPS {NO_WEIGHTS if no_weights else NO_COMPOSITE}")
        if self.job.perception is not None:
            settings = {**settings, "lpips": self.job.perception.name}
        used = {e.method for e in self.entries}
        return Report(
            modality=row.name,
            units=row.units,
            peak=PEAKS.get(row.name),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            settings=settings,
            versions=versions(),
            machine=machine(str(self.job.tokenizers[0].device)),
            methods=tuple(m for m in self.methods if m.key in used),
            scenes=tuple(self.scenes),
            entries=tuple(self.entries),
            token_use=tuple(count.result() for count in self.counts.values()),
            skipped=self.skipped,
            notes=tuple(self.notes),
        )


