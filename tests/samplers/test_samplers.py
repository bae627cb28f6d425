"""Schedule, noise and sampling, against formulas written down a second time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.samplers import alpha_bar, block_noise, make_scheduler
from tmcodec.samplers import noise as noise_module
from tmcodec.samplers.noise import BLOCK


def test_schedule_is_linear_betas_with_zero_terminal_snr() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    root = np.sqrt(np.cumprod(1 - betas))
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    assert np.allclose(alpha_bar().numpy(), expected, atol=2e-6)
    assert float(alpha_bar()[-1]) == 0


def test_timesteps_trail() -> None:
    assert make_scheduler(1).timesteps.tolist() == [999]
    assert make_scheduler(4).timesteps.tolist() == [999, 749, 499, 249]


def test_ddim_with_a_perfect_denoiser_returns_the_truth() -> None:
    truth = torch.randn(1, 2, 8, 8)
    sample = torch.randn_like(truth)
    scheduler = make_scheduler(5)
    for t in scheduler.timesteps:
        sample = scheduler.step(truth, t, sample, return_dict=False)[0]
    assert torch.allclose(sample, truth, atol=1e-5)


@given(
    st.integers(-200, 200),
    st.integers(-200, 200),
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=25, deadline=None)
def test_a_window_of_noise_is_the_noise_of_the_whole(
    row: int, col: int, height: int, width: int, seed: int
) -> None:
    whole = block_noise(2, row - 3, col - 5, height + 10, width + 10, seed)
    assert np.array_equal(
        block_noise(2, row, col, height, width, seed), whole[:, 3 : 3 + height, 5 : 5 + width]
    )


def test_noise_is_standard_normal_and_differs_by_seed_and_place() -> None:
    noise = block_noise(3, 0, 0, 512, 512, seed=5)
    assert abs(float(noise.mean())) < 0.005
    assert abs(float(noise.std()) - 1) < 0.005
    assert abs(float((noise**4).mean()) - 3) < 0.05  # kurtosis of a normal distribution
    assert not np.array_equal(noise, block_noise(3, 0, 0, 512, 512, seed=6))
    assert not np.array_equal(noise[:, :BLOCK, :BLOCK], noise[:, BLOCK : 2 * BLOCK, :BLOCK])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**63 + 1, 0x9E3779B97F4A7C15, 2**64 - 1])
def test_all_64_bits_of_a_seed_count(seed: int) -> None:
    # NumPy's key as one number of 128 bits, of which the seed is the lower half.
    word = int(np.random.Philox(key=0x746D636F646563 << 64 | seed, counter=0).random_raw())
    radius, angle = ((word >> 32) + 1) / 2**32, (word & 0xFFFFFFFF) / 2**32
    expected = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
    assert block_noise(1, 0, 0, 1, 1, seed)[0, 0, 0] == pytest.approx(expected, rel=1e-6)


def test_each_step_has_noise_of_its_own_by_the_same_rule() -> None:
    first, later = (block_noise(2, 0, 0, 256, 256, 5, step) for step in (1, 2))
    assert abs(float((first * later).mean())) < 0.01  # uncorrelated
    assert abs(float((first * block_noise(2, 0, 0, 256, 256, 5)).mean())) < 0.01
    assert np.array_equal(block_noise(2, 70, 30, 20, 90, 5, 2), later[:, 70:90, 30:120])


def test_noise_is_box_muller_of_philox_words() -> None:
    # Written out once more: a promise, since a seed is stored in files.
    words = np.random.Philox(key=[9, 0x746D636F646563], counter=[0, 1, 2, 0]).random_raw(4)
    first = [(int(w) >> 32) + 1 for w in words], [int(w) & 0xFFFFFFFF for w in words]
    expected = [
        np.sqrt(-2 * np.log(a / 2**32)) * np.cos(2 * np.pi * b / 2**32) for a, b in zip(*first, strict=True)
    ]
    assert np.allclose(block_noise(1, 64, 128, 1, 4, seed=9)[0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_and_what_is_kept_change_nothing_in_the_noise(threads: int) -> None:
    windows = [(r, c, 150, 200, 7, step) for r in (-70, 0, 64) for c in (-1, 130) for step in (0, 1)]
    noise_module._one_block.cache_clear()
    shared = [block_noise(3, *window, threads=threads) for window in windows]
    alone = []
    for window in windows:
        noise_module._one_block.cache_clear()
        alone.append(block_noise(3, *window))
    assert all(np.array_equal(a, b) for a, b in zip(shared, alone, strict=True))


def test_blocks_are_kept_within_bounds_and_what_is_returned_is_the_callers() -> None:
    first = block_noise(1, 0, 0, BLOCK, BLOCK, seed=3)
    before = first.copy()
    first += 1  # a caller's own copy
    assert np.array_equal(block_noise(1, 0, 0, BLOCK, BLOCK, seed=3), before)
    block_noise(1, 0, 0, 20 * BLOCK, 20 * BLOCK, seed=3)
    assert noise_module._one_block.cache_info().currsize == noise_module.KEPT


def test_noise_leaves_the_global_state_alone() -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    block_noise(1, 0, 0, 8, 8, seed=1)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
