"""Stored values mean the same to any reader before and after: GDAL's scale and offset tags come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

import tmcodec
from tmcodec import errors
from tmcodec.modalities import MODALITIES

MakeScene = Callable[..., Path]
MakeTokenizer = Callable[[str], Path]


def tagged(path: Path, modality: str, dtype: str, scale: float, offset: float, physical: np.ndarray) -> Path:
    """Write physical values as stored = (physical - offset) / scale, with the tags that say so."""
    row = MODALITIES[modality]
    stored = np.round((physical - offset) / scale).astype(dtype)
    with rasterio.open(
        path, "w", driver="GTiff", width=32, height=32, count=len(row.bands), dtype=dtype
    ) as target:
        target.write(stored)
        target.descriptions = row.bands
        target.scales, target.offsets = (scale,) * len(row.bands), (offset,) * len(row.bands)
    return path


CASES = [
    ("DEM", "int16", 0.1, 0.0, 1200.0),
    ("DEM", "uint16", 0.5, -1000.0, 1200.0),
    ("S1GRD", "int16", 0.01, 0.0, -14.0),
    ("NDVI", "int16", 1e-4, 0.0, 0.4),
    ("S2L2A", "uint16", 1e-4, -0.1, 0.15),
    ("S2L2A", "int16", 1e-4, 0.0, 0.15),
]


@pytest.mark.parametrize(("modality", "dtype", "scale", "offset", "level"), CASES)
@pytest.mark.parametrize("cog", [False, True])
def test_tags_come_back(
    modality: str, dtype: str, scale: float, offset: float, level: float, cog: bool, tmp_path: Path
) -> None:
    bands = len(MODALITIES[modality].bands)
    physical = level * (1 + 0.1 * np.random.default_rng(0).random((bands, 32, 32)))
    source = tagged(tmp_path / "a.tif", modality, dtype, scale, offset, physical)
    how = {} if modality != "S2L2A" else {"s2_offset": "present" if offset else "absent"}
    tmcodec.encode(source, tmp_path / "a.tmc", modality=modality, **how)
    tmcodec.decode(tmp_path / "a.tmc", tmp_path / "b.tif", cog=cog)
    with rasterio.open(source) as before, rasterio.open(tmp_path / "b.tif") as after:
        assert (after.scales, after.offsets, after.dtypes) == (before.scales, before.offsets, before.dtypes)
        # What any reader makes of it is near to what was there: the level is kept to a tenth.
        meant = after.read() * after.scales[0] + after.offsets[0]
        assert abs(meant.mean() / physical.mean() - 1) < 0.1
        assert "TMCODEC_SCALE" not in after.tags()
    # A second generation needs no options, and the two compare.
    tmcodec.encode(tmp_path / "b.tif", tmp_path / "c.tmc")
    with tmcodec.open(tmp_path / "a.tmc") as one, tmcodec.open(tmp_path / "c.tmc") as two:
        first, second = (next(iter(file.layers.values())) for file in (one, two))
        assert (first.scale, first.offset) == pytest.approx((second.scale, second.offset))
        assert first.tags == second.tags
    array, profile = tmcodec.decode_array(tmp_path / "a.tmc")
    assert (profile["scale"], profile["offset"]) == (scale, offset)
    if modality not in ("S2L2A", "S1GRD"):  # whose metadata is in tags
        tmcodec.encode(array, tmp_path / "d.tmc", profile=profile, modality=modality)
        with tmcodec.open(tmp_path / "d.tmc") as file:
            assert (file[modality].scale, file[modality].offset) == (scale, offset)


@pytest.mark.parametrize(("unit", "length", "scale"), [("ft", 0.3048, 1.0), ("US Feet", 1200 / 3937, 2.0)])
def test_heights_come_back_in_their_unit(unit: str, length: float, scale: float, tmp_path: Path) -> None:
    metres = 1200 * (1 + 0.1 * np.random.default_rng(0).random((1, 32, 32)))
    source = tagged(tmp_path / "a.tif", "DEM", "int16", scale, 0.0, metres / length)
    with rasterio.open(source, "r+") as target:
        target.units = (unit,)
    tmcodec.encode(source, tmp_path / "a.tmc", modality="DEM")
    tmcodec.decode(tmp_path / "a.tmc", tmp_path / "b.tif")
    with rasterio.open(tmp_path / "b.tif") as after:
        assert (after.units, after.scales, after.offsets) == ((unit,), (scale,), (0.0,))
        assert abs((after.read() * scale * length).mean() / metres.mean() - 1) < 0.02
        assert not {"TMCODEC_SCALE", "TMCODEC_UNIT"} & set(after.tags())
    # So do those of a second generation, of a file and of an array.
    tmcodec.encode(tmp_path / "b.tif", tmp_path / "c.tmc")
    array, profile = tmcodec.decode_array(tmp_path / "a.tmc")
    tmcodec.encode(array, tmp_path / "d.tmc", modality="DEM", profile=profile)
    for name in "acd":
        with tmcodec.open(tmp_path / f"{name}.tmc") as file:
            assert file["DEM"].scale == pytest.approx(length * scale)
    assert tmcodec.compare(tmp_path / "b.tif", source, modality="DEM").metrics.rmse < 120


def test_without_tags_none_are_written(
    make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    weights = tiny_tokenizer("S2L2A")
    tmcodec.encode(make_scene(), tmp_path / "a.tmc", tokenizer=weights)
    tmcodec.decode(tmp_path / "a.tmc", tmp_path / "a.tif", tokenizer=weights)
    with rasterio.open(tmp_path / "a.tif") as after:
        assert (set(after.scales), set(after.offsets)) == ({1.0}, {0.0})


def test_a_broken_tag_means_none(
    make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    weights = tiny_tokenizer("S2L2A")
    tmcodec.encode(make_scene(), tmp_path / "a.tmc", tokenizer=weights)
    with tmcodec.open(tmp_path / "a.tmc") as file:
        meta, raw = file["S2L2A"].meta, file["S2L2A"].raw_chunk(0, 0, 0)
    for text in ("", "1", "x y", "0 1", "nan 0", "1 inf", "1 2 3"):
        broken = tmcodec.tokenfile.FileMeta((meta.replace(tags={"TMCODEC_SCALE": text}),))
        with tmcodec.tokenfile.TokenFileWriter(tmp_path / "b.tmc", broken, overwrite=True) as writer:
            writer.write_raw_chunk(0, 0, 0, 0, raw)
        _, profile = tmcodec.decode_array(tmp_path / "b.tmc", tokenizer=weights)
        assert (profile["scale"], profile["offset"]) == (1.0, 0.0)


def test_tags_of_ones_own_may_not_be_called_as_tmcodecs(make_scene: MakeScene, tmp_path: Path) -> None:
    with pytest.raises(errors.MetadataError, match="TMCODEC_ are tmcodec's own"):
        tmcodec.encode(make_scene(), tmp_path / "a.tmc", tags={"tmcodec_modality": "NDVI"})
    assert not (tmp_path / "a.tmc").exists()
