"""The radiometric balance: least squares that somebody else can repeat, interpolation as torch does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tmcodec
from tmcodec.codec.balance import (
    CAST,
    MARGIN,
    SLOPE,
    BalanceFit,
    BalanceProbe,
    apply_balance,
    gain_planes,
)
from tmcodec.codec.balance_steps import NodeSums, choose_steps, least_squares
from tmcodec.errors import ModalityError
from tmcodec.modalities import BalanceScale
from tmcodec.rasters import Window
from tmcodec.tokenfile import Balance
from tmcodec.tokenfile.balance import golomb_orders
from tmcodec.tokenfile.golomb import golomb_bits

DEMO = Path(tmcodec.__file__).parent / "data" / "demo_s2l2a.tif"
SCALE = BalanceScale(pivot=2000.0, divisor=64, step=4.0, noise=1e-3)
COARSE = BalanceScale(pivot=2000.0, divisor=16, step=32.0, noise=40.0)


def picture(bands: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Uniform values of 1000 to 5000, float32 (bands, height, width)."""
    rng = np.random.default_rng(seed)
    return rng.uniform(1000, 5000, (bands, height, width)).astype(np.float32)


def test_a_known_gain_and_offset_are_found() -> None:
    decoded = picture(2, 64, 96)
    original = decoded.copy()
    original[0] += 5 / 64 * (decoded[0] - 2000) - 12 * 4
    original[1] += -20 / 64 * (decoded[1] - 2000) + 99 * 4
    fit = BalanceFit(4, 6, 16, 2, SCALE)
    fit.add(Window(0, 0, 96, 64), decoded, original, np.ones(decoded.shape, bool))
    for balance in (fit.solve(), fit.solve(mixing=False)):
        assert (balance.values, balance.mix) == ((5, -12, -20, 99), ())


def test_a_known_mixing_is_found() -> None:
    decoded = picture(4, 512, 512, 11)
    u, v = np.array([0.5, 0.25, -0.25, 0.0]), np.array([0.125, -0.25, 0.5, 0.25])
    along = np.tensordot(v, decoded - 2000, 1)
    original = (decoded + u[:, None, None] * along + 40).astype(np.float32)
    fit = BalanceFit(32, 32, 16, 4, SCALE)
    fit.add(Window(0, 0, 512, 512), decoded, original, np.ones(decoded.shape, bool))
    balance = fit.solve()
    mix, nodes = balance.mixes(1, 4)[0], balance.nodes(32, 32, 1, 4)[0]
    gains = 1 + nodes[0, 0, :, :1] / 64
    found = gains * (np.eye(4) + mix[:, 0].T @ mix[:, 1] / 128**2)
    np.testing.assert_allclose(found, np.eye(4) + np.outer(u, v), atol=0.015)
    got = apply_balance(decoded.copy(), Window(0, 0, 512, 512), balance, nodes, mix, 16)
    assert np.sqrt(np.square(got - original).mean()) < 0.01 * np.sqrt(np.square(decoded - original).mean())


def node_sums(seed: int, nodes: int, bands: int) -> NodeSums:
    """Sums of 500 noisy pixels around each node."""
    rng = np.random.default_rng(seed)
    y = rng.normal(rng.uniform(-1500, 1500, (nodes, bands, 1)), 300, (nodes, bands, 500))
    x = rng.uniform(0.6, 1.5, (nodes, bands, 1)) * y + rng.uniform(-400, 400, (nodes, bands, 1))
    x += rng.normal(0, 150, x.shape)
    return NodeSums(np.full(nodes, 500.0), x.sum(-1), y.sum(-1), (x * y).sum(-1), (y * y).sum(-1))


def cost(values: np.ndarray, sums: NodeSums, bit: float) -> float:
    """Return squared error and price, the bits counted in the codes that a file would have."""
    error = sums.error(1 + values[..., 0] / COARSE.divisor, values[..., 1] * COARSE.step, COARSE).sum()
    steps = np.diff(values.reshape(len(values), -1), axis=0, prepend=0).reshape(-1).tolist()
    folded = [2 * v if v >= 0 else -2 * v - 1 for v in steps]
    orders = golomb_orders(folded)
    return float(error + bit * sum(len(golomb_bits(v, orders[i % 2])) for i, v in enumerate(folded)))


@pytest.mark.parametrize(("nodes", "bands"), [(1, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("price", [0.0, 1e5, 1e6, 3e6])
def test_steps_are_chosen_by_error_and_bits(nodes: int, bands: int, price: float) -> None:
    sums = node_sums(nodes + bands, nodes, bands)
    nearest, chosen = least_squares(sums, COARSE), choose_steps(sums, COARSE, price)
    best = cost(chosen, sums, price)
    assert best <= cost(nearest, sums, price)
    if price >= 1e6:
        assert cost(chosen, sums, 1) - cost(chosen, sums, 0) < cost(nearest, sums, 1) - cost(nearest, sums, 0)
    # No single integer would be better one up or one down, or zero, by more than a bit: codes change with it.
    better = 0
    for at in np.ndindex(chosen.shape):
        for value in (chosen[at] - 1, chosen[at] + 1, 0):
            other = chosen.copy()
            other[at] = value
            better += cost(other, sums, price) < best - price - 1e-9 * abs(best)
    assert better == 0


def test_values_that_no_surface_has_do_not_count() -> None:
    """A few pixels of an undeclared fill, or a broken one, must not move the colours of all others."""
    decoded = picture(2, 128, 128) / 2
    original = decoded + 64
    clean = BalanceFit(8, 8, 16, 2, COARSE)
    clean.add(Window(0, 0, 128, 128), decoded, original, np.ones(decoded.shape, bool))
    broken = original.copy()
    broken[:, :, :13], broken[0, 5, 50], broken[1, 7, 70] = -9999 + 1000, 1e10, -1e10
    fit = BalanceFit(8, 8, 16, 2, COARSE)
    fit.add(Window(0, 0, 128, 128), decoded, broken, np.ones(decoded.shape, bool))
    assert fit.solve() == clean.solve()
    assert clean.solve().values == (0, 2, 0, 2)


def test_windows_add_up_to_the_whole() -> None:
    decoded, original = picture(3, 160, 320, 1), picture(3, 160, 320, 2)
    valid = np.random.default_rng(3).random(decoded.shape) < 0.7
    whole = BalanceFit(10, 20, 16, 3, SCALE, spacing=4)
    whole.add(Window(0, 0, 320, 160), decoded, original, valid)
    parts = BalanceFit(10, 20, 16, 3, SCALE, spacing=4)
    for at in (Window(0, 0, 128, 160), Window(128, 0, 192, 64), Window(128, 64, 192, 96)):
        rows, cols = at.slices
        parts.add(at, decoded[:, rows, cols], original[:, rows, cols], valid[:, rows, cols])
    np.testing.assert_allclose(parts.moments, whole.moments, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(parts.square_x, whole.square_x, rtol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 65), (65, 64), (129, 40), (100, 257)])
def test_every_valid_pixel_counts_once(height: int, width: int) -> None:
    """Blocks are of 64 pixels, and nodes stand 64 apart: their weights add up to one."""
    decoded, original = picture(2, height, width, 1), picture(2, height, width, 2)
    valid = np.random.default_rng(3).random(decoded.shape) < 0.9
    fit = BalanceFit(-(-height // 16), -(-width // 16), 16, 2, SCALE, spacing=4)
    fit.add(Window(0, 0, width, height), decoded, original, valid)
    ok = valid.all(axis=0)
    x, y = (v[:, ok].astype(np.float64) - 2000 for v in (original, decoded))
    left, right = np.concatenate([np.ones((1, ok.sum())), x, y]), np.concatenate([np.ones((1, ok.sum())), y])
    np.testing.assert_allclose(fit.moments.sum(axis=(0, 1)), left @ right.T, rtol=1e-4, atol=1e-2 * ok.size)
    assert fit.moments[..., 0, 0].sum() == pytest.approx(ok.sum(), rel=1e-12)
    np.testing.assert_allclose(fit.square_x, (x**2).sum(axis=1), rtol=1e-6)


def test_one_node_is_ordinary_least_squares_over_valid_pixels() -> None:
    decoded = picture(1, 48, 48, 4)
    original = 0.6 * decoded + 0.2 * picture(1, 48, 48, 5) + 700
    valid = np.random.default_rng(6).random(decoded.shape) < 0.5
    fit = BalanceFit(3, 3, 16, 1, SCALE)
    fit.add(Window(0, 0, 48, 48), decoded, np.where(valid, original, np.nan).astype(np.float32), valid)
    slope, intercept = np.polyfit(decoded[valid].astype(float), original[valid].astype(float), 1)
    gain, offset = fit.solve().values
    assert abs(gain / 64 + 1 - slope) <= 0.5 / 64 + 1e-6
    # Where the rounded line and the exact one cross lies the mean.
    at = float(decoded[valid].mean())
    rounded = at + gain / 64 * (at - 2000) + 4 * offset
    assert abs(rounded - (slope * at + intercept)) <= 2 + 1e-3


def test_flat_neighbourhoods_keep_their_gain() -> None:
    decoded = np.full((1, 32, 32), 3000, np.float32)
    fit = BalanceFit(2, 2, 16, 1, SCALE)
    fit.add(Window(0, 0, 32, 32), decoded, decoded - 40, np.ones(decoded.shape, bool))
    assert fit.solve().values == (0, -10)


def test_nodes_are_interpolated_as_torch_does() -> None:
    rng = np.random.default_rng(7)
    nodes, mix = rng.integers(-60, 60, (3, 5, 2, 2), np.int32), rng.integers(-60, 60, (2, 2, 2), np.int32)
    balance = Balance(2, 2000.0, 64, 4.0, tuple(nodes.ravel().tolist()))
    values = picture(2, 3 * 32, 5 * 32, 8)
    planes = torch.from_numpy(nodes.astype(np.float64)).permute(3, 2, 0, 1)
    gain, offset = torch.nn.functional.interpolate(planes, scale_factor=32, mode="bilinear").numpy()
    matrix = np.eye(2) + (mix[:, 0].T @ mix[:, 1]) / 128**2
    mixed = 2000.0 + np.tensordot(matrix, values - 2000.0, 1)
    expected = mixed + gain / 64 * (mixed - 2000.0) + 4 * offset
    got = apply_balance(values.copy(), Window(0, 0, 160, 96), balance, nodes, mix, 16)
    np.testing.assert_allclose(got, expected, rtol=2e-5)


def test_planes_are_what_the_nodes_add() -> None:
    rng = np.random.default_rng(11)
    nodes = rng.integers(-60, 60, (3, 5, 2, 2), np.int32)
    balance = Balance(2, 2000.0, 64, 4.0, tuple(nodes.ravel().tolist()))
    at = Window(20, 40, 100, 30)
    rows, cols = at.slices
    gains, offsets = gain_planes(balance, (6, 9), at, 2, 16)  # the last column of nodes has one token
    planes = torch.from_numpy(nodes.astype(np.float64)).permute(3, 2, 0, 1)
    gain, offset = torch.nn.functional.interpolate(planes, scale_factor=32, mode="bilinear").numpy()
    np.testing.assert_allclose(gains, gain[:, rows, cols] / 64, atol=1e-5)
    np.testing.assert_allclose(offsets, offset[:, rows, cols] * 4, atol=1e-3)


@given(st.integers(0, 150), st.integers(0, 80), st.data())
@settings(max_examples=30, deadline=None)
def test_a_window_is_balanced_as_in_the_whole(col: int, row: int, data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 160 - col)), data.draw(st.integers(1, 96 - row))
    rng = np.random.default_rng(9)
    nodes, mix = rng.integers(-60, 60, (3, 5, 2, 2), np.int32), rng.integers(-60, 60, (2, 2, 2), np.int32)
    balance = Balance(2, 2000.0, 64, 4.0, tuple(nodes.ravel().tolist()))
    values = picture(2, 96, 160, 10)
    whole = apply_balance(values.copy(), Window(0, 0, 160, 96), balance, nodes, mix, 16)
    at = Window(col, row, width, height)
    rows, cols = at.slices
    part = apply_balance(values[:, rows, cols].copy(), at, balance, nodes, mix, 16)
    np.testing.assert_array_equal(part, whole[:, rows, cols])


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (Window(0, 0, 1024, 1024), Window(0, 0, 1024 - 32, 1024 - 32)),
        (Window(1024, 0, 1024, 1024), Window(1024 + 32, 0, 1024 - 64, 1024 - 32)),
        (Window(2048, 1024, 984, 1024), Window(2048 + 32, 1024 + 32, 984 - 32, 1024 - 32)),
        (Window(2048, 0, 20, 1024), Window(2048, 0, 20, 1024)),
    ],
)
def test_what_was_decoded_without_context_is_left_out(chunk: Window, expected: Window) -> None:
    assert MARGIN == 2
    tok = tmcodec.load_tokenizer("mini-s2l2a-v2", device="cpu")
    width = 2068 if chunk.width == 20 else 3032
    assert BalanceProbe(tok, width, 2048, SCALE).trusted(chunk) == expected


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR in dB with a peak of 10000."""
    return float(10 * np.log10(1e8 / np.square(a.astype(float) - b).mean()))


@pytest.mark.parametrize("exact", [True, False])
def test_the_green_ponds_of_the_demo_stay_green(exact: bool, tmp_path: Path) -> None:
    with rasterio.open(DEMO) as src:
        original = src.read()
    pictures = {}
    for balance in (False, None):
        path = tmp_path / f"{balance}.tmc"
        tmcodec.encode(DEMO, path, balance=balance, exact=exact)
        pictures[balance] = tmcodec.decode_array(path)[0]
    sizes = [(tmp_path / f"{name}.tmc").stat().st_size for name in ("False", "None")]
    with tmcodec.open(tmp_path / "None.tmc") as a, tmcodec.open(tmp_path / "False.tmc") as b:
        assert a["S2L2A"].balance is not None and b["S2L2A"].balance is None
        if exact:  # others are searched with the balance in view
            np.testing.assert_array_equal(a["S2L2A"].tokens(), b["S2L2A"].tokens())
            # Two bytes a number at the very most, and a few for the field.
            assert sizes[0] < sizes[1] <= sizes[0] + 12 * 2 * 2 * 2 + 12
    # On the encoder's own tokens a third of a decibel; of searched ones, which are nearer by themselves, what
    # its bytes cost at least.
    gain = psnr(pictures[None], original) - psnr(pictures[False], original)
    assert gain > (0.3 if exact else CAST * SLOPE * np.log(sizes[1] / sizes[0]))
    blue, green, red = (original[i].astype(float) for i in (1, 2, 3))
    ponds = green - np.maximum(blue, red) > 150
    assert ponds.sum() > 10_000
    error = abs(pictures[None][2][ponds].mean() - green[ponds].mean())
    assert error < 0.35 * abs(pictures[False][2][ponds].mean() - green[ponds].mean())


def test_a_window_of_a_balanced_file_decodes_as_in_the_whole(tmp_path: Path) -> None:
    with rasterio.open(DEMO) as src:
        values, bands = src.read(), src.descriptions
    mosaic = np.tile(values, (1, 3, 3))[:, :700, :600]
    mosaic[:, :, 300:] = mosaic[:, :, 300:] * 2  # so that nodes differ
    path = tmp_path / "a.tmc"
    tmcodec.encode(mosaic, path, profile={"descriptions": bands}, modality="S2L2A", s2_offset="absent")
    whole, _ = tmcodec.decode_array(path)
    part, _ = tmcodec.decode_array(path, window=(250, 330, 211, 173))
    with tmcodec.open(path) as file:
        assert file["S2L2A"].balance.nodes(44, 38, 1, 12).shape == (1, 2, 2, 12, 2)
    # The network's sums may round differently in windows of another size: half a number at most.
    assert np.abs(part.astype(int) - whole[:, 330:503, 250:461]).max() <= 1


def test_a_modality_without_a_balance_says_so(tmp_path: Path) -> None:
    values = np.full((1, 32, 32), 100, np.int16)
    with pytest.raises(ModalityError, match="DEM has no radiometric balance"):
        tmcodec.encode(values, tmp_path / "a.tmc", modality="DEM", balance=True)
    assert not (tmp_path / "a.tmc").exists()
