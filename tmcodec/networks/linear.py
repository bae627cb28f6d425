"""Linear layers that infer on x86 CPUs by oneDNN, with weights packed once.

PyTorch's ``F.linear`` in float32 is MKL's, which is slow on other makers' processors: on an AMD EPYC
(Zen 5) oneDNN's product is 2.3 times as fast, and takes the GELU in the same pass. The operators are
those that ``torch.compile`` emits for frozen CPU models. Where this PyTorch has not got them, or while a
gradient, autocast, another device or data type is at work, or the weight is one that is trained, the layer
is `torch.nn.Linear`.
"""

from __future__ import annotations

import platform
import weakref
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS_HINT = 4096
"""Rows for which oneDNN lays the weights out; other numbers work alike."""


def plain_inference(x: Tensor) -> bool:
    """Tell whether `x` is float32 on the CPU, and nothing differentiates, traces or casts."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


class Linear(nn.Linear):
    """`torch.nn.Linear` with the same parameters and state dict, and a faster inference."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        return self._product(x, "none") if self._can_pack(x) else super().forward(x)

    def gelu(self, x: Tensor) -> Tensor:
        """Return the GELU (by the error function) of `forward`."""
        return self._product(x, "gelu") if self._can_pack(x) else F.gelu(super().forward(x))

    def _can_pack(self, x: Tensor) -> bool:
        """Tell whether oneDNN can do this call."""
        return (
            plain_inference(x)
            and plain_inference(self.weight)
            and x.numel() > 0
            and not self.weight.requires_grad  # an optimizer or a moving average may change it unseen
            and not self.weight.is_inference()  # has no version to tell that it changed
            and _available()
        )

    def _product(self, x: Tensor, activation: str) -> Tensor:
        weight, bias = _packed(self), self.bias
        rows = x.reshape(-1, x.shape[-1])
        out = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, activation, [], "none")
        return out.view(*x.shape[:-1], self.out_features)


_packs: weakref.WeakKeyDictionary[Linear, tuple[tuple[float, ...], Tensor]] = weakref.WeakKeyDictionary()

SAMPLE = 16
"""Values of a weight by which a change through ``.data``, which counts no version, is noticed."""


def _packed(layer: Linear) -> Tensor:
    """Return the layer's weight in oneDNN's layout; packed again after it has changed."""
    weight = layer.weight
    some = weight.diagonal()[:: max(1, min(weight.shape) // SAMPLE)].tolist()
    state = weight.data_ptr(), weight._version, *some
    known = _packs.get(layer)
    if known is None or known[0] != state:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
        known = _packs[layer] = state, packed
    return known[1]


@lru_cache(maxsize=1)
def _available() -> bool:
    """Try the two operators, which are not of PyTorch's public interface, on a small product."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    # Asked once for all: whatever the caller's default data type and device are.
    line = partial(torch.linspace, dtype=torch.float32, device="cpu")
    x, weight = line(-1, 1, 48).view(3, 16), line(-2, 2, 64).view(4, 16)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)
        found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "gelu", [], "none")
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return torch.allclose(found, F.gelu(x @ weight.t()), atol=1e-4)
