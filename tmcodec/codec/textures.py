"""Diffusion decoders that came after their tokenizer, in small files of their own.

What several sampling steps add to the mean touches neither tokens nor the mean itself. So a better diffusion
decoder need not make a new tokenizer: it lies beside the weights file, in the folder ``textures`` under the
same name, and says whose it is by the tokenizer's content hash. Files made before are decoded by it, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from tmcodec.codec.weights import (
    as_stored,
    check_config,
    check_finite,
    check_shapes,
    content_hash,
    read_weights,
    write_tensors,
)
from tmcodec.errors import WeightsError
from tmcodec.networks.denoiser import Denoiser
from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.texts import printable

FORMAT = "tmcodec-texture-1"
PREFIX = "denoiser."
OWN_FIELDS = frozenset(("denoiser_dim", "denoiser_blocks", "components", "smooth", "lapped", "residual_std",
                        "residual_basis"))  # fmt: skip
"""Fields of the configuration that the diffusion decoder may change; all others are the tokenizer's."""


@dataclass(frozen=True)
class Texture:
    """A diffusion decoder in use in place of its tokenizer's own.

    Attributes
    ----------
    name
        As its file says.
    sha256
        Its content hash, made as a tokenizer's, 32 bytes.
    """

    name: str
    sha256: bytes


def save_texture(
    path: Path, net: MiniNet, name: str, tokenizer: bytes, notes: Mapping[str, str] | None = None
) -> bytes:
    """Write the diffusion decoder of `net` in half precision; return its hash.

    Parameters
    ----------
    path
        ``<folder of the weights>/textures/<name of the weights file>`` is where it is found.
    net
        The tokenizer's network with another denoiser.
    name
        Of the texture.
    tokenizer
        Content hash of the tokenizer that it belongs to, 32 bytes.
    notes
        More strings for the header.
    """
    config, stored = as_stored(net)
    tensors = {k: v for k, v in stored.items() if k.startswith(PREFIX)}
    meta = {"format": FORMAT, "name": name, "tokenizer_sha256": tokenizer.hex(),
            "config": json.dumps(config, sort_keys=True), **(notes or {})}  # fmt: skip
    write_tensors(path, tensors, meta)
    return content_hash(config, tensors)


def load_texture(path: Path, net: MiniNet, tokenizer: bytes) -> Texture:
    """Give `net` the diffusion decoder in a file.

    Parameters
    ----------
    path
        Written by `save_texture`.
    net
        The tokenizer's network; its denoiser, residual components and configuration are replaced.
    tokenizer
        The tokenizer's content hash.

    Raises
    ------
    WeightsError
        If the file is damaged, not a texture, or another tokenizer's.
    """
    meta, raw, tensors = read_weights(path, FORMAT, "the texture of a tmcodec tokenizer")
    whose = meta.get("tokenizer_sha256")
    if whose != tokenizer.hex():
        raise WeightsError(
            f"{path}: the texture belongs to weights {printable(str(whose)[:12])}, those beside "
            f"it are {tokenizer.hex()[:12]}; remove it or put it beside its own"
        )
    cfg = check_config(raw, path)
    _check_rest(cfg, net.cfg, path)
    _check_shapes(cfg, tensors, path)
    check_finite(tensors, path)
    with torch.random.fork_rng(devices=[]):
        denoiser = Denoiser(cfg)
    denoiser.load_state_dict({k.removeprefix(PREFIX): v.float() for k, v in tensors.items()})
    net.take_denoiser(denoiser, cfg)
    net.eval()
    return Texture(meta.get("name", path.stem), content_hash(raw, tensors))


def _check_shapes(cfg: MiniConfig, tensors: dict[str, Tensor], path: Path) -> None:
    """Compare names and shapes before anything is allocated for them."""
    with torch.device("meta"):
        expected = {f"{PREFIX}{k}": tuple(v.shape) for k, v in Denoiser(cfg).state_dict().items()}
    check_shapes(expected, {k: tuple(v.shape) for k, v in tensors.items()}, path)


def _check_rest(cfg: MiniConfig, own: MiniConfig, path: Path) -> None:
    """Refuse a configuration that differs where it is not the diffusion decoder's."""
    differing = [f.name for f in fields(cfg) if getattr(cfg, f.name) != getattr(own, f.name)]
    foreign = sorted(set(differing) - OWN_FIELDS)
    if foreign:
        raise WeightsError(f"{path}: the texture was made for another network ({', '.join(foreign)} differ)")
