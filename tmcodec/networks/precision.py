"""Inference in the precision that was promised, whatever surrounds it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

_LEAVES = (("cuda", "matmul"), ("cudnn", "conv"), ("mkldnn", "matmul"), ("mkldnn", "conv"))


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Infer without gradients, outside any autocast of the caller's, float32 in all its bits.

    A trainer's mixed precision is about its own network. Tokens and what is generated are promised in the
    precision that a tokenizer or generator was loaded with, also in the middle of a training step; where that
    is half precision, the networks cast by themselves.

    Parameters
    ----------
    device
        Where the networks are.
    """
    with _EXACT, torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


class _ExactFloat32:
    """Products and convolutions of float32 without TensorFloat-32 or bfloat16 inside.

    cuDNN's convolutions keep ten bits of the significand unless told otherwise. Matrix products follow
    `torch.set_float32_matmul_precision`, which importing a package may change, on processors with
    bfloat16, too. The switches are the process's: the first that comes turns them, the last puts them back.
    """

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Begin anew: in a forked process nobody is inside, and its lock may have been held."""
        self._lock, self._inside = threading.Lock(), 0
        self._before: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = _save()
                _exact(self._before)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _restore(self._before)


def _save() -> Any:
    """Return the two switches of old, or, where somebody set those that came after them, all of these."""
    above = (torch.backends, torch.backends.cudnn, torch.backends.mkldnn)
    if all(getattr(backend, "fp32_precision", "none") == "none" for backend in above):
        with suppress(RuntimeError):  # torch refuses to read them where single ones of the others are set
            return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    return {leaf: _backend(leaf).fp32_precision for leaf in _LEAVES}


def _exact(before: Any) -> None:
    _restore(dict.fromkeys(before, "ieee") if isinstance(before, dict) else ("highest", False))


def _restore(switches: Any) -> None:
    if isinstance(switches, dict):
        for leaf, precision in switches.items():
            _backend(leaf).fp32_precision = precision
    else:
        products, torch.backends.cudnn.allow_tf32 = switches
        torch.set_float32_matmul_precision(products)


def _backend(leaf: tuple[str, str]) -> Any:
    return getattr(getattr(torch.backends, leaf[0]), leaf[1])


_EXACT = _ExactFloat32()
