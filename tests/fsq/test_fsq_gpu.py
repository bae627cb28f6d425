"""The CUDA kernels on a device: ``pytest -m gpu``."""

from __future__ import annotations

import pytest
import torch
from fsq_helpers import (
    DTYPES,
    FORMS,
    GOLDEN,
    LEVEL_LISTS,
    golden_latents,
    needs_cuda_kernels,
    random_latents,
)

from tmcodec.fsq import blend, blend_weights, normalize_patchify, ops
from tmcodec.fsq import levels as lv
from tmcodec.fsq.backends import choose
from tmcodec.fsq.grid import make_grid
from tmcodec.fsq.rasters import RASTER_DTYPES, TILE_DTYPES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LEVELS = (8, 8, 8, 6, 5)


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    needs_cuda_kernels()


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['form']}-{'x'.join(map(str, c['levels']))}")
def test_golden_vectors(case):
    z = golden_latents(case).cuda()
    assert ops.quantize_indices(z, case["levels"], case["form"], backend="native").tolist() == case["indices"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", LEVEL_LISTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 3, 1021, 1_000_000])
def test_same_as_the_cpu(n, dtype, levels, form):
    z = random_latents(max(n, 10), levels, form, dtype, 1)[:n]
    codes, indices = ops.quantize(z.cuda(), levels, form, backend="native")
    expected_codes, expected = ops.quantize(z, levels, form)
    assert torch.equal(indices.cpu(), expected)
    assert torch.equal(codes.cpu(), expected_codes)
    assert torch.equal(ops.quantize_indices(z.cuda(), levels, form, backend="native").cpu(), expected)
    assert torch.equal(ops.dequantize(indices, levels, form, backend="native").cpu(), expected_codes)


@pytest.mark.parametrize("inner", [2, 3, 4, 196])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channel_first_and_unaligned(dtype, inner):
    z = random_latents(7 * inner, LEVELS, "sigmoid", dtype, 2).view(7, inner, 5).transpose(1, 2).contiguous()
    expected = ops.quantize(z, LEVELS, axis=1)
    shifted = torch.empty(z.numel() + 1, dtype=dtype, device="cuda")[1:].view(z.shape)
    shifted.copy_(z)
    for device_z in (z.cuda(), shifted):
        found = ops.quantize(device_z, LEVELS, axis=1, backend="native")
        assert torch.equal(found[0].cpu(), expected[0])
        assert torch.equal(found[1].cpu(), expected[1])
    assert torch.equal(ops.dequantize(found[1], LEVELS, axis=1, backend="native").cpu(), expected[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype, form):
    z = random_latents(10_001, LEVELS, form, dtype, 3)
    g = torch.randn(z.shape)
    grid = make_grid(LEVELS, form)
    found = ops._backward(g.cuda(), z.cuda(), grid, -1, "native").cpu()
    torch.testing.assert_close(
        found, ops._backward(g, z, grid, -1, "torch"), atol=1e-6, rtol=8e-3 if z.itemsize == 2 else 1e-5
    )


@pytest.mark.parametrize("dim", [0, 1, 17, 64, 768, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [LEVELS, (7,), (2,) * 17])
def test_project(levels, dtype, dim):
    x = torch.randn(1003, dim).to(dtype).cuda()
    weight, bias = (
        (torch.randn(len(levels), dim) / max(dim, 1) ** 0.5).cuda(),
        torch.randn(len(levels)).cuda(),
    )
    codes, indices = ops.project_quantize(x, weight, bias, levels, backend="native")
    exact = x.double() @ weight.double().t() + bias.double()
    clear = torch.ones(1003, dtype=torch.bool, device="cuda")
    for c, level in enumerate(levels):
        clear &= ((exact[:, c, None] - torch.from_numpy(lv.thresholds(level)).cuda()).abs() > 1e-5).all(1)
    assert torch.equal(indices[clear], ops.quantize_indices(exact, levels, backend="torch")[clear])
    assert float(clear.double().mean()) > 0.98
    out = ops.dequantize_project(indices, weight.t().contiguous(), None, levels, backend="native").cpu()
    expected = ops.dequantize_project(
        indices.cpu(), weight.t().contiguous().cpu(), None, levels, backend="native"
    )
    assert torch.equal(out, expected)
    assert torch.equal(codes.cpu(), ops.dequantize(indices.cpu(), levels))


@pytest.mark.parametrize("tile_dtype", TILE_DTYPES)
@pytest.mark.parametrize("dtype", RASTER_DTYPES)
def test_rasters(dtype, tile_dtype):
    raster = (torch.rand(3, 70, 131) * 255).to(dtype)
    args = ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0], 37, [0, 30, 60], [-3, 31, 60, 94])
    mask = torch.rand(70, 131) > 0.1
    tiles = normalize_patchify(raster, *args, mask, dtype=tile_dtype)
    found = normalize_patchify(raster.cuda(), *args, mask.cuda(), dtype=tile_dtype, backend="native")
    assert torch.equal(found.cpu(), tiles)
    weights = blend_weights(args[3], 37), blend_weights(args[4], 37)
    expected = blend(tiles, *args[3:], *weights, 70, 131, *args[:2], mask, 9.0, dtype)
    again = blend(found, *args[3:], *weights, 70, 131, *args[:2], mask.cuda(), 9.0, dtype, "native")
    assert torch.equal(again.cpu(), expected)


def test_many_levels_fall_back_to_torch():
    kernels = choose("cuda", "native")
    assert not kernels.supports(make_grid((65536,)))
    z = random_latents(1000, (5000,), "sigmoid", torch.float32, 4)
    assert torch.equal(ops.quantize_indices(z.cuda(), (5000,)).cpu(), ops.quantize_indices(z, (5000,)))
