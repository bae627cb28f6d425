"""Finite scalar quantization: the codec's one quantizer.

``levels``, ``grid`` and ``native`` are integers, NumPy and ctypes; `FSQ` and the functions of
``ops`` and ``rasters`` need torch, and are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tmcodec.errors import BackendError
from tmcodec.fsq.backends import describe
from tmcodec.fsq.levels import basis, codebook_size, digits_to_indices, indices_to_digits, thresholds

if TYPE_CHECKING:
    from tmcodec.fsq.ops import dequantize, dequantize_project, project_quantize, quantize, quantize_indices
    from tmcodec.fsq.quantizer import FSQ
    from tmcodec.fsq.rasters import blend, blend_weights, normalize_patchify

__all__ = [
    "FSQ",
    "BackendError",
    "basis",
    "blend",
    "blend_weights",
    "codebook_size",
    "dequantize",
    "dequantize_project",
    "describe",
    "digits_to_indices",
    "indices_to_digits",
    "normalize_patchify",
    "project_quantize",
    "quantize",
    "quantize_indices",
    "thresholds",
]

_LAZY = {
    "FSQ": "quantizer",
    **dict.fromkeys(("dequantize", "dequantize_project", "project_quantize"), "ops"),
    **dict.fromkeys(("quantize", "quantize_indices"), "ops"),
    **dict.fromkeys(("blend", "blend_weights", "normalize_patchify"), "rasters"),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"tmcodec.fsq.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
