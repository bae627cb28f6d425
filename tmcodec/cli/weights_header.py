"""Read a weights file's header without torch: listing models must not take seconds."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

from tmcodec.codec.store import MAX_HEADER, WeightsHeader
from tmcodec.errors import TokenizerNotFoundError, WeightsError

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
           "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


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
        (length,) = struct.unpack_from("<Q", data)
        if length > min(MAX_HEADER, len(data) - 8):
            raise ValueError("cut short")
        header = json.loads(data[8 : 8 + length])
        notes = header.pop("__metadata__")
        config = json.loads(notes.pop("config"))
        digest, parameters = _hash(config, header, memoryview(data)[8 + length :])
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path}: not the weights file of a tmcodec tokenizer ({type(error).__name__}: {error});"
            " a checkpoint of TerraMind's is to be imported first (tmcodec models import)"
        ) from error
    return WeightsHeader(path, len(data), parameters, digest, config, notes)


def _hash(config: dict[str, Any], tensors: dict[str, Any], payload: memoryview) -> tuple[str, int]:
    """Return what `tmcodec.codec.weights.content_hash` does, and the number of parameters."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode() + b"\0")
    parameters = 0
    for name in sorted(tensors):
        shape, (start, end) = tensors[name]["shape"], tensors[name]["data_offsets"]
        if not 0 <= start <= end <= len(payload):
            raise ValueError(f"tensor {name} lies outside the file")
        text = f"{name}\0{_DTYPES[tensors[name]['dtype']]}\0{'x'.join(map(str, shape))}\0"
        digest.update(text.encode())
        digest.update(payload[start:end])
        parameters += math.prod(shape)
    return digest.hexdigest(), parameters
