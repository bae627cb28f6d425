"""Tokens stay valid under a retrained decoder, and under nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from training_helpers import SMALL, write_raster

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

import rasterio

import tmcodec
from tmcodec.cli import cli
from tmcodec.codec.lineage import Lineage, Origin, format_decodes, parse_decodes, tokens_digest
from tmcodec.codec.weights import load_weights, save_weights
from tmcodec.errors import TokenizerMismatchError, WeightsError
from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.tokenfile import TokenFile
from tmcodec.training import run as training

Config = Callable[..., Path]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return the weights file of a tokenizer that token files were made with."""
    torch.manual_seed(1)
    cfg = MiniConfig("NDVI", 1, (8, 8, 8, 6, 5), **SMALL, mean=(0.3,), std=(0.3,))
    path = tmp_path / "old.safetensors"
    save_weights(path, MiniNet(cfg), "old", {})
    return path


@pytest.fixture
def tokens(old: Path, tmp_path: Path) -> Path:
    """Return a token file of the old tokenizer."""
    raster = write_raster(tmp_path / "scene.tif", "NDVI", 96, seed=5)
    tmcodec.encode(raster, tmp_path / "scene.tmc", tokenizer=old, modality="NDVI")
    return tmp_path / "scene.tmc"


@pytest.fixture
def train(config: Config, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains a stage for three steps and returns its weights file."""

    def run(stage: str, start: Path, name: str = "new") -> Path:
        callbacks = [
            {"class_path": "MovingAverage", "init_args": {"decay": 0.5}},
            {"class_path": "WeightsFile", "init_args": {"name": name}},
            {"class_path": "ModelCheckpoint",
             "init_args": {"dirpath": str(tmp_path / name), "save_last": True}},
        ]  # fmt: skip
        model = {"net": None, "stage": stage, "start": str(start), "optimizer": {"lr": 0.01}}
        path = config(name=name, model=model)
        training.run("fit", ["-c", str(path), "--trainer.max_steps=3", f"--trainer.callbacks={callbacks}"])
        return tmp_path / name / f"{name}.safetensors"

    return run


def decode(tokens: Path, weights: Path, *args: str) -> Result:
    """Run ``tmcodec decode`` with a tokenizer's file."""
    target = tokens.with_name("back.tif")
    return CliRunner().invoke(cli, ["decode", str(tokens), str(target), "--tokenizer", str(weights),
                                    "--overwrite", *args])  # fmt: skip


@pytest.mark.parametrize("stage", ["decoder", "denoiser", "chain", "distill", "energy"])
def test_a_retrained_decoder_decodes_old_files(
    stage: str, old: Path, tokens: Path, train: Callable[..., Path]
) -> None:
    new = train(stage, old)
    before, _, old_hash, _ = load_weights(old)
    after, name, new_hash, notes = load_weights(new)
    assert old_hash != new_hash
    assert json.loads(notes["decodes"]) == [{"name": "old", "sha256": old_hash.hex()}]
    x = torch.rand(1, 1, 64, 64)
    assert torch.equal(*(net.fsq.latents_to_indices(net.latents(x)) for net in (before, after)))
    steps = "2" if stage != "decoder" else "1"
    result = decode(tokens, new, "--steps", steps)
    assert result.exit_code == 0, result.output
    assert "with new from tokens of old" in result.output
    shown = CliRunner().invoke(cli, ["models", "show", str(new)]).output
    assert f"tokens of old, weights {old_hash.hex()[:12]}" in shown
    with rasterio.open(tokens.with_name("back.tif")) as back:
        tags = back.tags()
    assert (tags["TMCODEC_TOKENIZER"], tags["TMCODEC_DECODER"]) == ("old", name)
    assert tags["TMCODEC_DECODER_SHA256"] == new_hash.hex()


def test_its_picture_is_its_own_decoders(old: Path, tokens: Path, train: Callable[..., Path]) -> None:
    new = train("decoder", old)
    theirs, _ = tmcodec.decode_array(tokens, tokenizer=old, steps=1)
    mine, _ = tmcodec.decode_array(tokens, tokenizer=new, steps=1)
    with TokenFile.open(tokens) as file:
        layer = next(iter(file.layers.values()))
        grid = torch.from_numpy(layer.read((0, 0, 6, 6), 0, False).tokens.copy())[None]
        assert layer.meta.balance is None
    expected = tmcodec.load_tokenizer(str(new)).decode(grid)[0, 0]
    assert abs(theirs - mine).max() > 1e-4
    assert torch.allclose(torch.from_numpy(mine[0]), expected, atol=1e-5)


def test_a_retrained_encoder_does_not(old: Path, tokens: Path, train: Callable[..., Path]) -> None:
    new = train("mean", old)
    assert "decodes" not in load_weights(new)[3]
    result = decode(tokens, new)
    assert result.exit_code == 1
    assert "give the right weights with --tokenizer" in result.stderr
    with pytest.raises(TokenizerMismatchError):
        tmcodec.decode_array(tokens, tokenizer=new)


def test_the_list_grows_from_stage_to_stage_and_ends_at_a_new_encoder(
    old: Path, tokens: Path, train: Callable[..., Path], tmp_path: Path
) -> None:
    second = train("decoder", old, "second")
    third = train("denoiser", tmp_path / "second" / "last.ckpt", "third")
    listed = {origin["sha256"] for origin in json.loads(load_weights(third)[3]["decodes"])}
    assert listed == {load_weights(old)[2].hex(), load_weights(second)[2].hex()}
    assert decode(tokens, third).exit_code == 0
    fourth = train("decoder", train("mean", third, "other"), "fourth")
    listed = {origin["name"] for origin in json.loads(load_weights(fourth)[3]["decodes"])}
    assert listed == {"other"}


@pytest.mark.parametrize(
    "change",
    [
        {"compand": "asinh", "knee": 2.0},
        {"mean": (0.31,)},
        {"levels": (8, 8, 8, 5, 6)},
        {"origin": 0.1},
    ],
)
def test_whatever_decides_tokens_is_in_the_digest(change: dict[str, Any]) -> None:
    base = {"modality": "NDVI", "channels": 1, "levels": (8, 8, 8, 6, 5), **SMALL}
    base |= {"mean": (0.3,), "std": (0.3,)}
    digests = []
    for values in (base, {**base, **change}):
        torch.manual_seed(3)
        digests.append(tokens_digest(MiniNet(MiniConfig(**values))))  # type: ignore[arg-type]
    assert digests[0] != digests[1]
    net = MiniNet(MiniConfig(**base))  # type: ignore[arg-type]
    before = tokens_digest(net)
    with torch.no_grad():
        net.decoder.embed.weight.add_(1)
    assert tokens_digest(net) == before
    with torch.no_grad():
        net.encoder.project.bias[0].add_(0.01)
    assert tokens_digest(net) != before


@pytest.mark.parametrize(
    "text", ["no json", "{}", '[{"name": "a"}]', '[{"name": "a", "sha256": "00"}]', "[1]",
             json.dumps([{"name": "a", "sha256": "00" * 32}] * 65)]
)  # fmt: skip
def test_a_malformed_list_is_refused(text: str) -> None:
    with pytest.raises(WeightsError, match="malformed"):
        parse_decodes({"decodes": text}, Path("a.safetensors"))


@pytest.mark.parametrize("text", ["no json", "[1]", '{"tokens": "xx"}', '{"tokens": 1}', "[" * 100_000])
def test_a_malformed_starting_point_is_refused(text: str) -> None:
    with pytest.raises(WeightsError, match=r"a\.ckpt: what it says of its starting point is malformed"):
        Lineage.from_json(text, Path("a.ckpt"))


def test_the_list_goes_there_and_back() -> None:
    origins = (Origin("b", b"\2" * 32), Origin("a", b"\1" * 32))
    assert parse_decodes(format_decodes((*origins, origins[0])), Path("x")) == (origins[1], origins[0])
    assert format_decodes(()) == {}
