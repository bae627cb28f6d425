"""Each of the six tokenizers, TerraTorch's beside ours."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from parity_helpers import Pair, as_checkpoint, build_official, import_terratorch

from tmcodec.codec.terramind import TerraMindTokenizer
from tmcodec.codec.terramind_models import OFFICIAL


@pytest.fixture(scope="session")
def terratorch_tokenizers() -> Any:
    """Return TerraTorch's module of tokenizers, imported once."""
    module = import_terratorch()
    assert torch.get_float32_matmul_precision() == "highest"
    return module


@pytest.fixture(scope="module", params=[n for n in OFFICIAL if n.startswith("terramind-v1-")])
def pair(request: pytest.FixtureRequest, terratorch_tokenizers: Any) -> Iterator[Pair]:
    """Yield each of the six tokenizers, TerraTorch's and ours, with the same random weights."""
    name: str = request.param
    official = build_official(terratorch_tokenizers, name)
    ours = TerraMindTokenizer(as_checkpoint(name, official.state_dict()), device="cpu", precision="fp32")
    yield Pair(name, official, ours)
    del official, ours
    gc.collect()
