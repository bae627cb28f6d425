"""Tokenizers widened to a modality of more bands: the same tokens, the same picture, one band more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")

from tmcodec.codec.models import load_tokenizer
from tmcodec.codec.weights import load_weights
from tmcodec.modalities import MODALITIES
from tmcodec.training.bands import fit_new_bands, new_band_loss, widened
from tmcodec.training.corpus import CropSampler, Scene

L1C, L2A = MODALITIES["S2L1C"].bands, MODALITIES["S2L2A"].bands
SHARED = [L1C.index(b) for b in L2A]
B10 = L1C.index("B10")


def scene(seed: int = 0) -> Scene:
    """Thirteen bands of smooth digital numbers; B10 follows from B02."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(1200, 3500, (13, 24, 24)).astype(np.float32)
    values = np.repeat(np.repeat(coarse, 8, 1), 8, 2)
    values[B10] = 1010 + 0.01 * (values[L1C.index("B02")] - 1000)
    return Scene("S2L1C/made", values, np.ones(values.shape, bool), 1.0)


def test_the_new_band_is_fitted_and_nothing_else_moves(tiny_tokenizer: Callable[[str], Path]) -> None:
    source = load_weights(tiny_tokenizer("S2L2A"))[0]
    made = scene()
    net = widened(source, MODALITIES["S2L1C"], [made])
    x = torch.from_numpy(made.values[None, :, :64, :64])
    other = x.clone()
    other[:, B10] = 4000  # the encoder does not look at it
    tokens = source.fsq.latents_to_indices(source.latents(x[:, SHARED]))
    for picture in (x, other):
        assert torch.equal(net.fsq.latents_to_indices(net.latents(picture)), tokens)
    codes = source.fsq.indices_to_codes(tokens)
    before = source.picture(codes, 0, 65535).detach()
    unfitted = net.picture(codes, 0, 65535).detach()
    torch.testing.assert_close(unfitted[:, SHARED], before, rtol=1e-6, atol=1e-3)
    # Rows of zeros give the mean of companded values: here of a nearly constant band.
    assert float((unfitted[:, B10] - made.values[B10].mean()).abs().max()) < 1

    made.values[B10] = 1040  # three deviations above what was measured
    sampler = CropSampler([made], 64, None, 0.0, 0.0, 0)
    values, valid = (torch.from_numpy(a) for a in sampler.batch(4))
    start = new_band_loss(net, values, valid, [B10]).item()
    fit_new_bands(net, sampler, [B10], 80, 5e-2)
    assert new_band_loss(net, values, valid, [B10]).item() < 0.1 * start
    after = net.picture(codes, 0, 65535).detach()
    assert torch.equal(after[:, SHARED], unfitted[:, SHARED])
    assert not torch.equal(after[:, B10], unfitted[:, B10])


def test_the_embedded_one_has_the_tokens_of_level_2a() -> None:
    wide, base = load_tokenizer("mini-s2l1c-v3", "cpu"), load_tokenizer("mini-s2l2a-v2", "cpu")
    x = torch.from_numpy(np.random.default_rng(1).uniform(1000, 5000, (1, 13, 96, 96)).astype(np.float32))
    tokens = wide.encode(x)
    assert torch.equal(tokens, base.encode(x[:, SHARED]))
    for steps, atol in ((1, 0.01), (3, 0.5)):
        ours, theirs = (tok.decode(tokens, steps=steps, seed=3) for tok in (wide, base))
        torch.testing.assert_close(ours[:, SHARED], theirs, rtol=0, atol=atol)
