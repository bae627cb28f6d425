"""TerraTorch's tokenizers and ours with the same weights: the same tokens, the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity_helpers import assert_at_edges, build_official, round_trip

from tmcodec.codec.terramind import TerraMindTokenizer
from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.networks.terramind.net import expected_shapes

ATOL = 1e-4


def test_keys_and_shapes_are_the_official_ones(pair: Any) -> None:
    state = {k: tuple(v.shape) for k, v in pair.official.state_dict().items()}
    assert expected_shapes(pair.ours.cfg) == state
    assert len(state) == (310 if pair.ours.cfg.categorical else 601)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (48, 160)])
def test_latents_and_tokens(pair: Any, size: tuple[int, int]) -> None:
    x, z = pair.pictures(2, *size)
    with torch.inference_mode():
        theirs = pair.official.quant_proj(pair.official.encoder(z)).permute(0, 2, 3, 1)
        expected = pair.official.tokenize(z)
    latents, tokens = pair.ours.latents(x), pair.ours.encode(x)
    assert theirs.std() > 0.1  # weights that say something
    assert torch.allclose(latents, theirs, atol=ATOL, rtol=0)
    assert_at_edges(latents, tokens, expected, pair.ours.levels, ATOL)
    assert torch.equal(tokens, expected)


def test_class_ids_are_what_theirs_makes_of_one_hot_input(pair: Any) -> None:
    if not pair.ours.cfg.categorical:
        pytest.skip("has no classes")
    x, _ = pair.pictures(1, 64, 64)
    hot = torch.nn.functional.one_hot(x[:, 0].long(), pair.ours.cfg.channels).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        assert torch.equal(pair.official.tokenize(hot), pair.ours.encode(x))


@pytest.mark.parametrize("timestep", [999, 499, 19])
def test_denoiser(pair: Any, timestep: int) -> None:
    if pair.ours.cfg.categorical:
        pytest.skip("has no diffusion")
    tokens = pair.tokens(2, 6, 4)
    noisy = torch.randn(2, pair.ours.cfg.channels, 96, 64, generator=torch.Generator().manual_seed(1))
    net = pair.ours.decoder()
    with torch.inference_mode():
        theirs = pair.official.decoder(
            noisy, torch.tensor(timestep), pair.official.tokens_to_embedding(tokens)
        )
        found = net.denoise(noisy, torch.tensor([timestep]), net.codes(tokens))
    assert theirs.std() > 0.1
    assert torch.allclose(found, theirs, atol=ATOL, rtol=0)


@pytest.mark.parametrize("steps", [5, 7])
def test_seeded_decode(pair: Any, steps: int) -> None:
    if pair.ours.cfg.categorical:
        pytest.skip("has no steps")
    check_decode(pair, 1, (6, 4), steps)


def check_decode(pair: Any, batch: int, grid: tuple[int, int], steps: int) -> None:
    """Compare a seeded decode with TerraTorch's, in standard deviations."""
    tokens = pair.tokens(batch, *grid)
    with torch.inference_mode():
        theirs = pair.official.decode_tokens(
            tokens, timesteps=steps, generator=torch.Generator().manual_seed(3), verbose=False
        )
    found = pair.ours.decode(tokens, steps=steps, seed=3, sampler="official")
    low, high = pair.ours.modality.valid_range
    physical = (theirs * pair.ours.std + pair.ours.mean).clamp(low, high)
    assert float(theirs.abs().max()) <= 1
    assert float(((found - physical) / pair.ours.std).abs().max()) < ATOL


def test_classes(pair: Any) -> None:
    if not pair.ours.cfg.categorical:
        pytest.skip("has no classes")
    tokens = pair.tokens(2, 6, 4)
    net = pair.ours.decoder()
    with torch.inference_mode():
        theirs = pair.official.decode_tokens(tokens)
        assert torch.allclose(net.logits(net.codes(tokens)), theirs, atol=ATOL, rtol=0)
    assert torch.equal(pair.ours.decode(tokens)[:, 0].long(), theirs.argmax(1))


def test_a_whole_tile(pair: Any) -> None:
    x, z = pair.pictures(1, 256, 256)
    with torch.inference_mode():
        expected = pair.official.tokenize(z)
    assert torch.equal(pair.ours.encode(x), expected)
    if pair.name.endswith("s1grd"):
        check_decode(pair, 1, (16, 16), 5)


def test_flips_in_bfloat16_are_few(pair: Any) -> None:
    if not pair.name.endswith("s2l2a"):
        pytest.skip("one tokenizer suffices")
    x, _ = pair.pictures(1, 256, 256)
    fast = TerraMindTokenizer(pair.ours.checkpoint, device="cpu", precision="bf16")
    flipped = float((fast.encode(x) != pair.ours.encode(x)).float().mean())
    # Half the codes would be wrong if indices were summed in bfloat16; random weights flip some at edges.
    assert 0 < flipped < 0.15


def test_version_01_land_cover_has_nine_classes(terratorch_tokenizers: Any) -> None:
    official = build_official(terratorch_tokenizers, "terramind-v01-lulc")
    state = {k: tuple(v.shape) for k, v in official.state_dict().items()}
    assert expected_shapes(OFFICIAL["terramind-v01-lulc"].config) == state


def test_table_of_repositories_is_theirs(terratorch_tokenizers: Any) -> None:
    for name, model in OFFICIAL.items():
        _, version, modality = name.split("-")
        theirs = terratorch_tokenizers.pretrained_weights[f"terramind_{version}_tokenizer_{modality}"]
        assert (model.repo, model.filename) == (theirs["hf_hub_id"], theirs["hf_hub_filename"])


def test_statistics_are_theirs(terratorch_tokenizers: Any) -> None:
    from terratorch.models.backbones.terramind.model.terramind_register import (
        v01_pretraining_mean,
        v01_pretraining_std,
        v1_pretraining_mean,
        v1_pretraining_std,
    )

    keys = {"S2L2A": "tok_sen2l2a@224", "S1GRD": "tok_sen1grd@224", "S1RTC": "tok_sen1rtc@224",
            "DEM": "tok_dem@224", "NDVI": "tok_ndvi@224"}  # fmt: skip
    compared = 0
    for name, model in OFFICIAL.items():
        v1 = name.startswith("terramind-v1-")
        if model.modality not in keys:
            continue
        means, stds = (
            (v1_pretraining_mean, v1_pretraining_std) if v1 else (v01_pretraining_mean, v01_pretraining_std)
        )
        assert np.allclose(model.config.mean, means[keys[model.modality]], atol=1e-3)
        assert np.allclose(model.config.std, stds[keys[model.modality]], atol=1e-3)
        compared += 1
    assert compared == 8


def test_official_checkpoint_through_the_command_line(
    terratorch_tokenizers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        official = build_official(terratorch_tokenizers, "terramind-v1-lulc", seed)
        torch.save(official.state_dict(), tmp_path / f"weights{seed}.pt")
    monkeypatch.setenv("TMCODEC_HOME", str(tmp_path / "home"))
    decoded, after_import, refusal = round_trip(tmp_path)
    np.testing.assert_array_equal(after_import, decoded)
    assert "was made by terramind-v1-lulc" in refusal
