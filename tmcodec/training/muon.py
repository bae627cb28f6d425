"""Muon in float32, for processors that have no bfloat16 arithmetic.

torch's Muon (https://kellerjordan.github.io/posts/muon/) makes its matrix products in bfloat16. A processor
that only emulates it spends more time on them than on everything else in a step of a small network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tmcodec.networks.terramind.inference import has_bf16

Base: Any = getattr(torch.optim, "Muon", Optimizer)  # torch has it from 2.9 on


def make_muon(params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
    """Make the Muon of matrices, torch's own where the hardware has bfloat16.

    Parameters
    ----------
    params
        Matrices, of one device.
    lr
        AdamW's; updates are scaled to the size of AdamW's.
    weight_decay
        Share of ``lr`` that a step takes off the matrices.
    """
    params = list(params)
    kind = Base if not params or has_bf16(params[0].device) else FloatMuon
    made: Optimizer = kind(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return made


class FloatMuon(Base):  # type: ignore[misc]
    """`torch.optim.Muon` with its products in float32: same options, same state, same steps but for rounding.

    Made by `make_muon`, whose options are the only ones that it knows: Nesterov's momentum, and updates of
    AdamW's size.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Compute the loss where a closure is given, then move the matrices."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._move(matrix, group)
        return loss

    def _move(self, matrix: nn.Parameter, group: dict[str, Any]) -> None:
        grad, momentum, lr = matrix.grad, group["momentum"], float(group["lr"])
        assert grad is not None
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        update = orthogonalise(
            grad.lerp(buffer, momentum), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        matrix.mul_(1 - lr * group["weight_decay"])
        matrix.add_(update, alpha=-lr * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonalise(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Bring a matrix's singular values near 1 and leave its singular vectors.

    Over its Frobenius norm, each singular value s becomes ``a s + b s³ + c s⁵`` in each step
    (Newton and Schulz's iteration).

    Parameters
    ----------
    matrix
        ``(m, n)``.
    coefficients
        a, b, c.
    steps
        How often.
    eps
        Least norm that is divided by.

    Returns
    -------
    Tensor
        ``(m, n)`` of the matrix's dtype.
    """
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
