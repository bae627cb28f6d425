"""The sampling loop and its timesteps, against formulas and against diffusers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tmcodec.errors import SamplerError
from tmcodec.samplers.sample import check_sampler, ddim, sample
from tmcodec.samplers.schedule import (
    alpha_bar,
    even_timesteps,
    make_scheduler,
    named_scheduler,
    packed_timesteps,
    terramind_alpha_bar,
    trailing_timesteps,
)


def wavy(x: Tensor, t: Tensor) -> Tensor:
    """Stand in for a network: depends on everything and leaves -1..1."""
    return 1.7 * torch.sin(x + t / 300)


def noise(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_the_schedule_without_diffusers_is_that_of_diffusers() -> None:
    assert torch.equal(terramind_alpha_bar(), alpha_bar())


@given(st.integers(1, 1000))
@settings(max_examples=60, deadline=None)
def test_timesteps(steps: int) -> None:
    even, packed, trailing = even_timesteps(steps), packed_timesteps(steps), trailing_timesteps(steps)
    assert even == make_scheduler(steps).timesteps.tolist()[:steps]  # rounding gives diffusers a 104th of 103
    assert len(even) == steps
    for times in (even, packed, trailing):
        assert times[0] == 999
        assert times[-1] >= 0
        assert all(a > b for a, b in pairwise(times))
    stride = 1000 // steps
    assert trailing[-1] < stride  # TerraTorch goes on until it has reached the end
    assert len(trailing) == -(-1000 // stride)


def test_odd_step_counts_run_one_more() -> None:
    assert trailing_timesteps(10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert len(trailing_timesteps(7)) == 8
    assert len(trailing_timesteps(30)) == 31


def test_packed_timesteps_are_dense_where_there_is_little_noise() -> None:
    assert packed_timesteps(4) == [999, 561, 249, 61]
    assert sum(t < 250 for t in packed_timesteps(20)) == 10


@pytest.mark.parametrize("steps", [1, 2, 5, 20])  # with others, its steps do not lead to the next timestep
def test_default_is_ddim_of_diffusers(steps: int) -> None:
    scheduler, x = make_scheduler(steps), noise()
    for t in scheduler.timesteps:
        x = scheduler.step(wavy(x, t), t, x, return_dict=False)[0]
    assert torch.allclose(sample(wavy, noise(), steps), x, atol=1e-5)


def test_one_step_is_the_answer_to_pure_noise() -> None:
    assert torch.equal(sample(wavy, noise(), 1), wavy(noise(), torch.tensor([999])))


def test_official_clamps_after_the_direction_is_taken() -> None:
    # Two steps by hand, from the DDIM paper's formula (12) with a clamp on x0 alone.
    bars, x = terramind_alpha_bar(), noise()
    clean = wavy(x, torch.tensor([999]))
    direction = (x - bars[999].sqrt() * clean) / (1 - bars[999]).sqrt()
    x = bars[499].sqrt() * clean.clamp(-1, 1) + (1 - bars[499]).sqrt() * direction
    expected = wavy(x, torch.tensor([499])).clamp(-1, 1)
    assert torch.equal(sample(wavy, noise(), 2, "official"), expected)
    assert float(sample(wavy, noise(), 2).abs().max()) > 1  # the default confines nothing


def test_a_perfect_denoiser_gives_the_truth_with_every_sampler() -> None:
    truth = noise(1)
    for name in ("ddim", "ddim-packed", "DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "DDPM"):
        found = sample(lambda x, t: truth, noise(), 6, name, torch.Generator().manual_seed(0))
        assert torch.allclose(found, truth, atol=2e-2), name


def test_stochastic_schedulers_take_their_noise_from_the_generator() -> None:
    def draw(seed: int) -> Tensor:
        return sample(wavy, noise(), 4, "DDPM", torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_names() -> None:
    assert check_sampler("DDIM") == "ddim"
    assert check_sampler("Official") == "official"
    assert check_sampler("DPMSolverMultistepScheduler") == "DPMSolverMultistepScheduler"
    assert type(named_scheduler("unipcmultistep", 3)).__name__ == "UniPCMultistepScheduler"


@pytest.mark.parametrize("name", ["magic", "", "FlowMatchEulerDiscrete", "EulerAncestralDiscrete"])
def test_samplers_that_cannot_work_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(SamplerError) as caught:
        sample(wavy, noise(), 3, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_step_counts_out_of_range(steps: int) -> None:
    with pytest.raises(SamplerError, match="give 1 to 1000"):
        sample(wavy, noise(), steps)


def test_ddim_visits_the_timesteps_given() -> None:
    seen: list[int] = []

    def spy(x: Tensor, t: Tensor) -> Tensor:
        seen.append(int(t))
        return x

    ddim(spy, noise(), [900, 40], [40, -1], clamp=False)
    assert seen == [900, 40]
