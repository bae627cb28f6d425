"""The thinking encoder as a backbone of TerraTorch's models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity_helpers import import_terratorch

from tmcodec.generation.weights import save_generator
from tmcodec.networks.generator.config import GeneratorConfig, pixel_spec, token_spec
from tmcodec.networks.generator.model import Generator
from tmcodec.tim import register


@pytest.mark.parametrize("side", [64, 56])
def test_inputs_are_padded_to_its_patches(tmp_path: Path, side: int) -> None:
    """TerraTorch asks the backbone for its patch, pads with it, and crops what comes out."""
    import_terratorch()
    factory = pytest.importorskip("terratorch.models").EncoderDecoderFactory()
    register()
    torch.manual_seed(0)
    cfg = GeneratorConfig(32, 2, 1, 4, True, False, (pixel_spec("S1GRD"), token_spec("LULC")), grid=4)
    save_generator(tmp_path / "tiny.safetensors", Generator(cfg), "tiny", {})
    model = factory.build_model(
        task="segmentation", backbone="tmcodec_thinking_encoder", decoder="FCNDecoder", num_classes=3,
        necks=[{"name": "SelectIndices", "indices": [-1]},
               {"name": "ReshapeTokensToImage", "remove_cls_token": False}],
        backbone_model=str(tmp_path / "tiny.safetensors"), backbone_modalities=["S1GRD"],
        backbone_device="cpu", backbone_pretrained=True,
    )  # fmt: skip
    assert model.patch_size == 16
    assert model(torch.randn(1, 2, side, side)).output.shape == (1, 3, side, side)
