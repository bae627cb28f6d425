"""Writing GeoTIFFs: exact nodata, ranges, metadata, atomicity."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from raster_helpers import SHARED, MakeRaster, shared_rasters
from rasterio.errors import CRSError

import tmcodec.rasters.writer as writer_module
from tmcodec.errors import RasterWriteError, TargetExistsError, TargetNameError, WindowError
from tmcodec.modalities import MODALITIES
from tmcodec.rasters import RasterSource, RasterWriter, Window, grid_windows, open_raster
from tmcodec.rasters.crs import parse_crs
from tmcodec.rasters.windows import IDENTITY

DEM, LULC, L2A = MODALITIES["DEM"], MODALITIES["LULC"], MODALITIES["S2L2A"]


def write_one(path: Path, values: list[float], valid: list[bool] | None = None, **options: Any) -> np.ndarray:
    """Write one row of one band and return what the file stores."""
    array = np.array(values, np.float32)[None, None]
    options = {"bands": ("DEM",), "width": array.shape[2], "height": 1, **options}
    with RasterWriter(path, **options) as writer:
        flags = None if valid is None else np.array(valid)[None, None]
        writer.write(Window(0, 0, array.shape[2], 1), array, flags)
    with rasterio.open(path) as dataset:
        stored: np.ndarray = dataset.read(1)[0]
    return stored


# --------------------------------------------------------------------------- values


def test_rounding_is_half_to_even_and_clipped_to_the_dtype(tmp_path: Path) -> None:
    stored = write_one(tmp_path / "a.tif", [0.5, 1.5, 2.5, -7, 300, 254.6], dtype="uint8")
    assert stored.tolist() == [0, 2, 2, 0, 255, 255]


def test_values_are_clipped_to_the_modality(tmp_path: Path) -> None:
    stored = write_one(tmp_path / "a.tif", [-20000, 20000, 12], dtype="int16", modality=DEM)
    assert stored.tolist() == [-12000, 9000, 12]
    ndvi = write_one(tmp_path / "b.tif", [-1.2, 1.2, 0.25], dtype="float32", modality=MODALITIES["NDVI"])
    assert ndvi.tolist() == [-1, 1, 0.25]


def test_scale_and_offset_are_undone(tmp_path: Path) -> None:
    absent = write_one(tmp_path / "a.tif", [1500, 900, 65535], dtype="uint16", offset=1000.0, modality=L2A)
    assert absent.tolist() == [500, 0, 64535]
    reflectance = write_one(tmp_path / "b.tif", [2500, 10000], dtype="float32", scale=10000.0, modality=L2A)
    assert reflectance.tolist() == [0.25, 1.0]


def test_floats_beside_the_nodata_value_lie_towards_their_exact_one(tmp_path: Path) -> None:
    """A tenth of 2 is below the nearest float32, which is the nodata value here; a tenth of 7 is above it."""
    for value, end in ((2, -np.inf), (7, np.inf)):
        nodata = np.float32(value / 10)
        assert (float(nodata) > value / 10) == (end < 0)
        options = {"dtype": "float32", "scale": 10.0, "nodata": float(nodata)}
        stored = write_one(tmp_path / f"{value}.tif", [value, 5], **options)
        assert stored.tolist() == [np.nextafter(nodata, np.float32(end)), 0.5]


def test_pictures_alone_are_red_green_and_blue(tmp_path: Path) -> None:
    for name, row in MODALITIES.items():
        path = tmp_path / f"{name}.tif"
        with RasterWriter(path, width=4, height=3, bands=row.bands, dtype=row.dtype, modality=row) as writer:
            writer.write(Window(0, 0, 4, 3), np.ones((len(row.bands), 3, 4), np.float32))
        with rasterio.open(path) as dataset:
            colours = [interp.name for interp in dataset.colorinterp]
        if name == "S2RGB":
            assert colours == ["red", "green", "blue"]
        elif name == "LULC":
            assert colours == ["palette"]
        else:
            assert set(colours) <= {"gray", "undefined"}


def test_no_tag_hides_the_others(tmp_path: Path) -> None:
    """rasterio takes one of that name for the domain of all."""
    write_one(tmp_path / "a.tif", [1], dtype="uint8", tags={"ns": "x", "site": "here"})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.tags()["site"] == "here"


@pytest.mark.parametrize(("dtype", "nodata", "values", "expected"), [
    ("uint16", 0, [0, 0.2, -5, 1], [1, 1, 1, 1]),
    ("uint8", 255, [255, 999, 254.7], [254, 254, 254]),
    ("int16", -32768, [-40000, -32768], [-32767, -32767]),
    ("int16", 0, [-0.3, 0.3, 0], [-1, 1, 1]),
    ("float32", -9999, [-9999, 5], [np.nextafter(np.float32(-9999), np.float32(np.inf)), 5]),
])
def test_valid_pixels_never_take_the_nodata_value(
    tmp_path: Path, dtype: str, nodata: float, values: list[float], expected: list[float]
) -> None:
    stored = write_one(tmp_path / "a.tif", values, dtype=dtype, nodata=nodata)
    assert stored.tolist() == expected and not (stored == np.dtype(dtype).type(nodata)).any()


def test_the_nudge_stays_in_the_modalitys_range(tmp_path: Path) -> None:
    stored = write_one(tmp_path / "a.tif", [9000, 20000], dtype="int16", nodata=9000, modality=DEM)
    assert stored.tolist() == [8999, 8999]


def test_classes_do_not_turn_into_their_neighbours(tmp_path: Path) -> None:
    stored = write_one(tmp_path / "a.tif", [8, 2, 0], dtype="uint8", nodata=8, modality=LULC, bands=("LULC",))
    assert stored.tolist() == [0, 2, 0]


@pytest.mark.parametrize(("dtype", "nodata"), [
    ("int16", -32768), ("int16", 32767), ("uint16", 0), ("uint16", 65535), ("uint8", 255),
    ("float32", float("nan")), ("float32", -3.4028230607370965e38), ("float32", -3.4028234663852886e38),
    ("float32", -9999.0), ("float64", -1e300), ("int32", -2147483648),
])
@pytest.mark.parametrize("cog", [False, True])
def test_masked_pixels_are_the_nodata_value_bit_by_bit(
    tmp_path: Path, dtype: str, nodata: float, cog: bool
) -> None:
    valid = [True, True, False]
    stored = write_one(tmp_path / "a.tif", [7, np.nan, 9], valid, dtype=dtype, nodata=nodata, cog=cog)
    marker = np.dtype(dtype).type(nodata)
    assert stored.dtype == dtype
    assert stored[1:].tobytes() == np.array([marker, marker]).tobytes() and stored[0] == 7
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert np.array_equal(np.dtype(dtype).type(dataset.nodata), marker, equal_nan=np.isnan(nodata))


def test_floats_without_nodata_get_nan(tmp_path: Path) -> None:
    stored = write_one(tmp_path / "a.tif", [7, 8], [True, False], dtype="float32")
    assert stored[0] == 7 and np.isnan(stored[1])
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.nodata is None


def test_integers_without_nodata_need_a_way_to_say_it(tmp_path: Path) -> None:
    with pytest.raises(RasterWriteError, match="mask_kind='mask'"):
        write_one(tmp_path / "a.tif", [7, 8], [True, False], dtype="int16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cog", [False, True])
def test_mask_band_survives(tmp_path: Path, cog: bool) -> None:
    options: dict[str, Any] = {"dtype": "int16", "mask_kind": "mask", "cog": cog}
    stored = write_one(tmp_path / "a.tif", [0, 8, 9], [True, False, True], **options)
    assert stored[[0, 2]].tolist() == [0, 9]
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.nodata is None
        assert dataset.read_masks(1)[0].tolist() == [255, 0, 255]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]  # internal, not a .msk beside it


@pytest.mark.parametrize("cog", [False, True])
def test_a_mask_band_of_many_bands_is_written_quietly(
    tmp_path: Path, cog: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    valid = np.repeat(np.eye(8, dtype=bool)[None], 12, axis=0)
    bands = tuple(f"B{i}" for i in range(12))
    with RasterWriter(tmp_path / "a.tif", width=8, height=8, bands=bands, dtype="uint16", mask_kind="mask",
                      cog=cog) as writer:
        writer.write(Window(0, 0, 8, 8), np.full(valid.shape, 9, np.float32), valid)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert np.array_equal(dataset.read(), np.where(valid, 9, 0))
        assert np.array_equal(dataset.read_masks() > 0, valid)
    assert capfd.readouterr().err == ""  # GDAL's threads said "Bad value 11 for ExtraSamples tag"


def test_a_mask_band_leaves_floats_nan_band_by_band(tmp_path: Path) -> None:
    valid = np.array([[[True, False, False]], [[True, True, False]]])
    with RasterWriter(tmp_path / "a.tif", width=3, height=1, bands=("VV", "VH"), dtype="float32",
                      mask_kind="mask") as writer:
        writer.write(Window(0, 0, 3, 1), np.full((2, 1, 3), -9, np.float32), valid)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert np.array_equal(np.isfinite(dataset.read()), valid)
        assert dataset.read_masks(1)[0].tolist() == dataset.read_masks(2)[0].tolist() == [255, 255, 0]


def test_wide_integers_clip_without_wrapping(tmp_path: Path) -> None:
    stored = write_one(tmp_path / "a.tif", [1e30, -1e30, 5], dtype="int64")
    assert stored[0] > 2**62 and stored[1] == -(2**63) and stored[2] == 5


def test_nodata_outside_the_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RasterWriteError, match="does not fit into uint8"):
        RasterWriter(tmp_path / "a.tif", width=1, height=1, bands=("DEM",), dtype="uint8", nodata=-1)


# --------------------------------------------------------------------------- windows and files


@pytest.mark.parametrize("compress", ["deflate", "zstd"])
def test_windows_in_any_order(tmp_path: Path, compress: str) -> None:
    array = np.random.default_rng(0).integers(1, 9000, (3, 300, 290)).astype(np.float32)
    windows = list(grid_windows(290, 300, 77))
    np.random.default_rng(1).shuffle(windows)
    with RasterWriter(tmp_path / "a.tif", width=290, height=300, bands=("a", "b", "c"), dtype="uint16",
                      units="DN", tags={"K": "v"}, compress=compress) as writer:
        for window in windows:
            writer.write(window, array[(slice(None), *window.slices)])
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert np.array_equal(dataset.read(), array)
        assert dataset.descriptions == ("a", "b", "c") and dataset.units == ("DN",) * 3
        assert dataset.tags()["K"] == "v"
        assert dataset.block_shapes[0] == (256, 256) and dataset.profile["tiled"]
        structure = dataset.tags(ns="IMAGE_STRUCTURE")
        assert structure["COMPRESSION"] == compress.upper() and structure["PREDICTOR"] == "2"


def test_windows_outside_and_wrong_shapes_are_refused(tmp_path: Path) -> None:
    with RasterWriter(tmp_path / "a.tif", width=4, height=4, bands=("DEM",), dtype="int16") as writer:
        with pytest.raises(WindowError, match="not inside"):
            writer.write(Window(2, 0, 4, 1), np.zeros((1, 1, 4), np.float32))
        with pytest.raises(WindowError, match="shape"):
            writer.write(Window(0, 0, 4, 1), np.zeros((1, 1, 3), np.float32))
    with pytest.raises(RasterWriteError, match="with block"):
        writer.write(Window(0, 0, 4, 1), np.zeros((1, 1, 4), np.float32))


def test_colour_map_and_modality_tag(tmp_path: Path) -> None:
    for cog in (False, True):
        path = tmp_path / f"{cog}.tif"
        write_one(path, [1, 9, 4], dtype="uint8", modality=LULC, bands=("LULC",), cog=cog)
        with rasterio.open(path) as dataset:
            colours = dataset.colormap(1)
            assert [colours[i][:3] for i in range(10)] == list(LULC.colors)
            assert dataset.descriptions == ("LULC",)
        with open_raster(path) as source:
            assert source.modality is LULC


def test_cog_layout_overviews_and_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    array = np.broadcast_to(np.arange(1100, dtype=np.float32) + 1, (2, 600, 1100))
    valid = np.ones(array.shape, bool)
    valid[:, :10, :10] = False
    with RasterWriter(
        path, width=1100, height=600, bands=("VV", "VH"), dtype="int16", crs="EPSG:32633", nodata=-1,
        transform=(10.0, 0.0, 5e5, 0.0, -10.0, 5e6), units=("dB", "dB"), tags={"K": "v"}, cog=True,
    ) as writer:
        writer.write(Window(0, 0, 1100, 600), array, valid)
    with rasterio.open(path) as dataset:
        assert dataset.driver == "GTiff" and dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.overviews(1) == [2, 4] and dataset.block_shapes[0] == (512, 512)
        assert dataset.descriptions == ("VV", "VH") and dataset.units == ("dB", "dB")
        assert dataset.nodata == -1 and dataset.crs.to_epsg() == 32633 and dataset.tags()["K"] == "v"
        assert dataset.transform[:6] == (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)
        assert np.array_equal(dataset.read(), np.where(valid, array, -1))
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
@pytest.mark.parametrize("cog", [False, True])
def test_a_forked_child_writes_and_reads_without_the_parents_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cog: bool
) -> None:
    monkeypatch.setenv("GDAL_NUM_THREADS", "2")  # as users do, who read with threads, too
    values = (np.arange(700 * 700, dtype=np.float32) % 999).reshape(1, 700, 700)

    def there_and_back(name: str) -> bool:
        whole = Window(0, 0, 700, 700)
        form: dict[str, Any] = {"bands": ("DEM",), "dtype": "float32", "cog": cog}
        with RasterWriter(tmp_path / name, width=700, height=700, **form) as writer:
            writer.write(whole, values)
        with open_raster(tmp_path / name, "DEM") as source:
            return np.array_equal(source.read(whole)[0], values)

    assert there_and_back("parent.tif")
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # which ends it where it waits for threads that are not there
        with suppress(BaseException):
            os._exit(0 if there_and_back("child.tif") else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --------------------------------------------------------------------------- atomic


@pytest.mark.parametrize("cog", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, cog: bool, error: type[BaseException]) -> None:
    options: dict[str, Any] = {"width": 9, "height": 9, "bands": ("DEM",), "dtype": "int16", "cog": cog}
    with pytest.raises(error), RasterWriter(tmp_path / "a.tif", **options) as writer:
        writer.write(Window(0, 0, 9, 1), np.zeros((1, 1, 9), np.float32))
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"precious")
    with pytest.raises(TargetExistsError, match="overwrite"):
        write_one(path, [1], dtype="int16")
    with pytest.raises(RuntimeError), RasterWriter(
            path, width=1, height=1, bands=("DEM",), dtype="int16", overwrite=True):
        raise RuntimeError
    assert path.read_bytes() == b"precious"
    assert write_one(path, [5], dtype="int16", overwrite=True).tolist() == [5]


@pytest.mark.parametrize("cog", [False, True])
def test_blocks_that_were_not_written_are_an_error(
    tmp_path: Path, cog: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk may show in nothing else; the unfinished file goes."""
    sparse = tmp_path / "sparse.tif"
    with rasterio.open(sparse, "w", driver="GTiff", width=40, height=600, count=2, dtype="uint8", tiled=True,
                       blockxsize=256, blockysize=256, sparse_ok=True, interleave="band") as dataset:
        dataset.write(np.ones((600, 40), np.uint8), 1)
        dataset.write(np.ones((256, 40), np.uint8), 2, window=((0, 256), (0, 40)))
    with pytest.raises(OSError, match="blocks of band 2 were not written"):
        writer_module._check_complete(sparse)

    monkeypatch.setattr(writer_module, "_block_end", lambda *_: 2**40)  # beyond the end
    options: dict[str, Any] = {"width": 9, "height": 9, "bands": ("DEM",), "dtype": "int16", "cog": cog}
    with pytest.raises(RasterWriteError, match=r"a.tif \(blocks of band 1 were not written\)"):
        with RasterWriter(tmp_path / "a.tif", **options) as writer:
            writer.write(Window(0, 0, 9, 9), np.zeros((1, 9, 9), np.float32))
    assert [p.name for p in tmp_path.iterdir()] == ["sparse.tif"]


ROTATED = rasterio.CRS.from_string(
    "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +R=6371229 +no_defs"
).to_wkt()
"""A CRS of weather models, on a pole of its own, for which GeoTIFF has no keys."""


@pytest.mark.parametrize("cog", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_crs_that_geotiff_cannot_hold_lies_beside_it(tmp_path: Path, cog: bool, masked: bool) -> None:
    path, transform = tmp_path / "a.tif", (0.5, 0.0, 5.0, 0.0, -0.5, 5.0)
    how = {"dtype": "int16", "crs": ROTATED, "transform": transform, "cog": cog}
    write_one(path, [7, 8], [True, False], **how, **({"mask_kind": "mask"} if masked else {"nodata": 0}))
    with rasterio.open(path) as dataset:
        assert dataset.crs == rasterio.CRS.from_wkt(ROTATED)
        assert dataset.transform[:6] == transform and dataset.read_masks(1).tolist() == [[255, 0]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "a.tif.aux.xml"]
    write_one(path, [7, 8], dtype="int16", crs="EPSG:4326", transform=transform, overwrite=True)
    with rasterio.open(path) as dataset:
        assert dataset.crs.to_epsg() == 4326
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_the_text_of_a_crs_is_no_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        crs = f"http://127.0.0.1:{server.getsockname()[1]}/crs"
        with pytest.raises(RasterWriteError, match="neither a code such as EPSG:32632 nor WKT"):
            write_one(tmp_path / "a.tif", [7], dtype="int16", crs=crs)
        with pytest.raises(BlockingIOError):  # nobody has come
            server.accept()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [
    "/etc/hostname", "file.wkt", "+init=/etc/hostname:x", "+proj=utm +zone=32", '{"init": 5}', '{"a":' * 5000,
    "no CRS", "PROJCS[", "PROJCS(" * 9000, "EPSG:1", "\0",
])  # fmt: skip
def test_other_texts_are_no_crs(text: str) -> None:
    with pytest.raises(CRSError):
        parse_crs(text)


@pytest.mark.parametrize("code", ["EPSG:32632", "EPSG:3857", "ESRI:54009"])
def test_codes_and_wkt_are_a_crs(code: str) -> None:
    crs = rasterio.CRS.from_string(code)
    assert parse_crs(code) == crs
    assert all(parse_crs(crs.to_wkt(version=v)) == crs for v in ("WKT1_GDAL", "WKT2_2019"))


@pytest.mark.parametrize("cog", [False, True])
def test_units_of_heights_are_kept_beside_a_crs_without_codes(tmp_path: Path, cog: bool) -> None:
    own = ('COMPD_CS["c",' + rasterio.CRS.from_epsg(32633).to_wkt() + ',VERT_CS["heights of ours",'
           'VERT_DATUM["ours",2005],UNIT["US survey foot",0.304800609601219],AXIS["Up",UP]]]')
    write_one(tmp_path / "a.tif", [7, 8], dtype="int16", crs=own, units="US survey foot", cog=cog)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.units == ("US survey foot",)  # GDAL makes the axis of such a CRS one of metres
        assert dataset.read().tolist() == [[[7, 8]]]


@pytest.mark.parametrize("cog", [False, True])
def test_a_crs_is_kept_where_sidecars_are_turned_off(tmp_path: Path, cog: bool) -> None:
    with rasterio.Env(GDAL_PAM_ENABLED=False):
        write_one(tmp_path / "a.tif", [7, 8], dtype="int16", crs=ROTATED, cog=cog)
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.crs == rasterio.CRS.from_string(ROTATED)


@pytest.mark.parametrize("cog", [False, True])
def test_an_interrupt_leaves_no_crs_behind(tmp_path: Path, cog: bool) -> None:
    options: dict[str, Any] = {"width": 9, "height": 9, "bands": ("DEM",), "dtype": "int16", "crs": ROTATED}
    with pytest.raises(KeyboardInterrupt), RasterWriter(tmp_path / "a.tif", cog=cog, **options):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def masked_with_overviews(path: Path) -> None:
    """Write zeros of which all pixels are masked, with the mask, overviews and a tag in sidecars."""
    profile = {"driver": "GTiff", "count": 1, "width": 64, "height": 64, "dtype": "int16"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True):
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write_mask(np.zeros((64, 64), np.uint8))
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2])
    pam = "<PAMDataset><Metadata><MDI key='OLD'>1</MDI></Metadata></PAMDataset>"
    path.with_name(path.name + ".aux.xml").write_text(pam)


@pytest.mark.parametrize("cog", [False, True])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_new_raster_has_no_mask_overview_or_tag_of_the_old_one(
    tmp_path: Path, cog: bool, deleted: bool
) -> None:
    path, options = tmp_path / "a.tif", {"dtype": "int16", "cog": cog, "tags": {"NEW": "1"}}
    masked_with_overviews(path)
    assert len(list(tmp_path.iterdir())) == 5
    if deleted:
        path.unlink()
        with pytest.raises(TargetExistsError, match=r"a\.tif\.aux\.xml and .*a\.tif\.ovr would be read as"):
            write_one(path, [7, 8], **options)
    write_one(path, [7, 8], overwrite=True, **options)
    with rasterio.open(path) as dataset:
        assert dataset.read_masks(1).all() and dataset.overviews(1) == [] and "OLD" not in dataset.tags()
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize("cog", [False, True])
def test_bad_options_leave_nothing(tmp_path: Path, cog: bool) -> None:
    with pytest.raises(RasterWriteError, match="cannot write") as caught:
        write_one(tmp_path / "a.tif", [1], dtype="int16", crs="EPSG:nonsense", cog=cog)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_hidden_names_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL says of a full disk that it cannot read a directory, of a file of another name."""

    def failing(path: Path, *_: Any, **__: Any) -> None:
        raise rasterio.errors.RasterioIOError(f"{path}: TIFFReadDirectory failed")

    monkeypatch.setattr("tmcodec.rasters.writer.open_quietly", failing)
    for free, says in ((2**30, r"a\.tif \(a\.tif: TIFFReadDirectory"), (0, "no space left on its disk")):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda folder, usage=usage: usage)
        with pytest.raises(RasterWriteError, match=says):
            write_one(tmp_path / "a.tif", [1], dtype="int16")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RasterWriteError, match="folder does not exist"):
        write_one(tmp_path / "no" / "a.tif", [1], dtype="int16")


# --------------------------------------------------------------------------- there and back


def copy_raster(source: RasterSource, path: Path, **options: Any) -> None:
    """Write what `source` reads, as a decoder would."""
    with RasterWriter(
        path, width=source.width, height=source.height, bands=source.bands, dtype=source.dtype,
        crs=source.crs, transform=source.transform, nodata=source.nodata, mask_kind=source.mask_kind,
        modality=source.modality, scale=source.scale, offset=source.offset, **options,
    ) as writer:
        for window in grid_windows(source.width, source.height, 512):
            writer.write(window, *source.read(window))


@pytest.mark.parametrize("cog", [False, True])
def test_every_nodata_kind_there_and_back(make_raster: MakeRaster, tmp_path: Path, cog: bool) -> None:
    array = np.arange(1, 21, dtype=np.float32).reshape(4, 5)
    array[2, 3] = np.nan
    for name, dtype, nodata in (("a", "int16", -32768), ("b", "uint16", 0), ("c", "float32", np.nan),
                                ("d", "float32", -3.4028230607370965e38), ("e", "float32", None)):
        stored = np.where(np.isnan(array), np.nan if nodata is None else nodata, array).astype(dtype)
        with open_raster(make_raster(stored, f"{name}.tif", nodata=nodata), "DEM") as source:
            copy_raster(source, tmp_path / f"{name}2.tif", cog=cog)
        with rasterio.open(tmp_path / f"{name}2.tif") as dataset:
            assert dataset.read(1).tobytes() == stored.tobytes()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared sample rasters are not at {SHARED}")
@pytest.mark.parametrize("path", shared_rasters(), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_shared_rasters_there_and_back(path: Path, tmp_path: Path) -> None:
    folder = path.parent.name
    modality = {"S2L1C_no_B10": "S2L2A", "S2L1C_reflectance": "S2L1C"}.get(folder, folder.split("_")[0])
    class_map = "worldcover" if folder == "LULC_worldcover" else None
    with open_raster(path, modality, s2_offset="absent", class_map=class_map) as source:
        assert source.scale == (10000 if folder == "S2L1C_reflectance" else 1)
        copy_raster(source, tmp_path / "copy.tif")
        with rasterio.open(path) as before, rasterio.open(tmp_path / "copy.tif") as after:
            assert after.shape == before.shape and after.dtypes == before.dtypes
            assert after.crs == before.crs and after.transform == before.transform
            assert (source.transform or IDENTITY) == tuple(before.transform)[:6]
            assert after.descriptions == before.descriptions
            assert np.array_equal(after.nodatavals, before.nodatavals) or np.isnan(before.nodata)
            mask, old, new = before.read_masks(), before.read(), after.read()
            assert np.array_equal(mask, after.read_masks())
    if class_map is not None:
        assert new.max() <= 9
    elif folder == "S2L1C_reflectance":
        np.testing.assert_allclose(new, old, atol=1e-6)
    else:
        assert new.tobytes() == old.tobytes()


_FULL_DISK = """
import resource, signal, sys
import numpy as np
from tmcodec.errors import RasterWriteError
from tmcodec.rasters import RasterWriter, Window
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
noise = np.random.default_rng(0).integers(0, 60000, (1, 512, 512)).astype(np.float32)
try:
    options = {"bands": ("DEM",), "dtype": "uint16", "cog": sys.argv[3] == "cog"}
    with RasterWriter(sys.argv[1], width=512, height=512, **options) as writer:
        writer.write(Window(0, 0, 512, 512), noise)
        if sys.argv[3] == "stopped":  # the disk shows while the unfinished file is closed
            raise RasterWriteError
except RasterWriteError:
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX")
@pytest.mark.parametrize("kind", ["plain", "cog", "stopped"])
@pytest.mark.parametrize("limit", [1_000, 130_000, 300_000, 500_000])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, limit: int, kind: str) -> None:
    # 512 x 512 noise of 16 bits takes more than 500 kB in any coder. In a process of its own,
    # because the limit would hold for the test run too.
    target = tmp_path / "a.tif"
    command = [sys.executable, "-c", _FULL_DISK, str(target), str(limit), kind]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert run.returncode == 7, run.stderr
    # libtiff's own lines, _tiffWriteProc: File too large, cannot be kept back; GDAL's can.
    assert "ERROR" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    (tmp_path / "a.tif").mkdir()
    with pytest.raises(TargetNameError, match="is a folder; name a file in it"):
        write_one(tmp_path / "a.tif", [1], dtype="int16", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
