"""Embeddings of files, and the geometry of nearest neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import tmcodec
from tmcodec.cli import cli
from tmcodec.codec.models import load_tokenizer
from tmcodec.embeddings import (
    centred,
    centroid_accuracy,
    cosine,
    embed_files,
    few_shot_accuracy,
    knn_accuracy,
)
from tmcodec.errors import ConditionError, EvaluationError, TargetExistsError
from tmcodec.generation.models import LoadedGenerator, load_generator
from tmcodec.generation.weights import TokenizerRef, save_generator
from tmcodec.networks.generator.config import GeneratorConfig, pixel_spec, token_spec
from tmcodec.networks.generator.model import Generator, Part


@pytest.fixture(scope="module")
def generator(tiny_tokenizer: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small generator that knows the tiny tokenizers' tokens; DEM goes in as pixels."""
    torch.manual_seed(8)
    specs = (token_spec("S2L2A"), token_spec("LULC"), pixel_spec("DEM"))
    cfg = GeneratorConfig(32, 2, 1, 4, True, False, specs, embedding="codes", grid=2)
    paths = {m: tiny_tokenizer(m) for m in ("S2L2A", "LULC")}
    refs = {m: TokenizerRef(str(p), load_tokenizer(str(p)).sha256) for m, p in paths.items()}
    path = tmp_path_factory.mktemp("generator") / "tiny.safetensors"
    save_generator(path, Generator(cfg), "tiny", refs)
    return path


@pytest.fixture(scope="module")
def loaded(generator: Path) -> LoadedGenerator:
    """Return it, ready."""
    return load_generator(str(generator), "cpu", precision="fp32")


def test_vector_is_the_mean_over_tokens(
    loaded: LoadedGenerator, tiny_tokenizer: Callable[[str], Path], make_scene: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Of one tile of 2 x 2 tokens, by hand; a file of two tiles is their mean."""
    scene, tokens = make_scene(width=64, height=32), tmp_path / "a.tmc"
    tmcodec.encode(scene, tokens, tokenizer=str(tiny_tokenizer("S2L2A")))
    with tmcodec.open(tokens) as f:
        grid = torch.from_numpy(f["S2L2A"].tokens()).long()
    tiles = embed_files([tokens], loaded, per="tile")
    assert tiles.names == (f"{tokens}#0,0", f"{tokens}#2,0")
    for i, part in enumerate((grid[:, :2], grid[:, 2:])):
        features = loaded.net.encode([Part("tok_sen2l2a@224", part.flatten()[None])], layers=True).features
        np.testing.assert_allclose(tiles.vectors[i], features[-1][0].mean(0), atol=1e-5)
    whole = embed_files([tokens], loaded)
    assert whole.vectors.dtype == np.float32 and whole.names == (str(tokens),)
    np.testing.assert_allclose(whole.vectors[0], tiles.vectors.mean(0), atol=1e-5)
    early = embed_files([tokens], loaded, layer=0)
    assert not np.allclose(early.vectors, whole.vectors, atol=1e-3)


def test_a_place_counts_once(
    loaded: LoadedGenerator, tiny_tokenizer: Callable[[str], Path], make_scene: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Of 3 x 3 tokens in tiles of 2 x 2, moved inwards: 4, 2, 2 and 1 places of nine are new."""
    scene, tokens = make_scene(width=48, height=48), tmp_path / "a.tmc"
    tmcodec.encode(scene, tokens, tokenizer=str(tiny_tokenizer("S2L2A")))
    with tmcodec.open(tokens) as f:
        grid = torch.from_numpy(f["S2L2A"].tokens()).long()
    total = torch.zeros(32)
    for row, col, new in ((0, 0, [0, 1, 2, 3]), (0, 1, [1, 3]), (1, 0, [2, 3]), (1, 1, [3])):
        tile = grid[row : row + 2, col : col + 2].flatten()[None]
        features = loaded.net.encode([Part("tok_sen2l2a@224", tile)], layers=True).features
        total += features[-1][0][new].sum(0)
    found = embed_files([tokens], loaded)
    np.testing.assert_allclose(found.vectors[0], total / 9, atol=1e-5)


def test_a_raster_embeds_as_its_tokens(
    loaded: LoadedGenerator, tiny_tokenizer: Callable[[str], Path], make_scene: Callable[..., Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Where the model takes tokens alone; where it takes pixels they go in as such."""
    scene, tokens = make_scene(width=40, height=32), tmp_path / "a.tmc"
    tmcodec.encode(scene, tokens, tokenizer=str(tiny_tokenizer("S2L2A")), balance=False, exact=True)
    both = embed_files([tokens, f"S2L2A={scene}"], loaded)
    np.testing.assert_array_equal(both.vectors[0], both.vectors[1])
    height = embed_files([f"DEM={make_scene('DEM', 32, 32, name='dem.tif')}"], loaded)
    assert height.vectors.shape == (1, 32) and np.isfinite(height.vectors).all()


def test_nodata_does_not_count(
    loaded: LoadedGenerator, make_scene: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile without a valid pixel gives no vector, and is not computed; a raster without one is refused."""
    import rasterio

    computed: list[int] = []
    features = loaded.net.features

    def counted(parts: list[Part]) -> Any:
        computed.append(len(parts[0].values))
        return features(parts)

    monkeypatch.setattr(loaded.net, "features", counted)

    path = make_scene("DEM", 96, 32, name="dem.tif", nodata=-9999.0)
    with rasterio.open(path, "r+") as d:
        values = d.read()
        values[..., 32:64] = -9999
        d.write(values)
    found = embed_files([f"DEM={path}"], loaded, per="tile")
    assert [name.split("#")[1] for name in found.names] == ["0,0", "4,0"]
    assert computed == [2]
    with rasterio.open(path, "r+") as d:
        d.write(np.full_like(values, -9999))
    with pytest.raises(ConditionError, match="no valid pixel"):
        embed_files([f"DEM={path}"], loaded)
    sources = [f"DEM={p}" for p in (path, make_scene("DEM", 32, 32, name="whole.tif"))]
    for per, name in (("file", sources[1]), ("tile", f"{sources[1]}#0,0")):
        found = embed_files(sources, loaded, per=per)
        assert (found.names, found.empty, found.vectors.shape) == ((name,), (sources[0],), (1, 32))


def run(*args: object, status: int = 0) -> Result:
    """Run the command line."""
    result = CliRunner().invoke(cli, [str(a) for a in args])
    assert result.exit_code == status, result.output
    return result


def test_command(
    generator: Path, make_scene: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """.npz and .npy, refusals, and nothing half written."""
    scenes = [f"DEM={make_scene('DEM', 32, 32, name=f'{i}.tif', seed=i)}" for i in (1, 2)]
    out = tmp_path / "e.npz"
    said = json.loads(run("embed", *scenes, "-o", out, "--model", generator, "--json").output)
    assert (said["vectors"], said["dimensions"], said["model"]) == (2, 32, "tiny")
    with np.load(out, allow_pickle=False) as f:
        assert f["vectors"].shape == (2, 32) and f["vectors"].dtype == np.float32
        assert f["names"].tolist() == scenes and str(f["model"]) == "tiny"
        vectors = f["vectors"]
    assert "exists" in run("embed", *scenes, "-o", out, "--model", generator, status=1).output
    plain = tmp_path / "e.npy"
    run("embed", *scenes, "-o", plain, "--model", generator)
    np.testing.assert_array_equal(np.load(plain), vectors)
    other = tmp_path / "e.txt"
    with monkeypatch.context() as idle:
        idle.setattr("tmcodec.embeddings.embed_files", lambda *_, **__: pytest.fail("work was done"))
        assert ".npz or .npy" in run("embed", *scenes, "-o", other, "--model", generator, status=1).output
    assert "limit of 1023" in run(
        "embed", *scenes, "-o", tmp_path / "g.npz", "--model", generator, "--max-pixels", 1023, status=1
    ).output
    absent, third = tmp_path / "none.tmc", tmp_path / "f.npz"
    bad = run("embed", scenes[0], absent, "-o", third, "--model", generator, status=1)
    assert "none.tmc" in bad.output
    assert not other.exists() and not third.exists()


def test_command_leaves_out_what_is_empty(
    generator: Path, make_scene: Callable[..., Path], tmp_path: Path
) -> None:
    """With a line on standard error, so that what was computed of the others is not lost."""
    import rasterio

    scenes = [f"DEM={make_scene('DEM', 32, 32, name=f'{i}.tif', nodata=-9999.0)}" for i in (1, 2)]
    with rasterio.open(scenes[0][4:], "r+") as d:
        d.write(np.full((1, 32, 32), -9999, np.int16))
    done = run("embed", *scenes, "-o", tmp_path / "e.npz", "--model", generator, "--json")
    assert json.loads(done.stdout)["empty"] == scenes[:1]
    assert f"warning: {scenes[0]} has no valid pixel" in done.stderr
    with np.load(tmp_path / "e.npz", allow_pickle=False) as f:
        assert f["names"].tolist() == scenes[1:]


def test_bad_choices(loaded: LoadedGenerator, make_scene: Callable[..., Path], tmp_path: Path) -> None:
    """One class and line each."""
    scene = f"DEM={make_scene('DEM', 32, 32)}"
    for choices in ({"layer": 2}, {"layer": -3}, {"per": "row"}):
        with pytest.raises(ConditionError):
            embed_files([scene], loaded, **choices)  # type: ignore[arg-type]
    with pytest.raises(ConditionError, match="no files"):
        embed_files([], loaded)
    with pytest.raises(ConditionError, match="NDVI"):
        embed_files([f"NDVI={make_scene('NDVI', 32, 32, name='n.tif')}"], loaded)
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(TargetExistsError):
        embed_files([scene], loaded).save(tmp_path / "x.npy")


# --------------------------------------------------------------------------- geometry


def points(*degrees: float) -> np.ndarray:
    """Return unit vectors at angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_cosine_of_angles() -> None:
    """Of 60 degrees it is a half, whatever the lengths; a zero vector is near nothing."""
    a, b = 3 * points(0, 90), np.concatenate([points(60), np.zeros((1, 2), np.float32)])
    np.testing.assert_allclose(cosine(a, b), [[0.5, 0], [3**0.5 / 2, 0]], atol=1e-6)
    np.testing.assert_allclose(centred(points(0, 180)).sum(0), 0, atol=1e-6)


def test_nearest_neighbours_by_hand() -> None:
    """Angles 0, 10 | 90, 100 and a stray b at 5: each vote counted by hand."""
    vectors, labels = points(0, 10, 90, 100, 5), ["a", "a", "b", "b", "b"]
    # Nearest of 0 is 5 (b), of 10 is 5 (b), of 90 and 100 each other, of 5 is 0 or 10 (a).
    assert knn_accuracy(vectors, labels, k=1) == 2 / 5
    # Three nearest: 0: b a b; 10: b a b; 90: b a b; 100: b a b; 5: a a b.
    assert knn_accuracy(vectors, labels, k=3) == 2 / 5
    # Two nearest, a draw: the nearer decides. 0: b a; 10: b a; 90: b a; 100: b a; 5: a a.
    assert knn_accuracy(vectors, labels, k=2) == 2 / 5
    assert knn_accuracy(points(0, 1, 90, 91), [1, 1, 2, 2]) == 1.0


def test_centroids_by_hand() -> None:
    """Centroids at 5 and 95 degrees part at 50."""
    train, labels = points(0, 10, 90, 100), ["a", "a", "b", "b"]
    assert centroid_accuracy(train, labels, points(49, 51, 20, 140), ["a", "b", "b", "b"]) == 3 / 4
    mean, deviation = few_shot_accuracy(points(0, 1, 2, 90, 91, 92), [0, 0, 0, 1, 1, 1], shots=1, trials=5)
    assert (mean, deviation) == (1.0, 0.0)


def test_evaluations_refuse_what_they_cannot_do() -> None:
    """Wrong numbers of labels, too few vectors, unknown classes."""
    vectors = points(0, 1, 90)
    with pytest.raises(EvaluationError, match=r"^0 trials; give one at least"):
        few_shot_accuracy(points(0, 1, 90, 91), [0, 0, 1, 1], shots=1, trials=0)
    for call in (
        lambda: knn_accuracy(vectors, [1, 2]),
        lambda: knn_accuracy(vectors, [1, 1, 2], k=3),
        lambda: centroid_accuracy(vectors, [1, 1, 2], vectors, [1, 1, 3]),
        lambda: centroid_accuracy(vectors, [1, 1, 2], vectors, [1]),
        lambda: few_shot_accuracy(vectors, [1, 1, 2], shots=1),
    ):
        with pytest.raises(EvaluationError):
            call()
