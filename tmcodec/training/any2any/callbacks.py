"""What happens at the end of a generator's fit."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from tmcodec.atomic import atomic_path
from tmcodec.networks.generator.model import Generator
from tmcodec.training.any2any.module import Any2AnyModule
from tmcodec.training.any2any.starting import untied
from tmcodec.training.callbacks import MovingAverage


class GeneratorFile(Callback):
    """Writes ``<name>.safetensors`` when a fit ends: what ``tmcodec generate --model`` takes.

    Parameters
    ----------
    name
        Of the generator; stored in the file.
    licence
        Stored in the file.
    """

    def __init__(self, name: str, licence: str = "not stated") -> None:
        self.name, self.licence = name, licence

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the averaged weights, in half precision, under a temporary name first."""
        place = trainer.log_dir  # asks all processes, so before those that write nothing leave
        if not trainer.is_global_zero or not isinstance(pl_module, Any2AnyModule) or trainer.fast_dev_run:
            return
        from tmcodec.generation.weights import TokenizerRef, save_generator

        net = Generator(pl_module.net.cfg)
        averages = [c for c in trainer.callbacks if isinstance(c, MovingAverage)]
        holder = averages[0] if averages else MovingAverage()
        net.load_state_dict(untied(net, holder.weights(pl_module)))
        folder = Path(place or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        refs = {m: TokenizerRef(t.name, bytes.fromhex(t.sha256)) for m, t in pl_module.tokenizers.items()}
        notes = {"licence": self.licence, "training": f"{trainer.global_step} steps"}
        with atomic_path(folder / f"{self.name}.safetensors", overwrite=True) as temporary:
            save_generator(temporary, net, self.name, refs, notes)
