"""What encode and decode report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class EncodeReport:
    """Result of `tmcodec.encode`.

    Attributes
    ----------
    path
        The token file, or ``"<file object>"``.
    modality, tokenizer
        Names.
    width, height, bands
        Of the raster, in pixels.
    tokens
        Number of tokens stored; chunks without any valid pixel have none.
    raw_bytes
        ``width * height * bands * itemsize``.
    file_bytes, ratio, bits_per_token
        Of the whole token file, metadata and masks included.
    s2_offset
        What was decided: ``"present"``, ``"absent"`` or ``""``.
    seconds, timings
        Wall clock, and the share of each stage (stages overlap).
    warnings
        What the raster has and the file has not, one sentence each.
    """

    path: str
    modality: str
    tokenizer: str
    width: int
    height: int
    bands: int
    tokens: int
    raw_bytes: int
    file_bytes: int
    s2_offset: str
    seconds: float
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Raw bytes over file bytes."""
        return self.raw_bytes / self.file_bytes

    @property
    def bits_per_token(self) -> float:
        """Bits of the file for each stored token."""
        return 8 * self.file_bytes / max(self.tokens, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {**asdict(self), "ratio": self.ratio, "bits_per_token": self.bits_per_token}


@dataclass(frozen=True)
class DecodeReport:
    """Result of `tmcodec.decode`.

    Attributes
    ----------
    path
        The raster.
    layer, modality, tokenizer
        Names; the tokenizer is the one whose decoder ran.
    tokens_of
        Name of the tokenizer that made the tokens: another one where the decoder was retrained.
    width, height
        Of the raster written, in pixels.
    steps, seed, sampler
        What was used.
    lost_chunks
        Damaged chunks that salvage turned to nodata.
    seconds, timings
        Wall clock, and the share of each stage (stages overlap).
    """

    path: str
    layer: str
    modality: str
    tokenizer: str
    tokens_of: str
    width: int
    height: int
    steps: int
    seed: int
    sampler: str
    lost_chunks: int
    seconds: float
    timings: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return asdict(self)


class Stopwatch:
    """Adds up wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - begin

    @property
    def seconds(self) -> float:
        """Seconds since the watch was made."""
        return time.perf_counter() - self._start
