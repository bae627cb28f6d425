"""The small embedded tokenizer: convolutions on the token grid, so that the context is bounded.

Nearly all layers run at one cell per token. The encoder sees the picture at half resolution (a
token's 13.9 bits cannot tell what happens below two pixels); the decoder gives a mean, smooth
and coarse first (8 pixels, bicubic), then refined at 4 and 2 pixels, bilinear to 1. Every layer looks a known
number of cells around itself, so a window decoded with ``decoder_halo`` tokens of context equals
the same window of the whole picture: no seams, at any tile size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmcodec.fsq import FSQ
from tmcodec.fsq.curves import compand_cells, expand_double
from tmcodec.modalities import get_modality
from tmcodec.networks.blocks import MixBlock, cells_to_image, enlarge, image_to_cells
from tmcodec.networks.compand import Compander
from tmcodec.networks.denoiser import Denoiser
from tmcodec.networks.height import HeightDecoder, HeightEncoder, HeightScale
from tmcodec.networks.linear import Linear

PATCH = 16


@dataclass(frozen=True)
class MiniConfig:
    """Everything that shapes a small tokenizer; stored in the header of its weights file.

    Attributes
    ----------
    modality
        Key in the modality table.
    kind
        ``"patch"``, or ``"height"`` for tokens that are mean heights (`tmcodec.networks.height`).
    channels
        Bands in and out; for categorical modalities the number of classes.
    levels
        FSQ levels.
    dim, encoder_blocks, decoder_blocks, kernel
        Width, depths and depth-wise kernel on the token grid.
    refine
        Channels of the refinement at a quarter of the resolution.
    denoiser_dim, denoiser_blocks
        Width and depth of the diffusion decoder; 0 blocks where there is none.
    compand, origin, knee, mean, std
        See `tmcodec.networks.compand.Compander`.
    components
        Number of channels of the diffused residual; 0 means one a band.
    antialias
        Whether the refinement of the mean is smoothed at half resolution, so that the four outputs of a
        quarter cell cannot draw a lattice where the network has seen nothing alike.
    slopes
        Whether coarse cells are interpolated by Keys' cubic of a = -1/2, which draws a slope as it is;
        that of a = -3/4, torch's default, makes it up to half too steep and a quarter too flat in turn, a
        lattice that relief shading shows.
    smooth
        Whether the denoiser ends in a 3x3 convolution over single pixels.
    lapped
        Whether the denoiser sees and draws windows of 8 pixels that overlap by half, which leave no lattice,
        and says for each quarter cell and component how strong the residual is that it draws.
    residual_std
        Standard deviation of what the mean misses, per band, in normalised units: the
        diffusion runs on the residual divided by it, where there is no basis.
    residual_basis
        Principal components of what the mean misses, scaled by their standard deviation,
        ``components`` rows of ``channels``. Texture is alike in all bands: a few components
        carry it, and noise drawn in them has no colour.
    """

    modality: str
    channels: int
    levels: tuple[int, ...]
    dim: int = 192
    encoder_blocks: int = 3
    decoder_blocks: int = 4
    kernel: int = 5
    refine: int = 48
    denoiser_dim: int = 96
    denoiser_blocks: int = 4
    compand: str = "linear"
    origin: float = 0.0
    knee: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    residual_std: tuple[float, ...] = ()
    kind: str = "patch"
    components: int = 0
    smooth: bool = False
    residual_basis: tuple[tuple[float, ...], ...] = ()
    antialias: bool = False
    slopes: bool = False
    lapped: bool = False

    @property
    def residual_channels(self) -> int:
        """Channels of the diffused residual."""
        return self.components or self.channels

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> MiniConfig:
        """Rebuild from `to_dict`'s result; an unknown key is a TypeError."""

        def frozen(value: Any) -> Any:
            return tuple(map(frozen, value)) if isinstance(value, list) else value

        return cls(**{k: frozen(v) for k, v in raw.items()})


def binomial(x: Tensor) -> Tensor:
    """Smooth ``(B, C, H, W)`` with 1-2-1 both ways: whatever alternates from pixel to pixel is gone."""
    taps = x.new_full((3,), 0.25)  # filled where it is needed: a copy to a device may wait for it
    taps[1].fill_(0.5)
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])


class MiniEncoder(nn.Module):
    """Normalised picture ``(B, C, H, W)`` to latents ``(B, H/16, W/16, d)``."""

    def __init__(self, cfg: MiniConfig) -> None:
        super().__init__()
        self.embed = Linear(cfg.channels * (PATCH // 2) ** 2, cfg.dim)
        self.blocks = nn.ModuleList(MixBlock(cfg.dim, cfg.kernel) for _ in range(cfg.encoder_blocks))
        self.norm = nn.LayerNorm(cfg.dim)
        self.project = nn.Linear(cfg.dim, len(cfg.levels))
        self.halo = cfg.encoder_blocks * (cfg.kernel // 2)

    def forward(self, z: Tensor) -> Tensor:
        half = F.avg_pool2d(z, 2).permute(0, 2, 3, 1)
        return self.look(image_to_cells(half, PATCH // 2))

    def look(self, cells: Tensor) -> Tensor:
        """Do what `forward` does, from cells ``(B, H/16, W/16, 64 C)`` of the halved picture."""
        x = self.embed(cells)
        for block in self.blocks:
            x = block(x)
        normed = self.norm(x).float()
        # Which token it is gets decided in float32, whatever ran before.
        with torch.autocast(normed.device.type, enabled=False):
            return F.linear(normed, self.project.weight.float(), self.project.bias.float())


class MiniDecoder(nn.Module):
    """Codes ``(B, rows, cols, d)`` to the mean picture and to features for the denoiser."""

    def __init__(self, cfg: MiniConfig, inputs: int) -> None:
        super().__init__()
        self.channels, self.antialias, self.slopes = cfg.channels, cfg.antialias, cfg.slopes
        self.embed = Linear(inputs, cfg.dim)
        self.blocks = nn.ModuleList(MixBlock(cfg.dim, cfg.kernel) for _ in range(cfg.decoder_blocks))
        self.norm = nn.LayerNorm(cfg.dim)
        self.coarse = Linear(cfg.dim, 4 * cfg.channels)
        self.spread = Linear(cfg.dim, 16 * cfg.refine)
        self.refine = nn.ModuleList(MixBlock(cfg.refine, 3, 2.0) for _ in range(2))
        self.fine = Linear(cfg.refine, 4 * cfg.channels)
        # Refinement: two 3x3 kernels on quarter cells, the binomial and two interpolations stay within
        # 2 tokens.
        self.halo = cfg.decoder_blocks * (cfg.kernel // 2) + 2

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean ``(B, C, H, W)``, normalised, and features ``(B, H/4, W/4, refine)``."""
        return self.paint(codes * 2 - 1)

    def paint(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Do what `forward` does, from any inputs ``(B, rows, cols, inputs)`` around zero."""
        half, features = self.sketch(cells)
        return F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False), features

    def sketch(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `paint` does with the mean at half resolution, ``(B, C, H/2, W/2)``."""
        x = self.embed(cells)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        coarse = cells_to_image(self.coarse(x), 2).permute(0, 3, 1, 2)
        smooth = enlarge(coarse.float(), 4, self.slopes)
        features = cells_to_image(self.spread(x), 4)
        for block in self.refine:
            features = block(features)
        fine = cells_to_image(self.fine(features), 2).permute(0, 3, 1, 2)
        return smooth + (binomial(fine.float()) if self.antialias else fine.float()), features


class MiniNet(nn.Module):
    """Encoder, quantizer, mean decoder and denoiser of one modality."""

    residual_basis: Tensor
    residual_inverse: Tensor

    def __init__(self, cfg: MiniConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.fsq = FSQ(cfg.levels)
        ones = (1.0,) * cfg.channels
        mean, std = cfg.mean or (0.0,) * cfg.channels, cfg.std or ones
        self.compander = Compander(cfg.compand, cfg.origin, cfg.knee, mean, std)
        self.encoder: MiniEncoder | HeightEncoder
        self.decoder: MiniDecoder | HeightDecoder
        if cfg.kind == "height":
            scale = HeightScale(self.compander, cfg.levels, *get_modality(cfg.modality).valid_range)
            self.encoder = HeightEncoder(cfg, scale)
            self.decoder = HeightDecoder(cfg, scale, MiniDecoder(cfg, inputs=2))
        elif cfg.kind == "patch":
            self.encoder, self.decoder = MiniEncoder(cfg), MiniDecoder(cfg, len(cfg.levels))
        else:
            raise ValueError(f"unknown kind of tokenizer {cfg.kind!r}")
        self.denoiser = Denoiser(cfg) if cfg.denoiser_blocks else None
        basis = self._basis(cfg)
        self.register_buffer("residual_basis", basis, persistent=False)
        self.register_buffer("residual_inverse", basis.clone(), persistent=False)
        self.set_residual_basis(basis)

    def latents(self, x: Tensor) -> Tensor:
        """Return the latents ``(B, H/16, W/16, d)`` of a physical ``(B, C, H, W)``, without gradients."""
        if isinstance(self.encoder, MiniEncoder):
            cells = compand_cells(x, self.compander.constants(), PATCH // 2)
            if cells is not None:
                return self.encoder.look(cells)
        return self.encoder(self.compander.compress_bands(x))

    def picture(self, codes: Tensor, low: float, high: float) -> Tensor:
        """Return the mean ``(B, C, H, W)`` of codes in physical units, clipped, without gradients."""
        if isinstance(self.decoder, MiniDecoder):
            half, _ = self.decoder.sketch(codes * 2 - 1)
            found = expand_double(half, self.compander.constants(), low, high)
            if found is not None:
                return found
            mean = F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)
        else:
            mean, _ = self.decoder(codes)
        return self.compander.expand_bands(mean, low, high)

    @staticmethod
    def _basis(cfg: MiniConfig) -> Tensor:
        """Return the components of a configuration; without any, one a band as far as they go."""
        if cfg.residual_basis:
            return torch.tensor(cfg.residual_basis, dtype=torch.float32)
        std = cfg.residual_std or (1.0,) * cfg.channels
        rows = range(cfg.residual_channels)
        diagonal = [[std[c] if c == row else 0.0 for c in range(cfg.channels)] for row in rows]
        return torch.tensor(diagonal, dtype=torch.float32)

    def take_denoiser(self, denoiser: Denoiser, cfg: MiniConfig) -> None:
        """Draw by another denoiser; `cfg` is the network's own but for what the denoiser depends on."""
        self.denoiser, self.cfg = denoiser, cfg
        basis = self._basis(cfg)
        self.residual_basis, self.residual_inverse = basis, basis.clone()
        self.set_residual_basis(basis)

    def set_residual_basis(self, basis: Tensor) -> None:
        """Set the components ``(K, C)`` and how residuals are projected on them."""
        if basis.is_meta:
            return  # shapes alone are wanted, and arithmetic on the meta device imports torch's compiler
        self.residual_basis.copy_(basis)
        # Rows are orthogonal, so the pseudo-inverse is the transpose over the squared lengths.
        self.residual_inverse.copy_(basis / basis.square().sum(1, keepdim=True))

    def to_components(self, residual: Tensor) -> Tensor:
        """Project residuals ``(B, C, H, W)`` on the components: ``(B, K, H, W)``, unit variance."""
        return torch.einsum("bchw,kc->bkhw", residual, self.residual_inverse)

    def from_components(self, parts: Tensor) -> Tensor:
        """Return the residual ``(B, C, H, W)`` of components ``(B, K, H, W)``."""
        return torch.einsum("bkhw,kc->bchw", parts, self.residual_basis)

    @property
    def encoder_halo(self) -> int:
        """Tokens of context that decide a token, on each side."""
        return self.encoder.halo

    @property
    def decoder_halo(self) -> int:
        """Tokens of context that decide a mean pixel, on each side."""
        return self.decoder.halo
