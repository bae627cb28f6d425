"""What happens beside the steps: averaged weights, pictures in TensorBoard, the weights file at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from tmcodec.errors import ConfigError
from tmcodec.rasters.render import render_rgb
from tmcodec.training.base import TrainingModule
from tmcodec.training.stages import trainable
from tmcodec.training.starting import AVERAGE_KEY, SavedRun
from tmcodec.training.weights_file import plain, write_run

Tensors = dict[str, Tensor]


class MovingAverage(Callback):
    """Keeps an exponential moving average of the trained parameters; validation, test and exported weights
    use it.

    The first steps are averaged evenly, so that the start is forgotten: the decay at step n is at most ``n /
    (n + 1)``. The optimizer's own weights stay in the checkpoint beside the averaged ones, so that a run goes
    on exactly.

    Parameters
    ----------
    decay
        At most; 0.998 remembers about 500 steps.
    """

    def __init__(self, decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise ConfigError("the moving average's decay must be at least 0 and below 1")
        self.decay, self.step = decay, 0
        self.average: Tensors = {}
        self._swapped = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the current weights where no checkpoint brought others."""
        params = trainable(pl_module)
        found = self.average or {n: p.detach().clone() for n, p in params.items()}
        self.average = {n: t.to(params[n].device) for n, t in found.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average after each step of the optimizer."""
        if trainer.global_step <= self.step:
            return
        self.step = trainer.global_step
        decay = min(self.decay, 1 - 1 / (self.step + 1))
        for name, parameter in trainable(pl_module).items():
            self.average[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        for name, parameter in trainable(pl_module).items():
            if name in self.average:
                own = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name] = own
        self._swapped = not self._swapped

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the averaged weights."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the optimizer's."""
        self._swap(pl_module)

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the optimizer's weights back, whatever failed while validating."""
        if self._swapped:
            self._swap(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the average beside the weights."""
        checkpoint[AVERAGE_KEY] = self.average
        checkpoint[f"{AVERAGE_KEY}_step"] = self.step

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take it up again."""
        saved = checkpoint.get(AVERAGE_KEY, {})
        self.average = {n: t.clone().to(pl_module.device) for n, t in saved.items()}
        self.step = int(checkpoint.get(f"{AVERAGE_KEY}_step", 0))

    def weights(self, pl_module: LightningModule) -> Tensors:
        """Return the state dict of the module's network with averaged parameters."""
        current = {n: t.detach().clone() for n, t in pl_module.state_dict().items()}
        merged = {**current, **self.average}
        return {n.removeprefix("net."): t.cpu() for n, t in merged.items() if n.startswith("net.")}


class Reconstructions(Callback):
    """Logs pictures of the first validation crops to TensorBoard: original, reconstruction, error.

    Parameters
    ----------
    count
        Crops shown.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first batch."""
        logger = trainer.logger
        wanted = batch_idx == 0 and isinstance(outputs, Tensor) and trainer.is_global_zero
        if (
            not wanted
            or not isinstance(logger, TensorBoardLogger)
            or not isinstance(pl_module, TrainingModule)
        ):
            return
        for i in range(min(self.count, len(outputs))):
            original, back, valid = (t[i].cpu().numpy() for t in (batch["values"], outputs, batch["valid"]))
            picture = side_by_side(original, back, valid, pl_module)
            logger.experiment.add_image(f"val/{i}", picture, trainer.global_step)


def side_by_side(original: Any, back: Any, valid: Any, module: TrainingModule) -> Any:
    """Return uint8 ``(3, H, 3 W)``: original, reconstruction, mean absolute error over standard deviation."""
    row = module.modality
    first, ranges = render_rgb(original, valid, row)
    second, _ = render_rgb(back, valid, row, ranges)
    miss = np.abs(back - original)
    if row.categorical:
        error = (miss > 0).astype(np.float32)[0]
    else:
        error = (miss / np.array(row.std, np.float32)[:, None, None]).mean(0)
    grey = (np.where(valid.all(0), error, 0).clip(0, 1) * 255).astype(np.uint8)
    return np.concatenate([first, second, np.repeat(grey[None], 3, 0)], axis=2)


class FileAtEnd(Callback):
    """Writes ``<name>.safetensors`` beside the checkpoints when a fit ends.

    Parameters
    ----------
    name
        Of what was trained; stored in the file.
    licence
        Stored in the file.
    """

    module: ClassVar[type[LightningModule]] = LightningModule

    def __init__(self, name: str, licence: str = "not stated") -> None:
        if not name or set(name) & set("/\\\0"):
            raise ConfigError(
                f"{type(self).__name__}: {name!r} is no name for a file; it is written beside the checkpoints"
            )
        self.name, self.licence = name, licence

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run whose network the file is not for.

        Raises
        ------
        ConfigError
        """
        if not isinstance(pl_module, self.module):
            raise ConfigError(f"{type(self).__name__} cannot write what {type(pl_module).__name__} trains")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the averaged weights, from one process; nothing after a fast development run."""
        place = trainer.log_dir  # asks all processes, so before those that write nothing leave
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        averages = [c for c in trainer.callbacks if isinstance(c, MovingAverage)]
        holder = averages[0] if averages else MovingAverage()
        folder = Path(place or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.safetensors"
        self.write(path, pl_module, holder.weights(pl_module), trainer.global_step)

    def write(self, path: Path, module: Any, weights: Tensors, step: int) -> None:
        """Write the module's network with `weights`, its names as in `MovingAverage.weights`."""
        raise NotImplementedError


class WeightsFile(FileAtEnd):
    """Writes a tokenizer: what ``--tokenizer`` takes. Parameters are those of `FileAtEnd`."""

    module = TrainingModule

    def write(self, path: Path, module: TrainingModule, weights: Tensors, step: int) -> None:
        """Write the tokenizer, and what it started from."""
        notes = {"licence": self.licence, "training": f"stage {module.stage}, {step} steps"}
        cfg = plain(module.net.cfg.to_dict())
        run = SavedRun(path.parent, module.layout, cfg, weights, module.lineage, module.stage, step)
        write_run(run, path, self.name, notes)
