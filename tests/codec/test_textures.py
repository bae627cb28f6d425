"""A diffusion decoder beside its tokenizer's weights: same tokens, same mean, another texture."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import rasterio
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import tmcodec
from tmcodec.cli import cli
from tmcodec.codec.models import EMBEDDED, WEIGHTS, texture_path
from tmcodec.codec.textures import load_texture, save_texture
from tmcodec.codec.tokenizer import MiniTokenizer
from tmcodec.codec.weights import load_weights, save_weights
from tmcodec.errors import WeightsError
from tmcodec.networks.mini import MiniNet
from tmcodec.training.export import export_texture
from tmcodec.training.starting import textured

MakeScene = Callable[..., Path]
MakeTokenizer = Callable[[str], Path]


@pytest.fixture
def weights(tiny_tokenizer: MakeTokenizer, tmp_path: Path) -> Path:
    """Return a tokenizer's file in a folder of its own."""
    return Path(shutil.copy(tiny_tokenizer("S2L2A"), tmp_path / "tiny.safetensors"))


def other_texture(weights: Path, gain: float = 0.0) -> MiniNet:
    """Write a texture of other numbers beside the weights; return its network."""
    net, _, sha256, _ = load_weights(weights)
    net = textured(net)
    torch.manual_seed(3)
    assert net.denoiser is not None
    assert net.denoiser.gain is not None
    with torch.no_grad():
        for parameter in net.denoiser.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter)).copy_(parameter.half())
        net.denoiser.gain.bias.fill_(gain)
    texture_path(weights).parent.mkdir(exist_ok=True)
    save_texture(texture_path(weights), net, "rough", sha256, {"licence": "none"})
    return net


def test_tokens_identity_and_mean_stay(weights: Path) -> None:
    plain = MiniTokenizer.from_file(weights, "cpu")
    other_texture(weights)
    textured = MiniTokenizer.from_file(weights, "cpu")
    x = 3000 + 1000 * torch.randn(1, 12, 64, 96)
    tokens = plain.encode(x)
    assert (textured.name, textured.sha256) == (plain.name, plain.sha256)
    assert textured.texture is not None
    assert (plain.texture, textured.texture.name) == (None, "rough")
    assert torch.equal(textured.encode(x), tokens)
    assert torch.equal(textured.decode(tokens), plain.decode(tokens))
    assert not torch.equal(textured.decode(tokens, steps=2), plain.decode(tokens, steps=2))


def test_replaced_files_are_loaded_again(weights: Path, tiny_tokenizer: MakeTokenizer) -> None:
    first = tmcodec.load_tokenizer(str(weights), "cpu")
    assert tmcodec.load_tokenizer(str(weights), "cpu") is first
    other_texture(weights)
    second = tmcodec.load_tokenizer(str(weights), "cpu")
    assert (first.texture, second.texture and second.texture.name) == (None, "rough")
    texture_path(weights).unlink()
    shutil.copy(tiny_tokenizer("NDVI"), weights.with_name("new"))
    weights.with_name("new").replace(weights)
    gone = weakref.ref(second)
    del second
    assert tmcodec.load_tokenizer(str(weights), "cpu").name == "tiny-ndvi"
    gc.collect()
    assert gone() is None


def test_several_steps_draw_what_its_network_draws(weights: Path) -> None:
    net = other_texture(weights)
    textured = MiniTokenizer.from_file(weights, "cpu")
    whole = MiniTokenizer(net.eval().requires_grad_(False), "whole", bytes(32), "cpu")
    tokens = torch.randint(15360, (1, 5, 6))
    assert torch.equal(textured.decode(tokens, steps=4, seed=5), whole.decode(tokens, steps=4, seed=5))


def test_gains_multiply_what_is_drawn(weights: Path) -> None:
    found = []
    for gain in (0.0, 20.0):  # softplus: log 2 and 20
        net = other_texture(weights, gain)
        assert net.denoiser is not None
        assert net.denoiser.gain is not None
        torch.nn.init.zeros_(net.denoiser.gain.weight)
        residual = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(0))
        found.append(net.denoiser.strengthen(residual, torch.randn(1, 4, 4, 8)))
    assert torch.allclose(found[0], residual * torch.tensor(2.0).log())
    assert torch.allclose(found[1], residual * 20)


def test_windows_are_parts_of_the_whole_textured(weights: Path) -> None:
    other_texture(weights)
    tok = MiniTokenizer.from_file(weights, "cpu")
    tokens = torch.randint(15360, (1, 40, 44), generator=torch.Generator().manual_seed(1))
    for steps in (2, 4, 5):
        halo = tok.decoder_halo(steps)
        first, last = 20 - halo, 23 + halo
        whole = tok.decode(tokens, steps=steps)[..., 20 * 16 : 23 * 16, 20 * 16 : 23 * 16]
        part = tok.decode(tokens[:, first:last, first:last], steps=steps, origin=(first, first))
        inner = slice(halo * 16, (halo + 3) * 16)
        torch.testing.assert_close(part[..., inner, inner], whole, rtol=0, atol=0.02)


def test_rasters_say_which_texture_they_show(weights: Path, make_scene: MakeScene, tmp_path: Path) -> None:
    other_texture(weights)
    texture = MiniTokenizer.from_file(weights, "cpu").texture
    assert texture is not None
    tmcodec.encode(make_scene(), tmp_path / "a.tmc", tokenizer=weights)
    for steps, expected in ((1, None), (2, ("rough", texture.sha256.hex()))):
        out = tmp_path / f"{steps}.tif"
        tmcodec.decode(tmp_path / "a.tmc", out, steps=steps, tokenizer=weights)
        with rasterio.open(out) as back:
            tags = back.tags()
        found = (tags.get("TMCODEC_TEXTURE"), tags.get("TMCODEC_TEXTURE_SHA256"))
        assert found == (expected or (None, None))


def test_a_wild_configuration_allocates_nothing(weights: Path) -> None:
    """Thirty gigabytes of denoiser are refused by their shapes."""
    other_texture(weights)
    path = texture_path(weights)
    tensors, whole = load_file(path), path.read_bytes()
    meta = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    config = {**json.loads(meta["config"]), "denoiser_dim": 4096, "denoiser_blocks": 64}
    save_file(tensors, path, {**meta, "config": json.dumps(config)})
    with pytest.raises(WeightsError, match=r"missing: denoiser\.blocks\.1.*misshapen: denoiser\."):
        MiniTokenizer.from_file(weights, "cpu")


def test_loading_leaves_the_random_state_alone(weights: Path) -> None:
    other_texture(weights)
    before = torch.get_rng_state()
    MiniTokenizer.from_file(weights, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_shown_with_its_tokenizer(weights: Path) -> None:
    plain = CliRunner().invoke(cli, ["models", "show", str(weights)]).output
    other_texture(weights)
    texture = MiniTokenizer.from_file(weights, "cpu").texture
    assert texture is not None
    shown = CliRunner().invoke(cli, ["models", "show", str(weights)]).output
    line = f"rough, SHA-256 {texture.sha256.hex()}"
    assert line in shown
    assert "rough" not in plain
    facts = json.loads(CliRunner().invoke(cli, ["models", "show", str(weights), "--json"]).output)
    assert facts["texture"] == {"name": "rough", "sha256": texture.sha256.hex()}


def test_a_texture_of_other_weights_is_refused(
    weights: Path, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    other_texture(weights)
    net, _, _, _ = load_weights(weights)
    with pytest.raises(WeightsError, match=r"belongs to weights [0-9a-f]{12}, those beside it are 00000"):
        load_texture(texture_path(weights), net, bytes(32))
    sha256 = load_weights(weights)[2]
    radar = load_weights(tiny_tokenizer("S1GRD"))[0]
    save_texture(tmp_path / "radar.safetensors", radar, "radar", sha256)
    with pytest.raises(WeightsError, match=r"made for another network .*channels.*modality"):
        load_texture(tmp_path / "radar.safetensors", net, sha256)


def test_damaged_textures_are_errors(weights: Path) -> None:
    other_texture(weights)
    path = texture_path(weights)
    whole, tensors = path.read_bytes(), load_file(path)
    meta = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    some = next(iter(tensors))

    def refused(message: str) -> None:
        with pytest.raises(WeightsError, match=message):
            MiniTokenizer.from_file(weights, "cpu")

    path.write_bytes(whole[:500])
    refused("not a readable safetensors file")
    shutil.copy(weights, path)
    refused("not the texture of a tmcodec tokenizer")
    save_file({k: v for k, v in tensors.items() if k != some}, path, meta)
    refused(f"missing: {some}")
    save_file({**tensors, "encoder.extra": torch.zeros(1)}, path, meta)
    refused("unexpected: encoder.extra")
    save_file({**tensors, some: torch.full_like(tensors[some], torch.nan)}, path, meta)
    refused("not all numbers are finite")
    save_file(tensors, path, {**meta, "config": "{"})
    refused("no readable configuration")


def test_a_run_becomes_a_texture_unless_tokens_moved(weights: Path, tmp_path: Path) -> None:
    net = other_texture(weights)
    texture_path(weights).unlink()
    save_weights(tmp_path / "run.safetensors", net, "run", {"training": "stage energy"})
    path, sha256 = export_texture(tmp_path / "run.safetensors", str(weights), 3)
    texture = MiniTokenizer.from_file(weights, "cpu").texture
    assert texture is not None
    assert (path, texture.name, texture.sha256) == (texture_path(weights), "tiny-texture-v3", sha256)
    with pytest.raises(FileExistsError):
        export_texture(tmp_path / "run.safetensors", str(weights), 3)
    path.unlink()
    with torch.no_grad():
        net.encoder.project.bias.add_(1)
    save_weights(tmp_path / "run.safetensors", net, "run", {})
    with pytest.raises(WeightsError, match=r"encoder\.project\.bias is not that of"):
        export_texture(tmp_path / "run.safetensors", str(weights), 3)
    assert not path.exists()


def test_embedded_textures_never_change_and_fit_the_package() -> None:
    golden = json.loads((Path(__file__).parent.parent / "golden" / "textures.json").read_text())
    found = {}
    for model in EMBEDDED.values():
        texture = MiniTokenizer.from_file(model.path, "cpu").texture
        if texture is not None:
            found[texture.name] = texture.sha256.hex()
    assert found == golden
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) <= 45_000_000
