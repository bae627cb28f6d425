"""The official sampler against TerraTorch's own, bit for bit, around a denoiser that is no network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tmcodec.samplers.sample import sample
from tmcodec.samplers.schedule import terramind_alpha_bar, trailing_timesteps


class Stub(nn.Module):
    """Answers with something that depends on everything and leaves -1..1 often."""

    sample_size = 32
    device = torch.device("cpu")

    def forward(self, noisy: Tensor, timestep: Tensor, cond: Tensor, **_: object) -> Tensor:
        return 1.5 * torch.sin(noisy * (1 + timestep.float() / 500)) + cond.mean()


@pytest.fixture(scope="module")
def scheduling(terratorch_tokenizers: Any) -> Any:
    from terratorch.models.backbones.terramind.tokenizer import scheduling

    return scheduling


def test_noise_levels_are_the_same_bits(scheduling: Any) -> None:
    theirs = scheduling.DDIMScheduler(beta_schedule="linear", zero_terminal_snr=True)
    assert torch.equal(terramind_alpha_bar(), theirs.alphas_cumprod)


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 10, 30, 50, 999, 1000])
def test_timesteps_are_the_same(scheduling: Any, steps: int) -> None:
    theirs = scheduling.DDIMScheduler()
    theirs.set_timesteps(steps)
    assert trailing_timesteps(steps) == theirs.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 5, 7, 30])
def test_pictures_are_the_same_bits(scheduling: Any, steps: int) -> None:
    scheduler = scheduling.DDIMScheduler(
        thresholding=True, clip_sample=True, beta_schedule="linear", prediction_type="sample",
        zero_terminal_snr=True,
    )  # fmt: skip
    stub, cond = Stub(), torch.full((2, 5, 2, 2), 0.3)
    theirs = scheduling.PipelineCond(model=stub, scheduler=scheduler, n_channels=3)(
        cond, generator=torch.Generator().manual_seed(4), timesteps=steps, verbose=False
    )
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    assert torch.equal(sample(lambda x, t: stub(x, t[0], cond), noise, steps, "official"), theirs)
