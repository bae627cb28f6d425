"""The layout of any-to-any transformers' state dicts: TerraMind's keys, and what in them is there twice."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tmcodec.codec.weights import check_shapes
from tmcodec.errors import WeightsError
from tmcodec.networks.generator.config import (
    MAX_LENGTH,
    OFFICIAL_SPECS,
    GeneratorConfig,
    ModalitySpec,
    check_config,
)
from tmcodec.networks.generator.embeddings import image_positions, sequence_positions
from tmcodec.networks.generator.model import Generator

Tensors = dict[str, Tensor]
PREFIX = "sampler.model."
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# --------------------------------------------------------------------------- what is there twice


def _positions(config: GeneratorConfig, spec: ModalitySpec) -> Tensor:
    if spec.kind == "sequence":
        return sequence_positions(MAX_LENGTH, config.dim)
    return image_positions(config.grid, config.dim)


def _derived(config: GeneratorConfig) -> dict[str, str | Tensor]:
    """Return, for keys that need not be stored, the key that they equal, or their values."""
    found: dict[str, str | Tensor] = {}
    for spec in config.modalities:
        table = _positions(config, spec)
        for half, there in (("encoder", spec.encoder), ("decoder", spec.decoder)):
            if there:
                found[f"{half}_embeddings.{spec.key}.pos_emb"] = table
        if spec.decoder and (config.embedding == "table" or spec.kind == "sequence"):
            base = f"decoder_embeddings.{spec.key}"
            found[f"{base}.to_logits.weight"] = f"{base}.token_emb.weight"
        if spec.decoder and spec.encoder:
            shared = "{}_embeddings." + spec.key + ".mod_emb"
            found[shared.format("decoder")] = shared.format("encoder")
    found.update(dict.fromkeys(_norm_biases(config), torch.zeros(config.dim)))
    return found


def _norm_biases(config: GeneratorConfig) -> list[str]:
    norms = {"encoder": ("norm1", "norm2"), "decoder": ("norm1", "norm2", "query_norm", "context_norm")}
    depths = {"encoder": config.encoder_depth, "decoder": config.decoder_depth}
    below = [
        f"{half}.{i}.{name}.bias"
        for half, names in norms.items()
        for i in range(depths[half])
        for name in names
    ]
    return ["encoder_norm.bias", "decoder_norm.bias", *below]


def reduced(config: GeneratorConfig, tensors: Tensors, path: Path) -> Tensors:
    """Return the tensors without what `whole` restores.

    Raises
    ------
    WeightsError
        If two tensors that must be the same differ.
    """
    kept = dict(tensors)
    for key, source in _derived(config).items():
        if key not in kept:
            continue
        if isinstance(source, str):
            if source in kept and not torch.equal(kept[key], kept[source]):
                raise WeightsError(f"{path}: {key} and {source} must be the same tensor, and differ")
            kept.setdefault(source, kept[key])
            del kept[key]
        elif torch.allclose(kept[key].float(), source, atol=1e-5, rtol=0):
            del kept[key]
    return kept


def whole(config: GeneratorConfig, tensors: Tensors) -> Tensors:
    """Return the tensors of a full state dict; the inverse of `reduced`."""
    full = dict(tensors)
    for key, source in _derived(config).items():
        full.setdefault(key, full[source] if isinstance(source, str) else source)
    return full


def check_tensors(config: GeneratorConfig, tensors: Tensors, path: Path) -> None:
    """Refuse tensors that do not fit the architecture, in groups, or are not floating point."""
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in Generator(config).state_dict().items()}
    optional = _derived(config).keys() - tensors.keys()
    needed = {k: shape for k, shape in expected.items() if k not in optional}
    check_shapes(needed, {k: tuple(v.shape) for k, v in tensors.items()}, path)
    odd = sorted({str(v.dtype) for v in tensors.values() if v.dtype not in _DTYPES})
    if odd:
        raise WeightsError(f"{path}: tensors of {', '.join(odd)}; float32, float16 or bfloat16 are expected")


# --------------------------------------------------------------------------- reading off sizes


def without_prefix(tensors: Tensors) -> Tensors:
    """Return the transformer's tensors alone of what TerraTorch's generating class saves."""
    if not any(key.startswith(PREFIX) for key in tensors):
        return tensors
    return {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}


def guess_config(tensors: Tensors, path: Path) -> GeneratorConfig:
    """Read sizes and modalities off the keys and shapes of TerraMind's layout.

    Raises
    ------
    WeightsError
        If they are not of it.
    """
    try:
        dim = int(tensors["mask_token"].shape[-1])
        encoder_depth, decoder_depth = (_depth(tensors, half) for half in ("encoder", "decoder"))
        specs = tuple(_specs(tensors))
        config = GeneratorConfig(
            dim=dim,
            encoder_depth=encoder_depth,
            decoder_depth=decoder_depth,
            heads=dim // 64,  # of all official sizes
            gated="encoder.0.mlp.fc3.weight" in tensors,
            biases="encoder.0.attn.qkv.bias" in tensors,
            modalities=specs,
        )
        check_config(config)
    except (KeyError, IndexError, ValueError, TypeError) as err:
        raise WeightsError(f"{path}: not a checkpoint of TerraMind's transformer ({err})") from err
    return config


def _depth(tensors: Tensors, half: str) -> int:
    numbers = [int(m[1]) for key in tensors if (m := re.match(half + r"\.(\d{1,3})\.", key))]
    return max(numbers, default=-1) + 1


def _specs(tensors: Tensors) -> list[ModalitySpec]:
    """Return the modalities whose embeddings are there, in the order of the table, then others."""
    pattern = re.compile(r"(encoder|decoder)_embeddings\.([^.]+)\.")
    halves: dict[str, set[str]] = {}
    for key in tensors:
        if m := pattern.match(key):
            halves.setdefault(m[2], set()).add(m[1])
    known = {spec.key: spec for spec in OFFICIAL_SPECS}
    order = [*(k for k in known if k in halves), *sorted(halves.keys() - known.keys())]
    return [_spec(key, known.get(key), halves[key], tensors) for key in order]


def _spec(key: str, known: ModalitySpec | None, halves: set[str], tensors: Tensors) -> ModalitySpec:
    """Return a modality's specification, of unknown ones by shapes."""
    takes, gives = "encoder" in halves, "decoder" in halves
    half = "encoder" if takes else "decoder"
    words = tensors.get(f"{half}_embeddings.{key}.token_emb.weight")
    if known is not None and known.kind == "sequence" and words is not None:
        known = replace(known, vocabulary=int(words.shape[0]))
    if known is not None:
        return replace(known, encoder=takes, decoder=gives)
    name = key.split("@")[0]
    pixels = tensors.get(f"encoder_embeddings.{key}.proj.weight")
    if pixels is not None:
        channels = int(pixels.shape[1]) // 256
        return ModalitySpec(key, name, "pixels", channels=channels, encoder=takes, decoder=gives)
    vocabulary = 0 if words is None else int(words.shape[0])
    places = tensors.get(f"{half}_embeddings.{key}.pos_emb")
    if places is not None and places.shape[1] == MAX_LENGTH:
        return ModalitySpec(key, name, "sequence", vocabulary, length=256, encoder=takes, decoder=gives)
    return ModalitySpec(key, name, "tokens", vocabulary, encoder=takes, decoder=gives)
