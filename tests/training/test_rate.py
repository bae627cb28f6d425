"""The rate term: a proper distribution, causal, with gradients to the likelier digit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tmcodec.errors import ConfigError
from tmcodec.training.module import TokenizerModule
from tmcodec.training.rate import RateModel, between

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


def test_a_stage_that_keeps_tokens_refuses_it() -> None:
    with pytest.raises(ConfigError, match="rate shapes tokens"):
        TokenizerModule(start="mini-ndvi-v2", stage="decoder", rate=0.01)
