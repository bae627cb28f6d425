"""The energy score of drawn pictures, against NumPy and against what it is for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_helpers import SMALL

from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.training.energy import cell_norms, energy_score, pyramid, relief_weights, whole_cells
from tmcodec.training.stages import StageName, denoising_error, energy_error, freeze, sampled_picture
from tmcodec.training.starting import textured


def normal(seed: int, batch: int = 8) -> torch.Tensor:
    return torch.randn(batch, 2, 64, 96, generator=torch.Generator().manual_seed(seed))


def test_the_levels_add_up_to_the_picture() -> None:
    levels = pyramid(normal(0))
    assert [tuple(x.shape[-2:]) for x in levels] == [(64, 96), (32, 48), (16, 24), (8, 12)]
    back = levels[-1]
    for detail in levels[-2::-1]:
        back = detail + F.interpolate(back, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(back, normal(0))


def test_norms_of_cells_are_numpys() -> None:
    x = normal(1).numpy()
    cells = x.reshape(8, 2, 16, 4, 24, 4)
    expected = np.sqrt((cells**2).sum(1).mean((2, 4)))
    np.testing.assert_allclose(cell_norms(normal(1))[:, 0].numpy(), expected, rtol=1e-5)


def test_the_score_is_the_formulas() -> None:
    truth, one, other = normal(0), normal(1), normal(2)
    weights = torch.rand(8, 1, 64, 96, generator=torch.Generator().manual_seed(3))
    expected, side = 0.0, 4
    for x, a, b in zip(pyramid(truth), pyramid(one), pyramid(other), strict=True):
        def norm(d: torch.Tensor) -> np.ndarray:
            cells = d.double().numpy().reshape(8, 2, d.shape[2] // 4, 4, d.shape[3] // 4, 4)
            return np.sqrt((cells**2).sum(1).mean((2, 4)))

        w = weights.double().numpy()[:, 0].reshape(8, 64 // side, side, 96 // side, side).mean((2, 4))
        score = 0.5 * norm(a - x) + 0.5 * norm(b - x) - 0.5 * norm(a - b)
        expected += (w * score).sum() / w.sum()
        side *= 2
    assert float(energy_score(truth, one, other, weights)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wrong", [0.0, 0.5, 0.8, 1.25, 2.0])
def test_the_true_strength_scores_best(wrong: float) -> None:
    """Strictly proper: draws of the truth's own distribution have the least score, here over 8 x 24 cells."""
    ones = torch.ones(8, 1, 64, 96)
    right = energy_score(normal(0), normal(1), normal(2), ones)
    assert float(energy_score(normal(0), wrong * normal(1), wrong * normal(2), ones)) > float(right)


def test_the_true_grain_scores_best() -> None:
    """Noise of the same strength that is smooth where the truth is not, scores worse."""
    smooth = [F.avg_pool2d(F.pad(normal(k), (2,) * 4, mode="circular"), 5, stride=1) for k in (1, 2)]
    smooth = [x / x.std() for x in smooth]
    ones = torch.ones(8, 1, 64, 96)
    right = energy_score(normal(0), normal(1), normal(2), ones)
    assert float(energy_score(normal(0), smooth[0], smooth[1], ones)) > 1.02 * float(right)


def test_errors_weigh_more_where_the_mean_is_flat() -> None:
    mean = torch.zeros(1, 4, 64, 128)
    mean[..., 64:] = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    weights = relief_weights(mean)
    assert weights.shape == (1, 1, 64, 128)
    assert float(weights[0, 0, 10, 10]) == pytest.approx(1 / (0.05 * 2), rel=1e-4)
    assert float(weights[..., 96:].max()) < 0.7 * float(weights[0, 0, 10, 10])


def test_parts_of_coarse_cells_are_left_out() -> None:
    assert whole_cells(torch.zeros(1, 2, 100, 65)).shape == (1, 2, 96, 64)
    x = torch.arange(100 * 71.0).view(1, 1, 100, 71)
    assert torch.equal(whole_cells(x, 5, 7), x[..., 5:69, 7:71])


def test_all_that_a_stage_trains_gets_a_gradient() -> None:
    """Several processes wait for the gradients of all parameters that are trained."""
    cfg = MiniConfig("NDVI", 1, (8, 8, 8, 6, 5), **SMALL, mean=(0.3,), std=(0.3,), residual_std=(0.5,))
    z, valid = torch.randn(2, 1, 64, 64), torch.ones(2, 1, 64, 64, dtype=torch.bool)
    losses: dict[StageName, Callable[[MiniNet, torch.Generator], torch.Tensor]] = {
        "denoiser": lambda net, generator: denoising_error(net, z, valid, generator).mean(),
        "energy": lambda net, generator: energy_error(net, z, valid, generator),
        "chain": lambda net, generator: (sampled_picture(net, z, 2, generator) - z).square().mean(),
    }
    for stage, loss in losses.items():
        net = textured(MiniNet(cfg))
        freeze(net, stage)
        loss(net, torch.Generator().manual_seed(0)).backward()
        trained = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
        assert trained
        assert [name for name, grad in trained.items() if grad is None] == [], stage


def test_masked_pixels_change_nothing() -> None:
    torch.manual_seed(0)
    cfg = MiniConfig("NDVI", 1, (8, 8, 8, 6, 5), **SMALL, mean=(0.3,), std=(0.3,), residual_std=(0.5,))
    net = textured(MiniNet(cfg))
    freeze(net, "energy")
    z = torch.randn(2, 1, 64, 64)
    valid = torch.ones(2, 1, 64, 64, dtype=torch.bool)
    valid[:, :, 20:40, 30:50] = False
    found = []
    for filler in (0.0, 5.0):
        # The encoder sees fillers, too; tokens are held, so that the score alone is looked at.
        net.encoder.forward = lambda x: torch.zeros(len(x), 4, 4, 5)  # type: ignore[method-assign]
        filled = torch.where(valid, z, filler)
        net.zero_grad()
        loss = energy_error(net, filled, valid, torch.Generator().manual_seed(4))
        loss.backward()
        assert net.denoiser is not None
        grads = [p.grad for p in net.denoiser.parameters() if p.grad is not None]
        found.append((loss.detach(), torch.cat([g.flatten() for g in grads])))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert float(found[0][1].abs().max()) > 0


def test_training_comes_near_to_the_true_distribution() -> None:
    """The truth is texture in cells of 4 pixels about the mean, whose own draws have the least score."""
    torch.manual_seed(0)
    cfg = MiniConfig("NDVI", 1, (8, 8, 8, 6, 5), **SMALL, mean=(0.3,), std=(0.3,), residual_std=(1.0,))
    net = textured(MiniNet(cfg))
    freeze(net, "energy")
    net.encoder.forward = lambda x: torch.zeros(len(x), 4, 4, 5)  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(1)
    mean = net.decoder(net.fsq.quantize(torch.zeros(4, 4, 4, 5)))[0].detach()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
    valid = torch.ones(4, 1, 64, 64, dtype=torch.bool)

    def texture() -> torch.Tensor:
        cells = 0.3 * torch.randn(4, 1, 16, 16, generator=generator)
        return cells.repeat_interleave(4, 2).repeat_interleave(4, 3)

    losses = []
    for _ in range(120):
        loss = energy_error(net, mean + texture(), valid, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    weights = relief_weights(mean)

    def true_score(row: int, col: int) -> float:
        fields = (texture(), texture(), texture(), weights)
        return float(energy_score(*(whole_cells(x, row, col) for x in fields)))

    least = np.mean([true_score(row, col) for row in range(8) for col in range(8)])
    begin, end = np.mean(losses[:5]), np.mean(losses[-20:])
    assert least < end < least + 0.4 * (begin - least)
