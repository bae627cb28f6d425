"""The best that a classical codec makes of a picture in a given number of bytes.

Side information counts: mean, axes and scale of the principal components, and one byte for how many there are
and by how much they were reduced. What is invalid is known to all codecs for free, as the token file's mask
tells it to the tokenizer.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tmcodec.errors import MissingDependencyError
from tmcodec.evaluation.blocks import enlarge, majority, patch_means, repeat
from tmcodec.evaluation.codecs import Codec
from tmcodec.evaluation.components import Components, fit_components
from tmcodec.evaluation.scenes import Scene
from tmcodec.modalities import Modality

Float = npt.NDArray[np.float32]
Byte = npt.NDArray[np.uint8]

COUNTS = (1, 2, 3)
"""Numbers of principal components that are tried."""

REDUCED = (16, 8, 4, 2, 1)
"""Factors by which the components may be reduced before coding; decoding enlarges them bicubically. Finer
ones are tried until the error grows."""

CLASS_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
"""Squares that a class map may be reduced to by majority, pixels on a side."""

BLOCK_SIDES = (4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 64)
"""Blocks whose means may be stored, pixels on a side."""

_CLOSE = 0.985  # of the size: nearer is not worth another round


@dataclass(frozen=True)
class Found:
    """A picture from a file of a known size.

    Attributes
    ----------
    values
        ``(C, H, W)``, physical units.
    bytes
        Of file and side information, what was forgiven included.
    forgiven
        Bytes of the codec's own markers that were not counted.
    setting
        What the search chose, for people.
    """

    values: Float = field(repr=False)
    bytes: int
    forgiven: int
    setting: str


@dataclass(frozen=True)
class _Trial:
    size: int
    error: float
    data: bytes = field(repr=False)


class PictureSearch:
    """Settings of one codec on one scene with continuous values; what was tried is kept for the next size."""

    def __init__(self, scene: Scene, modality: Modality, codec: Codec) -> None:
        self.scene, self.modality, self.codec = scene, modality, codec
        self._parts: dict[tuple[int, int], tuple[Components, Float]] = {}
        self._tried: dict[tuple[int, int, float], _Trial] = {}
        self._empty: dict[tuple[int, int], int] = {}

    def best(self, size: int, free_headers: bool = False) -> Found | None:
        """Return the picture of least squared error in at most `size` bytes; None where nothing fits.

        With `free_headers`, the bytes that the codec needs for an empty picture of the same shape are not
        counted.
        """
        winner: tuple[_Trial, int, int, int] | None = None
        for count in (c for c in COUNTS if c <= len(self.scene.values)):
            coarser = math.inf
            for reduced in REDUCED:
                spare = self.empty_bytes(count, reduced) if free_headers else 0
                trial = self._fit(count, reduced, size + spare)
                error = math.inf if trial is None else trial.error
                if error > coarser:
                    break
                coarser = error
                if trial is not None and (winner is None or error < winner[0].error):
                    winner = trial, count, reduced, spare
        if winner is None:
            return None
        trial, count, reduced, spare = winner
        setting = _plural(count, "component") + (f", reduced by {reduced}" if reduced > 1 else "")
        return Found(self._picture(count, reduced, trial.data), trial.size, spare, setting)

    def empty_bytes(self, count: int, reduced: int) -> int:
        """Return the bytes of a picture without content: the codec's markers."""
        if (count, reduced) not in self._empty:
            planes = self._planes(count, reduced)[1]
            self._empty[count, reduced] = len(self.codec.pack(np.zeros_like(planes), 0.0))
        return self._empty[count, reduced]

    def _fit(self, count: int, reduced: int, size: int) -> _Trial | None:
        """Bisect for the quality; files grow with it, nearly always."""
        best = self._try(count, reduced, 0.0)
        if best is None or best.size > size:
            return None
        low, high = 0.0, 1.0
        for _ in range(self.codec.rounds):
            middle = (low + high) / 2
            trial = self._try(count, reduced, middle)
            if trial is not None and trial.size <= size:
                low, best = middle, min(best, trial, key=lambda t: t.error)
                if trial.size >= _CLOSE * size:
                    break
            else:
                high = middle
        return best

    def _try(self, count: int, reduced: int, place: float) -> _Trial | None:
        key = (count, reduced, place)
        if key not in self._tried:
            parts, planes = self._planes(count, reduced)
            try:
                data = self.codec.pack(planes, place)
            except MissingDependencyError:
                raise
            except Exception:  # every codec has its own classes, and largest and smallest pictures
                return None
            error = self._error(self._picture(count, reduced, data))
            self._tried[key] = _Trial(len(data) + parts.bytes + 1, error, data)
        return self._tried[key]

    def _planes(self, count: int, reduced: int) -> tuple[Components, Float]:
        if (count, reduced) not in self._parts:
            parts = fit_components(self.scene.filled, self.scene.valid, count)
            planes = parts.planes(self.scene.filled)
            self._parts[count, reduced] = parts, patch_means(planes, reduced) if reduced > 1 else planes
        return self._parts[count, reduced]

    def _picture(self, count: int, reduced: int, data: bytes) -> Float:
        parts, planes = self._planes(count, reduced)
        height, width = planes.shape[1:]
        decoded = self.codec.unpack(data, (count, height, width))
        whole = enlarge(decoded, self.scene.values.shape, reduced)
        return np.clip(parts.picture(whole), *self.modality.valid_range)

    def _error(self, values: Float) -> float:
        return float(np.square(values - self.scene.filled)[self.scene.valid].mean(dtype=np.float64))


class ClassSearch:
    """The finest class map that a lossless mode stores in a given size."""

    def __init__(self, scene: Scene, modality: Modality, pack: Callable[[Byte], bytes]) -> None:
        self.scene, self.classes, self.pack = scene, len(modality.classes), pack
        self.ids = scene.filled[0].round().clip(0, self.classes - 1).astype(np.uint8)
        self._sizes: dict[int, int] = {}

    def best(self, size: int, free_headers: bool = False) -> Found | None:
        """Return the map of the smallest squares that fits; None where not even the largest do."""
        for side in CLASS_SIDES:
            small = majority(self.ids, side, self.classes)
            spare = len(self.pack(np.zeros_like(small))) if free_headers else 0
            if side not in self._sizes:
                self._sizes[side] = len(self.pack(small)) + 1
            if self._sizes[side] <= size + spare:
                big = repeat(small, side, self.ids.shape)[None].astype(np.float32)
                return Found(big, self._sizes[side], spare, f"lossless, majority of {side} x {side} pixels")
        return None


class BlockSearch:
    """Means of blocks as 8-bit values, deflated where that helps, interpolated bicubically."""

    def __init__(self, scene: Scene, modality: Modality) -> None:
        self.scene, self.modality = scene, modality
        self._tried: list[tuple[int, float, int, int]] | None = None

    def best(self, size: int, free_headers: bool = False) -> Found | None:
        """Return the picture of least squared error; there are no headers to be free of."""
        fitting = [t for t in self._trials() if t[0] <= size]
        if not fitting:
            return None
        count_bytes, _, count, side = min(fitting, key=lambda t: t[1])
        setting = f"{_plural(count, 'component')}, {side} x {side} pixels, 8 bits"
        return Found(self._make(count, side)[1], count_bytes, 0, setting)

    def _trials(self) -> list[tuple[int, float, int, int]]:
        if self._tried is None:
            self._tried = list(self._all())
        return self._tried

    def _all(self) -> Iterator[tuple[int, float, int, int]]:
        for count in (c for c in COUNTS if c <= len(self.scene.values)):
            for side in BLOCK_SIDES:
                size, values = self._make(count, side)
                error = np.square(values - self.scene.filled)[self.scene.valid].mean(dtype=np.float64)
                yield size, float(error), count, side

    def _make(self, count: int, side: int) -> tuple[int, Float]:
        parts = fit_components(self.scene.filled, self.scene.valid, count)
        means = patch_means(parts.planes(self.scene.filled), side)
        stored = np.round(means * 255).astype(np.uint8)
        differences = np.diff(stored, axis=2, prepend=np.uint8(0))  # what deflate can use
        packed = min(stored.size, *(len(zlib.compress(a.tobytes(), 9)) for a in (stored, differences)))
        decoded = stored.astype(np.float32) / np.float32(255)
        back = parts.picture(enlarge(decoded, self.scene.values.shape, side))
        return packed + parts.bytes + 1, np.clip(back, *self.modality.valid_range)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
