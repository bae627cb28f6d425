"""The two halves of a TerraMind tokenizer: what encoding needs, and what decoding needs.

The keys of both state dicts together are those of an official checkpoint, without any renaming:
``encoder.*``, ``quant_proj.*`` here, ``decoder.*``, ``post_quant_proj.*`` there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tmcodec.fsq import FSQ
from tmcodec.networks.terramind.config import TerraMindConfig
from tmcodec.networks.terramind.unet import PatchedUNet
from tmcodec.networks.terramind.vit import ViTDecoder, ViTEncoder

ENCODER_PREFIXES = ("encoder.", "quant_proj.")
"""Keys of an official checkpoint that encoding needs; decoding needs the others."""


class EncoderHalf(nn.Module):
    """Normalised picture ``(B, C, H, W)`` (one-hot for classes) to latents and tokens."""

    def __init__(self, cfg: TerraMindConfig) -> None:
        super().__init__()
        self.encoder = ViTEncoder(cfg)
        self.quant_proj = nn.Conv2d(cfg.dim, len(cfg.levels), 1)
        self.fsq = FSQ(cfg.levels)

    def latents(self, z: Tensor) -> Tensor:
        """Return latents ``(B, rows, cols, d)``, projected in float32 whatever the blocks ran in."""
        features = self.encoder(z)
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.quant_proj.weight.flatten(1), self.quant_proj.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Return int32 tokens ``(B, rows, cols)``."""
        return self.fsq.latents_to_indices(self.latents(z))


class DecoderHalf(nn.Module):
    """Codes to a picture: by diffusion (`denoise`) or, for classes, at once (`logits`)."""

    def __init__(self, cfg: TerraMindConfig) -> None:
        super().__init__()
        self.fsq = FSQ(cfg.levels, axis=1)
        self.decoder: PatchedUNet | ViTDecoder
        if cfg.decoder == "vit":
            self.post_quant_proj = nn.Conv2d(len(cfg.levels), cfg.dim, 1)
            self.decoder = ViTDecoder(cfg)
        else:
            self.decoder = PatchedUNet(cfg)

    def codes(self, tokens: Tensor) -> Tensor:
        """Return codes ``(B, d, rows, cols)`` in [0, 1], float32, of integer tokens ``(B, rows, cols)``."""
        return self.fsq.indices_to_codes(tokens)

    def denoise(self, noisy: Tensor, timesteps: Tensor, codes: Tensor) -> Tensor:
        """Predict the clean picture; see `PatchedUNet.forward`."""
        return self.decoder(noisy, timesteps, codes)

    def logits(self, codes: Tensor) -> Tensor:
        """Return class logits ``(B, C, H, W)``, float32."""
        return self.decoder(self.post_quant_proj(codes).permute(0, 2, 3, 1))


def expected_shapes(cfg: TerraMindConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a checkpoint, by key, without allocating any."""
    with torch.device("meta"):
        halves = EncoderHalf(cfg), DecoderHalf(cfg)
    return {key: tuple(t.shape) for half in halves for key, t in half.state_dict().items()}
