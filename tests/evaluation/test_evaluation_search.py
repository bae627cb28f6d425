"""Every baseline keeps to the size; components, blocks and patterns against second computations."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.errors import EvaluationError
from tmcodec.evaluation import search as search_module
from tmcodec.evaluation.baselines import (
    Lessons,
    baseline_methods,
    check_baselines,
    floor_picture,
    make_searches,
)
from tmcodec.evaluation.blocks import (
    count_patterns,
    from_patterns,
    kmeans,
    majority,
    patch_means,
    quarters,
    spectra,
)
from tmcodec.evaluation.codecs import CODECS, imagecodecs
from tmcodec.evaluation.components import fit_components
from tmcodec.evaluation.scenes import Scene
from tmcodec.evaluation.search import BlockSearch, ClassSearch, PictureSearch
from tmcodec.modalities import MODALITIES

MakeScene = Callable[..., Scene]


def error(scene: Scene, values: np.ndarray) -> float:
    return float(np.square(values - scene.values)[scene.valid].mean())


@pytest.mark.parametrize("name", ["S2L2A", "S1GRD", "DEM"])
@pytest.mark.parametrize("key", CODECS)
def test_a_codec_keeps_to_the_size(smooth_scene: MakeScene, key: str, name: str) -> None:
    scene, row = smooth_scene(name), MODALITIES[name]
    search = PictureSearch(scene, row, CODECS[key])
    fitted = []
    for size in (60, 250, 700, 2500):
        found = search.best(size)
        if found is not None:
            assert found.bytes <= size and found.values.shape == scene.values.shape
            fitted.append(error(scene, found.values))
        free = search.best(size, free_headers=True)
        if free is not None:
            assert free.bytes - free.forgiven <= size and free.forgiven > 0
    assert len(fitted) >= 2
    assert fitted == sorted(fitted, reverse=True)


@pytest.mark.parametrize("size", [150, 300, 700])
@pytest.mark.parametrize("free", [False, True])
def test_the_best_number_of_components_and_factor_wins(
    smooth_scene: MakeScene, monkeypatch: pytest.MonkeyPatch, size: int, free: bool
) -> None:
    """Each on its own finds no better picture than all together, and the best of them the same."""
    scene, row = smooth_scene(), MODALITIES["S2L2A"]
    whole = PictureSearch(scene, row, CODECS["webp"]).best(size, free)
    assert whole is not None
    alone = {}
    for count, reduced in itertools.product(search_module.COUNTS, search_module.REDUCED):
        with monkeypatch.context() as patch:
            patch.setattr(search_module, "COUNTS", (count,))
            patch.setattr(search_module, "REDUCED", (reduced,))
            found = PictureSearch(scene, row, CODECS["webp"]).best(size, free)
        if found is not None:
            alone[found.setting] = error(scene, found.values)
    assert len(alone) > 1
    assert whole.setting == min(alone, key=alone.__getitem__)
    assert error(scene, whole.values) == min(alone.values())


def test_the_best_blocks_win(smooth_scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, row = smooth_scene("S1GRD"), MODALITIES["S1GRD"]
    for size in (40, 120, 600):
        whole, alone = BlockSearch(scene, row).best(size), {}
        for count, side in itertools.product(search_module.COUNTS[:2], search_module.BLOCK_SIDES):
            with monkeypatch.context() as patch:
                patch.setattr(search_module, "COUNTS", (count,))
                patch.setattr(search_module, "BLOCK_SIDES", (side,))
                found = BlockSearch(scene, row).best(size)
            if found is not None:
                assert found.bytes <= size
                alone[found.setting] = error(scene, found.values)
        assert whole is not None and len(alone) > 1
        assert whole.setting == min(alone, key=alone.__getitem__)


@pytest.mark.parametrize("key", CODECS)
def test_the_bytes_are_those_of_the_file(smooth_scene: MakeScene, key: str) -> None:
    """Count what is stored a second time, and decode the picture from nothing else."""
    scene, row, codec = smooth_scene(), MODALITIES["S2L2A"], CODECS[key]
    files: list[tuple[bytes, tuple[int, int, int]]] = []

    def spy(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        files.append((data, shape))
        return codec.unpack(data, shape)

    found = PictureSearch(scene, row, replace(codec, unpack=spy)).best(900)
    assert found is not None
    data, shape = files[-1]  # the winner is decoded last
    assert found.bytes == len(data) + 2 * 12 + 12 * shape[0] + 4 * shape[0] + 4 + 1


def test_what_does_not_fit_is_none(smooth_scene: MakeScene) -> None:
    scene = smooth_scene()
    for key in CODECS:
        assert PictureSearch(scene, MODALITIES["S2L2A"], CODECS[key]).best(40) is None
    assert BlockSearch(scene, MODALITIES["S2L2A"]).best(30) is None


def test_a_codec_that_fails_fits_nothing(smooth_scene: MakeScene) -> None:
    def fail(planes: np.ndarray, place: float) -> bytes:
        raise RuntimeError("too large a picture")

    search = PictureSearch(smooth_scene(), MODALITIES["S2L2A"], replace(CODECS["webp"], pack=fail))
    assert search.best(10_000) is None


@pytest.mark.parametrize("key", CODECS)
@given(st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=12, deadline=None)
def test_planes_come_back_in_their_places(key: str, seed: int, count: int, height: int, width: int) -> None:
    """At best quality each plane is nearer to itself than a quarter of its range, in the right order."""
    levels = np.random.default_rng(seed).permutation(count) / 3
    planes = np.broadcast_to(levels[:, None, None], (count, height, width)).astype(np.float32)
    back = CODECS[key].unpack(CODECS[key].pack(planes, 1.0), planes.shape)
    assert back.shape == planes.shape
    assert float(np.abs(back - planes).mean()) < 0.12


# --------------------------------------------------------------------------- components


def test_all_components_give_the_picture_back(smooth_scene: MakeScene) -> None:
    scene = smooth_scene()
    parts = fit_components(scene.filled, scene.valid, 4)  # four waves: rank four
    back = parts.picture(parts.planes(scene.filled))
    assert error(scene, back) ** 0.5 < 5  # digital numbers: axes are 127ths
    assert parts.bytes == 2 * 12 + 12 * 4 + 4 * 4 + 4


def test_components_lose_what_the_singular_values_say(smooth_scene: MakeScene) -> None:
    scene = smooth_scene(seed=5)
    scene.valid[...] = True
    flat = scene.values.reshape(12, -1).astype(np.float64)
    values = np.linalg.svd(flat - flat.mean(axis=1, keepdims=True), compute_uv=False)
    parts = fit_components(scene.values, scene.valid, 2)
    lost = error(scene, parts.picture(parts.planes(scene.values)))
    assert lost == pytest.approx((values[2:] ** 2).sum() / flat.size, rel=0.05)


def test_a_flat_picture_has_components() -> None:
    values = np.full((3, 20, 20), 700, np.float32)
    parts = fit_components(values, np.ones(values.shape, bool), 1)
    assert np.abs(parts.picture(parts.planes(values)) - 700).max() < 1


# --------------------------------------------------------------------------- blocks and classes


def test_blocks_count_their_bytes(smooth_scene: MakeScene) -> None:
    scene = smooth_scene("DEM", 64, 64)
    found = BlockSearch(scene, MODALITIES["DEM"]).best(8 + 1 + 16)
    assert found is not None and found.bytes <= 25 and "1 component" in found.setting
    side = int(found.setting.split(", ")[1].split(" x ")[0])
    cells = (-(-64 // side)) ** 2
    assert found.bytes <= 9 + cells
    parts = fit_components(scene.filled, scene.valid, 1)
    stored = np.round(patch_means(parts.planes(scene.filled), side) * 255).astype(np.uint8)
    assert found.bytes == 9 + min(
        cells, len(zlib.compress(stored.tobytes(), 9)),
        len(zlib.compress(np.diff(stored, axis=2, prepend=np.uint8(0)).tobytes(), 9)),
    )


def test_patch_means_are_means() -> None:
    values = np.random.default_rng(0).normal(size=(2, 33, 20)).astype(np.float32)
    means = patch_means(values)
    assert means.shape == (2, 3, 2)
    assert means[1, 0, 0] == pytest.approx(values[1, :16, :16].mean(), rel=1e-5)
    edge = np.concatenate([values[0, 32:33, :16]] * 16)
    assert means[0, 2, 0] == pytest.approx(edge.mean(), rel=1e-5)


def test_majority_is_the_commonest() -> None:
    ids = np.random.default_rng(1).integers(0, 4, (37, 21)).astype(np.uint8)
    found = majority(ids, 5, 10)
    assert found.shape == (8, 5)
    for row, col in np.ndindex(7, 4):
        counts = np.bincount(ids[5 * row : 5 * row + 5, 5 * col : 5 * col + 5].ravel(), minlength=10)
        assert counts[found[row, col]] == counts.max()


def test_the_last_class_may_be_the_commonest_and_odd_halves_are_repeated() -> None:
    ids = np.full((17, 30), 9, np.uint8)
    assert (majority(ids, 4, 10) == 9).all()
    ids[16:] = 3  # half a patch of its own below
    found = quarters(ids, 10)
    assert found.shape == (2, 2, 4)
    assert found[0].tolist() == [[9] * 4] * 2 and found[1].tolist() == [[3] * 4] * 2


@pytest.mark.parametrize("key", ["jxl", "webp"])
def test_class_maps_are_stored_exactly(smooth_scene: MakeScene, key: str) -> None:
    scene, pack = smooth_scene("LULC"), CODECS[key].pack_exactly
    assert pack is not None
    ids = scene.filled[0].astype(np.uint8)
    decode = imagecodecs().jpegxl_decode if key == "jxl" else imagecodecs().webp_decode
    back = decode(pack(ids))
    assert np.array_equal(back if back.ndim == 2 else back[..., 0], ids)
    search = ClassSearch(scene, MODALITIES["LULC"], pack)
    for size in (150, 400, 5000):
        found = search.best(size)
        assert found is None or found.bytes <= size
    assert found is not None and np.array_equal(found.values, scene.filled)  # 5000 bytes hold it all


def test_patterns_of_the_same_map_come_back() -> None:
    ids = np.repeat(np.repeat(np.random.default_rng(2).integers(1, 9, (8, 6)), 8, 0), 8, 1).astype(np.uint8)
    book = np.array(list(count_patterns(ids, 10)), np.uint8)
    assert np.array_equal(from_patterns(ids, book, 10), ids)
    assert quarters(ids, 10).shape == (4, 3, 4)


def test_kmeans_finds_separate_clusters() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    points = (truth[rng.integers(4, size=400)] + rng.normal(0, 0.1, (400, 2))).astype(np.float32)
    centres = kmeans(points, 40)
    nearest = np.linalg.norm(truth[:, None] - centres[None], axis=2).min(axis=1)
    assert (nearest < 0.3).all()


def test_empty_clusters_stay_where_they_were() -> None:
    points = np.float32([[0, 0]] * 5 + [[8, 0]])
    centres = kmeans(points, 6)  # five in one place, of which one owns all
    assert sorted(map(tuple, centres.tolist())) == [(0, 0)] * 5 + [(8, 0)]


def test_spectra_of_narrow_pictures() -> None:
    """Shifts beyond the end have no patches; the other four have two each, their borders extended."""
    values = np.random.default_rng(0).normal(size=(2, 4, 32)).astype(np.float32)
    found = spectra(values, np.ones(values.shape, bool))
    assert found.shape == (8, 2) and np.isfinite(found).all()
    assert found[0] == pytest.approx(
        [(band[:, :16].sum() + 12 * band[3, :16].sum()) / 256 for band in values], rel=1e-4
    )


def test_a_floor_learnt_on_the_scene_itself_is_block_means(smooth_scene: MakeScene) -> None:
    scene, row = smooth_scene("S1GRD", 64, 64), MODALITIES["S1GRD"]
    lessons = Lessons(row)
    lessons.add(scene)
    floor = lessons.learn(100_000)
    assert floor is not None
    from tmcodec.evaluation.baselines import unquantized_blocks

    hole = ~scene.valid.all(axis=0)
    blocks, found = unquantized_blocks(scene, row), floor_picture(scene, row, floor)
    far = np.s_[:, 40:, 40:]  # patches without hole are among the training patches
    assert hole.any() and np.allclose(found[far], blocks[far], atol=1e-3)


def test_rasters_are_learnt_from_one_by_one(smooth_scene: MakeScene) -> None:
    """All spectra together below the cap; above it an even sample of them, whatever raster they come from."""
    scenes = [smooth_scene("S1GRD", 64, 64, seed) for seed in range(12)]
    points = np.concatenate([spectra(s.filled, s.valid) for s in scenes])
    few, many = Lessons(MODALITIES["S1GRD"], len(points) // 4), Lessons(MODALITIES["S1GRD"], len(points))
    for scene in scenes:
        few.add(scene)
        many.add(scene)
        assert sum(map(len, few.spectra)) <= 2 * few.most
    floor = many.learn(40)
    assert floor is not None and np.array_equal(floor.book, kmeans(points, 40))
    assert few.learn(10_000_000) is not None
    places = [int(np.flatnonzero((points == p).all(axis=1))[0]) for p in np.concatenate(few.spectra)]
    assert len(places) == few.most and places == sorted(set(places))
    thirds = np.bincount(np.array(places) * 3 // len(points))
    assert (np.abs(thirds - few.most / 3) < 3 * math.sqrt(few.most / 3)).all()


def test_patterns_are_counted_over_all_maps(smooth_scene: MakeScene) -> None:
    row, scene = MODALITIES["LULC"], smooth_scene("LULC", 32, 32)
    lessons = Lessons(row)
    assert lessons.learn(5) is None
    for ids in ((1, 1), (2, 3), (2, 4)):  # left and right half, two patches each
        halves = np.repeat(np.float32(ids), 16)[None, None].repeat(32, axis=1)
        lessons.add(replace(scene, filled=halves))
    floor = lessons.learn(2)
    assert floor is not None and floor.book.tolist() == [[1] * 4, [2] * 4]


def test_names_of_baselines() -> None:
    assert check_baselines(["webp", "jp2", "kmeans"], False) == ("jp2", "webp")
    assert check_baselines(["none"], True) == ()
    with pytest.raises(EvaluationError, match="gif"):
        check_baselines(["gif"], True)
    keys = {m.baseline for m in baseline_methods(MODALITIES["LULC"], ["jp2", "jxl", "blocks", "kmeans"], "t")}
    assert keys == {"jxl", "blocks", "kmeans"}


def test_class_maps_have_no_lossy_search(smooth_scene: MakeScene) -> None:
    found = make_searches(smooth_scene("LULC"), MODALITIES["LULC"], ("jp2", "jxl", "avif", "webp", "blocks"))
    assert {k: type(v) for k, v in found.items()} == {"jxl": ClassSearch, "webp": ClassSearch}
