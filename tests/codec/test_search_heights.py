"""The search for heights: as near as least squares comes, in steps that the error bears."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

import tmcodec
from tmcodec.codec.models import default_model
from tmcodec.codec.search import search
from tmcodec.codec.search.heights import Ground
from tmcodec.codec.tokenizer import MiniTokenizer
from tmcodec.networks.height import HeightDecoder
from tmcodec.tokenfile.context.coder import context_encode
from tmcodec.tokenfile.context.heights import number_to_reflected, reflected_to_number


@pytest.fixture(scope="module")
def tok() -> MiniTokenizer:
    found = tmcodec.load_tokenizer(default_model("DEM"), "cpu")
    assert isinstance(found, MiniTokenizer)
    return found


@pytest.fixture
def decoder(tok: MiniTokenizer, monkeypatch: pytest.MonkeyPatch) -> HeightDecoder:
    """Return a decoder in single precision that only interpolates."""
    monkeypatch.setattr("tmcodec.codec.search.heights.has_bf16", lambda device: False)
    found = tok.net.decoder
    assert isinstance(found, HeightDecoder)

    def nothing(cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, cols = cells.shape[1:3]
        return torch.zeros(len(cells), 1, 16 * rows, 16 * cols), torch.zeros(1)

    monkeypatch.setattr(found.detail, "paint", nothing)
    return found


def mountains(rows: int, cols: int, seed: int = 0, high: float = 400.0) -> np.ndarray:
    """Return rough heights ``(1, 16 rows, 16 cols)`` in metres: noise of falling power."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: 16 * rows, : 16 * cols] / 16
    total = np.full(y.shape, 1500.0)
    for octave in range(1, 7):
        for a, b, c in rng.normal(0, 0.35 * 1.7**octave, (6, 3)):
            total += high / 2.2**octave * np.sin(a * y + b * x + c)
    return total[None].astype(np.float32)


def encoded(tok: MiniTokenizer, picture: np.ndarray) -> np.ndarray:
    return tok.encode(torch.from_numpy(picture)[None])[0].numpy()


def error_of(tok: MiniTokenizer, tokens: np.ndarray, picture: np.ndarray) -> float:
    decoded = tok.decode(torch.from_numpy(tokens)[None])[0].numpy()
    return float(np.square(decoded - picture).mean())


def size_of(tok: MiniTokenizer, tokens: np.ndarray) -> int:
    coded = context_encode(tokens, tok.levels, tok.sha256)
    assert coded is not None
    return len(coded)


def everything(picture: np.ndarray) -> np.ndarray:
    return np.ones(picture.shape, np.bool_)


def test_heights_descend_to_the_least_squares(decoder: HeightDecoder) -> None:
    truth = torch.from_numpy(mountains(7, 9))[None]
    ground = Ground(decoder, truth, torch.ones_like(truth, dtype=torch.bool))
    start = torch.nn.functional.avg_pool2d(truth, 16)
    with torch.no_grad():
        weights = ground.weights(ground.error(start))
    # What only interpolates is linear: its matrix, column by column, and the best heights by LAPACK.
    unit = torch.eye(63).reshape(63, 1, 7, 9)
    matrix = torch.cat([decoder.draw(one[None])[0].reshape(1, -1) for one in unit]).T.double().numpy()
    counts = np.sqrt(np.kron(weights[0, 0].double().numpy(), np.ones((16, 16)))).ravel()
    heights = truth.double().numpy().ravel()
    best, *_ = np.linalg.lstsq(matrix * counts[:, None], heights * counts, rcond=None)
    least = float(np.square((matrix @ best - heights) * counts).sum())
    with torch.no_grad():
        found = ground.descend(start, weights, 60)
        before, after = (float((weights * ground.error(h)).sum()) for h in (start, found))
    assert least < 0.9 * before
    assert least <= after * (1 + 1e-6)
    assert after - least < 0.02 * (before - least)


def test_errors_count_by_themselves_and_beside_those_around(decoder: HeightDecoder) -> None:
    truth = torch.zeros(1, 1, 48, 64)
    ground = Ground(decoder, truth, torch.ones_like(truth, dtype=torch.bool))
    error = torch.ones(1, 1, 3, 4)
    error[..., 3] = 100.0
    # Means around, the border repeated: 1, 1, (2 + 100) / 3, (1 + 200) / 3; the mean of all is 25.75.
    expected = (1 / 25.75 + 1 / torch.tensor([1, 1, 34, 67])) / 2
    torch.testing.assert_close(ground.weights(error), expected.expand(1, 1, 3, 4))


def test_steps_follow_from_the_error_and_the_price(decoder: HeightDecoder) -> None:
    truth = torch.zeros(1, 1, 16 * 8, 16 * 8)
    ground = Ground(decoder, truth, torch.ones_like(truth, dtype=torch.bool))
    squares = torch.full((1, 1, 8, 8), 30.0**2 * 256)
    squares[..., :, 4:] = 3.0**2 * 256
    middle = int(decoder.scale.to_level(torch.tensor(1000.0)))
    numbers = torch.full((1, 1, 8, 8), middle)
    level = float(torch.diff(decoder.scale.to_height(torch.tensor([middle - 1, middle + 1])))) / 2
    steps = ground.steps(numbers, squares, 0.05)[0, 0]

    def nearest(square: float) -> float:
        return 2.0 ** round(math.log2(math.sqrt(12 * 0.05 / math.log(4) * square) / level))

    # Left: the error everywhere, (30^2 + 3^2) / 2. Right, away from the border: four times the error around.
    assert steps[0, 0] == nearest((30**2 + 3**2) / 2)
    assert steps[0, -1] == max(1, nearest(4 * 3**2))
    # On the border: the geometric mean of two columns of one and one of the other.
    assert steps[0, 3] == nearest(min(4 * (30**2) ** (2 / 3) * (3**2) ** (1 / 3), (30**2 + 3**2) / 2))
    assert steps[:, :3].unique().numel() == 1
    assert ground.steps(numbers, squares, 0.0).unique().tolist() == [1]


def test_what_is_masked_counts_nothing(tok: MiniTokenizer) -> None:
    picture = mountains(8, 8, seed=1)
    valid = everything(picture)
    valid[:, 20:60, 30:100] = False
    tokens = encoded(tok, picture)
    found = search(tok, tokens, picture, valid, 5)
    np.testing.assert_array_equal(found, search(tok, tokens, np.where(valid, picture, -9999), valid, 5))
    np.testing.assert_array_equal(found, search(tok, tokens, np.where(valid, picture, np.nan), valid, 5))
    assert np.any(found != search(tok, tokens, picture, everything(picture), 5))
    assert search(tok, tokens, picture, ~everything(picture), 5) is tokens
    assert search(tok, tokens, picture, valid, 0) is tokens


def test_patches_without_any_ground_keep_their_heights(tok: MiniTokenizer) -> None:
    picture = mountains(8, 8, seed=2)
    valid = everything(picture)
    valid[:, :, 64:] = False
    tokens = encoded(tok, picture)
    found = search(tok, tokens, picture, valid, 5, price=0.0)
    np.testing.assert_array_equal(found[:, 4:], tokens[:, 4:])
    assert np.any(found[:, :4] != tokens[:, :4])


@pytest.mark.parametrize("seed", [3, 4])
def test_heights_get_nearer_or_shorter(tok: MiniTokenizer, seed: int) -> None:
    picture = mountains(16, 16, seed)
    tokens = encoded(tok, picture)
    near = search(tok, tokens, picture, everything(picture), 24, price=0.0)
    usual = search(tok, tokens, picture, everything(picture), 24)
    short = search(tok, tokens, picture, everything(picture), 24, price=0.5)
    errors = [error_of(tok, t, picture) for t in (near, usual, short)]
    sizes = [size_of(tok, t) for t in (near, usual, short)]
    assert errors == sorted(errors)
    assert errors[0] < 0.95 * error_of(tok, tokens, picture)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 0.7 * size_of(tok, tokens)
    for t in (near, usual, short):
        assert t.dtype == np.int32
        assert 0 <= t.min() <= t.max() < tok.codebook_size
    np.testing.assert_array_equal(usual, search(tok, tokens, picture, everything(picture), 24))


def test_flat_land_beside_mountains_keeps_its_steps(tok: MiniTokenizer) -> None:
    picture = mountains(12, 24, seed=5)
    picture[:, :, 192:] = 700 + np.linspace(0, 3, 192, dtype=np.float32)
    tokens = encoded(tok, picture)
    found = search(tok, tokens, picture, everything(picture), 24)
    decoded = tok.decode(torch.from_numpy(found)[None])[0].numpy()
    # Three tokens from the border on the plain keeps half a level; the mountains are off by sixty metres.
    assert np.sqrt(np.square(decoded - picture)[:, :, 192 + 48 :].mean()) < 0.25
    moved = reflected_to_number(found, tok.levels).astype(int) - reflected_to_number(tokens, tok.levels)
    assert np.abs(moved)[:, 16:].max() <= 2
    assert np.abs(moved)[:, :10].max() > 8


def test_no_worse_than_the_encoder_after_a_single_round(tok: MiniTokenizer) -> None:
    for seed, high in ((6, 400.0), (7, 2.0), (8, 0.0)):
        picture = mountains(10, 10, seed, high)
        tokens = encoded(tok, picture)
        found = search(tok, tokens, picture, everything(picture), 1, price=0.0)
        assert error_of(tok, found, picture) <= 1.001 * error_of(tok, tokens, picture)


def test_a_tokenizer_without_tables_descends_alone(tok: MiniTokenizer) -> None:
    other = MiniTokenizer(tok.net, "mini-dem-v9", bytes(32), "cpu")
    picture = mountains(8, 8, seed=9)
    tokens = encoded(tok, picture)
    found = search(other, tokens, picture, everything(picture), 6, price=10.0)
    np.testing.assert_array_equal(found, search(tok, tokens, picture, everything(picture), 6, price=0.0))
    numbers = reflected_to_number(found, tok.levels)
    np.testing.assert_array_equal(number_to_reflected(numbers, tok.levels), found)


def test_files_of_elevation_are_searched_unless_told(tmp_path: Path) -> None:
    source = tmp_path / "heights.tif"
    picture = mountains(12, 11, seed=10)
    with rasterio.open(source, "w", driver="GTiff", width=176, height=192, count=1, dtype="float32") as dst:
        dst.write(picture)
    sizes, errors = {}, {}
    for name, how in (("a", {}), ("one", {"effort": 1}), ("none", {"effort": 0}), ("exact", {"exact": True})):
        tmcodec.encode(source, tmp_path / f"{name}.tmc", modality="DEM", **how)  # type: ignore[arg-type]
        tmcodec.decode(tmp_path / f"{name}.tmc", tmp_path / f"{name}.tif")
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            errors[name] = float(np.square(file.read() - picture).mean())
        sizes[name] = (tmp_path / f"{name}.tmc").stat().st_size
    assert errors["a"] < errors["exact"]
    assert sizes["a"] < sizes["none"] < sizes["exact"]
    assert errors["a"] < errors["one"]
