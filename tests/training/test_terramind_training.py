"""Tokenizers of TerraMind's layout in training: stages, starting points, what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from training_helpers import write_raster

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

import tmcodec
from tmcodec.cli import cli
from tmcodec.codec.terramind import TerraMindTokenizer
from tmcodec.codec.terramind_weights import open_checkpoint
from tmcodec.errors import ConfigError, WeightsError
from tmcodec.modalities import MODALITIES
from tmcodec.networks.terramind.config import TerraMindConfig
from tmcodec.networks.terramind.net import expected_shapes
from tmcodec.samplers.sample import ddim
from tmcodec.samplers.schedule import even_timesteps
from tmcodec.training import run as training
from tmcodec.training.resize import random_windows
from tmcodec.training.starting import read_run
from tmcodec.training.terramind_net import (
    TerraMindNet,
    checkpoint_activations,
    draw,
    freeze,
    initialise,
    with_statistics,
)
from tmcodec.training.terramind_start import open_terramind, terramind_of_run

Config = Callable[..., Path]
TINY = {"dim": 24, "depth": 1, "heads": 2, "unet_channels": 32, "unet_blocks": 1, "unet_multipliers": [1, 1],
        "unet_attention": [2]}  # fmt: skip
"""Sizes of a network that learns nothing quickly."""


def tiny(modality: str = "NDVI", **changes: Any) -> TerraMindConfig:
    """Return the configuration of a tiny network."""
    row = MODALITIES[modality]
    raw = {
        "modality": modality,
        "channels": len(row.classes) or len(row.bands),
        "levels": list(row.levels),
        "decoder": "vit" if row.categorical else "unet",
        "mean": [] if row.categorical else list(row.mean),
        "std": [] if row.categorical else list(row.std),
        **TINY,
        **changes,
    }
    return TerraMindConfig.from_dict(raw)


def random_net(cfg: TerraMindConfig, seed: int = 0) -> TerraMindNet:
    """Return a network none of whose tensors is zero, so that everything matters."""
    torch.manual_seed(seed)
    net = TerraMindNet(cfg)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return net


@pytest.fixture
def write(config: Config, tmp_path: Path) -> Config:
    """Return a function that writes a configuration of this layout."""

    def make(modality: str = "NDVI", name: str = "run", model: dict[str, Any] | None = None) -> Path:
        row = MODALITIES[modality]
        net = {
            "modality": modality,
            "channels": len(row.classes) or len(row.bands),
            "levels": list(row.levels),
            "decoder": "vit" if row.categorical else "unet",
            **TINY,
        }
        init = {
            "net": net,
            "windows": {"sizes": [32], "scale": 0.8, "flip": 0.5},
            "sample_steps": 2,
            "optimizer": {"kind": "adamw", "lr": 0.001},
            **(model or {}),
        }
        path = config(modality, name)
        import yaml

        raw = yaml.safe_load(path.read_text())
        raw["model"] = {"class_path": "TerraMindModule", "init_args": init}
        raw["trainer"]["callbacks"].append({"class_path": "WeightsFile", "init_args": {"name": name}})
        path.write_text(yaml.safe_dump(raw))
        return path

    return make


def fit(path: Path, *args: str) -> Any:
    """Train in this process for two steps."""
    return training.run("fit", ["-c", str(path), "--trainer.max_steps=2", *args])


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of tensors that differ."""
    assert before.keys() == after.keys()
    return {k for k in before if not torch.equal(before[k], after[k])}


@pytest.mark.parametrize("modality", ["NDVI", "LULC"])
def test_a_run_from_scratch_encodes_and_decodes_on_the_command_line(
    modality: str, write: Config, tmp_path: Path
) -> None:
    fit(write(modality))
    weights = tmp_path / "run" / "run.safetensors"
    assert load_file(weights).keys() == expected_shapes(tiny(modality)).keys()
    raster = write_raster(tmp_path / "a.tif", modality, 48)
    for args in (
        ["encode", str(raster), str(tmp_path / "a.tmc"), "--tokenizer", str(weights), "--modality", modality],
        ["decode", str(tmp_path / "a.tmc"), str(tmp_path / "b.tif"), "--tokenizer", str(weights)],
    ):
        result = CliRunner().invoke(cli, args)
        assert result.exit_code == 0, result.output
    tok = tmcodec.load_tokenizer(str(weights), "cpu")
    assert isinstance(tok, TerraMindTokenizer)
    net = terramind_of_run(read_run(tmp_path / "run" / "last.ckpt"))
    row = MODALITIES[modality]
    z = torch.randn(1, net.cfg.channels, 64, 64)
    x = torch.randint(0, 10, (1, 1, 64, 64)) if row.categorical else z * tok.std + tok.mean
    if row.categorical:
        z = torch.nn.functional.one_hot(x[:, 0], 10).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        codes, latents = net.codes(z, True)
        assert torch.allclose(tok.latents(x), latents, atol=1e-4)
        assert torch.equal(net.fsq.codes_to_indices(codes.movedim(1, -1)), tok.encode(x))


@pytest.mark.parametrize(
    ("stage", "prefixes"),
    [("full", ("encoder.", "quant_proj.", "decoder.")), ("decoder", ("decoder.",)), ("chain", ("decoder.",)),
     ("distill", ("decoder.",))],
)  # fmt: skip
def test_stages_move_their_part_alone(
    stage: str, prefixes: tuple[str, ...], write: Config, tmp_path: Path
) -> None:
    before = random_net(tiny()).state_dict()
    save_file(before, tmp_path / "TerraMind_Tokenizer_NDVI.safetensors")
    start = str(tmp_path / "TerraMind_Tokenizer_NDVI.safetensors")
    steps = {"student_steps": 1, "teacher_steps": 3, "chain_steps": 2}
    fit(write(model={"stage": stage, "start": start, **steps}))
    after = load_file(tmp_path / "run" / "run.safetensors")
    changed = moved(before, after)
    assert {name.split(".")[0] + "." for name in changed} == set(prefixes)
    assert "encoder.pos_emb" not in changed


def test_tokens_stay_valid_under_a_new_decoder_of_this_layout(write: Config, tmp_path: Path) -> None:
    fit(write(name="first"))
    old = tmp_path / "first" / "first.safetensors"
    fit(write(name="second", model={"net": None, "stage": "decoder", "start": str(old)}))
    new = tmp_path / "second" / "second.safetensors"
    listed = json.loads(open_checkpoint(new).notes["decodes"])
    assert listed == [{"name": "first", "sha256": open_checkpoint(old).sha256.hex()}]
    raster = write_raster(tmp_path / "a.tif", "NDVI", 48)
    tmcodec.encode(raster, tmp_path / "a.tmc", tokenizer=old, modality="NDVI")
    report = tmcodec.decode(tmp_path / "a.tmc", tmp_path / "b.tif", tokenizer=new, steps=2)
    assert (report.tokenizer, report.tokens_of) == ("second", "first")
    fit(write(name="third", model={"net": None, "stage": "full", "start": str(old)}))
    assert "decodes" not in open_checkpoint(tmp_path / "third" / "third.safetensors").notes


@pytest.mark.parametrize("kind", ["pt", "safetensors", "ckpt"])
def test_starting_points(kind: str, write: Config, tmp_path: Path) -> None:
    net = random_net(tiny())
    if kind == "ckpt":
        fit(write(name="first"))
        start = tmp_path / "first" / "last.ckpt"
        state = terramind_of_run(read_run(start)).state_dict()
    else:
        start, state = tmp_path / f"a.{kind}", net.state_dict()
        torch.save(state, start) if kind == "pt" else save_file(state, start)
    opened, lineage = open_terramind(str(start), tiny())
    assert not moved(state, opened.state_dict())
    assert lineage.tokens == opened.tokens_digest()
    assert len(lineage.origins) == 1
    with pytest.raises((ConfigError, WeightsError)):
        open_terramind(str(start), tiny(dim=48))


def test_the_loss_is_the_error_of_the_clean_picture(write: Config) -> None:
    """A second implementation of the training loss, from the papers' formulas."""
    module = training.build(["-c", str(write(model={"windows": {"sizes": None}}))], run_it=False).model
    module.net.load_state_dict(random_net(tiny()).state_dict())
    module.train()
    row = MODALITIES["NDVI"]
    values = torch.rand(2, 1, 32, 32)
    valid = torch.rand(2, 1, 32, 32) > 0.3
    batch = {"values": values, "valid": valid, "number": torch.tensor([7, 8])}
    found, picture = module.losses_of(batch)
    assert picture is None
    g = module.generator(batch)
    z = (values - row.mean[0]) / row.std[0]
    noise = torch.randn(z.shape, generator=g)
    t = torch.randint(0, 1000, (2,), generator=g)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    roots = torch.cumprod(1 - betas, 0).sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    signal = roots[t].view(-1, 1, 1, 1).float()
    noisy = signal * z + (1 - signal**2).sqrt() * noise
    net = module.net
    codes = net.fsq.quantize(net.latents(z)).permute(0, 3, 1, 2)
    guess = net.decoder(noisy, t, codes)
    expected = torch.stack([(guess - z)[i][valid[i]].square().mean() for i in range(2)]).mean()
    assert float(found["mse"]) == pytest.approx(float(expected), rel=1e-4)


def test_the_encoder_gets_gradients_through_the_codes() -> None:
    net = random_net(tiny())
    freeze(net, "full")
    z = torch.randn(2, 1, 32, 32)
    codes, _ = net.codes(z, True)
    net.decoder(torch.randn_like(z), torch.tensor([500, 100]), codes).square().mean().backward()
    moving = {n: p.grad for n, p in net.named_parameters() if p.requires_grad}
    assert [n for n, grad in moving.items() if grad is None or not grad.any()] == []
    assert net.encoder.pos_emb.grad is None


def test_activation_checkpointing_changes_no_gradient() -> None:
    grads = []
    for light in (False, True):
        net = random_net(tiny())
        if light:
            checkpoint_activations(net)
        freeze(net, "full")
        z = torch.linspace(-1, 1, 2 * 32 * 32).view(2, 1, 32, 32)
        codes, _ = net.codes(z, True)
        net.decoder(z, torch.tensor([500, 100]), codes).square().mean().backward()
        grads.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][n], grads[1][n], rtol=1e-4, atol=1e-7) for n in grads[0])


def test_drawing_is_the_samplers_ddim() -> None:
    net = random_net(tiny()).eval()
    codes, noise = torch.rand(1, 5, 2, 2), torch.randn(1, 1, 32, 32)
    times = even_timesteps(4)
    with torch.no_grad():
        expected = ddim(
            lambda x, t: net.decoder(x, t, codes), noise, times, [*times[1:], -1], clamp=False
        )
        assert torch.equal(draw(net.decoder, codes, noise, 4), expected)


def test_distillation_pulls_few_steps_towards_many(write: Config, tmp_path: Path) -> None:
    save_file(random_net(tiny()).state_dict(), tmp_path / "a.safetensors")
    model = {"stage": "distill", "start": str(tmp_path / "a.safetensors"), "teacher_steps": 4}
    cli_ = training.build(["-c", str(write(model=model))], run_it=False)
    module = cli_.model.train()
    batch = next(iter(cli_.datamodule.loader("train", 4, endless=True)))
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 2e-3)
    first = last = 0.0
    for i in range(30):
        loss = sum(module.losses_of(batch)[0].values())
        first, last = (float(loss.detach()) if i == 0 else first), float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert last < 0.5 * first


def test_fresh_weights_decode_to_nothing_and_learn() -> None:
    net = TerraMindNet(tiny())
    initialise(net)
    codes, noise = torch.rand(1, 5, 2, 2), torch.randn(1, 1, 32, 32)
    assert not net.decoder(noise, torch.tensor([10]), codes).any()  # blocks are the identity, the output 0
    assert net.encoder.blocks[0].attn.qkv.weight.any()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"stage": "decoder"}, "model.start"),
        ({"windows": {"sizes": [40]}}, "multiples of 16"),
        ({"windows": {"sizes": [32], "scale": 0.0}}, "scale"),
        ({"sample_steps": 0}, "sample_steps"),
        ({"student_steps": 20}, "student_steps"),
        ({"nets": 1}, "nets"),
        ({"start": "nowhere.ckpt"}, "no checkpoint"),
    ],
)
def test_wrong_choices_are_one_line(model: dict[str, Any], says: str, write: Config) -> None:
    result = CliRunner().invoke(cli, ["train", "fit", "-c", str(write(model=model))])
    assert result.exit_code == 1, result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("tmcodec: error: ")
    assert says in message


def test_classes_have_no_sampling_stage(tmp_path: Path, write: Config) -> None:
    save_file(random_net(tiny("LULC")).state_dict(), tmp_path / "a.safetensors")
    model = {"stage": "distill", "start": str(tmp_path / "a.safetensors")}
    with pytest.raises(ConfigError, match="diffusion"):
        training.build(["-c", str(write("LULC", model=model))], run_it=False)


def test_sizes_are_checked_against_the_modality() -> None:
    with pytest.raises(ConfigError, match="channels: 2"):
        with_statistics(tiny("S1GRD", channels=3, mean=[0.0] * 3, std=[1.0] * 3))
    assert with_statistics(tiny("S1GRD")).mean == MODALITIES["S1GRD"].mean


def test_a_checkpoint_of_another_layout_is_refused(config: Config, write: Config, tmp_path: Path) -> None:
    training.run("fit", ["-c", str(config(name="mini")), "--trainer.max_steps=1"])
    with pytest.raises(ConfigError, match="another layout"):
        fit(write(), f"--ckpt_path={tmp_path / 'mini' / 'last.ckpt'}")


# --------------------------------------------------------------------------- windows of crops


def windows(values: torch.Tensor, seed: int = 0, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut random windows with defaults."""
    options: dict[str, Any] = {"sizes": (32, 64), "scale": 0.8, "flip": 0.5, "classes": False, **changes}
    valid = options.pop("valid", torch.ones_like(values, dtype=torch.bool))
    return random_windows(values, valid, generator=torch.Generator().manual_seed(seed), **options)


def test_windows_are_a_function_of_the_generator() -> None:
    values = torch.randn(3, 2, 64, 64)
    assert torch.equal(windows(values, 1)[0], windows(values, 1)[0])
    sides = {windows(values, seed)[0].shape[-1] for seed in range(20)}
    assert sides == {32, 64}


def test_a_window_shows_the_share_that_was_asked_for() -> None:
    ramp = torch.arange(64.0).expand(1, 1, 64, 64).contiguous()
    for seed in range(10):
        out, _ = windows(ramp, seed, sizes=(64,), flip=0.0)
        span = float(out.max() - out.min()) + 1
        assert 64 * 0.8**0.5 - 1.5 <= span <= 64.01
        assert (out.diff(dim=-1) > 0).all()
        assert (windows(ramp, seed, sizes=(64,), flip=1.0)[0].diff(dim=-1) < 0).all()


def test_classes_are_never_mixed_and_masked_pixels_reach_nothing_valid() -> None:
    ids = torch.randint(0, 10, (2, 1, 64, 64)).float()
    out, _ = windows(ids, sizes=(32,), classes=True)
    assert set(out.unique().tolist()) <= set(range(10))
    values, valid = torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64, dtype=torch.bool)
    values[..., :20], valid[..., :20] = 1e6, False
    for seed in range(5):
        out, ok = windows(values, seed, valid=valid, sizes=(32,))
        assert ok.any()
        assert not ok.all()
        assert float(out[ok].abs().max()) < 1e6 * 1e-3


def test_the_small_tokenizers_distill_too(config: Config, tmp_path: Path) -> None:
    """Two steps come nearer to what the teacher draws in eight of the same noise."""
    from training_helpers import SMALL

    from tmcodec.codec.weights import save_weights
    from tmcodec.networks.mini import MiniConfig, MiniNet

    torch.manual_seed(0)
    cfg = MiniConfig("NDVI", 1, (8, 8, 8, 6, 5), **SMALL, mean=(0.3,), std=(0.3,), residual_std=(0.5,))
    save_weights(tmp_path / "a.safetensors", MiniNet(cfg), "a", {})
    model = {"net": None, "stage": "distill", "start": str(tmp_path / "a.safetensors"), "chain_steps": 2,
             "teacher_steps": 8}  # fmt: skip
    built = training.build(["-c", str(config(model=model))], run_it=False)
    module, batch = built.model, next(iter(built.datamodule.loader("train", 4, endless=True)))
    assert [term.name for term in module.terms] == ["mse"]
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 5e-3)
    losses = []
    for _ in range(40):
        losses.append(sum(module.losses_of(batch)[0].values()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1].detach()) < 0.5 * float(losses[0].detach())
    with pytest.raises(ConfigError, match="teacher_steps"):
        training.build(["-c", str(config(model={**model, "teacher_steps": 2}))], run_it=False)
