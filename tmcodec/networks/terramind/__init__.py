"""Networks of TerraMind's layout, with the parameter names of the official checkpoints."""

from __future__ import annotations

from tmcodec.networks.terramind.config import TerraMindConfig
from tmcodec.networks.terramind.inference import prepare
from tmcodec.networks.terramind.net import ENCODER_PREFIXES, DecoderHalf, EncoderHalf, expected_shapes

__all__ = [
    "ENCODER_PREFIXES",
    "DecoderHalf",
    "EncoderHalf",
    "TerraMindConfig",
    "expected_shapes",
    "prepare",
]
