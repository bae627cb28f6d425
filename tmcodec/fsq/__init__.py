"""Finite scalar quantization: the codec's one quantizer.

``tmcodec.fsq.levels`` is integers and NumPy; `FSQ` needs torch and is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tmcodec.fsq.levels import basis, codebook_size, digits_to_indices, indices_to_digits, thresholds

if TYPE_CHECKING:
    from tmcodec.fsq.reference import FSQ

__all__ = ["FSQ", "basis", "codebook_size", "digits_to_indices", "indices_to_digits", "thresholds"]


def __getattr__(name: str) -> Any:
    if name == "FSQ":
        from tmcodec.fsq.reference import FSQ

        return FSQ
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
