"""The elevation tokenizer: a Gray code of mean heights, and a decoder that scales with the relief."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tmcodec.fsq import codebook_size
from tmcodec.networks.compand import Compander
from tmcodec.networks.height import HeightScale, from_reflected, local_statistics, reflected_digits
from tmcodec.networks.mini import MiniConfig, MiniNet


@pytest.mark.parametrize("levels", [(8, 8, 8, 6, 5), (7, 5, 5, 5, 5), (3, 2, 4), (2,), (5, 3)])
def test_neighbouring_heights_differ_in_one_digit_by_one(levels: tuple[int, ...]) -> None:
    index = torch.arange(codebook_size(levels))
    digits = reflected_digits(index, levels)
    assert torch.equal(
        (digits[1:] - digits[:-1]).abs().sum(-1), torch.ones(len(index) - 1, dtype=torch.int64)
    )
    assert bool((digits >= 0).all())
    assert bool((digits < torch.tensor(levels)).all())
    assert torch.equal(from_reflected(digits, levels), index)


def test_reflected_digits_by_hand() -> None:
    # levels 2 (fast) and 3 (slow): the fast digit runs 0 1, then 1 0, then 0 1
    assert reflected_digits(torch.arange(6), (2, 3)).tolist() == [
        [0, 0],
        [1, 0],
        [1, 1],
        [0, 1],
        [0, 2],
        [1, 2],
    ]


def test_the_scale_is_finest_at_sea_level_and_clips_at_its_ends() -> None:
    scale = HeightScale(Compander("asinh", 0.0, 1000.0, [0.0], [1.0]), (8, 8, 8, 6, 5), -12000.0, 9000.0)
    heights = torch.tensor([-430.0, 0.0, 5.0, 1200.0, 8848.0])
    error = (scale.to_height(scale.to_level(heights)) - heights).abs()
    # the step is asinh's slope: (asinh(12) + asinh(9)) / 15359 * sqrt(h^2 + 1000^2)
    step = 6.0739 / 15359 * torch.sqrt(heights**2 + 1e6)
    assert bool((error <= step / 2 * 1.01).all())
    assert float(scale.to_height(scale.to_level(torch.tensor([2e4])))[0]) == pytest.approx(9000)
    assert int(scale.to_level(torch.tensor([-2e4]))[0]) == 0


def height_net() -> MiniNet:
    torch.manual_seed(0)
    cfg = MiniConfig(
        "DEM",
        1,
        (8, 8, 8, 6, 5),
        kind="height",
        compand="asinh",
        knee=1000.0,
        dim=16,
        refine=8,
        decoder_blocks=1,
        denoiser_dim=8,
        denoiser_blocks=1,
        mean=(0.5,),
        std=(0.6,),
    )
    return MiniNet(cfg).eval()


@torch.no_grad()
def test_tokens_are_mean_heights() -> None:
    net = height_net()
    metres = torch.rand(1, 1, 64, 96) * 400 + torch.linspace(0, 3000, 96)
    tokens = net.fsq.latents_to_indices(net.encoder(net.compander.compress(metres)))
    heights = net.decoder.heights(net.fsq.indices_to_codes(tokens))
    assert tokens.shape == (1, 4, 6)
    assert float((heights - F.avg_pool2d(metres, 16)).abs().max()) < 0.7  # half a level at 3400 m
    assert net.encoder_halo == 0


@torch.no_grad()
def test_a_hill_is_a_hill_at_any_altitude() -> None:
    net = height_net()
    hill = 200 * torch.exp(
        -((torch.arange(12) - 6.0) ** 2)[:, None] / 8 - ((torch.arange(12) - 6.0) ** 2) / 8
    )
    pictures = []
    for base in (100.0, 1100.0):
        cells = (hill + base)[None, None]
        mean, relief = local_statistics(cells)
        relative = torch.cat([(cells - mean) / relief, relief.log() / 3 - 1], dim=1)
        pictures.append(net.decoder.detail.paint(relative.permute(0, 2, 3, 1))[0])
    assert torch.allclose(pictures[0], pictures[1], atol=1e-3)


def test_local_statistics_by_hand() -> None:
    cells = torch.zeros(1, 1, 7, 7)
    cells[..., 3, 3] = 25.0
    mean, relief = local_statistics(cells)
    assert float(mean[0, 0, 3, 3]) == pytest.approx(1.0)
    # variance of one 25 among 25 cells: 625/25 - 1 = 24
    assert float(relief[0, 0, 3, 3]) == pytest.approx(24**0.5 + 1, rel=1e-5)
    assert float(relief[0, 0, 0, 6]) == pytest.approx(1.0, abs=2e-3)


@torch.no_grad()
def test_texture_is_bounded_by_the_relief() -> None:
    net = height_net()

    def codes_of(metres: torch.Tensor) -> torch.Tensor:
        z = net.compander.compress(F.interpolate(metres[None, None], scale_factor=16))
        return net.fsq.indices_to_codes(net.fsq.latents_to_indices(net.encoder(z)))

    # A plain has the relief of one metre that is added: 0.45 m, beside 0.045 units of as many metres as the
    # curve takes there, 1000 sinh at a standard deviation of 0.6.
    plain = net.decoder.texture(codes_of(torch.full((6, 6), 1200.0)), 0.045)
    unit = 0.6 * (1200.0**2 + 1000.0**2) ** 0.5
    assert plain.shape == (1, 1, 96, 96)
    torch.testing.assert_close(plain, torch.full_like(plain, 0.45 / (0.045 * unit)), rtol=2e-3, atol=0)
    steps = torch.arange(6.0)
    mountains = net.decoder.texture(codes_of(1000 + 700 * (steps[:, None] + steps) % 1500), 0.045)
    assert float(mountains.min()) == 1.0


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="sculpture"):
        MiniNet(MiniConfig("DEM", 1, (8, 8, 8, 6, 5), kind="sculpture"))
