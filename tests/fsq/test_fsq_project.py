"""The fused projections against a linear layer in float64 and the plain quantizer."""

from __future__ import annotations

import pytest
import torch
from fsq_helpers import BACKENDS, DTYPES, ISAS, instruction_set
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.fsq import dequantize, dequantize_project, ops, project_quantize
from tmcodec.fsq import levels as lv
from tmcodec.fsq.backends import Layer, choose
from tmcodec.fsq.grid import make_grid

LEVELS = (8, 8, 8, 6, 5)


def layer(dim, dims, seed, bias=True):
    gen = torch.Generator().manual_seed(seed)
    weight = torch.randn(dims, dim, generator=gen) * 2 / max(dim, 1) ** 0.5
    return weight, torch.randn(dims, generator=gen) if bias else None


def assert_indices_of_latents(indices, exact, levels, slack):
    """Indices are those of float64 latents, except where one lies within `slack` of an edge."""
    clear = torch.ones(exact.shape[:-1], dtype=torch.bool)
    for c, level in enumerate(levels):
        edges = torch.from_numpy(lv.thresholds(level)).double()
        clear &= ((exact[..., c, None] - edges).abs() > slack).all(-1)
    assert torch.equal(indices[clear], ops.quantize_indices(exact, levels, backend="torch")[clear])
    assert float(clear.double().mean()) > 0.99 or not clear.numel()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1, 15, 16, 17, 768])
def test_project_quantize_is_a_layer_and_the_quantizer(dim, dtype, backend):
    weight, bias = layer(dim, 5, dim)
    x = torch.randn(3, 401, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    codes, indices = project_quantize(x, weight, bias, LEVELS, backend=backend)
    exact = x.double() @ weight.double().t() + bias.double()
    assert_indices_of_latents(indices, exact, LEVELS, 1e-5)
    assert torch.equal(codes, dequantize(indices, LEVELS, backend="torch"))


@pytest.mark.parametrize("levels", [(7,), (8, 6), (5,) * 8, (3,) * 9, (2,) * 17])
def test_any_number_of_channels(levels):
    weight, bias = layer(50, len(levels), 3, bias=len(levels) != 2)
    x = torch.randn(200, 50, generator=torch.Generator().manual_seed(2))
    for backend in (p.values[0] for p in BACKENDS if not p.marks[0].args[0]):
        codes, indices = project_quantize(x, weight, bias, levels, backend=backend)
        exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
        assert_indices_of_latents(indices, exact, levels, 1e-5)
        assert torch.equal(codes, dequantize(indices, levels, backend="torch"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_and_numba_give_the_same_bits(dtype, isa):
    weight, bias = layer(777, 5, 4)
    x = torch.randn(300, 777, generator=torch.Generator().manual_seed(3)).to(dtype)
    grid = make_grid(LEVELS)
    with instruction_set("baseline"):
        expected = choose("cpu", "native").project_quantize(grid, x, Layer(weight, bias), latents=True)
    with instruction_set(isa):
        found = choose("cpu", "native").project_quantize(grid, x, Layer(weight, bias), latents=True)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    torch.testing.assert_close(
        found[0].double(), x.double() @ weight.double().t() + bias.double(), atol=2e-6, rtol=1e-5
    )


@given(st.integers(0, 40), st.integers(1, 70), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_any_size_agrees_with_numba(n, dim, seed):
    numba = pytest.importorskip("numba")
    assert numba
    weight, bias = layer(dim, 3, seed)
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    grid = make_grid((8, 6, 5))
    results = [
        choose("cpu", name).project_quantize(grid, x, Layer(weight, bias), latents=True)
        for name in ("native", "numba")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1, 17, 768])
def test_dequantize_project_is_codes_and_a_layer(dim, dtype, backend):
    gen = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(dim, 5, generator=gen), torch.randn(dim, generator=gen)
    indices = torch.randint(0, 15360, (3, 101), generator=gen)
    out = dequantize_project(indices, weight, bias, LEVELS, dtype=dtype, backend=backend)
    exact = dequantize(indices, LEVELS, backend="torch").double() @ weight.double().t() + bias.double()
    assert out.dtype == dtype
    eps = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
    torch.testing.assert_close(out.double(), exact, atol=max(eps, 1e-5), rtol=eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_that_do_not_fit_are_refused(backend):
    with pytest.raises(ValueError, match="weight"):
        project_quantize(torch.zeros(4, 7), torch.zeros(5, 8), None, LEVELS, backend=backend)
    with pytest.raises(ValueError, match="weight"):
        dequantize_project(
            torch.zeros(4, dtype=torch.int32), torch.zeros(8, 4), None, LEVELS, backend=backend
        )
    with pytest.raises(TypeError, match="int32"):
        project_quantize(
            torch.zeros(4, 8, dtype=torch.int32), torch.zeros(5, 8), None, LEVELS, backend=backend
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_of_two_devices_are_refused(backend):
    """The meta device stands for a GPU: its tensors have no address that the CPU could read."""
    x, weight, bias, indices = torch.zeros(4, 8), *layer(8, 5, 0), torch.zeros(4, dtype=torch.int32)
    for w, b in ((weight.to("meta"), bias), (weight, bias.to("meta"))):
        with pytest.raises(ValueError, match="lie on cpu and meta; move them to one device"):
            project_quantize(x, w, b, LEVELS, backend=backend)
    for w, b in ((weight.to("meta"), x[0]), (weight, x[0].to("meta"))):
        with pytest.raises(ValueError, match="lie on cpu and meta; move them to one device"):
            dequantize_project(indices, w.t(), b, LEVELS, backend=backend)
    with pytest.raises(ValueError, match="lie on cpu and meta"):
        ops._backward(x[:, :5].to("meta"), x[:, :5], make_grid(LEVELS), -1, backend)


def test_tensors_of_two_devices_are_refused_by_the_compiler():
    step = torch.compile(lambda x, w: project_quantize(x, w, None, LEVELS), backend="aot_eager")
    with pytest.raises(Exception, match="lie on cpu and meta"):
        step(torch.zeros(4, 8), torch.zeros(5, 8, device="meta"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_input(backend):
    codes, indices = project_quantize(torch.zeros(0, 8), torch.zeros(5, 8), None, LEVELS, backend=backend)
    assert codes.shape == (0, 5)
    assert indices.shape == (0,)
    assert dequantize_project(indices, torch.zeros(8, 5), None, LEVELS, backend=backend).shape == (0, 8)
