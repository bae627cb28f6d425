"""TerraMind's networks through ``torch.compile``, for who decodes or encodes enough to pay for compiling."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tmcodec.errors import DeviceError
from tmcodec.networks.terramind.net import DecoderHalf, EncoderHalf

COMPILERS = ("c++", "g++", "clang++")


def check_compiler(device: torch.device) -> None:
    """Refuse a machine that cannot compile, before anything is loaded.

    Raises
    ------
    DeviceError
        If there is no C++ compiler.
    """
    named = os.environ.get("CXX", "").split()[:1]
    if device.type == "cpu" and not any(map(shutil.which, (*named, *COMPILERS))):
        raise DeviceError(
            "compile needs a C++ compiler (c++, g++ or clang++, or CXX); install one or leave it out"
        )


def compile_half(net: EncoderHalf | DecoderHalf, device: torch.device) -> None:
    """Compile what takes the time of a half, in place; each size of input is compiled at its first use.

    On CUDA in the mode ``reduce-overhead``, which records CUDA graphs. Their outputs live in memory that
    the next run overwrites, and samplers keep earlier ones, so they are copied.

    Parameters
    ----------
    net
        Prepared by `tmcodec.networks.terramind.inference.prepare` with ``pack=False``.
    device
        Where it runs.
    """
    for name in ("latents",) if isinstance(net, EncoderHalf) else ("denoise", "logits"):
        setattr(net, name, _compiled(getattr(net, name), device.type == "cuda"))


def _compiled(function: Callable[..., Tensor], graphs: bool) -> Callable[..., Tensor]:
    mode: Any = "reduce-overhead" if graphs else "default"
    compiled = torch.compile(function, dynamic=False, mode=mode)
    return (lambda *inputs: compiled(*inputs).clone()) if graphs else compiled
