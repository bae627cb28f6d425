"""Batches of windows of token grids, each batch a function of the seed and its number alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from tmcodec.errors import ConfigError
from tmcodec.modalities import get_modality
from tmcodec.training.any2any.budgets import Budgets, Counts, draw_counts, draw_positions
from tmcodec.training.any2any.grids import Stack, TokenCorpus, TokenizerId, read_corpus
from tmcodec.training.monitors import check_validation
from tmcodec.training.resume import batches_taken

Part = dict[str, Tensor]
Batch = dict[str, Any]

PIXELS = "/pixels"
"""A mixture names the pixels of a modality so: ``S2L2A/pixels``."""


@dataclass(frozen=True)
class TokenSource:
    """Token files that windows are drawn from.

    Attributes
    ----------
    paths
        Files or folders.
    weight
        Share of the batches, relative to other sources.
    leave_out
        Modalities that are not read.
    """

    paths: list[str]
    weight: float = 1.0
    leave_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WindowSizes:
    """Sizes of windows in tokens.

    Attributes
    ----------
    side
        The transformer's own grid; smaller where a token grid is.
    smallest
        Least rows and columns of other sizes.
    others
        Chance of a batch of another size, rows and columns drawn evenly from `smallest` to `side`.
    """

    side: int = 14
    smallest: int = 6
    others: float = 0.1

    def check(self) -> None:
        """Raise ConfigError where a size is out of range."""
        if not 1 <= self.smallest <= self.side or not 0 <= self.others <= 1:
            raise ConfigError("data.window: smallest must lie in 1..side, others in 0..1")


class TokenBatches:
    """Batches by number.

    All samples of a batch have the same modalities, the same grid and the same numbers of shown and asked
    tokens, so that nothing is padded; places and positions differ. Accumulate several batches a step for
    more variety.

    Parameters
    ----------
    corpora, weights
        What to draw from, and how often.
    budgets, window
        See there.
    batch
        Samples.
    seed
        Decides everything.
    noise
        See `TokenData`.
    """

    def __init__(
        self,
        corpora: Sequence[TokenCorpus],
        weights: Sequence[float],
        budgets: Budgets,
        window: WindowSizes,
        batch: int,
        seed: int,
        noise: float = 0.0,
    ) -> None:
        self.budgets, self.window, self.batch, self.seed = budgets, window, batch, seed
        self.noise = noise
        self.kinds, chances = group_stacks(corpora, weights, window.side)
        self.chances = np.array(chances) / sum(chances)

    def __getitem__(self, number: int) -> Batch:
        """Return a batch: ``number``, ``grid`` (rows, cols), and ``inputs`` and ``targets`` by modality.

        A part has ``values`` (int64 ``(B, n)`` tokens; or float32 ``(B, C, h, w)`` normalised pixels, their
        name ending in ``/pixels``), ``positions`` int64 ``(B, n)`` row by row in the grid, and ``padding``
        bool ``(B, n)``, true where a token stands for no data.
        """
        rng = np.random.default_rng([self.seed, number])
        stacks = self.kinds[int(rng.choice(len(self.kinds), p=self.chances))]
        rows, cols = self._size(stacks, rng)
        places = [self._place(stacks, rows, cols, rng) for _ in range(self.batch)]
        first = stacks[0]
        names = [*first.modalities, *(m + PIXELS for m in sorted(first.pixels))]
        shown, asked = draw_counts(self.budgets, names, rows * cols, rng)
        batch: Batch = {
            "number": torch.tensor(number),
            "grid": torch.tensor([rows, cols]),
            "inputs": {},
            "targets": {},
        }
        for name, n_in, n_out in zip(names, shown.tolist(), asked.tolist(), strict=True):
            if n_in or n_out:
                self._add(batch, name, places, (rows, cols), (n_in, n_out), rng)
        own = np.random.default_rng([self.seed, number, 1])  # noise moves nothing else
        for name in sorted(batch["inputs"].keys() & batch["targets"].keys()) if self.noise else ():
            disturb(batch["inputs"][name]["values"], self.noise, own)
        return batch

    def _size(self, stacks: Sequence[Stack], rng: np.random.Generator) -> tuple[int, int]:
        """Draw the rows and columns of a batch, within the smallest grid of its kind."""
        most = [min(self.window.side, *(s.shape[axis] for s in stacks)) for axis in (1, 2)]
        if rng.random() >= self.window.others:
            return most[0], most[1]
        low = self.window.smallest
        rows, cols = (int(rng.integers(min(low, high), high + 1)) for high in most)
        return rows, cols

    @staticmethod
    def _place(
        stacks: Sequence[Stack], rows: int, cols: int, rng: np.random.Generator
    ) -> tuple[Stack, int, int, int]:
        """Draw a grid and the corner of a window in it; larger grids count for more."""
        sizes = np.array([float(np.prod(s.shape)) for s in stacks])
        stack = stacks[int(rng.choice(len(stacks), p=sizes / sizes.sum()))]
        count, height, width = stack.shape
        row, col = int(rng.integers(height - rows + 1)), int(rng.integers(width - cols + 1))
        return stack, int(rng.integers(count)), row, col

    def _add(
        self,
        batch: Batch,
        name: str,
        places: Sequence[tuple[Stack, int, int, int]],
        grid: tuple[int, int],
        counts: tuple[int, int],
        rng: np.random.Generator,
    ) -> None:
        """Cut a modality's windows and put what is shown and asked into a batch."""
        rows, cols = grid
        modality = name.removesuffix(PIXELS)
        where = [(s, i, slice(r, r + rows), slice(c, c + cols)) for s, i, r, c in places]
        tokens = np.stack([s.tokens[modality][i, r, c] for s, i, r, c in where]).reshape(len(where), -1)
        valid = np.stack([s.valid[modality][i, r, c] for s, i, r, c in where]).reshape(len(where), -1)
        shown, asked = draw_positions(valid, *counts, rng)
        if counts[0] and name != modality:
            pixels = np.stack([cut_pixels(s, modality, i, r, c) for s, i, r, c in where])
            batch["inputs"][name] = part_of(None, valid, shown) | {"values": torch.from_numpy(pixels)}
        elif counts[0]:
            batch["inputs"][name] = part_of(tokens, valid, shown)
        if counts[1]:
            batch["targets"][name] = part_of(tokens, valid, asked)


def part_of(tokens: npt.NDArray[np.integer] | None, valid: npt.NDArray[np.bool_], positions: Counts) -> Part:
    """Return positions, padding and, where given, the tokens at the positions."""
    part = {
        "positions": torch.from_numpy(positions),
        "padding": torch.from_numpy(~np.take_along_axis(valid, positions, 1)),
    }
    if tokens is not None:
        part["values"] = torch.from_numpy(np.take_along_axis(tokens, positions, 1).astype(np.int64))
    return part


def disturb(tokens: Tensor, most: float, rng: np.random.Generator) -> None:
    """Replace up to a share `most` of tokens ``(B, n)`` by others of the batch, in place."""
    values = tokens.numpy()
    wrong = rng.random(values.shape) < most * rng.random()
    values[wrong] = rng.permutation(values.ravel())[: int(wrong.sum())]


def cut_pixels(stack: Stack, modality: str, item: int, rows: slice, cols: slice) -> npt.NDArray[np.float32]:
    """Return the normalised pixels ``(C, h, w)`` of a window of tokens."""
    pixels, (_, height, _) = stack.pixels[modality], stack.shape
    patch = pixels.shape[2] // height
    window = pixels[item, :, rows.start * patch : rows.stop * patch, cols.start * patch : cols.stop * patch]
    row = get_modality(modality)
    mean, std = (np.array(s, np.float32)[:, None, None] for s in (row.mean, row.std))
    return np.asarray((window.astype(np.float32) - mean) / std)


def group_stacks(
    corpora: Sequence[TokenCorpus], weights: Sequence[float], side: int
) -> tuple[list[tuple[Stack, ...]], list[float]]:
    """Put stacks of the same modalities together, source by source; a kind's weight is its share of the
    source.

    Grids below `side` tokens are kinds of their own: a batch has one size, and a small one among many large
    would cut them all to its own.
    """
    kinds: list[tuple[Stack, ...]] = []
    chances: list[float] = []
    for corpus, weight in zip(corpora, weights, strict=True):
        found: dict[tuple[object, ...], list[Stack]] = {}
        for stack in corpus.stacks:
            size = min(stack.shape[1], side), min(stack.shape[2], side)
            found.setdefault((stack.modalities, tuple(sorted(stack.pixels)), size), []).append(stack)
        total = sum(s.shape[0] for s in corpus.stacks)
        for stacks in found.values():
            kinds.append(tuple(stacks))
            chances.append(weight * sum(s.shape[0] for s in stacks) / total)
    return kinds, chances


class BatchLoader:
    """Batches for one of several processes; `given` counts them over all epochs.

    Iterating gives the rest of the current epoch, so that a loader whose count was set goes on in its middle.
    `taken` is how many an epoch has; all `batches`, if nobody sets it.

    Parameters
    ----------
    source
        Batches by number.
    batches
        Of an epoch and process.
    rank, world
        Which of how many training processes this is.
    endless
        Whether epochs go on in the stream; else each sees the same batches, as validation wants.
    """

    def __init__(self, source: TokenBatches, batches: int, rank: int, world: int, endless: bool) -> None:
        self.source, self.batches, self.rank, self.world = source, batches, rank, world
        self.endless, self.given, self.taken = endless, 0, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        if not self.endless:
            self.given = 0
        last = (self.given // self.taken + 1) * self.taken
        for index in range(self.given, last):
            batch = self.source[index * self.world + self.rank]
            self.given += 1
            yield batch


class TokenData(LightningDataModule):
    """Token files to train with and to validate with.

    Parameters
    ----------
    train, val
        Sources, drawn by their weights. Validation batches are the same ones every time.
    budgets, window
        How much is shown and asked, of windows how large.
    batch
        Samples a batch, process and accumulated part.
    epoch, val_batches
        Batches of an epoch, all processes together, and of a validation.
    seed
        Of places, budgets and positions.
    noise
        Largest share of wrong tokens among those shown of a modality that is asked for, too. What
        iterative decoding has made so far is not the truth either, and a network that never met a wrong
        token trusts it too much.
    """

    def __init__(
        self,
        train: list[TokenSource],
        budgets: Budgets,
        val: list[TokenSource] | None = None,
        window: WindowSizes | None = None,
        batch: int = 16,
        epoch: int = 1000,
        val_batches: int = 32,
        seed: int = 0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        if min(batch, epoch, val_batches) < 1 or not train:
            raise ConfigError(
                "data.batch, data.epoch and data.val_batches must be above 0, and data.train not empty"
            )
        self.sources = {"train": train, "val": val or []}
        self.budgets, self.window = budgets, window or WindowSizes()
        budgets.check()
        self.window.check()
        self.batch, self.epoch, self.val_batches, self.seed = batch, epoch, val_batches, seed
        self.noise = noise
        if not 0 <= noise <= 1:
            raise ConfigError("data.noise is a share of tokens; give 0 to 1")
        self._read: dict[str, list[TokenCorpus]] = {}
        self._stream: BatchLoader | None = None
        self._given = 0

    def corpora(self, part: str) -> list[TokenCorpus]:
        """Return the token files of ``"train"`` or ``"val"``, read once.

        Raises
        ------
        CorpusError
            See `tmcodec.training.any2any.grids.read_corpus`.
        """
        if part not in self._read:
            named = {m.removesuffix(PIXELS) for x in self.budgets.mixtures for m in (*x.inputs, *x.targets)}
            self._read[part] = [read_corpus(s.paths, named - set(s.leave_out)) for s in self.sources[part]]
        return self._read[part]

    def tokenizers(self) -> dict[str, TokenizerId]:
        """Return which tokenizer made each modality's tokens, by modality.

        Raises
        ------
        ConfigError
            If sources disagree.
        """
        known: dict[str, TokenizerId] = {}
        for part in self.sources:
            for corpus in self.corpora(part):
                for modality, made in corpus.tokenizers.items():
                    if known.setdefault(modality, made) != made:
                        raise ConfigError(
                            f"{modality} is by {made} in one source and by {known[modality]} in another; "
                            "encode all with one"
                        )
        return known

    def train_dataloader(self) -> BatchLoader:
        """Return the endless stream, from where a checkpoint left it."""
        self._stream = self.loader("train", self.epoch, endless=True)
        self._stream.given, self._given = self._given, 0
        self._stream.taken = batches_taken(len(self._stream), self.trainer)
        return self._stream

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """Return the validation batches; nothing where a fit has no source."""
        if not self.sources["val"]:
            check_validation(self.trainer)
            return []
        return self.loader("val", self.val_batches, endless=False)

    test_dataloader = val_dataloader

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches each process has been given: all that the stream's place depends on."""
        return {"given": self._stream.given if self._stream is not None else self._given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was saved."""
        self._given = int(state_dict["given"])

    def loader(self, part: str, count: int, endless: bool) -> BatchLoader:
        """Return `count` batches an epoch of ``"train"`` or ``"val"``, shared among the processes."""
        weights = [s.weight for s in self.sources[part]]
        seed = self.seed + (0 if endless else 1)
        noise = self.noise if endless else 0.0
        source = TokenBatches(self.corpora(part), weights, self.budgets, self.window, self.batch, seed, noise)
        world = self.trainer.world_size if self.trainer is not None else 1
        rank = self.trainer.global_rank if self.trainer is not None else 0
        return BatchLoader(source, max(count // world, 1), rank, world, endless)
