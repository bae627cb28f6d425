"""Where imported weights lie on this computer. No torch here."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Return ``$TMCODEC_HOME``, else ``tmcodec`` in the user's cache folder."""
    chosen = os.environ.get("TMCODEC_HOME")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tmcodec"


def stored_path(name: str) -> Path:
    """Return where the weights of that name lie, or would lie."""
    return home() / "weights" / f"{name}.safetensors"
