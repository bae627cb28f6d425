"""Inference in the precision that was promised, whatever surrounds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Infer without gradients, outside any autocast of the caller's.

    A trainer's mixed precision is about its own network. Tokens and what is generated are promised in the
    precision that a tokenizer or generator was loaded with, also in the middle of a training step; where that
    is half precision, the networks cast by themselves.

    Parameters
    ----------
    device
        Where the networks are.
    """
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield
