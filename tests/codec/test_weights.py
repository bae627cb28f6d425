"""Weights files: identity, and every way in which one can be wrong."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tmcodec import errors
from tmcodec.cli.weights_header import read_header
from tmcodec.codec.models import EMBEDDED, RETIRED, load_tokenizer
from tmcodec.codec.store import GENERATOR_FORMAT, read_stored
from tmcodec.codec.weights import FORMAT, content_hash, load_weights
from tmcodec.generation.weights import open_weights
from tmcodec.modalities import MODALITIES
from tmcodec.tokenfile.registered import REGISTERED


@pytest.fixture
def weights(tiny_tokenizer: Callable[[str], Path]) -> Path:
    return tiny_tokenizer("S1GRD")


def header(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return dict(json.loads(raw[8 : 8 + size])["__metadata__"])


def test_the_content_hash_is_what_the_docstring_says() -> None:
    tensors = {
        "b": torch.tensor([1.0, -2.0], dtype=torch.float16),
        "a": torch.zeros(1, 2, dtype=torch.float16),
    }
    text = b'{"x":1}\0' + b"a\0float16\0" + b"1x2\0" + bytes(4) + b"b\0float16\0" + b"2\0"
    expected = hashlib.sha256(
        text + bytes([0x00, 0x3C, 0x00, 0xC0])
    ).digest()  # 1.0 and -2.0 in half precision
    assert content_hash({"x": 1}, tensors) == expected


def test_the_hash_survives_rewriting_and_sees_a_changed_bit(weights: Path, tmp_path: Path) -> None:
    _, name, digest, _ = load_weights(weights)
    tensors, meta = load_file(weights), header(weights)
    save_file(dict(reversed(tensors.items())), tmp_path / "again.safetensors", {**meta, "note": "rewritten"})
    assert load_weights(tmp_path / "again.safetensors")[1:3] == (name, digest)
    tensors["encoder.project.bias"][0] += 1
    save_file(tensors, tmp_path / "changed.safetensors", meta)
    assert load_weights(tmp_path / "changed.safetensors")[2] != digest


def test_each_way_to_be_wrong(weights: Path, tmp_path: Path) -> None:
    tensors, meta = load_file(weights), header(weights)
    bad = tmp_path / "bad.safetensors"
    with pytest.raises(errors.TokenizerNotFoundError):
        load_weights(tmp_path / "none.safetensors")
    bad.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(errors.WeightsError, match="not a readable"):
        load_weights(bad)
    bad.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(errors.WeightsError, match="not a readable"):
        load_weights(bad)
    save_file(tensors, bad)
    with pytest.raises(errors.WeightsError, match="format None"):
        load_weights(bad)
    save_file({k: v for k, v in tensors.items() if k != "encoder.project.bias"}, bad, meta)
    with pytest.raises(errors.WeightsError, match=r"missing: encoder\.project\.bias"):
        load_weights(bad)
    save_file({**tensors, "extra": torch.zeros(1)}, bad, meta)
    with pytest.raises(errors.WeightsError, match="unexpected: extra"):
        load_weights(bad)
    save_file({**tensors, "encoder.project.bias": torch.zeros(6)}, bad, meta)
    with pytest.raises(errors.WeightsError, match=r"misshapen: encoder\.project\.bias"):
        load_weights(bad)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 10**9},
        {"dim": "wide"},
        {"kernel": 4},
        {"surprise": 1},
        {"levels": None},
        {"components": 99},
        {"residual_basis": [[1.0]]},
        {"encoder_blocks": -1},
    ],
)
def test_a_wild_configuration_allocates_nothing(
    change: dict[str, object], weights: Path, tmp_path: Path
) -> None:
    tensors, meta = load_file(weights), header(weights)
    config = {**json.loads(meta["config"]), **change}
    bad = tmp_path / "bad.safetensors"
    save_file(tensors, bad, {**meta, "config": json.dumps(config)})
    with pytest.raises(errors.WeightsError, match="configuration"):
        load_weights(bad)


def test_every_modality_has_embedded_weights_within_the_size_limits() -> None:
    sizes = {m.modality: m.size for m in EMBEDDED.values()}
    assert list(sizes) == list(MODALITIES)
    assert max(sizes.values()) <= 8_000_000
    assert sum(sizes.values()) <= 45_000_000


def test_embedded_weights_never_change() -> None:
    # Users hold files made with these: a new hash needs a new name.
    golden = json.loads((Path(__file__).parent.parent / "golden" / "weights.json").read_text())
    found = {name: load_weights(model.path)[2].hex() for name, model in EMBEDDED.items()}
    assert found == {name: sha for name, sha in golden.items() if name not in RETIRED}
    assert found.items() <= dict(REGISTERED.values()).items()  # their files are short
    assert dict(REGISTERED.values()).items() <= golden.items()


@pytest.mark.parametrize("name", sorted(RETIRED))
def test_a_replaced_tokenizer_says_by_which_and_what_to_do(name: str) -> None:
    newer = name.replace("v1", "v2")
    assert newer in EMBEDDED
    with pytest.raises(errors.TokenizerNotFoundError, match=f"replaced by {newer} .* give the old weights"):
        load_tokenizer(name)


def test_loading_a_tokenizer_imports_no_compiler() -> None:
    load = "import sys, tmcodec; tmcodec.load_tokenizer('mini-dem-v1', 'cpu')"
    code = f"{load}; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"channels": 2}, "channels is 2; NDVI has 1"),
        ({"std": [0.0]}, "all must be above 0"),
        ({"mean": [0.0, 0.0]}, "NDVI needs 1 numbers"),
        ({"compand": "cubic"}, "companding 'cubic'"),
        ({"modality": "X"}, "X"),
        ({"dim": 48.0}, "malformed .dim: another kind"),
        ({"dim": 2**70}, "sizes out of range"),
        ({"dim": True, "kernel": None}, "malformed .dim, kernel: another kind"),
        ({"mean": 3}, "malformed .mean: another kind"),
        ({"mean": json.loads("[" * 600 + "]" * 600)}, "malformed"),
        ({"std": ["1"]}, "malformed .std: another kind"),
        ({"levels": [[8], [8]]}, "malformed .levels: another kind"),
        ({"levels": 10**400}, "malformed .levels: another kind"),
        ({"origin": "x"}, "malformed .origin: another kind"),
        ({"origin": float("nan")}, "a finite origin"),
        ({"knee": 10**400}, "malformed .knee: another kind"),
        ({"compand": ["linear"]}, "malformed .compand: another kind"),
        ({"residual_std": [1.0, 1.0]}, "residual_std or residual_basis are not 1 finite numbers"),
        ({"residual_std": [float("inf")]}, "residual_std or residual_basis are not 1 finite numbers"),
        ({"components": 1, "residual_basis": [["x"]]}, "malformed .residual_basis: another kind"),
    ],
)
def test_a_file_whose_sizes_do_not_fit_its_modality_is_refused(
    change: dict[str, Any], why: str, tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    with safe_open(tiny_tokenizer("NDVI"), framework="pt") as file:
        meta, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    config = {**json.loads(meta["config"]), **change}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {**meta, "config": json.dumps(config)})
    with pytest.raises(errors.WeightsError, match=why):
        load_weights(path)


@pytest.mark.parametrize("text", [
    "", "null", "[]", "[" * 100_000, "9" * 5000, '{"dim": ' + "9" * 5000 + "}", '{"dim": 1e999}',
])  # fmt: skip
def test_a_configuration_that_is_none_is_refused(
    text: str, tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    with safe_open(tiny_tokenizer("NDVI"), framework="pt") as file:
        meta, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {**meta, "config": text, "sha256": "0" * 64})
    for read in (load_weights, read_header):
        with pytest.raises(errors.WeightsError) as error:
            read(path)
        assert "\n" not in str(error.value)
    assert read_stored(path, FORMAT) is None
    save_file(tensors, path, {**meta, "config": text, "format": GENERATOR_FORMAT})
    with pytest.raises(errors.WeightsError, match="malformed"):
        open_weights(path)


@pytest.mark.parametrize("start", [
    b"[" * 100_000, b"null", b"{}", b'{"__metadata__": {"format": 1}}', b'{"__metadata__": [1]}',
    b'{"__metadata__": {"config": "{}"}, "a": {"dtype": "F16", "shape": [[1]], "data_offsets": [0, 2]}}',
    b'{"__metadata__": {"config": "{}"}, "a": {"dtype": "F16", "shape": [1.5], "data_offsets": [0, 2]}}',
    b'{"__metadata__": {"config": "{}", "name": null}}',
])  # fmt: skip
def test_a_header_that_is_none_is_refused(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(start).to_bytes(8, "little") + start + bytes(2))
    for read in (load_weights, read_header):
        with pytest.raises(errors.WeightsError):
            read(path)
    assert read_stored(path) is None


def test_names_in_a_file_are_shown_in_one_short_line(
    tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    with safe_open(tiny_tokenizer("NDVI"), framework="pt") as file:
        meta, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    path, long = tmp_path / "a.safetensors", "a" * 100_000
    save_file({**tensors, "\n" + long: torch.zeros(1)}, path, meta)
    with pytest.raises(errors.WeightsError, match=r"unexpected: \\na{56}\.\.\.\)$"):
        load_weights(path)
    for key, read in (
        ("format", load_weights), ("base", load_weights), ("base", read_header), ("name", load_weights),
    ):  # fmt: skip
        save_file(tensors, path, {**meta, key: long})
        with pytest.raises(errors.WeightsError, match=f"{key},? .*a str"):
            read(path)


def test_weights_that_are_not_finite_are_refused(
    tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    with safe_open(tiny_tokenizer("NDVI"), framework="pt") as file:
        meta, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "a.safetensors", meta)
    with pytest.raises(errors.WeightsError, match=f"not all numbers are finite in {name}; its training"):
        load_weights(tmp_path / "a.safetensors")
