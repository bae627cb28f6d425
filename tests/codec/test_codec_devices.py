"""A tokenizer gives the same tokens and pictures on every device, to rounding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tmcodec import load_tokenizer
from tmcodec.fsq.grid import make_grid
from tmcodec.modalities import MODALITIES
from tmcodec.networks.precision import inference

ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


def synthetic(side: int = 256) -> torch.Tensor:
    """Return a smooth field with fine noise around the bands' means, (1, 12, side, side)."""
    row, generator = MODALITIES["S2L2A"], torch.Generator().manual_seed(1)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (row.mean, row.std))
    coarse = torch.randn(1, len(row.bands), side // 32, side // 32, generator=generator)
    field = F.interpolate(coarse, size=(side, side), mode="bilinear")
    noise = torch.randn(1, len(row.bands), side, side, generator=generator)
    return (mean + std * (0.4 * field + 0.02 * noise)).clamp(1, 10_000)


def far_from_edges(latents: torch.Tensor, levels: tuple[int, ...], slack: float) -> torch.Tensor:
    """Tell for each token whether no latent lies within `slack` of a decision threshold."""
    far, grid, first = torch.ones(latents.shape[:-1], dtype=torch.bool), make_grid(levels), 0
    for c, level in enumerate(levels):
        edges = torch.from_numpy(grid.thresholds[first : first + level - 1].copy())
        far &= ((latents[..., c, None] - edges).abs() > slack).all(-1)
        first += level - 1
    return far


@pytest.mark.parametrize("device", DEVICES)
def test_tokens_and_pictures_are_the_cpus(device: str) -> None:
    x = synthetic()
    here, there = (load_tokenizer("mini-s2l2a-v2", device=name) for name in ("cpu", device))
    with inference(here.device):
        latents = here.net.latents(x)
    far = far_from_edges(latents, here.levels, 1e-4)
    assert float(far.float().mean()) > 0.95
    assert not far_from_edges(latents, here.levels, 5.0).any()  # every latent has an edge that near
    expected, tokens = here.encode(x), there.encode(x).cpu()
    assert expected.unique().numel() > 50
    assert torch.equal(tokens[far], expected[far])
    pictures = there.decode(expected).cpu(), here.decode(expected)
    torch.testing.assert_close(*pictures, atol=0.5, rtol=1e-4)
