"""The packed linear layer is the plain one: in values, in gradients, and after its weights change."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from tmcodec.networks import linear
from tmcodec.networks.linear import Linear


def exact(layer, x, gelu=False):
    y = x.double() @ layer.weight.detach().double().t()
    y = y if layer.bias is None else y + layer.bias.detach().double()
    return F.gelu(y) if gelu else y


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 5, 6, 7), (40, 300, 7), (0, 7)])
def test_values_are_those_of_float64(shape, bias, packed):
    torch.manual_seed(0)
    layer, x = Linear(7, 9, bias).requires_grad_(False), torch.randn(shape)
    with torch.inference_mode(), mock.patch.object(linear, "_available", lambda: packed and AVAILABLE):
        for gelu in (False, True):
            found = layer.gelu(x) if gelu else layer(x)
            assert found.shape == (*shape[:-1], 9)
            torch.testing.assert_close(found.double(), exact(layer, x, gelu), atol=2e-6, rtol=1e-5)


AVAILABLE = linear._available()


def test_inputs_of_any_strides():
    layer, x = Linear(8, 4).requires_grad_(False), torch.randn(2, 8, 5, 6)
    with torch.inference_mode():
        for view in (x.permute(0, 2, 3, 1), x.permute(0, 3, 2, 1)[:, ::2]):
            torch.testing.assert_close(layer(view).double(), exact(layer, view), atol=2e-6, rtol=1e-5)


def test_a_changed_weight_is_packed_again():
    layer, x = Linear(6, 4, bias=False).requires_grad_(False), torch.randn(5, 6)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), 2 * before)
        layer.load_state_dict({"weight": torch.zeros(4, 6)})
        assert not layer(x).any()


def test_a_weight_changed_unseen_is_packed_again():
    layer, x = Linear(6, 40, bias=False), torch.randn(5, 6)
    for trained in (False, True):
        layer.requires_grad_(trained)
        with torch.no_grad():
            before = layer(x)
            layer.weight.data.mul_(2)  # counts no version
            torch.testing.assert_close(layer(x), 2 * before)


def test_a_weight_that_is_trained_is_not_packed():
    layer, x = Linear(6, 40), torch.randn(5, 6)
    for trained in (False, True):
        layer.requires_grad_(trained)
        with torch.no_grad(), mock.patch.object(linear, "_packed", wraps=linear._packed) as packed:
            layer(x)
        assert packed.called is (AVAILABLE and not trained)


def test_gradients_state_dict_and_copies_are_those_of_a_plain_layer():
    torch.manual_seed(1)
    plain, layer = torch.nn.Linear(6, 4), Linear(6, 4)
    layer.load_state_dict(plain.state_dict())
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = torch.randn(5, 6)
    with torch.no_grad():
        layer.requires_grad_(False)(x)  # packs
    layer.requires_grad_(True)
    for module in (plain, layer, copy.deepcopy(layer)):
        module.zero_grad()
        F.gelu(module(x)).sum().backward()
        assert torch.equal(module.weight.grad, plain.weight.grad)
    layer.gelu(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * plain.weight.grad)


def test_other_formats_go_the_plain_way():
    layer = Linear(6, 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(5, 6)).dtype == torch.bfloat16
    with torch.no_grad():
        assert layer.double()(torch.randn(5, 6).double()).dtype == torch.float64
        assert Linear(6, 4, device="meta")(torch.empty(5, 6, device="meta")).shape == (5, 4)


def test_where_the_operators_are_missing_the_layer_is_plain():
    with mock.patch.object(torch.backends.mkldnn, "is_available", lambda: False):
        linear._available.cache_clear()
        try:
            assert linear._available() is False
        finally:
            linear._available.cache_clear()
