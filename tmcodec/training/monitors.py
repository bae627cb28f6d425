"""Callbacks that wait for a figure, and whether anything measures it."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from tmcodec.errors import ConfigError

SCORES = frozenset({"psnr", "accuracy"})
"""What only validation measures, which draws whole pictures."""


def check_monitors(trainer: Trainer, figures: Iterable[str], what: str) -> None:
    """Refuse callbacks that monitor what the run will not measure.

    Lightning finds that out after the first validation, hours later, or never: without validation a
    checkpoint that waits for one is never written. Names that begin otherwise than ours do may be
    Lightning's (``step``, ``epoch``) or figures that another callback logs.

    Parameters
    ----------
    trainer
        About to fit.
    figures
        What validation measures, without ``val/``; training measures them, too, but for `SCORES`.
    what
        Who measures them, for the message.

    Raises
    ------
    ConfigError
        Before the first step.
    """
    sources = getattr(getattr(trainer, "datamodule", None), "sources", {"val": True})
    validates = bool(sources["val"]) and trainer.limit_val_batches != 0
    known = {
        "val/": sorted(f"val/{name}" for name in figures) if validates else [],
        "train/": sorted(f"train/{name}" for name in set(figures) - SCORES),
    }
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = getattr(callback, "monitor", None)
        if not isinstance(name, str) or not name.startswith(("val/", "train/")):
            continue
        who, choices = f"{type(callback).__name__} monitors {name}", known[name[: name.index("/") + 1]]
        if not choices:
            raise ConfigError(f"{who}, but nothing is validated; give data.val, or monitor train/loss")
        if name not in choices:
            raise ConfigError(f"{who}, which {what} does not measure; choose among {', '.join(choices)}")


def check_validation(trainer: Trainer | None) -> None:
    """Refuse ``validate`` and ``test`` on data without a source for them.

    Raises
    ------
    ConfigError
    """
    if trainer is not None and trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING):
        raise ConfigError("data.val names no source; give one to validate on")
