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
    _draws,
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
        found = sample(lambda x, t: truth, noise(), 6, name, noise)
        assert torch.allclose(found, truth, atol=2e-2), name


@pytest.mark.parametrize("name", ["DDPM", "DDPMParallelScheduler"])
@pytest.mark.parametrize("steps", [1, 3, 7, 20])
def test_ddpm_is_that_of_diffusers_with_noise_from_outside(name: str, steps: int) -> None:
    """The same numbers as diffusers' own scheduler, where each step is given what that one draws."""
    generator, drawn = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    scheduler, x = named_scheduler("DDPM", steps), noise()
    for t in scheduler.timesteps:
        x = scheduler.step(wavy(x, t), t, x, generator=generator, return_dict=False)[0]
    state, asked = torch.get_rng_state(), []

    def added(step: int) -> Tensor:
        asked.append(step)
        return torch.randn(noise().shape, generator=drawn)

    torch.testing.assert_close(sample(wavy, noise(), steps, name, added), x, atol=1e-4, rtol=1e-4)
    assert asked == list(range(1, steps))  # the last step leads to the clean picture
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(SamplerError, match="adds noise at each step"):
        sample(wavy, noise(), steps, name)


@pytest.mark.parametrize("name", ["LCM", "TCD", "SASolver"])
def test_schedulers_that_draw_noise_of_their_own_are_refused(name: str) -> None:
    """Before anything is sampled: no window could see the noise of the whole."""
    for refused in (lambda: check_sampler(name), lambda: sample(wavy, noise(), 1, name, noise)):
        with pytest.raises(SamplerError, match="draws noise of its own"):
            refused()


@pytest.mark.parametrize(
    "name",
    ["DDIM", "DPMSolverMultistep", "DPMSolverSinglestep", "EulerDiscrete", "HeunDiscrete", "LMSDiscrete",
     "DEISMultistep", "UniPCMultistep"],
)  # fmt: skip
def test_schedulers_that_draw_none_sample(name: str) -> None:
    assert check_sampler(name + "Scheduler") == name + "Scheduler"
    assert torch.isfinite(sample(wavy, noise(), 4, name + "Scheduler")).all()


@pytest.mark.parametrize("name", ["DDIMInverse", "DPMSolverMultistepInverse"])
def test_schedulers_that_lead_to_noise_are_refused(name: str) -> None:
    """They go from a picture to the noise that makes it; from noise they went to infinity."""
    with pytest.raises(SamplerError, match=f"{name}Scheduler does not lead from noise to a picture"):
        check_sampler(name)


def test_trying_a_scheduler_out_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers warns of pictures that are wrong where a scheduler's input is not scaled."""
    module = pytest.importorskip("diffusers.schedulers.scheduling_euler_discrete")
    said: list[str] = []
    monkeypatch.setattr(module.logger, "warning", said.append)
    _draws.cache_clear()
    check_sampler("EulerDiscrete")
    sample(wavy, noise(), 3, "EulerDiscrete")
    assert said == []


def test_names() -> None:
    assert check_sampler("DDIM") == "ddim"
    assert check_sampler("Official") == "official"
    assert check_sampler("DPMSolverMultistepScheduler") == "DPMSolverMultistepScheduler"
    assert type(named_scheduler("unipcmultistep", 3)).__name__ == "UniPCMultistepScheduler"


UNFIT = ["magic", "", "FlowMatchEulerDiscrete", "EulerAncestralDiscrete", "CogVideoXDPM", "ScoreSdeVp"]


@pytest.mark.parametrize("name", UNFIT)
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
