"""Sources of crops: rasters and shards, bad files, the order of the stream, statistics."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from training_helpers import write_raster

from tmcodec.errors import ConfigError, CorpusError
from tmcodec.modalities import MODALITIES
from tmcodec.training.corpus import load_scenes
from tmcodec.training.crops import CropLoader, Crops
from tmcodec.training.mini import band_statistics as statistics_in_memory
from tmcodec.training.shards import TerraMeshShards
from tmcodec.training.sources import RasterFolder
from tmcodec.training.statistics import band_statistics
from tmcodec.training.zarr_zip import read_array

Corpus = Callable[[str], Path]


def rng(seed: int = 0) -> np.random.Generator:
    """Return a source of randomness."""
    return np.random.default_rng(seed)


# --------------------------------------------------------------------------- rasters


def test_crops_are_windows_of_the_files(corpus: Corpus) -> None:
    folder = corpus("S2L2A")
    source = RasterFolder(str(folder), "S2L2A")
    values, valid = source.draw(rng(), 32)
    assert values.shape == valid.shape == (12, 32, 32)
    assert valid.all()
    whole = [rasterio.open(p).read().astype(np.float32) for p in sorted(folder.glob("*.tif"))]
    places = [
        (r, c)
        for w in whole
        for r in range(w.shape[1] - 31)
        for c in range(w.shape[2] - 31)
        if w[0, r, c] == values[0, 0, 0] and np.array_equal(w[:, r : r + 32, c : c + 32], values)
    ]
    assert len(places) == 1


def test_no_data_of_class_maps_is_not_learnt(tmp_path: Path) -> None:
    ids = np.full((1, 40, 40), 5, np.uint8)
    ids[:, :, :10] = 0
    (tmp_path / "train" / "LULC").mkdir(parents=True)
    path = tmp_path / "train" / "LULC" / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", width=40, height=40, count=1, dtype="uint8") as dst:
        dst.write(ids)
    # As encoders see it: no class in place of the gap.
    values, valid = RasterFolder(str(path), "LULC").draw(rng(), 40)
    assert np.array_equal(values, ids) and np.array_equal(valid, ids > 0)
    (scene,) = load_scenes(tmp_path, "train", MODALITIES["LULC"], {"LULC": 1.0})
    assert np.array_equal(scene.values, ids) and np.array_equal(scene.valid, ids > 0)


def test_files_count_by_the_root_of_their_size(corpus: Corpus) -> None:
    source = RasterFolder(str(corpus("NDVI")), "NDVI")
    assert source.shares.tolist() == pytest.approx([96 / 336, 112 / 336, 128 / 336])
    assert RasterFolder(str(corpus("NDVI")), "NDVI", by_size=False).shares.tolist() == pytest.approx(
        [1 / 3] * 3
    )


def test_nodata_is_masked_filled_and_never_the_whole_crop(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", "DEM", nodata=-32768)
    source = RasterFolder(str(path), "DEM", min_valid=0.6)
    seen = [source.draw(rng(i), 32) for i in range(30)]
    assert all(valid.mean() >= 0.6 for _, valid in seen)
    assert any(not valid.all() for _, valid in seen)
    assert all(abs(values).max() < 9000 for values, _ in seen)


def test_bad_files_are_named_or_skipped_and_counted(corpus: Corpus) -> None:
    folder = corpus("DEM")
    (folder / "broken.tif").write_bytes(b"II*\0 no raster")
    write_raster(folder / "empty.tif", "DEM", nodata=-32768)
    with rasterio.open(folder / "empty.tif", "r+") as dataset:
        dataset.write(np.full((1, 96, 96), -32768, np.int16))
    write_raster(folder / "other.tif", "S1GRD")
    with pytest.raises(CorpusError, match=r"broken\.tif.*skip_bad"):
        RasterFolder(str(folder), "DEM")
    source = RasterFolder(str(folder), "DEM", skip_bad=True)
    for i in range(40):
        source.draw(rng(i), 32)
    assert {Path(name).name for name in source.bad} == {"broken.tif", "empty.tif", "other.tif"}
    (folder / "broken.tif").unlink()
    (folder / "other.tif").unlink()
    strict = RasterFolder(str(folder), "DEM")
    with pytest.raises(CorpusError, match=r"empty\.tif: it has no valid pixel"):
        for i in range(40):
            strict.draw(rng(i), 32)


def test_a_file_cut_short_is_found_when_it_is_read(corpus: Corpus) -> None:
    folder = corpus("S1GRD")
    path = folder / "0.tif"
    path.write_bytes(path.read_bytes()[:20000])
    source = RasterFolder(str(folder), "S1GRD", skip_bad=True)
    for i in range(30):
        source.draw(rng(i), 64)
    assert list(source.bad) == [str(path)]


def cut_short(path: Path, values: np.ndarray, rows: int) -> Path:
    """Write ``(1, H, W)`` row by row and cut off the last ones."""
    _, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=1, width=width, height=height, dtype=values.dtype, blockysize=1
    ) as dataset:
        dataset.write(values)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - rows * width * values.itemsize])
    return path


@pytest.mark.parametrize("by_size", [True, False])
def test_a_file_cut_short_whose_scale_cannot_be_told_is_bad(by_size: bool, corpus: Corpus) -> None:
    folder = corpus("NDVI")
    path = cut_short(folder / "cut.tif", rng(7).uniform(-1, 1, (1, 128, 128)).astype(np.float32), 50)
    with pytest.raises(CorpusError, match=r"cut\.tif: cannot be read .*complete; mend it, or set skip_bad"):
        RasterFolder(str(path), "NDVI").draw(rng(), 32)
    source = RasterFolder(str(folder), "NDVI", skip_bad=True, by_size=by_size)
    for i in range(20):
        source.draw(rng(i), 32)
    assert list(source.bad) == [str(path)]
    assert band_statistics([source]).items == 3


def test_complex_values_are_bad(corpus: Corpus) -> None:
    folder = corpus("S1GRD")
    path = folder / "complex.tif"
    with rasterio.open(path, "w", driver="GTiff", count=2, width=96, height=96, dtype="complex64") as dataset:
        dataset.write(np.full((2, 96, 96), -12 + 5j, np.complex64))
    with pytest.raises(CorpusError, match=r"complex\.tif: the values are complex; convert them"):
        RasterFolder(str(path), "S1GRD")
    assert list(RasterFolder(str(folder), "S1GRD", skip_bad=True).bad) == [str(path)]


def test_nan_is_nodata(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", "S1GRD", nodata=float("nan"))
    values, valid = RasterFolder(str(path), "S1GRD").draw(rng(), 96)
    assert not valid[:, :16].any()
    assert valid[:, 16:].all()
    assert np.isfinite(values).all()


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such folder"):
        RasterFolder(str(tmp_path / "nowhere"), "DEM")
    with pytest.raises(CorpusError, match="no raster"):
        RasterFolder(str(tmp_path), "DEM")
    (tmp_path / "a.tif").write_bytes(b"nothing")
    with pytest.raises(CorpusError, match="none of its 1 rasters"):
        RasterFolder(str(tmp_path), "DEM", skip_bad=True)
    with pytest.raises(ConfigError, match="weight"):
        RasterFolder(str(tmp_path), "DEM", weight=0)


def test_the_darkest_percent_decides_on_the_offset(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", "S2L2A")
    with rasterio.open(path, "r+") as dataset:
        stored = dataset.read()
        dataset.write(np.maximum(stored, 1000) - 1000)
        dataset.update_tags(TMCODEC_S2_OFFSET="")
    values, _ = RasterFolder(str(path), "S2L2A", s2_offset="darkest").draw(rng(), 96)
    assert np.array_equal(values, np.maximum(stored, 1000).astype(np.float32))


def test_modalities_are_derived_and_missing_bands_masked(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", "S2L2A")
    stored = rasterio.open(path).read().astype(np.float64)
    ndvi, _ = RasterFolder(str(path), "NDVI", derive="S2L2A").draw(rng(), 96)
    red, nir = stored[3] - 1000, stored[7] - 1000
    assert np.allclose(ndvi[0], (nir - red) / (nir + red), atol=1e-5)
    with pytest.raises(ConfigError, match="B10"):
        RasterFolder(str(path), "S2L1C", derive="S2L2A")
    values, valid = RasterFolder(str(path), "S2L1C", derive="S2L2A", missing_bands="invalid").draw(rng(), 96)
    assert valid.all(axis=(1, 2)).tolist() == [True] * 10 + [False] + [True] * 2
    assert np.array_equal(values[[0, 12]], stored[[0, 11]])
    picture, _ = RasterFolder(str(path), "S2RGB", derive="S2L2A").draw(rng(), 96)
    assert picture.min() == 0
    assert picture.max() == 255


def test_dark_water_in_the_bands_that_are_read_is_no_nodata(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", "S2L2A")
    names = MODALITIES["S2L2A"].bands
    with rasterio.open(path, "r+") as dataset:
        stored = dataset.read()
        stored[[names.index(b) for b in ("B04", "B03", "B02")], :40] = 0  # water, harmonised and cut off
        stored[:, :, :24] = 0  # outside the swath
        dataset.write(stored)
    no_data = np.zeros((96, 96), bool)
    no_data[:, :24] = True
    for modality in ("S2L2A", "S2RGB"):
        _, valid = next(RasterFolder(str(path), modality, derive="S2L2A").windows(0))
        assert np.array_equal(valid[0], ~no_data)


def test_a_file_of_few_bands_has_nothing_else_to_judge_by(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    stored = rng().integers(1100, 3000, (2, 96, 96)).astype(np.uint16)
    stored[:, :40] = 0
    with rasterio.open(
        path, "w", driver="GTiff", count=2, width=96, height=96, dtype="uint16"
    ) as dataset:
        dataset.write(stored)
        dataset.descriptions = ("B04", "B8A")
    source = RasterFolder(str(path), "S2L2A", s2_offset="present", missing_bands="invalid")
    _, valid = next(source.windows(0))
    there = source.bands_there(0)
    assert np.array_equal(valid[there], np.repeat(stored.any(0)[None], 2, 0))


def test_the_share_of_valid_pixels_is_of_the_bands_there(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    stored = rng(3).integers(1100, 3000, (1, 96, 96)).astype(np.uint16)
    stored[:, :48] = 0
    with rasterio.open(
        path, "w", driver="GTiff", count=1, width=96, height=96, dtype="uint16", nodata=0
    ) as dataset:
        dataset.write(stored)
        dataset.descriptions = ("B02",)
    source = RasterFolder(str(path), "S2L2A", s2_offset="present", missing_bands="invalid", min_valid=0.7)
    b02 = MODALITIES["S2L2A"].bands.index("B02")
    for i in range(5):
        _, valid = source.draw(rng(i), 32)
        assert valid[b02].mean() >= 0.7  # of twelve bands a twelfth would be too few
        assert not np.delete(valid, b02, 0).any()


# --------------------------------------------------------------------------- the stream


def stream(
    corpus: Corpus, modality: str, workers: int = 0, start: int = 0, **changes: Any
) -> list[torch.Tensor]:
    """Return the values of six batches of two."""
    crops = Crops([RasterFolder(str(corpus(modality)), modality)], 32, 5, **changes)
    loader = CropLoader(crops, 2, 3, workers, 0, 1, endless=True)
    loader.given = start
    return [b["values"] for _ in range(2) for b in loader]


def test_workers_do_not_change_the_order(corpus: Corpus) -> None:
    changes = {"radiometry": True, "geometry": True, "warp": 0.5, "blend": 0.5}
    alone, helped = (stream(corpus, "S1GRD", workers, **changes) for workers in (0, 2))
    assert len(alone) == 6
    assert all(map(torch.equal, alone, helped))
    assert len({float(b.sum()) for b in alone}) == 6


def test_the_stream_goes_on_in_the_middle_of_an_epoch(corpus: Corpus) -> None:
    whole, rest = stream(corpus, "NDVI"), stream(corpus, "NDVI", start=2)
    assert len(rest) == 4  # one of the first epoch, three of the second
    assert all(map(torch.equal, whole[2:], rest))


def test_processes_share_the_stream(corpus: Corpus) -> None:
    crops = Crops([RasterFolder(str(corpus("NDVI")), "NDVI")], 32, 5)
    one = CropLoader(crops, 2, 4, 0, 0, 1, endless=True)
    two = [CropLoader(crops, 2, 2, 0, rank, 2, endless=True) for rank in (0, 1)]
    numbers = [b["number"].tolist() for b in one]
    assert numbers == [[0, 1], [2, 3], [4, 5], [6, 7]]
    shared = [b["number"].tolist() for pair in zip(*two, strict=True) for b in pair]
    assert shared == numbers


@pytest.mark.parametrize("cuda", [False, True])
def test_batches_lie_in_pinned_memory_where_a_gpu_will_take_them(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    asked: dict[str, Any] = {}

    def loader(crops: Crops, **how: Any) -> list[Any]:
        asked.update(how)
        return [{}]

    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("tmcodec.training.crops.DataLoader", loader)
    crops = Crops([RasterFolder(str(corpus("NDVI")), "NDVI")], 32, 5)
    assert list(CropLoader(crops, 2, 1, 0, 0, 1, endless=True)) == [{}]
    assert asked["pin_memory"] is cuda


def test_errors_of_workers_are_as_short_as_others(corpus: Corpus) -> None:
    folder = corpus("S1GRD")
    for path in folder.glob("*.tif"):
        path.write_bytes(path.read_bytes()[:20000])
    crops = Crops([RasterFolder(str(folder), "S1GRD", by_size=False)], 64, 5)
    messages = []
    for workers in (0, 1):
        with pytest.raises(CorpusError) as caught:
            list(CropLoader(crops, 2, 2, workers, 0, 1, endless=True))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert ".tif" in messages[0]
    assert "\n" not in messages[0]


def test_validation_crops_are_the_same_every_time(corpus: Corpus) -> None:
    crops = Crops([RasterFolder(str(corpus("NDVI")), "NDVI")], 32, 5)
    loader = CropLoader(crops, 2, 2, 0, 0, 1, endless=False)
    first, second = ([b["values"] for b in loader] for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_small_rasters_are_mirrored(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", "NDVI", side=20)
    crop = Crops([RasterFolder(str(path), "NDVI")], 32, 0)[0]["values"]
    assert crop.shape == (1, 32, 32)
    assert torch.equal(crop[:, 20:], crop[:, 8:20].flip(1))


def test_crops_do_not_depend_on_who_has_met_a_bad_file(corpus: Corpus) -> None:
    folder = corpus("DEM")
    write_raster(folder / "empty.tif", "DEM", nodata=-32768)
    with rasterio.open(folder / "empty.tif", "r+") as dataset:
        dataset.write(np.full((1, 96, 96), -32768, np.int16))
    # So large that what tells its units is sampled, in rows up to 1009, and the loss is found later.
    rows = np.broadcast_to(np.arange(5000, 6100, dtype=np.int16)[:, None], (1, 1100, 1100))
    cut_short(folder / "cut.tif", rows, 90)
    (folder / "broken.tif").write_bytes(b"II*\0 no raster")

    def fresh(by_size: bool = True) -> Crops:
        return Crops([RasterFolder(str(folder), "DEM", skip_bad=True, by_size=by_size)], 96, 0)

    measured, whole = fresh(), fresh()
    band_statistics(measured.sources)
    assert len(measured.sources[0].bad) == 2
    stream = [whole[n]["values"] for n in range(60)]
    assert {Path(name).name for name in whole.sources[0].bad} == {"broken.tif", "cut.tif", "empty.tif"}
    assert all(torch.equal(fresh()[n]["values"], stream[n]) for n in range(0, 60, 3))
    assert all(torch.equal(measured[n]["values"], stream[n]) for n in range(60))
    lazy = fresh(by_size=False)
    ordered = [lazy[n]["values"] for n in range(10)]
    assert all(torch.equal(fresh(by_size=False)[n]["values"], ordered[n]) for n in range(10))
    # What can be read is used.
    assert any(int(values.min()) >= 5000 and int(values.max()) <= 6009 for values in stream)


def test_a_raster_is_searched_once_for_valid_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raster(tmp_path / "a.tif", "DEM", 256, nodata=-32768)
    with rasterio.open(path, "r+") as dataset:
        dataset.write(np.full((1, 240, 256), -32768, np.int16), window=((0, 240), (0, 256)))
    source = RasterFolder(str(path), "DEM", min_valid=0.4)
    searched, windows = [], source.windows
    monkeypatch.setattr(source, "windows", lambda item: searched.append(item) or windows(item))
    for i in range(3):
        _, valid = source.draw(rng(i), 32)
        assert valid.mean() >= 0.4
    assert searched == [0]


# --------------------------------------------------------------------------- statistics


def test_statistics_stream_to_what_memory_gives(tmp_path: Path) -> None:
    for i, side in enumerate((96, 700)):  # the larger takes four windows
        write_raster(
            tmp_path / "train" / "DEM" / f"{i}.tif", "DEM", side, seed=i, nodata=-32768 if i else None
        )
    from tmcodec.networks.mini import MiniConfig

    cfg = MiniConfig("DEM", 1, (8, 8, 8, 6, 5), compand="asinh", knee=1000.0)
    expected = statistics_in_memory(load_scenes(tmp_path, "train", MODALITIES["DEM"], {"DEM": 1.0}), cfg)
    source = RasterFolder(str(tmp_path / "train" / "DEM"), "DEM", weight=3.0)
    found = band_statistics([source], "asinh", 0.0, 1000.0)
    assert found.mean == pytest.approx(expected.mean, rel=1e-6)
    assert found.std == pytest.approx(expected.std, rel=1e-6)
    assert found.pixels == (96**2 + 700 * (700 - 16),)
    assert (found.items, found.skipped) == (2, 0)


def test_a_band_of_one_value_has_no_statistics(tmp_path: Path) -> None:
    for i in range(3):
        path = write_raster(tmp_path / f"{i}.tif", "S1GRD", 96, seed=i)
        with rasterio.open(path, "r+") as dataset:
            dataset.write(np.full((96, 96), -17.3, np.float32), 2)
    with pytest.raises(CorpusError, match=r"one value everywhere in VH,.*model\.net\.mean and std"):
        band_statistics([RasterFolder(str(tmp_path), "S1GRD")])


# --------------------------------------------------------------------------- shards


def zarr_zip(values: np.ndarray, chunk: int = 64, compressor: str = "zstd", change: Any = None) -> bytes:
    """Write an array as a zipped Zarr v2 group, as TerraMesh has it, with numcodecs alone."""
    numcodecs = pytest.importorskip("numcodecs")
    codec = numcodecs.get_codec({"id": compressor}) if compressor else None
    chunks = (*values.shape[:-2], chunk, chunk)
    config = codec.get_config() if codec else None
    meta = {"zarr_format": 2, "shape": values.shape, "chunks": chunks, "dtype": values.dtype.str,
            "fill_value": 0, "order": "C", "filters": None, "compressor": config}  # fmt: skip
    meta.update(change or {})
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(".zgroup", json.dumps({"zarr_format": 2}))
        archive.writestr("bands/.zarray", json.dumps(meta))
        for row in range(-(-values.shape[-2] // chunk)):
            for col in range(-(-values.shape[-1] // chunk)):
                part = np.zeros(chunks, values.dtype)
                found = values[..., row * chunk : (row + 1) * chunk, col * chunk : (col + 1) * chunk]
                part[..., : found.shape[-2], : found.shape[-1]] = found
                data = part.tobytes()
                archive.writestr(
                    "bands/" + ".".join(["0"] * (values.ndim - 2) + [str(row), str(col)]),
                    codec.encode(data) if codec else data,
                )
    return target.getvalue()


def write_shard(path: Path, samples: dict[str, bytes]) -> Path:
    """Write a WebDataset shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, data in samples.items():
            info = tarfile.TarInfo(f"{key}.zarr.zip")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(modality: str, seed: int = 0, dtype: str = "float32", side: int = 100) -> np.ndarray:
    """Return an array in TerraMesh's dtype."""
    row = MODALITIES[modality]
    mean, std = (np.array(s)[:, None, None] for s in (row.mean, row.std))
    return (mean + 0.1 * std * rng(seed).standard_normal((len(row.bands), side, side))).astype(dtype)


@pytest.mark.parametrize("compressor", ["blosc", "zstd", "zlib", ""])
def test_zipped_arrays_come_back(compressor: str) -> None:
    values = sample("S2L2A", dtype="int16")
    assert np.array_equal(read_array(zarr_zip(values, compressor=compressor), "bands"), values)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "|O"},
        {"shape": [1 << 20, 1 << 20, 1 << 20]},
        {"chunks": [12, 64, 0]},
        {"compressor": {"id": "pickle"}},
        {"filters": [{"id": "pickle"}]},
        {"shape": "many"},
        {"dtype": "<f8"},
        {"chunks": [12, 64]},
    ],
)
def test_zipped_arrays_that_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CorpusError, match="not a readable"):
        read_array(zarr_zip(sample("S2L2A", dtype="int16"), change=change), "bands")


def test_a_zipped_array_described_without_end_is_refused() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("bands/.zarray", "[" * 100_000)
    with pytest.raises(CorpusError, match="not a readable zipped Zarr array 'bands'"):
        read_array(packed.getvalue(), "bands")


def test_any_cut_of_a_zipped_array_is_an_error() -> None:
    data = zarr_zip(sample("NDVI", side=64))
    for length in range(0, len(data) - 1, 997):
        with pytest.raises(CorpusError):
            read_array(data[:length], "bands")
    with pytest.raises(CorpusError, match="no array 'cloud'"):
        read_array(data, "cloud")


def test_zarrs_own_files_are_read(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    values = sample("S1GRD", dtype="float16")
    store = zarr.storage.ZipStore(tmp_path / "a.zarr.zip", mode="w")
    group = zarr.group(store=store, zarr_format=2)
    group.create_array("bands", data=values, chunks=(2, 64, 64))
    store.close()
    assert np.array_equal(read_array((tmp_path / "a.zarr.zip").read_bytes(), "bands"), values)


def test_shards_give_their_samples(tmp_path: Path) -> None:
    arrays = {f"ssl4eos12_{i}": sample("S1RTC", i, "float16") for i in range(3)}
    arrays["ssl4eos12_1"][:, :50] = np.nan
    write_shard(tmp_path / "a_000001.tar", {k: zarr_zip(v) for k, v in list(arrays.items())[:2]})
    write_shard(tmp_path / "a_000002.tar", {k: zarr_zip(v) for k, v in list(arrays.items())[2:]})
    source = TerraMeshShards(str(tmp_path), "S1RTC")
    assert [e[3] for e in source.entries] == list(arrays)
    for item, stored in enumerate(arrays.values()):
        ((values, valid),) = source.windows(item)
        assert np.array_equal(valid, np.isfinite(stored))
        assert np.array_equal(values[valid], stored[valid].astype(np.float32))
    values, valid = source.draw(rng(), 64)
    assert values.shape == (2, 64, 64)
    assert np.isfinite(values).all()


def test_shards_of_sentinel_2_get_the_offset(tmp_path: Path) -> None:
    stored = np.maximum(sample("S2L2A", dtype="int16"), 1000)
    without = stored - 1000
    without[:, 0] = 0
    write_shard(tmp_path / "a.tar", {"with": zarr_zip(stored), "without": zarr_zip(without[None])})
    source = TerraMeshShards(str(tmp_path / "a.tar"), "S2L2A")
    (first,), (second,) = (list(source.windows(i)) for i in (0, 1))
    assert np.array_equal(first[0], stored)
    assert np.array_equal(second[0][second[1]], stored[:, 1:].ravel())
    assert not second[1][:, 0].any()


def test_bad_samples_and_shards_are_named_or_skipped(tmp_path: Path) -> None:
    good = zarr_zip(sample("NDVI"))
    write_shard(
        tmp_path / "a.tar", {"good": good, "bad": good[: len(good) // 2], "other": zarr_zip(sample("S1GRD"))}
    )
    cut = write_shard(tmp_path / "b.tar", {"x": good})
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(CorpusError, match=r"b\.tar"):
        TerraMeshShards(str(tmp_path), "NDVI")
    source = TerraMeshShards(str(tmp_path), "NDVI", skip_bad=True)
    for i in range(20):
        source.draw(rng(i), 32)
    assert {Path(name).name for name in source.bad} == {"b.tar", "a.tar:bad", "a.tar:other"}
    strict = TerraMeshShards(str(tmp_path / "a.tar"), "NDVI")
    with pytest.raises(CorpusError, match=r"a\.tar:(bad|other)"):
        for i in range(20):
            strict.draw(rng(i), 32)
    with pytest.raises(CorpusError, match="no shard"):
        TerraMeshShards(str(tmp_path / "nowhere"), "NDVI")


def test_shards_that_are_all_bad_say_why(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no archive" * 500)
    with pytest.raises(CorpusError, match=r"no sample .* in its 1 shards \(.*a\.tar: not a readable tar"):
        TerraMeshShards(str(tmp_path), "S2L2A", skip_bad=True)
