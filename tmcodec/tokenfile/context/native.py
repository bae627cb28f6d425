"""The compiled context coder of ``csrc/context.cpp``, by ctypes. No torch."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np

from tmcodec.fsq import native as library
from tmcodec.tokenfile.context.bits import Bits
from tmcodec.tokenfile.context.heights import Tokens
from tmcodec.tokenfile.context.model import EXP2, ContextModel, layout
from tmcodec.tokenfile.context.reference import Planes

VERSION = 2
DAMAGED = -5

_INTS = ("digits", "slots", "h1", "h2", "hg", "last_rate")
_ARRAYS = (
    *("levels", "order", "slot_table", "first_rows", "first", "first_bias", "second", "second_bias"),
    *("heads", "head_bias", "previous_rows", "previous", "last_rows", "last", "last_bias", "rates"),
    *("state_rows", "count_rows", "exp2"),
)
_PTR, _I32, _I64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class _CModel(ctypes.Structure):
    _fields_ = (
        *((name, _I32) for name in _INTS),
        *((name, _PTR) for name in _ARRAYS),
        ("state_size", _I64),
        ("count_size", _I64),
    )


@lru_cache(maxsize=1)
def load() -> Any:
    """Return the library.

    Raises
    ------
    tmcodec.fsq.native.NativeUnavailable
        If it is missing, or is another version.
    """
    dll = ctypes.CDLL(str(library.load("cpu").path))  # the same one, without that module's wrappers
    try:
        version = dll.tmc_context_version()
    except AttributeError:
        version = None
    if version != VERSION:
        raise library.NativeUnavailable(f"its context coder has version {version}, not {VERSION}")
    dll.tmc_context_code.argtypes = (_PTR, _I32, _PTR, _I64, _I64, _PTR, _I64, _PTR)
    dll.tmc_bits_code.argtypes = (_I32, _PTR, _I64, _I64, _I64, _PTR, _I64, _PTR)
    dll.tmc_context_undo_errors.argtypes = (_PTR, _I64, _I64, _PTR, _I32)
    return dll


@lru_cache(maxsize=64)
def _c_model(model: ContextModel) -> tuple[_CModel, list[Any]]:
    """Return the model as the C interface takes it, and the arrays that must outlive it."""
    at, net = layout(model), model.network
    none16, none32 = np.zeros(1, np.int16), np.zeros(1, np.int32)
    trained: tuple[Any, ...] = (
        none32,
        none16,
        none32,
        none16,
        none32,
        none16,
        none32,
        none16,
        none16,
        none32,
    )
    sizes = (0, 0, 0, 0)
    if net is not None:
        sizes = (len(net.slots), net.first.shape[1], net.second.shape[1], net.last.shape[1])
        trained = (net.slots, net.first, net.first_bias, net.second, net.second_bias, net.heads)
        trained += (net.head_bias, net.previous, net.last, net.last_bias)
    slots, first, first_bias, second, second_bias, heads, head_bias, previous, last, last_bias = trained
    arrays = [
        *(at.levels, at.order, slots, at.first if net is not None else none32, first, first_bias, second),
        *(second_bias, heads, head_bias, at.previous, previous, at.last, last, last_bias, model.rates),
        *(at.states, at.counts, EXP2),
    ]
    arrays = [np.ascontiguousarray(a) for a in arrays]
    pointers = [a.ctypes.data for a in arrays]
    struct = _CModel(len(model.levels), *sizes, model.last_rate, *pointers, at.state_size, at.count_size)
    return struct, arrays


def _buffer(data: bytes | None, room: int) -> tuple[Any, int]:
    """Return bytes to read, or room to write as many, and how many count."""
    if data is None:
        return np.empty(room, np.uint8), room
    return np.frombuffer(data + b"\0", np.uint8), len(data)  # never an empty array


def _outcome(status: int, data: bytes | None, buffer: Any, length: int) -> bytes | None:
    """Return what was coded; the empty string after decoding; None for damaged data."""
    if status == DAMAGED:
        return None
    if status:
        raise RuntimeError(f"context coder: error {status}")
    written: bytes = buffer[:length].tobytes()
    return written if data is None else b""


def code_chunk(model: ContextModel, planes: Planes, data: bytes | None) -> bytes | None:
    """Do what `tmcodec.tokenfile.context.reference.code_chunk` does."""
    struct, _ = _c_model(model)
    _, rows, cols, d = planes.shape
    rows, cols = rows - 4, cols - 4
    buffer, size = _buffer(data, rows * cols * d * 4 + 6)
    length = _I64()
    status = load().tmc_context_code(
        ctypes.byref(struct), data is not None, planes.ctypes.data, rows, cols, buffer.ctypes.data, size,
        ctypes.byref(length),
    )  # fmt: skip
    return _outcome(status, data, buffer, length.value)


def code_bits(planes: Bits, data: bytes | None) -> bytes | None:
    """Do what `tmcodec.tokenfile.context.bits.code_bits` does."""
    count, rows, cols = planes.shape
    bits = np.ascontiguousarray(planes)
    buffer, size = _buffer(data, count * rows * (cols + 1) * 3 + 6)
    length = _I64()
    status = load().tmc_bits_code(
        data is not None, bits.ctypes.data, count, rows, cols, buffer.ctypes.data, size, ctypes.byref(length)
    )
    if bits is not planes:
        planes[:] = bits
    return _outcome(status, data, buffer, length.value)


def undo_errors(errors: Tokens, weights: tuple[int, ...], size: int) -> Tokens:
    """Do what `tmcodec.tokenfile.context.heights.undo_errors` does."""
    numbers = np.array(errors, np.int32, order="C")
    status = load().tmc_context_undo_errors(
        numbers.ctypes.data, *numbers.shape, np.array(weights, np.int32).ctypes.data, size
    )
    if status:
        raise RuntimeError(f"context coder: error {status}")
    return numbers
