"""Which implementation of the context coder does the work: compiled, numba, or plain NumPy.

``TMCODEC_BACKEND`` names one, as for `tmcodec.fsq`, whose ``torch`` is ``python`` here; else the first
that this machine has. All give the same bytes.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from typing import NamedTuple, Protocol

from tmcodec.fsq.backends import VARIABLE, BackendError
from tmcodec.tokenfile.context.bits import Bits
from tmcodec.tokenfile.context.heights import Tokens
from tmcodec.tokenfile.context.model import ContextModel
from tmcodec.tokenfile.context.reference import Planes

NAMES = ("native", "numba", "python")


class CodeChunk(Protocol):
    """See `tmcodec.tokenfile.context.reference.code_chunk`."""

    def __call__(self, model: ContextModel, planes: Planes, data: bytes | None) -> bytes | None: ...


class UndoErrors(Protocol):
    """See `tmcodec.tokenfile.context.heights.undo_errors`."""

    def __call__(self, errors: Tokens, weights: tuple[int, ...], size: int) -> Tokens: ...


class CodeBits(Protocol):
    """See `tmcodec.tokenfile.context.bits.code_bits`."""

    def __call__(self, planes: Bits, data: bytes | None) -> bytes | None: ...


class Backend(NamedTuple):
    """One implementation."""

    name: str
    code_chunk: CodeChunk
    undo_errors: UndoErrors
    code_bits: CodeBits


def choose(name: str | None = None) -> Backend:
    """Return the implementation.

    Parameters
    ----------
    name
        One of `NAMES`; None reads ``TMCODEC_BACKEND``, and without it takes the fastest there is.

    Raises
    ------
    BackendError
        If the one asked for is unknown or cannot run here.
    """
    asked = name or os.environ.get(VARIABLE) or None
    if asked is None:
        return next(b for b in map(_backend, NAMES) if isinstance(b, Backend))
    asked = "python" if asked == "torch" else asked
    if asked not in NAMES:
        raise BackendError(f"unknown backend {asked!r}; use {', '.join(NAMES)}")
    found = _backend(asked)
    if isinstance(found, str):
        raise BackendError(f"backend {asked!r} cannot code contexts: {found}")
    return found


@lru_cache(maxsize=3)
def _backend(name: str) -> Backend | str:
    """Return a backend, or why it cannot be used."""
    if name == "native":
        from tmcodec.fsq.native import NativeUnavailable
        from tmcodec.tokenfile.context import native

        try:
            native.load()
        except NativeUnavailable as error:
            return str(error)
        return Backend(name, native.code_chunk, native.undo_errors, native.code_bits)
    if name == "numba":
        if importlib.util.find_spec("numba") is None:
            return "numba is not installed"
        from tmcodec.tokenfile.context import numba_bits, numba_kernel

        return Backend(name, numba_kernel.code_chunk, numba_kernel.undo_errors, numba_bits.code_bits)
    from tmcodec.tokenfile.context import bits, heights, reference

    return Backend(name, reference.code_chunk, heights.undo_errors, bits.code_bits)
