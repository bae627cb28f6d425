"""Token files in memory: what a run draws its windows from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tmcodec.codec.models import looks_at_tiles
from tmcodec.errors import CorpusError, TmcodecError
from tmcodec.tokenfile import Layer, LayerMeta, TokenFile

Tokens = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]

MIN_VALID = 0.5
"""Share of a token's pixels that must carry data, or it is neither shown nor asked for."""


@dataclass(frozen=True)
class TokenizerId:
    """Which tokenizer made a modality's tokens.

    Attributes
    ----------
    name, sha256
        As in a layer's header; the hash as 64 hexadecimal digits.
    levels
        FSQ levels.
    tile
        Side in pixels of the tiles that the tokens are of; None where it does not matter or is not known.
    """

    name: str
    sha256: str
    levels: tuple[int, ...]
    tile: int | None = None

    def __str__(self) -> str:
        tile = "" if self.tile is None else f" in tiles of {self.tile} pixels"
        return f"{self.name} ({self.sha256[:12]}){tile}"

    @classmethod
    def of_layer(cls, meta: LayerMeta) -> TokenizerId:
        """Return which tokenizer made a layer, and with which tile where that may matter."""
        tile = meta.tile if looks_at_tiles(meta.tokenizer) else None
        return cls(meta.tokenizer, meta.weights_sha256.hex(), meta.levels, tile)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TokenizerId:
        """Return what a checkpoint has; older ones have no tile."""
        return cls(plain["name"], plain["sha256"], tuple(plain["levels"]), plain.get("tile"))

    def agrees(self, other: TokenizerId) -> bool:
        """Tell whether tokens of both mean the same, as far as is known."""
        known = None not in (self.tile, other.tile)
        return self == other if known else replace(self, tile=None) == replace(other, tile=None)


@dataclass
class Stack:
    """Token grids of one size: of one file, or of several alike.

    Attributes
    ----------
    tokens
        By modality, integers ``(n, rows, cols)``; the same place in each is the same ground.
    valid
        By modality, bool of the same shape.
    pixels
        By modality where there are any: ``(n, C, rows * patch, cols * patch)`` in physical units, mapped
        from files.
    """

    tokens: dict[str, Tokens]
    valid: dict[str, Mask]
    pixels: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it has, sorted."""
        return tuple(sorted(self.tokens))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Grids, rows, columns."""
        count, rows, cols = next(iter(self.tokens.values())).shape
        return count, rows, cols


@dataclass(frozen=True)
class TokenCorpus:
    """All token files of some folders.

    Attributes
    ----------
    stacks
        One a file.
    tokenizers
        By modality; one tokenizer each.
    """

    stacks: tuple[Stack, ...]
    tokenizers: Mapping[str, TokenizerId]


def read_corpus(paths: Iterable[str | Path], modalities: Iterable[str] | None = None) -> TokenCorpus:
    """Read token files, each whole.

    A file's layers of equal size and equally many time steps are one `Stack`; every time step is a grid of
    its own, so that a shard of augmented crops and the file of a real place are read alike.

    Parameters
    ----------
    paths
        Token files, or folders that are searched for them.
    modalities
        What is wanted; other layers are left out. None is all.

    Raises
    ------
    CorpusError
        If there is no file or no wanted layer, layers of a file differ in size, or a modality's tokens
        were made by two tokenizers.
    """
    wanted = None if modalities is None else set(modalities)
    stacks: list[Stack] = []
    known: dict[str, TokenizerId] = {}
    for path in token_files(paths):
        stack = read_stack(path, wanted, known)
        if stack is not None:
            stacks.append(stack)
    if not stacks:
        names = "" if wanted is None else f" with a layer of {', '.join(sorted(wanted))}"
        raise CorpusError(f"no token file{names}; write a corpus with `tmcodec train tokens`")
    return TokenCorpus(tuple(stacks), known)


def token_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return token files in order of their paths, folders searched.

    Raises
    ------
    CorpusError
        If a path does not exist.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise CorpusError(f"{path}: no such folder or file; write a corpus with `tmcodec train tokens`")
        found += sorted(path.rglob("*.tmc")) if path.is_dir() else [path]
    return found


def read_stack(path: Path, wanted: set[str] | None, known: dict[str, TokenizerId]) -> Stack | None:
    """Read one file; None where it has nothing that is wanted. Tokenizers are added to `known`, or checked.

    Raises
    ------
    CorpusError
        See `read_corpus`; the message names the file.
    """
    stack = Stack({}, {})
    try:
        with TokenFile.open(path) as file:
            for layer in file.layers.values():
                modality = layer.meta.modality
                if wanted is not None and modality not in wanted:
                    continue
                _check_layer(path, layer, stack, known)
                stack.tokens[modality], stack.valid[modality] = read_layer(layer)
    except TmcodecError as error:
        raise error if isinstance(error, CorpusError) else CorpusError(f"{path}: {error}") from error
    for modality in stack.tokens:
        beside = pixel_file(path, modality)
        if beside.is_file():
            stack.pixels[modality] = _mapped(beside, stack)
    return stack if stack.tokens else None


def pixel_file(path: Path, modality: str) -> Path:
    """Return where the pixels that a shard was made from lie, if they were kept."""
    return path.with_name(f"{path.stem}.{modality}.npy")


def _mapped(path: Path, stack: Stack) -> npt.NDArray[np.generic]:
    """Map a pixel file; CorpusError if it does not belong to the shard."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: not a readable array ({error})") from error
    count, rows, cols = stack.shape
    if pixels.ndim != 4 or pixels.shape[0] != count or pixels.shape[2] * cols != pixels.shape[3] * rows:
        raise CorpusError(
            f"{path}: {pixels.shape} pixels do not go with {count} grids of {rows} x {cols} tokens"
        )
    return pixels


def _check_layer(path: Path, layer: Layer, stack: Stack, known: dict[str, TokenizerId]) -> None:
    """Raise CorpusError where a layer fits neither its file nor the corpus."""
    meta = layer.meta
    if meta.modality in stack.tokens:
        raise CorpusError(f"{path}: two layers of {meta.modality}; leave one out")
    shape = (len(meta.times), meta.rows, meta.cols)
    if stack.tokens and shape != stack.shape:
        raise CorpusError(
            f"{path}: layer {meta.name!r} has {shape} dates, rows, columns, others {stack.shape}"
        )
    made = TokenizerId.of_layer(meta)
    first = known.setdefault(meta.modality, made)
    if first != made:
        raise CorpusError(
            f"{path}: its {meta.modality} is by {made}, other files' by {first}; encode all with one"
        )


def read_layer(layer: Layer) -> tuple[Tokens, Mask]:
    """Return all tokens of a layer, ``(times, rows, cols)``, and which of them stand for data."""
    meta = layer.meta
    small = meta.codebook_size <= np.iinfo(np.int16).max
    shape = (len(meta.times), meta.rows, meta.cols)
    tokens, valid = np.zeros(shape, np.int16 if small else np.int32), np.ones(shape, bool)
    for time in range(len(meta.times)):
        tokens[time] = layer.tokens(time=time)
        pixels = layer.valid(time=time)
        if pixels is not None:
            valid[time] = token_validity(pixels, meta.rows, meta.cols, meta.patch)
    return tokens, valid


def token_validity(pixels: Mask, rows: int, cols: int, patch: int) -> Mask:
    """Return which tokens have enough valid pixels, ``(rows, cols)``, of a mask ``(planes, h, w)``."""
    whole = np.zeros((rows * patch, cols * patch), np.float32)
    whole[: pixels.shape[1], : pixels.shape[2]] = pixels.all(0)
    share = whole.reshape(rows, patch, cols, patch).mean((1, 3))
    return np.asarray(share >= MIN_VALID)
