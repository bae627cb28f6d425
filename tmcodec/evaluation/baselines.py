"""The baselines of one evaluation, each asked for a picture of at most a token file's size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tmcodec.errors import EvaluationError
from tmcodec.evaluation.blocks import (
    count_patterns,
    enlarge,
    from_codebook,
    from_patterns,
    kmeans,
    majority,
    patch_means,
    repeat,
    spectra,
)
from tmcodec.evaluation.codecs import CODECS, imagecodecs
from tmcodec.evaluation.report import EQUAL, Method
from tmcodec.evaluation.scenes import Scene
from tmcodec.evaluation.search import BlockSearch, ClassSearch, Found, PictureSearch
from tmcodec.modalities import Modality

Float = npt.NDArray[np.float32]

BASELINES = (*CODECS, "blocks", "kmeans")
"""Names as the command line takes them."""

CURVE = (2.0, 4.0)
"""Multiples of the token file's size at which codecs are also tried, for the rate-distortion plot."""

MOST_SPECTRA = 2**21
"""Mean spectra of training patches that are kept: 100 MB of twelve bands. A chip of 264 pixels has 4,400."""


class Search(Protocol):
    """What `tmcodec.evaluation.search` offers."""

    def best(self, size: int, free_headers: bool = False) -> Found | None:
        """Return the best picture of at most `size` bytes."""
        ...


@dataclass(frozen=True)
class Floor:
    """A codebook learnt from training rasters: mean spectra, or class patterns."""

    book: npt.NDArray[np.generic]


def check_baselines(names: Sequence[str], with_training: bool) -> tuple[str, ...]:
    """Return the baselines to compute, in the order of reports; ``none`` is none, k-means needs training.

    Raises
    ------
    EvaluationError
        If a name is unknown.
    MissingDependencyError
        If imagecodecs is needed and missing.
    """
    wanted = {n for n in names if n != "none"}
    unknown = wanted - set(BASELINES)
    if unknown:
        raise EvaluationError(f"unknown baseline {min(unknown)!r}; choose of {', '.join(BASELINES)}, or none")
    if wanted & {"jxl", "avif", "webp"}:
        imagecodecs()
    return tuple(n for n in BASELINES if n in wanted and (n != "kmeans" or with_training))


def make_searches(scene: Scene, modality: Modality, names: Sequence[str]) -> dict[str, Search]:
    """Return a search for each baseline that has files; class maps go through lossless modes only."""
    found: dict[str, Search] = {}
    for name in names:
        if name in CODECS:
            codec = CODECS[name]
            if not modality.categorical:
                found[name] = PictureSearch(scene, modality, codec)
            elif codec.pack_exactly is not None:
                found[name] = ClassSearch(scene, modality, codec.pack_exactly)
        elif name == "blocks" and not modality.categorical:
            found[name] = BlockSearch(scene, modality)
    return found


def baseline_methods(modality: Modality, names: Sequence[str], tokenizer: str) -> list[Method]:
    """Return the methods of all baselines at one tokenizer's file sizes."""
    titles = {name: codec.title for name, codec in CODECS.items()} | {"blocks": "block means"}
    methods = []

    def add(name: str, title: str, kind: str, factor: float = EQUAL, headers: str = "counted") -> None:
        mark = "" if headers == "counted" else f"-{headers}"
        times = "" if factor == EQUAL else f"x{factor:g}"
        key = f"{name}{mark}{times}/{tokenizer}"
        methods.append(Method(key, title, kind, tokenizer, name, 0, factor, headers))

    for name in names:
        if name in CODECS and not (modality.categorical and CODECS[name].pack_exactly is None):
            add(name, titles[name], "codec")
            add(name, f"{titles[name]}, headers free", "codec", headers="free")
            for factor in CURVE:
                add(name, titles[name], "codec", factor)
        elif name == "blocks":
            if not modality.categorical:
                add(name, "block means, 8 bits", "codec")
            unit = "majority" if modality.categorical else "means"
            add(name, f"{unit} of 16 x 16, unquantized", "floor", headers="none")
        elif name == "kmeans":
            add(name, "common patterns" if modality.categorical else "k-means", "floor", headers="none")
    return methods


class Lessons:
    """What codebooks are learnt from, gathered raster by raster: mean spectra, or counts of class patterns.

    Parameters
    ----------
    modality
        Row of the table.
    most
        Spectra that are kept; of more, an even sample is, drawn with a fixed seed. `kmeans` draws far fewer.
    """

    def __init__(self, modality: Modality, most: int = MOST_SPECTRA) -> None:
        self.modality, self.most = modality, most
        self.patterns: Counter[tuple[int, ...]] = Counter()
        self.spectra: list[Float] = []
        self._draws: list[npt.NDArray[np.float64]] = []
        self._rng = np.random.default_rng(0)

    def add(self, scene: Scene) -> None:
        """Take what is needed of a training raster."""
        if self.modality.categorical:
            ids = scene.filled[0].round().astype(np.uint8)
            self.patterns.update(count_patterns(ids, len(self.modality.classes)))
            return
        self.spectra.append(spectra(scene.filled, scene.valid))
        self._draws.append(self._rng.random(len(self.spectra[-1])))
        if sum(map(len, self.spectra)) > 2 * self.most:
            self._thin()

    def learn(self, count: int) -> Floor | None:
        """Return a codebook of as many entries as there are tokens; None without a whole patch."""
        if self.modality.categorical:
            book = np.array([p for p, _ in self.patterns.most_common(count)], np.uint8)
            return Floor(book) if len(book) else None
        if sum(map(len, self.spectra)) > self.most:
            self._thin()
        points = np.concatenate(self.spectra) if self.spectra else np.empty((0, 1), np.float32)
        return Floor(kmeans(points, count)) if len(points) else None

    def _thin(self) -> None:
        """Keep the spectra with the smallest draws, in their order: each has the same chance at any time."""
        points, draws = np.concatenate(self.spectra), np.concatenate(self._draws)
        kept = np.sort(np.argpartition(draws, self.most)[: self.most])
        self.spectra, self._draws = [points[kept]], [draws[kept]]


def floor_picture(scene: Scene, modality: Modality, floor: Floor) -> Float:
    """Return the picture that a codebook gives."""
    if modality.categorical:
        ids = scene.filled[0].round().astype(np.uint8)
        return from_patterns(ids, floor.book.astype(np.uint8), len(modality.classes))[None].astype(np.float32)
    return from_codebook(scene.filled, floor.book.astype(np.float32))


def unquantized_blocks(scene: Scene, modality: Modality) -> Float:
    """Return what 16x16 means, or majorities, would give at no rate that a file could have."""
    if modality.categorical:
        ids = scene.filled[0].round().astype(np.uint8)
        return repeat(majority(ids, 16, len(modality.classes)), 16, ids.shape)[None].astype(np.float32)
    return enlarge(patch_means(scene.filled), scene.values.shape)


def codebook_bytes(tokens: int, codebook: int) -> int:
    """Return the bytes of so many tokens at equal lengths, without any header."""
    return math.ceil(tokens * math.log2(codebook) / 8)
