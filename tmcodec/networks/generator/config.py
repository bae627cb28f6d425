"""What shapes an any-to-any transformer, and the table of TerraMind's official ones. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from tmcodec.modalities import MODALITIES, get_modality

KINDS = ("tokens", "pixels", "sequence")
EMBEDDINGS = ("table", "codes")
VOCABULARY = 30_000
"""Words of the official sequence vocabularies."""
SEQUENCES = {"coords": 4, "caption": 256}
"""Sequence modalities, and tokens that one may have."""

MAX_DIM, MAX_DEPTH, MAX_GRID, MAX_MODALITIES = 4096, 64, 32, 64
MAX_VOCABULARY, MAX_CHANNELS, MAX_LENGTH = 1 << 17, 256, 512
"""Far above every published size, far below what would hurt: a header cannot make us allocate."""


@dataclass(frozen=True)
class ModalitySpec:
    """One way in which a modality enters or leaves the transformer.

    Attributes
    ----------
    key
        Name in the weights: ``"tok_sen2l2a@224"``, ``"untok_sen2l2a@224"``, ``"coords"``.
    modality
        Key of the modality table, or ``"coords"`` or ``"caption"``.
    kind
        ``"tokens"``, ``"pixels"`` or ``"sequence"``.
    vocabulary
        Number of tokens; 0 for pixels.
    channels
        Bands of pixels.
    length
        Most tokens of a sequence.
    levels
        FSQ levels of image tokens.
    encoder, decoder
        Whether it can be an input, and a target.
    """

    key: str
    modality: str
    kind: str
    vocabulary: int = 0
    channels: int = 0
    length: int = 0
    levels: tuple[int, ...] = ()
    encoder: bool = True
    decoder: bool = True


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes and modalities of a transformer.

    Attributes
    ----------
    dim, heads
        Width and attention heads.
    encoder_depth, decoder_depth
        Blocks of each half.
    gated
        Whether perceptrons are SwiGLU of two thirds of the hidden width, instead of GELU.
    biases
        Whether linear layers of the blocks have biases.
    modalities
        What goes in and comes out, in the order of the weights.
    mlp_ratio
        Hidden width of the perceptrons over ``dim``.
    patch
        Pixels per token side.
    grid
        Tokens per side of the stored position embedding, the tile that the model was trained on.
    embedding
        ``"table"``: one learned vector a token; ``"codes"``: made from the token's FSQ digits.
    codes_hidden
        Hidden width of the perceptron that makes vectors from digits.
    """

    dim: int
    encoder_depth: int
    decoder_depth: int
    heads: int
    gated: bool
    biases: bool
    modalities: tuple[ModalitySpec, ...]
    mlp_ratio: float = 4.0
    patch: int = 16
    grid: int = 14
    embedding: str = "table"
    codes_hidden: int = 256

    @property
    def hidden(self) -> int:
        """Hidden width of the perceptrons."""
        full = int(self.dim * self.mlp_ratio)
        return int(2 * full / 3) if self.gated else full

    def spec(self, key: str) -> ModalitySpec:
        """Return the specification of a key; KeyError where there is none."""
        for spec in self.modalities:
            if spec.key == key:
                return spec
        raise KeyError(key)

    def find(self, modality: str, kind: str) -> ModalitySpec | None:
        """Return how a modality is taken in one of the `KINDS`, or None."""
        for spec in self.modalities:
            if spec.modality == modality and spec.kind == kind:
                return spec
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without what has its default, so that a new field changes no hash."""
        plain = _without_defaults(self)
        plain["modalities"] = [_without_defaults(spec) for spec in self.modalities]
        return plain

    @classmethod
    def from_dict(cls, raw: Any) -> GeneratorConfig:
        """Rebuild from `to_dict`'s result.

        Raises
        ------
        TypeError, ValueError, KeyError
            If a key is unknown or missing, or a value has the wrong type or is out of range.
        """
        plain = dict(raw)
        plain["modalities"] = tuple(ModalitySpec(**_with_tuples(spec)) for spec in raw["modalities"])
        cfg = cls(**plain)
        check_config(cfg)
        return cfg


def _without_defaults(instance: Any) -> dict[str, Any]:
    values = {f.name: getattr(instance, f.name) for f in fields(instance)}
    defaults = {f.name: f.default for f in fields(instance)}
    kept = {name: value for name, value in values.items() if value != defaults[name]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def _with_tuples(raw: Any) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in dict(raw).items()}


def check_config(cfg: GeneratorConfig) -> None:
    """Raise ValueError where a size is out of range or parts do not fit."""
    sizes = {
        "dim": (cfg.dim, MAX_DIM),
        "encoder_depth": (cfg.encoder_depth, MAX_DEPTH),
        "decoder_depth": (cfg.decoder_depth, MAX_DEPTH),
        "heads": (cfg.heads, MAX_DEPTH),
        "patch": (cfg.patch, MAX_GRID),
        "grid": (cfg.grid, MAX_GRID),
        "codes_hidden": (cfg.codes_hidden, MAX_DIM),
        "modalities": (len(cfg.modalities), MAX_MODALITIES),
    }
    wrong = [name for name, (size, most) in sizes.items() if type(size) is not int or not 0 < size <= most]
    wrong += [name for name in ("gated", "biases") if type(getattr(cfg, name)) is not bool]
    if not isinstance(cfg.mlp_ratio, float | int) or not 0 < cfg.mlp_ratio <= 16:
        wrong.append("mlp_ratio")
    if cfg.embedding not in EMBEDDINGS:
        wrong.append("embedding")
    if not wrong and (cfg.dim % cfg.heads or cfg.dim % 4):
        wrong.append("dim or heads (they do not divide)")
    keys = [spec.key for spec in cfg.modalities]
    if len(set(keys)) != len(keys):
        wrong.append("modalities (a key twice)")
    wrong += [f"modalities[{spec.key!r}]" for spec in cfg.modalities if not _sane(spec, cfg.embedding)]
    if wrong:
        raise ValueError(f"out of range: {', '.join(wrong)}")


def _sane(spec: ModalitySpec, embedding: str) -> bool:
    """Tell whether a specification is whole and its sizes are bearable."""
    numbers = (spec.vocabulary, spec.channels, spec.length, *spec.levels)
    if any(type(n) is not int or n < 0 for n in numbers):
        return False
    names = (spec.key, spec.modality)
    # Keys become names of submodules, which may hold no dot.
    if any(not isinstance(n, str) or not n or "." in n for n in names) or spec.kind not in KINDS:
        return False
    flags = (spec.encoder, spec.decoder)
    if any(type(flag) is not bool for flag in flags) or not any(flags):
        return False
    if spec.kind == "pixels":
        return 0 < spec.channels <= MAX_CHANNELS and not spec.decoder
    if not 0 < spec.vocabulary <= MAX_VOCABULARY:
        return False
    if spec.kind == "sequence":
        return 0 < spec.length <= MAX_LENGTH
    product = math.prod(spec.levels) if spec.levels else 0
    return product == spec.vocabulary or (not spec.levels and embedding == "table")


# --------------------------------------------------------------------------- TerraMind's own

_PIXELS = {
    "S2L2A": "untok_sen2l2a@224",
    "S2L1C": "untok_sen2l1c@224",
    "S2RGB": "untok_sen2rgb@224",
    "S1GRD": "untok_sen1grd@224",
    "S1RTC": "untok_sen1rtc@224",
    "DEM": "untok_dem@224",
}
_TOKENS = {
    "S2L2A": "tok_sen2l2a@224",
    "S1GRD": "tok_sen1grd@224",
    "S1RTC": "tok_sen1rtc@224",
    "DEM": "tok_dem@224",
    "LULC": "tok_lulc@224",
    "NDVI": "tok_ndvi@224",
}


def pixel_spec(modality: str) -> ModalitySpec:
    """Return how pixels of a modality of the table are taken, under TerraMind's key where it has one."""
    key = _PIXELS.get(modality, f"untok_{modality.lower()}@224")
    return ModalitySpec(key, modality, "pixels", channels=len(get_modality(modality).bands), decoder=False)


def token_spec(modality: str) -> ModalitySpec:
    """Return how tokens of a modality of the table are taken, under TerraMind's key where it has one."""
    levels = get_modality(modality).levels
    key = _TOKENS.get(modality, f"tok_{modality.lower()}@224")
    return ModalitySpec(key, modality, "tokens", vocabulary=math.prod(levels), levels=levels)


def sequence_spec(name: str, vocabulary: int = VOCABULARY) -> ModalitySpec:
    """Return how ``"coords"`` or ``"caption"`` is taken."""
    return ModalitySpec(name, name, "sequence", vocabulary=vocabulary, length=SEQUENCES[name])


OFFICIAL_SPECS: tuple[ModalitySpec, ...] = (
    *map(pixel_spec, _PIXELS),
    *map(token_spec, _TOKENS),
    *map(sequence_spec, SEQUENCES),
)
"""All modalities of TerraMind 1.0's transformer; its checkpoints hold these or fewer."""

assert set(_PIXELS) | set(_TOKENS) <= set(MODALITIES)


@dataclass(frozen=True)
class Size:
    """What differs between the official sizes."""

    encoder_depth: int
    decoder_depth: int
    dim: int
    heads: int
    gated: bool
    biases: bool


SIZES: dict[str, Size] = {
    "tiny": Size(12, 4, 192, 3, gated=False, biases=True),
    "small": Size(12, 6, 384, 6, gated=False, biases=True),
    "base": Size(12, 12, 768, 12, gated=True, biases=False),
    "large": Size(24, 24, 1024, 16, gated=True, biases=False),
}


def official_config(size: str, modalities: tuple[ModalitySpec, ...] = OFFICIAL_SPECS) -> GeneratorConfig:
    """Return the configuration of TerraMind 1.0 ``"tiny"``, ``"small"``, ``"base"`` or ``"large"``.

    Raises
    ------
    KeyError
        If there is no such size.
    """
    row = SIZES[size]
    return GeneratorConfig(
        dim=row.dim,
        encoder_depth=row.encoder_depth,
        decoder_depth=row.decoder_depth,
        heads=row.heads,
        gated=row.gated,
        biases=row.biases,
        modalities=modalities,
    )
