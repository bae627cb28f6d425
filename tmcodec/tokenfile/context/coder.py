"""Chunk coders 2, 3 and 4: the context coder around its kernels, with a checksum of the tokens.

A payload is a byte that names the tables (0: none), the coded digits, and the CRC32C of the tokens as
little-endian u32.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tmcodec.errors import ChunkChecksumError, ChunkError, UnknownCoderError
from tmcodec.tokenfile.binary import crc32c
from tmcodec.tokenfile.context.backends import Backend, choose
from tmcodec.tokenfile.context.heights import (
    Levels,
    Tokens,
    number_errors,
    number_to_reflected,
    reflected_to_number,
)
from tmcodec.tokenfile.context.model import (
    GENERIC_RATES,
    REACH,
    REFERENCE,
    ContextModel,
    Int32,
    generic_model,
)
from tmcodec.tokenfile.context.reference import Planes, pad_planes
from tmcodec.tokenfile.context.tables import find_pair_tables, find_tables, rates_of, table_numbers

MAX_SIDE = 256
"""Longest side of a chunk, in tokens."""
_CRC = 4


class Source(NamedTuple):
    """Of which layer a reference is, where it is another than the chunk's.

    Attributes
    ----------
    levels
        Its FSQ levels; coding needs as many as the chunk has.
    tokenizer
        SHA-256 of its tokenizer's weights.
    """

    levels: Levels
    tokenizer: bytes


def context_encode(
    tokens: Tokens,
    levels: Levels,
    tokenizer: bytes = b"",
    reference: Tokens | None = None,
    source: Source | None = None,
    backend: str | None = None,
) -> bytes | None:
    """Code a chunk.

    Parameters
    ----------
    tokens
        int32 (rows, cols), at most 256 each.
    levels
        FSQ levels.
    tokenizer
        SHA-256 of its weights, which finds the tables.
    reference
        int32 (rows, cols): the chunk of another time step or layer at the same place, or None.
    source
        The reference's layer, where it is another.
    backend
        See `tmcodec.tokenfile.context.backends.choose`.

    Returns
    -------
    bytes or None
        None where the coder does not apply.
    """
    if max(tokens.shape) > MAX_SIDE or (source is not None and len(source.levels) != len(levels)):
        return None
    chosen = choose(backend)
    tried = []
    for number, model in _known(tokenizer, levels, reference is not None, source):
        planes = _planes(model, tokens.shape, _to_coded(model, tokens), reference)
        coded = chosen.code_chunk(model, planes, None)
        assert coded is not None
        tried.append(bytes([number]) + coded)
    return min(tried, key=len) + _crc(tokens)


def tables_alone(tokenizer: bytes, levels: Levels) -> ContextModel:
    """Return the newest tables of a tokenizer for chunks on their own; the generic ones where it has none."""
    return _known(tokenizer, levels, False, None)[0][1]


def predictor_of(tokenizer: bytes, levels: Levels) -> tuple[int, ...] | None:
    """Return how a tokenizer's numbers are predicted (`tmcodec.tokenfile.context.heights`), or None."""
    return tables_alone(tokenizer, levels).predictor


def context_decode(
    data: bytes,
    shape: tuple[int, int],
    levels: Levels,
    tokenizer: bytes = b"",
    reference: Tokens | None = None,
    source: Source | None = None,
    backend: str | None = None,
) -> Tokens:
    """Invert `context_encode`; whatever `data` holds, tokens of another checksum are never returned.

    Raises
    ------
    ChunkError
        If the data is none that `context_encode` gives, or names tables that are not known here.
    ChunkChecksumError
        If the tokens are not those that were coded.
    """
    if len(data) < 1 + _CRC or max(shape) > MAX_SIDE:
        raise ChunkError(f"{len(data)} bytes of context-coded tokens are too few")
    if source is not None and len(source.levels) != len(levels):
        raise ChunkError(f"its reference has {len(source.levels)} digits, not {len(levels)}")
    model = _numbered(data[0], tokenizer, levels, reference is not None, source)
    chosen = choose(backend)
    planes = _planes(model, shape, None, reference)
    if chosen.code_chunk(model, planes, data[1:-_CRC]) is None:
        raise ChunkError("the context-coded tokens are damaged, too long or too short")
    digits = planes[0, REACH:-REACH, REACH:-REACH].astype(np.int64)
    place = np.concatenate([[1], np.cumprod(levels)[:-1]])
    tokens = _from_coded(model, (digits * place).sum(-1).astype(np.int32), chosen)
    stored, found = data[-_CRC:], _crc(tokens)
    if stored != found:
        raise ChunkChecksumError(
            f"the decoded tokens have CRC32C {found[::-1].hex()}, stored {stored[::-1].hex()}"
        )
    return tokens


def _known(
    tokenizer: bytes, levels: Levels, referred: bool, source: Source | None
) -> list[tuple[int, ContextModel]]:
    """Return the tables to code with, and their numbers, newest first; else the generic ones."""
    known = table_numbers(tokenizer, b"" if source is None else source.tokenizer)
    found = [_trained(tokenizer, number, levels, referred, source) for number in reversed(known)]
    return [pair for pair in found if pair is not None] or [(0, _generic(levels, referred, source))]


def _numbered(
    number: int, tokenizer: bytes, levels: Levels, referred: bool, source: Source | None
) -> ContextModel:
    """Return the tables that a payload names."""
    if number == 0:
        return _generic(levels, referred, source)
    found = _trained(tokenizer, number, levels, referred, source)
    if found is None:
        pair = "" if source is None else f" after {source.tokenizer.hex()[:12]}"
        raise UnknownCoderError(
            f"the chunk needs context tables {number} of tokenizer {tokenizer.hex()[:12]}{pair};"
            " a newer tmcodec may have them"
        )
    return found[1]


def _generic(levels: Levels, referred: bool, source: Source | None) -> ContextModel:
    return generic_model(levels, referred, None if source is None else source.levels)


def _trained(
    tokenizer: bytes, number: int, levels: Levels, referred: bool, source: Source | None
) -> tuple[int, ContextModel] | None:
    """Return (number, model) of a tokenizer or a pair; None where there is none."""
    if source is not None:
        pair = find_pair_tables(tokenizer, source.tokenizer, number)
        if pair is None or pair.model.source_levels != (levels, source.levels):
            return None
        return pair.number, pair.model
    tables = find_tables(tokenizer, number)
    if tables is None or tables.alone.levels != levels:
        return None
    if not referred:
        return tables.number, tables.alone
    return tables.number, tables.referred or _with_reference(tables.alone)


@lru_cache(maxsize=16)
def _with_reference(model: ContextModel) -> ContextModel:
    """Return a model made for chunks on their own with the reference's digit as one more context."""
    rates = model.rates.copy()
    rates[REFERENCE] = rates_of(*GENERIC_RATES[REFERENCE])
    return replace(model, rates=rates)


def _crc(tokens: Tokens) -> bytes:
    return struct.pack("<I", crc32c(tokens.astype("<u4").tobytes()))


def _to_coded(model: ContextModel, tokens: Tokens) -> Tokens:
    """Return what is coded in place of the tokens."""
    if model.predictor is None:
        return tokens
    numbers = reflected_to_number(tokens, model.levels)
    return number_errors(numbers, model.predictor, math.prod(model.levels))


def _from_coded(model: ContextModel, coded: Tokens, backend: Backend) -> Tokens:
    """Invert `_to_coded`."""
    if model.predictor is None:
        return coded
    numbers = backend.undo_errors(coded, model.predictor, math.prod(model.levels))
    return number_to_reflected(numbers, model.levels)


def _digits(tokens: Tokens, levels: Levels) -> Int32:
    """Return int32 (rows, cols, d)."""
    place = np.concatenate([[1], np.cumprod(levels)[:-1]])
    digits: Int32 = (tokens[..., None] // place % np.array(levels)).astype(np.int32)
    return digits


def _planes(
    model: ContextModel, shape: tuple[int, ...], coded: Tokens | None, reference: Tokens | None
) -> Planes:
    """Return the digits of the chunk (if known) and of its reference, as the kernels take them."""
    own = None if coded is None else _digits(coded, model.levels)
    other = None
    if reference is not None and model.reference_levels is not None:
        other = _digits(reference, model.reference_levels)
    elif reference is not None:
        other = _digits(_to_coded(model, reference), model.levels)
    return pad_planes(model.levels, (shape[0], shape[1]), (own, other), model.reference_levels)
