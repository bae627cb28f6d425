"""Generation in memory: what is shown when, determinism, inputs of every kind, and bad ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_helpers import SPECS, Loaded, SumNet, Words, tiny_generator, tokenizer_refs

from tmcodec.codec.models import load_tokenizer
from tmcodec.errors import (
    ConditionError,
    GenerationError,
    GridMismatchError,
    ModalityError,
    TargetError,
    TokenizerMismatchError,
    TokenRangeError,
    VocabularyError,
)
from tmcodec.generation.conditions import image_input
from tmcodec.generation.generate import decode_tokens, generate
from tmcodec.generation.weights import TokenizerRef

GREEDY: dict[str, Any] = {"temperature": 0, "decoding_steps": 1}


def tokens(batch: int = 2, rows: int = 4, cols: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 15360, (batch, rows, cols), generator=generator)


# --------------------------------------------------------------------------- what is shown when


def test_a_chain_shows_each_target_to_the_next() -> None:
    net, x = SumNet(), torch.full((1, 2, 2), 3)
    made = generate(Loaded(net), {"S2L2A": x}, ["DEM", "LULC", "S1GRD"], order="chained", **GREEDY)
    # 4 tokens of 3 are 12; with 4 DEM tokens of 12 it is 60; with 4 of 60 more, 300.
    assert [int(made.tokens[m].unique()) for m in ("DEM", "LULC", "S1GRD")] == [12, 60, 300]
    assert net.shown == [
        ["tok_sen2l2a@224"],
        ["tok_sen2l2a@224", "tok_dem@224"],
        ["tok_sen2l2a@224", "tok_dem@224", "tok_lulc@224"],
    ]


@pytest.mark.parametrize(("own", "asked", "second"), [(0.25, None, 12), (0.25, 0.75, 60), (1.0, 0.4, 12)])
def test_trust_is_what_a_chain_counts_for(own: float, asked: float | None, second: int) -> None:
    net, x = SumNet(), torch.full((1, 2, 2), 3)
    made = generate(Loaded(net, trust=own), {"S2L2A": x}, ["DEM", "LULC"], trust=asked, **GREEDY)
    # Without DEM's four tokens of 12 the sum is 12, with them 60; which is likelier is a matter of weight.
    assert made.tokens["DEM"].unique().tolist() == [12]
    assert made.tokens["LULC"].unique().tolist() == [second]
    assert net.shown == [["tok_sen2l2a@224"], ["tok_sen2l2a@224", "tok_dem@224"]]


def test_independent_targets_share_one_encoding() -> None:
    net, x = SumNet(), torch.full((1, 2, 2), 3)
    made = generate(Loaded(net), {"S2L2A": x}, ["DEM", "LULC"], order="independent", **GREEDY)
    assert [int(made.tokens[m].unique()) for m in ("DEM", "LULC")] == [12, 12]
    assert net.shown == [["tok_sen2l2a@224"]]


def test_steps_show_what_is_filled_in_and_targets_have_their_own_number() -> None:
    net, x = SumNet(), torch.full((1, 2, 2), 1)
    steps = {"DEM": 4, "LULC": 1}
    made = generate(
        Loaded(net), {"S2L2A": x}, ["DEM", "LULC"], order="independent", schedule="roar", temperature=0,
        decoding_steps=steps,
    )  # fmt: skip
    # One DEM token a step: 4; with it shown 8; then 16; then 32. LULC sees the input alone: 4.
    assert sorted(made.tokens["DEM"].flatten().tolist()) == [4, 8, 16, 32]
    assert made.tokens["LULC"].unique().tolist() == [4]
    assert net.asked == [("tok_dem@224", 1)] * 4 + [("tok_lulc@224", 4)]
    assert len(net.shown) == 4  # the first step's encoding serves LULC, too


@pytest.mark.parametrize("schedule", ["nearest", "maskgit"])
def test_orders_that_choose_ask_for_all_that_is_missing(schedule: str) -> None:
    net = SumNet()
    generate(
        Loaded(net), {"S2L2A": tokens(1)}, ["DEM"], schedule=schedule, token_schedule="linear",
        decoding_steps=4,
    )  # fmt: skip
    assert net.asked == [("tok_dem@224", n) for n in (16, 12, 8, 4)]


class PlacesNet(SumNet):
    """Thinks of land cover at each place what a table says; records what of it is shown."""

    def __init__(self, chances: np.ndarray) -> None:
        super().__init__()
        self.chances, self.known = chances, dict[int, int]()

    def encode(self, parts: Any) -> Any:
        for part in parts:
            if part.key == "tok_lulc@224":
                self.known = dict(zip(part.positions[0].tolist(), part.values[0].tolist(), strict=True))
        return super().encode(parts)

    def predict(self, encoded: Any, key: str, positions: torch.Tensor, grid: object) -> torch.Tensor:
        logits = torch.full((*positions.shape, self.cfg.spec(key).vocabulary), -1e4)
        logits[..., : self.chances.shape[1]] = torch.from_numpy(np.log(self.chances)).float()[positions]
        return logits


@pytest.mark.parametrize("seed", range(5))
def test_nearest_keeps_the_draws_that_save_most(seed: int) -> None:
    chances = np.random.default_rng(seed).dirichlet(np.full(7, 0.5), 16) + 1e-6  # digit 0 of land cover: 0..6
    chances /= chances.sum(1, keepdims=True)
    how: dict[str, Any] = {"seed": seed, "top_p": None}
    draws = generate(Loaded(PlacesNet(chances)), {"S2L2A": tokens(1)}, "LULC", decoding_steps=1, **how)
    drawn, codes = draws.tokens["LULC"].flatten().numpy(), np.arange(7) / 6
    costs = (chances[:, :, None] * np.square(codes[:, None] - codes)).sum(1)  # (place, token)
    saved = (chances * costs).sum(1) - costs[np.arange(16), drawn]
    net = PlacesNet(chances)
    made = generate(Loaded(net), {"S2L2A": tokens(1)}, "LULC", decoding_steps=2, **how)
    kept, found = np.argsort(-saved)[:8], made.tokens["LULC"].flatten()
    assert net.known == {int(place): int(drawn[place]) for place in kept}
    assert all(found[place] == drawn[place] for place in kept)


def test_guidance_takes_a_pass_without_conditions() -> None:
    net = SumNet()
    generate(Loaded(net), {"S2L2A": tokens(1)}, ["DEM"], guidance=2.0, **GREEDY)
    assert net.shown == [[], ["tok_sen2l2a@224"]]
    net = SumNet()
    inputs = {"S2L2A": tokens(1), "LULC": tokens(1) % 4375}
    generate(Loaded(net), inputs, ["DEM"], guidance={"LULC": 2.0}, **GREEDY)
    assert net.shown == [["tok_sen2l2a@224"], ["tok_sen2l2a@224", "tok_lulc@224"]]


def test_tokens_not_known_are_hidden_from_the_encoder() -> None:
    net, x = SumNet(), torch.full((1, 2, 2), 5)
    x[0, 0, 1] = -1
    made = generate(Loaded(net), {"S2L2A": x}, ["DEM"], **GREEDY)
    assert made.tokens["DEM"].unique().tolist() == [15]


def test_a_target_that_is_given_in_part_is_completed() -> None:
    loaded, dem = tiny_generator(), tokens(2, seed=1)
    dem[0, :2], dem[1, 1:] = -1, -1  # another number of tokens in each item
    made = generate(loaded, {"S2L2A": tokens(), "DEM": dem}, ["DEM"], decoding_steps=3)
    found = made.tokens["DEM"]
    assert torch.equal(found[dem >= 0], dem[dem >= 0].int())
    assert int(found.min()) >= 0
    assert torch.all(made.log_probabilities["DEM"][dem >= 0] == 0)
    assert torch.all(made.log_probabilities["DEM"][dem < 0] < 0)


# --------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("schedule", ["nearest", "roar", "maskgit"])
def test_a_seed_decides_everything_whatever_the_batch(schedule: str) -> None:
    loaded, x = tiny_generator(), tokens(3, 3, 5)
    how: dict[str, Any] = {
        "targets": ["DEM", "LULC"], "schedule": schedule, "decoding_steps": 3, "samples": 2
    }  # fmt: skip
    state = torch.get_rng_state()
    whole = generate(loaded, {"S2L2A": x}, seed=[5, 6, 7], **how)
    again = generate(loaded, {"S2L2A": x}, seed=[5, 6, 7], **how)
    assert torch.equal(state, torch.get_rng_state())
    for name in ("DEM", "LULC"):
        assert torch.equal(whole.sampled_tokens[name], again.sampled_tokens[name])
        assert whole.sampled_tokens[name].shape == (2, 3, 3, 5)
        assert whole.tokens[name].dtype == torch.int32
        assert not torch.equal(whole.sampled_tokens[name][0], whole.sampled_tokens[name][1])
    for i, seed in enumerate((5, 6, 7)):
        alone = generate(loaded, {"S2L2A": x[i : i + 1]}, seed=seed, **how)
        assert torch.equal(alone.sampled_tokens["LULC"][:, 0], whole.sampled_tokens["LULC"][:, i])
    other = generate(loaded, {"S2L2A": x}, seed=8, **how)
    assert not torch.equal(other.tokens["DEM"], whole.tokens["DEM"])


def test_an_independent_target_does_not_depend_on_others() -> None:
    loaded, x = tiny_generator(), tokens(1)
    both = generate(loaded, {"S2L2A": x}, ["DEM", "LULC"], order="independent", decoding_steps=2)
    alone = generate(loaded, {"S2L2A": x}, ["LULC"], order="independent", decoding_steps=2)
    assert torch.equal(both.tokens["LULC"], alone.tokens["LULC"])


def test_the_first_of_several_samples_is_the_only_one_of_one() -> None:
    loaded, x = tiny_generator(), tokens(2)
    many = generate(loaded, {"S2L2A": x}, ["DEM"], samples=3, decoding_steps=2)
    one = generate(loaded, {"S2L2A": x}, ["DEM"], decoding_steps=2)
    assert torch.equal(many.tokens["DEM"], one.tokens["DEM"])


# --------------------------------------------------------------------------- pixels and rasters


def test_pixels_without_an_embedding_go_through_the_tokenizer(
    tiny_tokenizer: Callable[[str], Path],
) -> None:
    loaded = tiny_generator()
    loaded.tokenizers = tokenizer_refs({m: tiny_tokenizer(m) for m in ("S2L2A", "DEM")})
    tok = load_tokenizer(str(tiny_tokenizer("S2L2A")))
    x = torch.rand(2, 12, 32, 48, generator=torch.Generator().manual_seed(0)) * 3000 + 1000
    from_pixels = generate(loaded, {"S2L2A": x}, ["DEM"], decode=True)
    from_tokens = generate(loaded, {"S2L2A": tok.encode(x)}, ["DEM"], decode=True)
    assert torch.equal(from_pixels.tokens["DEM"], from_tokens.tokens["DEM"])
    dem = load_tokenizer(str(tiny_tokenizer("DEM"))).decode(from_tokens.tokens["DEM"])
    assert torch.equal(from_tokens.rasters["DEM"], dem)
    assert from_tokens.rasters["DEM"].shape == (2, 1, 32, 48)


def test_gaps_among_pixels_do_not_spoil_their_neighbours(
    tiny_tokenizer: Callable[[str], Path],
) -> None:
    """They are hidden, and the tokenizer sees a smooth continuation, as that of a raster does."""
    loaded = tiny_generator()
    loaded.tokenizers = tokenizer_refs({"S2L2A": tiny_tokenizer("S2L2A")})
    tok = load_tokenizer(str(tiny_tokenizer("S2L2A")))
    flat = torch.full((2, 12, 48, 64), 2000.0)
    holed = flat.clone()
    holed[1, :, 16:32, 16:32] = math.nan
    image = image_input(loaded, "S2L2A", holed)
    assert image.hidden.sum() == 1 and bool(image.hidden[1, 5])  # row 1, column 1 of 3 x 4 tokens
    assert torch.equal(image.values, tok.encode(flat).flatten(1).long())  # all flat: as if nothing lacked


def test_masked_arrays_are_not_known_where_they_are_masked(tiny_tokenizer: Callable[[str], Path]) -> None:
    loaded = tiny_generator()
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 1, 2] = True
    for dtype in (np.int32, np.uint16):
        x = np.ma.MaskedArray(np.full((1, 4, 4), 5, dtype), mask)
        known = image_input(loaded, "S2L2A", x).known()
        assert known.tolist() == [[-1 if i == 6 else 5 for i in range(16)]]
    pixels = np.ma.MaskedArray(np.full((1, 2, 32, 32), -10, np.int16), np.zeros((1, 2, 32, 32), bool))
    pixels[:, :, 20, 3] = np.ma.masked
    assert image_input(loaded, "S1RTC", pixels).hidden.tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("form", ["flipped", "big-endian", "list", "uint16"])
def test_arrays_of_any_form_are_tokens(form: str) -> None:
    x = tokens().numpy()
    forms = {"flipped": x[::-1, :, ::-1].copy()[::-1, :, ::-1], "big-endian": x.astype(">i4"),
             "list": x.tolist(), "uint16": x.astype(np.uint16)}  # fmt: skip
    known = image_input(tiny_generator(), "S2L2A", forms[form]).known()
    assert torch.equal(known, torch.tensor(x).flatten(1))


def test_pixels_with_an_embedding_are_standardised() -> None:
    class Watching(SumNet):
        def encode(self, parts: Any) -> Any:
            self.values = parts[0].values
            self.padding = parts[0].padding
            return super().encode(parts)

    net = Watching()
    x = torch.stack([torch.full((32, 32), -10.93 + 4.391), torch.full((32, 32), -17.329)])[None]
    x[:, :, :16, 16:] = math.nan
    generate(Loaded(net), {"S1RTC": x}, ["DEM"], **GREEDY)
    assert net.shown == [["untok_sen1rtc@224"]]
    torch.testing.assert_close(net.values[0, 0, 20:], torch.ones(12, 32))
    assert net.padding.tolist() == [[False, True, False, False]]


def test_a_tokenizer_of_other_weights_is_refused_by_name(tiny_tokenizer: Callable[[str], Path]) -> None:
    loaded = tiny_generator()
    loaded.tokenizers = {"S2L2A": TokenizerRef(str(tiny_tokenizer("S2L2A")), bytes(32))}
    with pytest.raises(TokenizerMismatchError, match=r"tiny-s2l2a.*tiny-any2any"):
        generate(loaded, {"S2L2A": torch.zeros(1, 12, 32, 32)}, ["DEM"])


def test_equal_tokens_of_samples_are_equal_rasters(tiny_tokenizer: Callable[[str], Path]) -> None:
    """The noise of decoding belongs to the item's seed, as in files, and not to the sample."""
    tok, x = load_tokenizer(str(tiny_tokenizer("DEM"))), tokens(2, 2, 2)
    found = decode_tokens(tok, torch.stack([x, x]), 3, [5, 6])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1, 1], tok.decode(x[1:], 3, 6)[0])


@pytest.mark.parametrize(
    ("how", "drawn"),
    [
        ({"choice": "mean", "decoding_steps": 1}, False),
        ({"choice": "mean", "decoding_steps": 2, "schedule": "roar"}, True),
        ({"choice": "mean", "decoding_steps": 2}, False),
        ({"temperature": 0, "decoding_steps": 2, "schedule": "maskgit"}, False),
        ({"top_k": 1, "decoding_steps": 1}, False),
        ({"decoding_steps": 1}, True),
    ],
)
def test_several_samples_of_what_is_not_drawn_are_refused(how: dict[str, Any], drawn: bool) -> None:
    call = partial(generate, tiny_generator(), {"S2L2A": tokens(1)}, "LULC", samples=2, **how)
    if drawn:
        one, two = call().sampled_tokens["LULC"]
        assert not torch.equal(one, two)
        return
    with pytest.raises(GenerationError, match="2 samples would be equal, since nothing is drawn"):
        call()


@pytest.mark.parametrize("wrong", [255, -1])
@pytest.mark.parametrize("integers", [True, False])
def test_ids_of_no_class_are_to_be_nan(
    wrong: int, integers: bool, tiny_tokenizer: Callable[[str], Path]
) -> None:
    loaded = tiny_generator()
    loaded.tokenizers = tokenizer_refs({"LULC": tiny_tokenizer("LULC")})
    ids = torch.full((1, 1, 64, 64), 3, dtype=torch.int16 if integers else torch.float32)
    ids[..., :16, :20] = wrong
    said = rf"^LULC: {wrong} is none of the classes 0\.\.9; .* give NaN \(or mask it\) where .* unknown$"
    with pytest.raises(ConditionError, match=said):
        generate(loaded, {"LULC": ids}, "DEM", decoding_steps=1)
    gaps = torch.where(ids == wrong, math.nan, ids.float())
    masked = np.ma.masked_equal(ids.numpy(), wrong)
    made = [generate(loaded, {"LULC": x}, "DEM", decoding_steps=1).tokens["DEM"] for x in (gaps, masked)]
    assert torch.equal(*made)


# --------------------------------------------------------------------------- texts


def test_coordinates_condition_and_are_written() -> None:
    loaded = tiny_generator()
    loaded.vocabulary = Words()
    near, far = (
        generate(loaded, {"S2L2A": tokens(1), "coords": place}, ["DEM"], decoding_steps=1)
        for place in ((8.5, 47.25), (30.0, -4.0))
    )
    assert not torch.equal(near.log_probabilities["DEM"], far.log_probabilities["DEM"])
    made = generate(loaded, {"S2L2A": tokens(2)}, ["coords"], samples=3)
    assert np.array(made.texts["coords"]).shape == (3, 2)
    assert made.tokens == {}


def test_images_from_coordinates_alone_have_the_models_grid() -> None:
    loaded = tiny_generator()
    loaded.vocabulary = Words()
    made = generate(loaded, {"coords": [(8.5, 47.25), (9.0, 47.0)]}, ["DEM"])
    assert made.tokens["DEM"].shape == (2, 4, 4)
    assert generate(loaded, {"coords": (8.5, 47.25)}, ["DEM"], grid=(2, 3)).tokens["DEM"].shape == (1, 2, 3)


@pytest.mark.parametrize("form", [torch.tensor, np.array, np.float32, tuple, list])
def test_one_place_is_one_item_whatever_holds_it(form: Callable[[Any], Any]) -> None:
    loaded = tiny_generator()
    loaded.vocabulary = Words()
    one, two = (8, 47), [(8, 47), (9, 48)]
    assert generate(loaded, {"coords": form(one)}, "DEM", decoding_steps=1).tokens["DEM"].shape == (1, 4, 4)
    assert generate(loaded, {"coords": form(two)}, "DEM", decoding_steps=1).tokens["DEM"].shape == (2, 4, 4)


@pytest.mark.parametrize("form", [tuple, list])
@pytest.mark.parametrize("image", [True, False])
def test_items_may_have_no_place(form: Callable[[Any], Any], image: bool) -> None:
    loaded = tiny_generator()
    loaded.vocabulary = Words()

    def made(coords: Any, batch: int) -> torch.Tensor:
        given = {"S2L2A": tokens(1).expand(batch, -1, -1)} if image else {}
        found = generate(loaded, {**given, "coords": coords}, "DEM", decoding_steps=1)
        return found.sampled_log_probabilities["DEM"][0]

    both = made(form([None, (8, 47)]), 2)
    assert torch.allclose(both[0], made(form([None]), 1)[0], atol=1e-5)
    assert torch.allclose(both[1], made((8, 47), 1)[0], atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-2)
    assert made(form([None, None]), 2).shape == (2, 4, 4)
    if image:
        with pytest.raises(ConditionError, match="coords of 3 items for 2; give"):
            made(form([None, None, None]), 2)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("inputs", "targets", "how", "error", "message"),
    [
        ({"S3": tokens()}, ["DEM"], {}, ModalityError, "unknown modality 'S3'"),
        ({"S2L2A": tokens()}, ["S3"], {}, ModalityError, "unknown modality 'S3'"),
        ({"NDVI": tokens()}, ["DEM"], {}, ConditionError, "takes no NDVI"),
        ({"S2L2A": tokens()}, ["S1RTC"], {}, TargetError, "does not make S1RTC"),
        ({"S2L2A": tokens()}, [], {}, TargetError, "one at least"),
        ({"S2L2A": tokens()}, ["DEM", "dem"], {}, TargetError, "each once"),
        ({}, ["DEM"], {}, ConditionError, "no inputs"),
        ({"S2L2A": tokens() + 15360}, ["DEM"], {}, TokenRangeError, r"0\.\.15359"),
        ({"S2L2A": tokens() - 15362}, ["DEM"], {}, TokenRangeError, r"0\.\.15359"),
        ({"LULC": torch.full((1, 2, 2), 4375)}, ["DEM"], {}, TokenRangeError, r"0\.\.4374"),
        ({"S2L2A": tokens(2), "LULC": tokens(2, 3) % 9}, ["DEM"], {}, GridMismatchError, r"\(3, 4\)"),
        ({"S2L2A": tokens(2), "LULC": tokens(1) % 9}, ["DEM"], {}, GridMismatchError, "LULC 1 x"),
        ({"S2L2A": tokens(), "s2l2a": tokens()}, ["DEM"], {}, ConditionError, "twice"),
        ({"S2L2A": tokens().float()}, ["DEM"], {}, ConditionError, "tokens as integers"),
        ({"S2L2A": [[[1, 2], [3]]]}, ["DEM"], {}, ConditionError, "S2L2A: list is no array of numbers"),
        ({"S2L2A": "a.tmc"}, ["DEM"], {}, ConditionError, "S2L2A: str is no array of numbers"),
        ({"S2L2A": None}, ["DEM"], {}, ConditionError, "S2L2A: NoneType is no array"),
        ({"S2L2A": np.array(["1", "2"])}, ["DEM"], {}, ConditionError, "S2L2A: ndarray is no array"),
        ({"S2L2A": torch.zeros(1, 0, 4, dtype=torch.int64)}, ["DEM"], {}, ConditionError, "no tokens"),
        ({"S2L2A": torch.zeros(1, 65, 65, dtype=torch.int64)}, ["DEM"], {}, ConditionError, "in tiles"),
        ({"S1RTC": torch.zeros(1, 2, 30, 32)}, ["DEM"], {}, ConditionError, "multiples of 16"),
        ({"S1RTC": torch.zeros(1, 3, 32, 32)}, ["DEM"], {}, ConditionError, r"\(B, 2, H, W\)"),
        ({"S1RTC": torch.zeros(1, 4, 4, dtype=torch.int64)}, ["DEM"], {}, ConditionError, "as pixels"),
        ({"S2L2A": tokens(), "DEM": tokens()}, ["DEM"], {}, TargetError, "input and target"),
        ({"S2L2A": tokens(), "caption": "a lake"}, ["DEM"], {}, VocabularyError, "vocabulary of caption"),
        ({"S2L2A": tokens(), "coords": (8, 47)}, ["DEM"], {}, VocabularyError, "words of coords"),
        ({"S2L2A": tokens()}, ["coords"], {}, VocabularyError, "words of coords"),
        ({"coords": "here"}, ["DEM"], {}, ConditionError, "coords: str is no array"),
        ({"S2L2A": tokens()}, ["DEM"], {"decoding_steps": 0}, GenerationError, "decoding steps"),
        ({"S2L2A": tokens()}, ["DEM"], {"decoding_steps": [1, 2]}, GenerationError, "one each"),
        ({"S2L2A": tokens()}, ["DEM"], {"decoding_steps": {"LULC": 2}}, GenerationError, "LULC"),
        ({"S2L2A": tokens()}, ["DEM"], {"samples": 0}, GenerationError, "samples"),
        ({"S2L2A": tokens()}, ["DEM"], {"order": "both"}, GenerationError, "chained, independent"),
        ({"S2L2A": tokens()}, ["DEM"], {"seed": -1}, GenerationError, "seeds"),
        ({"S2L2A": tokens()}, ["DEM"], {"seed": [1]}, GenerationError, "2 items"),
        ({"S2L2A": tokens()}, ["DEM"], {"guidance": {"LULC": 2}}, GenerationError, "LULC"),
        ({"S2L2A": tokens()}, ["DEM"], {"guidance": "2"}, GenerationError, "guidance weight '2'"),
        ({"S2L2A": tokens()}, ["DEM"], {"seed": 1.5}, GenerationError, "seed 1.5; give a whole number"),
        ({"S2L2A": tokens()}, ["DEM"], {"seed": "a"}, GenerationError, "seed 'a'; give a whole number"),
        ({"S2L2A": tokens()}, ["DEM"], {"decoding_steps": 1.5}, GenerationError, "decoding_steps 1.5; give"),
        ({"S2L2A": tokens()}, ["DEM"], {"decoding_steps": ["1"]}, GenerationError, "'1' decoding steps"),
        ({"S2L2A": tokens()}, ["DEM"], {"samples": 1.5}, GenerationError, "1.5 samples"),
        ({"S2L2A": tokens()}, ["DEM"], {"temperature": "hot"}, GenerationError, "temperature 'hot'; give"),
        ({"S2L2A": tokens()}, ["DEM"], {"top_p": "0.5"}, GenerationError, "top-p '0.5'; give a number"),
        ({"S2L2A": tokens()}, ["DEM"], {"grid": (5, 5)}, GridMismatchError, "leave grid out"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    inputs: dict[str, Any], targets: list[str], how: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        generate(tiny_generator(), inputs, targets, **how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((200, 0), "outside"), ((0, math.nan), "outside"), ("here", "in degrees"), ((1, 2, 3), "coords"),
        (np.array([[None, 1], [2, 3]], object), "^coords a ndarray; give "),
    ],
)
def test_coordinates_off_the_globe_are_refused(place: object, message: str) -> None:
    loaded = tiny_generator()
    loaded.vocabulary = Words()
    with pytest.raises(ConditionError, match=message):
        generate(loaded, {"S2L2A": tokens(1), "coords": place}, ["DEM"])


def test_a_target_that_cannot_be_shown_is_made_in_one_step_and_last() -> None:
    shy = replace(SPECS[2], encoder=False)
    loaded = tiny_generator((SPECS[0], shy, SPECS[3]))
    for targets, steps in ((["DEM", "LULC"], 1), (["DEM"], 2)):
        with pytest.raises(TargetError, match="takes no DEM tokens"):
            generate(loaded, {"S2L2A": tokens()}, targets, decoding_steps=steps)
    made = generate(loaded, {"S2L2A": tokens()}, ["LULC", "DEM"], decoding_steps={"LULC": 3, "DEM": 1})
    assert set(made.tokens) == {"LULC", "DEM"}


def test_a_single_name_is_one_target() -> None:
    loaded, x = tiny_generator(), tokens()
    one, other = (generate(loaded, {"S2L2A": x}, t, decoding_steps=1) for t in ("LULC", ["LULC"]))
    assert torch.equal(one.tokens["LULC"], other.tokens["LULC"])


def test_the_callers_default_data_type_changes_nothing() -> None:
    loaded, x = tiny_generator(), tokens()
    expected = generate(loaded, {"S2L2A": x}, ["DEM", "LULC"], decoding_steps=2)
    torch.set_default_dtype(torch.float64)
    try:
        found = generate(loaded, {"S2L2A": x}, ["DEM", "LULC"], decoding_steps=2)
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("DEM", "LULC"):
        assert torch.equal(found.tokens[name], expected.tokens[name])
        assert torch.equal(found.log_probabilities[name], expected.log_probabilities[name])


def test_names_and_numbers_as_they_come() -> None:
    """Names in any case, NumPy's integers: all mean the same as the plain ones."""
    loaded, x = tiny_generator(), tokens()
    plain = generate(loaded, {"S2L2A": x}, ["DEM"], decoding_steps=2, guidance={"S2L2A": 1.5}, seed=3)
    for how in (
        {"decoding_steps": {"dem": 2}, "guidance": {"s2l2a": 1.5}, "seed": np.int64(3)},
        {"decoding_steps": np.int64(2), "guidance": {"S2l2A": 1.5}, "seed": [np.int32(3)] * len(x)},
    ):
        found = generate(loaded, {"S2L2A": x}, ["DEM"], **how)
        assert torch.equal(found.tokens["DEM"], plain.tokens["DEM"])
