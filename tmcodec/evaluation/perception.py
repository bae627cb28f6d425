"""LPIPS on the composites of a modality, with trunk weights from a file that reports name."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tmcodec.errors import EvaluationError
from tmcodec.modalities import Modality

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

SMALLEST = 64
"""Pixels on a side below which the trunks' last layers have nothing to look at."""

NO_WEIGHTS = "left out: no trunk weights were given (--lpips WEIGHTS.pth)"
NO_COMPOSITE = "left out: there is no three-band composite of this modality"

_SIGNS = {
    "alex": ("features.10.weight", (256, 256, 3, 3)),
    "vgg": ("features.28.weight", (512, 512, 3, 3)),
    "squeeze": ("features.12.squeeze.weight", (64, 512, 1, 1)),
}
"""A tensor of torchvision's state dict that no other trunk has."""


class Perception:
    """LPIPS with a trunk of known weights.

    Parameters
    ----------
    weights
        State dict of torchvision's AlexNet, VGG16 or SqueezeNet 1.1, ``.pth``.
    modality
        What will be compared.
    metres
        Pixel size that heights are shaded with.

    Attributes
    ----------
    name
        Package, trunk, file and the first digits of its SHA-256.

    Raises
    ------
    EvaluationError
        If the file is none of these.
    MissingDependencyError
        If lpips or torchvision is missing.
    """

    def __init__(self, weights: str | os.PathLike[str], modality: Modality, metres: float = 30.0) -> None:
        from tmcodec.training.perceptual import Lpips

        path = Path(weights)
        trunk = trunk_of(path)
        self.loss = Lpips(trunk, os.fspath(path), metres)
        self.loss.check(modality)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        self.name = f"LPIPS 0.1 heads, trunk {trunk} from {path.name} (SHA-256 {digest}...)"

    def distance(self, reference: Float, other: Float, valid: Bool, modality: Modality) -> float:
        """Return the mean over the composites; NaN for pictures of less than 64 pixels on a side.

        Pixels that are not valid in all bands are the same constant in both pictures.
        """
        import torch

        if min(reference.shape[1:]) < SMALLEST:
            return math.nan
        with torch.inference_mode():
            shown = torch.from_numpy(valid.all(axis=0))
            first, second = (
                torch.where(shown, self.loss.pictures(torch.from_numpy(p)[None], modality), torch.zeros(()))
                for p in (reference, other)
            )
            return float(self.loss.model(second, first).mean())


def trunk_of(path: Path) -> str:
    """Return which of LPIPS's trunks a state dict is of.

    Raises
    ------
    EvaluationError
        If it is none of them.
    """
    import torch

    try:
        saved: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        shapes = {key: tuple(value.shape) for key, value in saved.items()}
    except Exception as err:  # what torch.load raises depends on what is wrong
        raise EvaluationError(
            f"{path}: cannot be read as weights ({type(err).__name__}); give torchvision's .pth of a trunk"
        ) from err
    for trunk, (key, shape) in _SIGNS.items():
        if shapes.get(key) == shape:
            return trunk
    raise EvaluationError(f"{path}: not torchvision's AlexNet, VGG16 or SqueezeNet 1.1; give one of them")


def has_composite(modality: Modality) -> bool:
    """Tell whether LPIPS means anything for a modality."""
    from tmcodec.training.perceptual import composites_of

    return bool(composites_of(modality)) or modality.name == "DEM"
