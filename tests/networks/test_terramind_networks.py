"""Networks of TerraMind's layout: published sizes, formulas written down a second time, fast layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.errors import PrecisionError
from tmcodec.networks.terramind import inference
from tmcodec.networks.terramind.config import TerraMindConfig
from tmcodec.networks.terramind.inference import pick_dtype, prepare
from tmcodec.networks.terramind.net import ENCODER_PREFIXES, DecoderHalf, EncoderHalf, expected_shapes
from tmcodec.networks.terramind.unet import time_features
from tmcodec.networks.terramind.vit import Attention, sincos_position

TINY = replace(
    OFFICIAL["terramind-v1-s1grd"].config, dim=48, depth=2, heads=4, unet_channels=32, unet_blocks=1
)
CLASSES = replace(OFFICIAL["terramind-v1-lulc"].config, dim=48, depth=2, heads=4)

# Tensors and numbers of the released checkpoints, fixed position embeddings included.
PUBLISHED = {
    "s2l2a": (601, 289_290_693),
    "s1grd": (601, 286_587_173),
    "s1rtc": (601, 286_587_173),
    "dem": (601, 286_316_821),
    "ndvi": (601, 286_316_821),
    "lulc": (310, 183_894_021),
}


@pytest.mark.parametrize("modality", list(PUBLISHED))
def test_sizes_are_the_published_ones(modality: str) -> None:
    shapes = expected_shapes(OFFICIAL[f"terramind-v1-{modality}"].config)
    assert (len(shapes), sum(int(np.prod(s)) for s in shapes.values())) == PUBLISHED[modality]


def test_the_encoder_is_a_third_of_the_weights() -> None:
    shapes = expected_shapes(OFFICIAL["terramind-v1-s2l2a"].config)
    encoder = sum(int(np.prod(s)) for k, s in shapes.items() if k.startswith("encoder."))
    decoder = sum(int(np.prod(s)) for k, s in shapes.items() if not k.startswith(ENCODER_PREFIXES))
    assert (encoder, decoder) == (92_335_104, 196_951_744)


def test_position_embedding_is_sines_and_cosines_of_rows_then_columns() -> None:
    table = sincos_position(3, 3, 8)[0].numpy()
    for row in range(3):
        for col in range(3):
            angles = [row, row / 100, col, col / 100]  # 10000 ** (1 / 2) is 100
            expected = [f(a) for pair in (angles[:2], angles[2:]) for f in (np.sin, np.cos) for a in pair]
            assert np.allclose(table[:, row, col], expected, atol=1e-6)


def test_time_features_are_cosines_first() -> None:
    found = time_features(torch.tensor([7]), 4)[0]
    assert torch.allclose(found, torch.tensor([np.cos(7), np.cos(0.07), np.sin(7), np.sin(0.07)]).float())


def test_attention_is_softmax_over_scaled_products() -> None:
    torch.manual_seed(0)
    layer, x = Attention(8, 2), torch.randn(1, 5, 8)
    q, k, v = layer.qkv(x).view(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    mixed = ((q @ k.transpose(-1, -2)) / 2).softmax(-1) @ v
    expected = layer.proj(mixed.transpose(1, 2).reshape(1, 5, 8))
    assert torch.allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (256, 32)])
def test_rectangles(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    rows, cols = size[0] // 16, size[1] // 16
    tokens = EncoderHalf(TINY).eval()(torch.randn(2, 2, *size))
    assert tokens.shape == (2, rows, cols)
    decoder = DecoderHalf(TINY).eval()
    clean = decoder.denoise(torch.randn(2, 2, *size), torch.tensor([999]), decoder.codes(tokens))
    assert clean.shape == (2, 2, *size)
    logits = DecoderHalf(CLASSES).eval()
    assert logits.logits(logits.codes(tokens % 4375)).shape == (2, 10, *size)


def test_cells_are_unshuffled_channel_by_channel() -> None:
    # b c (nh ph) (nw pw) -> b (c ph pw) nh nw, as the checkpoints' first convolution expects.
    x = torch.arange(2 * 8 * 8.0).view(1, 2, 8, 8)
    expected = x.view(1, 2, 2, 4, 2, 4).permute(0, 1, 3, 5, 2, 4).reshape(1, 32, 2, 2)
    assert torch.equal(F.pixel_unshuffle(x, 4), expected)


@pytest.fixture
def no_avx512(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let oneDNN refuse weights in bfloat16, as it does on processors without AVX-512."""
    pack = inference._pack_linear

    def refuse(weight: torch.Tensor) -> torch.Tensor:
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("bf16 path needs the cpu support avx512bw, avx512vl and avx512dq")
        return pack(weight)

    monkeypatch.setattr(inference, "_pack_linear", refuse)
    inference.packs.cache_clear()
    yield
    inference.packs.cache_clear()


def test_bfloat16_runs_where_onednn_refuses_it(no_avx512: None) -> None:
    layer = torch.nn.Linear(16, 8)
    x = torch.linspace(-1, 1, 32).view(2, 16)
    fast = inference.FastLinear(layer.weight, layer.bias, torch.bfloat16, "tanh")
    assert not fast.packed
    assert torch.allclose(fast(x).float(), layer(x).tanh(), atol=0.03)
    single = inference.FastLinear(layer.weight, layer.bias, torch.float32, "tanh")
    assert single.packed == inference.packs(torch.float32)


def test_looking_for_operators_draws_no_random_numbers() -> None:
    inference.packs.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    inference.packs(torch.float32)
    inference.packs(torch.bfloat16)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_fast_layers_compute_the_same(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        encoder, decoder, classes = EncoderHalf(TINY), DecoderHalf(TINY), DecoderHalf(CLASSES)
        z, tokens = torch.randn(2, 2, 64, 32), torch.randint(0, 4375, (2, 4, 2))
        codes, time = decoder.codes(tokens), torch.tensor([500])
        slow = encoder.latents(z), decoder.denoise(z, time, codes), classes.logits(codes)
        encoder, decoder, classes = (
            prepare(copy.deepcopy(net), dtype) for net in (encoder, decoder, classes)
        )
        fast = encoder.latents(z), decoder.denoise(z, time, codes), classes.logits(codes)
    for a, b in zip(slow, fast, strict=True):
        assert b.dtype == torch.float32
        assert float((a - b).abs().max()) < tolerance * float(a.std())


def test_what_tokens_hang_on_stays_in_float32() -> None:
    net = prepare(EncoderHalf(TINY), torch.bfloat16)
    assert net.encoder.post_mlp.fc1.bias.dtype == torch.float32
    assert net.encoder.proj.bias.dtype == torch.float32
    assert net.quant_proj.weight.dtype == torch.float32
    assert net.encoder.blocks[0].mlp.fc1.bias.dtype == torch.bfloat16


def test_configurations_survive_json_and_wild_ones_are_refused() -> None:
    for model in OFFICIAL.values():
        assert TerraMindConfig.from_dict(model.config.to_dict()) == model.config
    good = TINY.to_dict()
    changes: list[dict[str, object]] = [
        {"dim": 10**9}, {"dim": "wide"}, {"depth": -1}, {"levels": []}, {"levels": [10**6]}, {"mean": [1.0]},
        {"std": [0.0, 1.0]}, {"decoder": "magic"}, {"unet_channels": 33}, {"surprise": 1}, {"heads": 5},
        {"unet_multipliers": [1] * 9}, {"channels": True},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises((ValueError, TypeError)):
            TerraMindConfig.from_dict({**good, **change})


def test_precisions() -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("fp32", cpu) == torch.float32
    assert pick_dtype("bf16", cpu) == torch.bfloat16
    with pytest.raises(PrecisionError, match="fp8"):
        pick_dtype("fp8", cpu)
