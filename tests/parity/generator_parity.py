"""TerraTorch's any-to-any transformer with random weights, beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from parity_helpers import import_terratorch, no_initialisation
from torch import Tensor, nn

from tmcodec.networks.generator.config import GeneratorConfig, official_config
from tmcodec.networks.generator.model import Generator


def official_modules() -> Any:
    """Return TerraTorch's modules of the transformer, or skip."""
    import_terratorch()
    from terratorch.models.backbones.terramind.model import generate, modality_info, terramind, tm_utils

    torch.set_float32_matmul_precision("highest")
    return terramind, generate, modality_info.MODALITY_INFO, tm_utils


def randomise(net: nn.Module, seed: int) -> None:
    """Fill all weights; positions are left, and norms' biases too, which are never trained."""
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in net.state_dict().items():
        if key.endswith("pos_emb") or ("norm" in key and key.endswith("bias")):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if key.endswith(("mod_emb", "mask_token")):
            tensor.copy_(0.5 * noise)
        elif tensor.ndim > 1 and "emb" not in key.rsplit(".", 2)[-2]:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        elif tensor.ndim > 1:
            tensor.copy_(0.2 * noise)
        else:
            tensor.copy_(0.1 * noise + (1.0 if key.endswith("weight") else 0.0))


def build_official(cfg: GeneratorConfig, seed: int = 0) -> Any:
    """Return TerraTorch's encoder-decoder with the modalities of a configuration and random weights."""
    terramind, _, info, tm_utils = official_modules()
    dim = cfg.dim
    with no_initialisation():
        inputs = {
            s.key: info[s.key]["encoder_embedding"](image_size=224, dim_tokens=dim, **info[s.key])
            for s in cfg.modalities if s.encoder
        }  # fmt: skip
        targets = {
            s.key: info[s.key]["decoder_embedding"](image_size=224, dim_tokens=dim, **info[s.key])
            for s in cfg.modalities if s.decoder
        }  # fmt: skip
        net = terramind.TerraMind(
            inputs, targets, info, dim=dim, num_heads=cfg.heads, mlp_ratio=4.0,
            encoder_depth=cfg.encoder_depth, decoder_depth=cfg.decoder_depth,
            qkv_bias=cfg.biases, proj_bias=cfg.biases, mlp_bias=cfg.biases,
            norm_layer=partial(tm_utils.LayerNorm, eps=1e-6, bias=False),
            act_layer=nn.SiLU if cfg.gated else nn.GELU, gated_mlp=cfg.gated,
        )  # fmt: skip
    randomise(net, seed)
    return net.eval().requires_grad_(False)


@dataclass
class GeneratorPair:
    """The same weights twice."""

    cfg: GeneratorConfig
    official: Any
    sampler: Any
    ours: Generator

    def tokens(self, key: str, batch: int, count: int, seed: int = 0) -> Tensor:
        """Return random tokens of a modality."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.cfg.spec(key).vocabulary, (batch, count), generator=generator)

    def pixels(self, key: str, batch: int, height: int, width: int, seed: int = 0) -> Tensor:
        """Return random normalised pixels of a modality."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.cfg.spec(key).channels, height, width, generator=generator)


def pair_of(size: str, seed: int = 0) -> GeneratorPair:
    """Return both networks of an official size, in full depth, sharing the memory of their weights."""
    cfg = official_config(size)
    _, generate, _, _ = official_modules()
    official = build_official(cfg, seed)
    with torch.device("meta"):
        ours = Generator(cfg)
    ours.load_state_dict(official.state_dict(), strict=True, assign=True)
    ours.tie()
    ours.eval().requires_grad_(False)
    return GeneratorPair(cfg, official, generate.GenerationSampler(official), ours)


def visible(value: Tensor, count: int | None = None) -> dict[str, Tensor]:
    """Return what TerraTorch's sampler takes as a condition that is wholly visible."""
    batch = value.shape[0]
    number = count or (value.shape[-2] * value.shape[-1] // 256 if value.ndim == 4 else value.shape[1])
    return {
        "tensor": value,
        "input_mask": torch.zeros(batch, number, dtype=torch.bool),
        "target_mask": torch.ones(batch, number, dtype=torch.bool),
        "decoder_attention_mask": torch.zeros(batch, number, dtype=torch.bool),
    }


def empty_image(batch: int, count: int) -> dict[str, Tensor]:
    """Return an image target of which nothing is known."""
    return {
        "tensor": torch.zeros(batch, count, dtype=torch.int64),
        "input_mask": torch.ones(batch, count, dtype=torch.bool),
        "target_mask": torch.zeros(batch, count, dtype=torch.bool),
    }


def empty_sequence(batch: int, length: int) -> dict[str, Tensor]:
    """Return a sequence target: ``[S_1]`` visible, then ``[S_1] ... [S_2]`` to write."""
    words = torch.zeros(batch, length, dtype=torch.int64)
    words[:, :2], words[:, -1] = 5, 6
    hidden = torch.ones(batch, length, dtype=torch.bool)
    hidden[:, 0] = False
    return {"tensor": words, "input_mask": hidden, "target_mask": ~hidden, "decoder_attention_mask": hidden}
