"""Each subcommand as a user calls it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import Result
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import Affine

import tmcodec
from tmcodec.cli import demo
from tmcodec.cli.weights_header import read_header
from tmcodec.tokenfile import FileMeta, LayerMeta, TokenFileWriter

Run = Callable[..., Result]
MakeScene = Callable[..., Path]
MakeTokenizer = Callable[[str], Path]


@pytest.fixture
def weights(tiny_tokenizer: MakeTokenizer) -> Path:
    return tiny_tokenizer("S2L2A")


# --------------------------------------------------------------------------- encode and decode


def test_encode_reports(run: Run, make_scene: MakeScene, weights: Path) -> None:
    scene = make_scene()
    text = run("encode", scene, scene.with_suffix(".tmc"), "--tokenizer", weights).output
    assert "36.9 kB raw to" in text
    assert "6 tokens" in text
    assert "offset of 1000 absent" in text
    answer = run("encode", scene, scene.with_name("b.tmc"), "--tokenizer", weights, "--json").output
    report = json.loads(answer)
    assert (report["modality"], report["tokens"], report["raw_bytes"]) == ("S2L2A", 6, 48 * 32 * 12 * 2)
    assert report["file_bytes"] == scene.with_suffix(".tmc").stat().st_size
    assert run("encode", scene, scene.with_name("c.tmc"), "--tokenizer", weights, "-q").output == ""


def test_encode_refuses_and_overwrites(run: Run, token_file: Path, weights: Path) -> None:
    scene, before = token_file.with_suffix(".tif"), token_file.read_bytes()
    args = ("encode", scene, token_file, "--tokenizer", weights)
    assert "pass --overwrite" in run(*args, status=1).stderr
    run(*args, "--overwrite", "--tag", "site=here", "--tag", "empty=")
    assert token_file.read_bytes() != before
    layer = json.loads(run("info", token_file, "--json").output)["layers"][0]
    assert layer["tags"] == {"empty": "", "site": "here"}


def test_encode_asks_for_what_it_cannot_know(run: Run, make_scene: MakeScene, weights: Path) -> None:
    silent = make_scene(described=False, offset=None)
    args = ("encode", silent, silent.with_suffix(".tmc"), "--tokenizer", weights)
    assert "--modality S2L2A" in run(*args, status=1).stderr
    assert "--s2-offset present" in run(*args, "-m", "s2l2a", status=1).stderr
    run(*args, "-m", "s2l2a", "--s2-offset", "present")
    assert not silent.with_suffix(".tmc.part").exists()


def test_encode_a_window(run: Run, make_scene: MakeScene, weights: Path) -> None:
    scene = make_scene()
    args = ("encode", scene, scene.with_suffix(".tmc"), "--tokenizer", weights)
    assert "not inside the raster" in run(*args, "--window", 0, 0, 99, 99, status=1).stderr
    run(*args, "--window", 16, 0, 32, 32)
    layer = json.loads(run("info", scene.with_suffix(".tmc"), "--json").output)["layers"][0]
    assert (layer["width"], layer["height"], layer["bounds"][0]) == (32, 32, 500160.0)


def test_decode_puts_the_raster_back(run: Run, token_file: Path, weights: Path) -> None:
    out = token_file.with_name("out.tif")
    text = run("decode", token_file, out, "--tokenizer", weights).output
    assert "48 x 32 pixels of S2L2A with tiny-s2l2a, 1 step" in text
    with rasterio.open(token_file.with_suffix(".tif")) as one, rasterio.open(out) as two:
        assert (one.crs, one.transform, one.shape, one.dtypes, one.descriptions) == (
            two.crs, two.transform, two.shape, two.dtypes, two.descriptions)
    assert "exists" in run("decode", token_file, out, "--tokenizer", weights, status=1).stderr


@pytest.mark.parametrize("kind", ["gcps", "rpcs", "arrays", "none"])
def test_encode_warns_of_places_that_are_not_kept(
    kind: str, run: Run, make_scene: Callable[..., Path], weights: Path
) -> None:
    scene = make_scene(crs=None)
    with rasterio.open(scene, "r+") as dataset:
        if kind == "gcps":
            corners = [GroundControlPoint(r, c, 9 + c / 1e3, 47 - r / 1e3) for r in (0, 32) for c in (0, 48)]
            dataset.gcps = (corners, "EPSG:4326")
        elif kind == "rpcs":
            terms = [0.0] * 19 + [1.0]
            dataset.rpcs = RPC(500, 100, 47, 1, terms, terms, 16, 16, 9, 1, terms, terms, 24, 24, 1.0, 1.0)
        elif kind == "arrays":
            dataset.update_tags(ns="GEOLOCATION", X_DATASET="lon.tif", Y_DATASET="lat.tif")
    args = ("encode", scene, scene.with_suffix(".tmc"), "--tokenizer", weights)
    told = run(*args).stderr
    assert told.count("\n") == (kind != "none")
    if kind != "none":
        name = {"gcps": "ground control points", "rpcs": "RPCs", "arrays": "geolocation arrays"}[kind]
        assert told.startswith(f"tmcodec: warning: scene.tif: its {name} are not kept; warp it")
        found = run(*args, "--overwrite", "--json")
        assert len(json.loads(found.stdout)["warnings"]) == 1
    with rasterio.open(scene, "r+") as dataset:
        dataset.transform, dataset.crs = Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32633"
    assert not run(*args, "--overwrite").stderr


def test_decode_a_part(run: Run, token_file: Path, weights: Path) -> None:
    out = token_file.with_name("out.tif")
    args = ("decode", token_file, out, "--tokenizer", weights, "--overwrite", "--json")
    corners = ("--bounds", 500100, 4999800, 500300, 5000000)
    report = json.loads(run(*args, *corners, "--steps", 2, "--seed", 5).output)
    assert (report["width"], report["height"], report["steps"], report["seed"]) == (20, 20, 2, 5)
    report = json.loads(run(*args, "--window", 3, 4, 10, 11, "--cog").output)
    assert (report["width"], report["height"], report["lost_chunks"]) == (10, 11, 0)
    assert "decode a window, or raise --max-pixels" in run(*args, "--max-pixels", 100, status=1).stderr


def test_decode_without_the_weights(run: Run, token_file: Path, tmp_path: Path) -> None:
    line = run("decode", token_file, tmp_path / "out.tif", status=1).stderr
    assert "tiny-s2l2a" in line
    assert not (tmp_path / "out.tif").exists()


# --------------------------------------------------------------------------- damage


@pytest.fixture
def damaged(token_file: Path) -> Path:
    """Return a token file whose payload has one flipped bit."""
    data = bytearray(token_file.read_bytes())
    data[-1] ^= 1
    broken = token_file.with_name("broken.tmc")
    broken.write_bytes(data)
    return broken


def test_verify(run: Run, token_file: Path, damaged: Path) -> None:
    assert run("verify", token_file).output == f"{token_file}: intact, 1 chunk\n"
    assert json.loads(run("verify", token_file, "--json").output) == {"ok": True, "problems": [], "chunks": 1}
    result = run("verify", damaged, status=1)
    assert "chunk (0, 0) is damaged" in result.stdout
    assert "1 of 1 chunk damaged" in result.stderr
    report = json.loads(run("verify", damaged, "--json", status=1).output)
    assert not report["ok"]
    assert report["problems"][0]["error"] == "ChunkChecksumError"


def test_verify_of_a_cut_file_names_the_lost_chunk(run: Run, token_file: Path) -> None:
    token_file.write_bytes(token_file.read_bytes()[:-1])
    lines = run("verify", token_file, status=1).stdout.splitlines()
    assert lines == [
        f"{token_file}: the file has {token_file.stat().st_size} bytes, its header says "
        f"{token_file.stat().st_size + 1}",
        f"{token_file}: layer 'S2L2A', time 0, chunk (0, 0): ends 1 bytes too early",
    ]


def test_verify_of_a_bad_header(run: Run, token_file: Path, tmp_path: Path) -> None:
    data = bytearray(token_file.read_bytes())
    data[30] ^= 1
    bad = tmp_path / "bad.tmc"
    bad.write_bytes(data)
    assert "CRC32C" in run("verify", bad, status=1).stderr
    report = json.loads(run("verify", bad, "--json", status=1).stdout)
    assert report["problems"][0]["error"] == "HeaderChecksumError"
    assert report["chunks"] == 0


def test_salvage(run: Run, damaged: Path, weights: Path) -> None:
    out = damaged.with_name("out.tif")
    args = ("decode", damaged, out, "--tokenizer", weights)
    assert "damaged" in run(*args, status=1).stderr
    assert not out.exists()
    assert "1 chunk damaged" in run(*args, "--salvage").stderr
    with rasterio.open(out) as dataset:
        assert not dataset.dataset_mask().any()


# --------------------------------------------------------------------------- info, models, stack


def test_info(run: Run, token_file: Path) -> None:
    text = run("info", token_file).output
    for expected in ("48 x 32 pixels, 12 bands of uint16", "B01 B02 B03", "EPSG:32633", "10 x 10",
                     "500000 4999680 500480 5000000", "tiny-s2l2a, weights ", "2 rows x 3 columns",
                     "offset of 1000 absent", "bits per token"):
        assert expected in text, expected
    report = json.loads(run("info", token_file, "--json").output)
    (layer,) = report["layers"]
    assert report["file_bytes"] == token_file.stat().st_size == layer["bytes"]
    assert report["ratio"] == pytest.approx(48 * 32 * 12 * 2 / token_file.stat().st_size)
    assert (layer["tokens"], layer["chunks"], layer["empty_chunks"]) == (6, 1, 0)
    assert layer["bounds"] == [500000, 4999680, 500480, 5000000]
    assert len(layer["weights_sha256"]) == 64


def test_info_of_what_is_not_there(run: Run, make_scene: MakeScene, tiny_tokenizer: MakeTokenizer) -> None:
    scene = make_scene("DEM", crs=None, nodata=-32768, name="dem.tif")
    run("encode", scene, scene.with_suffix(".tmc"), "--tokenizer", tiny_tokenizer("DEM"))
    text = run("info", scene.with_suffix(".tmc")).output
    assert "nodata -32768" in text
    assert "none" in text
    layer = json.loads(run("info", scene.with_suffix(".tmc"), "--json").output)["layers"][0]
    assert (layer["crs"], layer["bounds"], layer["times"]) == (None, None, [None])


def test_info_system(run: Run) -> None:
    facts = json.loads(run("info", "--system", "--json").output)
    assert {"python", "torch", "GDAL", "CUDA", "processors"} <= set(facts)
    assert "torch" in run("info", "--system").output


def test_models(run: Run, weights: Path) -> None:
    names = [model["name"] for model in json.loads(run("models", "list", "--json").output)]
    assert names[0] == "mini-s2l2a-v2"
    # Tokenizers in the package and TerraMind's own; the generators of both, and two vocabularies.
    assert len(names) == 10 + 10 + 1 + 4 + 2
    assert all(name in run("models", "list").output for name in names)
    shown = json.loads(run("models", "show", weights, "--json").output)
    assert (shown["name"], shown["modality"], shown["notes"]["training"]) == ("tiny-s2l2a", "S2L2A", "none")
    assert "tiny-s2l2a" in run("models", "show", weights).output
    # Notes that are JSON: figures by scene, and whose tokens a generator speaks.
    assert "DEM/mt_hood_30m 31.29, DEM/oetztal_srtm 21.29" in run("models", "show", "mini-dem-v2").output
    assert "DEM mini-dem-v2 (f3d610b0320b), LULC" in run("models", "show", "mini-any2any-v1").output
    assert "no tokenizer" in run("models", "show", "mini-s3-v1", status=1).stderr


def test_the_hash_without_torch_is_the_hash_with_torch(weights: Path) -> None:
    from tmcodec.codec.weights import load_weights

    net, _, sha256, _ = load_weights(weights)
    header = read_header(weights)
    assert header.sha256 == sha256.hex()
    assert header.parameters == sum(tensor.numel() for tensor in net.state_dict().values())


@pytest.mark.parametrize("cut", [0, 5, 40, 2000, -1])
def test_cut_weights_are_one_line(run: Run, weights: Path, tmp_path: Path, cut: int) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(weights.read_bytes()[:cut])
    assert "not the weights file" in run("models", "show", short, status=1).stderr


def test_stack(run: Run, token_file: Path, make_scene: MakeScene, tiny_tokenizer: MakeTokenizer) -> None:
    heights = make_scene("DEM", name="dem.tif")
    run("encode", heights, heights.with_suffix(".tmc"), "--tokenizer", tiny_tokenizer("DEM"))
    both = token_file.with_name("both.tmc")
    args = ("stack", token_file, heights.with_suffix(".tmc"), both)
    assert "2 layers (S2L2A, DEM)" in run(*args).output
    assert "pass --overwrite" in run(*args, status=1).stderr
    report = json.loads(run(*args, "--overwrite", "--json").output)
    assert report["layers"] == [{"name": "S2L2A", "times": 1}, {"name": "DEM", "times": 1}]
    assert report["file_bytes"] == both.stat().st_size
    assert "--layer" in run("decode", both, both.with_suffix(".tif"), status=1).stderr


# --------------------------------------------------------------------------- compare and demo


def test_compare(run: Run, token_file: Path, weights: Path) -> None:
    scene, picture = token_file.with_suffix(".tif"), token_file.with_suffix(".png")
    args = ("compare", token_file, scene, "--tokenizer", weights)
    text = run(*args, "--plot", picture).output
    assert picture.is_file()
    for expected in ("PSNR dB", "RMSE DN", "B8A", "SAM", "NDVI error", "same CRS and", "36.9 kB raw"):
        assert expected in text, expected
    report = json.loads(run(*args, "--json").output)
    assert report["metrics"]["peak"] == 10000
    assert len(report["metrics"]["bands"]) == 12
    assert "pass --overwrite" in run(*args, "--plot", picture, status=1).stderr


def test_compare_classes_and_identical_pictures(run: Run, make_scene: MakeScene) -> None:
    classes = make_scene("LULC", name="lulc.tif")
    text = run("compare", classes, classes, "-m", "LULC").output
    assert ["accuracy", "1.0000"] in [line.split() for line in text.splitlines()]
    scene = make_scene()
    assert "identical" in run("compare", scene, scene).output


def test_compare_of_different_sizes(run: Run, make_scene: MakeScene) -> None:
    line = run("compare", make_scene(), make_scene(name="large.tif", width=64), status=1).stderr
    assert "48 x 32 pixels" in line
    assert "64 x 32" in line
    assert line.count("\n") == 1


def test_demo_needs_its_scene(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SCENES", {"S2L2A": tmp_path / "no.tif"})
    assert "reinstall tmcodec" in run("demo", tmp_path / "out", status=1).stderr


def test_demo(
    make_scene: MakeScene, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = make_scene()
    scene.with_suffix(".txt").write_text("who took it")
    folder = tmp_path / "deep" / "demo"
    for _ in range(2):  # the second run replaces what the first one wrote
        result = demo.run_demo(folder, scene=scene, modality="S2L2A", tokenizer=str(weights))
    names = {"scene.tif", "scene.txt", "scene.tmc", "scene_decoded.tif", "scene.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert result.encoded.file_bytes == (folder / "scene.tmc").stat().st_size
    assert result.comparison.reconstruction_bytes == result.encoded.file_bytes
    assert result.comparison.crs_equal
    assert result.comparison.transform_equal
    json.dumps(result.to_dict(), allow_nan=False)
    demo.print_demo(result)
    text = capsys.readouterr().out
    for expected in ("at the same place", "PSNR", "spectral angle", "NDVI error", str(folder / "scene.png")):
        assert expected in text, expected


def test_a_real_process_from_raster_to_raster(
    spawn: Callable[..., subprocess.CompletedProcess[str]], make_scene: MakeScene, weights: Path
) -> None:
    scene = make_scene()
    tokens, out = scene.with_suffix(".tmc"), scene.with_name("out.tif")
    for args in (["encode", scene, tokens], ["decode", tokens, out]):
        done = spawn("-m", "tmcodec", *args, "--tokenizer", weights)
        assert (done.returncode, done.stderr) == (0, "")
    with rasterio.open(out) as dataset:
        assert np.isfinite(dataset.read()).all()
        assert dataset.count == 12


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a token file that takes a while to decode."""
    tokens = tmp_path_factory.mktemp("plain") / "a.tmc"
    tmcodec.encode(np.zeros((1, 4096, 4096), np.int16), tokens, modality="DEM", effort=0)
    return tokens


@pytest.fixture
def decoding(plain: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts decoding to ``out/a.tif`` and waits for the unfinished file."""
    folder = tmp_path / "out"
    folder.mkdir()
    with ExitStack() as stack:
        if hasattr(signal, "SIGHUP"):  # programs inherit that it is ignored, as in tests under nohup
            stack.callback(signal.signal, signal.SIGHUP, signal.getsignal(signal.SIGHUP))
            signal.signal(signal.SIGHUP, signal.SIG_DFL)

        def start(*launcher: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "tmcodec", "decode", str(plain), str(folder / "a.tif")]
            pipe = subprocess.PIPE
            process = stack.enter_context(subprocess.Popen([*launcher, *command], stdout=pipe, stderr=pipe))
            while not list(folder.iterdir()):
                assert process.poll() is None
                time.sleep(0.005)
            return process

        yield start


@pytest.mark.parametrize("names", [["SIGTERM"], ["SIGHUP"], ["SIGHUP", "SIGHUP", "SIGTERM"]])
def test_being_stopped_leaves_nothing_behind(
    decoding: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, names: list[str]
) -> None:
    """SIGTERM is what batch systems and containers stop a program with, SIGHUP a closed terminal."""
    if not all(hasattr(signal, name) for name in names):
        pytest.skip("Windows has no SIGHUP")
    process = decoding()
    numbers = [getattr(signal, name) for name in names]
    for number in numbers:
        process.send_signal(number)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode in {128 + number for number in numbers}, complaints
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_nohup_goes_on(decoding: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    process = decoding("sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.tif"]


def test_info_says_the_tile_where_tokens_depend_on_it(run: Run, tmp_path: Path) -> None:
    bands = tmcodec.modalities.MODALITIES["DEM"].bands
    told = ", made in tiles of 224\n"
    for name, tile, says in (("terramind-v1-dem", 224, told), ("mini-dem-v2", 256, "codes\n")):
        meta = LayerMeta(name="DEM", modality="DEM", tokenizer=name, weights_sha256=bytes(32),
                         levels=(8, 8, 8, 6, 5), width=32, height=16, dtype="int16", bands=bands, tile=tile)
        with TokenFileWriter(tmp_path / f"{tile}.tmc", FileMeta((meta,))) as writer:
            writer.write_chunk(0, 0, 0, 0, np.zeros((1, 2), np.int32), None)
        assert says in run("info", tmp_path / f"{tile}.tmc").output


@pytest.mark.parametrize(("dtype", "says"), [("int16", "nodata -9999\n"), ("float32", "nodata -9999.0\n")])
def test_info_has_no_fractions_of_integers(run: Run, tmp_path: Path, dtype: str, says: str) -> None:
    meta = LayerMeta(name="DEM", modality="DEM", tokenizer="mini-dem-v2", weights_sha256=bytes(32),
                     levels=(8, 8, 8, 6, 5), width=16, height=16, dtype=dtype, bands=("DEM",), nodata=-9999.0)
    with TokenFileWriter(tmp_path / "a.tmc", FileMeta((meta,))) as writer:
        writer.write_chunk(0, 0, 0, 0, np.zeros((1, 1), np.int32), None)
    assert says in run("info", tmp_path / "a.tmc").output


def test_info_of_infinite_nodata_is_json(run: Run, tmp_path: Path) -> None:
    array = np.full((1, 16, 16), 0.5, np.float32)
    for nodata, expected in ((-np.inf, "-inf"), (np.nan, "nan"), (2.0, 2.0)):
        path = tmp_path / "a.tmc"
        tmcodec.encode(array, path, modality="NDVI", profile={"nodata": nodata}, overwrite=True)
        assert json.loads(run("info", path, "--json").output)["layers"][0]["nodata"] == expected


def test_info_of_places_that_overflow_is_json_and_short(run: Run, tmp_path: Path) -> None:
    array = np.full((1, 32, 32), 0.5, np.float32)
    for transform, size, corner in (
        ((1e308, 0, 0, 0, -1e308, 0), [1e308, 1e308], "too large for a number"),
        ((1.5e308, 0, 0, 1.5e308, 1, 0), None, "too large for a number"),
        ((1e20, 0, -1e20, 0, -1e20, 0), [1e20, 1e20], "-1e+20 -3.2e+21 3.1e+21 0"),
    ):
        path = tmp_path / "a.tmc"
        profile = {"transform": transform}
        tmcodec.encode(array, path, modality="NDVI", profile=profile, overwrite=True, exact=True)
        layer = json.loads(run("info", path, "--json").output)["layers"][0]
        assert layer["transform"] == list(transform)
        assert layer["pixel_size"] == size
        assert (layer["bounds"] is None) == corner.startswith("too")
        text = run("info", path).output
        assert corner in text
        assert max(map(len, text.splitlines()[1:])) < 120


EVIL = "a\x1b[31m\x07\nfake: intact\r\x9b2J\u202eb\u2028c"
SHOWN = r"a\x1b[31m\x07\nfake: intact\r\x9b2J\u202eb\u2028c"


def assert_escaped(text: str, times: int) -> None:
    """Check that a text of a file is shown so often, and that nothing but line ends reaches the terminal."""
    assert text.count(SHOWN) == times
    assert all(character in "\n\N{NO-BREAK SPACE}" or character.isprintable() for character in text)


def test_texts_of_files_cannot_act_on_the_terminal(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.tmc"
    meta = LayerMeta(
        EVIL, EVIL, EVIL, bytes(32), (8, 8), 32, 32, "uint8", (EVIL, "Größe \N{NO-BREAK SPACE}m"), units=EVIL,
        sampler=EVIL, description=EVIL, tags={EVIL: EVIL}, crs=f'PROJCS["{EVIL}"]',
    )  # fmt: skip
    with TokenFileWriter(path, FileMeta((meta,), {EVIL: EVIL})) as writer:
        writer.write_chunk(0, 0, 0, 0, np.ones((2, 2), np.int32))
    text = run("info", path).output
    # The file's tag, two texts; name, bands, units, CRS, tokenizer, sampler, description; the layer's tag.
    assert_escaped(text, 2 + 7 + 2)
    assert "Größe \N{NO-BREAK SPACE}m" in text
    layer = json.loads(run("info", path, "--json").output)["layers"][0]
    assert (layer["name"], layer["description"], layer["tags"]) == (EVIL, EVIL, {EVIL: EVIL})
    assert_escaped(run("stack", path, tmp_path / "b.tmc").output, 1)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert_escaped(run("verify", path, status=1).output, 1)
    error = run("decode", path, tmp_path / "b.tif", "--layer", "none", status=1).stderr
    assert_escaped(error, 1)


def test_texts_of_weights_cannot_act_on_the_terminal(run: Run, weights: Path, tmp_path: Path) -> None:
    from tmcodec.codec.weights import load_weights, save_weights

    path = tmp_path / "evil.safetensors"
    save_weights(path, load_weights(weights)[0], EVIL, {"training": EVIL})
    assert_escaped(run("models", "show", path).output, 2)


def test_numbers_out_of_range_name_the_range(run: Run) -> None:
    for args, text in (
        (["encode", "a.tif", "b.tmc", "--steps", "0"], "0 is out of range; give 1 to 1000"),
        (["encode", "a.tif", "b.tmc", "--batch-size", "0"], "0 is out of range; give 1 or more"),
    ):
        assert text in run(*args, status=2).stderr


def test_a_raster_without_valid_pixels_says_so(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty.tif"
    with rasterio.open(path, "w", driver="GTiff", width=20, height=20, count=1, dtype="float32") as target:
        target.write(np.full((1, 20, 20), np.nan, np.float32))
        target.descriptions = ("NDVI",)
    assert "0 tokens, no pixel is valid, in" in run("encode", path, tmp_path / "a.tmc").output


@pytest.mark.parametrize(("told", "spins"), [
    ({}, "5000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0"),
])  # fmt: skip
def test_waiting_threads_leave_the_cores_to_others_unless_told(
    told: dict[str, str], spins: str, monkeypatch: pytest.MonkeyPatch,
    spawn: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**told, "OMP_DISPLAY_ENV": "verbose"}.items():
        monkeypatch.setenv(name, value)
    shown = spawn("-m", "tmcodec", "info", "--system").stderr  # by the library itself, as torch loads it
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("torch's threads are not GNU OpenMP's here")
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown
