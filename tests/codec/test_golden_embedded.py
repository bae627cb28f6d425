"""Token files made with the embedded tokenizers decode alike for ever."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

import tmcodec
from tmcodec.cli.demo import SCENES
from tmcodec.codec.models import EMBEDDED, RETIRED
from tmcodec.errors import TokenizerNotFoundError
from tmcodec.modalities import MODALITIES

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from make_embedded import folder_of, patch_means, synthetic  # noqa: E402

EXPECTED = {
    name: means
    for listing in GOLDEN.glob("mini-v*/expected.json")
    for name, means in json.loads(listing.read_text()).items()
}


def test_every_tokenizer_has_a_golden_file() -> None:
    assert set(EXPECTED) == set(EMBEDDED) | RETIRED


@pytest.mark.parametrize("name", sorted(RETIRED))
def test_files_of_replaced_tokenizers_can_be_read(name: str) -> None:
    path = folder_of(name) / f"{name}.tmc"
    with tmcodec.open(path) as f:
        (layer,) = (f[key] for key in f)
        tokens = layer.tokens()
        assert layer.tokenizer == name
    assert tokens.shape == (6, 8)
    assert tmcodec.verify(path).ok
    with pytest.raises(TokenizerNotFoundError, match="was replaced"):
        tmcodec.decode_array(path)


@pytest.mark.parametrize("name", list(EMBEDDED))
def test_golden_files_decode_to_the_same_picture(name: str) -> None:
    row = MODALITIES[EMBEDDED[name].modality]
    values, profile = tmcodec.decode_array(folder_of(name) / f"{name}.tmc")
    assert profile["crs"] == "EPSG:32633"
    assert profile["transform"] == (10, 0, 399960, 0, -10, 5000040)
    tolerance = 0.02 if row.categorical else 0.001 * max(row.std)  # float32 sums on another machine
    np.testing.assert_allclose(np.array(patch_means(values)), np.array(EXPECTED[name]), atol=tolerance)


@pytest.mark.parametrize("name", list(EMBEDDED))
def test_the_same_raster_still_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    row = MODALITIES[EMBEDDED[name].modality]
    offset = "present" if row.optical else "auto"
    profile = {"descriptions": row.bands}
    path = tmp_path / "a.tmc"
    tmcodec.encode(
        synthetic(row), path, profile=profile, modality=row.name, tokenizer=name, s2_offset=offset, exact=True
    )
    with tmcodec.open(path) as a, tmcodec.open(folder_of(name) / f"{name}.tmc") as b:
        mine, theirs = a[row.name].tokens(), b[row.name].tokens()
    assert mine.shape == (6, 8)
    # On another processor a latent at a decision edge may fall to the other side.
    assert np.count_nonzero(mine != theirs) <= 1


def test_the_demo_scene_beats_its_floor(tmp_path: Path) -> None:
    # The k-means floor of this chip by benchmarks/floors.py, at the same rate without a network.
    floor = 35.26
    with rasterio.open(SCENES["S2L2A"]) as src:
        original = src.read().astype(np.float64)
    tmcodec.encode(SCENES["S2L2A"], tmp_path / "a.tmc")
    got, _ = tmcodec.decode_array(tmp_path / "a.tmc")
    assert 10 * np.log10(10000**2 / np.square(got - original).mean()) > floor
