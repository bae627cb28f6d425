"""The fused companding steps against the network's own operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fsq_helpers import ISAS, instruction_set
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tmcodec.fsq import backends
from tmcodec.fsq.curves import compand_cells, expand_double
from tmcodec.networks.blocks import image_to_cells
from tmcodec.networks.compand import Compander

needs_native = pytest.mark.skipif(bool(backends.unavailable("native")), reason="no native kernels")
CURVES = [("sqrt", 1000.0, 60.0), ("sqrt", 0.3, 0.7), ("linear", 0.0, 1.0), ("linear", -3.5, 1.0)]


def compander(kind, origin, knee, channels):
    return Compander(
        kind, origin, knee, [1.7 * c - 3 for c in range(channels)], [2.3 + c for c in range(channels)]
    )


def picture_of(*shape, seed=0):
    """Values on both sides of the origin, some on it."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2000
    values.view(-1)[::7] = 1000.0
    return values.round()


def numpy_cells(values, curve, cell):
    """What the docstring says, in NumPy: each operation rounded to float32."""
    v, f = values.numpy(), np.float32
    y = v - f(curve.origin)
    if curve.kind == "sqrt":
        y = np.sign(y) * (np.sqrt(np.abs(y) + f(curve.knee)) - f(curve.knee**0.5))
    z = (y - curve.mean.numpy()) / curve.std.numpy()
    half = ((z[..., ::2, ::2] + z[..., ::2, 1::2]) + z[..., 1::2, ::2] + z[..., 1::2, 1::2]) / f(4)
    return image_to_cells(torch.from_numpy(half).permute(0, 2, 3, 1), cell)


@torch.no_grad()
def network_cells(values, curve, cell):
    """What the network does without the kernel; MKL's square root is not always the nearest."""
    return image_to_cells(F.avg_pool2d(curve.compress(values), 2).permute(0, 2, 3, 1), cell)


@torch.no_grad()
def network_picture(half, curve, low, high):
    doubled = F.interpolate(half.double(), scale_factor=2, mode="bilinear", align_corners=False)
    return curve.double().expand(doubled).clamp(low, high)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("kind", "origin", "knee"), CURVES)
def test_cells_are_those_of_numpy_bit_for_bit_and_the_networks(kind, origin, knee, isa):
    with instruction_set(isa), torch.no_grad():
        for shape, cell in [
            ((1, 12, 64, 1120), 8),
            ((3, 1, 16, 16), 8),
            ((2, 13, 12, 36), 3),
            ((1, 2, 2, 2), 1),
        ]:
            curve, values = compander(kind, origin, knee, shape[1]), picture_of(*shape)
            found = compand_cells(values, curve.constants(), cell)
            assert torch.equal(found, numpy_cells(values, curve, cell))
            torch.testing.assert_close(found, network_cells(values, curve, cell), atol=1e-5, rtol=1e-5)
            strided = values.transpose(2, 3).contiguous().transpose(2, 3)
            assert torch.equal(compand_cells(strided, curve.constants(), cell), found)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("kind", "origin", "knee"), CURVES)
def test_doubled_pictures_are_those_of_float64(kind, origin, knee, isa):
    with instruction_set(isa), torch.no_grad():
        for shape in [(1, 3, 40, 700), (2, 1, 1, 1), (1, 2, 5, 257), (1, 1, 3, 256)]:
            curve = compander(kind, origin, knee, shape[1])
            half = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2
            found = expand_double(half, curve.constants(), -20.0, 1200.0)
            expected = network_picture(half, curve, -20.0, 1200.0)
            torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=1e-5)


@needs_native
@given(
    batch=st.integers(0, 2), channels=st.integers(0, 5), rows=st.integers(0, 3), cols=st.integers(0, 40),
    cell=st.integers(1, 9),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_size(batch, channels, rows, cols, cell):
    curve = compander("sqrt", 1000.0, 60.0, channels)
    values = picture_of(batch, channels, 2 * cell * rows, 2 * cell * cols)
    with torch.no_grad():
        found = compand_cells(values, curve.constants(), cell)
        assert found.shape == (batch, rows, cols, cell * cell * channels)
        if values.numel():
            assert torch.equal(found, numpy_cells(values, curve, cell))
            half = values / 1000
            doubled = expand_double(half, curve.constants(), -1e6, 1e6)
            expected = network_picture(half, curve, -1e6, 1e6)
            torch.testing.assert_close(doubled.double(), expected, atol=1e-2, rtol=1e-5)
        else:
            assert expand_double(values, curve.constants(), 0.0, 1.0).numel() == 0


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        curve, values = compander("sqrt", 1000.0, 60.0, 4), picture_of(2, 4, 160, 416)
        with torch.no_grad():
            assert torch.equal(compand_cells(values, curve.constants(), 8), numpy_cells(values, curve, 8))
    finally:
        torch.set_num_threads(before)


def test_where_no_kernel_fits_the_network_does_its_own(monkeypatch):
    curve = compander("sqrt", 0.0, 1.0, 2)
    values = torch.zeros(1, 2, 32, 32)
    assert compand_cells(values, curve.constants(), 8) is None  # gradients are on
    with torch.no_grad():
        assert compand_cells(values.double(), curve.constants(), 8) is None
        assert compand_cells(values[:, :, :30], curve.constants(), 8) is None
        assert compand_cells(values, compander("asinh", 0.0, 1.0, 2).constants(), 8) is None
        monkeypatch.setenv(backends.VARIABLE, "torch")
        assert compand_cells(values, curve.constants(), 8) is None
        assert expand_double(values, curve.constants(), 0.0, 1.0) is None


@needs_native
def test_a_curve_on_another_device_is_refused():
    values, curve = torch.zeros(1, 2, 32, 32), compander("sqrt", 0.0, 1.0, 2).to("meta").constants()
    with torch.no_grad():
        with pytest.raises(ValueError, match="lie on cpu and meta; move them to one device"):
            compand_cells(values, curve, 8)
        with pytest.raises(ValueError, match="lie on cpu and meta; move them to one device"):
            expand_double(values, curve, 0.0, 1.0)
