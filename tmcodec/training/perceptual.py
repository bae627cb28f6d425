"""Perceptual losses: features of one of the library's own encoders, and LPIPS on composites."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmcodec.errors import ConfigError, MissingDependencyError, ModalityError, TmcodecError
from tmcodec.modalities import Modality
from tmcodec.networks.mini import PATCH, MiniEncoder, MiniNet
from tmcodec.training.losses import Loss, register
from tmcodec.training.pair import Pair, masked_mean
from tmcodec.training.torchvision_operators import stand_in


@register("features")
class EncoderFeatures(Loss):
    """Cosine distance of a frozen encoder's features at several blocks, on the token grid (as 4M's
    tokenizers).

    Tokens with a masked pixel are left out.

    Parameters
    ----------
    tokenizer
        An embedded tokenizer's name or a weights file; None is the modality's embedded one. Works offline.
    blocks
        Which blocks' outputs, counted from 0; None is all.
    """

    net: MiniNet

    def __init__(self, tokenizer: str | None = None, blocks: Sequence[int] | None = None) -> None:
        super().__init__()
        self.tokenizer, self.blocks = tokenizer, blocks

    def check(self, modality: Modality) -> None:
        """Load the encoder; refuse one of other bands."""
        super().check(modality)
        from tmcodec.codec.models import default_model, find_weights
        from tmcodec.codec.weights import load_weights

        name = self.tokenizer or default_model(modality.name)
        self.net = load_weights(find_weights(name))[0].requires_grad_(False)
        if self.net.cfg.channels != len(modality.bands) or not isinstance(self.net.encoder, MiniEncoder):
            raise ModalityError(f"{name} has no learnt encoder for the bands of {modality.name}")
        wanted = range(self.net.cfg.encoder_blocks) if self.blocks is None else self.blocks
        if not set(wanted) <= set(range(self.net.cfg.encoder_blocks)):
            raise ModalityError(f"{name} has blocks 0 to {self.net.cfg.encoder_blocks - 1}")
        self.wanted = sorted(set(wanted))

    def features(self, physical: Tensor) -> list[Tensor]:
        """Return the chosen blocks' outputs, each ``(B, rows, cols, dim)``."""
        from tmcodec.networks.blocks import image_to_cells

        encoder = self.net.encoder
        assert isinstance(encoder, MiniEncoder)
        half = F.avg_pool2d(self.net.compander.compress(physical), 2).permute(0, 2, 3, 1)
        x = encoder.embed(image_to_cells(half, PATCH // 2))
        kept = []
        for block in encoder.blocks:
            x = block(x)
            kept.append(x)
        return [kept[i] for i in self.wanted]

    def forward(self, pair: Pair) -> Tensor:
        guess = self.features(pair.physical_guess)
        with torch.no_grad():
            truth = self.features(pair.physical_truth)
        whole = F.avg_pool2d(pair.everywhere.float(), PATCH)[:, 0] > 1 - 0.5 / PATCH**2
        parts = [
            masked_mean(1 - F.cosine_similarity(a, b, dim=-1), whole)
            for a, b in zip(guess, truth, strict=True)
        ]
        return torch.stack(parts).mean(0)


# --------------------------------------------------------------------------- LPIPS

Composite = tuple[tuple[str, ...], tuple[tuple[float, float], ...]]

_DARK_TO_BRIGHT = (1000.0, 4000.0)
COMPOSITES: dict[str, tuple[Composite, ...]] = {
    "optical": (
        (("B04", "B03", "B02"), (_DARK_TO_BRIGHT,) * 3),  # true colour
        (("B08", "B04", "B03"), ((1000.0, 6000.0), _DARK_TO_BRIGHT, _DARK_TO_BRIGHT)),  # false colour
        (("B12", "B8A", "B04"), ((1000.0, 5000.0), (1000.0, 6000.0), _DARK_TO_BRIGHT)),  # short-wave infrared
    ),
    "radar": ((("VV", "VH", "VV-VH"), ((-20.0, 0.0), (-27.0, -7.0), (0.0, 15.0))),),
    "picture": ((("B04", "B03", "B02"), ((0.0, 255.0),) * 3),),
    "index": ((("NDVI", "NDVI", "NDVI"), ((-0.2, 1.0),) * 3),),
}
"""Bands of red, green and blue, and the physical values that become -1 and 1."""


def composites_of(modality: Modality) -> tuple[Composite, ...]:
    """Return the composites of a modality; none for heights, which are shaded, and for classes."""
    kinds = {"S2RGB": "picture", "S1GRD": "radar", "S1RTC": "radar", "NDVI": "index"}
    kind = "optical" if modality.optical else kinds.get(modality.name, "")
    return COMPOSITES.get(kind, ())


def compose(physical: Tensor, modality: Modality, composite: Composite) -> Tensor:
    """Return a composite ``(B, 3, H, W)`` in about -1..1 of physical ``(B, C, H, W)``; nothing is clipped at
    once.

    Beyond the range values bend over (softsign), so that clouds keep a gradient.
    """
    planes = []
    for name, (low, high) in zip(*composite, strict=True):
        parts = [physical[:, modality.bands.index(n)] for n in name.split("-")]
        plane = parts[0] - parts[1] if len(parts) == 2 else parts[0]
        x = 2 * (plane - low) / (high - low) - 1
        beyond = x - x.clamp(-1, 1)
        planes.append(x.clamp(-1, 1) + 0.25 * F.softsign(beyond))
    return torch.stack(planes, dim=1)


def hillshade(height: Tensor, metres: float) -> Tensor:
    """Return shaded relief ``(B, 3, H, W)`` in -1..1 of heights ``(B, 1, H, W)``, light from the north-west
    at 45°.

    Horn's slopes (3x3) and Lambert's law, as in ``gdaldem hillshade``, but for the border, which is repeated.
    """
    p = F.pad(height, (1, 1, 1, 1), mode="replicate")
    smooth = p[..., :-2, :] + 2 * p[..., 1:-1, :] + p[..., 2:, :]
    east = (smooth[..., 2:] - smooth[..., :-2]) / (8 * metres)
    smooth = p[..., :-2] + 2 * p[..., 1:-1] + p[..., 2:]
    south = (smooth[..., 2:, :] - smooth[..., :-2, :]) / (8 * metres)
    half = 0.5**0.5
    # Normal (-east, -south) per metre against light (-half, -half, 1) * half; x east, y south.
    light = half * (1 + half * (east + south)) / (1 + east.square() + south.square()).sqrt()
    return (2 * light.clamp_min(0) - 1).expand(-1, 3, -1, -1)


def import_lpips() -> Any:
    """Import the package lpips, also where torchvision was built for CUDA and torch was not.

    Raises
    ------
    MissingDependencyError
        If lpips or torchvision is missing or unusable.
    """
    try:
        stand_in()
        import lpips
    except (ImportError, RuntimeError, OSError) as err:
        reason = str(err).strip().splitlines()[0]
        raise MissingDependencyError(
            f"the loss lpips needs lpips and torchvision ({reason}); pip install 'tmcodec[train]'"
        ) from err
    return lpips


@register("lpips")
class Lpips(Loss):
    """LPIPS (arXiv 1801.03924) on three-band composites of the modality, shaded relief for heights.

    Pictures that reach the trunk have the same constant at masked pixels.

    Parameters
    ----------
    trunk
        ``"alex"``, ``"vgg"`` or ``"squeeze"``.
    trunk_weights
        A local state dict of torchvision's network (``.pth``); None fetches torchvision's, which needs a
        network once. ``"random"`` takes untrained weights, for tests.
    metres
        Pixel size that heights are shaded with.
    """

    def __init__(self, trunk: str = "alex", trunk_weights: str | None = None, metres: float = 30.0) -> None:
        super().__init__()
        if trunk not in ("alex", "vgg", "squeeze"):
            raise ConfigError(f"loss lpips has no trunk {trunk!r}; use alex, vgg or squeeze")
        self.metres = metres
        self.model: nn.Module = make_lpips(trunk, trunk_weights)

    def check(self, modality: Modality) -> None:
        """Refuse modalities without composites."""
        super().check(modality)
        if not composites_of(modality) and modality.name != "DEM":
            raise ModalityError(f"there is no composite of {modality.name}")

    def pictures(self, physical: Tensor, modality: Modality) -> Tensor:
        """Return all composites, one below the other in the batch: ``(K * B, 3, H, W)``."""
        if modality.name == "DEM":
            return hillshade(physical, self.metres)
        return torch.cat([compose(physical, modality, c) for c in composites_of(modality)])

    def forward(self, pair: Pair) -> Tensor:
        guess = self.pictures(pair.physical_guess, pair.modality)
        truth = self.pictures(pair.physical_truth, pair.modality)
        return self.model(guess, truth).view(-1, len(pair.guess)).mean(0)


def make_lpips(trunk: str, weights: str | None) -> nn.Module:
    """Build the frozen network; see `Lpips`.

    Raises
    ------
    MissingDependencyError
        If packages are missing, or weights can neither be read nor fetched.
    """
    lpips = import_lpips()
    try:
        pretrained = weights is None
        model: nn.Module = lpips.LPIPS(net=trunk, pnet_rand=not pretrained, verbose=False)
        if weights is not None and weights != "random":
            load_trunk(model, trunk, Path(weights))
    except TmcodecError:
        raise
    except Exception as err:  # URLError, HTTPError, OSError, RuntimeError, by what torch.hub meets
        raise MissingDependencyError(
            f"LPIPS's trunk {trunk} cannot be fetched ({type(err).__name__}); give a local file "
            "with the option trunk_weights"
        ) from err
    return model.eval().requires_grad_(False)


def load_trunk(model: Any, trunk: str, path: Path) -> None:
    """Put torchvision's weights ``features.*`` into the slices that lpips cuts its trunk into."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        # lpips keeps the numbers of torchvision's layers: slice2.3.weight is features.3.weight.
        own = model.net.state_dict()
        fitting = {key: saved["features." + key.split(".", 1)[1]] for key in own}
        model.net.load_state_dict(fitting)
    except Exception as err:
        raise MissingDependencyError(
            f"{path}: not torchvision's weights of {trunk} ({str(err).strip().splitlines()[0]})"
        ) from err
