"""The custom operators: fake and autograd implementations, ``torch.compile``, autocast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fsq_helpers import BACKENDS, FORMS

from tmcodec.fsq import FSQ, blend_weights, ops, rasters

LEVELS = [8, 6, 5]
OPCHECK = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def latents(axis, dtype=torch.float32, grad=False):
    z = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    z = z if axis == 1 else z.permute(0, 2, 3, 1)
    return z.detach().requires_grad_(grad)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axis", [1, -1])
def test_opcheck_quantize(axis, backend):
    for dtype in (torch.float32, torch.bfloat16):
        for grad in (False, True):
            z = latents(axis, dtype, grad)
            torch.library.opcheck(ops._quantize_op, (z, LEVELS, "sigmoid", axis, backend), test_utils=OPCHECK)
        torch.library.opcheck(
            ops._indices_op, (latents(axis, dtype), LEVELS, "tanh", axis, backend), test_utils=OPCHECK
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_the_others(backend):
    indices = torch.arange(24, dtype=torch.int32).view(2, 12)
    torch.library.opcheck(ops._dequantize_op, (indices, LEVELS, "sigmoid", 1, backend), test_utils=OPCHECK)
    z = latents(1)
    torch.library.opcheck(ops._backward_op, (z.clone(), z, LEVELS, "sigmoid", 1, backend), test_utils=OPCHECK)
    x, weight, bias = torch.randn(4, 7), torch.randn(3, 7), torch.randn(3)
    for b in (bias, None):
        leaves = [t if t is None else t.clone().requires_grad_() for t in (x, weight, b)]
        torch.library.opcheck(ops._project_op, (*leaves, LEVELS, "sigmoid", backend), test_utils=OPCHECK)
    leaves = [torch.randn(7, 3, requires_grad=True), torch.randn(7, requires_grad=True)]
    torch.library.opcheck(
        ops._expand_op, (indices, *leaves, LEVELS, "sigmoid", torch.float32, backend), test_utils=OPCHECK
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_rasters(backend):
    raster = torch.arange(2 * 9 * 10, dtype=torch.int16).view(2, 9, 10)
    mask = torch.ones(9, 10, dtype=torch.bool)
    arguments = (raster, [1.0, 2.0], [3.0, 4.0], 4, [0, 3, 6], [0, 4], mask, 0.0, torch.bfloat16, backend)
    torch.library.opcheck(rasters._normalize_op, arguments, test_utils=OPCHECK)
    tiles = rasters._normalize_op(*arguments)
    weights = blend_weights([0, 3, 6], 4), blend_weights([0, 4], 4)
    torch.library.opcheck(
        rasters._blend_op,
        (tiles, [0, 3, 6], [0, 4], *weights, 9, 8, [1.0, 2.0], [3.0, 4.0], None, 0.0, torch.uint8, backend),
        test_utils=OPCHECK,
    )


@pytest.mark.parametrize("form", FORMS)
def test_compiled_network_gives_the_same(form):
    """One graph, no break; `aot_eager` traces like inductor, without a compiler."""
    fsq, linear = FSQ(LEVELS, form), torch.nn.Linear(7, 3)

    def step(x):
        codes, indices = fsq(linear(x))
        return codes, indices, fsq.latents_to_indices(linear(x)), fsq.indices_to_codes(indices)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(compiled(x), step(x), strict=True):
        assert torch.equal(found, expected)
    gradients = []
    for function in (compiled, step):
        linear.zero_grad()
        function(x)[0].square().sum().backward()
        gradients.append(linear.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_compiled_projection_gives_the_same():
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(2))
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(3))

    def step(x):
        codes, indices = ops.project_quantize(x, weight, None, LEVELS)
        return codes, ops.dequantize_project(indices, weight.t(), None, LEVELS)

    for found, expected in zip(
        torch.compile(step, backend="aot_eager", fullgraph=True)(x), step(x), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_touch_the_sums(backend):
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(4))
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(5)) / 8
    fsq = FSQ(LEVELS, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes, indices = ops.project_quantize(x, weight, None, LEVELS, backend=backend)
        z = x[:, :3]
        again = fsq.codes_to_indices(fsq.quantize(z))
        assert fsq.quantize(z).dtype == torch.float32
    assert torch.equal(indices, ops.project_quantize(x, weight, None, LEVELS, backend=backend)[1])
    assert codes.dtype == torch.float32
    assert torch.equal(again, fsq.latents_to_indices(z))


def test_module_follows_the_networks_habits():
    fsq = FSQ(LEVELS)
    assert repr(fsq) == "FSQ(levels=(8, 6, 5), form='sigmoid', axis=-1)"
    assert list(fsq.state_dict()) == []
    assert fsq.latents_to_indices(torch.zeros(2, 3, requires_grad=True)).requires_grad is False
    with torch.inference_mode():
        inside = fsq.quantize(torch.zeros(2, 3))
    assert torch.equal(inside, fsq.quantize(torch.zeros(2, 3)))
    assert torch.equal(FSQ(LEVELS).double().quantize(torch.zeros(2, 3)), inside)


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (3,), ()])
def test_codes_of_another_number_of_levels_are_refused(shape):
    with pytest.raises(ValueError, match="one a level"):
        FSQ((8, 8)).codes_to_indices(torch.zeros(shape))


@pytest.mark.parametrize("levels", ["8", (8.5,), (8.0, 6), ("8",), (None,)])
def test_levels_are_integers(levels):
    with pytest.raises(ValueError, match="not all integers"):
        FSQ(levels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_indices_wrap_at_the_codebook(backend):
    """Also beyond 32 bits, and below zero: the digits are those of the index modulo the codebook."""
    quantizer = FSQ((3, 5, 7), backend=backend)
    indices = torch.tensor([0, 104, 105, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 10**15, -1, -(2**33)])
    expected = quantizer.indices_to_codes(torch.tensor([i % 105 for i in indices.tolist()]))
    assert torch.equal(quantizer.indices_to_codes(indices), expected)
    unsigned = ((np.uint32, [2**31, 2**31 + 1, 2**32 - 1]), (np.uint64, [2**63, 2**63 - 1, 2**64 - 1]))
    for dtype, wide in unsigned:
        found = quantizer.indices_to_codes(torch.from_numpy(np.array(wide, dtype)))
        assert torch.equal(found, quantizer.indices_to_codes(torch.tensor([i % 105 for i in wide])))
