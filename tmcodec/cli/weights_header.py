"""Read a weights file's header without torch: listing models must not take seconds."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import struct
from pathlib import Path
from typing import Any, NamedTuple

from tmcodec.codec.models import EMBEDDED
from tmcodec.codec.store import BASE, BASE_HASH, MAX_HEADER, WeightsHeader, parse_config, parse_notes
from tmcodec.errors import TokenizerNotFoundError, WeightsError
from tmcodec.texts import shown

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
           "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


class Stored(NamedTuple):
    """A tensor as safetensors has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


def read_header(path: Path) -> WeightsHeader:
    """Read a weights file of this library.

    Raises
    ------
    TokenizerNotFoundError
        If there is no such file.
    WeightsError
        If it is not a weights file of this library, or is cut short.
    """
    if not path.is_file():
        raise TokenizerNotFoundError(f"{path} is not there; reinstall tmcodec, or give a weights file")
    data = path.read_bytes()
    try:
        notes, tensors = _parse(data)
        config = parse_config(notes.pop("config"))
        if BASE in notes:
            tensors = {**_base(notes[BASE], notes.get(BASE_HASH)), **tensors}
        parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
        sha256 = _hash(config, tensors)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise WeightsError(
            f"{path}: not the weights file of a tmcodec tokenizer ({type(error).__name__}: {error});"
            " a checkpoint of TerraMind's is to be imported first (tmcodec models import)"
        ) from error
    return WeightsHeader(path, len(data), parameters, sha256, config, notes)


def _parse(data: bytes) -> tuple[dict[str, str], dict[str, Stored]]:
    """Return the strings and the tensors of a safetensors file."""
    (length,) = struct.unpack_from("<Q", data)
    if length > min(MAX_HEADER, len(data) - 8):
        raise ValueError("cut short")
    header = json.loads(data[8 : 8 + length])
    notes = parse_notes(header.pop("__metadata__"))
    payload, tensors = memoryview(data)[8 + length :], {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= len(payload):
            raise ValueError(f"tensor {name} lies outside the file")
        shape = tuple(map(operator.index, entry["shape"]))
        tensors[name] = Stored(_DTYPES[entry["dtype"]], shape, payload[start:end])
    return notes, tensors


def _base(name: str, sha256: str | None) -> dict[str, Stored]:
    """Return the tensors of the embedded tokenizer that a file leaves tensors to."""
    if name not in EMBEDDED:
        raise ValueError(f"its base, {shown(name)}, is not embedded")
    notes, tensors = _parse(EMBEDDED[name].path.read_bytes())
    if BASE in notes or _hash(json.loads(notes["config"]), tensors) != sha256:
        raise ValueError(f"it is the difference to other weights than {name} has here")
    return tensors


def _hash(config: dict[str, Any], tensors: dict[str, Stored]) -> str:
    """Return what `tmcodec.codec.weights.content_hash` does."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode() + b"\0")
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        digest.update(f"{name}\0{dtype}\0{'x'.join(map(str, shape))}\0".encode())
        digest.update(data)
    return digest.hexdigest()
