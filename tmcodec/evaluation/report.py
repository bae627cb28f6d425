"""What an evaluation found, as plain data: to JSON and back."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tmcodec.errors import EvaluationError
from tmcodec.evaluation.intervals import Interval, interval

SCHEMA = "tmcodec-evaluation/1"
EQUAL = 1.0
"""Factor of a baseline that has exactly the token file's size."""


@dataclass(frozen=True)
class Method:
    """One way to a picture.

    Attributes
    ----------
    key, title
        Unique name, and the one for people.
    kind
        ``"tokenizer"``, ``"codec"`` or ``"floor"``.
    tokenizer
        The tokenizer; of a baseline, the one whose files give its size.
    baseline
        Key of the baseline, ``""`` for tokenizers.
    steps
        Sampling steps; 0 for baselines.
    factor
        Size over that of the token file: above 1 only for the rate-distortion plot.
    headers
        ``"counted"``, ``"free"`` (the codec's own markers forgiven) or ``"none"`` (no file at all).
    """

    key: str
    title: str
    kind: str
    tokenizer: str
    baseline: str = ""
    steps: int = 0
    factor: float = EQUAL
    headers: str = "counted"


@dataclass(frozen=True)
class SceneFacts:
    """One raster: name, size in pixels, share of valid values, raw bytes, percent beyond ±1 sigma."""

    name: str
    width: int
    height: int
    valid: float
    raw_bytes: int
    beyond_sigma: float | None


@dataclass(frozen=True)
class Entry:
    """One scene by one method.

    Attributes
    ----------
    scene, method
        Names.
    size_limit
        Bytes of the token file, which a baseline must not exceed; None for tokenizers.
    bytes, payload_bytes
        Of the file; of its chunks alone, tokens and masks. None where there is no file.
    forgiven_bytes
        Bytes of markers that were not counted, included in `bytes`.
    setting
        What the search under the size chose.
    encode_seconds, decode_seconds
        Wall clock, files included; None for baselines.
    values, bands
        Measures of the whole and of each band or class; empty where nothing fits the size.
    note
        Why there is nothing.
    """

    scene: str
    method: str
    size_limit: int | None = None
    bytes: int | None = None
    payload_bytes: int | None = None
    forgiven_bytes: int = 0
    setting: str = ""
    encode_seconds: float | None = None
    decode_seconds: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    bands: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class TokenUse:
    """How a tokenizer used its codebook on all scenes together.

    Attributes
    ----------
    tokenizer, weights_sha256
        Which.
    tokens, codebook, used
        Tokens seen, size of the codebook, how many different ones.
    entropy, perplexity
        Of the tokens' frequencies, in bits, and 2 to that power. At most log2(`tokens`).
    bits
        Stored for each token: chunks alone, tokens and masks, and with the whole file.
    file_bits
        The same with the whole file.
    """

    tokenizer: str
    weights_sha256: str
    tokens: int
    codebook: int
    used: int
    entropy: float
    perplexity: float
    bits: float
    file_bits: float


@dataclass(frozen=True)
class Report:
    """Everything that an evaluation found.

    Attributes
    ----------
    modality, units, peak
        What was compared; peak of PSNR (None: each scene's own range, or classes).
    created
        When, ISO 8601 in UTC.
    settings, versions, machine
        How, with which packages, on what.
    methods, scenes, entries, token_use
        See the classes.
    skipped
        ``{file: reason}`` of rasters that could not be used.
    notes
        What was left out, and why.
    """

    modality: str
    units: str
    peak: float | None
    created: str
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    methods: tuple[Method, ...]
    scenes: tuple[SceneFacts, ...]
    entries: tuple[Entry, ...]
    token_use: tuple[TokenUse, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    # ----------------------------------------------------------------------- looking things up

    def of(self, method: str) -> list[Entry]:
        """Return the entries of a method that have values, in the order of the scenes."""
        return [e for e in self.entries if e.method == method and e.values]

    def left_out(self, measure: str) -> set[str]:
        """Return the scenes where a measure is infinite for some method, as an exact picture's PSNR is.

        They count in no method's mean, and in no difference: a scene that counted for one method and not for
        the other would speak for either of them.
        """
        return {e.scene for e in self.entries if math.isinf(e.values.get(measure, 0.0))}

    def infinite(self, method: str, measure: str) -> int:
        """Return on how many scenes a method's measure is infinite."""
        return sum(math.isinf(e.values.get(measure, 0.0)) for e in self.of(method))

    def mean(self, method: str, measure: str) -> Interval:
        """Return a measure's mean over scenes, without those of `left_out`."""
        out = self.left_out(measure)
        return interval(
            [e.values[measure] for e in self.of(method) if measure in e.values and e.scene not in out]
        )

    def difference(self, first: str, second: str, measure: str) -> Interval:
        """Return the mean of `first` minus `second` over the scenes that both have, pair by pair.

        Scenes of `left_out` do not count.
        """
        out = self.left_out(measure)
        other = {e.scene: e.values.get(measure, math.nan) for e in self.of(second) if e.scene not in out}
        return interval(
            [e.values[measure] - other[e.scene] for e in self.of(first)
             if measure in e.values and e.scene in other]
        )

    def tokenizer_methods(self, name: str | None = None) -> list[Method]:
        """Return the tokenizers' methods, of one tokenizer or of all; a report has one at least."""
        return [m for m in self.methods if m.kind == "tokenizer" and name in (None, m.tokenizer)]

    @property
    def score(self) -> str:
        """The measure that decides: PSNR, or accuracy for classes."""
        return "accuracy" if self.units == "class" else "psnr"

    def best_codec(self, tokenizer: str, headers: str = "counted") -> Method | None:
        """Return the codec of best score at the tokenizer's file size, over the scenes where it fits.

        A codec that fits more scenes comes before one that fits fewer; at equal means, the one that is exact
        on more scenes.
        """
        rivals = [
            m for m in self.methods
            if m.kind == "codec" and (m.tokenizer, m.headers, m.factor) == (tokenizer, headers, EQUAL)
            and self.of(m.key)
        ]
        if not rivals:
            return None

        def rank(method: Method) -> tuple[int, float, int]:
            mean = self.mean(method.key, self.score).mean
            exact = self.infinite(method.key, self.score)
            return len(self.of(method.key)), -math.inf if mean is None else mean, exact

        return max(rivals, key=rank)

    # ----------------------------------------------------------------------- plain data

    def summary(self) -> list[dict[str, Any]]:
        """Return ``{method, measure, mean, low, high, count, infinite}`` of everything.

        `count` scenes are in the mean; `infinite` ones, where the method's measure is infinite, are not.
        """
        rows = []
        for method in self.methods:
            measures = dict.fromkeys(m for e in self.of(method.key) for m in e.values)
            rows += [
                {"method": method.key, "measure": m, **asdict(self.mean(method.key, m)),
                 "infinite": self.infinite(method.key, m)}
                for m in measures
            ]
        return rows

    def differences(self) -> list[dict[str, Any]]:
        """Return differences of scores over the scenes that both methods have.

        Each tokenizer at its first step count against its other ones, against its baselines at equal size,
        and against the other tokenizers at theirs.
        """
        steps = self.tokenizer_methods()[0].steps
        rows = []
        for first in (m for m in self.tokenizer_methods() if m.steps == steps):
            for second in self.methods:
                own = second.tokenizer == first.tokenizer and second.factor == EQUAL
                other = second.kind == "tokenizer" and second.steps == steps
                found = self.difference(first.key, second.key, self.score)
                if second is not first and (own or other) and found.count:
                    rows.append({"method": first.key, "against": second.key, "measure": self.score,
                                 **asdict(found)})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON; what is infinite or undefined is None."""
        plain = {"schema": SCHEMA, **asdict(self), "summary": self.summary()}
        cleaned: dict[str, Any] = _finite({**plain, "differences": self.differences()})
        return cleaned

    def to_json(self) -> str:
        """Return `to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Report:
        """Return the report that `to_dict` made; summary and differences are computed again.

        Raises
        ------
        EvaluationError
            If it is none, or scenes in it share a name.
        """
        if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
            raise EvaluationError(f"not a report of schema {SCHEMA}; evaluate again")
        own = {k: v for k, v in plain.items() if k not in ("schema", "summary", "differences")}
        lists: dict[str, type] = {
            "methods": Method, "scenes": SceneFacts, "entries": Entry, "token_use": TokenUse,
        }
        try:
            for key, kind in lists.items():
                own[key] = tuple(kind(**_numbered(item)) for item in own[key])
            report = cls(**{**own, "notes": tuple(own["notes"])})
            name, count = Counter(s.name for s in report.scenes).most_common(1)[0]
        except (KeyError, TypeError, AttributeError, IndexError) as err:
            raise EvaluationError(f"the report is damaged ({err}); evaluate again") from err
        if count > 1:  # differences are taken by name
            raise EvaluationError(f"the report has {count} scenes of the name {name}; evaluate again")
        return report

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read ``report.json``, or a folder with one.

        Raises
        ------
        EvaluationError
            If it is no report.
        OSError
            If it cannot be read.
        """
        file = Path(path)
        file = file / "report.json" if file.is_dir() else file
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except RecursionError as err:
            raise EvaluationError(f"{file}: nested too deeply for a report; write it again") from err
        except ValueError as err:
            raise EvaluationError(f"{file}: {err}") from err


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbered(item: dict[str, Any]) -> dict[str, Any]:
    """Give values their infinity back: only an identical picture's PSNR was None."""
    values = item.get("values")
    if not isinstance(values, dict):
        return item
    return {**item, "values": {k: math.inf if v is None else v for k, v in values.items()},
            "bands": {b: {k: math.inf if v is None else v for k, v in m.items()}
                      for b, m in item["bands"].items()}}
