"""Generation runs on every device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tmcodec
from tmcodec.generation.files import generate_files
from tmcodec.generation.models import load_generator

ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


@pytest.mark.parametrize("choice", ["draw", "mean"])
@pytest.mark.parametrize("device", DEVICES)
def test_tokens_and_pictures(device: str, choice: str, model: Path) -> None:
    loaded = load_generator(str(model), device, precision="fp32")
    tokens = {"S2L2A": torch.arange(32).view(2, 4, 4)}
    how = {"decoding_steps": 3, "seed": 5, "samples": 2, "decode": True, "choice": choice}
    schedule = "roar" if choice == "mean" else "nearest"  # means in the order of nearness have one answer
    made = [loaded.generate(tokens, "DEM", schedule=schedule, **how) for _ in range(2)]
    found, again = (one.sampled_tokens["DEM"].cpu() for one in made)
    assert found.shape == (2, 2, 4, 4)
    assert torch.equal(found, again)
    assert not torch.equal(found[0], found[1])
    assert torch.isfinite(made[0].sampled_rasters["DEM"].cpu()).all()


@pytest.mark.parametrize("device", DEVICES)
def test_files(
    device: str, model: Path, make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path]
) -> None:
    scene = make_scene(width=70, height=60)
    src, out = scene.with_suffix(".tmc"), scene.with_name("made.tmc")
    tmcodec.encode(scene, src, tokenizer=str(tiny_tokenizer("S2L2A")), balance=False, device=device)
    generate_files(str(model), src, out, ["DEM", "LULC"], device=device)
    with tmcodec.open(out) as file:
        assert list(file) == ["DEM", "LULC"]
    values, _ = tmcodec.decode_array(out, layer="LULC", tokenizer=str(tiny_tokenizer("LULC")), device=device)
    assert values.shape == (1, 60, 70)
