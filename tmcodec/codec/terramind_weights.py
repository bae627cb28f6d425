"""Checkpoints of TerraMind's layout: reading, checking, importing.

Three kinds of files hold one: the official ``.pt`` (read with ``weights_only=True`` alone), a plain
``.safetensors`` with the same keys, and what `import_checkpoint` writes: safetensors whose header has the
configuration and the digests of both halves. Of an imported file, encoding maps only the encoder's third
into memory and checks that third against its digest.

The identity of a tokenizer is SHA-256 over its configuration and the two digests, so that each half can be
checked without reading the other. A digest is over names, dtypes, shapes and bytes of tensors, not over the
file: the ``.pt``, the plain and the imported file of the same weights are the same tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tmcodec.atomic import atomic_path
from tmcodec.codec.lineage import DECODES
from tmcodec.codec.store import FORMAT, origin_notes
from tmcodec.codec.terramind_models import OFFICIAL, OfficialModel, model_of_file
from tmcodec.codec.weights import check_shapes, config_bytes, update_with_tensors, write_tensors
from tmcodec.errors import TokenizerNotFoundError, WeightsError
from tmcodec.networks.terramind.config import TerraMindConfig
from tmcodec.networks.terramind.net import ENCODER_PREFIXES, expected_shapes

ENCODER, DECODER = "encoder", "decoder"
Tensors = dict[str, Tensor]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint whose keys and shapes fit its configuration.

    Attributes
    ----------
    path, name
        The file, and the name of the tokenizer.
    config
        Sizes and statistics.
    digests
        SHA-256 of each half, by ``"encoder"`` and ``"decoder"``.
    loaded
        The tensors, where the file had to be read whole; None for an imported file.
    notes
        Strings of the header.
    """

    path: Path
    name: str
    config: TerraMindConfig
    digests: Mapping[str, bytes]
    loaded: Tensors | None
    notes: Mapping[str, str]

    @property
    def sha256(self) -> bytes:
        """Identity of the tokenizer, 32 bytes."""
        return identity(self.config, self.digests)

    def half(self, which: str) -> Tensors:
        """Return the tensors of ``"encoder"`` or ``"decoder"``; memory-mapped where the file allows it.

        Raises
        ------
        WeightsError
            If an imported file's half differs from its recorded digest.
        """
        if self.loaded is not None:
            return {k: v for k, v in self.loaded.items() if _half_of(k) == which}
        tensors = _read_safetensors(self.path, which)
        if tensors_digest(tensors) != self.digests[which]:
            raise WeightsError(f"{self.path}: its {which} is damaged (SHA-256 differs); import it again")
        return tensors


def identity(config: TerraMindConfig, digests: Mapping[str, bytes]) -> bytes:
    """Return the SHA-256 over the configuration as JSON, a zero byte, and both halves' digests."""
    return hashlib.sha256(config_bytes(config.to_dict()) + digests[ENCODER] + digests[DECODER]).digest()


def tensors_digest(tensors: Tensors) -> bytes:
    """Return the SHA-256 over tensors in order of name; see `tmcodec.codec.weights.content_hash`."""
    digest = hashlib.sha256()
    update_with_tensors(digest, tensors)
    return digest.digest()


def halves_of(tensors: Tensors) -> dict[str, Tensors]:
    """Return the tensors of each half, by ``"encoder"`` and ``"decoder"``."""
    return {
        which: {k: v for k, v in tensors.items() if _half_of(k) == which} for which in (ENCODER, DECODER)
    }


def _half_of(key: str) -> str:
    return ENCODER if key.startswith(ENCODER_PREFIXES) else DECODER


# --------------------------------------------------------------------------- opening


def open_checkpoint(path: Path, model: OfficialModel | None = None) -> Checkpoint:
    """Open a checkpoint and check its keys.

    Parameters
    ----------
    path
        A ``.pt`` or ``.safetensors`` file.
    model
        What it is; None where the file says so itself, by its header or its official name.

    Raises
    ------
    TokenizerNotFoundError
        If there is no such file.
    WeightsError
        If it is no checkpoint of this layout, is another than `model` by its header or its official name,
        or does not say which one.
    """
    if not path.is_file():
        raise TokenizerNotFoundError(f"no checkpoint {path}; `tmcodec models list` shows what there is")
    if path.suffix == ".safetensors":
        notes = read_notes(path)
        if notes.get("format") == FORMAT:
            return _open_imported(path, notes, model)
        tensors = _read_safetensors(path)
    else:
        tensors, notes = read_pt(path), {}
    named = model_of_file(path)
    if model is not None and model.name in OFFICIAL and named not in (None, model):
        raise WeightsError(
            f"{path}: {named.name} by its file name, not {model.name}; give the right file, or rename it"
        )
    known = model or named or _only_fit(path, tensors)
    _check_tensors(known.config, tensors, path)
    digests = {which: tensors_digest(half) for which, half in halves_of(tensors).items()}
    return Checkpoint(path, known.name, known.config, digests, tensors, notes)


def _open_imported(path: Path, notes: dict[str, str], model: OfficialModel | None) -> Checkpoint:
    """Open what `import_checkpoint` wrote, from its header alone."""
    try:
        config = TerraMindConfig.from_dict(json.loads(notes["config"]))
        digests = {which: bytes.fromhex(notes[f"sha256_{which}"]) for which in (ENCODER, DECODER)}
        name = notes["name"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
        raise WeightsError(f"{path}: the configuration in its header is malformed ({err})") from err
    if model is not None and config != model.config:
        raise WeightsError(f"{path}: it is {name}, not {model.name}; give the right file")
    with _opened(path) as f:
        shapes = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118
    check_shapes(expected_shapes(config), shapes, path)
    return Checkpoint(path, model.name if model else name, config, digests, None, notes)


def _only_fit(path: Path, tensors: Tensors) -> OfficialModel:
    """Return the only official model with as many input channels; refuse to guess between several."""
    projection = tensors.get("encoder.proj.weight")
    channels = projection.shape[1] if projection is not None and projection.ndim == 4 else 0
    fits = [m for m in OFFICIAL.values() if m.config.channels == channels]
    if not fits:
        raise WeightsError(f"{path}: no TerraMind tokenizer's checkpoint (no encoder.proj of a known size)")
    if len(fits) > 1:
        names = " or ".join(m.name for m in fits)
        raise WeightsError(
            f"{path}: its tensors fit {names}; say which: models import {path.name} --as NAME,"
            f" or --tokenizer NAME --checkpoint {path.name}"
        )
    return fits[0]


def _check_tensors(config: TerraMindConfig, tensors: Tensors, path: Path) -> None:
    """Refuse tensors that do not fit the architecture or are not floating point."""
    check_shapes(expected_shapes(config), {k: tuple(v.shape) for k, v in tensors.items()}, path)
    odd = sorted({str(v.dtype) for v in tensors.values() if v.dtype not in _DTYPES})
    if odd:
        raise WeightsError(f"{path}: tensors of {', '.join(odd)}; float32, float16 or bfloat16 are expected")


# --------------------------------------------------------------------------- files


def read_pt(path: Path) -> Tensors:
    """Read a ``.pt`` state dict, memory-mapped where its format allows it; never with pickled objects.

    Raises
    ------
    WeightsError
        If it cannot be read so, or is no flat dictionary of tensors.
    """
    try:
        try:
            raw = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError):  # files from before torch 1.6 cannot be mapped
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, OSError, EOFError, KeyError, TypeError,
            AttributeError, IndexError, AssertionError, ImportError, struct.error) as err:  # fmt: skip
        # PyTorch's own words advise to load pickled objects, which is just what must not be done.
        raise WeightsError(
            f"{path}: not readable as a checkpoint of tensors; it may be damaged, of another format or a web"
            " page saved under that name; download it again"
        ) from err
    if (
        not isinstance(raw, dict)
        or not raw
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in raw.items())
    ):
        raise WeightsError(f"{path}: not a flat dictionary of tensors; save the model's state_dict alone")
    return {k: v.detach() for k, v in raw.items()}


def read_notes(path: Path) -> dict[str, str]:
    """Return the strings in a safetensors header.

    Raises
    ------
    WeightsError
        If it is no safetensors file.
    """
    with _opened(path) as f:
        return dict(f.metadata() or {})


def _read_safetensors(path: Path, which: str | None = None) -> Tensors:
    """Map the tensors of a half, or all, into memory."""
    with _opened(path) as f:
        keys = [k for k in f.keys() if which is None or _half_of(k) == which]  # noqa: SIM118
        return {k: f.get_tensor(k) for k in keys}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; its errors become WeightsErrors."""
    opener: Any = safe_open
    try:
        with opener(path, framework="pt") as f:
            yield f
    except (SafetensorError, OSError) as err:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({err}); fetch or import it again"
        ) from err


# --------------------------------------------------------------------------- importing


def import_checkpoint(
    path: Path, target: Path, model: OfficialModel | None = None, notes: Mapping[str, str] | None = None
) -> Checkpoint:
    """Convert a checkpoint to safetensors with configuration and digests; nothing changes in its tensors.

    Parameters
    ----------
    path
        Official ``.pt``, plain or imported ``.safetensors``.
    target
        The file to write; its folder is made. An existing one is replaced.
    model
        As for `open_checkpoint`.
    notes
        Further strings for the header, e.g. where the file came from.

    Returns
    -------
    Checkpoint
        The file written, opened.
    """
    found = open_checkpoint(path, model)
    header = origin_notes(path, notes or {})
    if DECODES in found.notes:
        header[DECODES] = found.notes[DECODES]
    tensors = {k: v for which in (ENCODER, DECODER) for k, v in found.half(which).items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target, overwrite=True) as temporary:
        save_checkpoint(temporary, found.config, tensors, found.name, header)
    return open_checkpoint(target)


def save_checkpoint(
    path: Path, config: TerraMindConfig, tensors: Tensors, name: str, notes: Mapping[str, str]
) -> bytes:
    """Write tensors in official keys with configuration and digests in the header; return the content hash.

    Raises
    ------
    WeightsError
        If the tensors do not fit the configuration.
    """
    _check_tensors(config, tensors, path)
    digests = {which: tensors_digest(half) for which, half in halves_of(tensors).items()}
    header = {
        "format": FORMAT,
        "name": name,
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "sha256": identity(config, digests).hex(),
        **{f"sha256_{which}": digest.hex() for which, digest in digests.items()},
        **notes,
    }
    write_tensors(path, {k: v.contiguous() for k, v in tensors.items()}, header)
    return identity(config, digests)
