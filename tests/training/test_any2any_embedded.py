"""The embedded generator: identity, size, whose tokens it speaks, and that it has learned something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from tmcodec.cli.demo import SCENES
from tmcodec.codec.models import load_tokenizer
from tmcodec.generation.models import EMBEDDED_GENERATORS, LoadedGenerator, load_generator
from tmcodec.modalities import MODALITIES

NAME = "mini-any2any-v1"
GOLDEN = Path(__file__).parent.parent / "golden" / "generators.json"


@pytest.fixture(scope="module")
def generator() -> LoadedGenerator:
    """Return the embedded generator on the CPU."""
    return load_generator(NAME, "cpu")


def test_its_weights_never_change(generator: LoadedGenerator) -> None:
    # Files say which generator made them: a new hash needs a new name.
    assert generator.sha256.hex() == json.loads(GOLDEN.read_text())[NAME]


def test_it_is_small() -> None:
    assert EMBEDDED_GENERATORS[NAME].stat().st_size <= 8_900_000


def test_it_speaks_the_tokens_of_embedded_tokenizers(generator: LoadedGenerator) -> None:
    assert set(generator.tokenizers) == {"S2L2A", "S2RGB", "S1RTC", "DEM", "NDVI", "LULC"}
    for modality, ref in generator.tokenizers.items():
        tok = load_tokenizer(ref.name, "cpu")
        assert (tok.modality.name, tok.sha256) == (modality, ref.sha256)


def test_ndvi_follows_from_sentinel_2(generator: LoadedGenerator) -> None:
    with rasterio.open(SCENES["S2L2A"]) as dataset:
        values = dataset.read()[:, :224, :224].astype(np.float32) + 1000  # the file has no offset
        bands = [str(d) for d in dataset.descriptions]
    red, nir = (np.maximum(values[bands.index(b)] - 1000, 0) for b in ("B04", "B08"))
    truth = (nir - red) / np.maximum(nir + red, 1)
    order = [bands.index(b) for b in MODALITIES["S2L2A"].bands]
    tok = load_tokenizer(generator.tokenizers["S2L2A"].name, "cpu")
    tokens = tok.encode(torch.from_numpy(values[order])[None])
    out = generator.generate({"S2L2A": tokens}, ["NDVI"], seed=0, decode=True)
    made = out.rasters["NDVI"][0, 0].numpy()
    assert np.corrcoef(made.ravel(), truth.ravel())[0, 1] > 0.5
    # Nearer than the best constant.
    assert np.mean((made - truth) ** 2) < truth.var()
