"""Overlapping windows of the denoiser, and how far it looks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tmcodec.networks.denoiser import CELL, Denoiser, lap, lap_window, time_features, unlap
from tmcodec.networks.mini import MiniConfig, binomial
from tmcodec.networks.terramind import unet
from tmcodec.samplers.sample import sample
from tmcodec.samplers.schedule import terramind_alpha_bar


def picture(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def test_squared_windows_add_up_to_one() -> None:
    square = lap_window() ** 2
    around = square[:4, :4] + square[4:, :4] + square[:4, 4:] + square[4:, 4:]
    torch.testing.assert_close(around, torch.ones(4, 4))
    assert float(lap_window()[0, 0]) == pytest.approx(math.sin(math.pi / 16) ** 2)


def test_a_cell_is_the_pixels_around_it_windowed() -> None:
    x = picture()
    cells = lap(x)
    assert cells.shape == (2, 8, 12, 3 * 64)
    around = x[1, :, 4 * 3 - 2 : 4 * 3 + 6, 4 * 5 - 2 : 4 * 5 + 6] * lap_window()
    assert torch.equal(cells[1, 3, 5].view(3, 8, 8), around)


def test_windows_are_undone_inside() -> None:
    back = unlap(lap(picture()), 3)
    inner = slice(2, -2)
    torch.testing.assert_close(back[..., inner, inner], picture()[..., inner, inner])


def test_adding_up_is_the_transpose_of_gathering() -> None:
    x, cells = picture(), torch.randn(2, 8, 12, 192, generator=torch.Generator().manual_seed(1))
    one, other = (lap(x) * cells).sum(), (x * unlap(cells, 3)).sum()
    assert float(one) == pytest.approx(float(other), rel=1e-4)


@pytest.mark.parametrize("lapped", [False, True])
def test_it_looks_no_farther_than_its_halo(lapped: bool) -> None:
    """The gradient of the middle pixel is zero beyond the halo, and is not just within."""
    torch.manual_seed(0)
    cfg = MiniConfig("NDVI", 1, (8, 8, 8, 6, 5), refine=4, denoiser_dim=8, denoiser_blocks=2, smooth=True,
                     lapped=lapped)  # fmt: skip
    net = Denoiser(cfg)
    side = 2 * 48
    noisy = torch.randn(1, 1, side, side, requires_grad=True)
    features = torch.randn(1, side // CELL, side // CELL, 4)
    clean = net(noisy, features, torch.tensor([500]), torch.tensor([0.5]))
    reach = 0
    for pixel in range(48, 52):  # all places in a cell
        (grad,) = torch.autograd.grad(clean[0, 0, pixel, pixel], noisy, retain_graph=True)
        rows = grad[0, 0].abs().sum(1).nonzero()[:, 0]
        reach = max(reach, pixel - int(rows[0]), int(rows[-1]) - pixel)
    assert net.halo_pixels - 4 <= reach <= net.halo_pixels


def test_sampling_reads_nothing_from_the_device() -> None:
    """On meta, which has no values, a step that waited for one would fail."""
    cfg = MiniConfig("NDVI", 1, (8, 8, 8, 6, 5), refine=4, denoiser_dim=8, denoiser_blocks=1)
    net = Denoiser(cfg).to("meta")
    noise = torch.empty(2, 1, 16, 16, device="meta")
    guess = net.guess_with(torch.empty(2, 4, 4, 4, device="meta"))
    assert sample(guess, noise, 3).shape == noise.shape


def test_a_guess_is_the_denoisers_at_that_timestep() -> None:
    torch.manual_seed(0)
    cfg = MiniConfig("NDVI", 1, (8, 8, 8, 6, 5), refine=4, denoiser_dim=8, denoiser_blocks=1)
    net, noisy, features = Denoiser(cfg), torch.randn(2, 1, 16, 16), torch.randn(2, 4, 4, 4)
    signal = terramind_alpha_bar()[[400]].sqrt()
    expected = net(noisy, features, torch.tensor([400]).expand(2), signal.expand(2))
    assert torch.equal(net.guess_with(features)(noisy, torch.tensor([400])), expected)
    assert not net.guess_with(features)(noisy, torch.tensor([999])).any()  # pure noise


class Places(TorchDispatchMode):
    """Notes where the results of all operations lie."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen.add(result.device.type)
        return result


@pytest.mark.parametrize(
    ("work", "shape"),
    [
        (lambda x: unet.time_features(x, 8), (2,)),
        (time_features, (2,)),
        (lap, (2, 3, 16, 16)),
        (lambda x: unlap(x, 3), (2, 4, 4, 192)),
        (binomial, (2, 3, 16, 16)),
    ],
)
def test_constants_are_made_on_the_device(work: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    """Those made on the CPU and copied in each call would make a device wait."""
    x = torch.empty(shape, device="meta")
    with Places() as places:
        work(x)
    assert places.seen == {"meta"}
