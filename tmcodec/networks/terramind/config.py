"""What shapes a tokenizer of TerraMind's layout."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

MAX_DIM, MAX_DEPTH, MAX_CHANNELS, MAX_GRID = 4096, 64, 256, 64
"""Far above every published size, far below what would hurt: a header cannot make us allocate."""


@dataclass(frozen=True)
class TerraMindConfig:
    """Sizes and statistics of one tokenizer; the defaults are those of all official ones.

    Attributes
    ----------
    modality
        Key in the modality table.
    channels
        Bands in and out; classes for land cover, whose input is one-hot.
    levels
        FSQ levels.
    decoder
        ``"unet"`` (diffusion on 4x4-pixel cells) or ``"vit"`` (class logits).
    mean, std
        Statistics that the tokenizer was trained with, one a band; empty for class ids.
    dim, depth, heads
        Width, blocks and heads of the ViT encoder and decoder.
    patch
        Pixels per token side.
    grid
        Tokens per side of the stored position embedding (256 pixels).
    unet_channels, unet_multipliers, unet_blocks, unet_attention
        Base width, multiplier of each level, residual blocks of a level, and downsampling factors
        at which there is attention.
    unet_patch
        Pixels per side of a cell of the UNet.
    """

    modality: str
    channels: int
    levels: tuple[int, ...]
    decoder: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    dim: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    grid: int = 16
    unet_channels: int = 256
    unet_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    unet_blocks: int = 3
    unet_attention: tuple[int, ...] = (4, 8)
    unet_patch: int = 4

    @property
    def categorical(self) -> bool:
        """True where the input is one-hot and the output logits."""
        return self.decoder == "vit"

    @property
    def decode_multiple(self) -> int:
        """Pixels of which the decoder's sides must be multiples: 32 for the official UNet."""
        if self.decoder == "vit":
            return self.patch
        return max(self.patch, self.unet_patch * 2 ** (len(self.unet_multipliers) - 1))

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults as plain JSON types, so that a new field changes no hash."""
        plain: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.default is MISSING or value != f.default:
                plain[f.name] = list(value) if isinstance(value, tuple) else value
        return plain

    @classmethod
    def from_dict(cls, raw: Any) -> TerraMindConfig:
        """Rebuild from `to_dict`'s result.

        Raises
        ------
        TypeError, ValueError
            If a key is unknown or missing, or a value has the wrong type or is out of range.
        """
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        cfg = cls(**plain)
        check_config(cfg)
        return cfg


def check_config(cfg: TerraMindConfig) -> None:
    """Raise ValueError where a size is out of range, TypeError where it is no number."""
    sizes = {
        "channels": (cfg.channels, MAX_CHANNELS),
        "dim": (cfg.dim, MAX_DIM),
        "depth": (cfg.depth, MAX_DEPTH),
        "heads": (cfg.heads, MAX_DEPTH),
        "patch": (cfg.patch, MAX_GRID),
        "grid": (cfg.grid, MAX_GRID),
        "unet_channels": (cfg.unet_channels, MAX_DIM),
        "unet_blocks": (cfg.unet_blocks, MAX_DEPTH),
        "unet_patch": (cfg.unet_patch, MAX_GRID),
        **{f"unet_multipliers[{i}]": (m, 8) for i, m in enumerate(cfg.unet_multipliers)},
        **{f"levels[{i}]": (n, 256) for i, n in enumerate(cfg.levels)},
    }
    wrong = [name for name, (size, most) in sizes.items() if type(size) is not int or not 0 < size <= most]
    statistics = [*cfg.mean, *cfg.std]
    if any(not isinstance(v, float | int) for v in statistics) or any(s <= 0 for s in cfg.std):
        wrong.append("mean or std")
    if cfg.decoder not in ("unet", "vit"):
        wrong.append("decoder")
    divides = not wrong and not (cfg.dim % cfg.heads or cfg.dim % 4 or cfg.unet_channels % 32)
    if not wrong and not (divides and cfg.patch % cfg.unet_patch == 0):
        wrong.append("dim, heads, patch or unet_channels (they do not divide)")
    if not cfg.categorical and (len(cfg.mean) != cfg.channels or len(cfg.std) != cfg.channels):
        wrong.append("mean or std (one a band)")
    if not 1 <= len(cfg.unet_multipliers) <= 6 or not 1 <= len(cfg.levels) <= 31:
        wrong.append("unet_multipliers or levels")
    if wrong:
        raise ValueError(f"out of range: {', '.join(wrong)}")
