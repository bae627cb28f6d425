"""Weights of any-to-any transformers: reading, checking, writing, importing.

Three kinds of files hold them: TerraMind's ``.pt`` (read with ``weights_only=True`` alone), a plain
``.safetensors`` with the same keys (both with or without TerraTorch's prefix ``sampler.model.``), and this
library's own: safetensors whose header has the configuration and which tokenizers' tokens the model speaks.

A state dict has much twice: logits tied to tables, modality vectors shared by encoder and decoder, position
embeddings that a formula gives, biases of norms that are zero. `layout.reduced` checks and drops it; the
identity of a generator is the SHA-256 of its configuration and what is left, so that the ``.pt`` and the
imported file of the same weights are the same generator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tmcodec.atomic import atomic_path
from tmcodec.codec.store import GENERATOR_FORMAT as FORMAT
from tmcodec.codec.store import origin_notes
from tmcodec.codec.terramind_weights import read_pt
from tmcodec.codec.weights import check_finite, content_hash, write_tensors
from tmcodec.errors import TokenizerNotFoundError, WeightsError
from tmcodec.generation.layout import (
    Tensors,
    check_tensors,
    guess_config,
    reduced,
    whole,
    without_prefix,
)
from tmcodec.networks.generator.config import OFFICIAL_SPECS, GeneratorConfig
from tmcodec.networks.generator.embeddings import CodeTable
from tmcodec.networks.generator.model import Generator
from tmcodec.texts import shown


@dataclass(frozen=True)
class TokenizerRef:
    """Whose tokens a generator speaks.

    Attributes
    ----------
    name
        Name of the tokenizer.
    sha256
        Its content hash, 32 bytes; None: any weights imported under that name.
    tile
        Side in pixels of the tiles that the tokens are of; None where it does not matter or is not known.
    """

    name: str
    sha256: bytes | None = None
    tile: int | None = None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TokenizerRef:
        """Return what a header has; raise KeyError, TypeError or ValueError where it is malformed."""
        digest, tile = plain.get("sha256"), plain.get("tile")
        return cls(
            str(plain["name"]), bytes.fromhex(digest) if digest else None, None if tile is None else int(tile)
        )

    def to_plain(self) -> dict[str, Any]:
        """Return it as a header has it: a tile only where it is known."""
        plain = {"name": self.name, "sha256": self.sha256.hex() if self.sha256 else None}
        return plain if self.tile is None else {**plain, "tile": self.tile}


@dataclass(frozen=True)
class GeneratorWeights:
    """Weights that fit their configuration.

    Attributes
    ----------
    path, name
        The file, and the generator's name.
    config
        Sizes and modalities.
    tensors
        What `reduced` left.
    tokenizers
        Whose tokens it speaks, by modality.
    notes
        The other strings of the header.
    """

    path: Path
    name: str
    config: GeneratorConfig
    tensors: Tensors
    tokenizers: Mapping[str, TokenizerRef]
    notes: Mapping[str, str]

    @cached_property
    def sha256(self) -> bytes:
        """Identity of the generator, 32 bytes."""
        return content_hash(plain_config(self.config), self.tensors)

    def build(self, copy: bool = False) -> Generator:
        """Return the network in float32 and eval mode; `copy` where its weights are to be trained.

        Raises
        ------
        WeightsError
            If a weight is not finite.
        """
        check_finite(self.tensors, self.path)
        state = {k: v.to(torch.float32, copy=copy) for k, v in whole(self.config, self.tensors).items()}
        with torch.device("meta"):
            net = Generator(self.config)
        net.load_state_dict(state, assign=True, strict=False)
        net.tie()
        for module in net.modules():
            if isinstance(module, CodeTable):
                module.make_digits()  # in no file, and empty after building without memory
        return net.eval()


def plain_config(config: GeneratorConfig) -> dict[str, Any]:
    """Return a configuration as its file has it."""
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    return plain


# --------------------------------------------------------------------------- opening


def open_weights(
    path: Path, name: str | None = None, config: GeneratorConfig | None = None
) -> GeneratorWeights:
    """Open a weights file and check it.

    Parameters
    ----------
    path
        ``.pt`` or ``.safetensors``.
    name
        What it is called, where its header does not say.
    config
        Sizes that the official name stands for; the modalities are read from the keys. None: sizes, too.

    Raises
    ------
    TokenizerNotFoundError
        If there is no such file.
    WeightsError
        If it is no weights file of such a transformer, or is damaged.
    """
    if not path.is_file():
        raise TokenizerNotFoundError(f"no weights file {path}; `tmcodec models list` shows what there is")
    plain = path.suffix != ".safetensors"
    tensors, notes = (read_pt(path), dict[str, str]()) if plain else _read_safetensors(path)
    if notes.get("format") == FORMAT:
        return _own(path, name, config, tensors, notes)
    if "format" in notes or "config" in notes:
        raise WeightsError(f"{path}: not weights of a generator (format {shown(notes.get('format'))})")
    tensors = without_prefix(tensors)
    found = guess_config(tensors, path)
    _check_size(found, config, name, path)
    check_tensors(found, tensors, path)
    return GeneratorWeights(
        path, name or path.stem, found, reduced(found, tensors, path), official_tokenizers(found), notes
    )


def _own(
    path: Path, name: str | None, config: GeneratorConfig | None, tensors: Tensors, notes: dict[str, str]
) -> GeneratorWeights:
    """Check a file of this library."""
    try:
        found = GeneratorConfig.from_dict(json.loads(notes.pop("config")))
        raw = json.loads(notes.pop("tokenizers", "{}"))
        refs = {str(m): TokenizerRef.from_plain(r) for m, r in raw.items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as err:
        raise WeightsError(f"{path}: the configuration in its header is malformed ({err})") from err
    _check_size(found, config, name, path)
    check_tensors(found, tensors, path)
    kept = reduced(found, tensors, path)
    weights = GeneratorWeights(path, name or notes.get("name", path.stem), found, kept, refs, notes)
    if notes.get("sha256", weights.sha256.hex()) != weights.sha256.hex():
        raise WeightsError(f"{path}: damaged, its SHA-256 is not the one in its header; import it again")
    return weights


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118  (no mapping)
            return tensors, dict(f.metadata() or {})
    except (SafetensorError, OSError) as err:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({err}); fetch or import it again"
        ) from err


def _check_size(
    found: GeneratorConfig, wanted: GeneratorConfig | None, name: str | None, path: Path
) -> None:
    """Refuse weights of another size than their name says."""
    sizes = ("dim", "encoder_depth", "decoder_depth", "heads", "gated", "biases")
    differ = [s for s in sizes if wanted is not None and getattr(found, s) != getattr(wanted, s)]
    if differ:
        both = ", ".join(f"{s} {getattr(found, s)}, not {getattr(wanted, s)}" for s in differ)
        raise WeightsError(f"{path}: not {name} ({both}); give the right file or name")


def official_tokenizers(config: GeneratorConfig) -> dict[str, TokenizerRef]:
    """Return TerraMind 1.0's tokenizers for the image tokens of a configuration, of any weights."""
    official = {s.key: s.vocabulary for s in OFFICIAL_SPECS if s.kind == "tokens"}
    specs = [s for s in config.modalities if official.get(s.key) == s.vocabulary]
    return {s.modality: TokenizerRef(f"terramind-v1-{s.modality.lower()}") for s in specs}


# --------------------------------------------------------------------------- writing


def save_generator(
    path: Path,
    net: Generator,
    name: str,
    tokenizers: Mapping[str, TokenizerRef],
    notes: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> bytes:
    """Write a generator's weights; return its identity, 32 bytes.

    Parameters
    ----------
    path
        The file, replaced where it exists.
    net
        The network.
    name
        Name of the generator.
    tokenizers
        Whose tokens it was trained on, by modality, with their hashes.
    notes
        Further strings for the header.
    dtype
        Data type of the file's tensors.
    """
    state = {k: v.detach().cpu().to(dtype) for k, v in net.state_dict().items()}
    exact = {k: v.detach().cpu() for k, v in net.state_dict().items()}
    dropped = exact.keys() - reduced(net.cfg, exact, path).keys()
    tensors = {k: v.contiguous() for k, v in state.items() if k not in dropped}
    return _write(path, net.cfg, tensors, name, tokenizers, notes or {})


def import_generator(
    path: Path, target: Path, name: str, config: GeneratorConfig, notes: Mapping[str, str] | None = None
) -> GeneratorWeights:
    """Convert a checkpoint to this library's format; nothing changes in its tensors.

    Parameters
    ----------
    path
        ``.pt`` or ``.safetensors``.
    target
        The file to write; its folder is made. An existing one is replaced.
    name, config
        As for `open_weights`.
    notes
        Further strings for the header, e.g. where the file came from.

    Raises
    ------
    WeightsError
    """
    found = open_weights(path, name, config)
    origin = origin_notes(path, notes or {})
    tensors = {k: v.contiguous() for k, v in found.tensors.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, found.config, tensors, name, found.tokenizers, origin)
    return open_weights(target)


def _write(
    path: Path,
    config: GeneratorConfig,
    tensors: Tensors,
    name: str,
    tokenizers: Mapping[str, TokenizerRef],
    notes: Mapping[str, str],
) -> bytes:
    plain = plain_config(config)
    digest = content_hash(plain, tensors)
    refs = {modality: ref.to_plain() for modality, ref in sorted(tokenizers.items())}
    header = {
        "format": FORMAT,
        "name": name,
        "config": json.dumps(plain, sort_keys=True),
        "tokenizers": json.dumps(refs, sort_keys=True),
        "sha256": digest.hex(),
        **notes,
    }
    with atomic_path(path, overwrite=True) as temporary:
        write_tensors(temporary, tensors, header)
    return digest
