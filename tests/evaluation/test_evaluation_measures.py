"""Measures against formulas written down a second time, and against torchmetrics and scipy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tmcodec.errors import EvaluationError
from tmcodec.evaluation.intervals import interval
from tmcodec.evaluation.measures import (
    beyond_sigma,
    ergas,
    measure,
    score,
    spectrum_error,
    torchmetrics_image,
)
from tmcodec.evaluation.scenes import Scene
from tmcodec.evaluation.tokens import entropy
from tmcodec.modalities import MODALITIES

MakeScene = Callable[..., Scene]
OPTICAL = MODALITIES["S2L2A"]


def noisy(scene: Scene, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=scene.values.shape) * 100
    return (scene.values + noise).astype(np.float32)


def test_ergas_is_the_formula(smooth_scene: MakeScene) -> None:
    scene = smooth_scene()
    other = noisy(scene)
    pixels = scene.valid.all(axis=0)
    truth, guess = (p[:, pixels].astype(np.float64) - 1000 for p in (scene.values, other))
    relative = [np.mean((g - t) ** 2) / np.mean(t) ** 2 for t, g in zip(truth, guess, strict=True)]
    found = ergas(scene.values, other, scene.valid, OPTICAL)
    assert found == pytest.approx(100 * math.sqrt(np.mean(relative)))


def test_ergas_of_pictures_of_8_bits_has_no_offset_and_of_others_is_not_defined() -> None:
    """Bands of means 50, 100 and 200 that are off by 5 everywhere: shares of 1/10, 1/20 and 1/40."""
    values = np.broadcast_to(np.float32([50, 100, 200])[:, None, None], (3, 8, 8))
    valid = np.ones(values.shape, bool)
    expected = 100 * math.sqrt((1 / 100 + 1 / 400 + 1 / 1600) / 3)
    assert ergas(values, values + 5, valid, MODALITIES["S2RGB"]) == pytest.approx(expected)
    assert math.isnan(ergas(values[:2], values[:2] + 5, valid[:2], MODALITIES["S1GRD"]))
    assert math.isnan(ergas(values, values, ~valid, MODALITIES["S2RGB"]))


def test_spectral_angle_and_ssim_are_torchmetrics(smooth_scene: MakeScene) -> None:
    scene = smooth_scene()
    scene.valid[...] = True
    other = noisy(scene)
    found, _ = measure(scene.values, other, scene.valid, OPTICAL)
    peer = torchmetrics_image()
    one, two = (torch.from_numpy(p.astype(np.float64) - 1000)[None] for p in (scene.values, other))
    assert found["sam"] == pytest.approx(math.degrees(float(peer.spectral_angle_mapper(two, one))), rel=1e-6)
    # Uniform windows of 7 as scikit-image's; it divides variances by n - 1 where torchmetrics divides by n.
    same = peer.structural_similarity_index_measure(
        two, one, gaussian_kernel=False, kernel_size=7, data_range=10000.0
    )
    assert found["ssim"] == pytest.approx(float(same), abs=2e-3)


def test_invalid_pixels_count_nowhere(smooth_scene: MakeScene) -> None:
    scene = smooth_scene()
    other = noisy(scene)
    first, bands = measure(scene.values, other, scene.valid, OPTICAL)
    spoilt, reference = (np.where(scene.valid, p, v).astype(np.float32)
                         for p, v in ((other, 50000.0), (scene.values, 3.0)))
    second, same_bands = measure(reference, spoilt, scene.valid, OPTICAL)
    # SSIM fills with the mean of the valid pixels: equal to rounding, all else exactly.
    assert second == pytest.approx(first, rel=1e-6)
    assert same_bands["B04"] == bands["B04"]


def test_spectrum_of_equal_pictures_is_equal(smooth_scene: MakeScene) -> None:
    scene = smooth_scene()
    assert spectrum_error(scene.values, scene.values, scene.valid) == 0
    assert spectrum_error(scene.values, scene.values + 500, scene.valid) == pytest.approx(0, abs=1e-3)


def test_spectrum_of_doubled_contrast_is_six_decibels(smooth_scene: MakeScene) -> None:
    scene = smooth_scene()
    twice = 2 * scene.values.astype(np.float64)
    found = spectrum_error(scene.values, twice, scene.valid)  # type: ignore[arg-type]
    assert found == pytest.approx(20 * math.log10(2), rel=1e-4)


def test_spectrum_error_is_the_mean_over_rings_and_bands() -> None:
    """Noise of doubled contrast above half of Nyquist's frequency: six decibels in half of the rings."""
    noise = np.random.default_rng(0).normal(size=(2, 128, 128))
    radius = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    sharper = np.fft.ifft2(np.fft.fft2(noise) * np.where(radius > 0.25, 2, 1)).real
    valid = np.ones(noise.shape, bool)
    half = 20 * math.log10(2) / 2
    assert spectrum_error(noise, sharper, valid) == pytest.approx(half, abs=0.15)
    sharper[1] = noise[1]
    assert spectrum_error(noise, sharper, valid) == pytest.approx(half / 2, abs=0.1)
    assert math.isnan(spectrum_error(noise[:, :3], noise[:, :3], valid[:, :3]))  # too small


def test_spectrum_of_a_flat_guess_is_the_cap(smooth_scene: MakeScene) -> None:
    scene = smooth_scene()
    assert spectrum_error(scene.values, np.zeros_like(scene.values), scene.valid) == pytest.approx(40)


def test_share_beyond_sigma() -> None:
    row = MODALITIES["S1GRD"]
    mean, std = (np.array(s, np.float32)[:, None, None] for s in (row.mean, row.std))
    places = np.array([[0, 0.9, -0.9, 1.1, -1.2, 3.0, 0.5, 9.0]], np.float32)
    values = (mean + std * places).astype(np.float32)
    valid = np.ones(values.shape, bool)
    valid[:, 0, -1] = False
    assert beyond_sigma(values, valid, row) == pytest.approx(3 / 7)


def test_score_is_the_measure(smooth_scene: MakeScene) -> None:
    for name in ("S2L2A", "DEM", "LULC"):
        scene = smooth_scene(name)
        other = np.roll(scene.values, 1, axis=2)
        whole, _ = measure(scene.values, other, scene.valid, MODALITIES[name])
        key = "accuracy" if name == "LULC" else "psnr"
        alone = score(scene.values, other, scene.valid, MODALITIES[name])
        assert alone == {key: pytest.approx(whole[key], rel=1e-6)}


def test_entropy() -> None:
    assert entropy(np.full(64, 3)) == pytest.approx(6)
    assert entropy(np.array([0, 7, 0])) == 0
    assert entropy(np.array([1, 1, 2])) == pytest.approx(1.5)
    assert entropy(np.zeros(4, np.int64)) == 0


# --------------------------------------------------------------------------- intervals


def test_interval_is_scipys_percentile_bootstrap() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).gamma(2, 3, 40)
    peer = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile").confidence_interval
    found = interval(list(values))
    assert found.mean == pytest.approx(values.mean())
    # The ends of ten thousand draws vary by a few hundredths of the mean's standard error, 0.8.
    assert (found.low, found.high) == pytest.approx((peer.low, peer.high), abs=0.12)


def test_interval_of_two_scenes_is_their_range() -> None:
    # A quarter of the draws takes the smaller value twice: the ends are the values themselves.
    found = interval([1.0, 3.0])
    assert (found.mean, found.low, found.high, found.count) == (2, 1, 3, 2)


def test_interval_of_one_scene_is_not_given() -> None:
    found = interval([4.0, math.inf, math.nan])
    assert (found.mean, found.low, found.high, found.count) == (4, None, None, 1)
    assert interval([]).mean is None


def test_interval_repeats() -> None:
    assert interval([1.0, 2.0, 4.0]) == interval([1.0, 2.0, 4.0])


# --------------------------------------------------------------------------- LPIPS


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    """Write random weights of AlexNet."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    path = tmp_path / "alexnet.pth"
    features = alexnet(weights=None).features.state_dict()
    torch.save({f"features.{k}": v for k, v in features.items()}, path)
    return path


def test_lpips_of_equal_pictures_is_zero(smooth_scene: MakeScene, trunk: Path) -> None:
    from tmcodec.evaluation.perception import Perception

    scene = smooth_scene()
    perception = Perception(trunk, OPTICAL)
    assert "alex from alexnet.pth" in perception.name
    assert perception.distance(scene.values, scene.values, scene.valid, OPTICAL) == 0
    far = perception.distance(scene.values, noisy(scene), scene.valid, OPTICAL)
    assert far > 0
    hidden = np.where(scene.valid, noisy(scene), np.float32(0))
    assert perception.distance(scene.values, hidden, scene.valid, OPTICAL) == far
    small = scene.values[:, :63]
    assert math.isnan(perception.distance(small, small, scene.valid[:, :63], OPTICAL))


def test_lpips_refuses_other_weights(tmp_path: Path) -> None:
    from tmcodec.evaluation.perception import trunk_of

    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for name in ("other.pth", "junk.pth", "absent.pth"):
        with pytest.raises(EvaluationError, match=name):
            trunk_of(tmp_path / name)
