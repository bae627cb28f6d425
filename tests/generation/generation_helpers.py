"""Generators so small that a test can afford them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tmcodec.networks.generator.config import GeneratorConfig, ModalitySpec, pixel_spec, sequence_spec, token_spec
from tmcodec.networks.generator.model import Generator


@dataclass
class Ref:
    """A tokenizer's name and the hash of its weights."""

    name: str
    sha256: bytes | None = None


@dataclass
class Loaded:
    """What generation needs of a loaded generator."""

    net: Any
    name: str = "tiny-any2any"
    sha256: bytes = bytes(32)
    tokenizers: dict[str, Ref] = field(default_factory=dict)
    vocabulary: Any = None
    device: Any = field(default_factory=lambda: torch.device("cpu"))

    @property
    def cfg(self) -> GeneratorConfig:
        return self.net.cfg


DEFAULT = (
    token_spec("S2L2A"), token_spec("S1GRD"), token_spec("DEM"), token_spec("LULC"), pixel_spec("S1RTC"),
    sequence_spec("coords", 50),
)


def tiny_generator(specs: tuple[ModalitySpec, ...] = DEFAULT, grid: int = 4, seed: int = 3) -> Loaded:
    """Return random weights of width 32, lively enough that conditions matter."""
    torch.manual_seed(seed)
    cfg = GeneratorConfig(
        dim=32, encoder_depth=1, decoder_depth=1, heads=2, gated=False, biases=True, modalities=specs, grid=grid,
        embedding="codes", codes_hidden=16,
    )
    net = Generator(cfg)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim > 1 and "norm" not in name:
                weight.mul_(3)
    return Loaded(net.eval())
