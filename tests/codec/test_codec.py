"""Rasters to token files and back, with untrained tokenizers: everything but the picture's quality."""

from __future__ import annotations

import io
import json
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner

import tmcodec
from tmcodec import errors
from tmcodec.cli import cli
from tmcodec.codec.arrays import with_profile
from tmcodec.codec.chunks import far_from_valid, neutral_token, side_of_batch
from tmcodec.codec.decode import Squares, Wanted, make_job
from tmcodec.codec.tokenizer import MiniTokenizer
from tmcodec.modalities import MODALITIES
from tmcodec.rasters import Window
from tmcodec.tokenfile import FileMeta, TokenFileWriter
from tmcodec.tokenfile.context.settle import settle

MakeScene = Callable[..., Path]
MakeTokenizer = Callable[[str], Path]


@pytest.fixture
def scene(make_scene: MakeScene) -> Path:
    return make_scene("S2L2A", 150, 90)


@pytest.fixture
def weights(tiny_tokenizer: MakeTokenizer) -> Path:
    return tiny_tokenizer("S2L2A")


@pytest.fixture
def tokens(scene: Path, weights: Path, tmp_path: Path) -> Path:
    path = tmp_path / "scene.tmc"
    tmcodec.encode(scene, path, tokenizer=weights)
    return path


@pytest.mark.parametrize(("modality", "dtype", "nodata"), [
    ("S1GRD", "float32", None), ("S2RGB", "uint8", 0), ("S1GRD", "int16", -32768), ("S2L2A", "uint16", 0),
])
def test_masks_of_bands_come_back_band_by_band(
    modality: str, dtype: str, nodata: int | None, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """A GeoTIFF has one mask for all bands; bands of floats differ by NaN, of integers by a nodata value."""
    row = MODALITIES[modality]
    array = np.full((len(row.bands), 40, 50), row.mean[0], dtype)
    mask = np.zeros(array.shape, np.bool_)
    mask[0, :10], mask[1, 20:30], mask[:, :, :7] = True, True, True
    weights, dst, out = tiny_tokenizer(modality), tmp_path / "a.tmc", tmp_path / "out.tif"
    tmcodec.encode(
        np.ma.array(array, mask=mask), dst, modality=modality, tokenizer=weights,
        s2_offset="absent" if row.optical else "auto", profile={"crs": "EPSG:32633"},
    )  # fmt: skip
    tmcodec.decode(dst, out, tokenizer=weights)
    with rasterio.open(out) as b:
        assert b.dtypes[0] == dtype and b.nodatavals[0] == nodata
        back = (b.read_masks() > 0) & np.isfinite(b.read())
    np.testing.assert_array_equal(back, ~mask)


def test_one_mask_for_all_bands_stays_a_mask(tiny_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    weights, dst, out = tiny_tokenizer("S2RGB"), tmp_path / "a.tmc", tmp_path / "out.tif"
    mask = np.zeros((40, 50), np.bool_)
    mask[:10] = True
    array = np.ma.array(np.full((3, 40, 50), 80, np.uint8), mask=np.stack([mask] * 3))
    tmcodec.encode(array, dst, modality="S2RGB", tokenizer=weights, profile={"crs": "EPSG:32633"})
    tmcodec.decode(dst, out, tokenizer=weights)
    with rasterio.open(out) as b:
        assert b.nodata is None
        np.testing.assert_array_equal(b.read_masks() == 0, np.stack([mask] * 3))


@pytest.mark.parametrize("modality", list(MODALITIES))
def test_every_modality_comes_back_in_its_place(
    modality: str, make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    nodata = {"float32": float("nan"), "uint8": 255, "int16": -32768, "uint16": 0}[MODALITIES[modality].dtype]
    src = make_scene(modality, 70, 45, nodata=nodata)
    with rasterio.open(src, "r+") as dataset:
        array = dataset.read()
        array[:, 3:20, 5:40] = nodata
        dataset.write(array)
    weights, dst, out = tiny_tokenizer(modality), tmp_path / "a.tmc", tmp_path / "out.tif"
    report = tmcodec.encode(src, dst, modality=modality, tokenizer=weights)
    assert (report.width, report.height, report.tokens) == (70, 45, 5 * 3)
    assert report.raw_bytes == array.nbytes
    assert report.file_bytes == dst.stat().st_size
    tmcodec.decode(dst, out, tokenizer=weights)
    with rasterio.open(src) as a, rasterio.open(out) as b:
        assert (a.crs, a.transform, a.shape, a.dtypes) == (b.crs, b.transform, b.shape, b.dtypes)
        assert a.descriptions == b.descriptions
        np.testing.assert_equal(b.nodatavals, a.nodatavals)
        np.testing.assert_array_equal(a.read_masks(), b.read_masks())
        if modality == "LULC":
            assert b.colormap(1)[1] == (65, 155, 223, 255)


@pytest.mark.parametrize("strange", [255, 10, -5])
def test_a_class_that_no_tokenizer_knows_is_no_other_class(
    strange: int, tiny_tokenizer: MakeTokenizer
) -> None:
    """LULC has ten classes; a nodata value in memory is none of them."""
    tok, ids = tmcodec.load_tokenizer(str(tiny_tokenizer("LULC"))), torch.full((1, 1, 32, 32), 9.0)
    assert tok.encode(ids).shape == (1, 2, 2)
    ids[0, 0, 3, 4] = strange
    with pytest.raises(errors.ShapeError, match=r"tiny-lulc knows classes 0\.\.9; map others"):
        tok.encode(ids)


@pytest.mark.parametrize("nodata", [None, 0, 255])
def test_no_data_of_a_class_map_comes_back_as_it_was(
    nodata: int | None, make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """Class 0 is "no data", declared or not, and no class that a network may invent others from."""
    src, weights = make_scene("LULC", 70, 45, nodata=nodata), tiny_tokenizer("LULC")
    with rasterio.open(src, "r+") as dataset:
        array = dataset.read()
        array[:, 3:20, 5:40] = 0
        dataset.write(array)
    tmcodec.encode(src, tmp_path / "a.tmc", tokenizer=weights)
    tmcodec.decode(tmp_path / "a.tmc", tmp_path / "a.tif", tokenizer=weights)
    with rasterio.open(tmp_path / "a.tif") as back:
        assert back.nodata == nodata
        assert set(np.unique(back.read()[array == 0])) == {nodata or 0}
    assert np.array_equal(tmcodec.decode_array(tmp_path / "a.tmc", tokenizer=weights)[1]["valid"], array > 0)
    found = tmcodec.compare(tmp_path / "a.tmc", src, tokenizer=weights)
    assert (found.mask_agreement, found.metrics.pixels) == (1.0, 70 * 45 - 17 * 35)


def test_a_class_map_of_no_data_alone_has_no_tokens(tiny_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    weights = tiny_tokenizer("LULC")
    empty = np.zeros((40, 50), np.uint8)
    report = tmcodec.encode(empty, tmp_path / "a.tmc", modality="LULC", tokenizer=weights)
    array, profile = tmcodec.decode_array(tmp_path / "a.tmc", tokenizer=weights)
    assert report.tokens == 0 and not array.any() and not profile["valid"].any()


def test_a_crs_without_geotiff_keys_comes_back(make_scene: MakeScene, weights: Path, tmp_path: Path) -> None:
    rotated = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +R=6371229 +no_defs"
    src, dst, out = make_scene(crs=rotated, left=5.0), tmp_path / "a.tmc", tmp_path / "out" / "a.tif"
    out.parent.mkdir()
    tmcodec.encode(src, dst, modality="S2L2A", tokenizer=weights)
    for cog in (False, True):
        tmcodec.decode(dst, out, tokenizer=weights, cog=cog, overwrite=True)
        with rasterio.open(src) as one, rasterio.open(out) as two:
            assert two.crs == one.crs == rasterio.CRS.from_string(rotated)
        assert sorted(path.name for path in out.parent.iterdir()) == ["a.tif", "a.tif.aux.xml"]


def test_tokens_do_not_depend_on_the_squares_they_were_made_in(
    scene: Path, weights: Path, tmp_path: Path
) -> None:
    big = np.tile(rasterio.open(scene).read(), (1, 13, 8))  # 1170 x 1200: four chunks
    grids = []
    for batch_size in (1, 16):
        path = tmp_path / f"{batch_size}.tmc"
        tmcodec.encode(
            big,
            path,
            profile={"descriptions": MODALITIES["S2L2A"].bands},
            s2_offset="absent",
            tokenizer=weights,
            batch_size=batch_size,
        )
        with tmcodec.open(path) as f:
            assert f["S2L2A"].meta.chunks == 4
            grids.append(f["S2L2A"].tokens())
    # float32 sums may differ in their last bit with the shape: a token at an edge may flip.
    assert np.count_nonzero(grids[0] != grids[1]) <= 3


def test_a_window_decodes_to_the_window_of_the_whole(tokens: Path, weights: Path) -> None:
    for steps in (1, 3):
        whole, profile = tmcodec.decode_array(tokens, tokenizer=weights, steps=steps, seed=4)
        part, inner = tmcodec.decode_array(
            tokens, tokenizer=weights, steps=steps, seed=4, window=(37, 21, 60, 41)
        )
        difference = part.astype(int) - whole[:, 21:62, 37:97]
        assert np.abs(difference).max() <= 1  # rounding of float32 sums that differ in shape
        a, _, c, _, e, f = profile["transform"]
        assert inner["transform"] == (a, 0, c + 37 * a, 0, e, f + 21 * e)


def test_noise_of_steps_lies_in_place() -> None:
    """DDPM adds noise in each step: a window decodes as the whole, and an item of a batch as alone."""
    tok = tmcodec.load_tokenizer("mini-s1grd-v2", device="cpu")
    halo = tok.decoder_halo(3)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, tok.codebook_size, (1, 2, 2 * halo + 4), generator=draw)
    whole = tok.decode(tokens, 3, 7, sampler="DDPM")
    part = tok.decode(tokens[:, :, 3:], 3, 7, origin=(0, 3), sampler="DDPM")
    inner = slice((3 + halo) * tok.patch, None)
    assert torch.allclose(part[..., halo * tok.patch :], whole[..., inner], atol=1e-3)
    both = tok.decode(tokens.expand(2, -1, -1), 3, 7, sampler="DDPM")
    assert torch.allclose(both, whole.expand(2, -1, -1, -1), atol=1e-3)
    assert not torch.allclose(tok.decode(tokens, 3, 8, sampler="DDPM"), whole, atol=0.1)


def test_bounds_choose_the_same_window(tokens: Path, weights: Path) -> None:
    # 10 m pixels from (500000, 5000000): columns 10..29, rows 20..49
    by_bounds, _ = tmcodec.decode_array(tokens, tokenizer=weights, bounds=(500100, 4999500, 500300, 4999800))
    by_window, _ = tmcodec.decode_array(tokens, tokenizer=weights, window=(10, 20, 20, 30))
    assert np.array_equal(by_bounds, by_window)
    with pytest.raises(errors.WindowError, match="exclude"):
        tmcodec.decode_array(tokens, tokenizer=weights, bounds=(0, 0, 1, 1), window=(0, 0, 1, 1))
    with pytest.raises(errors.WindowError, match="150 x 90"):
        tmcodec.decode_array(tokens, tokenizer=weights, window=(100, 0, 51, 10))


def test_encoding_a_window_moves_the_transform(scene: Path, weights: Path, tmp_path: Path) -> None:
    tmcodec.encode(scene, tmp_path / "w.tmc", tokenizer=weights, window=(20, 30, 64, 48))
    with tmcodec.open(tmp_path / "w.tmc") as f:
        layer = f["S2L2A"]
        assert layer.transform == (10, 0, 500200, 0, -10, 4999700)
        assert (layer.width, layer.height, layer.shape) == (64, 48, (3, 4))


def test_seeds_and_threads(tokens: Path, weights: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    alone = {s: tmcodec.decode_array(tokens, tokenizer=weights, steps=3, seed=s)[0] for s in (0, 1)}
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.array_equal(alone[0], alone[1])
    together: dict[int, Any] = {}

    def work(seed: int) -> None:
        together[seed] = tmcodec.decode_array(tokens, tokenizer=weights, steps=3, seed=seed)[0]

    threads = [threading.Thread(target=work, args=(s,)) for s in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(np.array_equal(alone[s], together[s]) for s in (0, 1))


def test_defaults_for_steps_and_seed_come_from_the_file(scene: Path, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.tmc"
    tmcodec.encode(scene, path, tokenizer=weights, steps=3, seed=77)
    stored, _ = tmcodec.decode_array(path, tokenizer=weights)
    said, _ = tmcodec.decode_array(path, tokenizer=weights, steps=3, seed=77)
    assert np.array_equal(stored, said)
    report = tmcodec.decode(path, tmp_path / "d.tif", tokenizer=weights)
    assert (report.steps, report.seed) == (3, 77)


def test_arrays_and_file_objects(weights: Path, scene: Path) -> None:
    with rasterio.open(scene) as dataset:
        array, profile = (
            dataset.read(),
            {"crs": dataset.crs, "transform": dataset.transform, "descriptions": dataset.descriptions},
        )
    buffer = io.BytesIO()
    report = tmcodec.encode(array, buffer, profile=profile, s2_offset="absent", tokenizer=weights)
    assert report.path == "<file object>"
    assert report.file_bytes == len(buffer.getvalue())
    got, back = tmcodec.decode_array(buffer, tokenizer=weights)
    assert got.shape == array.shape
    assert back["crs"] == "EPSG:32633"
    assert back["descriptions"] == MODALITIES["S2L2A"].bands


def test_the_s2_offset_is_undone(weights: Path, make_scene: MakeScene, tmp_path: Path) -> None:
    src = make_scene("S2L2A", 32, 32, offset=None)
    with pytest.raises(errors.OffsetUnknownError, match="--s2-offset"):
        tmcodec.encode(src, tmp_path / "x.tmc", tokenizer=weights)
    assert not (tmp_path / "x.tmc").exists()
    with rasterio.open(src) as dataset:
        array = dataset.read()
    profile = {"descriptions": MODALITIES["S2L2A"].bands}
    results = {}
    for offset, data in (("present", array), ("absent", array - 1000)):
        path = tmp_path / f"{offset}.tmc"
        report = tmcodec.encode(data, path, profile=profile, s2_offset=offset, tokenizer=weights)
        assert report.s2_offset == offset
        results[offset], _ = tmcodec.decode_array(path, tokenizer=weights)
    # The same light on the sensor: the same tokens, decoded 1000 apart (uint16 ends at 0).
    assert np.array_equal(np.maximum(results["present"], 1000), results["absent"] + 1000)


def test_other_weights_are_refused_by_both_hashes(tokens: Path, tmp_path: Path, weights: Path) -> None:
    from tmcodec.codec.weights import load_weights, save_weights

    net, name, mine, _ = load_weights(weights)
    with torch.no_grad():
        net.encoder.project.bias += 1
    theirs = save_weights(tmp_path / "other.safetensors", net, name, {})
    with pytest.raises(errors.TokenizerMismatchError) as caught:
        tmcodec.decode(tokens, tmp_path / "no.tif", tokenizer=tmp_path / "other.safetensors")
    assert mine.hex() in str(caught.value)
    assert theirs.hex() in str(caught.value)
    assert not (tmp_path / "no.tif").exists()


def test_a_tokenizer_of_another_modality_is_refused(
    scene: Path, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(errors.TokenizerMismatchError, match="S2L2A"):
        tmcodec.encode(scene, tmp_path / "x.tmc", tokenizer=tiny_tokenizer("S1GRD"))
    with pytest.raises(errors.TokenizerMismatchError, match="terramind-v1-s1rtc is for S1RTC"):
        tmcodec.encode(scene, tmp_path / "x.tmc", tokenizer="terramind-v1-s1rtc")  # nothing is fetched


def test_an_interrupted_run_leaves_nothing(scene: Path, tokens: Path, weights: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        tmcodec.encode(scene, tmp_path / "new.tmc", tokenizer=weights, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        tmcodec.decode(tokens, tmp_path / "new.tif", tokenizer=weights, progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_targets_are_not_overwritten_unasked(
    scene: Path, tokens: Path, weights: Path, tmp_path: Path
) -> None:
    kept = tokens.read_bytes()
    with pytest.raises(errors.TargetExistsError):
        tmcodec.encode(scene, tokens, tokenizer=weights)
    (tmp_path / "out.tif").write_text("mine")
    with pytest.raises(errors.TargetExistsError):
        tmcodec.decode(tokens, tmp_path / "out.tif", tokenizer=weights)
    assert tokens.read_bytes() == kept
    tmcodec.encode(scene, tokens, tokenizer=weights, overwrite=True)
    assert tokens.read_bytes() == kept  # the writer is deterministic


def test_a_bomb_is_stopped_before_anything_is_loaded(tokens: Path) -> None:
    with pytest.raises(errors.LimitExceededError, match="150 x 90"):
        tmcodec.decode_array(tokens, tokenizer="/nowhere.safetensors", max_pixels=100)


def test_squares_cover_a_window_and_are_not_listed() -> None:
    squares = Squares(Window(250, 10, 300, 500), 256)
    assert list(squares) == [
        Window(250, 10, 6, 246), Window(256, 10, 256, 246), Window(512, 10, 38, 246),
        Window(250, 256, 6, 254), Window(256, 256, 256, 254), Window(512, 256, 38, 254),
    ]  # fmt: skip
    assert len(squares) == 6
    tracemalloc.start()
    try:
        many = Squares(Window(0, 0, 46340, 46340), 16)
        assert len(many) == 2897**2 and list(islice(many, 2)) == [Window(0, 0, 16, 16), Window(16, 0, 16, 16)]
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


def test_salvage_keeps_what_is_intact(weights: Path, tmp_path: Path, scene: Path) -> None:
    array = np.tile(rasterio.open(scene).read(), (1, 1, 14))[:, :, :2080]  # 90 x 2080: three chunks
    array = np.random.default_rng(0).integers(1, 4000, array.shape).astype(np.uint16)
    path = tmp_path / "s.tmc"
    profile = {"descriptions": MODALITIES["S2L2A"].bands, "nodata": 0}
    tmcodec.encode(array, path, profile=profile, s2_offset="absent", tokenizer=weights)
    good, _ = tmcodec.decode_array(path, tokenizer=weights)
    with tmcodec.open(path) as f:
        chunk = f.header_bytes + int(f["S2L2A"].index.offsets[1])
    damaged = bytearray(path.read_bytes())
    damaged[chunk + 5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(errors.ChunkChecksumError):
        tmcodec.decode(path, tmp_path / "s.tif", tokenizer=weights)
    report = tmcodec.decode(path, tmp_path / "s.tif", tokenizer=weights, salvage=True)
    assert report.lost_chunks == 1
    got = rasterio.open(tmp_path / "s.tif").read()
    assert (got[:, :, 1024:2048] == 0).all()
    halo = 16 * 4  # the lost chunk was context for its neighbours' last tokens
    assert np.array_equal(got[:, :, : 1024 - halo], good[:, :, : 1024 - halo])
    assert (got[:, :, :1024] > 0).all()


def test_chunks_without_valid_pixels_cost_nothing(weights: Path, tmp_path: Path) -> None:
    array = np.full((12, 64, 2048), 2000, np.uint16)
    array[:, :, 1024:] = 0
    profile = {"descriptions": MODALITIES["S2L2A"].bands, "nodata": 0}
    report = tmcodec.encode(
        array, tmp_path / "e.tmc", profile=profile, s2_offset="present", tokenizer=weights
    )
    assert report.tokens == 4 * 64
    with tmcodec.open(tmp_path / "e.tmc") as f:
        assert f["S2L2A"].empty()[:, 64:].all()
        assert not f["S2L2A"].empty()[:, :64].any()
    got, _ = tmcodec.decode_array(tmp_path / "e.tmc", tokenizer=weights)
    assert (got[:, :, 1024:] == 0).all()
    assert (got[:, :, :1024] > 0).all()


def test_a_stack_needs_its_layer_named(
    tokens: Path, make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, weights: Path, tmp_path: Path
) -> None:
    dem = make_scene("DEM", 150, 90, name="dem.tif")
    tmcodec.encode(dem, tmp_path / "dem.tmc", modality="DEM", tokenizer=tiny_tokenizer("DEM"))
    tmcodec.stack([tokens, tmp_path / "dem.tmc"], tmp_path / "both.tmc")
    with pytest.raises(errors.LayerNotFoundError, match=r"both\.tmc has layers S2L2A, DEM; choose one"):
        tmcodec.decode_array(tmp_path / "both.tmc", tokenizer=weights)
    one, _ = tmcodec.decode_array(tokens, tokenizer=weights)
    both, _ = tmcodec.decode_array(tmp_path / "both.tmc", layer="S2L2A", tokenizer=weights)
    assert np.array_equal(one, both)


def test_tokenizers_check_what_they_are_given(weights: Path) -> None:
    tok = tmcodec.load_tokenizer(str(weights), device="cpu")
    assert isinstance(tok, MiniTokenizer)
    got = tok.encode(torch.full((2, 12, 32, 48), 2000.0))
    assert got.shape == (2, 2, 3)
    assert got.dtype == torch.int32
    assert tok.decode(got).shape == (2, 12, 32, 48)
    for bad in (torch.zeros(1, 11, 32, 32), torch.zeros(1, 12, 30, 32), torch.zeros(12, 32, 32)):
        with pytest.raises(errors.ShapeError):
            tok.encode(bad)
    with pytest.raises(errors.ShapeError, match="finite"):
        tok.encode(torch.full((1, 12, 16, 16), float("nan")))
    for token in (-1, 15360):
        with pytest.raises(errors.TokenRangeError, match="15359"):
            tok.decode(torch.full((1, 2, 2), token))
    for empty in (torch.zeros(1, 12, 0, 16), torch.zeros(1, 12, 16, 16, dtype=torch.complex64)):
        with pytest.raises(errors.ShapeError, match="tiny-s2l2a takes"):
            tok.encode(empty)
    with pytest.raises(errors.ShapeError):
        tok.decode(got[:, :0])
    assert torch.equal(tok.decode(got.to(torch.uint16)), tok.decode(got))
    with pytest.raises(errors.TokenRangeError, match="15359"):
        tok.decode(torch.full((1, 2, 2), 2**63, dtype=torch.uint64))
    for steps in (0, 1.5, "2"):
        with pytest.raises(errors.ShapeError, match=r"steps 1\.\.1000"):
            tok.decode(got, steps=steps)  # type: ignore[arg-type]
    for what in ({"seed": 1.5}, {"samples": 1.5}):
        with pytest.raises(errors.SamplerError, match=r"1\.5"):
            tok.decode(got, **what)  # type: ignore[arg-type]
    with pytest.raises(errors.ShapeError, match=r"a torch tensor, not ndarray; torch\.from_numpy"):
        tok.encode(np.zeros((1, 12, 16, 16)))  # type: ignore[arg-type]
    with pytest.raises(errors.ShapeError, match=r"a torch tensor, not ndarray; torch\.from_numpy"):
        tok.decode(got.numpy())  # type: ignore[arg-type]
    with pytest.raises(errors.ShapeError, match=r"integers, not torch\.float32"):
        tok.decode(got.float())
    for device in ("abacus", None):
        with pytest.raises(errors.DeviceError, match=f"unknown device .*{device}"):
            tmcodec.load_tokenizer(str(weights), device=device)  # type: ignore[arg-type]
    with pytest.raises(errors.TokenizerNotFoundError, match="mini-dem-v1"):
        tmcodec.load_tokenizer("mini-nothing-v9")


def test_mixed_precision_around_a_tokenizer_changes_nothing() -> None:
    tok = tmcodec.load_tokenizer("mini-s2l2a-v2", device="cpu")
    x = 2000 + 1500 * torch.rand(1, 12, 96, 96, generator=torch.Generator().manual_seed(0))
    tokens = tok.encode(x)
    pictures = [tok.decode(tokens, steps) for steps in (1, 3)]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tok.encode(x), tokens)
        assert all(torch.equal(tok.decode(tokens, n), y) for n, y in zip((1, 3), pictures, strict=True))


def test_a_raster_that_ends_within_a_patch_is_mirrored(tiny_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    """40 x 23 pixels have the tokens of 48 x 32 that go on as a mirror of the last ones."""
    values = np.random.default_rng(0).uniform(-1, 1, (1, 23, 40)).astype(np.float32)
    whole = np.concatenate([values, values[:, :, 38:30:-1]], axis=2)
    whole = np.concatenate([whole, whole[:, 21:12:-1]], axis=1)
    assert whole.shape == (1, 32, 48)
    found = []
    for name, array in (("cut", values), ("whole", whole)):
        path = tmp_path / f"{name}.tmc"
        tmcodec.encode(array, path, modality="NDVI", tokenizer=tiny_tokenizer("NDVI"), exact=True)
        with tmcodec.open(path) as file:
            found.append(file["NDVI"].tokens())
    np.testing.assert_array_equal(*found)
    assert found[0].shape == (2, 3)


def test_small_helpers_by_hand() -> None:
    assert neutral_token((8, 8, 8, 6, 5)) == 4 + 4 * 8 + 4 * 64 + 3 * 512 + 2 * 3072
    assert [side_of_batch(n, 256, 1024) for n in (1, 3, 4, 9, 16, 100)] == [256, 256, 512, 768, 1024, 1024]
    valid = np.zeros((64, 160), bool)
    valid[20, 35] = True  # patch row 1, column 2; reach 2 covers columns 0..4
    far = far_from_valid(valid, 16, 2)
    assert far.shape == (4, 10)
    assert not far[:, :5].any()
    assert far[:, 5:].all()
    assert np.array_equal(far_from_valid(valid.T, 16, 2), far.T)


def test_rough_heights_settle_without_effort_unless_exact_ones_are_wanted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rough = np.kron(np.cumsum(rng.normal(0, 60, (20, 20)), axis=0) + 2000, np.ones((16, 16)))
    source = tmp_path / "rough.tif"
    with rasterio.open(source, "w", driver="GTiff", width=320, height=320, count=1, dtype="int16") as dst:
        dst.write(rough.astype(np.int16), 1)
        dst.set_band_description(1, "DEM")
    tmcodec.encode(source, tmp_path / "a.tmc", effort=0)
    tmcodec.encode(source, tmp_path / "exact.tmc", exact=True)
    done = CliRunner().invoke(cli, ["encode", str(source), str(tmp_path / "cli.tmc"), "--exact", "--quiet"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "cli.tmc").read_bytes() == (tmp_path / "exact.tmc").read_bytes()
    with tmcodec.open(tmp_path / "a.tmc") as a, tmcodec.open(tmp_path / "exact.tmc") as b:
        settled, exact, meta = a["DEM"].tokens(), b["DEM"].tokens(), a["DEM"].meta
    padded = torch.from_numpy(rough.astype(np.int16).astype(np.float32))[None, None]
    own = tmcodec.load_tokenizer(meta.tokenizer, "cpu").encode(padded)[0].numpy()
    np.testing.assert_array_equal(exact, own)
    np.testing.assert_array_equal(settled, settle(exact, meta.levels, meta.weights_sha256))
    assert np.any(settled != exact)
    assert (tmp_path / "a.tmc").stat().st_size < (tmp_path / "exact.tmc").stat().st_size


@pytest.mark.parametrize("time", [1, 7, -1])
def test_a_date_that_is_not_there_is_named(tokens: Path, weights: Path, tmp_path: Path, time: int) -> None:
    with pytest.raises(errors.LayerNotFoundError, match=f"has no time step {time}; it has 1, from 0"):
        tmcodec.decode_array(tokens, tokenizer=weights, time=time)
    with pytest.raises(errors.LayerNotFoundError):
        tmcodec.decode(tokens, tmp_path / "a.tif", tokenizer=weights, time=time)


def test_a_layer_of_other_bands_than_its_tokenizer_is_refused(
    tokens: Path, weights: Path, tmp_path: Path
) -> None:
    with tmcodec.open(tokens) as file:
        meta, raw = file["S2L2A"].meta, file["S2L2A"].raw_chunk(0, 0, 0)
    forged = FileMeta((meta.replace(bands=meta.bands[:5], balance=None),))
    with TokenFileWriter(tmp_path / "forged.tmc", forged) as writer:
        writer.write_raw_chunk(0, 0, 0, 0, raw)
    with pytest.raises(errors.TokenizerMismatchError, match="has 5 bands, but tiny-s2l2a decodes to 12"):
        tmcodec.decode_array(tmp_path / "forged.tmc", tokenizer=weights)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch": 8, "width": 80, "height": 48}, "has the patch 8, but tiny-s2l2a, .* has 16"),
        ({"levels": (16, 60)}, r"has the levels \(16, 60\), but tiny-s2l2a, .* has \(8, 8, 8, 6, 5\)"),
        ({"modality": "DEM"}, "has the modality DEM, but tiny-s2l2a, .* has S2L2A"),
    ],
)
def test_a_layer_that_does_not_describe_its_tokens_is_refused_by_what_differs(
    tokens: Path, weights: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with tmcodec.open(tokens) as file:
        meta = file["S2L2A"].meta.replace(balance=None, **change)
    with TokenFileWriter(tmp_path / "forged.tmc", FileMeta((meta,)), sparse=True):
        pass
    for tokenizer in (weights, tmcodec.load_tokenizer(str(weights), "cpu")):
        with pytest.raises(errors.TokenizerMismatchError, match=says):
            tmcodec.decode_array(tmp_path / "forged.tmc", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"modality": 5}, errors.ModalityError, "unknown modality 5; choose one of S2L2A"),
        ({"class_map": [1, 2]}, errors.UnitsError, r"class_map is \[1, 2\]; give a mapping"),
        ({"scale": 2}, errors.UnitsError, "land cover has classes and no scale; leave it out, or map"),
        ({"sampler": 3}, errors.SamplerError, "sampler 3; give a name, such as ddim"),
        ({"tokenizer": 3}, errors.TokenizerNotFoundError, "no tokenizer 3; give a name or the path"),
        ({"precision": "fp64"}, errors.PrecisionError, "unknown precision 'fp64'; use auto, fp32, bf16"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(
    make_scene: MakeScene, tmp_path: Path, wrong: dict[str, Any], error: type[Exception], says: str
) -> None:
    arguments = {"modality": "LULC", **wrong}
    with pytest.raises(error, match=says):
        tmcodec.encode(make_scene("LULC"), tmp_path / "a.tmc", **arguments)
    assert not (tmp_path / "a.tmc").exists()


def test_names_in_messages_are_on_one_line(tokens: Path, weights: Path, tmp_path: Path) -> None:
    with tmcodec.open(tokens) as file:
        meta = file["S2L2A"].meta
    one = meta.replace(name="a\n\x1b[31mb", weights_sha256=bytes(32))
    many = [meta.replace(name=f"{i:03}" + "n" * 100) for i in range(50)]
    for name, layers in (("one.tmc", [one]), ("many.tmc", many)):
        with TokenFileWriter(tmp_path / name, FileMeta(tuple(layers)), sparse=True):
            pass
    with pytest.raises(errors.TokenizerMismatchError, match=r"layer a\\n\\x1b\[31mb was made by"):
        tmcodec.decode_array(tmp_path / "one.tmc", tokenizer=weights)
    with pytest.raises(errors.LayerNotFoundError, match=r"layers 000n{54}\.\.\., .* and 40 more; choose one"):
        tmcodec.decode_array(tmp_path / "many.tmc")
    with tmcodec.open(tmp_path / "many.tmc") as file:
        with pytest.raises(errors.LayerNotFoundError, match=r"'000n{53}.* and 40 more$"):
            file["x"]


def test_classes_that_a_layer_scales_are_refused(make_scene: MakeScene, tmp_path: Path) -> None:
    tmcodec.encode(make_scene("LULC"), tmp_path / "a.tmc")
    with tmcodec.open(tmp_path / "a.tmc") as file:
        meta = file["LULC"].meta.replace(offset=1e10)
    with TokenFileWriter(tmp_path / "forged.tmc", FileMeta((meta,)), sparse=True):
        pass
    with pytest.raises(errors.TokenizerMismatchError, match="LULC scales class ids, which are names"):
        tmcodec.decode_array(tmp_path / "forged.tmc")


def test_the_tile_that_a_file_states_does_not_say_how_much_is_decoded_at_once(
    tokens: Path, weights: Path, tmp_path: Path
) -> None:
    with tmcodec.open(tokens) as file:
        meta = file["S2L2A"].meta.replace(balance=None, width=8192, height=8192, tile=65536)
    with TokenFileWriter(tmp_path / "forged.tmc", FileMeta((meta,)), sparse=True):
        pass
    with tmcodec.open(tmp_path / "forged.tmc") as file:
        wanted = Wanted(None, 0, None, None, None, None, False, None, 1)
        job = make_job(file, wanted, str(weights), "cpu", 16, 2**31, {})
    assert job.squares.side == 1024  # 4 x 4 tiles of 256 pixels


def test_a_sampler_that_cannot_decode_is_refused_at_once(scene: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.SamplerError, match="official clamps pictures, tiny-s2l2a draws residuals"):
        tmcodec.encode(scene, tmp_path / "a.tmc", tokenizer=weights, sampler="official", steps=3)
    assert not (tmp_path / "a.tmc").exists()


@pytest.mark.parametrize("name", ["LCM", "TCD", "SASolver", "zzz"])
def test_files_of_a_sampler_that_is_refused_decode_with_another(
    name: str, tokens: Path, weights: Path, tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    old = tmp_path / "old.tmc"
    with tmcodec.open(tokens) as file:
        (layer,) = file.layers.values()
        meta = replace(file.meta, layers=(replace(layer.meta, sampler=name, steps=3),))
        with TokenFileWriter(old, meta) as writer:
            writer.write_chunk(0, 0, 0, 0, layer.tokens(), layer.valid())
    said = f"^the file names a sampler that cannot be used .*{name}.*; pass another with --sampler$"
    with pytest.raises(errors.SamplerError, match=said):
        tmcodec.decode(old, tmp_path / "a.tif", tokenizer=weights)
    assert not (tmp_path / "a.tif").exists()
    found, _ = tmcodec.decode_array(old, tokenizer=weights, sampler="ddim")
    expected, _ = tmcodec.decode_array(tokens, tokenizer=weights, sampler="ddim", steps=3)
    assert np.array_equal(found, expected)
    tmcodec.decode(old, tmp_path / "a.tif", tokenizer=weights, steps=1)  # which needs none


@pytest.mark.parametrize("steps", [1, 3])
def test_an_unknown_sampler_is_refused_also_where_one_step_needs_none(
    tokens: Path, weights: Path, tmp_path: Path, steps: int
) -> None:
    for sampler, why in (("zzz", "zzz"), ("official", "official clamps pictures")):
        with pytest.raises(errors.SamplerError, match=why):
            tmcodec.decode(tokens, tmp_path / "a.tif", tokenizer=weights, sampler=sampler, steps=steps)
    assert not (tmp_path / "a.tif").exists()
    report = tmcodec.decode(tokens, tmp_path / "a.tif", tokenizer=weights, sampler="DDIM", steps=steps)
    assert report.sampler == "ddim"


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"window": (0, 0, 10)}, errors.WindowError, "four whole numbers"),
        ({"window": (0.5, 0, 10, 10)}, errors.WindowError, r"window \(0.5, 0, 10, 10\); give four whole"),
        ({"window": 7}, errors.WindowError, "window 7; give four"),
        ({"bounds": (1, 2, 3)}, errors.WindowError, r"bounds \(1, 2, 3\); give four numbers"),
        ({"bounds": ("a", 0, 1, 1)}, errors.WindowError, "bounds .'a', 0, 1, 1.; give four numbers"),
        ({"bounds": ("0", "0", "1", "1")}, errors.WindowError, "give four numbers"),
        ({"time": "x"}, errors.LayerNotFoundError, "no time step 'x'; it has 1, from 0"),
        ({"time": 0.0}, errors.LayerNotFoundError, "no time step 0.0"),
        ({"batch_size": 0}, errors.ShapeError, "batch_size 0; give a whole number, 1 or more"),
        ({"batch_size": 1.5}, errors.ShapeError, "batch_size 1.5"),
        ({"seed": -1}, errors.SamplerError, "seed -1; give a whole number from 0 to 18446744073709551615"),
        ({"seed": 2**64}, errors.SamplerError, "seed 18446744073709551616"),
        ({"seed": "x"}, errors.SamplerError, "seed 'x'"),
        ({"steps": 0}, errors.SamplerError, "steps 0; give a whole number from 1 to 1000"),
        ({"steps": 1001}, errors.SamplerError, "steps 1001"),
        ({"steps": 2.5}, errors.SamplerError, "steps 2.5"),
        ({"steps": "4"}, errors.SamplerError, "steps '4'"),
        ({"samples": 1.5}, errors.SamplerError, "1.5 samples to average; give 1 to 64"),
        ({"samples": "2"}, errors.SamplerError, "'2' samples to average"),
        ({"max_pixels": "9"}, errors.LimitExceededError, "max_pixels '9' is no limit; give a number"),
        ({"max_pixels": None}, errors.LimitExceededError, "max_pixels None is no limit"),
    ],
)
def test_what_decode_cannot_take_is_refused_by_name(
    tokens: Path, weights: Path, how: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        tmcodec.decode_array(tokens, tokenizer=weights, **how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"window": (1, 2, 3)}, errors.WindowError, r"window \(1, 2, 3\); give four whole numbers"),
        ({"window": (1.5, 0, 16, 16)}, errors.WindowError, "four whole numbers, COL ROW WIDTH HEIGHT"),
        ({"scale": "x"}, errors.UnitsError, "--scale 'x' is not usable"),
        ({"batch_size": 0}, errors.ShapeError, "batch_size 0"),
        ({"batch_size": -4}, errors.ShapeError, "batch_size -4"),
        ({"steps": 0}, errors.SamplerError, "steps 0; give a whole number from 1 to 1000"),
        ({"steps": 5000}, errors.SamplerError, "steps 5000"),
        ({"effort": 1.5}, errors.SearchError, "1.5 rounds of search; give 0 or more, a whole number"),
        ({"exact": True, "effort": 3}, errors.SearchError, "exact tokens are not searched; leave out"),
        ({"exact": True, "bit_price": 0.0}, errors.SearchError, "exact tokens are not searched"),
        ({"class_map": "worldcover"}, errors.UnitsError, "S2L2A has no classes to map; leave"),
        ({"tags": {"ACQUISITION_DATE": "May 2020"}}, errors.MetadataError, "'May 2020' is no date with year"),
        ({"tags": {"ACQUISITION_DATE": "2020-12"}}, errors.MetadataError, "day; write it as 2020-12-31 or"),
        ({"class_map": {10: 0.5}}, errors.UnitsError, "class_map has 10: 0.5; give whole numbers"),
        ({"class_map": {10: float("nan")}}, errors.UnitsError, "class_map has 10: nan"),
        ({"bit_price": "dear"}, errors.SearchError, "a bit cannot cost 'dear'; give 0 or more"),
        ({"tags": {1: "a"}}, errors.MetadataError, "tags {1: 'a'}; give a mapping of names to texts"),
        ({"tags": [("a", "b")]}, errors.MetadataError, "give a mapping of names to texts"),
    ],
)
def test_what_encode_cannot_take_is_refused_by_name(
    scene: Path, weights: Path, tmp_path: Path, how: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        tmcodec.encode(scene, tmp_path / "a.tmc", tokenizer=weights, **how)
    assert not (tmp_path / "a.tmc").exists()


def test_numbers_of_numpy_are_numbers(tokens: Path, weights: Path) -> None:
    plain, _ = tmcodec.decode_array(tokens, tokenizer=weights, window=(16, 0, 40, 32), seed=3, steps=2)
    window = np.array([16, 0, 40, 32], np.int16)
    other, _ = tmcodec.decode_array(
        tokens, tokenizer=weights, window=window, seed=np.uint64(3), time=np.int8(0), batch_size=np.int64(4),
        steps=2,
    )  # fmt: skip
    np.testing.assert_array_equal(plain, other)


def test_reports_of_numpys_numbers_are_json(scene: Path, weights: Path, tmp_path: Path) -> None:
    path, two = tmp_path / "a.tmc", np.int64(2)
    encoded = tmcodec.encode(scene, path, tokenizer=weights, steps=two, seed=two, window=(two, two, 32, 32))
    decoded = tmcodec.decode(path, tmp_path / "a.tif", tokenizer=weights, steps=two, seed=two)
    compared = tmcodec.compare(path, tmp_path / "a.tif", tokenizer=weights, steps=two, seed=two)
    for report in (encoded, decoded, compared):
        said = json.loads(json.dumps(report.to_dict()))
        assert (said["width"], said.get("steps", 2), said.get("seed", 2)) == (32, 2, 2)


# --------------------------------------------------------------------------- arrays and tags


def test_what_was_decoded_can_be_encoded_again(tiny_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    weights, path = tiny_tokenizer("S1GRD"), tmp_path / "a.tmc"
    rng = np.random.default_rng(0)
    valid = rng.random((2, 40, 48)) > 0.2
    array = rng.normal(-14, 2, valid.shape).astype(np.float32)
    for key in ("mask", "valid"):
        profile = {"crs": "EPSG:32633", "transform": (10, 0, 5e5, 0, -10, 5e6), key: valid}
        tmcodec.encode(array, path, modality="S1GRD", tokenizer=weights, profile=profile, overwrite=True)
        once, kept = tmcodec.decode_array(path, tokenizer=weights)
        np.testing.assert_array_equal(kept["valid"], valid)
    tmcodec.encode(once, path, modality="S1GRD", tokenizer=weights, profile=kept, overwrite=True)
    again = tmcodec.decode_array(path, tokenizer=weights)[1]
    np.testing.assert_array_equal(again["valid"], valid)
    assert (again["crs"], again["transform"]) == (kept["crs"], kept["transform"])
    # As a pair, too, for either side of a comparison: where both are valid.
    found = tmcodec.compare((once, kept), (array, {"valid": valid}), modality="S1GRD")
    assert found.mask_agreement == 1 and found.metrics.pixels == valid.all(0).sum()
    with pytest.raises(errors.RasterOpenError, match="mask and valid, which mean the same"):
        tmcodec.encode(once, path, modality="S1GRD", profile={**kept, "mask": valid}, overwrite=True)


def test_a_profile_goes_with_an_array_alone(scene: Path, weights: Path, tmp_path: Path) -> None:
    with rasterio.open(scene) as dataset:
        array, rasterios = dataset.read(), dict(dataset.profile)
        rasterios |= {"tags": dataset.tags(), "descriptions": dataset.descriptions}
        for source in (scene, str(scene), dataset, (array, rasterios), array.tolist()):
            with pytest.raises(errors.RasterOpenError, match="profile goes with a NumPy array, not with a "):
                tmcodec.encode(source, tmp_path / "a.tmc", tokenizer=weights, profile={"nodata": 0})
        for source in (scene, dataset, array):
            assert with_profile(source, {}) is source  # an empty one says nothing
    # All that rasterio puts in a profile (driver, blockxsize, tiled) may stay there.
    tmcodec.encode(array, tmp_path / "a.tmc", tokenizer=weights, profile=rasterios)
    tmcodec.encode((array, rasterios), tmp_path / "b.tmc", tokenizer=weights)
    assert (tmp_path / "a.tmc").read_bytes() == (tmp_path / "b.tmc").read_bytes()


def test_a_decoded_array_without_gaps_is_encoded_as_the_raster_was(
    make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    scene, how = make_scene("S2RGB"), {"modality": "S2RGB", "tokenizer": tiny_tokenizer("S2RGB")}
    paths = [tmp_path / "1.tmc", tmp_path / "2.tmc"]
    tmcodec.encode(scene, paths[0], **how)
    array, profile = tmcodec.decode_array(paths[0], tokenizer=how["tokenizer"])
    assert profile["valid"].all()
    tmcodec.encode(array, paths[1], profile=profile, tags={"ACQUISITION_DATE": "2020-01-01"}, **how)
    tmcodec.stack(paths, tmp_path / "both.tmc")
    tmcodec.decode(paths[1], tmp_path / "b.tif", tokenizer=how["tokenizer"])
    with tmcodec.open(paths[1]) as file, rasterio.open(tmp_path / "b.tif") as dataset:
        assert (file["S2RGB"].mask_kind, file["S2RGB"].nodata) == ("nodata", None)
        assert dataset.mask_flag_enums == ([rasterio.enums.MaskFlags.all_valid],) * 3


def test_dates_with_and_without_nodata_stack_and_decode_as_before(weights: Path, tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(1, 60, (12, 48, 64)).astype(np.uint16)
    black, masked = whole.copy(), np.ones((48, 64), bool)
    black[:, :, :20], masked[30:] = 0, False
    dates: list[tuple[np.ndarray, dict[str, Any]]] = [(whole, {}), (black, {}), (whole, {"mask": masked})]
    paths = [tmp_path / f"{month}.tmc" for month in (1, 2, 3)]
    how = {"modality": "S2L2A", "s2_offset": "present", "tokenizer": weights}
    for path, (array, profile) in zip(paths, dates, strict=True):
        tags = {"ACQUISITION_DATE": f"2020-01-0{path.stem}"}
        profile["transform"] = (10, 0, 5e5, 0, -10, 5e6)
        tmcodec.encode(array, path, profile=profile, tags=tags, **how)
    tmcodec.stack(paths, tmp_path / "all.tmc")
    truth = [np.ones((48, 64), bool), black.any(0), masked]
    for time, (path, valid) in enumerate(zip(paths, truth, strict=True)):
        alone, kept = tmcodec.decode_array(path, tokenizer=weights)
        array, profile = tmcodec.decode_array(tmp_path / "all.tmc", time=time, tokenizer=weights)
        assert profile["nodata"] == 0 and (profile["valid"] == valid).all() and (kept["valid"] == valid).all()
        assert (array[:, valid] == np.maximum(alone[:, valid], 1)).all() and not array[:, ~valid].any()
        tmcodec.decode(tmp_path / "all.tmc", tmp_path / f"{time}.tif", time=time, tokenizer=weights)
        with rasterio.open(tmp_path / f"{time}.tif") as dataset:
            assert (dataset.read() == array).all() and ((dataset.read_masks() > 0) == valid).all()
        if time == 0:
            assert (alone == 0).any()  # what would be nodata, had it not been moved


def test_an_acquisition_date_among_the_tags_is_the_time(
    make_scene: MakeScene, weights: Path, tmp_path: Path
) -> None:
    scene, days = make_scene(), ("2020-02-01", "2020-01-01T10:30:00+02:00")
    paths = [tmp_path / "1.tmc", tmp_path / "2.tmc"]
    for path, day in zip(paths, days, strict=True):
        tmcodec.encode(scene, path, tokenizer=weights, tags={"ACQUISITION_DATE": day})
    tmcodec.stack(paths, tmp_path / "both.tmc")
    with tmcodec.open(tmp_path / "both.tmc") as file:
        assert [str(time) for time in file["S2L2A"].times] == [
            "2020-01-01 08:30:00+00:00", "2020-02-01 00:00:00+00:00"
        ]  # fmt: skip
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(TMCODEC_TIME="2019-01-01")
    for tags, expected, kept in (
        ({"acquisition_date": days[0]}, "2020-02-01", {"acquisition_date": days[0]}),
        ({"ACQUISITION_DATE": "20200201"}, "2020-02-01", {"ACQUISITION_DATE": "20200201"}),
        ({"ACQUISITION_DATE": " ", "a": ""}, "2019-01-01", {"a": ""}),
    ):
        tmcodec.encode(scene, paths[0], tokenizer=weights, tags=tags, overwrite=True)
        with tmcodec.open(paths[0]) as file:
            assert [str(time.date()) for time in file["S2L2A"].times] == [expected]
            assert file["S2L2A"].tags == kept


def test_several_steps_draw_no_hills_on_a_plain(tmp_path: Path) -> None:
    # Six metres in two kilometres: the denoiser's own texture has tens.
    plain = (300 + np.linspace(0, 6, 224)[None, :] + np.zeros((224, 1))).astype(np.float32)[None]
    path = tmp_path / "plain.tmc"
    tmcodec.encode(
        plain, path, modality="DEM", profile={"transform": (10, 0, 0, 0, -10, 0), "crs": "EPSG:32633"}
    )
    one, four = (tmcodec.decode_array(path, steps=steps)[0] for steps in (1, 4))
    assert float(np.abs(one - plain).max()) < 1
    assert 0 < float(np.sqrt(np.square(four - one).mean())) < 1
    part, _ = tmcodec.decode_array(path, steps=4, window=(70, 50, 60, 90))
    np.testing.assert_allclose(part, four[:, 50:140, 70:130], atol=1e-3)
