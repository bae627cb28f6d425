"""Weights as a difference: the arithmetic by hand, the way through files, and every way to be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tmcodec import errors
from tmcodec.cli.weights_header import read_header
from tmcodec.codec import models
from tmcodec.codec.difference import SCALE, STEPS, add, pack_difference, subtract, unpack_difference
from tmcodec.codec.weights import content_hash, load_weights, save_difference

HALF = np.float16


def test_unpacking_by_hand() -> None:
    base = np.array([[1.0, 2.0, 3.0], [0.5, -0.5, 0.0]], HALF)
    # steps of row 0: -7, 0, 7; of row 1: 1, -1, 3; plus 8 each, the first of two in the low half
    steps = np.array([1 | 8 << 4, 15 | 9 << 4, 7 | 11 << 4], np.uint8)
    found = unpack_difference(steps, np.array([0.5, 0.25], HALF), base)
    np.testing.assert_array_equal(found, np.array([[-2.5, 2.0, 6.5], [0.75, -0.75, 0.75]], HALF))


def test_packing_by_hand() -> None:
    base = np.zeros((3, 3), HALF)
    tensor = np.array([[0.25, -1.75, 1.0], [0.0, 0.0, 0.0], [0.5, 3.5, -3.0]], HALF)
    steps, scale = pack_difference(tensor, base)
    np.testing.assert_array_equal(scale, np.array([0.25, 0.0, 0.5], HALF))
    # 1 -7 4, 0 0 0, 1 7 -6, and a filler
    assert steps.tolist() == [9 | 1 << 4, 12 | 8 << 4, 8 | 8 << 4, 9 | 15 << 4, 2 | 8 << 4]


def test_sums_are_rounded_once() -> None:
    """1 + 2^-11 + 2^-24 lies just above the middle of two halves; rounding the sum of two parts first to
    float32 keeps it, to half precision would lose it."""
    base = np.array([[1.0]], HALF)
    scale = np.array([(1 + 2**-10) * 2**-11], HALF)
    assert unpack_difference(np.array([9], np.uint8), scale, base)[0, 0] == HALF(1 + 2**-10)


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 5), st.integers(1, 7)).flatmap(
    lambda shape: arrays(HALF, (2, *shape), elements=st.floats(-8, 8, width=16))))  # fmt: skip
def test_no_number_is_off_by_more_than_the_largest_step(pair: np.ndarray) -> None:
    base, tensor = pair
    steps, scale = pack_difference(tensor, base)
    found = unpack_difference(steps, scale, base).astype(np.float64)
    gap = np.abs(tensor.astype(np.float64) - base.astype(np.float64))
    assert steps.shape == ((base.size + 1) // 2,) and scale.shape == (len(base),)
    assert (np.abs(found - tensor) <= np.maximum(gap.max(1, keepdims=True), 2**-14) * 0.61 + 2**-7).all()
    # Better than the base alone, row by row, but for rounding to half precision.
    after = ((found - tensor) ** 2).sum(1)
    assert (after <= (gap**2).sum(1) + 1e-3).all()


def test_what_is_stored_how() -> None:
    base = {"same": np.ones((2, 2), HALF), "moved": np.ones((2, 2), HALF), "vector": np.ones(3, HALF),
            "wider": np.ones((2, 2), HALF)}  # fmt: skip
    tensors = {"same": base["same"], "moved": base["moved"] * HALF(1.5), "vector": np.zeros(3, HALF),
               "wider": np.ones((3, 2), HALF), "new": np.ones((2, 2), HALF)}  # fmt: skip
    stored = subtract(tensors, base)
    assert sorted(stored) == ["moved" + SCALE, "moved" + STEPS, "new", "vector", "wider"]
    whole = add(stored, base)
    assert sorted(whole) == sorted(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(whole[name], tensor, rtol=2e-3)


@pytest.mark.parametrize("spoil", [
    lambda s: s.pop("w" + SCALE),
    lambda s: s.update({"w" + STEPS: s["w" + STEPS][:-1]}),
    lambda s: s.update({"w" + STEPS: s["w" + STEPS].astype(np.int16)}),
    lambda s: s.update({"w" + SCALE: s["w" + SCALE][:-1]}),
    lambda s: s.update({"w" + SCALE: s["w" + SCALE].astype(np.float32)}),
    lambda s: s.update({"w": np.ones((4, 4), HALF)}),
    lambda s: s.update({"other" + STEPS: s["w" + STEPS], "other" + SCALE: s["w" + SCALE]}),
])  # fmt: skip
def test_differences_that_do_not_fit(spoil: Callable[[dict], object]) -> None:
    base = {"w": np.ones((4, 4), HALF)}
    stored = subtract({"w": base["w"] * HALF(2)}, base)
    assert add(dict(stored), base)["w"].tolist() == (base["w"] * HALF(2)).tolist()
    spoil(stored)
    with pytest.raises(ValueError, match=r"steps|scale"):
        add(stored, base)


# --------------------------------------------------------------------------- files


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
    before = load_weights(models.EMBEDDED[base].path)[0].state_dict()
    want = torch.load(tmp_path / "moved.pt", weights_only=True)
    assert name == "moved" and notes["base"] == base and notes["note"] == "x"
    for key, value in net.state_dict().items():
        change = (want[key] - before[key]).norm()
        assert (value - want[key]).norm() <= 0.15 * change + 1e-3 * want[key].norm(), key
    stored = load_file(moved)
    steps = {k.removesuffix(STEPS): v for k, v in stored.items() if k.endswith(STEPS)}
    assert all(v.dtype == torch.uint8 and len(v) == (want[k].numel() + 1) // 2 for k, v in steps.items())
    assert set(steps) == {k for k, v in want.items() if v.ndim > 1 and not k.startswith("denoiser")}
    assert not [k for k in stored if k.startswith("denoiser")]
    # The identity is that of the same tensors stored whole, and is found without torch, too.
    config = json.loads(notes["config"])
    assert sha256 == content_hash(config, {k: v.half() for k, v in net.state_dict().items()})
    header = read_header(moved)
    assert header.sha256 == sha256.hex()
    assert header.parameters == sum(v.numel() for v in net.state_dict().values())


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


def test_damaged_differences_are_named(moved: Path) -> None:
    tensors, target = load_file(moved), moved.with_name("damaged.safetensors")
    with safe_open(moved, framework="pt") as f:
        meta = f.metadata()
    first = next(k for k in tensors if k.endswith(STEPS))
    save_file({**tensors, first: tensors[first][:-1].clone()}, target, metadata=meta)
    with pytest.raises(errors.WeightsError, match="not a difference to mini-tiny-v1"):
        load_weights(target)
    save_file({k: v for k, v in tensors.items() if k != first}, target, metadata=meta)
    with pytest.raises(errors.WeightsError, match="unexpected"):
        load_weights(target)
    scale = first.removesuffix(STEPS) + SCALE
    save_file({**tensors, scale: torch.full_like(tensors[scale], torch.inf)}, target, metadata=meta)
    with pytest.raises(errors.WeightsError, match="not all numbers are finite"):
        load_weights(target)
