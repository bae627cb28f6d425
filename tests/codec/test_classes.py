"""Class maps come back with the classes that they have, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tmcodec
from tmcodec import errors
from tmcodec.cli import cli
from tmcodec.codec import revision
from tmcodec.codec.search.error import TokenError
from tmcodec.codec.tokenizer import MiniTokenizer, likeliest
from tmcodec.tokenfile import FileMeta, TokenFileWriter

MakeTokenizer = Callable[[str], Path]


@pytest.fixture
def weights(tiny_tokenizer: MakeTokenizer) -> Path:
    return tiny_tokenizer("LULC")


def noise(classes: list[int], height: int = 90, width: int = 70, seed: int = 0) -> np.ndarray:
    """Return a map of these classes, each pixel drawn by itself."""
    return np.random.default_rng(seed).choice(np.array(classes, np.uint8), (1, height, width))


def classes_of(path: Path, layer: str | None = None) -> tuple[int, ...]:
    with tmcodec.open(path) as file:
        return tuple(next(iter(file.layers.values())).meta.class_sets)


def rewrite(source: Path, target: Path, **changes: Any) -> Path:
    """Copy a file of one layer, its metadata changed."""
    with tmcodec.open(source) as file:
        (layer,) = file.layers.values()
        meta = FileMeta((layer.meta.replace(**changes),))
        with TokenFileWriter(target, meta, sparse=True) as writer:
            for time, row, col in layer.places():
                writer.write_raw_chunk(0, time, row, col, layer.plain_chunk(time, row, col))
    return target


def test_likeliest_of_some() -> None:
    logits = torch.tensor([[0.0, 5, 1], [3, 4, 1], [2, 0, 9], [2, 0, 0]])[None, :, None]
    assert likeliest(logits, None).tolist() == [[[[1.0, 0.0, 2.0]]]]
    assert likeliest(logits, (0, 3)).tolist() == [[[[3.0, 0.0, 0.0]]]]  # of 1 and 0 the first
    assert likeliest(logits, (2,)).tolist() == [[[[2.0, 2.0, 2.0]]]]
    assert likeliest(logits, range(4)).tolist() == likeliest(logits, None).tolist()


@pytest.mark.parametrize("effort", [0, 2])
def test_no_other_class_comes_back(weights: Path, tmp_path: Path, effort: int) -> None:
    named, bare = tmp_path / "a.tmc", tmp_path / "b.tmc"
    tmcodec.encode(noise([2, 5]), named, modality="LULC", tokenizer=weights, effort=effort)
    assert classes_of(named) == (1 << 2 | 1 << 5,)
    array, _ = tmcodec.decode_array(named, tokenizer=weights)
    assert set(np.unique(array)) <= {2, 5}
    rewrite(named, bare, class_sets=())
    free, _ = tmcodec.decode_array(bare, tokenizer=weights)
    assert set(np.unique(free)) - {2, 5}  # an untrained decoder names whatever comes
    # Where the likeliest class is one that the map has, it stays.
    kept = np.isin(free, [2, 5])
    np.testing.assert_array_equal(array[kept], free[kept])


def test_classes_are_those_of_valid_pixels_of_the_window(weights: Path, tmp_path: Path) -> None:
    ids = noise([1, 4])
    ids[0, :10], ids[0, 50, 60], ids[0, 80:] = 0, 9, 7
    dst = tmp_path / "a.tmc"
    tmcodec.encode(ids, dst, modality="LULC", tokenizer=weights)
    assert classes_of(dst) == (1 << 1 | 1 << 4 | 1 << 7 | 1 << 9,)
    for window, wanted in (((0, 0, 70, 50), {1, 4}), ((60, 50, 1, 1), {9}), ((0, 85, 9, 5), {7})):
        tmcodec.encode(ids, dst, modality="LULC", tokenizer=weights, window=window, overwrite=True)
        assert classes_of(dst) == (sum(1 << i for i in wanted),)
        array, profile = tmcodec.decode_array(dst, tokenizer=weights)
        assert set(np.unique(array[profile["valid"]])) <= wanted
    tmcodec.encode(ids * 0, dst, modality="LULC", tokenizer=weights, overwrite=True)
    assert classes_of(dst) == ()


def test_classes_of_all_chunks_count_and_masked_pixels_do_not(weights: Path, tmp_path: Path) -> None:
    ids, mask = np.full((1, 32, 2100), 3, np.uint8), np.ones((1, 32, 2100), np.bool_)
    ids[0, 0, 0], ids[0, 31, 2099], ids[0, 5, 1030], mask[0, 5, 1030] = 1, 8, 6, False
    tmcodec.encode(
        (ids, {"valid": mask}), tmp_path / "a.tmc", modality="LULC", tokenizer=weights, effort=0
    )
    assert classes_of(tmp_path / "a.tmc") == (1 << 1 | 1 << 3 | 1 << 8,)


def test_other_rasters_have_no_classes(tiny_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    heights = np.full((1, 40, 50), 7, np.int16)
    tmcodec.encode(heights, tmp_path / "a.tmc", modality="DEM", tokenizer=tiny_tokenizer("DEM"))
    assert classes_of(tmp_path / "a.tmc") == ()
    # A field that means nothing there changes nothing.
    rewrite(tmp_path / "a.tmc", tmp_path / "b.tmc", class_sets=(1 << 60,))
    tok = tiny_tokenizer("DEM")
    first, second = (tmcodec.decode_array(tmp_path / n, tokenizer=tok)[0] for n in ("a.tmc", "b.tmc"))
    np.testing.assert_array_equal(first, second)


def test_each_date_has_its_own_classes(weights: Path, tmp_path: Path) -> None:
    for year, classes in ((2020, [1, 2]), (2021, [8])):
        tags = {"ACQUISITION_DATE": f"{year}-07-01"}
        tmcodec.encode(
            noise(classes), tmp_path / f"{year}.tmc", modality="LULC", tokenizer=weights, tags=tags, effort=0
        )
    rewrite(tmp_path / "2020.tmc", tmp_path / "2022.tmc", class_sets=(),
            times=(datetime(2022, 7, 1, tzinfo=timezone.utc),))  # fmt: skip
    tmcodec.stack([tmp_path / f"{year}.tmc" for year in (2022, 2021, 2020)], tmp_path / "all.tmc")
    assert classes_of(tmp_path / "all.tmc") == (6, 256, 0)
    first, second, third = (
        set(np.unique(tmcodec.decode_array(tmp_path / "all.tmc", time=i, tokenizer=weights)[0]))
        for i in range(3)
    )
    assert first <= {1, 2} and second == {8} and third - {1, 2}


def test_classes_beyond_the_legend_are_refused(weights: Path, tmp_path: Path) -> None:
    tmcodec.encode(noise([1]), tmp_path / "a.tmc", modality="LULC", tokenizer=weights)
    tok = tmcodec.load_tokenizer(str(weights))
    for number, name in ((1 << 10, "b.tmc"), (1 << 63 | 2, "c.tmc")):
        forged = rewrite(tmp_path / "a.tmc", tmp_path / name, class_sets=(number,))
        with pytest.raises(errors.TokenizerMismatchError, match="has classes that tiny-lulc does not know"):
            tmcodec.decode_array(forged, tokenizer=tok)
    edge = rewrite(tmp_path / "a.tmc", tmp_path / "d.tmc", class_sets=(1 << 9,))
    assert set(np.unique(tmcodec.decode_array(edge, tokenizer=tok)[0])) == {9}


def test_tokenizers_take_classes(weights: Path) -> None:
    tok = tmcodec.load_tokenizer(str(weights))
    tokens = torch.arange(12).reshape(1, 3, 4) * 300
    assert set(tok.decode(tokens, classes=(3, 6)).unique().tolist()) <= {3.0, 6.0}
    assert torch.equal(tok.decode(tokens), tok.decode(tokens, classes=range(10)))
    for wrong in ((), (10,), (-1, 2)):
        with pytest.raises(errors.ShapeError, match=r"classes .*; give some of 0\.\.9, or None"):
            tok.decode(tokens, classes=wrong)


def test_the_search_knows_what_decoding_will_name(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok = tmcodec.load_tokenizer(str(weights))
    assert isinstance(tok, MiniTokenizer)
    picture = torch.from_numpy(noise([2, 5], 32, 48).astype(np.float32))[None]
    valid = torch.ones(picture.shape, dtype=torch.bool)
    tokens = tok.encode(picture)
    codes = tok.net.fsq.indices_to_codes(tokens)
    for classes in (None, (2, 5)):
        drawn = TokenError(tok.net, picture, valid, classes=classes).draw(codes)[0]
        assert torch.equal(drawn.argmax(1, keepdim=True).float(), tok.decode(tokens, classes=classes))
    asked = []
    monkeypatch.setattr(revision, "search", lambda *args: (asked.append(args[-1]), args[1])[1])
    for width in (70, 1025):  # one chunk, whose classes are the map's; two, one of which is not yet seen
        tmcodec.encode(noise([2, 5], 20, width), tmp_path / "a.tmc", modality="LULC", tokenizer=tok, effort=1,
                       overwrite=True)  # fmt: skip
    assert asked == [[2, 5], None, None]


def test_info_names_the_classes(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tmc"
    tmcodec.encode(noise([1, 7, 9]), path, modality="LULC", tokenizer=weights)
    assert "classes    water, snow/ice, rangeland\n" in CliRunner().invoke(cli, ["info", str(path)]).output
    said = json.loads(CliRunner().invoke(cli, ["info", "--json", str(path)]).output)
    assert said["layers"][0]["class_sets"] == [[1, 7, 9]]
    bare = rewrite(path, tmp_path / "b.tmc", class_sets=())
    assert "\n  classes " not in CliRunner().invoke(cli, ["info", str(bare)]).output
