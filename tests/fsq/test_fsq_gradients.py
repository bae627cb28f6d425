"""Straight-through gradients: those of the squashing, as autograd derives them."""

from __future__ import annotations

import math

import pytest
import torch
from fsq_helpers import BACKENDS, DTYPES, FORMS, ISAS, LEVEL_LISTS, instruction_set, random_latents

from tmcodec.fsq import FSQ, dequantize_project, ops, project_quantize, reference
from tmcodec.fsq.grid import make_grid

# What float32's 1 - sigmoid leaves of a small derivative; the kernels' own form keeps more.
CLOSE = {"atol": 5e-7, "rtol": 2e-5}


def gradient(function, z, weights):
    z = z.clone().requires_grad_()
    (function(z) * weights).sum().backward()
    return z.grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", LEVEL_LISTS[:3])
def test_gradients_are_those_of_the_reference(levels, dtype, form, backend):
    z = random_latents(2_003, levels, form, dtype, 11)
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    expected = gradient(lambda t: reference.quantize(t, make_grid(levels, form)), z, weights)
    found = gradient(FSQ(levels, form, backend=backend).quantize, z, weights)
    assert found.dtype == dtype
    half = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype)
    torch.testing.assert_close(found, expected, **(CLOSE if half is None else {"atol": 1e-6, "rtol": half}))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_the_derivative_to_seven_digits(form, isa):
    z = torch.linspace(-40, 40, 16_007)[:, None]
    with instruction_set(isa):
        found = gradient(FSQ((7,), form, backend="native").quantize, z, torch.ones(()))
    x = z.double()
    half = 6 * 1.001 / 2
    e = torch.exp(-(x.abs() if form == "sigmoid" else 2 * x.abs()))
    exact = e / (1 + e) ** 2 * (1 if form == "sigmoid" else 4 * half / 3)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_at_the_ends_vanish_and_nan_stays_visible(backend):
    z = torch.tensor([[math.inf, -math.inf, 200.0, -200.0, math.nan]])
    grad = gradient(FSQ((8, 8, 8, 6, 5), backend=backend).quantize, z, torch.ones(()))
    assert grad[0, :4].tolist() == [0, 0, 0, 0]
    assert math.isnan(grad[0, 4])


@pytest.mark.parametrize("backend", BACKENDS)
def test_channel_first_gradients(backend):
    levels = (8, 6, 5)
    z = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(4))
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
    first = gradient(FSQ(levels, axis=1, backend=backend).quantize, z, weights)
    last = gradient(FSQ(levels, backend="torch").quantize, z.permute(0, 2, 3, 1), weights.permute(0, 2, 3, 1))
    torch.testing.assert_close(first, last.permute(0, 3, 1, 2), **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_of_training_are_exact(backend):
    z = torch.randn(500, 5, generator=torch.Generator().manual_seed(6), requires_grad=True)
    fsq = FSQ((8, 8, 8, 6, 5), backend=backend)
    trained = fsq.quantize(z)
    assert trained.requires_grad
    assert torch.equal(trained, fsq.indices_to_codes(fsq.latents_to_indices(z)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_fused_projection_has_the_layers_gradients(backend, bias):
    levels, gen = (8, 6, 5), torch.Generator().manual_seed(7)
    x, weight = torch.randn(2, 40, 33, generator=gen), torch.randn(3, 33, generator=gen) / 6
    b = torch.randn(3, generator=gen) if bias else None
    g = torch.randn(2, 40, 3, generator=gen)

    def run(function):
        leaves = [t.clone().requires_grad_() for t in (x, weight, *([b] if bias else []))]
        (function(*leaves) * g).sum().backward()
        return [leaf.grad for leaf in leaves]

    def plain(x, weight, b=None):
        return reference.quantize(torch.nn.functional.linear(x, weight, b), make_grid(levels))

    def fused(x, weight, b=None):
        return project_quantize(x, weight, b, levels, backend=backend)[0]

    for found, expected in zip(run(fused), run(plain), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fused_expansion_has_the_layers_gradients(backend):
    levels, gen = (8, 6, 5), torch.Generator().manual_seed(8)
    indices = torch.randint(0, 240, (2, 40), generator=gen, dtype=torch.int32)
    weight, bias = torch.randn(33, 3, generator=gen), torch.randn(33, generator=gen)
    g = torch.randn(2, 40, 33, generator=gen)
    codes = ops.dequantize(indices, levels, backend="torch")

    def run(function):
        leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        (function(*leaves) * g).sum().backward()
        return [leaf.grad for leaf in leaves]

    found = run(lambda w, b: dequantize_project(indices, w, b, levels, backend=backend))
    expected = run(lambda w, b: torch.nn.functional.linear(codes, w, b))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, atol=1e-5, rtol=1e-4)
