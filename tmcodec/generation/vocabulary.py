"""The words of coordinates and captions, as TerraMind's text tokenizers have them.

The vocabularies are files on the Hub in the format of the ``tokenizers`` library. Coordinates are rounded to
a quarter of a degree (half to even) and written ``lat=47.25 lon=8.50 [EOS]``; captions end in
``[S_1] [EOS]``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmcodec.codec.store import home
from tmcodec.errors import MissingDependencyError, VocabularyError

MAX_BYTES = 64 << 20
"""Largest vocabulary file that is read; the official ones have about a megabyte."""


@dataclass(frozen=True)
class OfficialVocabulary:
    """One vocabulary on the Hub; attributes as `tmcodec.codec.terramind_models.OfficialModel`."""

    name: str
    repo: str
    filename: str
    gated: bool
    modality: str


VOCABULARIES = {
    v.name: v
    for v in (
        OfficialVocabulary(
            "terramind-v1-coords", "ibm-esa-geospatial/TerraMind-1.0-Tokenizer-Coords", "config.json",
            gated=False, modality="coords",
        ),
        OfficialVocabulary(
            "terramind-v01-caption", "FAST-EO/TerraMind-v0.1-Tokenizer-Text", "config.json",
            gated=True, modality="caption",
        ),
    )
}  # fmt: skip


def vocabulary_path(name: str) -> Path:
    """Return where a vocabulary lies on this computer, or would lie."""
    return home() / "weights" / f"{name}.json"


class Vocabulary:
    """Words of a generator's sequences; the files are read when they are first needed.

    Parameters
    ----------
    paths
        File of each modality, ``"coords"`` or ``"caption"``; None takes those pulled or imported.
    """

    def __init__(self, paths: dict[str, Path] | None = None) -> None:
        self._paths = paths
        self._read: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def encode(self, modality: str, value: tuple[float, float] | str) -> list[int]:
        """Return the words of (longitude, latitude) or of a caption.

        Raises
        ------
        VocabularyError
            If the vocabulary is not there, damaged, or lacks its marks.
        MissingDependencyError
            If the ``tokenizers`` library is not installed.
        """
        tok = self._tokenizer(modality)
        if isinstance(value, str):
            ids = tok.encode(f"{value} [S_1]").ids
            return [*ids, self.mark(modality, "[EOS]")]
        return list(tok.encode(coordinates_text(*value)).ids)

    def decode(self, modality: str, words: Sequence[int]) -> str:
        """Return the text of generated words, up to the first stop mark."""
        stops = {self.mark(modality, "[S_2]"), self.mark(modality, "[EOS]")}
        kept: list[int] = []
        for word in words:
            if word in stops:
                break
            if word != self.mark(modality, "[S_1]"):
                kept.append(word)
        return str(self._tokenizer(modality).decode(kept, skip_special_tokens=False))

    def coordinates(self, words: Sequence[int]) -> tuple[float, float] | None:
        """Return (longitude, latitude) of generated words, or None where they are no coordinates."""
        text = self.decode("coords", words)
        found = re.search(r"lat=\s*(-?[0-9.]+)\s+lon=\s*(-?[0-9.]+)", text)
        try:
            return (float(found[2]), float(found[1])) if found else None
        except ValueError:
            return None

    def mark(self, modality: str, name: str) -> int:
        """Return the number of a mark such as ``"[S_1]"``.

        Raises
        ------
        VocabularyError
            If the vocabulary has none of that name.
        """
        number = self._tokenizer(modality).token_to_id(name)
        if number is None:
            raise VocabularyError(f"the vocabulary of {modality} has no {name}; import TerraMind's own")
        return int(number)

    def _tokenizer(self, modality: str) -> Any:
        with self._lock:
            if modality not in self._read:
                self._read[modality] = read_vocabulary(self._path(modality))
            return self._read[modality]

    def _path(self, modality: str) -> Path:
        if self._paths is not None:
            if modality in self._paths:
                return self._paths[modality]
            raise VocabularyError(f"no vocabulary of {modality} was given")
        for official in VOCABULARIES.values():
            if official.modality == modality:
                path = vocabulary_path(official.name)
                if path.is_file():
                    return path
                raise VocabularyError(
                    f"the words of {modality} are not on this computer; run `tmcodec models pull "
                    f"{official.name}`, or `tmcodec models import {official.filename} --as {official.name}`"
                )
        raise VocabularyError(f"{modality} has no vocabulary; coords and caption have")


def coordinates_text(lon: float, lat: float) -> str:
    """Return coordinates as TerraMind writes them.

    >>> coordinates_text(8.54, 47.38)
    'lat=47.50 lon=8.50 [EOS]'
    """
    import numpy as np  # not at the top: `tmcodec models` comes by here

    # In float32 and half to even, as TerraTorch; a negative zero keeps its sign.
    quarters = np.round(np.array([lat, lon], np.float32) * 4) / 4
    return "lat={:.2f} lon={:.2f} [EOS]".format(*quarters)


def read_vocabulary(path: Path) -> Any:
    """Read a file of the ``tokenizers`` library.

    Raises
    ------
    VocabularyError
        If it is none, or larger than `MAX_BYTES`.
    MissingDependencyError
        If the library is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as err:
        raise MissingDependencyError(
            "coordinates and captions need tokenizers: pip install 'tmcodec[text]'"
        ) from err
    try:
        if path.stat().st_size > MAX_BYTES:
            raise VocabularyError(f"{path}: larger than a vocabulary; give TerraMind's config.json")
        text = path.read_text(encoding="utf-8")
        return Tokenizer.from_str(text)
    except VocabularyError:
        raise
    except Exception as err:  # the library raises plain Exception
        reason = (str(err).splitlines() or [type(err).__name__])[0]
        raise VocabularyError(
            f"{path}: not a vocabulary of the tokenizers library ({reason}); fetch or import it again"
        ) from err
