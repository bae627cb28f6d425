"""The training script's parts, and a run of seconds that stops and goes on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tmcodec.codec.weights import load_weights
from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.training import corpus, mini
from tmcodec.training.export import export
from tmcodec.training.loop import Stage, make_optimizers, schedule
from tmcodec.training.recipes import RECIPES, Recipe


def test_the_schedule_warms_up_and_falls_to_two_percent() -> None:
    assert schedule(0.01) == pytest.approx(0.5)
    assert schedule(0.02) == pytest.approx(1.0)
    assert schedule(0.51) == pytest.approx(0.51)
    assert schedule(1.0) == pytest.approx(0.02)


def test_perceptrons_matrices_go_to_muon_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = "a.up.weight", "a.down.weight", "a.mix.weight"
    params = {name: torch.nn.Parameter(torch.ones(2, 2)) for name in names}
    if hasattr(torch.optim, "Muon"):
        muon, adam = make_optimizers(params, 1e-3)
        assert [len(o.param_groups[0]["params"]) for o in (muon, adam)] == [2, 1]
        monkeypatch.delattr(torch.optim, "Muon")
    (alone,) = make_optimizers(params, 1e-3)
    assert isinstance(alone, torch.optim.AdamW)
    assert len(alone.param_groups[0]["params"]) == 3


def test_masked_mean_leaves_invalid_pixels_out() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[:, None]
    mask = torch.tensor([[True, False], [True, True]])[:, None]
    assert mini.masked_mean(x, mask).tolist() == [1.0, 6.0]
    assert mini.masked_mean(x, None).tolist() == [2.0, 6.0]


def test_the_image_loss_by_hand() -> None:
    z, mean = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)
    slope = torch.full((1, 1, 2, 2), 0.2)
    expected = 0.25 + 0.1 * np.log(0.1**2 + 1e-6)
    assert float(mini.image_loss(mean, z, slope, None)) == pytest.approx(expected, rel=1e-5)


def test_the_offset_is_recognised_and_added() -> None:
    low = np.full((1, 20, 20), 300, np.float32)
    assert float(corpus.with_offset(low).mean()) == 1300
    assert float(corpus.with_offset(low + 1000).mean()) == 1300
    assert float(corpus.with_offset(low / 10000).mean()) == pytest.approx(1300)


def test_missing_bands_are_invalid() -> None:
    values, valid = np.ones((2, 4, 4), np.float32), np.ones((2, 4, 4), bool)
    out, ok = corpus.pick_bands(values, valid, ("B02", "B04"), ("B04", "B10"))
    assert ok[0].all()
    assert not ok[1].any()
    assert (out[0] == 1).all()


def test_crops_are_reproducible_and_keep_their_mask() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((2, 300, 280)).astype(np.float32)
    valid = values > 0.01
    scene = corpus.Scene("a", np.where(valid, values, 9).astype(np.float32), valid, 1.0)
    batches = [corpus.CropSampler([scene], 64, None, 0.0, 0.0, seed=3).batch(4) for _ in range(2)]
    assert np.array_equal(batches[0][0], batches[1][0])
    crops, masks = batches[0]
    assert crops.shape == masks.shape == (4, 2, 64, 64)
    assert np.array_equal(crops == 9, ~masks)  # flips and turns move both alike


def test_warped_crops_stay_inside_the_values() -> None:
    rng = np.random.default_rng(0)
    values = np.full((1, 240, 240), 7.0, np.float32)
    warped, valid = corpus.warp_crop(values, np.ones((1, 240, 240), bool), 160, rng)
    assert warped.shape == (1, 160, 160)
    assert np.allclose(warped, 7.0, atol=1e-4)
    assert valid.all()


def test_permuted_classes_keep_shapes_and_no_data() -> None:
    rng = np.random.default_rng(1)
    values = np.arange(10, dtype=np.float32).reshape(1, 2, 5)
    for _ in range(10):
        permuted = corpus.augment_classes(values, rng)
        assert sorted(permuted.ravel()) == list(range(10))
        assert permuted[0, 0, 0] == 0


def test_weights_of_another_modality_fit_band_by_band() -> None:
    def net(modality: str, channels: int) -> MiniNet:
        cfg = MiniConfig(
            modality,
            channels,
            (8, 8, 8, 6, 5),
            dim=8,
            encoder_blocks=1,
            decoder_blocks=1,
            refine=8,
            denoiser_dim=8,
            denoiser_blocks=1,
        )
        return MiniNet(cfg)

    source, target = net("S2L2A", 12), net("S2L1C", 13)
    before = target.encoder.embed.weight.detach().clone().view(8, 64, 13)
    saved = {"weights": source.state_dict(), "config": json.dumps(source.cfg.to_dict())}
    assert mini.start_from(target, saved) > 30
    theirs, mine = source.encoder.embed.weight.view(8, 64, 12), target.encoder.embed.weight.view(8, 64, 13)
    assert torch.equal(mine[..., :10], theirs[..., :10])
    assert torch.equal(mine[..., 11:], theirs[..., 10:])
    assert torch.equal(mine[..., 10], before[..., 10])  # B10 is new
    assert torch.equal(
        target.decoder.fine.bias.view(4, 13)[:, 12], source.decoder.fine.bias.view(4, 12)[:, 11]
    )


def test_a_stage_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.tensor([[5.0, -3.0]]))

    def make(minutes: float) -> Stage:
        return Stage(
            {"block.up.weight": weight},
            lambda: weight.square().sum(),
            minutes,
            0.05,
            lambda *_: None,
            tmp_path / "s.pt",
        )

    first = make(0.01)
    first.run()
    assert 0 < float(weight.square().sum()) < 34
    second = make(0.02)
    assert second.step == first.step
    assert second.spent >= 0.6 - 0.05
    second.run()
    assert second.step > first.step


@pytest.mark.parametrize("modality", ["S2L2A", "DEM", "LULC"])
def test_a_run_of_seconds_from_rasters_to_weights(
    modality: str, make_scene: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        folder = tmp_path / "data" / split / modality
        folder.mkdir(parents=True)
        make_scene(modality, 200, 180, name="raster.tif").rename(folder / "a.tif")
    small = {"dim": 16, "refine": 8, "encoder_blocks": 1, "decoder_blocks": 1, "denoiser_dim": 8}
    net = {**RECIPES[modality].net, **small}
    recipe = Recipe({modality: 1.0}, RECIPES[modality].peak, net, crop=64, batch=2)
    monkeypatch.setitem(mini.RECIPES, modality, recipe)
    monkeypatch.setitem(mini.VAL_FOLDERS, modality, {modality: 1.0})
    args = argparse.Namespace(
        modality=modality,
        data=tmp_path / "data",
        out=tmp_path / "runs",
        minutes=0.02,
        denoiser_minutes=0.02,
        lr=1e-3,
        fp32=True,
        start=None,
        seed=0,
    )
    mini.train(args)
    path, digest = export(tmp_path / "runs" / modality, tmp_path)
    loaded, name, found, meta = load_weights(path)
    assert (name, found) == (f"mini-{modality.lower()}-v1", digest)
    assert list(json.loads(meta["validation"])) == [f"{modality}/a"]
    assert loaded.cfg.modality == modality
