"""Where imported weights lie on this computer, and what their headers say. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import struct
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmcodec.errors import TargetWriteError, TokenizerNotFoundError

FORMAT = "tmcodec-terramind-1"
"""Mark of imported weights in their header."""

GENERATOR_FORMAT = "tmcodec-any2any-1"
"""Mark of a generator's weights, embedded or imported."""

BASE, BASE_HASH = "base", "base_sha256"
"""Strings of a header: name and content hash, in hexadecimal, of the embedded tokenizer that has the
tensors which the file leaves out (`tmcodec.codec.weights.save_difference`)."""

MAX_HEADER = 100_000_000  # safetensors' own limit


def home() -> Path:
    """Return ``$TMCODEC_HOME``, else ``tmcodec`` in the user's cache folder."""
    chosen = os.environ.get("TMCODEC_HOME")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tmcodec"


def stored_path(name: str) -> Path:
    """Return where the weights of that name lie, or would lie."""
    return home() / "weights" / f"{name}.safetensors"


def make_store() -> None:
    """Make the folder of imported weights; refuse one that takes no files, before anything is fetched for it.

    Raises
    ------
    TargetWriteError
    """
    folder = home() / "weights"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "not writable"
    except OSError as err:
        reason = (err.strerror or type(err).__name__).lower()
    if reason:
        raise TargetWriteError(
            f"{folder} takes no weights ({reason}); set TMCODEC_HOME to a folder that can be written"
        )


def local_weights(name: str, official: Container[str], kind: str, known: Iterable[str]) -> Path:
    """Return the imported weights of an official name, or the weights file that `name` is the path of.

    Parameters
    ----------
    name
        What the user gave.
    official
        Names that can be fetched.
    kind, known
        For the error: ``"tokenizer"`` or ``"generator"``, and the names there are.

    Raises
    ------
    TokenizerNotFoundError
        If there is no such file on this computer.
    """
    if name in official:
        if stored_path(name).is_file():
            return stored_path(name)
        raise TokenizerNotFoundError(
            f"{name} is not on this computer; run `tmcodec models pull {name}` first"
        )
    path = Path(name)
    if path.suffix in (".safetensors", ".pt", ".pth") and path.is_file():
        return path
    option = "--tokenizer" if kind == "tokenizer" else "--model"
    raise TokenizerNotFoundError(
        f"no {kind} {name!r}; pass {option} with a .safetensors or .pt file or one of {', '.join(known)}"
    )


SOURCE_FILE, SOURCE_HASH = "source_file", "source_sha256"
"""Strings of an imported file's header: name and SHA-256, in hexadecimal, of the file that it was made of."""


def origin_notes(path: Path, notes: Mapping[str, str]) -> dict[str, str]:
    """Return strings for the header of an imported file: those given, and what `path` is."""
    known = {SOURCE_FILE: path.name, **notes}
    return known if SOURCE_HASH in known else {SOURCE_HASH: file_sha256(path), **known}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file in hex."""
    with open(path, "rb") as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class WeightsHeader:
    """What a weights file says about itself.

    Attributes
    ----------
    path, size
        The file and its bytes.
    parameters
        Numbers in all tensors.
    sha256
        Identity of the tokenizer in hex, the one that token files store.
    config
        Configuration of the network.
    notes
        The other strings of the header.
    """

    path: Path
    size: int
    parameters: int
    sha256: str
    config: dict[str, Any]
    notes: dict[str, str]


def parse_config(text: str) -> dict[str, Any]:
    """Return the configuration that a header has as JSON.

    Raises
    ------
    TypeError, ValueError
        If it is none, or has numbers that JSON has not.
    """
    try:
        config = json.loads(text)
        json.dumps(config, allow_nan=False)  # Python reads NaN and 1e999
    except RecursionError:
        raise ValueError("the configuration is nested too deeply") from None
    if not isinstance(config, dict):
        raise TypeError("the configuration is no mapping")
    return config


def parse_notes(found: Any) -> dict[str, str]:
    """Return the strings of a header; raise TypeError or ValueError where they are none."""
    notes = dict(found)
    if not all(isinstance(value, str) for value in notes.values()):
        raise TypeError("a string of the header is none")
    return notes


def read_stored(path: Path, form: str = FORMAT) -> WeightsHeader | None:
    """Read the header of weights of that format; None where the file is no such, cut off or damaged."""
    try:
        with open(path, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(MAX_HEADER, path.stat().st_size - 8):
                return None
            header = json.loads(f.read(length))
        notes = parse_notes(header.pop("__metadata__"))
        if notes.get("format") != form:
            return None
        config, sha256 = parse_config(notes.pop("config")), notes.pop("sha256")
        parameters = sum(math.prod(map(operator.index, tensor["shape"])) for tensor in header.values())
        last = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if 8 + length + last > path.stat().st_size:
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return None
    return WeightsHeader(path, path.stat().st_size, parameters, sha256, config, notes)
