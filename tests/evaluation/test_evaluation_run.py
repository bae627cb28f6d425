"""Whole evaluations on two small rasters, reports, and everything that can be wrong with the input."""

from __future__ import annotations

import json
import math
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tmcodec
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.errors import (
    EvaluationError,
    MissingDependencyError,
    TargetExistsError,
    TargetFolderError,
    TargetNameError,
)
from tmcodec.evaluation.baselines import unquantized_blocks
from tmcodec.evaluation.folder import report_folder
from tmcodec.evaluation.page import means_table, missing, scenes_table, seconds_per_megapixel, sentences
from tmcodec.evaluation.plots import mean_rate
from tmcodec.evaluation.report import EQUAL, Entry, Method, Report, SceneFacts
from tmcodec.evaluation.scenes import Reading, find_rasters, read_scene, short_names
from tmcodec.modalities import MODALITIES

MakeScene = Callable[..., Path]
MakeTokenizer = Callable[[str], Path]
Evaluated = tuple[Report, Path, Path]
QUICK = ("webp", "blocks")


def test_a_whole_evaluation(
    evaluated: Evaluated, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    report, out, folder = evaluated
    assert [s.name for s in report.scenes] == ["val/0", "val/<b>&1"]
    assert {m.baseline for m in report.methods} == {"", "jp2", "jxl", "avif", "webp", "blocks", "kmeans"}
    sizes = {}
    for entry in report.entries:
        method = next(m for m in report.methods if m.key == entry.method)
        if method.kind == "tokenizer":
            sizes[entry.scene] = entry.bytes
            assert entry.payload_bytes is not None and 0 < entry.payload_bytes < (entry.bytes or 0)
    for entry in report.entries:
        if entry.size_limit is not None and entry.bytes is not None:
            method = next(m for m in report.methods if m.key == entry.method)
            assert entry.size_limit == int((sizes[entry.scene] or 0) * method.factor)
            assert entry.bytes - entry.forgiven_bytes <= entry.size_limit
    token_bytes = tmcodec.encode(
        folder / "0.tif", tmp_path / "again.tmc", tokenizer=tiny_tokenizer("S2L2A"), modality="S2L2A"
    ).file_bytes
    assert sizes["val/0"] == token_bytes == os.path.getsize(tmp_path / "again.tmc")
    use = report.token_use[0]
    assert use.tokens == 4 * 3 + 3 * 3 and 0 < use.used <= use.tokens
    assert use.perplexity == pytest.approx(2**use.entropy)
    assert report.scenes[1].valid == pytest.approx(1 - 81 / (40 * 33))
    assert report.notes == ("LPIPS left out: no trunk weights were given (--lpips WEIGHTS.pth)",)
    check_files(out)


def test_a_codebook_costs_whole_bytes_for_patches_that_are_cut_too(evaluated: Evaluated) -> None:
    """12 and 9 tokens of log2 15360 = 13.907 bits: 20.9 and 15.6 bytes."""
    (method,) = (m for m in evaluated[0].methods if m.baseline == "kmeans")
    entries = evaluated[0].of(method.key)
    assert [(e.bytes, e.payload_bytes, e.size_limit) for e in entries] == [(21, 21, None), (16, 16, None)]


def test_what_is_empty_has_no_tokens_and_baselines_are_rounded_as_rasters_are(
    tmp_path: Path, tiny_tokenizer: MakeTokenizer
) -> None:
    """1040 x 16 pixels: a chunk of 64 tokens, and one whose only token has no valid pixel."""
    import rasterio

    row = MODALITIES["S2L2A"]
    mean, std = (np.array(s)[:, None, None] for s in (row.mean, row.std))
    values = np.broadcast_to(mean, (12, 16, 1040)).copy()
    values[:, 4:8] += 0.9 * std
    values[:, 8:12] += 1.1 * std  # a quarter lies beyond a standard deviation
    values[:, :, 1024:] = 0
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=12, width=1040, height=16,
                       dtype="uint16", nodata=0) as dataset:
        dataset.write(values.astype(np.uint16))
        dataset.descriptions = row.bands
        dataset.update_tags(TMCODEC_S2_OFFSET="present")
    tokenizers = [str(tiny_tokenizer("S2L2A"))]
    report = tmcodec.evaluate(tmp_path / "a.tif", tokenizers=tokenizers, baselines=("blocks",))
    assert report.token_use[0].tokens == 64
    assert report.scenes[0].beyond_sigma == pytest.approx(25)
    (method,) = (m for m in report.methods if m.headers == "none")
    scene = read_scene(tmp_path / "a.tif", Reading(row))
    blocks = unquantized_blocks(scene, row)
    exact, rounded = (
        math.sqrt(np.square(picture[scene.valid].astype(float) - scene.values[scene.valid]).mean())
        for picture in (blocks, np.rint(blocks))
    )
    assert abs(rounded / exact - 1) > 1e-6
    assert report.of(method.key)[0].values["rmse"] == pytest.approx(rounded, rel=1e-7)


def check_files(out: Path) -> None:
    names = {p.name for p in out.iterdir()}
    pictures = {"rate_distortion.png", "scenes.png", "bands.png", "steps.png", "worst.png"}
    assert names == {"report.json", "report.html", *pictures}
    for name in pictures:
        with Image.open(out / name) as image:
            assert image.width > 500 and len(image.convert("L").getcolors()) > 20
    page = (out / "report.html").read_text()
    assert "val/&lt;b&gt;&amp;1" in page and "<b>&1" not in page
    assert "http" not in page.split("</style>")[1]  # one file: nothing is fetched
    assert page.count("data:image/png;base64,") == len(pictures)
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(".out")] == []


def test_psnr_is_that_of_compare(
    evaluated: Evaluated, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    report, _, folder = evaluated
    tok = tiny_tokenizer("S2L2A")
    tmcodec.encode(folder / "0.tif", tmp_path / "a.tmc", tokenizer=tok, modality="S2L2A")
    tmcodec.decode(tmp_path / "a.tmc", tmp_path / "a.tif", tokenizer=tok, steps=3, seed=0)
    seen = tmcodec.compare(tmp_path / "a.tif", folder / "0.tif", modality="S2L2A").metrics
    first = report.of("tiny-s2l2a@3")[0].values
    assert (first["psnr"], first["sam"]) == pytest.approx((seen.psnr, seen.sam), rel=1e-5)


def test_the_report_comes_back_from_json(evaluated: Evaluated) -> None:
    report, out, _ = evaluated
    assert Report.from_dict(json.loads(report.to_json())) == report
    assert Report.load(out) == Report.load(out / "report.json") == report
    plain = json.loads((out / "report.json").read_text())
    assert plain["schema"] == "tmcodec-evaluation/1"
    rows = {(r["method"], r["measure"]): r for r in plain["summary"]}
    values = [e.values["psnr"] for e in report.of("tiny-s2l2a@1")]
    assert rows["tiny-s2l2a@1", "psnr"]["mean"] == pytest.approx(np.mean(values))
    assert rows["tiny-s2l2a@1", "psnr"]["count"] == 2
    text = json.dumps(plain)
    assert str(out.parent) not in text and os.uname().nodename not in text


def test_infinity_survives_json(evaluated: Evaluated) -> None:
    report, _, _ = evaluated
    same = replace(report.entries[0], values={"psnr": math.inf, "rmse": 0.0})
    exact = replace(report, entries=(same, *report.entries[1:]))
    assert Report.from_dict(json.loads(exact.to_json())) == exact


def report_of(report: Report, psnr: dict[str, tuple[float, ...]]) -> Report:
    """Return a report of three scenes with these PSNRs of the tokenizer ``tok@1`` and of codecs."""
    methods = tuple(
        Method(key, key, "tokenizer" if key == "tok@1" else "codec", "tok", key.partition("@")[0], steps=1)
        for key in psnr
    )
    scenes = tuple(SceneFacts(name, 100, 80, 1.0, 8000, None) for name in "abc")
    entries = tuple(
        Entry(scene, key, bytes=size, values={"psnr": value})
        for key, values in psnr.items()
        for scene, value, size in zip("abc", values, (1000, 2000, 60), strict=True)
    )
    return replace(report, methods=methods, scenes=scenes, entries=entries, token_use=())


def test_an_exact_scene_counts_for_no_method(evaluated: Evaluated) -> None:
    inf = math.inf
    report = report_of(evaluated[0], {"tok@1": (30, 34, 60), "jp2": (28, 30, inf), "webp": (29, 31, 50)})
    assert report.left_out("psnr") == {"c"}
    found = {key: report.mean(key, "psnr") for key in ("tok@1", "jp2", "webp")}
    assert {key: (i.mean, i.count) for key, i in found.items()} == {
        "tok@1": (32, 2), "jp2": (29, 2), "webp": (30, 2)
    }
    for key in ("jp2", "webp"):
        gap = report.difference("tok@1", key, "psnr")
        assert (gap.mean, gap.count) == (32 - (found[key].mean or 0), 2)
    best = report.best_codec("tok")
    assert best is not None and best.key == "webp"
    assert {r["method"]: r["infinite"] for r in report.summary()} == {"tok@1": 0, "jp2": 1, "webp": 0}
    assert "PSNR 32.00 [30.00, 34.00] dB over 2 scenes; +2.00" in sentences(report)[0]
    assert missing(report) == [
        "PSNR is infinite, the picture exact, on 1 of 3 scenes (jp2: 1), "
        "which its means and differences leave out for all methods."
    ]
    cells = [row["cells"][0] for row in means_table(report)["rows"]]
    assert cells[1] == {"mean": "29.00", "ends": "28.00 … 30.00; ∞ on 1"}
    rate = mean_rate(report, report.methods[0], report.left_out("psnr"))
    assert rate == pytest.approx(8 * (1000 + 2000) / 2 / 8000)
    assert Report.from_dict(json.loads(report.to_json())) == report


def test_between_codecs_of_equal_means_the_exact_one_is_best(evaluated: Evaluated) -> None:
    for rest, exact in (((29, 31), 1), ((math.inf, math.inf), 3)):
        rows = {"tok@1": (30, 34, 60), "jp2": (*rest, 40), "webp": (*rest, math.inf)}
        report = report_of(evaluated[0], rows)
        best = report.best_codec("tok")
        assert best is not None and best.key == "webp"
        scenes = f"(exact on {exact} further scene{'s' if exact > 1 else ''})."
        assert sentences(report)[0].endswith(f"against webp, the best codec at the same file size {scenes}")


def test_scenes_without_a_finite_score(
    make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    """Means of a raster of one value are exact: no mean is left, and the report is written nonetheless."""
    import rasterio

    path, out = make_scene("NDVI", 32, 32), tmp_path / "out"
    with rasterio.open(path, "r+") as dataset:
        dataset.write(np.full((1, 32, 32), -0.5, np.float32))
    report = tmcodec.evaluate(path, tokenizers=[str(tiny_tokenizer("NDVI"))], baselines=QUICK, report=out)
    exact = [m for m in report.methods if m.title == "means of 16 x 16, unquantized"]
    assert [report.of(m.key)[0].values["psnr"] for m in exact] == [math.inf]
    assert report.mean("tiny-ndvi@1", "psnr").mean is None and report.differences() == []
    page = (out / "report.html").read_text()
    assert "PSNR is infinite, the picture exact, on 1 of 1 scene (" in page and "∞" in page


def test_a_damaged_report_is_refused(
    evaluated: Evaluated, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    report, _, _ = evaluated
    plain = report.to_dict()
    for broken in ({}, [], {**plain, "schema": "other/1"}, {**plain, "entries": [{"scene": 1}]},
                   {k: v for k, v in plain.items() if k != "methods"}):
        with pytest.raises(EvaluationError):
            Report.from_dict(broken)  # type: ignore[arg-type]
    (tmp_path / "junk.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"junk\.json"):
        Report.load(tmp_path / "junk.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(EvaluationError, match=r"deep\.json: nested too deeply"):
        Report.load(tmp_path / "deep.json")


@pytest.mark.parametrize("modality", ["LULC", "DEM"])
def test_other_modalities(
    modality: str, make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    path = make_scene(modality, 70, 50)
    report = tmcodec.evaluate(
        path, tokenizers=[str(tiny_tokenizer(modality))], steps=(1, 2), train=[path], report=tmp_path / "out"
    )
    expected = [1] if modality == "LULC" else [1, 2]
    assert [m.steps for m in report.methods if m.kind == "tokenizer"] == expected
    score = report.mean(f"tiny-{modality.lower()}@1", report.score)
    assert score.mean is not None and score.low is None  # one scene has no interval
    assert "n/a" in (tmp_path / "out" / "report.html").read_text()


def test_scenes_of_the_same_folder_and_file_name_are_told_apart(
    make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    for year, side in (("p2020", 64), ("p2021", 32)):
        (tmp_path / year / "NDVI").mkdir(parents=True)
        make_scene("NDVI", side, side, seed=side).rename(tmp_path / year / "NDVI" / "T32.tif")
        (tmp_path / year / "NDVI" / "bad.tif").write_bytes(b"II*\0 not a raster")
    # The first folder a second time: each file counts once.
    folders = [tmp_path / "p2020", tmp_path / "p2020" / "NDVI", tmp_path / "p2021"]
    report = tmcodec.evaluate(folders, tokenizers=[str(tiny_tokenizer("NDVI"))], steps=(1, 3),
                              baselines=("none",), skip_bad=True)
    assert [s.name for s in report.scenes] == ["p2020/NDVI/T32", "p2021/NDVI/T32"]
    assert sorted(report.skipped) == ["p2020/NDVI/bad.tif", "p2021/NDVI/bad.tif"]
    one, three = ([e.values["psnr"] for e in report.of(f"tiny-ndvi@{n}")] for n in (1, 3))
    assert report.difference("tiny-ndvi@1", "tiny-ndvi@3", "psnr").mean == pytest.approx(
        (one[0] - three[0] + one[1] - three[1]) / 2
    )
    assert [row["size"] for row in scenes_table(report)["rows"]] == ["64 × 64", "32 × 32"]
    seconds = sum(e.encode_seconds or 0 for e in report.of("tiny-ndvi@1"))
    assert seconds_per_megapixel(report, report.methods[0], "encode_seconds") == pytest.approx(
        seconds / (64 * 64 + 32 * 32) * 1e6
    )


def test_names_have_as_many_folders_as_tell_them_apart() -> None:
    given = ["/d/a/x/T.tif", "/d/b/x/T.tif", "/d/b/x/U.tif", "/d/x/T.tif", "/d/y/V.tif", "/d/y/V.jp2"]
    names = short_names(map(Path, given))
    assert list(names.values()) == ["a/x/T", "b/x/T", "x/U", "d/x/T", "y/V.tif", "y/V.jp2"]
    files = list(short_names(map(Path, given), suffix=True).values())
    assert files == ["a/x/T.tif", "b/x/T.tif", "x/U.tif", "d/x/T.tif", "y/V.tif", "y/V.jp2"]


def test_a_raster_is_found_once(folder: Path) -> None:
    (folder.parent / "linked").symlink_to(folder)
    everything = [folder, folder / "0.tif", folder.parent / "linked" / "1.tif"]
    assert find_rasters(everything) == [folder / "0.tif", folder / "1.tif"]


def test_a_report_with_scenes_of_one_name_is_refused(evaluated: Evaluated) -> None:
    plain = evaluated[0].to_dict()
    with pytest.raises(EvaluationError, match="2 scenes of the name val/0"):
        Report.from_dict({**plain, "scenes": [plain["scenes"][0]] * 2})


# --------------------------------------------------------------------------- bad input


def test_a_report_does_not_replace_what_is_read(folder: Path, tokenizer: Path) -> None:
    (folder / "report.json").write_text("{}")  # which makes the folder one that may be replaced
    for data, train in ((folder, ()), (folder / "0.tif", ()), (folder, [folder])):
        with pytest.raises(TargetNameError, match=r"val holds .*, which is read; give another folder"):
            quick(data, tokenizer, train=train, report=folder, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"0.tif", "1.tif", "report.json"}


def quick(folder: Path, tokenizer: Path, **more: object) -> Report:
    return tmcodec.evaluate(folder, tokenizers=[str(tokenizer)], baselines=("none",), **more)  # type: ignore[arg-type]


@pytest.fixture
def tokenizer(tiny_tokenizer: MakeTokenizer) -> Path:
    """Return untrained weights for S2L2A."""
    return tiny_tokenizer("S2L2A")


def write_bad(folder: Path, kind: str, make_scene: MakeScene) -> Path:
    bad = folder / "bad.tif"
    if kind == "unreadable":
        bad.write_bytes(b"II*\0 not a raster")
    elif kind == "truncated":
        bad.write_bytes((folder / "0.tif").read_bytes()[:9000])
    elif kind == "bands":
        make_scene("DEM", name="dem.tif").rename(bad)
    else:
        import rasterio

        make_scene(name="empty.tif", nodata=0).rename(bad)
        with rasterio.open(bad, "r+") as dataset:
            dataset.write(np.zeros((12, 32, 48), np.uint16))
    return bad


@pytest.mark.parametrize("kind", ["unreadable", "truncated", "bands", "nodata"])
def test_a_bad_raster_is_named_or_skipped(
    kind: str, folder: Path, tokenizer: Path, make_scene: MakeScene, tmp_path: Path
) -> None:
    write_bad(folder, kind, make_scene)
    out = tmp_path / "out"
    with pytest.raises(EvaluationError, match=r"bad\.tif"):
        quick(folder, tokenizer, report=out)
    assert not out.exists()
    report = quick(folder, tokenizer, skip_bad=True, report=out)
    assert len(report.scenes) == 2 and list(report.skipped) == ["val/bad.tif"]
    assert "val/bad.tif" in (out / "report.html").read_text()


def test_a_scene_that_one_tokenizer_cannot_take_counts_nowhere(
    make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tmcodec.evaluation import run

    real = run.encode

    def encode(path: Path, *args: object, tokenizer: Tokenizer, **options: object) -> object:
        if path.stem == "bad" and tokenizer.name == "mini-ndvi-v2" and options["window"] is None:
            raise EvaluationError("no")
        return real(path, *args, tokenizer=tokenizer, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "encode", encode)
    paths = [make_scene("NDVI", 32, 48, name=name) for name in ("bad.tif", "good.tif")]
    tokenizers = [str(tiny_tokenizer("NDVI")), "mini-ndvi-v2"]
    report = tmcodec.evaluate(paths, tokenizers=tokenizers, baselines=QUICK, skip_bad=True)
    assert [s.name.rpartition("/")[2] for s in report.scenes] == ["good"]
    assert {e.scene for e in report.entries} == {report.scenes[0].name}
    for use in report.token_use:  # patches of the one scene, and its file alone
        size = report.of(f"{use.tokenizer}@1")[0].bytes or 0
        assert (use.tokens, use.file_bits) == (2 * 3, pytest.approx(8 * size / 6))


def test_one_decoded_picture_at_a_time_is_in_memory(
    make_scene: MakeScene, tiny_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tmcodec.evaluation import run

    real_measure, real_decode = run.measure, run.decode_array
    measured: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def measure(reference: np.ndarray, values: np.ndarray, *rest: Any) -> Any:
        measured.append(weakref.ref(values))
        return real_measure(reference, values, *rest)

    def decode_array(*args: Any, **options: Any) -> Any:
        alive.append(sum(picture() is not None for picture in measured))
        return real_decode(*args, **options)

    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(run, "decode_array", decode_array)
    tokenizers = [str(tiny_tokenizer("NDVI")), "mini-ndvi-v2"]
    report = tmcodec.evaluate(
        make_scene("NDVI", 32, 48), tokenizers=tokenizers, steps=(1, 2), baselines=("none",)
    )
    assert [e.method for e in report.entries] == ["tiny-ndvi@1", "tiny-ndvi@2", "mini-ndvi-v2@1",
                                                  "mini-ndvi-v2@2"]
    assert (len(measured), alive) == (4, [0] * 8)  # decoded twice: to warm up, and to measure


def test_what_cannot_be_evaluated(
    folder: Path, tokenizer: Path, tmp_path: Path, make_scene: MakeScene
) -> None:
    (tmp_path / "empty").mkdir()
    for match, call in {
        "no raster": lambda: quick(tmp_path / "empty", tokenizer),
        "does not exist": lambda: quick(tmp_path / "absent", tokenizer),
        "more than 100": lambda: quick(folder, tokenizer, max_pixels=100),
        "steps": lambda: quick(folder, tokenizer, steps=(0,)),
        "S1GRD and S2L2A": lambda: quick(folder, tokenizer, modality="S1GRD"),
        "no tokenizer": lambda: tmcodec.evaluate(folder),
        "same name": lambda: tmcodec.evaluate(folder, tokenizers=[str(tokenizer)] * 2),
        "NAME=PATH": lambda: quick(folder, tokenizer, checkpoints=["a.pt"]),
        "none of the official": lambda: quick(folder, tokenizer, checkpoints=["x=a.pt"]),
    }.items():
        with pytest.raises(EvaluationError, match=match):
            call()
    bad = write_bad(tmp_path / "empty", "nodata", make_scene)
    with pytest.raises(EvaluationError, match="none of the rasters"):
        quick(bad, tokenizer, skip_bad=True)


def test_the_offset_by_file_name(make_scene: MakeScene, tokenizer: Path, tmp_path: Path) -> None:
    place = tmp_path / "mixed"
    place.mkdir()
    for name in ("old.tif", "new.tif"):
        make_scene(name=name, offset=None).rename(place / name)
    with pytest.raises(EvaluationError, match=r"new\.tif"):
        quick(place, tokenizer)
    report = quick(place, tokenizer, s2_offset_of=[("old*", "absent"), ("*", "present")])
    new, old = report.scenes  # the same numbers; without offset they are 1000 higher in physical units
    assert (new.name, old.name) == ("mixed/new", "mixed/old")
    first, second = (e.values["rmse"] for e in report.of("tiny-s2l2a@1"))
    assert first != second


def test_codecs_are_rounded_as_the_raster_is(make_scene: MakeScene) -> None:
    """Decoding a token file gives whole digital numbers; what it is compared with must, too."""
    row = MODALITIES["S2L2A"]
    scene = read_scene(make_scene(offset="absent"), Reading(row))
    given = scene.values + np.linspace(-3, 3, scene.values.shape[2], dtype=np.float32)
    rounded = scene.as_stored(given)
    assert np.array_equal(rounded, np.rint(given)) and (rounded >= 1000).all()
    assert replace(scene, step=0.0).as_stored(given) is given
    fine = replace(scene, step=0.25, origin=0.1).as_stored(given)
    assert np.abs((fine - 0.1) / 0.25 % 1 - 0.5).min() > 0.49 and np.abs(fine - given).max() <= 0.126


# --------------------------------------------------------------------------- folders


def test_targets(folder: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quick(folder, tokenizer, report=out)
    before = (out / "report.json").read_text()
    with pytest.raises(TargetExistsError):
        quick(folder, tokenizer, report=out)
    assert (out / "report.json").read_text() == before
    quick(folder, tokenizer, report=out, overwrite=True, steps=(2,))
    assert (out / "report.json").read_text() != before
    with pytest.raises(TargetExistsError, match="no report"):
        quick(folder, tokenizer, report=folder, overwrite=True)
    assert (folder / "0.tif").exists()
    with pytest.raises(TargetFolderError):
        quick(folder, tokenizer, report=tmp_path / "no" / "out")


def test_a_failure_leaves_the_old_report(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with report_folder(out, False) as place:
        (place / "report.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), report_folder(out, True) as place:
        (place / "report.json").write_text("half")
        raise KeyboardInterrupt
    assert (out / "report.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


PACKAGES = ["matplotlib.figure", "jinja2", "torchmetrics.functional.image", "imagecodecs"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_one_line(
    package: str, folder: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tmcodec\[evaluate\]'"):
        tmcodec.evaluate(folder, tokenizers=[str(tokenizer)], baselines=("webp",), report=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_methods_at_equal_size_are_told_apart(folder: Path, tiny_tokenizer: MakeTokenizer) -> None:
    report = tmcodec.evaluate(folder, tokenizers=[str(tiny_tokenizer("S2L2A"))], baselines=QUICK)
    assert len({m.key for m in report.methods}) == len(report.methods)
    best = report.best_codec("tiny-s2l2a")
    assert best is None or (best.kind, best.factor, best.headers) == ("codec", EQUAL, "counted")
