"""TerraMind's layout as a network to train: encoder, quantizer and decoder in one module.

Its state dict has the keys of an official checkpoint, so that what a run writes is what
`tmcodec encode --tokenizer FILE` takes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tmcodec.codec.lineage import terramind_tokens_digest
from tmcodec.errors import ConfigError
from tmcodec.fsq import FSQ
from tmcodec.modalities import get_modality
from tmcodec.networks.compand import Compander
from tmcodec.networks.terramind.config import TerraMindConfig, check_config
from tmcodec.networks.terramind.net import ENCODER_PREFIXES, DecoderHalf, EncoderHalf
from tmcodec.networks.terramind.unet import AttentionBlock, PatchedUNet, ResBlock
from tmcodec.networks.terramind.vit import Attention, Block, Mlp
from tmcodec.samplers.sample import DEFAULT, sample

Stage = Literal["full", "decoder", "chain", "distill"]

_DECODER = ("decoder.", "post_quant_proj.")
PARTS: dict[str, tuple[str, ...]] = {
    "full": (*ENCODER_PREFIXES, *_DECODER),
    "decoder": _DECODER,
    "chain": _DECODER,
    "distill": _DECODER,
}
"""Names of the parameters that a stage trains begin so; position embeddings never move."""


class TerraMindNet(nn.Module):
    """A tokenizer of TerraMind's layout.

    Attributes
    ----------
    cfg
        Sizes and statistics.
    compander
        Physical values to standardised ones and back; no part of the state dict.
    """

    def __init__(self, cfg: TerraMindConfig) -> None:
        super().__init__()
        first, second = EncoderHalf(cfg), DecoderHalf(cfg)
        self.cfg = cfg
        self.encoder, self.quant_proj, self.decoder = first.encoder, first.quant_proj, second.decoder
        if cfg.categorical:
            self.post_quant_proj = second.post_quant_proj
        self.fsq = FSQ(cfg.levels)
        self.compander = Compander("linear", 0.0, 1.0, cfg.mean or (0.0,), cfg.std or (1.0,))
        for module in self.modules():
            if isinstance(module, Mlp) and isinstance(module.act, nn.Tanh):
                module.__class__ = Float32Mlp

    def latents(self, z: Tensor) -> Tensor:
        """Return latents ``(B, rows, cols, d)`` of normalised pictures, projected in float32."""
        features = self.encoder(z)
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.quant_proj.weight.flatten(1), self.quant_proj.bias)

    def codes(self, z: Tensor, trained: bool) -> tuple[Tensor, Tensor]:
        """Return codes ``(B, d, rows, cols)`` in [0, 1] and latents; without gradients where the encoder
        stays."""
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            latents = self.latents(z)
            return self.fsq.quantize(latents).movedim(-1, 1).contiguous(), latents

    def logits(self, codes: Tensor) -> Tensor:
        """Return class logits ``(B, C, H, W)``, float32."""
        return self.decoder(self.post_quant_proj(codes).permute(0, 2, 3, 1))

    def draw(self, codes: Tensor, noise: Tensor, steps: int, sampler: str = DEFAULT) -> Tensor:
        """Return pictures drawn from `noise` in `steps` steps, float32, with gradients through all."""
        return draw(self.decoder, codes, noise, steps, sampler)

    def tokens_digest(self) -> bytes:
        """Return `tmcodec.codec.lineage.terramind_tokens_digest` of this network."""
        encoder = {k: v for k, v in self.state_dict().items() if k.startswith(ENCODER_PREFIXES)}
        return terramind_tokens_digest(self.cfg, encoder)


def draw(decoder: nn.Module, codes: Tensor, noise: Tensor, steps: int, sampler: str = DEFAULT) -> Tensor:
    """Return pictures that a diffusion decoder draws from `noise` ``(B, C, H, W)``; no clamp by default."""

    def denoise(noisy: Tensor, times: Tensor) -> Tensor:
        return decoder(noisy, times.to(noisy.device), codes).float()

    return sample(denoise, noise, steps, sampler)


def with_statistics(cfg: TerraMindConfig) -> TerraMindConfig:
    """Fill in the modality's own statistics where a configuration has none.

    Raises
    ------
    ConfigError
        If a size is out of range.
    """
    row = get_modality(cfg.modality)
    if not cfg.mean and not cfg.std and not row.categorical:
        cfg = replace(cfg, mean=tuple(row.mean), std=tuple(row.std))
    try:
        check_config(cfg)
    except (TypeError, ValueError) as err:
        raise ConfigError(f"model.net: {err}") from err
    channels = len(row.classes) if row.categorical else len(row.bands)
    if cfg.channels != channels or cfg.categorical != row.categorical:
        kind = "decoder: vit" if row.categorical else "decoder: unet"
        raise ConfigError(f"model.net: {cfg.modality} needs channels: {channels} and {kind}")
    return cfg


def freeze(net: TerraMindNet, stage: Stage) -> None:
    """Let gradients reach what the stage trains, and nothing else.

    Raises
    ------
    ConfigError
        If the stage needs a diffusion decoder and the network has none.
    """
    if net.cfg.categorical and stage in ("chain", "distill"):
        raise ConfigError(f"stage {stage} is for diffusion decoders; {net.cfg.modality} is decoded at once")
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(PARTS[stage]) and not name.endswith("pos_emb"))


def initialise(net: TerraMindNet) -> None:
    """Set the weights that training from scratch starts with.

    Linear layers are Glorot-uniform with zero biases, as ViTs commonly are (arXiv 2010.11929). The last
    convolution of each residual block, attention's projection and the output start at zero, as in guided
    diffusion (arXiv 2105.05233): every block is the identity at first.
    """
    for module in net.modules():
        if isinstance(module, Attention | Mlp):
            for layer in module.children():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
        elif isinstance(module, ResBlock):
            _zero(module.out_layers[3])
        elif isinstance(module, AttentionBlock):
            _zero(module.proj_out)
        elif isinstance(module, PatchedUNet):
            _zero(module.out[2])


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def checkpoint_activations(net: TerraMindNet) -> None:
    """Keep the inputs of blocks only, and compute their insides again on the way back: less memory, a third
    more work."""
    kinds = {Block: _LightBlock, ResBlock: _LightResBlock, AttentionBlock: _LightAttention}
    for module in net.modules():
        if type(module) in kinds:
            module.__class__ = kinds[type(module)]


class Float32Mlp(Mlp):
    """A perceptron outside autocast: tokens hang on it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class _Light(nn.Module):
    """Mixin: forget what lies inside on the way forth."""

    def forward(self, *inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(*inputs)
        found: Any = checkpoint(super().forward, *inputs, use_reentrant=False)
        return found


class _LightBlock(_Light, Block):
    pass


class _LightResBlock(_Light, ResBlock):
    pass


class _LightAttention(_Light, AttentionBlock):
    pass
