"""TerraMind's layout beside an embedded one in one evaluation, with networks that a test can afford."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tmcodec
from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.networks.terramind.net import DecoderHalf, EncoderHalf

NAME = "terramind-v1-s1grd"


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Shrink an official configuration and write random weights of it under the official keys."""
    model = OFFICIAL[NAME]
    config = replace(model.config, dim=48, depth=2, heads=4, unet_channels=32, unet_blocks=1)
    monkeypatch.setitem(OFFICIAL, NAME, replace(model, config=config))
    monkeypatch.setenv("TMCODEC_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    path = tmp_path / "weights.pt"
    torch.save({**EncoderHalf(config).state_dict(), **DecoderHalf(config).state_dict()}, path)
    return path


@pytest.mark.parametrize("named", [False, True])
def test_a_checkpoint_beside_a_small_tokenizer(
    named: bool, checkpoint: Path, make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path]
) -> None:
    scene = make_scene("S1GRD", 64, 48)
    given = f"{NAME}={checkpoint}" if named else str(checkpoint)
    report = tmcodec.evaluate(
        scene, tokenizers=[NAME, str(tiny_tokenizer("S1GRD"))], checkpoints=[given], steps=(1, 2),
        baselines=("blocks",),
    )
    assert [u.tokenizer for u in report.token_use] == [NAME, "tiny-s1grd"]
    for method in (f"{NAME}@1", f"{NAME}@2", "tiny-s1grd@1", "tiny-s1grd@2"):
        (entry,) = report.of(method)
        assert 5 < entry.values["psnr"] < 40 and entry.bytes is not None and entry.bytes > 100
    limits = {m.tokenizer: e.size_limit for m in report.methods for e in report.of(m.key) if e.size_limit}
    assert limits == {u: report.of(f"{u}@1")[0].bytes for u in (NAME, "tiny-s1grd") if u in limits}
    pairs = {(d["method"], d["against"]) for d in report.differences()}
    assert (f"{NAME}@1", "tiny-s1grd@1") in pairs and (f"{NAME}@1", f"{NAME}@2") in pairs
