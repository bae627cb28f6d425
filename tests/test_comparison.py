"""`tmcodec.compare`: which is the original, what is known about it, what comes out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image

import tmcodec
from tmcodec.comparison import Comparison, _same_crs, _same_place
from tmcodec.errors import (
    LayerNotFoundError,
    LimitExceededError,
    LineEndingError,
    ModalityError,
    OffsetUnknownError,
    SizeMismatchError,
    TargetExistsError,
    TargetNameError,
)
from tmcodec.metrics import ClassMetrics, ImageMetrics
from tmcodec.plot import scale_panel
from tmcodec.rasters import RasterSource
from tmcodec.tokenfile import TokenFile

MakeTokenizer = Callable[[str], Path]
MakeScene = Callable[..., Path]


def altered(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray], **profile: object) -> Path:
    """Copy a raster with other values or another profile."""
    copy = path.with_name(name)
    with rasterio.open(path) as source:
        kept = {**source.profile, **profile}
        with rasterio.open(copy, "w", **kept) as target:
            target.write(change(source.read()))
            target.descriptions = source.descriptions
            target.update_tags(**source.tags())
    return copy


def image(result: Comparison) -> ImageMetrics:
    assert isinstance(result.metrics, ImageMetrics)
    return result.metrics


def test_the_function_stays_a_function() -> None:
    # A module of the same name would take its place at the second use.
    assert callable(tmcodec.compare)
    assert callable(tmcodec.compare)


def test_two_rasters(make_scene: MakeScene) -> None:
    original = make_scene()
    other = altered(original, "other.tif", lambda values: values + 10)
    result = tmcodec.compare(other, original)
    assert image(result).rmse == 10
    assert image(result).bands[3].bias == 10
    assert image(result).psnr == pytest.approx(60)
    assert (result.modality, result.units, result.width, result.height) == ("S2L2A", "DN", 48, 32)
    assert result.raw_bytes == 48 * 32 * 12 * 2
    assert (result.original, result.reconstruction) == (str(original), str(other))
    assert result.reconstruction_bytes == other.stat().st_size
    assert result.ratio == pytest.approx(result.raw_bytes / other.stat().st_size)
    assert result.crs_equal
    assert result.transform_equal
    assert result.mask_agreement == 1
    assert result.tokenizer is None
    assert result.steps is None


def test_what_one_raster_says_holds_for_both(make_scene: MakeScene) -> None:
    told = make_scene(name="told.tif")
    silent = make_scene(name="silent.tif", described=False, offset=None)
    for pair in ((told, silent), (silent, told)):
        result = tmcodec.compare(*pair)
        assert result.modality == "S2L2A"
        assert image(result).rmse == 0
    with pytest.raises(ModalityError, match="--modality"):
        tmcodec.compare(silent, silent)
    with pytest.raises(OffsetUnknownError, match="--s2-offset"):
        tmcodec.compare(silent, silent, modality="S2L2A")


def test_an_offset_on_one_side_only_is_an_error_of_nothing(make_scene: MakeScene) -> None:
    without = make_scene(name="without.tif", offset="absent")
    added = altered(without, "with.tif", lambda values: values + 1000)
    with rasterio.open(added, "r+") as dataset:
        dataset.update_tags(TMCODEC_S2_OFFSET="present")
    assert image(tmcodec.compare(added, without)).rmse == 1000  # A's word holds for both
    assert image(tmcodec.compare(added, without, s2_offset="present")).rmse == 1000


def test_georeferencing_and_masks(make_scene: MakeScene) -> None:
    original = make_scene("DEM", nodata=-32768)
    hole = altered(original, "hole.tif", lambda v: np.where(np.arange(48) < 12, -32768, v).astype(v.dtype))
    assert tmcodec.compare(hole, original).mask_agreement == 0.75
    moved = make_scene("DEM", nodata=-32768, name="moved.tif", left=500010.0)
    result = tmcodec.compare(moved, original)
    assert result.crs_equal
    assert not result.transform_equal
    bare = make_scene("DEM", nodata=-32768, name="bare.tif", crs=None)
    assert not tmcodec.compare(bare, original).crs_equal
    other_zone = make_scene("DEM", nodata=-32768, name="zone.tif", crs="EPSG:32634")
    assert not tmcodec.compare(other_zone, original).crs_equal


def test_a_text_that_is_no_crs_equals_none_but_itself() -> None:
    assert _same_crs("no CRS", "no CRS")
    assert not _same_crs("no CRS", "EPSG:4326")
    assert not _same_crs("EPSG:4326", "no CRS")
    for none in (None, ""):
        assert _same_crs(none, None) and _same_crs(none, "")
        assert not _same_crs(none, "EPSG:4326")
        assert not _same_crs("EPSG:4326", none)
    assert _same_crs("EPSG:4326", rasterio.CRS.from_epsg(4326).to_wkt())


def test_sizes_that_differ_are_said_before_anything_is_read(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A raster of a few hundred bytes may claim more pixels than memory holds."""
    small, large = make_scene("DEM"), make_scene("DEM", name="large.tif", width=64)
    monkeypatch.setattr(RasterSource, "read", lambda *_: pytest.fail("a raster was read"))
    with pytest.raises(SizeMismatchError, match=r"large.tif has 64 x 32 pixels, .*48 x 32"):
        tmcodec.compare(large, small)


def test_rasters_that_no_memory_holds_are_refused(make_scene: MakeScene, tmp_path: Path) -> None:
    scene, large = make_scene("DEM"), tmp_path / "large.vrt"
    rasterio.shutil.copy(scene, large, driver="VRT")
    large.write_text(re.sub(r'RasterXSize="48" rasterYSize="32"|rasterXSize="48" rasterYSize="32"',
                            'rasterXSize="2147483647" rasterYSize="2147483647"', large.read_text("utf-8")))
    with pytest.raises(LimitExceededError, match=r"large.vrt: 2147483647 x 2147483647 pixels .*--window"):
        tmcodec.compare(large, large)
    assert tmcodec.compare(large, large, window=(0, 0, 48, 32)).mask_agreement == 1


def heights(path: Path, dtype: str, metres: float, unit: str = "", scale: float = 1.0) -> Path:
    """Write hills of 500 m, stored in steps of so many metres."""
    hills = 500 + 50 * np.sin(np.add(*np.mgrid[:64, :64]) / 20)
    with rasterio.open(path, "w", driver="GTiff", width=64, height=64, count=1, dtype=dtype) as target:
        target.write(np.round(hills / metres, 0 if dtype == "int16" else 4).astype(dtype), 1)
        target.descriptions, target.scales = ("DEM",), (scale,)
        if unit:
            target.units = (unit,)
    return path


def test_a_raster_of_another_dtype_has_a_scale_of_its_own(tmp_path: Path, make_scene: MakeScene) -> None:
    """The scale of a token file's layer is that of the raster it was made of."""
    numbers = make_scene()
    reflectance = altered(numbers, "reflectance.tif", lambda v: v / np.float32(1e4), dtype="float32")
    metres = heights(tmp_path / "m.tif", "float32", 1.0)
    feet = heights(tmp_path / "ft.tif", "int16", 0.3048, "ft")
    decimetres = heights(tmp_path / "dm.tif", "int16", 0.1, scale=0.1)
    for original, other, near in (
        (numbers, reflectance, 0.1), (reflectance, numbers, 0.1),
        (metres, feet, 0.2), (feet, metres, 0.2), (decimetres, metres, 0.1),
    ):
        tmcodec.encode(original, tmp_path / "a.tmc", effort=0, overwrite=True)
        own, found = (image(tmcodec.compare(tmp_path / "a.tmc", each)) for each in (original, other))
        assert found.rmse == pytest.approx(own.rmse, abs=near)


def test_a_raster_of_the_same_dtype_has_the_scale_that_the_encoder_was_told(tmp_path: Path) -> None:
    source = heights(tmp_path / "dm.tif", "int16", 0.1)  # without a tag
    tmcodec.encode(source, tmp_path / "a.tmc", scale=0.1, effort=0)
    assert image(tmcodec.compare(tmp_path / "a.tmc", source)).rmse < 5
    halved = image(tmcodec.compare(tmp_path / "a.tmc", source, scale=0.05))  # the caller's word comes first
    assert halved.rmse == pytest.approx(250, rel=0.1)


def test_token_files_of_two_modalities_are_not_compared(make_scene: MakeScene, tmp_path: Path) -> None:
    for modality in ("DEM", "NDVI"):  # a band each
        scene = make_scene(modality, name=f"{modality}.tif")
        tmcodec.encode(scene, tmp_path / f"{modality}.tmc", effort=0)
    with pytest.raises(ModalityError, match=r"DEM.tmc is DEM, .*NDVI.tmc is NDVI; compare two of one"):
        tmcodec.compare(tmp_path / "DEM.tmc", tmp_path / "NDVI.tmc")


def test_places_beyond_all_numbers_are_equal_where_they_are_the_same() -> None:
    far = (1.7e308, 1.7e308, 0.0, 1.7e308, -1.7e308, 0.0)
    assert _same_place(far, far, 100, 100)
    assert not _same_place(far, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0), 100, 100)
    assert not _same_place((1.0, 0.0, 0.0, 0.0, -1.0, 0.0), far, 100, 100)
    ten = (10.0, 0.0, 5e5, 0.0, -10.0, 4e6)
    assert _same_place(ten, (10.0, 0.0, 5e5 + 0.009, 0.0, -10.0, 4e6), 100, 100)
    assert not _same_place(ten, (10.0, 0.0, 5e5 + 0.011, 0.0, -10.0, 4e6), 100, 100)


@pytest.mark.parametrize(
    ("coefficient", "apart"), [(0, 5e-5), (1, 1e-4), (2, 5e-3), (3, 5e-5), (4, 1e-4), (5, 5e-3)]
)
@pytest.mark.parametrize("sign", [-1, 1])
def test_all_corners_of_a_turned_raster_lie_within_a_thousandth_of_a_pixel(
    coefficient: int, apart: float, sign: int
) -> None:
    """100 x 50 pixels of 10 x 5 units: 0.005 at the farthest corner, in columns, rows or the origin."""
    turned = (6.0, 4.0, 500.0, 8.0, -3.0, 400.0)

    def moved(by: float) -> tuple[float, ...]:
        return tuple(v + by * sign * (i == coefficient) for i, v in enumerate(turned))

    assert _same_place(turned, moved(0.99 * apart), 100, 50)
    assert not _same_place(turned, moved(1.01 * apart), 100, 50)


def test_sizes_must_match(make_scene: MakeScene) -> None:
    large, small = make_scene(width=64), make_scene(name="small.tif")
    with pytest.raises(SizeMismatchError, match=r"48 x 32 pixels, .*64 x 32"):
        tmcodec.compare(small, large)
    assert image(tmcodec.compare(large, large, window=(16, 0, 48, 32))).pixels == 48 * 32


def test_classes(make_scene: MakeScene) -> None:
    original = make_scene("LULC")
    result = tmcodec.compare(original, original, modality="LULC")
    assert isinstance(result.metrics, ClassMetrics)
    assert (result.metrics.accuracy, result.metrics.miou) == (1, 1)


# --------------------------------------------------------------------------- token files


@pytest.fixture
def encoded(make_scene: MakeScene, tiny_tokenizer: MakeTokenizer) -> tuple[Path, Path, Path]:
    """Return a scene without a word about its meaning, its token file, and the tokenizer."""
    scene, weights = make_scene(described=False, offset=None), tiny_tokenizer("S2L2A")
    tokens = scene.with_suffix(".tmc")
    tmcodec.encode(scene, tokens, modality="S2L2A", s2_offset="absent", tokenizer=weights)
    return scene, tokens, weights


def test_a_token_file_needs_no_flags(encoded: tuple[Path, Path, Path]) -> None:
    scene, tokens, weights = encoded
    result = tmcodec.compare(tokens, scene, tokenizer=weights)
    decoded = scene.with_name("decoded.tif")
    tmcodec.decode(tokens, decoded, tokenizer=weights)
    with rasterio.open(scene) as one, rasterio.open(decoded) as two:
        error = two.read().astype(float) - one.read()
    assert image(result).rmse == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)
    assert result.reconstruction_bytes == tokens.stat().st_size
    assert result.ratio == pytest.approx(48 * 32 * 12 * 2 / tokens.stat().st_size)
    assert (result.tokenizer, result.steps, result.seed) == ("tiny-s2l2a", 1, 0)
    assert result.crs_equal
    assert result.transform_equal
    counted = tmcodec.compare(decoded, scene, count_bytes_of=tokens)
    assert image(counted) == image(result)
    assert (counted.reconstruction_bytes, counted.ratio) == (result.reconstruction_bytes, result.ratio)
    assert tmcodec.compare(decoded, scene).reconstruction_bytes == decoded.stat().st_size


def test_the_raster_is_the_original_wherever_it_stands(encoded: tuple[Path, Path, Path]) -> None:
    scene, tokens, weights = encoded
    usual = tmcodec.compare(tokens, scene, tokenizer=weights)
    assert tmcodec.compare(scene, tokens, tokenizer=weights) == usual


def test_token_files_are_told_by_their_bytes(encoded: tuple[Path, Path, Path]) -> None:
    scene, tokens, weights = encoded
    disguised = shutil.copy(tokens, scene.with_name("tokens.tif"))
    assert tmcodec.compare(disguised, scene, tokenizer=weights).tokenizer == "tiny-s2l2a"
    mangled = scene.with_name("mangled.tmc")
    mangled.write_bytes(tokens.read_bytes().replace(b"\r\n", b"\n"))
    with pytest.raises(LineEndingError):
        tmcodec.compare(mangled, scene, tokenizer=weights)


def test_windows_and_steps_of_a_token_file(encoded: tuple[Path, Path, Path]) -> None:
    scene, tokens, weights = encoded
    part = tmcodec.compare(tokens, scene, tokenizer=weights, window=(16, 5, 20, 10), steps=2, seed=3)
    assert (part.width, part.height, part.ratio) == (20, 10, None)
    assert (part.steps, part.seed) == (2, 3)
    assert part.crs_equal
    assert part.transform_equal


def test_layers_of_a_stack(
    encoded: tuple[Path, Path, Path], make_scene: MakeScene, tiny_tokenizer: MakeTokenizer
) -> None:
    scene, tokens, weights = encoded
    hills, both = make_scene("DEM", name="dem.tif"), scene.with_name("both.tmc")
    tmcodec.encode(hills, hills.with_suffix(".tmc"), tokenizer=tiny_tokenizer("DEM"))
    tmcodec.stack([tokens, hills.with_suffix(".tmc")], both)
    with pytest.raises(LayerNotFoundError, match="S2L2A, DEM"):
        tmcodec.compare(both, scene, tokenizer=weights)
    result = tmcodec.compare(both, scene, layer="S2L2A", tokenizer=weights)
    assert image(result) == image(tmcodec.compare(tokens, scene, tokenizer=weights))
    assert result.reconstruction_bytes is not None
    assert result.reconstruction_bytes < both.stat().st_size
    # Its chunks, and half of the header.
    with TokenFile.open(both) as file:
        parts = [file[name].payload_bytes + file.header_bytes // 2 for name in ("S2L2A", "DEM")]
    assert result.reconstruction_bytes == parts[0]
    assert both.stat().st_size - sum(parts) in (0, 1)
    with pytest.raises(ModalityError, match="holds S2L2A, not DEM"):
        tmcodec.compare(tokens, hills, modality="DEM", tokenizer=weights)


def test_the_bytes_of_a_date_are_its_chunks_and_its_share_of_the_header(
    make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    weights, scenes, files = tiny_tokenizer("DEM"), [], []
    for year, width in ((2020, 48), (2021, 48), (2022, 48)):
        scenes.append(make_scene("DEM", width, name=f"{year}.tif", seed=year))
        files.append(tmp_path / f"{year}.tmc")
        tmcodec.encode(scenes[-1], files[-1], tokenizer=weights, tags={"ACQUISITION_DATE": f"{year}-01-01"})
    tmcodec.stack(files, tmp_path / "all.tmc")
    found = [
        tmcodec.compare(tmp_path / "all.tmc", scene, time=time, tokenizer=weights).reconstruction_bytes
        for time, scene in enumerate(scenes)
    ]
    with TokenFile.open(tmp_path / "all.tmc") as file:
        lengths, header = file["DEM"].index.lengths.tolist(), file.header_bytes
    assert found == [length + header // 3 for length in lengths]


def test_to_dict_is_json(encoded: tuple[Path, Path, Path]) -> None:
    scene, tokens, weights = encoded
    report = tmcodec.compare(tokens, scene, tokenizer=weights).to_dict()
    assert json.loads(json.dumps(report, allow_nan=False))["metrics"]["bands"][0]["name"] == "B01"


# --------------------------------------------------------------------------- the picture


def test_plot(make_scene: MakeScene) -> None:
    original = make_scene()
    other = altered(original, "other.tif", lambda values: values + 500)
    picture = original.with_name("out.png")
    tmcodec.compare(other, original, plot=picture)
    with Image.open(picture) as page:
        assert page.format == "PNG"
        assert page.width >= 3 * 384
        assert page.height > 256
        assert page.getpixel((2, 2)) == (255, 255, 255)
    with pytest.raises(TargetExistsError):
        tmcodec.compare(other, original, plot=picture)
    tmcodec.compare(other, original, plot=picture, overwrite=True)


def test_a_plot_never_replaces_what_is_read(make_scene: MakeScene) -> None:
    original = make_scene(name="a.png")  # a GeoTIFF by another name
    other = altered(make_scene(), "b.png", lambda values: values + 500)
    counted = original.with_name("c.png")
    counted.write_bytes(b"counted")
    before = [path.read_bytes() for path in (original, other, counted)]
    for plot in (original, other, counted):
        with pytest.raises(TargetNameError, match=f"{plot.name} is the source itself; choose another"):
            tmcodec.compare(other, original, count_bytes_of=counted, plot=plot, overwrite=True)
    assert [path.read_bytes() for path in (original, other, counted)] == before
    for name in ("a.tif", "a", "a.jpg"):
        with pytest.raises(TargetNameError, match=f"{name}: what is written is a picture; name it .png"):
            tmcodec.compare(other, original, plot=original.with_name(name))


@pytest.mark.parametrize("modality", ["DEM", "LULC", "S2RGB"])
def test_plot_of_other_modalities(make_scene: MakeScene, modality: str) -> None:
    original = make_scene(modality)
    picture = original.with_name("out.png")
    tmcodec.compare(original, original, modality=modality, plot=picture)
    assert picture.stat().st_size > 1000
    assert [p.name for p in picture.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("size", "expected"),
    [((48, 32), (384, 256)), ((360, 20), (360, 20)), ((700, 90), (700, 90)), ((1800, 900), (900, 450))],
)
def test_panels_are_enlarged_by_whole_factors_or_reduced(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[0, 0] = 200
    panel = scale_panel(picture)
    assert panel.size == expected
    factor = max(1, expected[0] // size[0])
    if expected[0] >= size[0]:
        assert panel.getpixel((factor - 1, factor - 1)) == (200, 200, 200)


def test_a_decoded_class_map_is_compared_with_its_original(tmp_path: Path) -> None:
    """The original has WorldCover's ids, what was decoded has the table's."""
    ids = np.full((1, 32, 32), 10, np.uint8)
    ids[:, :, 16:] = 80
    path = tmp_path / "worldcover.tif"
    with rasterio.open(path, "w", driver="GTiff", width=32, height=32, count=1, dtype="uint8") as target:
        target.write(ids)
    tmcodec.encode(path, tmp_path / "a.tmc", modality="LULC", class_map="worldcover")
    tmcodec.decode(tmp_path / "a.tmc", tmp_path / "a.tif")
    for one, two in ((tmp_path / "a.tif", path), (path, tmp_path / "a.tif"), (tmp_path / "a.tmc", path)):
        result = tmcodec.compare(one, two, modality="LULC", class_map="worldcover")
        assert result.metrics.accuracy > 0.9
