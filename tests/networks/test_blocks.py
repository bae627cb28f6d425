"""Cells, companding, and the promise that context is bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.networks.blocks import MixBlock, cells_to_image, enlarge, image_to_cells
from tmcodec.networks.compand import Compander
from tmcodec.networks.denoiser import Denoiser, time_features
from tmcodec.networks.mini import MiniConfig, MiniNet, binomial


def test_cells_follow_torch_pixel_shuffle() -> None:
    cells = torch.arange(2 * 3 * 4 * 12.0).reshape(2, 3, 4, 12)
    # pixel_shuffle wants the channel slowest, cells have it fastest.
    reordered = cells.reshape(2, 3, 4, 4, 3).transpose(3, 4).reshape(2, 3, 4, 12)
    expected = F.pixel_shuffle(reordered.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert torch.equal(cells_to_image(cells, 2), expected)


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 4, 8])
)
@settings(max_examples=30, deadline=None)
def test_cells_and_images_are_inverse(b: int, rows: int, cols: int, c: int, factor: int) -> None:
    image = torch.randn(b, rows * factor, cols * factor, c)
    assert torch.equal(cells_to_image(image_to_cells(image, factor), factor), image)


def test_mix_block_starts_near_identity() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 5, 32)
    change = (MixBlock(32)(x) - x).detach()
    assert 0 < float(change.abs().mean()) < 0.1 * float(x.abs().mean())


@pytest.mark.parametrize(
    ("kind", "origin", "knee"), [("linear", 3.0, 1.0), ("sqrt", 1000.0, 60.0), ("asinh", 0.0, 200.0)]
)
def test_companding_is_invertible_and_its_slope_is_the_derivative(
    kind: str, origin: float, knee: float
) -> None:
    compander = Compander(kind, origin, knee, [0.5], [2.0])
    v = torch.linspace(-3000, 9000, 601, dtype=torch.float64).view(1, -1, 1)
    assert torch.allclose(compander.expand(compander.compress(v)), v, atol=2e-2)
    z = compander.compress(v).requires_grad_()
    (derivative,) = torch.autograd.grad(compander.expand(z).sum(), z)
    away = (v - origin).abs() > 1  # the square root has a kink in its second derivative at the origin
    assert torch.allclose(compander.slope(v)[away].double(), derivative[away], rtol=1e-3)


def test_companding_band_by_band_is_the_same() -> None:
    compander = Compander("sqrt", 1000.0, 60.0, [5.0, 7.0], [2.0, 3.0])
    v = torch.rand(2, 2, 9, 9) * 9000
    assert torch.allclose(compander.compress_bands(v), compander.compress(v), atol=1e-5)
    z = torch.randn(2, 2, 9, 9) * 5
    expected = compander.expand(z).clamp(900, 4000)
    assert torch.allclose(compander.expand_bands(z, 900, 4000), expected, rtol=1e-5)
    assert expected.min() == 900


def test_companding_values_by_hand() -> None:
    root = Compander("sqrt", 1000.0, 64.0, [0.0], [1.0])
    got = root.compress(torch.tensor([1000.0, 1036.0, 964.0]).view(1, 3, 1)).flatten()
    # sqrt(36 + 64) - 8 = 2, and odd about the origin
    assert np.allclose(got, [0, 2, -2])
    with pytest.raises(ValueError, match="cube"):
        Compander("cube", 0, 1, [0], [1])


def keys_cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' convolution kernel, from his paper."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@pytest.mark.parametrize(("slopes", "a"), [(True, -0.5), (False, -0.75)])
@pytest.mark.parametrize("factor", [4, 16])
def test_enlarging_is_keys_convolution(slopes: bool, a: float, factor: int) -> None:
    x = torch.rand(1, 1, 9, 11, generator=torch.Generator().manual_seed(0))
    got = enlarge(x, factor, slopes)[0, 0].double().numpy()
    rows, cols = ((np.arange(n * factor) + 0.5) / factor - 0.5 for n in x.shape[2:])
    down, across = (
        keys_cubic(at[:, None] - np.arange(n), a) for at, n in zip((rows, cols), x.shape[2:], strict=True)
    )
    inner = np.s_[2 * factor : -2 * factor, 2 * factor : -2 * factor]
    np.testing.assert_allclose(got[inner], (down @ x[0, 0].double().numpy() @ across.T)[inner], atol=1e-5)


def test_slopes_stay_slopes() -> None:
    plane = (3.0 * torch.arange(10)[:, None] - 2.0 * torch.arange(12))[None, None]
    inner = enlarge(plane, 16, True)[0, 0, 32:-32, 32:-32]
    assert torch.allclose(inner.diff(dim=0), torch.tensor(3 / 16), atol=1e-4)
    assert torch.allclose(inner.diff(dim=1), torch.tensor(-2 / 16), atol=1e-4)
    rippled = enlarge(plane, 16, False)[0, 0, 32:-32, 32:-32].diff(dim=1) * 16 / -2
    assert rippled.min() < 0.8 and rippled.max() > 1.4


def small_net(channels: int = 3, slopes: bool = False) -> MiniNet:
    torch.manual_seed(1)
    cfg = MiniConfig(
        "S2RGB",
        channels,
        (8, 8, 8, 6, 5),
        dim=32,
        encoder_blocks=2,
        decoder_blocks=2,
        refine=16,
        denoiser_dim=16,
        denoiser_blocks=2,
        slopes=slopes,
    )
    net = MiniNet(cfg).eval()
    for name, p in net.named_parameters():
        if name.endswith(".scale"):
            torch.nn.init.ones_(p)  # let context matter, so that a missing halo would show
    return net


@torch.no_grad()
def test_a_window_with_its_halo_gives_the_tokens_of_the_whole() -> None:
    net = small_net()
    z = torch.randn(1, 3, 16 * 20, 16 * 20)
    whole = net.encoder(z)
    halo = net.encoder_halo
    part = net.encoder(z[..., 16 * (8 - halo) : 16 * (12 + halo), 16 * (8 - halo) : 16 * (12 + halo)])
    assert halo == 4
    assert torch.allclose(part[:, halo:-halo, halo:-halo], whole[:, 8:12, 8:12], atol=1e-4)
    less = net.encoder(z[..., 16 * 7 : 16 * 13, 16 * 7 : 16 * 13])
    assert not torch.allclose(less[:, 1:-1, 1:-1], whole[:, 8:12, 8:12], atol=1e-3)


@pytest.mark.parametrize("slopes", [False, True])
@torch.no_grad()
def test_a_window_with_its_halo_decodes_to_the_whole(slopes: bool) -> None:
    net = small_net(slopes=slopes)
    codes = torch.rand(1, 24, 24, 5)
    whole, features = net.decoder(codes)
    halo = net.decoder_halo
    part, _ = net.decoder(codes[:, 10 - halo : 14 + halo, 10 - halo : 14 + halo])
    inner = part[..., 16 * halo : -16 * halo, 16 * halo : -16 * halo]
    assert torch.allclose(inner, whole[..., 160:224, 160:224], atol=1e-4)
    assert whole.shape == (1, 3, 384, 384)
    assert features.shape == (1, 96, 96, 16)


@torch.no_grad()
def test_the_denoiser_sees_no_further_than_it_says() -> None:
    net = small_net()
    denoiser = net.denoiser
    assert isinstance(denoiser, Denoiser)
    noisy, features = torch.randn(1, 3, 192, 192), torch.randn(1, 48, 48, 16)
    t, signal = torch.tensor([500]), torch.tensor([0.5])
    before = denoiser(noisy, features, t, signal)
    noisy[..., 96, 96] += 10
    changed = (denoiser(noisy, features, t, signal) - before).abs().amax(dim=(0, 1)) > 0
    rows = changed.any(1).nonzero()
    assert int(rows.min()) >= 96 - denoiser.halo_pixels
    assert int(rows.max()) <= 96 + denoiser.halo_pixels


@torch.no_grad()
def test_the_denoiser_says_zero_at_pure_noise() -> None:
    denoiser = small_net().denoiser
    assert denoiser is not None
    got = denoiser(torch.randn(1, 3, 32, 32), torch.randn(1, 8, 8, 16), torch.tensor([999]), torch.zeros(1))
    assert torch.equal(got, torch.zeros_like(got))


def test_time_features_are_cosines_then_sines() -> None:
    got = time_features(torch.tensor([0, 7]), 8)
    assert torch.equal(got[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    assert float(got[1, 0]) == pytest.approx(np.cos(7), abs=1e-6)
    assert float(got[1, 5]) == pytest.approx(np.sin(7 * 10000 ** (-1 / 4)), abs=1e-6)


def test_residual_components_are_projected_and_rebuilt() -> None:
    rows = ((0.6, 0.8, 0.0), (0.0, 0.0, 2.0))  # orthogonal
    cfg = MiniConfig(
        "S2RGB",
        3,
        (8, 8, 8, 6, 5),
        dim=8,
        refine=8,
        denoiser_dim=8,
        components=2,
        smooth=True,
        residual_basis=rows,
    )
    net = MiniNet(cfg).eval()
    parts = torch.randn(2, 2, 8, 8)
    residual = net.from_components(parts)
    assert torch.allclose(residual[:, 1], parts[:, 0] * 0.8, atol=1e-6)
    assert torch.allclose(net.to_components(residual), parts, atol=1e-5)
    assert net.denoiser is not None
    features, t = torch.zeros(2, 2, 2, 8), torch.tensor([10, 10])
    assert net.denoiser(parts, features, t, torch.ones(2)).shape == parts.shape


def test_without_components_each_band_is_its_own() -> None:
    cfg = MiniConfig(
        "S2RGB", 3, (8, 8, 8, 6, 5), dim=8, refine=8, denoiser_dim=8, residual_std=(1.0, 2.0, 4.0)
    )
    net = MiniNet(cfg)
    residual = torch.ones(1, 3, 2, 2)
    assert net.to_components(residual)[0, :, 0, 0].tolist() == [1.0, 0.5, 0.25]
    assert torch.allclose(net.from_components(net.to_components(residual)), residual)


def test_the_binomial_keeps_planes_and_removes_what_alternates() -> None:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    plane, lattice = 3 + 2 * x - y, (-1.0) ** (x + y)
    stripes = (-1.0) ** x
    smooth = binomial(torch.stack([plane, plane + 5 * lattice, plane - stripes])[None])[0]
    for channel in smooth:
        torch.testing.assert_close(channel[1:-1, 1:-1], plane[1:-1, 1:-1])
