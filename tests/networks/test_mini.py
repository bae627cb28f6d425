"""The small tokenizer's inference: fused steps and strips change no token and next to no pixel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tmcodec.fsq import backends
from tmcodec.networks.blocks import STRIP, MixBlock
from tmcodec.networks.mini import MiniConfig, MiniNet


def net_of(modality="S2L2A", **changes):
    torch.manual_seed(0)
    cfg = MiniConfig(
        modality=modality, channels=3, levels=(8, 6, 5), dim=32, encoder_blocks=1, decoder_blocks=1,
        refine=16, denoiser_blocks=0, compand="sqrt", origin=1000.0, knee=60.0,
        mean=(20.0, 21.0, 22.0), std=(14.0, 15.0, 16.0), **changes,
    )  # fmt: skip
    net = MiniNet(cfg).eval()
    with torch.no_grad():  # fresh blocks are nearly the identity
        for name, weight in net.named_parameters():
            if name.endswith("scale"):
                weight.fill_(1.0)
    return net


def pictures(side=96):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 4000


@pytest.mark.parametrize("dim", [16, 64])
def test_strips_give_the_bits_of_the_whole(dim):
    torch.manual_seed(2)
    block = MixBlock(dim, 3)
    nn.init.normal_(block.scale)
    side = int((2.5 * STRIP / (3 * dim)) ** 0.5)  # two strips and a half
    x, shift = torch.randn(2, side, side, dim), torch.randn(2, dim)
    for move in (None, shift):
        with torch.inference_mode():
            found = block(x, move)
            mixed = block.mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            normed = block.norm(mixed) if move is None else block.norm(mixed) + move[:, None, None]
            expected = x + block.scale * block.down(block.up.gelu(normed))
        assert torch.equal(found, expected)
        torch.testing.assert_close(block(x, move), found, atol=1e-5, rtol=1e-5)  # as in training


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_latents_and_pictures_are_those_of_the_plain_network(backend, monkeypatch):
    if backends.unavailable(backend):
        pytest.skip("no native kernels")
    monkeypatch.setenv(backends.VARIABLE, backend)
    net, x = net_of(), pictures()
    with torch.inference_mode():
        latents = net.latents(x)
        codes, indices = net.fsq(latents)
        picture = net.picture(codes, 0.0, 65535.0)
    plain = net.encoder(net.compander.compress(x))  # gradients on: every step is PyTorch's
    torch.testing.assert_close(latents, plain, atol=1e-5, rtol=1e-5)
    assert float((net.fsq(plain)[1] != indices).float().mean()) < 0.01
    mean, _ = net.decoder(codes)
    expected = net.compander.expand(mean).clamp(0, 65535)
    torch.testing.assert_close(picture, expected, atol=0.05, rtol=1e-4)


def test_height_tokenizers_have_the_same_entries():
    cfg = MiniConfig(
        modality="DEM", channels=1, levels=(8, 6, 5), dim=16, encoder_blocks=1, decoder_blocks=1, refine=8,
        denoiser_blocks=0, compand="asinh", knee=1000.0, mean=(0.7,), std=(0.6,), kind="height",
    )  # fmt: skip
    net = MiniNet(cfg).eval()
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(3)) * 3000
    with torch.inference_mode():
        latents = net.latents(x)
        assert torch.equal(latents, net.encoder(net.compander.compress(x)))
        codes, _ = net.fsq(latents)
        found = net.picture(codes, -12000.0, 9000.0)
        expected = net.compander.expand(net.decoder(codes)[0]).clamp(-12000, 9000)
        torch.testing.assert_close(found, expected)
