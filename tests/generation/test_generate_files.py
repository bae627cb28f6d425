"""Generation from files: place on the map, tiles and overlaps, nodata, provenance, and nothing on errors."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import socket
import struct
import tracemalloc
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from generation_helpers import SPECS, Loaded, SumNet, Words, tiny_config, tiny_generator, tokenizer_refs

import tmcodec
from tmcodec.codec import decode as decoding
from tmcodec.codec.lineage import Origin
from tmcodec.codec.models import load_tokenizer
from tmcodec.embeddings import embed_files
from tmcodec.errors import (
    ConditionError,
    GenerationError,
    GridMismatchError,
    LayerNotFoundError,
    LimitExceededError,
    ModalityError,
    TargetError,
    TargetExistsError,
    TargetFolderError,
    TargetNameError,
    TmcodecError,
    TokenizerMismatchError,
    VocabularyError,
)
from tmcodec.generation import sources
from tmcodec.generation.ensemble import middle_and_spread, write_spread
from tmcodec.generation.files import generate_files
from tmcodec.generation.generate import generate
from tmcodec.generation.seams import level_jumps, tile_jumps
from tmcodec.generation.settings import Settings
from tmcodec.generation.sources import MapGrid, has_no_data
from tmcodec.generation.tiles import Strip, tile_borders, tile_count, tile_starts, tile_windows
from tmcodec.generation.tiling import centre, tile_coordinates
from tmcodec.generation.tokenizers import check_layer
from tmcodec.generation.weights import TokenizerRef, official_tokenizers
from tmcodec.networks.generator.model import Encoded
from tmcodec.rasters import Window
from tmcodec.tokenfile import FileMeta, LayerMeta, TokenFileWriter

MakeScene = Callable[..., Path]
FAST = Settings(decoding_steps=2)
SAME = Settings(decoding_steps=1, choice="mean", samples=3)


@pytest.fixture
def loaded(tiny_tokenizer: Callable[[str], Path]) -> Loaded:
    """Return a random generator of 4 x 4 tokens over tiny tokenizers."""
    made = tiny_generator()
    made.tokenizers = tokenizer_refs({m: tiny_tokenizer(m) for m in ("S2L2A", "S1GRD", "DEM", "LULC")})
    return made


@pytest.fixture
def encode(make_scene: MakeScene, tiny_tokenizer: Callable[[str], Path]) -> Callable[..., Path]:
    """Return a function that makes a scene and its token file, and returns the token file."""

    def call(modality: str = "S2L2A", width: int = 150, height: int = 90, **how: Any) -> Path:
        scene = make_scene(modality, width, height, name=f"{modality}.tif", **how)
        path = scene.with_suffix(".tmc")
        tmcodec.encode(
            scene, path, modality=modality, tokenizer=tiny_tokenizer(modality), balance=False, exact=True
        )
        return path

    return call


def tokens_of(path: Path, layer: str) -> np.ndarray:
    with tmcodec.open(path) as file:
        return file[layer].tokens()


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --------------------------------------------------------------------------- tiles


def test_tiles_cover_and_overlap_as_asked() -> None:
    for count, starts in ((30, [0, 10, 16]), (14, [0]), (5, [0]), (34, [0, 10, 20])):
        assert list(tile_starts(count, 14, 4)) == starts
        assert tile_count(count, 30, 14, 4) == len(starts) * 3
    assert tile_borders(30, 14, 4) == [14, 24]
    rows = list(map(list, tile_windows(5, 9, 4, 1)))
    assert rows[1] == [Window(0, 1, 4, 4), Window(3, 1, 4, 4), Window(5, 1, 4, 4)]
    for overlap in (-1, 4):
        with pytest.raises(GenerationError, match=r"give 0 to 3"):
            list(tile_windows(5, 9, 4, overlap))


def test_a_strip_keeps_what_came_first_and_forgets_what_is_done() -> None:
    strip = Strip(1, 4)
    strip.place(Window(0, 0, 3, 2), np.ones((1, 2, 3), np.int32))
    strip.place(Window(1, 1, 3, 2), np.full((1, 2, 3), 2, np.int32))
    assert strip.read(Window(0, 0, 4, 3))[0].tolist() == [[1, 1, 1, -1], [1, 1, 1, 2], [-1, 2, 2, 2]]
    strip.drop(2)
    assert strip.read(Window(0, 2, 4, 2))[0].tolist() == [[-1, 2, 2, 2], [-1, -1, -1, -1]]


def test_tiles_of_a_wide_raster_are_not_listed() -> None:
    """Two billion pixels in one row fit into a few bytes of a file, and their tiles into no memory."""
    tracemalloc.start()
    try:
        first = next(tile_windows(1, 2**27, 14, 4))
        assert list(islice(first, 3)) == [Window(0, 0, 14, 1), Window(10, 0, 14, 1), Window(20, 0, 14, 1)]
        assert tile_count(1, 2**27, 14, 4) == -(-(2**27 - 14) // 10) + 1
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


# --------------------------------------------------------------------------- token files


def test_a_token_file_lies_where_its_source_lies(loaded: Loaded, encode: Callable[..., Path]) -> None:
    src = encode()
    out = src.with_name("out.tmc")
    report = generate_files(loaded, src, out, ["DEM", "LULC"], settings=FAST, steps=3, seed=9)
    with tmcodec.open(src) as one, tmcodec.open(out) as two:
        source = one["S2L2A"].meta
        assert list(two) == ["DEM", "LULC"]
        for layer in two.layers.values():
            meta = layer.meta
            assert (meta.width, meta.height, meta.crs, meta.transform, meta.times) == (
                source.width, source.height, source.crs, source.transform, source.times)  # fmt: skip
            assert meta.tags["TMCODEC_GENERATOR"] == "tiny-any2any"
            assert meta.tags["TMCODEC_GENERATOR_SHA256"] == "00" * 32
            assert meta.tags["TMCODEC_GENERATED_FROM"].startswith("S2L2A:tiny-s2l2a:")
            assert (meta.steps, meta.seed, layer.valid()) == (3, 9, None)
        assert two["DEM"].meta.tokenizer == "tiny-dem"
        assert two["DEM"].meta.weights_sha256 == loaded.tokenizers["DEM"].sha256
        assert two["LULC"].meta.codebook_size == 4375
    assert report.tokens == 2 * 10 * 6
    assert tmcodec.verify(out).ok


def test_one_tile_from_a_file_is_what_memory_gives(loaded: Loaded, encode: Callable[..., Path]) -> None:
    src = encode(width=64, height=48)
    out = src.with_name("out.tmc")
    generate_files(loaded, src, out, ["DEM", "LULC"], settings=FAST, seed=4)
    made = generate(loaded, {"S2L2A": tokens_of(src, "S2L2A")}, ["DEM", "LULC"], decoding_steps=2, seed=4)
    for name in ("DEM", "LULC"):
        assert np.array_equal(tokens_of(out, name), made.tokens[name][0].numpy())


def test_tokens_and_the_raster_encoded_on_the_fly_give_the_same_bytes(
    loaded: Loaded, encode: Callable[..., Path]
) -> None:
    src = encode(nodata=0)
    paths = [src.with_name(f"{name}.tmc") for name in ("a", "b", "c")]
    generate_files(loaded, src, paths[0], ["DEM"], settings=FAST)
    generate_files(loaded, f"S2L2A={src.with_suffix('.tif')}", paths[1], ["DEM"], settings=FAST)
    generate_files(loaded, src, paths[2], ["DEM"], settings=FAST, batch_size=1)
    assert paths[0].read_bytes() == paths[1].read_bytes() == paths[2].read_bytes()


def test_a_raster_goes_in_with_the_tokens_that_memory_gives(loaded: Loaded, make_scene: MakeScene) -> None:
    """The encoder's own, which the generator was trained on, and not those that a search likes better."""
    scene = make_scene(width=64, height=64)
    with rasterio.open(scene) as dataset:
        pixels = torch.from_numpy(dataset.read().astype(np.float32))[None]
    out = scene.with_name("out.tmc")
    generate_files(loaded, f"S2L2A={scene}", out, ["DEM"], settings=FAST)
    made = generate(loaded, {"S2L2A": pixels + 1000}, ["DEM"], decoding_steps=2)  # with the offset
    assert np.array_equal(tokens_of(out, "DEM"), made.tokens["DEM"][0].numpy())


def test_all_layers_of_a_stack_and_several_files_are_conditions(
    loaded: Loaded, encode: Callable[..., Path]
) -> None:
    s2, dem = encode(width=60, height=40), encode("DEM", width=60, height=40)
    stack = s2.with_name("stack.tmc")
    tmcodec.stack([s2, dem], stack)
    paths = [s2.with_name(f"{name}.tmc") for name in ("a", "b", "c")]
    report = generate_files(loaded, stack, paths[0], ["LULC"], settings=FAST)
    generate_files(loaded, [s2, dem], paths[1], ["LULC"], settings=FAST)
    generate_files(loaded, stack, paths[2], ["LULC"], settings=FAST, layers=["DEM"])
    assert report.sources == ("S2L2A", "DEM")
    one, two, three = (tokens_of(path, "LULC") for path in paths)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, three)


def test_pixels_go_in_where_the_generator_takes_them(loaded: Loaded, make_scene: MakeScene) -> None:
    scene = make_scene("S1RTC", 70, 64, nodata=math.nan)
    out = scene.with_name("out.tmc")
    report = generate_files(loaded, f"S1RTC={scene}", out, ["DEM"], settings=FAST)
    assert (report.sources, tokens_of(out, "DEM").shape) == (("S1RTC",), (4, 5))


# --------------------------------------------------------------------------- overlap


def sums(src: Path, out: Path, overlap: int, refs: Any) -> tuple[SumNet, np.ndarray]:
    """Generate DEM greedily with the net that adds up what it sees."""
    net = SumNet()
    how = Settings(decoding_steps=1, temperature=0)
    generate_files(Loaded(net, tokenizers=refs), src, out, ["DEM"], settings=how, overlap=overlap)
    return net, tokens_of(out, "DEM")


def test_settled_tokens_condition_the_next_tile(loaded: Loaded, encode: Callable[..., Path]) -> None:
    src = encode(width=112, height=64)  # 7 x 4 tokens: tiles at columns 0 and 3 share one column
    given = tokens_of(src, "S2L2A").astype(np.int64)
    first = int(given[:, :4].sum()) % 15360
    _, apart = sums(src, src.with_name("a.tmc"), 0, loaded.tokenizers)
    net, joined = sums(src, src.with_name("b.tmc"), 1, loaded.tokenizers)
    assert (apart[:, :4] == first).all() and (joined[:, :4] == first).all()
    # The second tile sees its own four columns of S2L2A and the settled column of DEM.
    second = int(given[:, 3:].sum() + 4 * first) % 15360
    assert (joined[:, 4:] == second).all()
    assert net.asked == [("tok_dem@224", 16), ("tok_dem@224", 12)]
    assert net.shown[1] == ["tok_sen2l2a@224", "tok_dem@224"]


def test_independent_tiles_go_in_batches_and_see_nothing_of_each_other(
    loaded: Loaded, encode: Callable[..., Path]
) -> None:
    src = encode(width=128, height=128)  # 8 x 8 tokens, four tiles
    given = tokens_of(src, "S2L2A").astype(np.int64)
    net, made = sums(src, src.with_name("a.tmc"), 0, loaded.tokenizers)
    for row in (0, 4):
        for col in (0, 4):
            tile = np.s_[row : row + 4, col : col + 4]
            assert (made[tile] == given[tile].sum() % 15360).all()
    assert len(net.shown) == 2  # a row of tiles at once


def test_a_target_that_cannot_be_shown_goes_in_tiles_without_overlap(
    loaded: Loaded, encode: Callable[..., Path]
) -> None:
    """Of 7 columns in tiles of 4, the second tile begins at column 3, which the first one made."""
    src = encode(width=112, height=64)
    given = tokens_of(src, "S2L2A").astype(np.int64)
    net = SumNet(tuple(replace(spec, encoder=spec.modality != "DEM") for spec in SPECS))
    how: dict[str, Any] = {"settings": Settings(decoding_steps=1, temperature=0)}
    blind, out = Loaded(net, tokenizers=loaded.tokenizers), src.with_name("o.tmc")
    generate_files(blind, src, out, "DEM", overlap=0, **how)
    made = tokens_of(out, "DEM")
    assert (made[:, :4] == given[:, :4].sum() % 15360).all()
    assert (made[:, 4:] == given[:, 3:].sum() % 15360).all()
    with pytest.raises(TargetError, match=r"takes no DEM tokens.*without overlap"):
        generate_files(blind, src, src.with_name("p.tmc"), "DEM", overlap=1, **how)


class LevelNet(SumNet):
    """Takes the level of the tokens settled before it, where it is shown any, else one of its own."""

    def encode(self, parts: Any) -> Any:
        settled = [part for part in parts if part.key == "tok_dem@224"]
        if not settled:
            return super().encode(parts)
        return Encoded(settled[0].values.float().mean(1).round()[:, None, None])


def test_levels_do_not_jump_where_overlaps_are_settled(loaded: Loaded, encode: Callable[..., Path]) -> None:
    src, jumps = encode(width=160, height=128), []
    how = Settings(decoding_steps=1, temperature=0)
    for overlap in (0, 1):
        net, out = LevelNet(), src.with_name(f"{overlap}.tmc")
        generate_files(
            Loaded(net, tokenizers=loaded.tokenizers), src, out, ["DEM"], settings=how, overlap=overlap
        )
        jumps.append(tile_jumps(tokens_of(out, "DEM")[None].astype(np.float32), 4, overlap, patch=1))
    assert jumps[0].across > 0 and jumps[0].inside == 0
    assert (jumps[1].across, jumps[1].inside) == (0, 0)


def test_large_grids_are_streamed_chunk_by_chunk(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, cols = 140, 68
    given = np.random.default_rng(0).integers(0, 15360, (rows, cols)).astype(np.int32)
    tok = load_tokenizer(loaded.tokenizers["DEM"].name)
    meta = LayerMeta("DEM", "DEM", tok.name, tok.sha256, tok.levels, cols * 16, rows * 16, "int16", ("DEM",))
    with TokenFileWriter(tmp_path / "dem.tmc", FileMeta((meta,)), coders=(0, 1)) as writer:
        for row in range(0, rows, 64):
            for col in range(0, cols, 64):
                writer.write_chunk(0, 0, row // 64, col // 64, given[row : row + 64, col : col + 64])
    heights, drop = [], Strip.drop

    def watched(strip: Strip, row: int) -> None:
        heights.append(strip._rows.shape[1])
        drop(strip, row)

    monkeypatch.setattr(Strip, "drop", watched)
    summing, out = Loaded(SumNet(), tokenizers=loaded.tokenizers), tmp_path / "lulc.tmc"
    how = Settings(decoding_steps=1, temperature=0)
    generate_files(summing, tmp_path / "dem.tmc", out, ["LULC"], settings=how, overlap=0)
    tiles = given.astype(np.int64).reshape(rows // 4, 4, cols // 4, 4).sum((1, 3)) % 4375
    assert np.array_equal(tokens_of(out, "LULC"), tiles.repeat(4, 0).repeat(4, 1))
    assert len(heights) == 3 and max(heights) <= 64 + 4


def test_level_jumps_by_hand() -> None:
    picture = np.zeros((1, 32, 64), np.float32)
    picture[..., 16:] += 1  # inside the first tile of two tokens
    picture[..., 32:] += 10  # at the border of tiles
    jumps = level_jumps(picture, rows=[], cols=[2])
    # Columns: jumps of 1, 10 and 0 in both rows of patches; rows: four of 0, inside.
    assert jumps.across == 10
    assert jumps.inside == pytest.approx((1 + 1 + 0 + 0 + 4 * 0) / 8)
    assert tile_jumps(picture, tile=2) == jumps
    with pytest.raises(ValueError, match="no tile border"):
        tile_jumps(picture, tile=4)


# --------------------------------------------------------------------------- nodata


def test_pixels_are_valid_where_those_of_all_sources_are(
    loaded: Loaded, make_scene: MakeScene, tiny_tokenizer: Callable[[str], Path]
) -> None:
    scenes = [make_scene(m, 90, 70, name=f"{m}.tif", nodata=n) for m, n in (("S2L2A", 0), ("DEM", -32768))]
    holes = (np.s_[:, :20, 30:], np.s_[:, 40:, :50])
    for scene, hole in zip(scenes, holes, strict=True):
        with rasterio.open(scene, "r+") as dataset:
            values = dataset.read()
            values[hole] = dataset.nodata
            dataset.write(values)
    srcs = [f"{m}={scene}" for m, scene in zip(("S2L2A", "DEM"), scenes, strict=True)]
    out = scenes[0].with_name("out")
    generate_files(loaded, srcs, out, ["S1GRD", "LULC"], settings=FAST, format="tif")
    expected = np.ones((70, 90), bool)
    for hole in holes:
        expected[hole[1:]] = False
    with rasterio.open(out / "S1GRD.tif") as s1, rasterio.open(out / "LULC.tif") as lulc:
        assert np.array_equal(np.isfinite(s1.read(1)), expected)
        assert np.array_equal(lulc.read_masks(1) > 0, expected)
        assert math.isnan(s1.nodata)


@pytest.mark.parametrize("gap", [False, True])
def test_no_data_of_a_class_map_is_none_of_what_is_made_from_it(
    gap: bool, loaded: Loaded, encode: Callable[..., Path], tiny_tokenizer: Callable[[str], Path]
) -> None:
    src = encode("LULC", 90, 70)
    with rasterio.open(src.with_suffix(".tif"), "r+") as dataset:
        ids = dataset.read()
        ids[:, :20, 30:] *= not gap
        dataset.write(ids)
    tmcodec.encode(
        src.with_suffix(".tif"), src, modality="LULC", tokenizer=tiny_tokenizer("LULC"), overwrite=True
    )
    out = src.with_name("o.tmc")
    generate_files(loaded, src, out, ["DEM"], settings=FAST)
    with tmcodec.open(src) as source, tmcodec.open(out) as made:
        assert has_no_data(source["LULC"], 0) == gap and not has_no_data(made["DEM"], 0)
        valid = made["DEM"].valid()
    assert np.array_equal(valid[0], ids[0] > 0) if gap else valid is None


def test_a_source_without_any_valid_pixel_gives_an_empty_file(
    loaded: Loaded, encode: Callable[..., Path], make_scene: MakeScene, tiny_tokenizer: Callable[[str], Path]
) -> None:
    scene = make_scene("S2L2A", 80, 80, nodata=0)
    with rasterio.open(scene, "r+") as dataset:
        dataset.write(np.zeros((12, 80, 80), dataset.dtypes[0]))
    report = generate_files(loaded, f"S2L2A={scene}", scene.with_name("o.tmc"), ["DEM"], settings=FAST)
    with tmcodec.open(scene.with_name("o.tmc")) as file:
        assert file["DEM"].empty().all()
    assert report.tokens == 0


def test_patches_without_valid_pixels_are_not_shown(loaded: Loaded, make_scene: MakeScene) -> None:
    scene = make_scene("S2L2A", 64, 64, nodata=0)
    with rasterio.open(scene, "r+") as dataset:
        values = dataset.read()
        values[:, :32] = 0
        dataset.write(values)
    tok = load_tokenizer(loaded.tokenizers["S2L2A"].name)
    path = scene.with_suffix(".tmc")
    tmcodec.encode(scene, path, modality="S2L2A", tokenizer=tok)
    _, made = sums(path, scene.with_name("o.tmc"), 0, loaded.tokenizers)
    assert (made[2:] == tokens_of(path, "S2L2A")[2:].astype(np.int64).sum() % 15360).all()


# --------------------------------------------------------------------------- rasters and samples


@pytest.mark.parametrize("crs", ["EPSG:32721", "+proj=ob_tran +o_proj=longlat +o_lat_p=39.25 +R=6371229"])
def test_geotiffs_lie_on_the_same_pixels(loaded: Loaded, encode: Callable[..., Path], crs: str) -> None:
    src = encode(crs=crs, left=123456.5)
    report = generate_files(loaded, src, src.with_name("o.tif"), ["DEM", "LULC"], settings=FAST)
    assert [Path(path).name for path in report.paths] == ["o_DEM.tif", "o_LULC.tif"]
    with rasterio.open(src.with_suffix(".tif")) as one:
        for path, dtype in zip(report.paths, ("int16", "uint8"), strict=True):
            with rasterio.open(path) as two:
                assert (one.crs, one.transform, one.shape) == (two.crs, two.transform, two.shape)
                assert (two.dtypes[0], two.tags()["TMCODEC_GENERATED"]) == (dtype, "yes")


def test_a_geotiff_is_the_decoded_token_file(loaded: Loaded, encode: Callable[..., Path]) -> None:
    src = encode()
    out, raster, decoded = (src.with_name(name) for name in ("o.tmc", "o.tif", "d.tif"))
    generate_files(loaded, src, out, ["DEM"], settings=FAST)
    generate_files(loaded, src, raster, "DEM", settings=FAST)
    tmcodec.decode(out, decoded, tokenizer=loaded.tokenizers["DEM"].name)
    assert raster.read_bytes() == decoded.read_bytes()


def test_samples_give_mean_and_spread(loaded: Loaded, encode: Callable[..., Path]) -> None:
    src, how = encode(width=70, height=60), Settings(samples=3, decoding_steps=2)
    report = generate_files(loaded, src, src.with_name("o.tif"), ["DEM", "LULC"], settings=how)
    assert [Path(path).name for path in report.paths] == [
        "o_DEM.tif", "o_LULC.tif", "o_DEM_mean.tif", "o_DEM_std.tif", "o_LULC_majority.tif",
        "o_LULC_share.tif"]  # fmt: skip
    read = {Path(path).name: rasterio.open(path).read(1) for path in report.paths}
    assert (read["o_DEM_std.tif"] >= 0).all() and read["o_DEM_std.tif"].max() > 0
    assert set(np.unique(np.rint(read["o_LULC_share.tif"] * 3))) <= {1.0, 2.0, 3.0}
    sure = read["o_LULC_share.tif"] == 1
    assert np.array_equal(read["o_LULC.tif"][sure], read["o_LULC_majority.tif"][sure])


def test_middle_and_spread_by_hand() -> None:
    middle, spread = middle_and_spread(np.array([[1.0, 2.0], [3.0, 2.0]]))
    assert (middle.tolist(), spread.tolist()) == ([2.0, 2.0], [1.0, 0.0])
    far = [np.float32([1e6 + i]) for i in (0, 1, 2)]
    assert middle_and_spread(iter(far))[1].tolist() == [pytest.approx(math.sqrt(2 / 3), rel=1e-6)]
    middle, share = middle_and_spread(np.array([[1.0, 2.0], [3.0, 2.0], [3.0, 0.0], [1.0, 2.0]]), classes=4)
    assert (middle.tolist(), share.tolist()) == ([1.0, 2.0], [0.5, 0.75])


def test_spread_takes_no_more_memory_for_more_samples(
    loaded: Loaded, encode: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A square of 512 x 512 heights is 1 MB; of 24 samples, one is there at a time."""
    src, tok, peaks = encode("DEM", 512, 512), load_tokenizer(loaded.tokenizers["DEM"].name), []
    drawn = iter(range(100))

    def flat(job: Any, read: Any, context: Window, valid: Any) -> np.ndarray:
        return np.full((1, context.height, context.width), next(drawn), np.float32)

    monkeypatch.setattr(decoding, "decode_context", flat)
    for count in (3, 24):
        targets = (src.with_name(f"m{count}.tif"), src.with_name(f"s{count}.tif"))
        tracemalloc.start()
        write_spread([src] * count, "DEM", targets, tok, steps=1, seed=0, device="cpu", batch_size=4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        if count == 3:
            with rasterio.open(targets[0]) as middle, rasterio.open(targets[1]) as spread:
                assert (middle.read() == 1).all()  # of 0, 1 and 2
                np.testing.assert_allclose(spread.read(), math.sqrt(2 / 3), rtol=1e-6)
    assert peaks[1] < peaks[0] + 4 * 2**20


# --------------------------------------------------------------------------- coordinates


def test_the_centre_of_a_tile_in_degrees() -> None:
    # UTM 33N: easting 500 km is 15 degrees east, on the equator northing 0.
    grid = MapGrid(320, 320, "EPSG:32633", (10, 0, 500000 - 1600, 0, -10, 1600))
    lon, lat = centre(grid, Window(0, 0, 20, 20), 16)
    assert (lon, lat) == (pytest.approx(15), pytest.approx(0, abs=1e-9))
    east = centre(grid, Window(10, 0, 10, 20), 16)
    # 800 m are 800 / (0.9996 * 111319.49) degrees there.
    assert east[0] - 15 == pytest.approx(800 / (0.9996 * 111319.49), rel=1e-4)
    assert tile_coordinates("auto", MapGrid(320, 320, None, None), [Window(0, 0, 1, 1)], 16) is None


def test_the_text_of_a_crs_is_no_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        grid = MapGrid(320, 320, f"http://127.0.0.1:{server.getsockname()[1]}/crs", None)
        assert centre(grid, Window(0, 0, 20, 20), 16) is None
        with pytest.raises(BlockingIOError):  # nobody has come
            server.accept()
    assert tile_coordinates((1.0, 2.0), grid, [Window(0, 0, 1, 1)] * 2, 16) == [(1.0, 2.0)] * 2


def test_coordinates_without_a_vocabulary(loaded: Loaded, encode: Callable[..., Path]) -> None:
    """Automatic ones are none where the generator takes none; missing words are always an error."""
    src = encode(width=60, height=40)
    one, two = src.with_name("a.tmc"), src.with_name("b.tmc")
    without = tiny_generator(tuple(spec for spec in SPECS if spec.kind != "sequence"))
    without.tokenizers = loaded.tokenizers
    generate_files(without, src, one, ["DEM"], settings=FAST, coords="auto")
    generate_files(without, src, two, ["DEM"], settings=FAST)
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(VocabularyError, match="no vocabulary of coords"):
        generate_files(without, src, src.with_name("c.tmc"), ["DEM"], coords=(8.5, 47.0))
    for coords in ("auto", (8.5, 47.0)):
        with pytest.raises(VocabularyError, match="words of coords"):
            generate_files(loaded, src, src.with_name("c.tmc"), ["DEM"], coords=coords)


GLOBE = 6378137.0
ORTHO = rasterio.CRS.from_string(f"+proj=ortho +lat_0=0 +lon_0=0 +R={GLOBE}").to_wkt()
WEST = -math.sqrt(GLOBE**2 - (5e6 - 320) ** 2)
"""Where the globe ends at the middle of a row of tiles that begins 5,000 km up: there is no place beyond."""


def test_a_place_off_the_globe_is_none() -> None:
    grid = MapGrid(128, 64, ORTHO, (10, 0, WEST - 640, 0, -10, 5e6))
    first, second = tile_coordinates("auto", grid, [Window(0, 0, 4, 4), Window(4, 0, 4, 4)], 16)
    lat = math.degrees(math.asin((5e6 - 320) / GLOBE))
    lon = math.degrees(math.asin((WEST + 320) / GLOBE / math.cos(math.radians(lat))))
    assert first is None and second == (pytest.approx(lon, abs=1e-3), pytest.approx(lat, abs=1e-3))


def test_tiles_without_coordinates_do_not_take_those_of_others(
    loaded: Loaded, encode: Callable[..., Path]
) -> None:
    src, found = encode(width=128, height=64, crs=ORTHO, left=WEST - 640), []
    how: dict[str, Any] = {"settings": FAST, "overlap": 0, "overwrite": True}
    loaded.vocabulary, out = Words(), src.with_name("o.tmc")
    for coords, batch_size in ((None, 2), ("auto", 1), ("auto", 2)):
        generate_files(loaded, src, out, "DEM", coords=coords, batch_size=batch_size, **how)
        found.append(tokens_of(out, "DEM"))
    without, one, two = found
    assert np.array_equal(one, two)
    assert np.array_equal(one[:, :4], without[:, :4]) and not np.array_equal(one[:, 4:], without[:, 4:])


# --------------------------------------------------------------------------- bad input


@pytest.fixture
def folder(encode: Callable[..., Path]) -> Path:
    """Return a folder with good and bad sources."""
    src = encode(width=60, height=40)
    encode("S1GRD", width=60, height=56)
    encode("LULC", width=60, height=40, left=500010.0)
    encode("NDVI", width=60, height=40)
    return src.parent


def test_texts_come_from_the_tile_in_the_middle(loaded: Loaded, encode: Callable[..., Path]) -> None:
    src = encode(width=130, height=90)
    loaded.vocabulary = Words()
    middle = tokens_of(src, "S2L2A")[1:5, 2:6]  # of 6 x 9 tokens
    report = generate_files(loaded, src, None, [], texts=["coords"], settings=Settings(temperature=0))
    alone = generate(loaded, {"S2L2A": middle}, ["coords"], temperature=0)
    assert (report.paths, report.targets) == ((), ("coords",))
    assert report.texts == {"coords": alone.texts["coords"][0][0]}


@pytest.mark.parametrize(
    ("srcs", "targets", "how", "error", "message"),
    [
        (["S2L2A.tmc"], ["S3"], {}, ModalityError, "unknown modality"),
        (["S2L2A.tmc"], ["S1RTC"], {}, TargetError, "does not make S1RTC"),
        (["S2L2A.tmc"], ["S2L2A"], {}, TargetError, "source and target"),
        (["S2L2A.tmc"], [], {}, TargetError, "no target"),
        (["S2L2A.tmc"], ["DEM", "dem"], {}, TargetError, "each once"),
        ([], ["DEM"], {}, ConditionError, "no layer to generate"),
        (["NDVI.tmc"], ["DEM"], {}, ConditionError, "no NDVI"),
        (["NDVI.tif"], ["DEM"], {}, ConditionError, "no NDVI"),
        (["S2L2A.tmc", "S1GRD.tmc"], ["DEM"], {}, GridMismatchError, "60 x 40.*60 x 56"),
        (["S2L2A.tmc", "LULC.tmc"], ["DEM"], {}, GridMismatchError, "500000.*500010"),
        (["S2L2A.tmc", "S2L2A.tmc"], ["DEM"], {}, ConditionError, "both S2L2A"),
        (["S2L2A.tmc"], ["DEM"], {"layers": ["S1"]}, ConditionError, "no layer to generate"),
        (["S2L2A.tmc", "LULC.tmc"], ["DEM"], {"layers": ["S2L2A", "S1"]}, LayerNotFoundError, "'S1'"),
        (["S2L2A.tmc"], ["DEM"], {"time": 1}, LayerNotFoundError, "no time step 1"),
        (["S2L2A.tmc"], ["DEM"], {"caption": "a lake"}, VocabularyError, "caption"),
        (["S2L2A.tmc"], ["DEM"], {"overlap": 4}, GenerationError, "give 0 to 3"),
        (["S2L2A.tmc"], ["DEM"], {"max_pixels": 99}, LimitExceededError, "limit of 99"),
        (["S2L2A.tmc"], ["DEM"], {"settings": SAME}, GenerationError, "3 samples would be equal"),
        (["S2L2A.tmc"], ["DEM"], {"format": "png"}, GenerationError, "choose one of tmc, tif"),
        (["missing.tmc"], ["DEM"], {}, OSError, "missing"),
        (["missing.tif"], ["DEM"], {}, TmcodecError, "missing"),
        (["S2L2A.tmc"], ["DEM"], {"out": "S2L2A.tmc"}, TargetNameError, "is the source itself"),
        (["S2L2A.tmc"], ["DEM"], {"out": "no/o.tmc"}, TargetFolderError, "does not exist"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    loaded: Loaded, folder: Path, srcs: list[str], targets: list[str], how: dict[str, Any],
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    before, how = listing(folder), dict(how)
    out = folder / how.pop("out", "o.tmc")
    with pytest.raises(error, match=message) as caught:
        generate_files(loaded, [folder / src for src in srcs], out, targets, **{"settings": FAST, **how})
    assert "\n" not in str(caught.value)
    assert listing(folder) == before


@pytest.fixture
def enormous(loaded: Loaded, tmp_path: Path) -> Path:
    """Return a file of some fifty bytes: 2^60 pixels of elevation in 2^40 chunks, all empty."""
    tok = load_tokenizer(loaded.tokenizers["DEM"].name)
    meta = LayerMeta("DEM", "DEM", tok.name, tok.sha256, tok.levels, 2**30, 2**30, "int16", ("DEM",))
    with TokenFileWriter(tmp_path / "enormous.tmc", FileMeta((meta,)), sparse=True):
        pass
    return tmp_path / "enormous.tmc"


def test_enormous_files_are_refused_before_anything_goes_through_their_chunks(
    loaded: Loaded, enormous: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "layer_hash", lambda *_: pytest.fail("it went through the chunks"))
    with pytest.raises(LimitExceededError, match=f"{2**30} x {2**30} pixels are more than the limit"):
        generate_files(loaded, enormous, tmp_path / "o.tmc", ["LULC"], settings=FAST)
    with pytest.raises(LimitExceededError, match="limit of 2147483648; raise max_pixels"):
        embed_files([enormous], loaded)


def test_the_hash_of_a_layer_is_of_its_checksums_in_order(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty chunks count as 0, others as their checksum and one; whatever number is hashed at once."""
    tok = load_tokenizer(loaded.tokenizers["DEM"].name)
    meta = LayerMeta(
        "DEM", "DEM", tok.name, tok.sha256, tok.levels, 3072, 2048, "int16", ("DEM",), times=(None, None)
    )
    with TokenFileWriter(tmp_path / "a.tmc", FileMeta((meta,)), coders=(), sparse=True) as writer:
        for row, col in ((0, 1), (1, 0), (1, 1)):
            writer.write_chunk(0, 1, row, col, np.full((64, 64), row + col))
    with tmcodec.open(tmp_path / "a.tmc") as file:
        sums = [int(crc) + 1 for crc in file["DEM"].index.crcs]
        for time, stored in ((0, [0] * 6), (1, [0, sums[0], 0, sums[1], sums[2], 0])):
            text = tok.sha256 + struct.pack("<8Q", 3072, 2048, *stored)
            for at_once in (1, 4, 2**16):
                monkeypatch.setattr(sources, "HASHED", at_once)
                assert sources.layer_hash(file["DEM"], time) == hashlib.sha256(text).hexdigest()[:16]


def test_tokens_of_another_tokenizer_are_refused_by_name(
    loaded: Loaded, folder: Path, tiny_tokenizer: Callable[[str], Path]
) -> None:
    before = listing(folder)
    loaded.tokenizers["S2L2A"] = type(loaded.tokenizers["DEM"])("mini-s2l2a-v1", bytes(32))
    with pytest.raises(TokenizerMismatchError, match=r"tiny-s2l2a .* tiny-any2any .* mini-s2l2a-v1"):
        generate_files(loaded, folder / "S2L2A.tmc", folder / "o.tmc", ["DEM"])
    assert listing(folder) == before


def test_terraminds_tokens_of_other_tiles_are_refused() -> None:
    """Attention looks at the whole tile, so tokens of 256 pixels are others; 14 tokens are 224."""
    loaded, refs = tiny_generator(grid=14), official_tokenizers(tiny_config())
    loaded.tokenizers = {**refs, "LULC": TokenizerRef("mini-lulc-v2")}
    dem = LayerMeta("DEM", "DEM", "terramind-v1-dem", bytes(32), (8, 8), 64, 64, "int16", ("DEM",))
    lulc = LayerMeta("LULC", "LULC", "mini-lulc-v2", bytes(32), (8, 8), 64, 64, "uint8", ("LULC",))
    check_layer(loaded, replace(dem, tile=224), {})
    check_layer(loaded, replace(lulc, tile=256), {})
    with pytest.raises(TokenizerMismatchError, match=r"tiles of 256 pixels.*those of 224; .*--tile 224"):
        check_layer(loaded, replace(dem, tile=256), {})


@pytest.mark.parametrize("grid", [4, 8, 14, 16])
def test_a_trained_generator_says_which_tiles_it_knows(grid: int) -> None:
    """Its grid says nothing about them: windows of 14 tokens may be cut from tiles of 16."""
    loaded, sha = tiny_generator(grid=grid), bytes(range(32))
    dem = LayerMeta("DEM", "DEM", "terramind-v1-dem", sha, (8, 8), 64, 64, "int16", ("DEM",))
    mine = replace(dem, tokenizer="my-terramind")
    for tile, other in ((224, 256), (256, 224)):
        for layer in (dem, mine):
            loaded.tokenizers = {"DEM": TokenizerRef(layer.tokenizer, sha, tile)}
            check_layer(loaded, replace(layer, tile=tile), {})
            with pytest.raises(TokenizerMismatchError, match=f"encode with --tile {tile}"):
                check_layer(loaded, replace(layer, tile=other), {})
        # Weights files of older trainings do not say it.
        loaded.tokenizers = {"DEM": TokenizerRef("terramind-v1-dem", sha)}
        check_layer(loaded, replace(dem, tile=tile), {})
        # Tokens of the embedded tokenizers are the same in any.
        loaded.tokenizers = {"DEM": TokenizerRef("mini-dem-v2", sha, tile)}
        check_layer(loaded, replace(dem, tokenizer="mini-dem-v2", tile=other), {})


def test_targets_share_one_chunk(loaded: Loaded, tmp_path: Path) -> None:
    """Tiles of 224 pixels make chunks of 56 tokens, those of 256 chunks of 64."""
    given = np.random.default_rng(0).integers(0, 15360, (60, 4)).astype(np.int32)
    tok = load_tokenizer(loaded.tokenizers["DEM"].name)
    meta = LayerMeta("DEM", "DEM", tok.name, tok.sha256, tok.levels, 64, 960, "int16", ("DEM",))
    with TokenFileWriter(tmp_path / "dem.tmc", FileMeta((meta,))) as writer:
        writer.write_chunk(0, 0, 0, 0, given)
    lulc = copy(load_tokenizer(loaded.tokenizers["LULC"].name))
    lulc.tile = 224
    summing = Loaded(SumNet(), tokenizers=loaded.tokenizers)
    for toks, chunk in (([], 64), ([lulc], 56)):
        out = tmp_path / f"{chunk}.tmc"
        how = Settings(decoding_steps=1, temperature=0, order="independent")
        generate_files(
            summing, tmp_path / "dem.tmc", out, ["S1GRD", "LULC"], settings=how, overlap=0, tokenizers=toks
        )
        with tmcodec.open(out) as file:
            assert {layer.meta.chunk for layer in file.layers.values()} == {chunk}
            sums = given.astype(np.int64).reshape(15, 4, 4).sum((1, 2)) % 4375
            assert np.array_equal(file["LULC"].tokens()[:, 0], sums.repeat(4))


def test_a_retrained_decoder_of_the_same_tokens_is_taken(loaded: Loaded, encode: Callable[..., Path]) -> None:
    src, own = encode(width=60, height=40), loaded.tokenizers["DEM"]
    tok = copy(load_tokenizer(own.name))
    tok.sha256, tok.decodes = bytes([1] * 32), (Origin("tiny-dem", own.sha256),)
    plain, made, lulc = (src.with_name(f"{name}.tmc") for name in ("plain", "made", "lulc"))
    generate_files(loaded, src, plain, "DEM", settings=FAST)
    generate_files(loaded, src, made, "DEM", settings=FAST, tokenizers=[tok])
    assert np.array_equal(tokens_of(plain, "DEM"), tokens_of(made, "DEM"))
    with tmcodec.open(made) as file:
        assert file["DEM"].meta.weights_sha256 == tok.sha256
    generate_files(loaded, made, lulc, "LULC", settings=FAST, tokenizers=[tok])
    with pytest.raises(TokenizerMismatchError, match="0101"):
        generate_files(loaded, made, lulc, "LULC", settings=FAST, overwrite=True)


def test_the_date_is_that_of_a_source_that_has_one(loaded: Loaded, encode: Callable[..., Path]) -> None:
    dem, s2 = encode("DEM", 60, 40), encode("S2L2A", 60, 40)
    with rasterio.open(s2.with_suffix(".tif"), "r+") as dataset:
        dataset.update_tags(TMCODEC_TIME="2024-05-06T10:20:30+00:00")
    dated = f"S2L2A={s2.with_suffix('.tif')}"
    for srcs in ([dem, dated], [dated, dem]):
        out = dem.with_name("out.tmc")
        generate_files(loaded, srcs, out, "LULC", settings=FAST, overwrite=True)
        with tmcodec.open(out) as file:
            assert file["LULC"].meta.times == (datetime(2024, 5, 6, 10, 20, 30, tzinfo=timezone.utc),)


def test_a_damaged_chunk_stops_everything(loaded: Loaded, folder: Path) -> None:
    data = bytearray((folder / "S2L2A.tmc").read_bytes())
    data[-3] ^= 1
    (folder / "S2L2A.tmc").write_bytes(data)
    before = listing(folder)
    with pytest.raises(TmcodecError, match="damaged"):
        generate_files(loaded, folder / "S2L2A.tmc", folder / "o.tif", ["DEM", "LULC"], settings=FAST)
    assert listing(folder) == before


def test_an_interruption_leaves_nothing(loaded: Loaded, folder: Path) -> None:
    before = listing(folder)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_files(loaded, folder / "S2L2A.tmc", folder / "o", ["DEM"], format="tif", progress=stop)
    assert listing(folder) == before


def test_overwriting_is_asked_for(loaded: Loaded, folder: Path) -> None:
    (folder / "o_LULC.tif").write_bytes(b"precious")
    how: dict[str, Any] = {"settings": FAST, "format": "tif"}
    with pytest.raises(TargetExistsError, match="o_LULC"):
        generate_files(loaded, folder / "S2L2A.tmc", folder / "o.tif", ["DEM", "LULC"], **how)
    assert (folder / "o_LULC.tif").read_bytes() == b"precious"
    generate_files(loaded, folder / "S2L2A.tmc", folder / "o.tif", ["DEM", "LULC"], overwrite=True, **how)
    assert rasterio.open(folder / "o_LULC.tif").shape == (40, 60)


@pytest.mark.parametrize("name", ["o.img", "o.gpkg", "o.png"])
def test_a_token_file_is_not_called_like_a_raster(loaded: Loaded, folder: Path, name: str) -> None:
    with pytest.raises(TargetNameError, match=f"{name}: what is written is a token file; name it .tmc"):
        generate_files(loaded, folder / "S2L2A.tmc", folder / name, ["DEM"], settings=FAST)


@pytest.mark.parametrize(
    ("src", "out", "targets", "how"),
    [
        ("S2L2A.tmc", "S2L2A.tmc", ["DEM"], {}),
        ("S2L2A=S2L2A.tif", "S2L2A.tif", ["DEM"], {}),
        ("S2L2A=o_DEM.tif", "o.tif", ["DEM", "LULC"], {}),
        ("S2L2A=o_DEM_std.tif", "o.tmc", ["DEM"], {"settings": Settings(samples=2)}),
        ("S2L2A=DEM.tif", ".", ["DEM"], {"format": "tif"}),
    ],
)
def test_no_output_replaces_its_source(
    loaded: Loaded, make_scene: MakeScene, folder: Path, src: str, out: str, targets: list[str],
    how: dict[str, Any],
) -> None:  # fmt: skip
    modality, equals, name = src.rpartition("=")
    if not (folder / name).exists():
        make_scene("S2L2A", 60, 40, name=name)
    before, given = (folder / name).read_bytes(), f"{modality}{equals}{folder / name}"
    with pytest.raises(TargetNameError, match=f"{name} is the source itself; choose another target"):
        generate_files(loaded, given, folder / out, targets, overwrite=True, **how)
    assert (folder / name).read_bytes() == before


def test_files_are_made_on_the_disk_of_their_folder(
    loaded: Loaded, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be a mount point, or a link to one: nothing is renamed into it from outside."""
    disk, link = folder / "disk", folder / "link"
    disk.mkdir()
    link.symlink_to(disk)
    replace = os.replace

    def strict(one: Path, two: Path) -> None:
        if (disk in Path(one).resolve().parents) != (disk in Path(two).resolve().parents):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(one), None, str(two))
        replace(one, two)

    monkeypatch.setattr(os, "replace", strict)
    for out in (disk, link):
        generate_files(loaded, folder / "S2L2A.tmc", out, ["DEM", "LULC"], settings=FAST, format="tif",
                       overwrite=True)  # fmt: skip
        assert listing(disk) == ["DEM.tif", "LULC.tif"]


def test_a_name_with_a_slash_at_its_end_is_a_folder(loaded: Loaded, folder: Path) -> None:
    for name in ("maps/", "maps.tif/", "maps.tmc/"):
        report = generate_files(loaded, folder / "S2L2A.tmc", f"{folder}/{name}", "DEM", settings=FAST)
        assert report.paths == (str(folder / name / "DEM.tif"),) and listing(folder / name) == ["DEM.tif"]
    with pytest.raises(GenerationError, match="other is a folder, and a token file holds all targets"):
        generate_files(loaded, folder / "S2L2A.tmc", f"{folder}/other/", "DEM", format="tmc")


@pytest.mark.parametrize("name", ["o.tmc", "o.png"])
def test_a_folder_of_geotiffs_is_not_called_like_another_file(
    loaded: Loaded, folder: Path, name: str
) -> None:
    with pytest.raises(TargetNameError, match=f"{name}: what is written are GeoTIFFs; name it .tif"):
        generate_files(loaded, folder / "S2L2A.tmc", folder / name, ["DEM"], settings=FAST, format="tif")
    assert not (folder / name).exists()


def test_sidecars_of_older_files_are_no_part_of_new_ones(loaded: Loaded, folder: Path) -> None:
    how: dict[str, Any] = {"settings": Settings(samples=2, decoding_steps=1), "format": "tif"}
    stray = [folder / f"o{kind}.tif.aux.xml" for kind in ("", "_DEM_mean", "_DEM_std")]
    for path in stray:
        path.write_text("<PAMDataset><Metadata><MDI key='OLD'>1</MDI></Metadata></PAMDataset>")
    with pytest.raises(TargetExistsError, match=r"o\.tif\.aux\.xml would be read as part of the new file"):
        generate_files(loaded, folder / "S2L2A.tmc", folder / "o.tif", ["DEM"], **how)
    report = generate_files(loaded, folder / "S2L2A.tmc", folder / "o.tif", ["DEM"], overwrite=True, **how)
    assert len(report.paths) == 3 and not any(path.exists() for path in stray)
    assert not any("OLD" in rasterio.open(path).tags() for path in report.paths)


def test_global_random_state_is_left_alone(loaded: Loaded, folder: Path) -> None:
    state = torch.get_rng_state()
    generate_files(loaded, folder / "S2L2A.tmc", folder / "o.tmc", ["DEM"], settings=FAST)
    assert torch.equal(state, torch.get_rng_state())


def test_gaps_of_nan_without_a_nodata_value_are_gaps_of_what_is_made(
    loaded: Loaded, tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    """Float rasters need no nodata value for their gaps; classes and pictures get a mask for them."""
    values = np.random.default_rng(0).normal(0.2, 0.02, (12, 80, 80)).astype(np.float32)
    values[:, :30, 20:] = np.nan
    src, tokens = tmp_path / "nan.tif", tmp_path / "nan.tmc"
    with rasterio.open(src, "w", driver="GTiff", width=80, height=80, count=12, dtype="float32") as target:
        target.write(values)
    how = {"modality": "S2L2A", "s2_offset": "absent", "tokenizer": tiny_tokenizer("S2L2A")}
    tmcodec.encode(src, tokens, balance=False, **how)
    expected = np.isfinite(values[0])
    for format in ("tif", "tmc"):
        out = tmp_path / f"made.{format}"
        generate_files(loaded, [tokens], out, ["LULC"], settings=FAST, format=format)
        if format == "tmc":
            tmcodec.decode(out, tmp_path / "again.tif", tokenizer=tiny_tokenizer("LULC"))
            out = tmp_path / "again.tif"
        with rasterio.open(out) as made:
            assert np.array_equal(made.read_masks(1) > 0, expected)


def test_a_modality_before_a_token_file_chooses_its_layers(
    loaded: Loaded, encode: Callable[..., Path], tmp_path: Path
) -> None:
    both = tmp_path / "both.tmc"
    tmcodec.tokenfile.stack([encode("S2L2A"), encode("DEM")], both)
    alone = generate_files(loaded, [f"DEM={both}"], tmp_path / "a.tmc", ["LULC"], settings=FAST)
    assert alone.sources == ("DEM",)
    with pytest.raises(ConditionError, match="it holds DEM, S2L2A, not S1GRD; name one of these, or none"):
        generate_files(loaded, [f"S1GRD={both}"], tmp_path / "b.tmc", ["LULC"], settings=FAST)
    assert not (tmp_path / "b.tmc").exists()


def test_a_layer_and_a_modality_before_a_file_choose_together(
    loaded: Loaded, encode: Callable[..., Path], tmp_path: Path
) -> None:
    s2, both = encode("S2L2A"), tmp_path / "both.tmc"
    tmcodec.tokenfile.stack([encode("DEM"), encode("S1GRD")], both)
    found = generate_files(
        loaded, [s2, f"DEM={both}"], tmp_path / "a.tmc", ["LULC"], settings=FAST, layers=["S2L2A", "DEM"]
    )
    assert found.sources == ("S2L2A", "DEM")
    with pytest.raises(ConditionError, match=r"both.tmc: --layer names none of its DEM layers \(DEM\)"):
        generate_files(loaded, [s2, f"DEM={both}"], tmp_path / "b.tmc", ["LULC"], layers=["S2L2A"])
    assert not (tmp_path / "b.tmc").exists()
