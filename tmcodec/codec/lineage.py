"""Which earlier tokenizers' tokens a retrained decoder reads.

A token file names its tokenizer by a hash over encoder and decoder together. A decoder that was trained
further beside an unchanged encoder has another hash and reads the same tokens; its weights file says so in
its header, under ``decodes``: a JSON list of ``{"name": ..., "sha256": ...}``. The list is written after
comparing everything that decides tokens (`tokens_digest`), never from a setting.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tmcodec.errors import WeightsError

if TYPE_CHECKING:
    from tmcodec.networks.mini import MiniNet
    from tmcodec.networks.terramind.config import TerraMindConfig

DECODES = "decodes"
"""Key in the header of a weights file."""

MAX_ORIGINS = 64
"""Most earlier tokenizers that a header may list."""

MINI_FIELDS = ("modality", "kind", "channels", "levels", "dim", "encoder_blocks", "kernel",
               "compand", "origin", "knee", "mean", "std")  # fmt: skip
"""Fields of a small tokenizer's configuration that its encoder, companding and levels depend on."""


@dataclass(frozen=True)
class Origin:
    """A tokenizer whose tokens another one decodes.

    Attributes
    ----------
    name
        Of the tokenizer.
    sha256
        Its content hash, 32 bytes: what token files store.
    """

    name: str
    sha256: bytes


@dataclass(frozen=True)
class Lineage:
    """What a run started from, as far as its tokens go.

    Attributes
    ----------
    tokens
        Digest of what decided the tokens of the starting point (`tokens_digest`).
    origins
        The starting point itself and the tokenizers that it decodes.
    """

    tokens: bytes
    origins: tuple[Origin, ...]

    def decoded_by(self, tokens: bytes) -> tuple[Origin, ...]:
        """Return the origins where a network still makes the starting point's tokens, else nothing."""
        return self.origins if tokens == self.tokens else ()

    def to_json(self) -> str:
        """Return text for a run's checkpoint."""
        return json.dumps({"tokens": self.tokens.hex(), **format_decodes(self.origins)})

    @classmethod
    def from_json(cls, text: str, path: Path) -> Lineage:
        """Rebuild from `to_json`'s result, read from `path`.

        Raises
        ------
        WeightsError
            If it is malformed.
        """
        try:
            raw = json.loads(text)
            tokens, origins = bytes.fromhex(raw["tokens"]), parse_decodes(raw, path)
        except (ValueError, TypeError, KeyError, RecursionError) as err:
            raise WeightsError(f"{path}: what it says of its starting point is malformed") from err
        return cls(tokens, origins)


def format_decodes(origins: Iterable[Origin]) -> dict[str, str]:
    """Return the header's entry, sorted and without repetition; nothing where there is no origin."""
    found = {o.sha256: o for o in origins}
    listed = [{"name": o.name, "sha256": o.sha256.hex()} for _, o in sorted(found.items())]
    return {DECODES: json.dumps(listed)} if listed else {}


def parse_decodes(notes: Mapping[str, str], path: Path) -> tuple[Origin, ...]:
    """Read the header's entry; the inverse of `format_decodes`.

    Raises
    ------
    WeightsError
        If it is malformed.
    """
    try:
        raw = json.loads(notes.get(DECODES, "[]"))
        if not isinstance(raw, list) or len(raw) > MAX_ORIGINS:
            raise ValueError("no list, or too long")
        origins = tuple(Origin(str(item["name"]), bytes.fromhex(item["sha256"])) for item in raw)
        if any(len(o.sha256) != 32 or not 0 < len(o.name) <= 200 for o in origins):
            raise ValueError("a name or hash of the wrong length")
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise WeightsError(
            f"{path}: the list of tokenizers that it decodes is malformed; export it again"
        ) from err
    return origins


def tokens_digest(net: MiniNet) -> bytes:
    """Return the SHA-256 over everything that decides a small tokenizer's tokens.

    Hashed are the fields `MINI_FIELDS` of the configuration, and the encoder's tensors in half precision, as
    weights files hold them.
    """
    from tmcodec.codec.weights import config_bytes, update_with_tensors

    raw = json.loads(json.dumps(net.cfg.to_dict()))
    digest = hashlib.sha256(config_bytes({name: raw[name] for name in MINI_FIELDS}))
    tensors = {k: v.detach().cpu().half() for k, v in net.state_dict().items() if k.startswith("encoder.")}
    update_with_tensors(digest, tensors)
    return digest.digest()


TERRAMIND_FIELDS = ("modality", "channels", "levels", "mean", "std", "dim", "depth", "heads", "patch", "grid")
"""The same for TerraMind's layout."""


def terramind_tokens_digest(config: TerraMindConfig, encoder: Mapping[str, object]) -> bytes:
    """Return the SHA-256 over everything that decides the tokens of a tokenizer of TerraMind's layout.

    Parameters
    ----------
    config
        Of which `TERRAMIND_FIELDS` count.
    encoder
        Tensors ``encoder.*`` and ``quant_proj.*``; hashed in float32, the precision they run in.
    """
    import torch

    from tmcodec.codec.weights import config_bytes, update_with_tensors

    raw = {name: getattr(config, name) for name in TERRAMIND_FIELDS}
    digest = hashlib.sha256(config_bytes(raw))
    update_with_tensors(
        digest, {k: v.detach().cpu().float() for k, v in encoder.items() if isinstance(v, torch.Tensor)}
    )
    return digest.digest()
