"""Drawing tokens: filters against plain second implementations, noise by place, guidance."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.errors import GenerationError
from tmcodec.generation import sampling as sampling_module
from tmcodec.generation.guidance import Passes, check_guidance, passes
from tmcodec.generation.sampling import Sampling, choose, filtered, guide, invert, place_generator
from tmcodec.generation.settings import Settings


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def nucleus_by_hand(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Return the probabilities that remain, token by token, as the papers describe the filters."""
    first = logits / sampling.temperature if sampling.filtering == "tempered" else logits
    order = np.argsort(-first)
    if sampling.top_k is not None:
        order = order[: sampling.top_k]
    shares = softmax(first[order])
    kept, reached = [], 0.0
    for token, share in zip(order, shares, strict=True):
        if kept and reached > (sampling.top_p or 1):
            break
        kept.append(token)
        reached += share
    out = np.zeros_like(logits)
    out[kept] = softmax(logits[kept] / sampling.temperature)
    return out


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([None, 1, 3, 40]),
    st.sampled_from([None, 0.1, 0.8, 1.0]),
    st.sampled_from(["tempered", "official"]),
)
def test_filters_keep_what_a_plain_loop_keeps(
    seed: int, temperature: float, top_k: int | None, top_p: float | None, filtering: str
) -> None:
    sampling = Sampling(temperature, top_k, top_p, filtering)
    logits = np.random.default_rng(seed).normal(0, 2, 23)
    left = filtered(torch.tensor(logits, dtype=torch.float32)[None], sampling).exp()[0].numpy()
    np.testing.assert_allclose(left, nucleus_by_hand(logits, sampling), atol=1e-6)


def test_temperature_before_and_after_the_nucleus_by_hand() -> None:
    # Probabilities 0.6, 0.3, 0.1: at p = 0.7 two tokens stay. At temperature 1/2 they become 36/46, 9/46,
    # 1/46, and the first one reaches 0.7 alone.
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    official = filtered(logits, Sampling(0.5, None, 0.7, "official")).exp()
    torch.testing.assert_close(official, torch.tensor([[0.8, 0.2, 0.0]]))
    tempered = filtered(logits, Sampling(0.5, None, 0.7, "tempered")).exp()
    torch.testing.assert_close(tempered, torch.tensor([[1.0, 0.0, 0.0]]))


def test_invert_finds_the_token_where_the_sum_passes() -> None:
    rows = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).log().expand(6, -1)
    numbers = torch.tensor([0.0, 0.1999, 0.2001, 0.6999, 0.7001, 1 - 2**-53], dtype=torch.float64)
    assert invert(rows, numbers).tolist() == [0, 0, 2, 2, 3, 3]


def test_tokens_without_a_chance_are_not_drawn_at_the_ends_of_their_neighbours() -> None:
    rows = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log().expand(4, -1)
    numbers = torch.tensor([0.0, 0.5 - 2**-53, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert invert(rows, numbers).tolist() == [1, 1, 3, 3]


def test_a_token_filtered_out_is_never_drawn_and_frequencies_are_right() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(4000, -1)
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    counts = torch.bincount(choose(logits, grid, Sampling(1.0, None, 0.65)).tokens, minlength=4)
    assert counts.tolist() == [round(4000 * 4 / 7), round(4000 * 3 / 7), 0, 0]


def test_greedy_takes_the_highest_and_says_its_probability() -> None:
    logits = torch.tensor([[0.25, 0.5, 0.25]]).log()
    for sampling in (Sampling(temperature=0), Sampling(top_k=1)):
        found = choose(logits, torch.tensor([0.9], dtype=torch.float64), sampling)
        assert found.tokens.tolist() == [1]
        assert found.log_probabilities.item() == pytest.approx(math.log(0.5))


def test_log_probabilities_are_the_networks_own() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    found = choose(logits, torch.tensor([0.99], dtype=torch.float64), Sampling(2.0, None, 0.9))
    token = int(found.tokens)
    assert found.log_probabilities.item() == pytest.approx(math.log([0.6, 0.3, 0.1][token]), abs=1e-6)
    assert found.confidence.item() > math.log(0.1)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    logits = torch.randn(150, 99, generator=torch.Generator().manual_seed(0)) * 3
    numbers = torch.rand(150, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = choose(logits, numbers, Sampling()).tokens
    alone = [choose(logits[i : i + 1], numbers[i : i + 1], Sampling()).tokens for i in range(150)]
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"temperature": math.nan}, {"temperature": 1e-40}, {"temperature": math.inf},
     {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1},
     {"filtering": "both"}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(GenerationError, match=r"give|choose"):
        Sampling(**wrong)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- noise


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 20, 0.9, "official"), Sampling(0)])
def test_what_a_row_gives_does_not_depend_on_how_many_are_handled_at_once(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off the CPU there are more of them."""
    logits = torch.randn(200, 500, generator=torch.Generator().manual_seed(1)) * 3
    uniforms = torch.rand(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    few = choose(logits, uniforms, sampling)
    monkeypatch.setattr(sampling_module, "ROWS", sampling_module.DEVICE_ROWS)
    assert all(map(torch.equal, few, choose(logits, uniforms, sampling)))


def test_noise_belongs_to_seed_and_place_and_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    one, again = (torch.rand(4, generator=place_generator(7, 0, 3, "DEM")) for _ in range(2))
    others = [(8, 0, 3, "DEM"), (7, 3, 0, "DEM"), (7, 0, 3, "LULC"), (7, 0, 31, "DEM"), (70, 3, "DEM")]
    assert torch.equal(one, again)
    assert torch.equal(before, torch.get_rng_state())
    for place in others:
        assert not torch.equal(one, torch.rand(4, generator=place_generator(*place)))


def test_the_noise_of_a_place_stays_what_it_is() -> None:
    """Half of eight bytes of BLAKE2b: other noise would be another picture of the same seed."""
    digest = hashlib.blake2b(b"7/0/3/DEM", digest_size=8).digest()
    assert place_generator(7, 0, 3, "DEM").initial_seed() == int.from_bytes(digest, "little") // 2


# --------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e39, -1e4])
def test_weights_that_leave_single_precision_are_refused(weight: float) -> None:
    with pytest.raises(GenerationError, match="guidance weight"):
        check_guidance({"DEM": weight}, ["DEM"])


def test_guidance_formula_by_hand() -> None:
    without, a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0]), torch.tensor([1.0, 0.0])
    # 1 + 2 * (3 - 1) + 0.5 * (1 - 1) = 5;  2 + 2 * (2 - 2) + 0.5 * (0 - 2) = 1
    assert guide(without, [(2.0, a), (0.5, b)]).tolist() == [5.0, 1.0]
    assert without.tolist() == [1.0, 2.0]


def test_passes_of_each_kind_of_guidance() -> None:
    names = {"S2L2A", "DEM", "coords"}
    assert passes(None, names) == passes(1.0, names) == Passes(frozenset(names), ())
    assert passes(3, names) == Passes(frozenset(), ((3.0, frozenset(names)),))
    assert passes({"S2L2A": 2, "DEM": 4}, names) == Passes(
        frozenset({"coords"}),
        ((2.0, frozenset({"coords", "S2L2A"})), (4.0, frozenset({"coords", "DEM"}))),
    )


def test_what_was_made_is_weighed_against_what_was_given() -> None:
    names, made = frozenset({"S2L2A", "DEM", "LULC"}), {"DEM", "LULC"}
    given = frozenset({"S2L2A"})
    assert passes(None, names, made, 0.25) == Passes(given, ((0.25, names),))
    assert passes(None, names, made, 1.0) == passes(1.0, names, made, 0.25) == Passes(names, ())
    assert passes(None, given, made, 0.25) == Passes(given, ())  # nothing of it is there yet
    assert passes({"DEM": 2}, names, made, 0.25) == Passes(names - {"DEM"}, ((2.0, names),))


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, "half"])
def test_a_trust_out_of_range_is_refused(wrong: object) -> None:
    with pytest.raises(GenerationError, match=r"^trust .*; give 0 to 1$"):
        Settings(trust=wrong)  # type: ignore[arg-type]


def test_trust_beside_guidance_is_refused() -> None:
    with pytest.raises(GenerationError, match="trust and guidance"):
        Settings(trust=0.5, guidance={"DEM": 2})


@pytest.mark.parametrize("wrong", [math.nan, math.inf, {"S1GRD": 2.0}, {"DEM": math.nan}])
def test_wrong_guidance_is_refused(wrong: object) -> None:
    with pytest.raises(GenerationError, match="guidance"):
        check_guidance(wrong, ["S2L2A", "DEM"])  # type: ignore[arg-type]
