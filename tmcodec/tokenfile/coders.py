"""Chunk coders: how the tokens of one chunk become bytes.

A coder has a number that the file names and a pair of functions. Numbers 0 to 127 belong to
the format (``docs/format.md``), 128 to 16383 are free for experiments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import ChunkError, TokenRangeError, UnknownCoderError
from tmcodec.tokenfile.context.coder import context_decode, context_encode
from tmcodec.tokenfile.zstd import zstd_pack, zstd_unpack

Tokens = NDArray[np.int32]
Levels = tuple[int, ...]
Encode = Callable[..., "bytes | None"]
Decode = Callable[..., Tokens]

RESERVED = 128
"""Ids below belong to the format."""
MAX_ID = 2**14 - 1


@dataclass(frozen=True)
class Coder:
    """One way to code the tokens of a chunk.

    Attributes
    ----------
    id
        The number that the chunk index stores.
    name
        For people.
    encode
        ``(tokens, levels) -> bytes``, at least one, or None where the coder does not apply.
        `tokens` is int32 of shape (rows, cols), every value in ``range(prod(levels))``.
    decode
        ``(data, (rows, cols), levels) -> tokens``. Must raise a `ChunkError` for anything
        that `encode` cannot have produced, and must not allocate by what `data` claims.
    trained
        Whether both take one argument more, the SHA-256 of the tokenizer's weights.
    """

    id: int
    name: str
    encode: Encode
    decode: Decode
    trained: bool = False


_CODERS: dict[int, Coder] = {}


def register_coder(coder: Coder) -> Coder:
    """Make `coder` known to readers, and let writers try it.

    Raises
    ------
    ValueError
        If the id is taken by another coder, or is not in ``range(16384)``.
    """
    if not 0 <= coder.id <= MAX_ID:
        raise ValueError(f"coder id {coder.id} is not in 0..{MAX_ID}")
    if _CODERS.get(coder.id, coder) != coder:
        raise ValueError(f"coder id {coder.id} is taken by {_CODERS[coder.id].name!r}")
    _CODERS[coder.id] = coder
    return coder


def unregister_coder(coder_id: int) -> None:
    """Forget an experimental coder.

    Raises
    ------
    ValueError
        If the id belongs to the format.
    """
    if coder_id < RESERVED:
        raise ValueError(f"coder {coder_id} belongs to the format")
    _CODERS.pop(coder_id, None)


def coders() -> tuple[Coder, ...]:
    """Return the registered coders by ascending id."""
    return tuple(_CODERS[i] for i in sorted(_CODERS))


def get_coder(coder_id: int) -> Coder:
    """Return the coder with that id.

    Raises
    ------
    UnknownCoderError
        If none is registered.
    """
    try:
        return _CODERS[coder_id]
    except KeyError:
        raise UnknownCoderError(f"unknown chunk coder {coder_id}; a newer tmcodec may know it") from None


def encode_tokens(
    tokens: Tokens, levels: Levels, tokenizer: bytes = b"", allowed: Collection[int] | None = None
) -> tuple[int, bytes]:
    """Return (coder id, bytes) of the coder with the shortest result; the lower id wins a tie.

    Parameters
    ----------
    tokens
        int32, shape (rows, cols), every value in ``range(prod(levels))``.
    levels
        FSQ levels.
    tokenizer
        SHA-256 of the tokenizer's weights; without it, trained tables are not used.
    allowed
        Ids to choose among besides 0; None is all.
    """
    results = []
    for coder in coders():
        if allowed is None or coder.id in allowed or coder.id == RADIX.id:
            more = (tokenizer,) if coder.trained else ()
            results.append((coder.id, coder.encode(tokens, levels, *more)))
    return min(((i, data) for i, data in results if data is not None), key=lambda r: (len(r[1]), r[0]))


def decode_tokens(
    coder_id: int, data: bytes, shape: tuple[int, int], levels: Levels, tokenizer: bytes = b""
) -> Tokens:
    """Decode what `encode_tokens` coded.

    Raises
    ------
    UnknownCoderError, TokenRangeError, ChunkError
    """
    coder = get_coder(coder_id)
    more = (tokenizer,) if coder.trained else ()
    return coder.decode(data, shape, levels, *more)


# --------------------------------------------------------------------------- 0: mixed radix


_LONG = 128
"""Powers from here on are divided by their reciprocal; only the speed depends on it."""


@lru_cache(maxsize=64)
def _power(base: int, exponent: int) -> int:
    """Return base**exponent; the same few are needed for every chunk."""
    return int(base**exponent)


def radix_size(count: int, levels: Levels) -> int:
    """Return the bytes of `count` tokens: the fewest that hold every integer below K**count."""
    return ((_power(math.prod(levels), count) - 1).bit_length() + 7) // 8


def _limb(levels: Levels) -> tuple[int, int]:
    """Return (K, q): the codebook size, and how many tokens one int64 holds."""
    base = math.prod(levels)
    digits = 1
    while base ** (digits + 1) < 2**63:
        digits += 1
    return base, digits


def radix_encode(tokens: Tokens, levels: Levels) -> bytes:
    """Code all tokens as one integer in base K, the first token lowest, little-endian."""
    base, per_limb = _limb(levels)
    flat = tokens.reshape(-1).astype(np.int64)
    padded = np.concatenate([flat, np.zeros(-len(flat) % per_limb, np.int64)])
    place_values = np.array([base**i for i in range(per_limb)], np.int64)
    # Neighbours are joined pairwise, level by level: far cheaper than Horner's rule, whose
    # every step would touch the whole integer.
    parts: list[int] = (padded.reshape(-1, per_limb) * place_values).sum(axis=1).tolist()
    exponent = per_limb
    while len(parts) > 1:
        if len(parts) % 2:
            parts.append(0)
        scale = _power(base, exponent)
        parts = [low + high * scale for low, high in zip(parts[::2], parts[1::2], strict=True)]
        exponent *= 2
    return parts[0].to_bytes(radix_size(flat.size, levels), "little")


def radix_decode(data: bytes, shape: tuple[int, int], levels: Levels) -> Tokens:
    """Invert `radix_encode`.

    Raises
    ------
    ChunkError
        If the length is wrong.
    TokenRangeError
        If the integer is K**n or more, so that a token would lie outside the codebook.
    """
    count = shape[0] * shape[1]
    base, per_limb = _limb(levels)
    size = radix_size(count, levels)
    if len(data) != size:
        raise ChunkError(f"{count} tokens take {size} bytes in mixed radix, not {len(data)}")
    value = int.from_bytes(data, "little")
    if value >= _power(base, count):
        raise TokenRangeError(f"the chunk holds a token outside its codebook of {base}")
    limbs = -(-count // per_limb)
    parts = [value]
    for level in reversed(range((limbs - 1).bit_length())):
        exponent = per_limb << level
        parts = [part for joined in parts for part in _halves(joined, base, exponent)]
    return _split_limbs(np.array(parts[:limbs], np.int64), base, per_limb)[:count].reshape(shape)


@lru_cache(maxsize=64)
def _reciprocal(base: int, exponent: int) -> tuple[int, int]:
    """Return (bits, 4**bits // power) of power = base**exponent, which has that many bits."""
    power = _power(base, exponent)
    return power.bit_length(), (1 << 2 * power.bit_length()) // power


def _halves(joined: int, base: int, exponent: int) -> tuple[int, int]:
    """Return (remainder, quotient) of ``joined / base**exponent``, for joined < base**(2 * exponent)."""
    power = _power(base, exponent)
    if exponent < _LONG:
        quotient, remainder = divmod(joined, power)
        return remainder, quotient
    # Barrett's reduction: Python multiplies long integers faster than it divides them. The
    # estimate is at most 2 too low.
    bits, reciprocal = _reciprocal(base, exponent)
    quotient = (joined >> bits - 1) * reciprocal >> bits + 1
    remainder = joined - quotient * power
    while remainder >= power:
        quotient, remainder = quotient + 1, remainder - power
    return remainder, quotient


def _split_limbs(limbs: NDArray[np.int64], base: int, per_limb: int) -> Tokens:
    """Return the tokens of int64 limbs, the lowest first: shape (limbs,) -> (limbs * per_limb,)."""
    tokens = np.empty((len(limbs), per_limb), np.int32)
    for i in range(per_limb):
        limbs, tokens[:, i] = np.divmod(limbs, base)
    return tokens.reshape(-1)


# --------------------------------------------------------------------------- 1: digit planes


def tokens_to_digits(tokens: Tokens, levels: Levels) -> NDArray[np.uint8]:
    """Return the FSQ digits: (rows, cols) -> uint8 (len(levels), rows, cols), first digit fastest."""
    digits = np.empty((len(levels), *tokens.shape), np.uint8)
    rest = tokens
    for plane, level in zip(digits, levels, strict=True):
        rest, plane[...] = np.divmod(rest, level)
    return digits


def digits_to_tokens(digits: NDArray[np.uint8], levels: Levels) -> Tokens:
    """Invert `tokens_to_digits`.

    Raises
    ------
    TokenRangeError
        If a digit reaches its level.
    """
    tokens = np.zeros(digits.shape[1:], np.int32)
    basis = 1
    for plane, level in zip(digits, levels, strict=True):
        if plane.max(initial=0) >= level:
            raise TokenRangeError(f"the chunk holds a digit {plane.max()} where there are {level} levels")
        tokens += plane.astype(np.int32) * np.int32(basis)
        basis *= level
    return tokens


def planes_encode(tokens: Tokens, levels: Levels) -> bytes:
    """Code the digit planes, one after the other, as a zstandard frame."""
    return zstd_pack(tokens_to_digits(tokens, levels).tobytes())


def planes_decode(data: bytes, shape: tuple[int, int], levels: Levels) -> Tokens:
    """Invert `planes_encode`.

    Raises
    ------
    ChunkError, TokenRangeError
    """
    raw = zstd_unpack(data, len(levels) * shape[0] * shape[1], "digit planes", ChunkError)
    return digits_to_tokens(np.frombuffer(raw, np.uint8).reshape(len(levels), *shape), levels)


RADIX = register_coder(Coder(0, "radix", radix_encode, radix_decode))
ZSTD_PLANES = register_coder(Coder(1, "zstd-planes", planes_encode, planes_decode))
CONTEXT = register_coder(Coder(2, "context", context_encode, context_decode, trained=True))
"""Coder 2: see `tmcodec.tokenfile.context`."""


# --------------------------------------------------------------------------- 3, 4: with a reference


def _not_alone(tokens: Tokens, levels: Levels) -> None:
    """Coders 3 and 4 need a reference; see `tmcodec.tokenfile.references`."""


def _no_reference(data: bytes, shape: tuple[int, int], levels: Levels) -> Tokens:
    raise ChunkError("this chunk is coded with another as its reference, which is not at hand")


EARLIER = register_coder(Coder(3, "context with an earlier date", _not_alone, _no_reference))
BESIDE = register_coder(Coder(4, "context with an earlier layer", _not_alone, _no_reference))
REFERRING = frozenset((EARLIER.id, BESIDE.id))
"""Coders that need another chunk, which is not coded by one of them."""
