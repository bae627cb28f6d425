"""Schedules and filters beside TerraTorch's, where it is installed (extra ``parity``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity_helpers import import_terratorch

from tmcodec.generation.sampling import Sampling, filtered
from tmcodec.generation.schedules import half_cosine_schedule, linear_schedule


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Return TerraTorch's module of generation."""
    import_terratorch()
    from terratorch.models.backbones.terramind.model import generate

    torch.set_float32_matmul_precision("highest")  # importing terratorch lowers it
    return generate


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 12, 196])
@pytest.mark.parametrize("total", [1, 20, 196, 256])
def test_linear_schedules_are_equal(theirs: Any, total: int, steps: int) -> None:
    assert linear_schedule(total, steps) == [int(n) for n in theirs.linear_schedule(steps, total)]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("total", [196, 256])
def test_half_cosine_is_their_cosine_up_to_rounding(theirs: Any, total: int, steps: int) -> None:
    ours, other = half_cosine_schedule(total, steps), [int(n) for n in theirs.cosine_schedule(steps, total)]
    assert sum(ours) == sum(other) == total
    # Theirs rounds each part, and the last one takes what that leaves.
    assert max((abs(a - b) for a, b in zip(ours[:-1], other[:-1], strict=True)), default=0) <= 1
    assert abs(ours[-1] - other[-1]) <= steps / 2


@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("top_k", [0, 1, 7])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_official_filtering_is_theirs(theirs: Any, top_p: float, top_k: int, temperature: float) -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(1)) * 2
    kept = theirs.GenerationSampler.top_k_top_p_filtering(None, logits.clone(), top_k, top_p)
    expected = torch.softmax(kept / temperature, -1)
    ours = filtered(logits, Sampling(temperature, top_k or None, top_p or None, "official")).exp()
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
