"""One chunk: its state, its mask and its tokens, as the bytes that the payload holds."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tmcodec.errors import ChunkChecksumError, ChunkError, LimitExceededError, TokenRangeError
from tmcodec.tokenfile.binary import Cursor, crc32c, pack_varint
from tmcodec.tokenfile.coders import (
    BESIDE,
    CONTEXT,
    EARLIER,
    MAX_ID,
    REFERRING,
    Tokens,
    decode_tokens,
    encode_tokens,
)
from tmcodec.tokenfile.context.coder import Source, context_decode, context_encode
from tmcodec.tokenfile.masks import MAX_CODED, Mask, is_coded, mask_pack, mask_unpack
from tmcodec.tokenfile.metadata import LayerMeta
from tmcodec.tokenfile.prelude import VERSION

EMPTY = 0
"""Tag of a chunk without any valid pixel; it has no payload."""
MAX_TAG = 2 + 2 * MAX_ID


class RawChunk(NamedTuple):
    """A chunk as it lies in the file, undecoded.

    `tag` is 0 for an empty chunk, else ``1 + 2 * coder + partial``.
    """

    tag: int
    payload: bytes

    @property
    def coder(self) -> int:
        """Id of the coder of the tokens."""
        return (self.tag - 1) >> 1

    @property
    def partial(self) -> bool:
        """Whether a mask precedes the tokens."""
        return self.tag != EMPTY and (self.tag - 1) & 1 == 1


EMPTY_CHUNK = RawChunk(EMPTY, b"")


JOINT = frozenset(1 + 2 * coder.id for coder in (CONTEXT, EARLIER, BESIDE))
"""Tags of full chunks that end with a CRC32C of their tokens; version 2 joins it with the index's."""


def seal_chunk(raw: RawChunk, version: int) -> tuple[bytes, int]:
    """Return what a file stores of a chunk: the bytes of its payload, and the checksum in the index.

    From version 2, one checksum tells of both the bytes and the tokens: the exclusive or of theirs.
    """
    if version == 1 or raw.tag not in JOINT:
        return raw.payload, crc32c(raw.payload)
    stored, own = raw.payload[:-4], int.from_bytes(raw.payload[-4:], "little")
    return stored, crc32c(stored) ^ own


def unseal_chunk(tag: int, stored: bytes, crc: int, version: int) -> RawChunk:
    """Invert `seal_chunk`.

    Raises
    ------
    ChunkChecksumError
        Where the checksum is of the bytes alone; a joint one is checked when the tokens are decoded.
    ChunkError
        If the chunk has what its version has not.
    """
    raw, computed = RawChunk(tag, stored), crc32c(stored)
    if version > 1 and tag in JOINT:
        return RawChunk(tag, stored + (computed ^ crc).to_bytes(4, "little"))
    if computed != crc:
        raise ChunkChecksumError(f"CRC32C {computed:08x}, stored {crc:08x}")
    if version == 1 and has_coded_mask(raw):
        raise ChunkError("mask: bits in context are not defined in version 1")
    return raw


class References(Protocol):
    """Finds the tokens of the same place elsewhere in the file; raises `ChunkError` where it cannot."""

    def earlier_date(self, back: int) -> Tokens:
        """Return those of so many time steps before."""

    def earlier_layer(self, layers: int, time: int) -> tuple[Tokens, LayerMeta]:
        """Return those of a time step of so many layers before, and that layer's metadata."""


def pack_chunk(
    meta: LayerMeta,
    tokens: Tokens,
    valid: Mask | None,
    coders: Collection[int] | None = None,
    version: int = VERSION,
) -> RawChunk:
    """Pack tokens and mask of one chunk; both were checked by `check_tokens` and `check_mask`.

    Parameters
    ----------
    meta
        Metadata of the layer.
    tokens
        int32, shape (rows, cols).
    valid
        bool, shape (planes, h, w) in pixels; None where all are valid.
    coders
        Coder ids to choose among; None is all. Masks are coded in context where the context coder is among
        them.
    version
        Of the format; 1 has no masks in context.
    """
    if valid is not None and not valid.any():
        return EMPTY_CHUNK
    coder, data = encode_tokens(tokens, meta.levels, meta.weights_sha256, coders)
    tag = 1 + 2 * coder
    if valid is None or valid.all():
        return RawChunk(tag, data)
    mask = mask_pack(valid, version > 1 and (coders is None or CONTEXT.id in coders))
    return RawChunk(tag + 1, pack_varint(len(mask)) + mask + data)


def unpack_tokens(
    meta: LayerMeta, raw: RawChunk, chunk_row: int, chunk_col: int, references: References | None = None
) -> Tokens:
    """Return the tokens of a chunk, int32 (rows, cols); zeros where it is empty.

    Raises
    ------
    ChunkError, TokenRangeError, UnknownCoderError
    """
    shape = meta.grid.token_shape(chunk_row, chunk_col)
    if raw.tag == EMPTY:
        return np.zeros(shape, np.int32)
    data = _split(raw)[1]
    if raw.coder not in REFERRING or references is None:
        return decode_tokens(raw.coder, data, shape, meta.levels, meta.weights_sha256)
    cursor, source = Cursor(data, "chunk", ChunkError), None
    if raw.coder == EARLIER.id:
        other = references.earlier_date(cursor.varint("reference"))
    else:
        other, layer = references.earlier_layer(cursor.varint("layer"), cursor.varint("time"))
        source = Source(layer.levels, layer.weights_sha256)
    return context_decode(bytes(cursor.rest()), shape, meta.levels, meta.weights_sha256, other, source)


def refer_chunk(
    meta: LayerMeta,
    raw: RawChunk,
    tokens: Tokens,
    other: Tokens,
    place: tuple[int, ...],
    layer: LayerMeta | None = None,
) -> RawChunk:
    """Return the chunk coded with a reference, or as it was where that is not shorter.

    Parameters
    ----------
    meta
        Metadata of the layer.
    raw, tokens
        The chunk, and its tokens.
    other
        Tokens of the reference: a chunk at the same place that has no reference itself.
    place
        How many time steps earlier it is; or how many layers earlier, and its time step.
    layer
        Metadata of its layer, where that is another.
    """
    mask, data = _split(raw)
    source = None if layer is None else Source(layer.levels, layer.weights_sha256)
    coded = context_encode(tokens, meta.levels, meta.weights_sha256, other, source)
    where = b"".join(map(pack_varint, place))
    if coded is None or len(coded) + len(where) >= len(data):
        return raw
    before = b"" if mask is None else pack_varint(len(mask)) + mask
    coder = EARLIER if layer is None else BESIDE
    return RawChunk(1 + 2 * coder.id + (mask is not None), before + where + coded)


def plain_chunk(meta: LayerMeta, raw: RawChunk, tokens: Tokens) -> RawChunk:
    """Return a chunk that needs no reference, with the same mask and those tokens."""
    mask, _ = _split(raw)
    coder, data = encode_tokens(tokens, meta.levels, meta.weights_sha256)
    before = b"" if mask is None else pack_varint(len(mask)) + mask
    return RawChunk(1 + 2 * coder + (mask is not None), before + data)


def has_coded_mask(raw: RawChunk) -> bool:
    """Tell whether the mask of a chunk is coded in context, which version 1 does not have."""
    return raw.partial and is_coded(_split(raw)[0] or b"")


def plain_mask(meta: LayerMeta, raw: RawChunk, chunk_row: int, chunk_col: int) -> RawChunk:
    """Return a chunk as version 1 has it, with the same tokens and a mask that is not coded in context.

    Raises
    ------
    ChunkError
    """
    if not has_coded_mask(raw):
        return raw
    # A bit in context stands for 2 x 2 pixels at most.
    valid = unpack_mask(meta, raw, chunk_row, chunk_col, 4 * MAX_CODED)
    assert valid is not None
    mask = mask_pack(valid, coded=False)
    return RawChunk(raw.tag, pack_varint(len(mask)) + mask + _split(raw)[1])


def unpack_mask(meta: LayerMeta, raw: RawChunk, chunk_row: int, chunk_col: int, limit: int) -> Mask | None:
    """Return the mask of a chunk, bool (planes, h, w), or None where all pixels are valid.

    Raises
    ------
    LimitExceededError
        If the mask of this one chunk has more than `limit` values.
    """
    height, width = meta.grid.pixel_shape(chunk_row, chunk_col)
    if raw.tag == EMPTY:
        return np.zeros((1, height, width), np.bool_)
    mask, _ = _split(raw)
    if mask is None:
        return None
    planes = len(meta.bands) if mask[:1] and mask[0] & 2 else 1
    if planes * height * width > limit:
        raise LimitExceededError(
            f"the mask of one chunk has {planes * height * width} values, more than max_pixels={limit};"
            " pass a higher max_pixels if you trust the file"
        )
    return mask_unpack(mask, len(meta.bands), (height, width))


def _split(raw: RawChunk) -> tuple[bytes | None, bytes]:
    """Return (mask block or None, coded tokens) of a payload."""
    if not raw.partial:
        return None, raw.payload
    cursor = Cursor(raw.payload, "chunk", ChunkError)
    mask = bytes(cursor.take(cursor.varint("mask length"), "mask"))
    return mask, bytes(cursor.rest())


# --------------------------------------------------------------------------- checks of input


def check_tokens(meta: LayerMeta, tokens: NDArray[np.integer], shape: tuple[int, int]) -> Tokens:
    """Return `tokens` as int32 after checking dtype, shape and range.

    Raises
    ------
    ChunkError
        If they are not integers or of another shape.
    TokenRangeError
        If one is outside the codebook.
    """
    array = np.asarray(tokens)
    if array.dtype.kind not in "iu":
        raise ChunkError(f"tokens have dtype {array.dtype}; pass integers")
    if array.shape != shape:
        raise ChunkError(f"tokens have shape {array.shape}; this chunk has {shape}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= meta.codebook_size:
        wrong = low if low < 0 else high
        raise TokenRangeError(f"token {wrong} lies outside the codebook of {meta.codebook_size}")
    return array.astype(np.int32)


def check_mask(meta: LayerMeta, valid: NDArray[np.bool_], shape: tuple[int, int]) -> Mask:
    """Return `valid` after checking dtype and shape.

    Raises
    ------
    ChunkError
        If it is not bool, or not of shape (1 or bands, height, width).
    """
    array = np.asarray(valid)
    allowed = {(1, *shape), (len(meta.bands), *shape)}
    if array.dtype != np.bool_ or array.shape not in allowed:
        raise ChunkError(
            f"mask has dtype {array.dtype} and shape {array.shape};"
            f" pass bool of shape (1 or {len(meta.bands)}, {shape[0]}, {shape[1]})"
        )
    return array
