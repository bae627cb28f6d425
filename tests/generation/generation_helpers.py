"""Generators so small that a test can afford them, and one whose answers can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tmcodec.codec.models import load_tokenizer
from tmcodec.generation.weights import TokenizerRef
from tmcodec.networks.generator.config import (
    GeneratorConfig,
    ModalitySpec,
    pixel_spec,
    sequence_spec,
    token_spec,
)
from tmcodec.networks.generator.model import Encoded, Generator, Part


@dataclass
class Loaded:
    """What generation needs of a loaded generator."""

    net: Any
    name: str = "tiny-any2any"
    sha256: bytes = bytes(32)
    tokenizers: dict[str, TokenizerRef] = field(default_factory=dict)
    vocabulary: Any = None
    trust: float = 1.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def cfg(self) -> GeneratorConfig:
        return self.net.cfg


SPECS = (
    token_spec("S2L2A"), token_spec("S1GRD"), token_spec("DEM"), token_spec("LULC"), pixel_spec("S1RTC"),
    sequence_spec("coords", 50),
)  # fmt: skip


def tiny_config(specs: tuple[ModalitySpec, ...] = SPECS, grid: int = 4) -> GeneratorConfig:
    return GeneratorConfig(
        dim=32, encoder_depth=1, decoder_depth=1, heads=2, gated=False, biases=True, modalities=specs,
        grid=grid, embedding="codes", codes_hidden=16,
    )  # fmt: skip


def tiny_generator(specs: tuple[ModalitySpec, ...] = SPECS, grid: int = 4, seed: int = 3) -> Loaded:
    """Return random weights of width 32, lively enough that conditions matter."""
    torch.manual_seed(seed)
    net = Generator(tiny_config(specs, grid))
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim > 1 and "norm" not in name:
                weight.mul_(3)
    return Loaded(net.eval().requires_grad_(False))


def tokenizer_refs(paths: dict[str, Path]) -> dict[str, TokenizerRef]:
    """Return references to weights files, with their hashes."""
    return {m: TokenizerRef(str(path), load_tokenizer(str(path)).sha256) for m, path in paths.items()}


class SumNet:
    """Predicts, everywhere, the sum of all visible tokens modulo the vocabulary; records what it is shown."""

    def __init__(self, specs: tuple[ModalitySpec, ...] = SPECS, grid: int = 4) -> None:
        self.cfg = tiny_config(specs, grid)
        self.mask_token = torch.zeros(1, 1, 1)
        self.shown: list[list[str]] = []
        self.asked: list[tuple[str, int]] = []

    def encode(self, parts: Sequence[Part]) -> Encoded:
        self.shown.append([part.key for part in parts])
        total = torch.zeros(parts[0].values.shape[0])
        for part in parts:
            values = part.values.flatten(1).float()
            seen = part.padding is None or values.shape != part.padding.shape
            total += (values if seen else values * ~part.padding).sum(1)
        return Encoded(total[:, None, None])

    def nothing(self, batch: int) -> Encoded:
        self.shown.append([])
        return Encoded(torch.zeros(batch, 1, 1))

    def predict(self, encoded: Encoded, key: str, positions: torch.Tensor, grid: object) -> torch.Tensor:
        self.asked.append((key, positions.shape[1]))
        vocabulary = self.cfg.spec(key).vocabulary
        answer = encoded.context[:, 0, 0].long() % vocabulary
        logits = torch.zeros(*positions.shape, vocabulary)
        return logits.scatter_(2, answer[:, None, None].expand(-1, positions.shape[1], 1), 5.0)


class Words:
    """A vocabulary of digits: text and words are the same numbers."""

    marks = {"[S_1]": 40, "[S_2]": 41, "[EOS]": 42}  # noqa: RUF012

    def encode(self, modality: str, value: Any) -> list[int]:
        return [*(int(v) % 40 for v in value), 42]

    def decode(self, modality: str, words: list[int]) -> str:
        return " ".join(map(str, words))

    def mark(self, modality: str, name: str) -> int:
        return self.marks[name]
