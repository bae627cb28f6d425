"""Embeddings of files for retrieval and few-shot classification, and how well nearest neighbours fare.

A vector is the mean over places of the encoder's last layer, for a whole file or each tile of it. The
evaluations are plain cosine geometry: no classifier is trained.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from tmcodec.atomic import atomic_path, check_target
from tmcodec.errors import ConditionError, EvaluationError
from tmcodec.rasters.windows import Window
from tmcodec.tokenfile import MAX_PIXELS

if TYPE_CHECKING:
    from tmcodec.generation.models import LoadedGenerator
    from tmcodec.generation.sources import Source

_T = TypeVar("_T")
Vectors = npt.NDArray[np.float32]
BATCH = 16
"""Tiles that go through the encoder at once."""

Path_ = str | os.PathLike[str]


@dataclass(frozen=True)
class Embeddings:
    """Vectors with names.

    Attributes
    ----------
    vectors
        float32 ``(n, D)``.
    names
        Of each vector: the file, and for tiles ``#col,row`` of the first token.
    model
        Name of the generator.
    empty
        Files without a valid pixel, which have no vector.
    """

    vectors: Vectors
    names: tuple[str, ...]
    model: str
    empty: tuple[str, ...] = ()

    def save(self, path: Path_, overwrite: bool = False) -> None:
        """Write ``.npz`` (``vectors``, ``names``, ``model``) or ``.npy`` (vectors alone).

        Raises
        ------
        TargetExistsError, TargetFolderError
        EvaluationError
            If the suffix is another.
        """
        check_embeddings(path, overwrite)
        with atomic_path(path, overwrite) as temporary, open(temporary, "wb") as file:
            if Path(path).suffix == ".npy":
                np.save(file, self.vectors, allow_pickle=False)
            else:
                np.savez(file, vectors=self.vectors, names=np.array(self.names), model=np.array(self.model))


def check_embeddings(path: Path_, overwrite: bool) -> None:
    """Refuse what `Embeddings.save` cannot write, before any work is done for it.

    Raises
    ------
    TargetExistsError, TargetFolderError
    EvaluationError
        If the suffix is neither .npz nor .npy.
    """
    if Path(path).suffix not in (".npz", ".npy"):
        raise EvaluationError(f"{os.fspath(path)}: embeddings go to .npz or .npy")
    check_target(path, overwrite)


def embed_files(
    sources: Sequence[Path_],
    model: LoadedGenerator | str = "mini-any2any-v1",
    *,
    per: str = "file",
    layer: int = -1,
    layers: Sequence[str] = (),
    time: int = 0,
    s2_offset: str = "auto",
    scale: float | None = None,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> Embeddings:
    """Embed token files (all layers together) and rasters, tile by tile of the generator's grid.

    A file without any valid pixel has no vector; its name is among `Embeddings.empty`.

    Parameters
    ----------
    sources
        Files; ``"S2L2A=scene.tif"`` says what a raster is. Each is embedded by itself.
    model
        A loaded generator, or what `tmcodec.load_generator` takes.
    per
        ``"file"``: one vector each, the mean over all visible places, each counted once; ``"tile"``: one a
        tile, of which the last of a row or column is moved inwards.
    layer
        Block whose output is taken, from 0, or from the end.
    layers, time
        Layers of token files to take, all by default, and their time step.
    s2_offset, scale
        Of rasters, as `tmcodec.encode`'s.
    device
        As `tmcodec.load_generator`'s.
    max_pixels
        Cap on the size of each raster.
    progress
        Called with the number of files done, and of all.

    Raises
    ------
    ConditionError
        If there is nothing to embed, no file has a valid pixel, or `layer` is not there.
    TmcodecError
        A subclass for each other way to fail.
    """
    from tmcodec.generation.models import load_generator

    if per not in ("file", "tile"):
        raise ConditionError(f"per {per!r}; use file or tile")
    if not sources:
        raise ConditionError("no files to embed; give token files or rasters")
    loaded = load_generator(model, device) if isinstance(model, str) else model
    depth = loaded.cfg.encoder_depth
    if not -depth <= layer < depth:
        raise ConditionError(f"layer {layer}; the encoder has 0..{depth - 1}")
    vectors: list[Vectors] = []
    names: list[str] = []
    empty: list[str] = []
    for done, source in enumerate(sources, 1):
        name = os.fspath(source)
        with ExitStack() as stack:
            opened = _open(loaded, source, stack, layers, time, s2_offset, scale, max_pixels)
            sums, counts, windows = _tiles(loaded, opened, layer, once=per == "file")
        if not windows:
            empty.append(name)
        elif per == "file":
            vectors.append((sums.sum(0) / counts.sum())[None].astype(np.float32))
            names.append(name)
        else:
            vectors.append((sums / counts[:, None]).astype(np.float32))
            names += [f"{name}#{w.col},{w.row}" for w in windows]
        if progress is not None:
            progress(done, len(sources))
    if not vectors:
        raise ConditionError(f"{empty[0]} has no valid pixel; nothing can be embedded")
    return Embeddings(np.concatenate(vectors), tuple(names), loaded.name, tuple(empty))


def _open(
    loaded: LoadedGenerator, source: Path_, stack: ExitStack, layers: Sequence[str], time: int,
    s2_offset: str, scale: float | None, max_pixels: int,
) -> list[Source]:  # fmt: skip
    """Open one file as conditions."""
    from tmcodec.codec.report import Stopwatch
    from tmcodec.generation.sources import Opener

    stage = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tmcodec-embed-")))
    opener = Opener(loaded, {}, stage, stack, Stopwatch(), layers, time, s2_offset, scale, max_pixels)
    return opener.open([source])


def _tiles(
    loaded: LoadedGenerator, sources: Sequence[Source], layer: int, once: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[Window]]:
    """Return the sum of embeddings of each tile that shows anything, the numbers of places, and the tiles.

    With `once` a place that an earlier tile had counts there alone.
    """
    from tmcodec.generation.tiles import tile_windows

    place, tile, patch = sources[0].map_grid, loaded.cfg.grid, loaded.cfg.patch
    rows, cols = -(-place.height // patch), -(-place.width // patch)
    sums, counts, windows = [], [], list[Window]()
    read = ((w, [s.tile(w) for s in sources]) for w in chain.from_iterable(tile_windows(rows, cols, tile, 0)))
    for batch in _batches((found for found in read if any(map(_shows, found[1]))), BATCH):
        part = [w for w, _ in batch]
        inputs = {s.modality: np.stack([tiles[i] for _, tiles in batch]) for i, s in enumerate(sources)}
        fresh = np.stack([_fresh(w, tile) if once else np.ones((w.height, w.width), np.bool_) for w in part])
        total, count = _summed(loaded, inputs, layer, fresh)
        shown = count > 0
        sums.append(total[shown])
        counts.append(count[shown])
        windows += [w for w, there in zip(part, shown, strict=True) if there]
    if not windows:
        return np.empty((0, 0)), np.empty(0), windows
    return np.concatenate(sums), np.concatenate(counts), windows


def _shows(tile: npt.NDArray[np.generic]) -> bool:
    """Tell whether a tile of a source has a patch with a valid pixel; the network need not see others."""
    from tmcodec.generation.decoding import MISSING

    return bool(np.isfinite(tile).any() if tile.dtype.kind == "f" else (tile != MISSING).any())


def _fresh(window: Window, tile: int) -> npt.NDArray[np.bool_]:
    """Return which places of a tile no earlier one had: the last of a row or column is moved inwards."""
    rows, cols = np.arange(window.row, window.row_end), np.arange(window.col, window.col_end)
    top, left = -(-window.row // tile) * tile, -(-window.col // tile) * tile
    return (rows >= top)[:, None] & (cols >= left)


def _summed(
    loaded: LoadedGenerator, inputs: dict[str, Any], layer: int, fresh: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return sums ``(B, D)`` over visible places of a layer, of those that are `fresh`, and their number."""
    import torch

    from tmcodec.generation.conditions import image_inputs
    from tmcodec.networks.precision import inference

    with inference(loaded.device):
        parts = [image.part() for image in image_inputs(loaded, inputs).values()]
        features, padding = loaded.net.features(parts)
        values = features[layer].double()
        counted = torch.from_numpy(fresh).flatten(1).repeat(1, len(parts))
        shown = counted if padding is None else counted & ~padding.cpu()
        total = (values.cpu() * shown[..., None]).sum(1)
        return total.numpy(), shown.sum(1).double().numpy()


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


# --------------------------------------------------------------------------- evaluation


def cosine(a: Vectors, b: Vectors) -> npt.NDArray[np.float64]:
    """Return the cosine of each row of ``(n, D)`` with each of ``(m, D)``: ``(n, m)``; 0 with a zero row."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a64, axis=1)[:, None] * np.linalg.norm(b64, axis=1)
    return np.divide(a64 @ b64.T, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def centred(vectors: Vectors) -> Vectors:
    """Return the vectors less their mean: a direction that all share says nothing."""
    return vectors - vectors.mean(0)


def knn_accuracy(vectors: Vectors, labels: Sequence[Any], k: int = 1) -> float:
    """Return the share of vectors whose label most of their `k` nearest others have, leaving each one out.

    Nearest is by cosine; of labels that are equally frequent the one with the nearer neighbours wins.

    Raises
    ------
    EvaluationError
        If there are not more than `k` vectors, or not one label each.
    """
    names, numbers = _labels(vectors, labels)
    if not 1 <= k < len(vectors):
        raise EvaluationError(f"k {k} of {len(vectors)} vectors; give 1 to {len(vectors) - 1}")
    near = cosine(vectors, vectors)
    np.fill_diagonal(near, -np.inf)
    order = np.argsort(-near, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(vectors), len(names)))
    # A vote is 1 and a little: less than 1 in all, and more for the nearer.
    weights = 1 + (k - np.arange(k)) / (k + 1) ** 2
    for place in range(k):
        votes[np.arange(len(vectors)), numbers[order[:, place]]] += weights[place]
    return float((votes.argmax(1) == numbers).mean())


def centroid_accuracy(
    train: Vectors, train_labels: Sequence[Any], test: Vectors, test_labels: Sequence[Any]
) -> float:
    """Return the share of test vectors nearest, by cosine, to the centroid of their own class.

    Raises
    ------
    EvaluationError
        If there is not one label a vector, or a test label is in no training vector.
    """
    names, numbers = _labels(train, train_labels)
    if len(test) != len(test_labels) or not len(test):
        raise EvaluationError(f"{len(test_labels)} labels for {len(test)} test vectors; give one each")
    unknown = sorted(set(map(str, test_labels)) - set(names))
    if unknown:
        raise EvaluationError(f"no training vector is labelled {unknown[0]!r}; give one of each class")
    centres = np.stack([train[numbers == i].mean(0) for i in range(len(names))])
    found = cosine(test, centres.astype(np.float32)).argmax(1)
    return float(np.mean([names[i] == str(label) for i, label in zip(found, test_labels, strict=True)]))


def few_shot_accuracy(
    vectors: Vectors, labels: Sequence[Any], shots: int, trials: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Return mean and standard deviation of `centroid_accuracy` over random choices of `shots` a class.

    What is not chosen is the test.

    Raises
    ------
    EvaluationError
        If a class has not more than `shots` vectors, or there is no trial.
    """
    names, numbers = _labels(vectors, labels)
    members = [np.flatnonzero(numbers == i) for i in range(len(names))]
    small = [name for name, own in zip(names, members, strict=True) if len(own) <= shots]
    if trials < 1:
        raise EvaluationError(f"{trials} trials; give one at least")
    if small or shots < 1:
        raise EvaluationError(f"{shots} shots need more vectors of {', '.join(small) or 'each class'}")
    rng, found = np.random.default_rng(seed), []
    for _ in range(trials):
        train = np.concatenate([rng.choice(own, shots, replace=False) for own in members])
        test = np.setdiff1d(np.arange(len(vectors)), train)
        found.append(centroid_accuracy(vectors[train], numbers[train], vectors[test], numbers[test]))
    return float(np.mean(found)), float(np.std(found))


def _labels(vectors: Vectors, labels: Sequence[Any]) -> tuple[list[str], npt.NDArray[np.intp]]:
    """Return the names of classes, and each vector's class."""
    if len(labels) != len(vectors) or not len(vectors):
        raise EvaluationError(f"{len(labels)} labels for {len(vectors)} vectors; give one each")
    names, numbers = np.unique([str(label) for label in labels], return_inverse=True)
    return list(map(str, names)), numbers
