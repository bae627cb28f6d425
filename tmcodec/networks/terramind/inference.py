"""Faster layers for inference: bfloat16 where it is asked for, and oneDNN's own weight layout on CPUs.

PyTorch's float32 linear layer on a CPU is MKL's, which on some processors runs at a third of what oneDNN
reaches with weights laid out for it beforehand; and each eager convolution lays its weights out anew. The
operators used here are the ones that ``torch.compile`` emits; where they are missing, the plain ones run.

`prepare` replaces the layers of a loaded network. The result has no parameters to save or train.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FLOAT32_PARTS = ("encoder.proj", "post_mlp", "quant_proj", "post_quant_proj", "time_embed", "emb_layers")
"""Modules that compute in float32 always: little work, and tokens hang on the first three."""


def _operator(name: str) -> Any:
    """Return one of oneDNN's operators, or None where this PyTorch has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        return getattr(torch.ops.mkldnn, name).default
    except (AttributeError, RuntimeError):
        return None


_linear_pointwise = _operator("_linear_pointwise")
_convolution_pointwise = _operator("_convolution_pointwise")


class FastLinear(nn.Module):
    """A linear layer in a dtype of its own, with an activation that oneDNN computes on the way out.

    Takes any float type and gives its own; `activation` is ``"none"``, ``"gelu"`` or ``"tanh"``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.weight = weight.detach().to(dtype)
        self.packed = _linear_pointwise is not None and weight.device.type == "cpu"
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), None)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.packed:
            kind = self.activation
            return _linear_pointwise(x, self.weight, self.bias, kind, [], "none" if kind == "gelu" else "")
        x = F.linear(x, self.weight, self.bias)
        return {"none": lambda y: y, "gelu": F.gelu, "tanh": torch.tanh}[self.activation](x)


class FastConv1d(FastLinear):
    """A 1x1 `Conv1d` as a linear layer; ``(B, C, N)`` to ``(B, D, N)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class FastConv2d(nn.Module):
    """A convolution in a dtype of its own, channels last, its weights laid out at the first call."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.stride, self.padding = list(layer.stride), [int(p) for p in layer.padding]
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.weight = layer.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.packable = _convolution_pointwise is not None and self.weight.device.type == "cpu"

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype, memory_format=torch.channels_last)
        if not self.packable:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        weight = self.weight
        if not weight.is_mkldnn:  # the best layout depends on the picture's size
            weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
                weight.to_mkldnn(), self.padding, self.stride, [1, 1], 1, list(x.shape)
            )
            self.weight = weight
        return _convolution_pointwise(
            x, weight, self.bias, self.padding, self.stride, [1, 1], 1, "none", [], ""
        )


def prepare(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Replace the linear and convolution layers of `net` by fast ones, in place; return `net`.

    Parameters
    ----------
    net
        A network in evaluation mode, on its device.
    dtype
        ``torch.float32`` or ``torch.bfloat16``; `FLOAT32_PARTS` compute in float32 regardless.
    """
    _replace(net, "", dtype)
    return net.requires_grad_(False)


def _replace(module: nn.Module, path: str, dtype: torch.dtype) -> None:
    """Replace the layers below `module`, whose own name in the network is `path`."""
    for name, child in list(module.named_children()):
        below = f"{path}.{name}" if path else name
        exact = any(f".{part}." in f".{below}." for part in FLOAT32_PARTS)
        fast = _fast(child, torch.float32 if exact else dtype, _activation_after(module, name))
        if fast is None:
            _replace(child, below, dtype)
        elif name != "quant_proj":  # its weights are used directly
            setattr(module, name, fast)
            if name == "fc1":
                module.act = nn.Identity()


def _activation_after(module: nn.Module, name: str) -> str:
    """Return the activation that follows a perceptron's first layer."""
    after = getattr(module, "act", None) if name == "fc1" else None
    return {nn.GELU: "gelu", nn.Tanh: "tanh"}.get(type(after), "none")


def _fast(layer: nn.Module, dtype: torch.dtype, activation: str) -> nn.Module | None:
    """Return the fast form of a layer, or None where it has none."""
    if isinstance(layer, nn.Linear):
        return FastLinear(layer.weight, layer.bias, dtype, activation)
    if isinstance(layer, nn.Conv1d):
        return FastConv1d(layer.weight[:, :, 0], layer.bias, dtype, activation)
    if isinstance(layer, nn.Conv2d):
        return FastConv2d(layer, dtype)
    return None
