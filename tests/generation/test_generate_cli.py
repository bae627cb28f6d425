"""``tmcodec generate`` as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rasterio
from click.testing import CliRunner, Result
from generation_helpers import tiny_generator, tokenizer_refs

import tmcodec
from tmcodec.cli import cli
from tmcodec.cli.generate import DEFAULT_MODEL
from tmcodec.codec import models
from tmcodec.generation.models import DEFAULT_GENERATOR
from tmcodec.generation.weights import save_generator
from tmcodec.tokenfile import TokenFileWriter

Run = Callable[..., Result]


def run(*args: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def src(make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path]) -> Path:
    scene = make_scene(width=70, height=60)
    path = scene.with_suffix(".tmc")
    tmcodec.encode(scene, path, modality="S2L2A", tokenizer=tiny_tokenizer("S2L2A"), balance=False)
    return path


def test_the_default_model_is_the_embedded_one() -> None:
    assert DEFAULT_MODEL == DEFAULT_GENERATOR


def test_generate_reports(src: Path, model: Path) -> None:
    out = src.with_name("o.tmc")
    text = run("generate", src, "--to", "dem", "--to", "LULC", "-o", out, "--model", model).output
    assert "DEM, LULC from S2L2A by tiny-any2any, 40 tokens" in text
    with tmcodec.open(out) as file:
        assert list(file) == ["DEM", "LULC"]
    again = src.with_name("p.tmc")
    targets = ("--to", "DEM", "--to", "LULC")
    report = json.loads(run("generate", src, *targets, "-o", again, "--model", model, "--json").output)
    assert (report["targets"], report["tokens"], report["width"]) == (["DEM", "LULC"], 40, 70)
    assert out.read_bytes() == again.read_bytes()


def test_every_option_arrives(src: Path, model: Path) -> None:
    out = src.with_name("o.tmc")
    run(
        "generate", src, "--to", "LULC", "-o", out, "--model", model, "--order", "independent", "--schedule",
        "maskgit", "--token-schedule", "linear", "--decoding-steps", 3, "--temperature", 0.5, "--top-p", 0.9,
        "--top-k", 100, "--guidance", "S2L2A=2", "--seed", 11, "--steps", 2, "--overlap", 1, "-q",
    )  # fmt: skip
    with tmcodec.open(out) as file:
        meta = file["LULC"].meta
    tags = {name.removeprefix("TMCODEC_"): value for name, value in meta.tags.items()}
    assert (meta.seed, meta.steps) == (11, 2)
    assert (tags["ORDER"], tags["SCHEDULE"], tags["DECODING_STEPS"]) == ("independent", "maskgit linear", "3")
    assert tags["SAMPLING"] == "temperature 0.5 top-k 100 top-p 0.9 tempered"
    assert (tags["GUIDANCE"], tags["OVERLAP"]) == ("{'S2L2A': 2.0}", "1")
    assert "COORDS" not in tags


def test_trust_arrives_and_is_named_where_there_is_a_chain(src: Path, model: Path) -> None:
    out = src.with_name("o.tmc")

    def trust(*arguments: str) -> str | None:
        fixed = ("generate", src, "-o", out, "--model", model, "--decoding-steps", 1, "-q", "--overwrite")
        run(*fixed, *arguments)
        with tmcodec.open(out) as file:
            found = [file[name].meta.tags.get("TMCODEC_TRUST") for name in file]
        assert found[:-1] in ([], [None])  # nothing was made before the first
        return found[-1]

    chain = ("--to", "LULC", "--to", "DEM")
    assert (trust(*chain, "--trust", "0.5"), trust(*chain), trust("--to", "LULC")) == ("0.5", "1", None)
    assert trust(*chain, "--order", "independent") is None
    assert tmcodec.load_generator(device="cpu").trust == 0.25


def test_coordinates_without_their_words(
    src: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever was fetched before, the result is the same, or there is none."""
    monkeypatch.setenv("TMCODEC_HOME", str(tmp_path))
    for coords in ("auto", "8.5,47"):
        said = run("generate", src, "--to", "LULC", "-o", src.with_name("o.tmc"), "--model", model,
                   "--coords", coords, status=1).output  # fmt: skip
        assert "coords are not on this computer; run `tmcodec models pull terramind-v1-coords`" in said
    assert not src.with_name("o.tmc").exists()


def test_geotiffs_with_spread(src: Path, model: Path) -> None:
    folder = src.with_name("maps")
    run("generate", src, "--to", "DEM", "-o", folder, "--format", "tif", "--samples", 2, "--model", model,
        "--decoding-steps", 1)  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["DEM.tif", "DEM_mean.tif", "DEM_std.tif"]
    with rasterio.open(src.with_suffix(".tif")) as one, rasterio.open(folder / "DEM.tif") as two:
        assert (one.crs, one.transform, one.shape) == (two.crs, two.transform, two.shape)


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--to", "S3"], 2, "'S3' is not one of"),
        (["--to", "S1GRD"], 1, "does not say which tokenizer"),
        (["--to", "NDVI"], 1, "does not make NDVI"),
        (["--to", "DEM", "--caption", "a lake"], 1, "vocabulary of caption"),
        (["--to", "DEM", "--coords", "8.5,47"], 1, "coords"),
        (["--to", "DEM", "--coords", "north"], 2, "neither auto nor LON,LAT"),
        (["--to", "DEM", "--guidance", "strong"], 2, "neither a number"),
        (["--to", "DEM", "--guidance", "LULC=2"], 1, "guidance names 'LULC'"),
        (["--to", "DEM", "--decoding-steps", "many"], 2, "neither a whole number"),
        (["--to", "DEM", "--temperature", "-1"], 1, "temperature"),
        (["--to", "DEM", "--model", "no-such"], 1, "no generator 'no-such'"),
    ],
)
def test_bad_options_end_in_one_line_and_write_nothing(
    src: Path, model: Path, args: list[str], status: int, message: str
) -> None:
    before = sorted(src.parent.iterdir())
    models = [] if "--model" in args else ["--model", model]
    result = run("generate", src, "-o", src.with_name("o.tmc"), *models, *args, status=status)
    assert message in result.stderr
    if status == 1:
        assert result.stderr.count("\n") == 1
    assert sorted(src.parent.iterdir()) == before


def test_an_output_is_needed_for_images(src: Path) -> None:
    assert "'-o' / '--output'" in run("generate", src, "--to", "DEM", status=2).stderr


def test_a_tokenizer_is_loaded_with_the_generators_tile(
    src: Path, tiny_tokenizer: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 14 x 14 tokens: 224 pixels, which TerraMind's tokens depend on."""
    model, tiles, load = src.with_name("fourteen.safetensors"), [], models.load_tokenizer
    refs = tokenizer_refs({m: tiny_tokenizer(m) for m in ("S2L2A", "LULC")})
    save_generator(model, tiny_generator(grid=14).net, "fourteen", refs)

    def watched(*args: Any, **how: Any) -> Any:
        tiles.append(how.get("tile"))
        return load(*args, **how)

    monkeypatch.setattr(models, "load_tokenizer", watched)
    run("generate", src, "--to", "LULC", "-o", src.with_name("o.tmc"), "--model", model, "--tokenizer",
        tiny_tokenizer("LULC"), "--decoding-steps", 1)  # fmt: skip
    assert tiles and set(tiles) == {224}


@pytest.mark.parametrize("tile", [224, 256])
def test_a_tokenizer_is_loaded_with_the_tile_that_the_generator_names(
    tile: int, src: Path, tiny_tokenizer: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its grid is none of the two: of 4 x 4 tokens."""
    model, tiles, load = src.with_name("named.safetensors"), dict[str, int](), models.load_tokenizer
    refs = tokenizer_refs({m: tiny_tokenizer(m) for m in ("S2L2A", "DEM", "LULC")})
    save_generator(model, tiny_generator().net, "named", {m: replace(r, tile=tile) for m, r in refs.items()})

    def watched(name: str, *args: Any, **how: Any) -> Any:
        tiles[Path(name).stem] = how["tile"]  # the last load counts
        return load(name, *args, **how)

    monkeypatch.setattr(models, "load_tokenizer", watched)
    tmc = src.with_name("tile.tmc")
    rewrite_tile(src, tmc, tile)
    run("generate", tmc, "--to", "DEM", "--to", "LULC", "-o", src.with_name("o.tmc"), "--model", model,
        "--tokenizer", tiny_tokenizer("LULC"), "--decoding-steps", 1)  # fmt: skip
    assert tiles == {"tiny-dem": tile, "tiny-lulc": tile}


def rewrite_tile(src: Path, dst: Path, tile: int) -> None:
    """Copy a file of one chunk, with another tile in its header."""
    with tmcodec.open(src) as file:
        (layer,) = file.layers.values()
        meta = replace(file.meta, layers=(replace(layer.meta, tile=tile),))
        with TokenFileWriter(dst, meta) as writer:
            writer.write_chunk(0, 0, 0, 0, layer.tokens(), layer.valid())


def test_no_decoding_steps_is_not_the_usual_number(src: Path, model: Path) -> None:
    out = src.with_name("out.tmc")
    found = run("generate", src, "--to", "LULC", "-o", out, "--model", model, "--decoding-steps", 0, status=1)
    assert "0" in found.stderr and not out.exists()
