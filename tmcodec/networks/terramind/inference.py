"""Faster layers for inference: bfloat16 where it is asked for, and oneDNN's own weight layout on CPUs.

PyTorch's float32 linear layer on a CPU is MKL's, which on some processors runs at a third of what oneDNN
reaches with weights laid out for it beforehand; and each eager convolution lays its weights out anew. The
operators used here are the ones that ``torch.compile`` emits; where they are missing, the plain ones run.

`prepare` replaces the layers of a loaded network. The result has no parameters to save or train.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tmcodec.errors import PrecisionError
from tmcodec.texts import shown

FLOAT32_PARTS = ("encoder.proj", "post_mlp", "quant_proj", "post_quant_proj", "time_embed", "emb_layers")
"""Modules that compute in float32 always: little work, and tokens hang on the first three."""


Net = TypeVar("Net", bound=nn.Module)
PRECISIONS = ("auto", "fp32", "bf16")


def check_precision(precision: str) -> None:
    """Raise `PrecisionError` unless it is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise PrecisionError(f"unknown precision {shown(precision)}; use {', '.join(PRECISIONS)}")


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of ``"fp32"``, ``"bf16"``, or ``"auto"``: bfloat16 where the hardware computes in it.

    Raises
    ------
    PrecisionError
        If the precision is another.
    """
    check_precision(precision)
    if precision == "auto":
        precision = "bf16" if has_bf16(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Tell whether matrix products in bfloat16 are faster than in float32 there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


@lru_cache(maxsize=2)
def packs(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN's operators work as expected in float32 or bfloat16.

    They are not of PyTorch's public interface, and refuse bfloat16 on processors without AVX-512.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-1, 1, 16 * 16).view(1, 16, 4, 4).to(dtype)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay what they were
        linear, conv = nn.Linear(4, 8).to(dtype), nn.Conv2d(16, 16, 3, padding=1).to(dtype)
    near = 1e-5 if dtype == torch.float32 else 0.03
    try:
        with torch.no_grad():
            weight = _pack_linear(linear.weight)
            a = _linear(x, weight, linear.bias, "tanh")
            weight = _pack_conv(conv.weight, [1, 1], [1, 1], x)
            b = _conv(x, weight, conv.bias, [1, 1], [1, 1])
            same = torch.allclose(a, linear(x).tanh(), atol=near) and torch.allclose(b, conv(x), atol=near)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return same


def _pack_linear(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")


def _pack_conv(weight: Tensor, padding: list[int], stride: list[int], x: Tensor) -> Tensor:
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    return reorder(weight.detach().to_mkldnn(), padding, stride, [1, 1], 1, list(x.shape))


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int], stride: list[int]) -> Tensor:
    pointwise: Any = torch.ops.mkldnn._convolution_pointwise
    return pointwise(x, weight, bias, padding, stride, [1, 1], 1, "none", [], "")


class FastLinear(nn.Module):
    """A linear layer in a dtype of its own, with an activation that oneDNN computes on the way out.

    Takes any float type and gives its own; `activation` is ``"none"``, ``"gelu"`` or ``"tanh"``.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: str, pack: bool = True
    ) -> None:
        super().__init__()
        self.activation = activation
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.weight = weight.detach().to(dtype)
        self.packed = pack and weight.device.type == "cpu" and packs(dtype)
        if self.packed:
            self.weight = _pack_linear(self.weight)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: oneDNN's layout has no storage that could be."""
        weight = self.weight.to_dense().to(self.weight.dtype) if self.packed else self.weight
        return {**self.__dict__, "weight": weight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.packed = self.packed and packs(self.weight.dtype)
        if self.packed:
            self.weight = _pack_linear(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.packed:
            return _linear(x, self.weight, self.bias, self.activation)
        x = F.linear(x, self.weight, self.bias)
        return {"none": lambda y: y, "gelu": F.gelu, "tanh": torch.tanh}[self.activation](x)


class FastConv1d(FastLinear):
    """A 1x1 `Conv1d` as a linear layer; ``(B, C, N)`` to ``(B, D, N)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class FastConv2d(nn.Module):
    """A convolution in a dtype of its own, channels last, its weights laid out at the first call."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, pack: bool = True) -> None:
        super().__init__()
        self.stride, self.padding = list(layer.stride), [int(p) for p in layer.padding]
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.weight = layer.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.packable = pack and self.weight.device.type == "cpu" and packs(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype, memory_format=torch.channels_last)
        if not self.packable:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        weight = self.weight
        if not weight.is_mkldnn:  # the best layout depends on the picture's size
            weight = self.weight = _pack_conv(weight, self.padding, self.stride, x)
        return _conv(x, weight, self.bias, self.padding, self.stride)


def prepare(net: Net, dtype: torch.dtype, pack: bool = True) -> Net:
    """Replace the linear and convolution layers of `net` by fast ones, in place; return `net`.

    Parameters
    ----------
    net
        A network in evaluation mode, on its device.
    dtype
        ``torch.float32`` or ``torch.bfloat16``; `FLOAT32_PARTS` compute in float32 regardless.
    pack
        Whether weights are laid out for oneDNN; a compiler can do nothing with such tensors.
    """
    _replace(net, "", dtype, pack)
    return net.requires_grad_(False)


def _replace(module: nn.Module, path: str, dtype: torch.dtype, pack: bool) -> None:
    """Replace the layers below `module`, whose own name in the network is `path`."""
    for name, child in list(module.named_children()):
        below = f"{path}.{name}" if path else name
        exact = any(f".{part}." in f".{below}." for part in FLOAT32_PARTS)
        fast = _fast(child, torch.float32 if exact else dtype, _activation_after(module, name), pack)
        if fast is None:
            _replace(child, below, dtype, pack)
        elif name != "quant_proj":  # its weights are used directly
            setattr(module, name, fast)
            if name == "fc1":
                module.act = nn.Identity()


def _activation_after(module: nn.Module, name: str) -> str:
    """Return the activation that follows a perceptron's first layer."""
    after = getattr(module, "act", None) if name == "fc1" else None
    return {nn.GELU: "gelu", nn.Tanh: "tanh"}.get(type(after), "none")


def _fast(layer: nn.Module, dtype: torch.dtype, activation: str, pack: bool) -> nn.Module | None:
    """Return the fast form of a layer, or None where it has none."""
    if isinstance(layer, nn.Linear):
        return FastLinear(layer.weight, layer.bias, dtype, activation, pack)
    if isinstance(layer, nn.Conv1d):
        return FastConv1d(layer.weight[:, :, 0], layer.bias, dtype, activation, pack)
    if isinstance(layer, nn.Conv2d):
        return FastConv2d(layer, dtype, pack)
    return None
