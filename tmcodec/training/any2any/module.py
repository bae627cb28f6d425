"""The Lightning module that pre-trains an any-to-any transformer by masked modelling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from tmcodec.errors import ConfigError
from tmcodec.networks.generator.config import (
    GeneratorConfig,
    ModalitySpec,
    Size,
    check_config,
    pixel_spec,
    sequence_spec,
    token_spec,
)
from tmcodec.networks.generator.embeddings import TargetEmbedding
from tmcodec.networks.generator.model import Encoded, Generator, Part
from tmcodec.training.any2any.data import PIXELS, Batch, TokenData
from tmcodec.training.any2any.grids import TokenizerId
from tmcodec.training.any2any.initial import align_attention
from tmcodec.training.any2any.own import show_own
from tmcodec.training.any2any.softmax import sampled_cross_entropy
from tmcodec.training.any2any.starting import CONFIG_KEY, TOKENIZERS_KEY, copy_fitting, open_start
from tmcodec.training.monitors import check_monitors
from tmcodec.training.optimizers import OptimizerOptions, build_optimizer, factor_at
from tmcodec.training.resume import ResumableModule

Query = tuple[str, Tensor, tuple[int, int], Tensor | None]
Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Sizes of a transformer and what it takes and gives.

    Attributes
    ----------
    tokens
        Modalities whose tokens are inputs and targets.
    pixels
        Modalities whose pixels are inputs.
    sequences
        ``coords`` and ``caption``: embeddings that the network has, though nothing here trains them.
    dim, encoder_depth, decoder_depth, heads, gated, biases, mlp_ratio, grid, embedding, codes_hidden
        See `tmcodec.networks.generator.config.GeneratorConfig`.
    """

    tokens: list[str]
    pixels: list[str] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    dim: int = 160
    encoder_depth: int = 6
    decoder_depth: int = 4
    heads: int = 5
    gated: bool = False
    biases: bool = True
    mlp_ratio: float = 4.0
    grid: int = 14
    embedding: Literal["table", "codes"] = "codes"
    codes_hidden: int = 256

    def config(self) -> GeneratorConfig:
        """Return the transformer's configuration.

        Raises
        ------
        ConfigError
            If a size is out of range.
        ModalityError
            If a modality is unknown.
        """
        sizes = Size(self.encoder_depth, self.decoder_depth, self.dim, self.heads, self.gated, self.biases)
        specs: tuple[ModalitySpec, ...] = (
            *map(pixel_spec, self.pixels), *map(token_spec, self.tokens), *map(sequence_spec, self.sequences)
        )  # fmt: skip
        cfg = GeneratorConfig(
            **asdict(sizes), modalities=specs, mlp_ratio=self.mlp_ratio, grid=self.grid,
            embedding=self.embedding, codes_hidden=self.codes_hidden,
        )  # fmt: skip
        try:
            check_config(cfg)
        except ValueError as error:
            raise ConfigError(f"model.net: {error}") from error
        return cfg


def find_unused_parameters(trainer: Any) -> None:
    """Tell data-parallel training that a step may leave modalities out, and with them their parameters.

    Lightning builds the strategy before it knows the model, so it is told here, before the model is wrapped.
    """
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)


class Any2AnyModule(ResumableModule):
    """Trains a `tmcodec.networks.generator.model.Generator`: some tokens are shown, others asked for.

    Parameters
    ----------
    net
        Sizes and modalities.
    start
        A generator's weights file, or a run's ``.ckpt`` (its averaged weights), whose tensors of equal
        name and shape are copied.
    optimizer
        See `OptimizerOptions`. Muon moves the matrices of the blocks, AdamW the rest.
    normalise
        ``"modality"``: the mean of the targets' mean cross-entropies, each over the logarithm of its
        vocabulary, so that every modality counts alike; ``"token"``: the mean over all tokens asked for.
    negatives
        Tokens of the vocabulary, beside those asked for, that a training step's softmax sums over; they
        stand for all others. 0 sums over all, as validation always does.
    alike
        Gain of `tmcodec.training.any2any.initial.align_attention` for the first weights; 0 leaves it out.
    own
        Chance that a batch shows some tokens that the network made itself; see
        `tmcodec.training.any2any.own.show_own`. 0 costs nothing.
    seed
        Of the first weights. What a step draws depends on the number of its batch.
    """

    def __init__(
        self,
        net: Layout,
        start: str | None = None,
        optimizer: OptimizerOptions | None = None,
        normalise: Literal["modality", "token"] = "modality",
        negatives: int = 2048,
        alike: float = 2.5,
        own: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = Generator(net.config())
        if alike:
            align_attention(self.net, alike)
        self.copied = copy_fitting(self.net, open_start(start)) if start else 0
        self.options = optimizer or OptimizerOptions()
        self.lr = self.options.lr  # under this name the learning-rate finder sets it
        self.normalise, self.negatives, self.own = normalise, negatives, own
        if negatives < 0:
            raise ConfigError("model.negatives must be 0, for the whole vocabulary, or above")
        if not 0 <= own <= 1:
            raise ConfigError("model.own is a share of the batches; give 0 to 1")
        self.keys = {s.modality: s.key for s in self.net.cfg.modalities if s.kind == "tokens"}
        self.pixel_keys = {s.modality + PIXELS: s.key for s in self.net.cfg.modalities if s.kind == "pixels"}
        self.tokenizers: dict[str, TokenizerId] = {}

    # ----------------------------------------------------------------------- start and resume

    def on_fit_start(self) -> None:
        """Check what callbacks ask for."""
        check_monitors(self.trainer, self.figures(), "a generator")

    def setup(self, stage: str) -> None:
        """Check that the data's tokens are the network's, and remember who made them.

        Raises
        ------
        ConfigError
            If the data have a modality or levels that the network has not, or a checkpoint was trained on
            others.
        """
        find_unused_parameters(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, TokenData):
            return
        found = data.tokenizers()
        for modality, made in found.items():
            spec = self.net.cfg.find(modality, "tokens")
            if spec is None:
                raise ConfigError(
                    f"the data have {modality}, the network has not; add it to model.net.tokens"
                )
            if tuple(made.levels) != spec.levels:
                raise ConfigError(
                    f"{made.name} has levels {made.levels}, the network's {modality} {spec.levels}"
                )
            if not made.agrees(self.tokenizers.setdefault(modality, made)):
                raise ConfigError(other_tokens(modality, self.tokenizers[modality], made))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what rebuilds the network, and whose tokens it speaks."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CONFIG_KEY] = json.dumps(self.net.cfg.to_dict())
        checkpoint[TOKENIZERS_KEY] = json.dumps({m: asdict(t) for m, t in self.tokenizers.items()})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network, or of other tokens."""
        if CONFIG_KEY not in checkpoint:
            raise ConfigError("the checkpoint is not of a generator; resume with its own config")
        if json.loads(checkpoint[CONFIG_KEY]) != json.loads(json.dumps(self.net.cfg.to_dict())):
            raise ConfigError(
                "the checkpoint is of a network of other sizes than model.net; resume with its own config"
            )
        saved = json.loads(checkpoint[TOKENIZERS_KEY])
        before = {m: TokenizerId.from_plain(t) for m, t in saved.items()}
        for modality, made in before.items():
            if not made.agrees(self.tokenizers.get(modality, made)):
                raise ConfigError(other_tokens(modality, made, self.tokenizers[modality]))
        self.tokenizers = {**before, **self.tokenizers}
        super().on_load_checkpoint(checkpoint)

    # ----------------------------------------------------------------------- steps

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch, but keep on the CPU what steps decide by: there, reading it waits for no device."""
        kept = {name: batch[name] for name in ("number", "grid")}
        rest = {name: value for name, value in batch.items() if name not in kept}
        moved = super().transfer_batch_to_device(rest, device, dataloader_idx)
        for side in ("inputs", "targets"):
            moved[side] = {
                name: {**part, "padded": bool(batch[side][name]["padding"].any())}
                for name, part in moved[side].items()
            }
        return {**moved, **kept}

    def encode(self, batch: Batch) -> Encoded:
        """Encode what a batch shows."""
        grid = grid_of(batch)
        parts = []
        for name, part in batch["inputs"].items():
            padding = padding_of(part)
            pixels = name in self.pixel_keys
            key = self.pixel_keys[name] if pixels else self.keys[name]
            parts.append(Part(key, part["values"], part["positions"], None if pixels else grid, padding))
        return self.net.encode(parts) if parts else self.net.nothing(batch_size(batch))

    def cross_entropies(self, batch: Batch) -> tuple[Scores, Scores]:
        """Return each target's mean cross-entropy in nats, and how many tokens it is a mean of."""
        grid, encoded = grid_of(batch), self.encode(batch)
        queries: list[Query] = [
            (self.keys[m], part["positions"], grid, padding_of(part))
            for m, part in batch["targets"].items()
        ]
        losses: Scores = {}
        counts: Scores = {}
        generator = torch.Generator().manual_seed(int(batch["number"]) + 1)
        hidden = self.net.look(encoded, queries)
        for (modality, part), y in zip(batch["targets"].items(), hidden, strict=True):
            asked = ~part["padding"]
            y, values = (asked_of(x, part) for x in (y, part["values"]))
            found = self._cross_entropy(modality, y, values, generator)
            counts[modality] = asked.sum()
            losses[modality] = found.sum() / counts[modality].clamp_min(1)
        return losses, counts

    def _cross_entropy(self, modality: str, y: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Return the cross-entropy ``(n,)`` of tokens given the decoder's output ``(n, D)``."""
        target = self.net.decoder_embeddings[self.keys[modality]]
        assert isinstance(target, TargetEmbedding)
        negatives = self.negatives if self.training else 0
        if not negatives or target.vocabulary <= negatives:
            return F.cross_entropy(target.logits(y).float(), tokens, reduction="none")
        return sampled_cross_entropy(y, tokens, target, target.vocabulary, negatives, generator)

    def total(self, losses: Scores, counts: Scores) -> Tensor:
        """Return the loss of a batch, see `normalise`."""
        values = torch.stack(list(losses.values()))
        weights = torch.stack([counts[m] for m in losses]).to(values)
        if self.normalise == "token":
            return (values * weights).sum() / weights.sum().clamp_min(1)
        sizes = [self.net.cfg.spec(self.keys[m]).vocabulary for m in losses]
        there = (weights > 0).to(values)
        scaled = values / torch.tensor(sizes, device=values.device, dtype=values.dtype).log()
        return (scaled * there).sum() / there.sum().clamp_min(1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss."""
        shown = show_own(self.net, self.keys, batch, self.own) if self.own else batch
        losses, counts = self.cross_entropies(shown)
        total, size = self.total(losses, counts), batch_size(batch)
        self.log("train/loss", total, prog_bar=True, batch_size=size)
        for modality, value in losses.items():
            self.log(f"train/{modality}", value, batch_size=size)
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the loss, and each target's cross-entropy in nats."""
        losses, counts = self.cross_entropies(batch)
        size = torch.tensor(batch_size(batch))
        found = {"loss": (self.total(losses, counts), size), **{m: (losses[m], counts[m]) for m in losses}}
        for name, (value, count) in found.items():
            self._seen[self.figures().index(name)] += torch.stack([value * count, count.to(value)])

    test_step = validation_step

    def figures(self) -> list[str]:
        """Return what validation measures, without ``val/``."""
        return ["loss", *self.keys]

    def on_validation_epoch_start(self) -> None:
        """Count from nothing."""
        self._seen = torch.zeros(len(self.figures()), 2, device=self.device)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log the means over all processes."""
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        """Do what `on_validation_epoch_end` does."""
        self._log_means("test")

    def _log_means(self, part: str) -> None:
        # Processes meet modalities in orders of their own, and not all of them: one tensor holds them all.
        total = self.trainer.strategy.reduce(self._seen, reduce_op="sum")
        assert isinstance(total, Tensor)
        for name, (value, count) in zip(self.figures(), total, strict=True):
            if count > 0:
                self.log(f"{part}/{name}", value / count, prog_bar=name == "loss")

    # ----------------------------------------------------------------------- optimisation

    def make_optimizer(self) -> Optimizer:
        """Return the optimizer of all that gradients reach."""
        params = {n: p for n, p in self.named_parameters() if p.requires_grad}
        return build_optimizer(params, replace(self.options, lr=self.lr), hidden=is_block_matrix)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule over all steps of the run.

        Raises
        ------
        ConfigError
            If the run has no end.
        """
        total = self.trainer.estimated_stepping_batches
        if not 1 <= total < float("inf"):
            raise ConfigError(
                "the learning rate's schedule needs an end; set trainer.max_steps or trainer.max_epochs"
            )
        optimizer = self.make_optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: factor_at(step, int(total), self.options)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def other_tokens(modality: str, before: TokenizerId, now: TokenizerId) -> str:
    """Return what is said where a checkpoint's tokens are not the data's."""
    return (
        f"the checkpoint was trained on {modality} by {before}, the data are by {now}; "
        "give it as model.start to go on with other tokens"
    )


def is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether a parameter is a matrix of a block: what Muon is for; embeddings and logits are not."""
    return parameter.ndim == 2 and name.startswith(
        ("net.encoder.", "net.decoder.", "net.decoder_proj_context.")
    )


def padding_of(part: Mapping[str, Any]) -> Tensor | None:
    """Return a part's padding, or None where nothing is padded; told on the CPU where a trainer moved it."""
    padded = part["padded"] if "padded" in part else bool(part["padding"].any())
    return part["padding"] if padded else None


def asked_of(x: Tensor, part: Mapping[str, Any]) -> Tensor:
    """Return the rows of ``(B, n, ...)`` that are no padding, ``(m, ...)``."""
    padding = padding_of(part)
    # Picking rows waits for a device to count them; all of them need no picking.
    return x.flatten(0, 1) if padding is None else x[~padding]


def grid_of(batch: Mapping[str, Any]) -> tuple[int, int]:
    """Return rows and columns of a batch's windows."""
    rows, cols = batch["grid"].tolist()
    return int(rows), int(cols)


def batch_size(batch: Mapping[str, Any]) -> int:
    """Return the number of samples."""
    return len(next(iter(batch["targets"].values()))["positions"])
