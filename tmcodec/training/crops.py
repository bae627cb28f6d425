"""A reproducible stream of crops: crop number n is a function of the seed and n alone.

So a run goes on where it was killed by knowing one number, any number of workers gives the same order, and R
processes with one batch each see what one process sees in R batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tmcodec.errors import TmcodecError
from tmcodec.training.corpus import AUGMENT, warp_crop
from tmcodec.training.sources import Crop, CropSource, reflect

Batch = dict[str, Tensor]


class Crops(Dataset[Batch]):
    """Crops by number: ``values`` (C, side, side) float32 physical, ``valid`` bool, ``number`` and
    ``skipped``.

    Parameters
    ----------
    sources
        Of one modality; drawn by weight.
    side
        Pixels.
    seed
        Decides everything.
    radiometry
        Whether to change illumination, colours or heights; see `tmcodec.training.corpus.AUGMENT`.
    geometry
        Whether to turn by quarters and flip.
    warp, blend
        Chances of turning by any angle and zooming, and of a weighted mean of two crops.
    """

    def __init__(
        self,
        sources: Sequence[CropSource],
        side: int,
        seed: int,
        radiometry: bool = False,
        geometry: bool = False,
        warp: float = 0.0,
        blend: float = 0.0,
    ) -> None:
        self.sources, self.side, self.seed = list(sources), side, seed
        self.modality = sources[0].modality
        self.radiometry, self.geometry, self.warp, self.blend = radiometry, geometry, warp, blend
        weights = np.array([s.weight for s in sources])
        self.chances = weights / weights.sum()

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng([self.seed, number])
        values, valid = self.place(rng)
        if self.blend and rng.random() < self.blend:
            other, other_valid = self.place(rng)
            share = np.float32(rng.uniform(0.1, 0.9))
            values, valid = values * share + other * (1 - share), valid & other_valid
        if self.radiometry:
            values = AUGMENT[self.modality.name](values, rng)
        return {
            "values": torch.from_numpy(np.ascontiguousarray(values, np.float32)),
            "valid": torch.from_numpy(np.ascontiguousarray(valid)),
            "number": torch.tensor(number),
            "skipped": torch.tensor(sum(len(s.bad) for s in self.sources)),
        }

    def place(self, rng: np.random.Generator) -> Crop:
        """Draw one crop, warped, turned and flipped."""
        source = self.sources[rng.choice(len(self.sources), p=self.chances)]
        warp = bool(self.warp) and rng.random() < self.warp
        values, valid = source.draw(rng, self.side * 3 // 2 if warp else self.side)
        if warp:
            values, valid = warp_crop(values, valid, self.side, rng)
        values, valid = reflect(values, valid, self.side)
        if not self.geometry:
            return values, valid
        turns = int(rng.integers(4))
        values, valid = np.rot90(values, turns, (1, 2)), np.rot90(valid, turns, (1, 2))
        return (values[:, :, ::-1], valid[:, :, ::-1]) if rng.integers(2) else (values, valid)


def named_errors(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Yield a loader's batches; a worker's error, which torch wraps in its traceback, is unwrapped."""
    try:
        yield from loader
    except TmcodecError as error:
        last = str(error).strip().splitlines()[-1]
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        if not last.startswith(name):
            raise
        raise type(error)(last.removeprefix(name)) from error


class CropLoader:
    """Batches of a `Crops` for one of several processes; `given` counts them over all epochs.

    Iterating gives the rest of the current epoch, so that a loader whose count was set goes on in its middle.
    `taken` is how many an epoch has; all `batches`, if nobody sets it.

    Parameters
    ----------
    crops
        The stream.
    batch
        Crops a batch.
    batches
        Batches an epoch and process.
    workers
        Processes that read ahead; 0 reads in this one.
    rank, world
        Which of how many training processes this is.
    endless
        Whether epochs go on in the stream; else each sees the same crops, as validation wants.
    """

    def __init__(
        self, crops: Crops, batch: int, batches: int, workers: int, rank: int, world: int, endless: bool
    ) -> None:
        self.crops, self.batch, self.batches, self.workers = crops, batch, batches, workers
        self.rank, self.world, self.endless, self.given = rank, world, endless, 0
        self.taken = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        if not self.endless:
            self.given = 0
        first = self.given
        last = (first // self.taken + 1) * self.taken
        order = [self.numbers(i) for i in range(first, last)]
        # From pinned memory copies to a GPU run beside its work.
        pinned = torch.cuda.is_available()
        loader = DataLoader(self.crops, batch_sampler=order, num_workers=self.workers, pin_memory=pinned)
        for batch in named_errors(loader):
            self.given += 1
            yield batch

    def numbers(self, index: int) -> list[int]:
        """Return the crops of this process's batch number `index`."""
        start = (index * self.world + self.rank) * self.batch
        return list(range(start, start + self.batch))
