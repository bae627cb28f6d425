"""The rate term: a proper distribution, causal, with gradients to the likelier digit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from training_helpers import SMALL

from tmcodec.errors import ConfigError
from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.training.module import TokenizerModule
from tmcodec.training.rate import RateModel, between
from tmcodec.training.stages import mean_of_tokens, mean_picture, pull_back

LEVELS = (3, 2, 4)


def codes_and_latents(digits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes of digits ``(..., 3)`` and latents whose sigmoid lies exactly on them."""
    codes = digits / (torch.tensor(LEVELS) - 1)
    return codes.logit(1e-7), codes


def test_costs_are_interpolated_between_digits() -> None:
    costs = torch.tensor([[1.0, 3.0, 11.0]]).expand(5, 3)
    place = torch.tensor([0.0, 0.5, 1.0, 1.25, 2.0], requires_grad=True)
    found = between(costs, place)
    assert found.tolist() == [1.0, 2.0, 3.0, 5.0, 11.0]
    found.sum().backward()
    assert place.grad is not None
    assert place.grad.tolist() == [2.0, 2.0, 8.0, 8.0, 8.0]


def test_the_probabilities_of_all_tokens_add_up_to_one() -> None:
    torch.manual_seed(0)
    model = RateModel(LEVELS, width=16)
    digits = torch.tensor(list(itertools.product(*map(range, LEVELS))), dtype=torch.float32)
    latents, codes = codes_and_latents(digits[:, None, None])
    bits = model(latents, codes)
    assert bits.shape == (math.prod(LEVELS), 1, 1)
    assert float((2.0**-bits).detach().sum()) == pytest.approx(1.0, abs=1e-5)


def test_only_what_is_coded_before_counts() -> None:
    torch.manual_seed(1)
    model = RateModel(LEVELS, width=16)
    digits = torch.stack([torch.randint(0, n, (1, 5, 6)) for n in LEVELS], -1).float()
    before = model(*codes_and_latents(digits))
    changed = digits.clone()
    changed[0, 2, 3, 2] = (changed[0, 2, 3, 2] + 1) % 4
    after = model(*codes_and_latents(changed))
    same = torch.isclose(before, after)[0]
    assert same[:2].all()
    assert same[2, :3].all()
    assert not same[2, 3]
    assert not same[2, 4]  # its left neighbour
    assert not same[3, 3]  # its upper one


def test_a_gradient_pulls_towards_the_likelier_digit() -> None:
    model = RateModel((2,), width=4)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.heads[0][-1].bias.copy_(torch.tensor([0.0, 2.0]))  # type: ignore[index,union-attr]
    latents = torch.zeros(1, 1, 1, 1, requires_grad=True)
    model(latents, latents.detach().sigmoid()).sum().backward()
    assert latents.grad is not None
    # bits fall by 2 / ln 2 from digit 0 to 1, and the sigmoid rises by 1/4 at zero
    assert float(latents.grad) == pytest.approx(-0.5 / math.log(2), rel=1e-5)


def test_tokens_of_masked_pixels_are_neither_counted_nor_held() -> None:
    valid = torch.ones(2, 3, 32, 32, dtype=torch.bool)
    bits = torch.tensor([[[1.0, 2.0], [4.0, 8.0]], [[16.0, 32.0], [64.0, 128.0]]], requires_grad=True)
    assert float(mean_of_tokens(bits, valid).detach()) == float(bits.detach().mean()) == 255 / 8
    valid[0, :, :16, 16:] = False  # the token of 2 bits
    valid[1, 1:, 16:, :16] = False  # one band of that of 64 stays,
    valid[1, :, 16:, 16:] = False
    valid[1, 2, 31, 31] = True  # and one pixel of that of 128
    found = mean_of_tokens(bits, valid)
    assert float(found.detach()) == pytest.approx(253 / 7)
    found.backward()
    assert bits.grad is not None
    assert bits.grad[0, 0, 1] == 0
    latents = torch.full((2, 2, 2, 5), 6.0)
    latents[0, 0, 1] = 1e4
    assert float(pull_back(latents, valid)) == 4  # 6 lies 2 beyond 4
    assert float(mean_of_tokens(bits, torch.zeros_like(valid))) == 0


def test_a_stage_counts_and_holds_valid_tokens_alone() -> None:
    torch.manual_seed(0)
    cfg = MiniConfig("NDVI", 1, (8, 8, 8, 6, 5), **SMALL, mean=(0.3,), std=(0.3,))
    net, model = MiniNet(cfg), RateModel(cfg.levels, width=8)
    z, valid = 3 * torch.randn(1, 1, 64, 64), torch.ones(1, 1, 64, 64, dtype=torch.bool)
    valid[..., 32:, 32:] = False  # four of sixteen tokens
    with torch.no_grad():
        for p in net.encoder.parameters():
            p.mul_(3)  # so that some latents lie beyond 4
        out = mean_picture(net, z, valid, "mean", 0.5, model)
        latents = net.encoder(z)
        bits = model(latents, net.fsq.quantize(latents))
    beyond = (latents.abs() - 4).clamp_min(0).square()
    kept = [(0, r, c) for r in range(4) for c in range(4) if r < 2 or c < 2]
    assert out.bits is not None
    assert float(out.bits) == pytest.approx(sum(float(bits[k]) for k in kept) / 12, rel=1e-5)
    assert float(out.extra) == pytest.approx(0.5 * sum(float(beyond[k].mean()) for k in kept) / 12, rel=1e-5)
    assert float(out.extra) != pytest.approx(0.5 * float(beyond.mean()), rel=1e-3)


def test_a_stage_that_keeps_tokens_refuses_it() -> None:
    with pytest.raises(ConfigError, match="rate shapes tokens"):
        TokenizerModule(start="mini-ndvi-v2", stage="decoder", rate=0.01)
