"""Let torchvision import where it was built for CUDA and torch was not, as pip's default beside a CPU torch.

Such a torchvision cannot load its compiled operators, then fails because ``nms`` is not there; torchmetrics
imports it wherever it finds it, and lightning imports torchmetrics. Nothing here uses those operators, so
stand-ins with their signatures are enough.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_libraries: list[Any] = []  # torch forgets operators with the object that defined them


def built_for_cuda() -> bool:
    """Tell whether the torchvision that is installed, if any, was built for CUDA; without importing it."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return version.is_file() and re.search(r"__version__.*\+cu\d", version.read_text()) is not None


def stand_in() -> None:
    """Define the operators where torchvision could not."""
    if _libraries or torch.version.cuda is not None or not built_for_cuda():
        return
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
