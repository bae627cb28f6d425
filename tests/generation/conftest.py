"""A generator so small that a test can afford it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from generation_helpers import tiny_generator, tokenizer_refs

from tmcodec.generation.weights import save_generator


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the weights file of a random generator over tiny tokenizers."""
    path = tmp_path_factory.mktemp("generator") / "tiny-any2any.safetensors"
    refs = tokenizer_refs({m: tiny_tokenizer(m) for m in ("S2L2A", "DEM", "LULC")})
    save_generator(path, tiny_generator().net, "tiny-any2any", refs)
    return path
