"""Say what is damaged in a token file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO

from tmcodec.errors import ChunkError, LimitExceededError, TruncatedFileError
from tmcodec.tokenfile.layer import MAX_PIXELS, Layer
from tmcodec.tokenfile.prelude import MAX_HEADER
from tmcodec.tokenfile.reader import TokenFile


@dataclass(frozen=True)
class Problem:
    """One damaged chunk, or (with chunk_row = -1) something about the whole file.

    Attributes
    ----------
    layer, time, chunk_row, chunk_col
        Its place.
    error
        Name of the error class.
    message
        What is wrong.
    """

    layer: str
    time: int
    chunk_row: int
    chunk_col: int
    error: str
    message: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes
    ----------
    ok
        Whether nothing is wrong.
    problems
        What is wrong.
    chunks
        How many chunks were checked.
    """

    ok: bool
    problems: list[Problem]
    chunks: int


def verify(
    source: str | os.PathLike[str] | IO[bytes], *, max_pixels: int = MAX_PIXELS, max_header: int = MAX_HEADER
) -> VerifyReport:
    """Check every chunk of a token file: checksum, coder, tokens, mask.

    Parameters
    ----------
    source, max_pixels, max_header
        As for `TokenFile.open`.

    Raises
    ------
    TokenFileError
        If the header itself is bad. A payload that is too short or too long is a problem of
        the report instead, which also names the chunks that are lost.
    OSError
        As from the builtin `open`, where the file cannot be opened.
    """
    problems: list[Problem] = []
    chunks = 0
    with TokenFile.open(source, max_pixels=max_pixels, max_header=max_header, salvage=True) as file:
        if file.size != file.expected_size:
            kind = "TruncatedFileError" if file.size < file.expected_size else "TrailingDataError"
            message = f"the file has {file.size} bytes, its header says {file.expected_size}"
            problems.append(Problem("", -1, -1, -1, kind, message))
        for layer in file.layers.values():
            chunks += layer.meta.chunks
            problems += _problems(layer)
    return VerifyReport(not problems, problems, chunks)


def _problems(layer: Layer) -> list[Problem]:
    """Return the damaged chunks of one layer; empty ones cannot be damaged and are skipped."""
    problems = []
    for time, row, col in layer.places():
        try:
            layer.check_chunk(time, row, col)
        except (ChunkError, TruncatedFileError, LimitExceededError) as error:
            problems.append(Problem(layer.meta.name, time, row, col, type(error).__name__, str(error)))
    return problems
