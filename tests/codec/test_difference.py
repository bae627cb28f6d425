"""Weights that leave out what an embedded tokenizer has, too: the way through files, and ways to be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tmcodec import errors
from tmcodec.cli.weights_header import read_header
from tmcodec.codec import models
from tmcodec.codec.weights import content_hash, load_weights, save_difference


@pytest.fixture
def base(tiny_tokenizer: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An embedded tokenizer, made here."""
    path = tmp_path / "mini-tiny-v1.safetensors"
    shutil.copy(tiny_tokenizer("S1GRD"), path)
    monkeypatch.setitem(models.EMBEDDED, "mini-tiny-v1", models.Model("mini-tiny-v1", "S1GRD", path))
    return "mini-tiny-v1"


@pytest.fixture
def moved(base: str, tmp_path: Path) -> Path:
    """A file with the difference of a moved network to the base."""
    net, _, _, _ = load_weights(models.EMBEDDED[base].path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if not name.startswith("denoiser"):
                p += 0.02 * torch.randn(p.shape, generator=generator)
    save_difference(tmp_path / "moved.safetensors", net, "moved", base, {"note": "x"})
    torch.save(net.state_dict(), tmp_path / "moved.pt")
    return tmp_path / "moved.safetensors"


def test_files_come_back(moved: Path, base: str, tmp_path: Path) -> None:
    net, name, sha256, notes = load_weights(moved)
    want = torch.load(tmp_path / "moved.pt", weights_only=True)
    assert name == "moved" and notes["base"] == base and notes["note"] == "x"
    assert all(torch.equal(v, want[k].half().float()) for k, v in net.state_dict().items())
    assert set(load_file(moved)) == {k for k in want if not k.startswith("denoiser")}
    # The identity is that of the same tensors stored whole, and is found without torch, too.
    config = json.loads(notes["config"])
    assert sha256 == content_hash(config, {k: v.half() for k, v in want.items()})
    header = read_header(moved)
    assert header.sha256 == sha256.hex()
    assert header.parameters == sum(v.numel() for v in want.values())


def rewritten(path: Path, **strings: str) -> Path:
    with safe_open(path, framework="pt") as f:
        meta = {**f.metadata(), **strings}
    target = path.with_name("rewritten.safetensors")
    save_file(load_file(path), target, metadata=meta)
    return target


@pytest.mark.parametrize(("strings", "message"), [
    ({"base": "mini-s9-v1"}, "not embedded"),
    ({"base": "../mini-tiny-v1"}, "not embedded"),
    ({"base_sha256": "00" * 32}, "other weights"),
    ({"base": "mini-s1grd-v2"}, "other weights"),
])  # fmt: skip
def test_a_base_that_is_not_there(moved: Path, strings: dict[str, str], message: str) -> None:
    other = rewritten(moved, **strings)
    for read in (load_weights, read_header):
        with pytest.raises(errors.WeightsError, match=message):
            read(other)


def test_a_difference_is_no_base(moved: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = load_weights(moved)[2]
    again = rewritten(moved, base="mini-twice-v1", base_sha256=sha256.hex())
    monkeypatch.setitem(models.EMBEDDED, "mini-twice-v1", models.Model("mini-twice-v1", "S1GRD", moved))
    for read in (load_weights, read_header):
        with pytest.raises(errors.WeightsError, match="other weights"):
            read(again)


def test_tensors_of_no_network_are_named(moved: Path) -> None:
    target = moved.with_name("more.safetensors")
    with safe_open(moved, framework="pt") as f:
        meta = f.metadata()
    save_file({**load_file(moved), "more": torch.zeros(2)}, target, metadata=meta)
    with pytest.raises(errors.WeightsError, match="unexpected: more"):
        load_weights(target)
