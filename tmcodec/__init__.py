"""tmcodec: Earth-observation rasters to compact, georeferenced token files and back.

``import tmcodec`` loads nothing heavy; each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tmcodec.errors import TmcodecError

if TYPE_CHECKING:
    from tmcodec.codec.decode import decode as decode
    from tmcodec.codec.decode import decode_array as decode_array
    from tmcodec.codec.encode import encode as encode
    from tmcodec.codec.models import load_tokenizer as load_tokenizer
    from tmcodec.comparison import compare as compare
    from tmcodec.evaluation.run import evaluate as evaluate
    from tmcodec.generation.models import load_generator as load_generator
    from tmcodec.tokenfile import open as open
    from tmcodec.tokenfile import stack as stack
    from tmcodec.tokenfile import verify as verify

__version__ = "0.1.0"

_HOME = {
    "compare": "tmcodec.comparison",
    "decode": "tmcodec.codec.decode",
    "decode_array": "tmcodec.codec.decode",
    "encode": "tmcodec.codec.encode",
    "evaluate": "tmcodec.evaluation.run",
    "load_generator": "tmcodec.generation.models",
    "load_tokenizer": "tmcodec.codec.models",
    "open": "tmcodec.tokenfile",
    "stack": "tmcodec.tokenfile",
    "verify": "tmcodec.tokenfile",
}

__all__ = ["TmcodecError", "__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
