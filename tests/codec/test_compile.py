"""TerraMind's networks through ``torch.compile``: the same tokens and pictures, up to the order of sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tmcodec
from tmcodec.codec.terramind import TerraMindTokenizer
from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.errors import DeviceError
from tmcodec.networks.terramind import compiled
from tmcodec.networks.terramind.net import DecoderHalf, EncoderHalf

S1, LULC = "terramind-v1-s1grd", "terramind-v1-lulc"

pytestmark = pytest.mark.skipif(
    not any(map(compiled.shutil.which, compiled.COMPILERS)), reason="no C++ compiler"
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (S1, LULC):
        config = replace(
            OFFICIAL[name].config, dim=32, depth=1, heads=2, unet_channels=32, unet_blocks=1,
            unet_multipliers=(1, 2), unet_attention=(2,),
        )  # fmt: skip
        monkeypatch.setitem(OFFICIAL, name, replace(OFFICIAL[name], config=config))


def both(name: str, folder: Path) -> tuple[TerraMindTokenizer, TerraMindTokenizer]:
    """Return the tokenizer of random weights as it is, and compiled."""
    torch.manual_seed(0)
    cfg, path = OFFICIAL[name].config, folder / OFFICIAL[name].filename
    state: dict[str, Tensor] = {**EncoderHalf(cfg).state_dict(), **DecoderHalf(cfg).state_dict()}
    torch.save({k: torch.randn_like(v) / max(v[0].numel(), 4) ** 0.5 for k, v in state.items()}, path)
    made = [
        tmcodec.load_tokenizer(name, "cpu", checkpoint=path, precision="fp32", compile=c)
        for c in (False, True)
    ]
    assert all(isinstance(tok, TerraMindTokenizer) for tok in made)
    return made[0], made[1]  # type: ignore[return-value]


@pytest.mark.slow
def test_compiled_tokens_and_pictures(tmp_path: Path) -> None:
    plain, fast = both(S1, tmp_path)
    x = torch.randn(2, 2, 64, 64, generator=torch.Generator().manual_seed(1)) * plain.std + plain.mean
    torch.testing.assert_close(fast.latents(x), plain.latents(x), atol=1e-4, rtol=1e-4)
    tokens = plain.encode(x)
    differ = fast.encode(x) != tokens
    assert len(tokens.unique()) > 8 and float(differ.float().mean()) <= 1 / 16
    assert fast.sha256 == plain.sha256
    for steps in (1, 3):
        picture = fast.decode(tokens, steps, seed=5)
        expected = plain.decode(tokens, steps, seed=5)
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(picture, expected, atol=2e-2, rtol=1e-3)  # decibels
    assert torch.equal(fast.decode(tokens, 3, seed=5), picture)


def test_compiled_classes(tmp_path: Path) -> None:
    plain, fast = both(LULC, tmp_path)
    tokens = torch.randint(0, 4375, (1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    expected = plain.decode(tokens)
    assert len(expected.unique()) > 2
    assert float((fast.decode(tokens) != expected).float().mean()) < 1e-3


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match=r"compile needs a C\+\+ compiler"):
        compiled.check_compiler(torch.device("cpu"))
    compiled.check_compiler(torch.device("cuda"))  # Triton's business
