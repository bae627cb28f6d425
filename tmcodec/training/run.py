"""``tmcodec train``: Lightning's command line around `TokenizerModule` and `TokenizerData`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentError
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from tmcodec.errors import ConfigError, TmcodecError
from tmcodec.networks.terramind.inference import has_bf16
from tmcodec.texts import shortened
from tmcodec.training import callbacks as own
from tmcodec.training.base import TrainingModule
from tmcodec.training.data import TokenizerData
from tmcodec.training.module import TokenizerModule
from tmcodec.training.statistics import BandStatistics
from tmcodec.training.terramind_module import TerraMindModule

__all__ = ["EarlyStopping", "LearningRateMonitor", "ModelCheckpoint", "TrainingCLI", "run", "statistics"]

# Configurations name these without their module; jsonargparse finds what is imported.
Layouts: tuple[type[TrainingModule], ...] = (TokenizerModule, TerraMindModule)
Callbacks: tuple[type[Callback], ...] = (own.MovingAverage, own.Reconstructions, own.WeightsFile)

MAX_DEPTH = 50
"""How deep lists and mappings of a configuration may lie in each other; those at hand have six levels."""

OF_WEIGHTS = ("bf16-true", "16-true", "64-true", "64", "transformer-engine", "transformer-engine-float16")
"""Precisions of Lightning's that convert parameters, which what is compared with them does not follow."""


class TrainingCLI(LightningCLI):
    """Lightning's command line with fit, validate and test, and a flag for the learning-rate finder."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the three that make sense; loaders come from the data section."""
        loaders = {"model", "datamodule", "weights_only"}
        return {
            "fit": loaders | {"train_dataloaders", "val_dataloaders"},
            "validate": loaders | {"dataloaders"},
            "test": loaders | {"dataloaders"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is no part of trainer, model or data."""
        parser.add_argument(
            "--lr_find", type=bool, default=False, help="look for a learning rate first, and train with it"
        )

    def before_instantiate_classes(self) -> None:
        """Train in float32 where the processor would only emulate bfloat16, and say so.

        On processors Lightning takes mixed float16 for bfloat16.

        Raises
        ------
        ConfigError
            If the weights themselves are to have another precision than float32.
        """
        config = self.config.get(str(self.subcommand), self.config)
        asked = str(config.trainer.precision)
        if asked in OF_WEIGHTS:
            raise ConfigError(
                f"trainer.precision is {asked}, but weights are float32; take bf16-mixed, 16-mixed or 32-true"
            )
        mixed = asked in ("bf16-mixed", "bf16", "16-mixed", "16")
        if mixed and emulates_bf16(str(config.trainer.accelerator)):
            config.trainer.precision = "32-true"
            rank_zero_info(
                "This processor has no bfloat16 arithmetic, and emulating it takes over ten times as long: "
                f"training in float32 instead of trainer.precision {asked}."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer.

        Raises
        ------
        ConfigError
            If it does not take what it is given, as a strategy that does not exist.
        """
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as err:
            raise ConfigError(f"trainer: {shortened(err)}") from err

    def before_fit(self) -> None:
        """Look for a learning rate where it is asked for."""
        if self._get(self.config, "lr_find"):
            # No early stop: it compares with a multiple of the best loss, and logarithms go below 0.
            Tuner(self.trainer).lr_find(self.model, datamodule=self.datamodule, early_stop_threshold=None)
            self.datamodule.load_state_dict({"given": 0})  # what the search saw counts for nothing

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Read checkpoints as plain tensors only."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}


def emulates_bf16(accelerator: str) -> bool:
    """Tell whether a Lightning accelerator is a processor that has no products in bfloat16."""
    elsewhere = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not elsewhere)
    return on_cpu and not has_bf16(torch.device("cpu"))


def build(args: Sequence[str], run_it: bool) -> TrainingCLI:
    """Parse, instantiate and, if asked to, run a tokenizer's configuration.

    Raises
    ------
    ConfigError
        If a key is unknown or a value does not fit.
    """
    chosen = names_a_layout(args)
    return command_line(TrainingModule if chosen else TokenizerModule, TokenizerData, args, run_it, chosen)


MISLEADING = (
    "LightningCLI's args parameter",
    ".*does not have many workers.*",
    ".*your dataloader is not resumable.*",  # the data module is
)
"""Warnings of Lightning's that do not hold here."""


def command_line(
    model: type[LightningModule],
    data: type[LightningDataModule],
    args: Sequence[str],
    run_it: bool,
    subclasses: bool = False,
) -> TrainingCLI:
    """Parse, instantiate and, if asked to, run.

    Parameters
    ----------
    model, data
        What is trained, and on what.
    args
        Words of the command line.
    run_it
        Whether their first one is a subcommand, to be run.
    subclasses
        Whether the configuration names a subclass of `model`.

    Raises
    ------
    ConfigError
        If a key is unknown or a value does not fit.
    """
    check_text(args)
    check_checkpoint(args)
    with warnings.catch_warnings():
        for message in MISLEADING:
            warnings.filterwarnings("ignore", message=message)
        try:
            return TrainingCLI(
                model,
                data,
                subclass_mode_model=subclasses,
                args=list(args),
                run=run_it,
                seed_everything_default=0,
                parser_kwargs=_parser_options(run_it),
                trainer_defaults={"use_distributed_sampler": False},
                save_config_kwargs={"overwrite": True},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except ArgumentError as err:
            raise wrapped_error(err) or ConfigError(shortened(err)) from err
        except MisconfigurationException as err:  # no such accelerator, say
            raise ConfigError(shortened(err)) from err
        except ValueError as err:  # of a class named in the file; or of the run itself, which passes
            found = wrapped_error(err)
            if found is None:
                raise
            raise found from err


def configurations(args: Sequence[str]) -> Iterator[str]:
    """Yield what stands after ``-c`` and ``--config`` in a command line."""
    for i, arg in enumerate(args):
        flag, _, value = arg.partition("=")
        if flag in ("-c", "--config"):
            yield value or (args[i + 1] if i + 1 < len(args) else "")


def check_text(args: Sequence[str]) -> None:
    """Refuse configurations that are no text, or nested without end: the parser has no words for them.

    Raises
    ------
    ConfigError
    """
    for name in configurations(args):
        try:
            found = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
            endless = _is_deep(found, MAX_DEPTH)
        except UnicodeDecodeError as err:
            raise ConfigError(f"{name}: not a text in UTF-8; save the configuration as such") from err
        except RecursionError:
            endless = True
        except (OSError, ValueError, yaml.YAMLError):  # the parser says what is wrong
            continue
        if endless:
            raise ConfigError(f"{name}: nested too deeply for a configuration; write it anew")


def _is_deep(value: Any, most: int) -> bool:
    """Tell whether lists and mappings lie in each other more than `most` deep, as those with a loop do."""
    level = [value]
    for _ in range(most + 1):
        insides = (v.values() if isinstance(v, dict) else v if isinstance(v, list) else () for v in level)
        level = list({id(v): v for inside in insides for v in inside}.values())
    return bool(level)


def check_checkpoint(args: Sequence[str]) -> None:
    """Refuse a file after ``--ckpt_path`` that is no checkpoint, before anything is built.

    Raises
    ------
    ConfigError
        If it cannot be read as plain tensors, or holds no training state.
    """
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        name = value if equals else (args[i + 1] if i + 1 < len(args) else "")
        if flag not in ("--ckpt_path", "--ckpt-path") or not Path(name).is_file():
            continue  # "last" and "best" are Lightning's to find, what is missing to tell
        try:
            found = torch.load(name, map_location="cpu", weights_only=True, mmap=True)
        except Exception as err:  # anything, for there may be anything in the file
            raise ConfigError(
                f"ckpt_path: {name} is not readable as a checkpoint; it may have been cut short"
            ) from err
        if not isinstance(found, dict) or not {"state_dict", "global_step"} <= found.keys():
            raise ConfigError(f"ckpt_path: {name} holds no training state; weights go into model.start")


def wrapped_error(err: BaseException) -> TmcodecError | None:
    """Return the error of this library that the parser wrapped into its own, if there is one."""
    if isinstance(err, TmcodecError):
        return None
    inner: BaseException | None = err
    while inner is not None and not isinstance(inner, TmcodecError):
        inner = inner.__cause__ or inner.__context__
    return inner


def names_a_layout(args: Sequence[str]) -> bool:
    """Tell whether a configuration names the layout that it trains, by ``model.class_path``.

    Configurations of the small tokenizers need not: their keys stand directly below ``model``.
    """
    if any(a.split("=")[0] in ("--model", "--model.class_path") for a in args):
        return True
    for name in configurations(args):
        with contextlib.suppress(OSError, ValueError, RecursionError, yaml.YAMLError):  # check_text says it
            raw = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
            if isinstance(raw, dict) and isinstance(raw.get("model"), dict) and "class_path" in raw["model"]:
                return True
    return False


def _parser_options(run_it: bool) -> dict[str, Any]:
    """Return what makes every parser raise where it would exit."""
    quiet: dict[str, Any] = {"exit_on_error": False}
    return {"fit": quiet, "validate": quiet, "test": quiet, **quiet} if run_it else quiet


def run(command: str, args: Sequence[str]) -> TrainingCLI:
    """Run ``fit``, ``validate`` or ``test`` with the rest of the command line.

    Raises
    ------
    TmcodecError
        For what the user can mend.
    """
    return build([command, *args], run_it=True)


def statistics(args: Sequence[str]) -> BandStatistics:
    """Return the statistics of a configuration's training data, companded as its network asks for.

    Raises
    ------
    TmcodecError
        If the configuration is wrong, or a file bad and not skipped.
    """
    cli = build(args, run_it=False)
    model, data = cli.model, cli.datamodule
    if not isinstance(model, TokenizerModule):
        raise ConfigError("this layout has the modality's own statistics; stats are for the small tokenizers")
    if model.modality.categorical:
        raise ConfigError("class ids have no mean; statistics are for pictures")
    cfg = model.net.cfg
    found: BandStatistics = data.statistics(cfg.compand, cfg.origin, cfg.knee)
    return found
