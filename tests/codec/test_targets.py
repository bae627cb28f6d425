"""Targets that cannot be written are refused before any work."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tmcodec
from tmcodec import errors


def test_a_missing_folder_is_named_at_once(make_scene: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(errors.TargetFolderError, match="nowhere does not exist; create it"):
        tmcodec.encode(make_scene(), tmp_path / "nowhere" / "a.tmc", tokenizer="/not/loaded.safetensors")


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_cannot_be_written_is_refused_before_the_work(
    make_scene: Callable[..., Path], tmp_path: Path, overwrite: bool
) -> None:
    scene, weights = make_scene(), "/not/loaded.safetensors"
    (tmp_path / "folder.tmc").mkdir()
    with pytest.raises(errors.TargetNameError, match=r"folder\.tmc is a folder; name a file in it"):
        tmcodec.encode(scene, tmp_path / "folder.tmc", tokenizer=weights, overwrite=overwrite)
    with pytest.raises(errors.TargetNameError, match="None is no path; name a file"):
        tmcodec.decode(tmp_path / "not_read.tmc", None, overwrite=overwrite)  # type: ignore[arg-type]
    with pytest.raises(errors.TargetNameError, match=r"^- names no file, and nothing is written to standard"):
        tmcodec.encode(scene, "-", tokenizer=weights, overwrite=overwrite)
    with pytest.raises(errors.TargetNameError, match=r"^- names no file"):
        tmcodec.decode(tmp_path / "not_read.tmc", "-", overwrite=overwrite)


def test_a_file_may_be_called_minus(
    make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    report = tmcodec.encode(make_scene(), "./-", tokenizer=str(tiny_tokenizer("S2L2A")))
    assert (tmp_path / "-").stat().st_size == report.file_bytes


@pytest.mark.parametrize("target", [None, 7, io.StringIO()])
def test_a_target_is_a_path_or_a_binary_file(
    make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path], target: Any
) -> None:
    def never(done: int, total: int) -> None:
        raise AssertionError("encoded first")

    with pytest.raises(errors.TargetNameError, match="is neither a path nor a binary file object"):
        tmcodec.encode(make_scene(), target, tokenizer=tiny_tokenizer("S2L2A"), progress=never)


def test_salvage_reads_a_file_that_was_cut_short(
    make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    path, out = tmp_path / "a.tmc", tmp_path / "a.tif"
    tmcodec.encode(make_scene(nodata=0), path, tokenizer=tiny_tokenizer("S2L2A"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.TruncatedFileError):
        tmcodec.decode(path, out, tokenizer=tiny_tokenizer("S2L2A"))
    assert tmcodec.decode(path, out, tokenizer=tiny_tokenizer("S2L2A"), salvage=True).lost_chunks == 1


def test_the_source_is_never_the_target(make_scene: Callable[..., Path], tmp_path: Path) -> None:
    scene = make_scene(name="a.TMC")
    before = scene.read_bytes()
    (tmp_path / "link.tmc").symlink_to(scene)
    for target in (scene, tmp_path / "link.tmc", tmp_path / "." / "a.TMC"):
        with pytest.raises(errors.TargetNameError, match="is the source itself"):
            tmcodec.encode(scene, target, overwrite=True)
    assert scene.read_bytes() == before


def test_a_stack_replaces_none_of_its_sources(
    make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    paths = [tmp_path / "s2.tmc", tmp_path / "dem.tmc"]
    for path, modality in zip(paths, ("S2L2A", "DEM"), strict=True):
        tmcodec.encode(make_scene(modality), path, tokenizer=tiny_tokenizer(modality), effort=0)
    before = [path.read_bytes() for path in paths]
    for target in paths:
        with pytest.raises(errors.TargetNameError, match="is the source itself"):
            tmcodec.stack(paths, target, overwrite=True)
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("name", ["a.tif", "a.TIFF", "a.png", "a.gpkg"])
def test_a_token_file_is_not_called_like_a_raster(
    make_scene: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    with pytest.raises(errors.TargetNameError, match=f"{name}: what is written is a token file; name it"):
        tmcodec.encode(make_scene(), tmp_path / name)
    with pytest.raises(errors.TargetNameError, match=f"{name}: what is written is a token file; name it"):
        tmcodec.stack(["not", "read"], tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "b.tmc", "a.nc", "a.gpkg", "a.IMG", "a.tif.gz", "a.zarr"])
def test_a_geotiff_is_not_called_like_anything_else(
    make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    weights = tiny_tokenizer("S2L2A")
    tmcodec.encode(make_scene(), tmp_path / "a.tmc", tokenizer=weights)
    with pytest.raises(errors.TargetNameError, match=f"{name}: what is written is a GeoTIFF; name it .tif"):
        tmcodec.decode(tmp_path / "a.tmc", tmp_path / name, tokenizer=weights)
    assert not (tmp_path / name).exists()


def test_swapped_arguments_are_not_told_to_overwrite(
    make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    scene, tokens, other = make_scene(), tmp_path / "a.tmc", tmp_path / "other.tif"
    tmcodec.encode(scene, tokens, tokenizer=tiny_tokenizer("S2L2A"), effort=0)
    other.write_bytes(b"kept")
    with pytest.raises(errors.TargetNameError, match="what is written is a token file; name it"):
        tmcodec.encode(tokens, scene)
    with pytest.raises(errors.TargetNameError, match=r"what is written is a GeoTIFF; name it \.tif"):
        tmcodec.decode(scene, tokens)
    with pytest.raises(errors.TargetNameError, match=r"what is written is a picture; name it \.png"):
        tmcodec.compare(tokens, scene, plot=other)


@pytest.mark.parametrize("name", ["a", "a.b/c", "a.TIFF", "a.gtiff"])
def test_names_of_geotiffs(
    make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    weights, out = tiny_tokenizer("S2L2A"), tmp_path / "out" / name
    out.parent.mkdir(parents=True)
    tmcodec.encode(make_scene(), tmp_path / "a.tmc", tokenizer=weights)
    tmcodec.decode(tmp_path / "a.tmc", out, tokenizer=weights)
    assert out.read_bytes()[:4] == b"II*\0"
