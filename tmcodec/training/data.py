"""The data section of a configuration."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule

from tmcodec.errors import ConfigError
from tmcodec.training.crops import CropLoader, Crops
from tmcodec.training.monitors import check_validation
from tmcodec.training.resume import batches_taken
from tmcodec.training.shards import TerraMeshShards  # noqa: F401  (configurations name it without its module)
from tmcodec.training.sources import CropSource, RasterFolder  # noqa: F401
from tmcodec.training.statistics import BandStatistics, band_statistics


class TokenizerData(LightningDataModule):
    """Crops to train with and crops to validate with, all of one modality.

    Parameters
    ----------
    train
        Sources, drawn by their weights.
    val, test
        Sources of crops that nothing is changed in, the same ones every time. Without `test`, tests take
        `val`.
    side
        Of a crop in pixels, a multiple of 32.
    batch
        Crops a step, process and accumulated part.
    epoch
        Training crops an epoch, all processes together: what validation and epoch-wise checkpoints count in.
    val_crops
        Crops of a validation or test.
    radiometry, geometry, warp, blend
        Augmentation of training crops, see `tmcodec.training.crops.Crops`.
    workers
        Processes that read ahead.
    seed
        Of places and augmentations.
    """

    def __init__(
        self,
        train: list[CropSource],
        val: list[CropSource] | None = None,
        test: list[CropSource] | None = None,
        side: int = 160,
        batch: int = 8,
        epoch: int = 8000,
        val_crops: int = 64,
        radiometry: bool = True,
        geometry: bool = True,
        warp: float = 0.0,
        blend: float = 0.0,
        workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sources = {"train": train, "val": val or [], "test": test or val or []}
        self.side, self.batch, self.epoch, self.val_crops = side, batch, epoch, val_crops
        self.augmentation: dict[str, Any] = {
            "radiometry": radiometry, "geometry": geometry, "warp": warp, "blend": blend,
        }  # fmt: skip
        self.workers, self.seed = workers, seed
        self._stream: CropLoader | None = None
        self._given = 0
        self._check()

    def _check(self) -> None:
        if not self.sources["train"]:
            raise ConfigError("data.train names no source; give at least one folder")
        names = {s.modality.name for part in self.sources.values() for s in part}
        if len(names) > 1:
            raise ConfigError(
                f"the sources are of several modalities ({', '.join(sorted(names))}); a tokenizer has one"
            )
        if (
            self.side < 32
            or self.side % 32
            or min(self.batch, self.epoch, self.val_crops) < 1
            or min(self.workers, self.seed) < 0
        ):
            raise ConfigError(
                "data.side must be a multiple of 32, batch, epoch and val_crops above 0, "
                "workers and seed not below"
            )
        if not all(0 <= self.augmentation[name] <= 1 for name in ("warp", "blend")):
            raise ConfigError("data.warp and data.blend are chances; give 0 to 1")
        if self.sources["train"][0].modality.categorical and (
            self.augmentation["warp"] or self.augmentation["blend"]
        ):
            raise ConfigError("class ids cannot be interpolated; set data.warp and data.blend to 0")

    @property
    def modality(self) -> str:
        """Name of the modality of all sources."""
        return self.sources["train"][0].modality.name

    def statistics(self, compand: str, origin: float, knee: float) -> BandStatistics:
        """Read the training sources once; see `tmcodec.training.statistics.band_statistics`."""
        return band_statistics(self.sources["train"], compand, origin, knee)

    def train_dataloader(self) -> CropLoader:
        """Return the endless stream, from where a checkpoint left it."""
        self._stream = self.loader("train", self.epoch, endless=True)
        self._stream.given, self._given = self._given, 0
        self._stream.taken = batches_taken(len(self._stream), self.trainer)
        return self._stream

    def val_dataloader(self) -> CropLoader | list[Any]:
        """Return the validation crops; nothing where a fit has no source."""
        if not self.sources["val"]:
            check_validation(self.trainer)
            return []
        return self.loader("val", self.val_crops, endless=False)

    def test_dataloader(self) -> CropLoader:
        """Return the test crops."""
        if not self.sources["test"]:
            raise ConfigError("data.test and data.val name no source; give one to test with")
        return self.loader("test", self.val_crops, endless=False)

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches each process has been given: all that the stream's place depends on."""
        return {"given": self._stream.given if self._stream is not None else self._given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was saved."""
        self._given = int(state_dict["given"])

    def loader(self, part: str, count: int, endless: bool, alone: bool = False) -> CropLoader:
        """Return about `count` crops an epoch of ``"train"``, ``"val"`` or ``"test"``, for this process.

        `alone` gives each process all of them, as if it were the only one: for what all must agree on.
        """
        changes = self.augmentation if endless else {}
        crops = Crops(self.sources[part], self.side, self.seed + (0 if endless else 1), **changes)
        rank, world = 0, 1
        if self.trainer is not None and not alone:
            rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = max(count // (self.batch * world), 1)
        return CropLoader(crops, self.batch, batches, self.workers, rank, world, endless)
