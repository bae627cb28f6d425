"""Budgets, positions and the sampled softmax: integers and sums that anybody can check."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.errors import ConfigError
from tmcodec.training.any2any.budgets import Budgets, Mixture, allot, draw_counts, draw_positions
from tmcodec.training.any2any.softmax import sampled_cross_entropy

NAMES = ("DEM", "LULC", "NDVI", "S2L2A")
concentrations = st.dictionaries(st.sampled_from(NAMES), st.floats(0.01, 10), min_size=1)


@given(
    total=st.integers(0, 900),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    data=st.data(),
)
def test_shares_add_up_and_fit(total: int, shares: list[float], data: st.DataObject) -> None:
    room = np.array(data.draw(st.lists(st.integers(0, 196), min_size=len(shares), max_size=len(shares))))
    counts = allot(total, np.array(shares), room)
    assert counts.sum() == min(total, room.sum())
    assert (counts >= 0).all()
    assert (counts <= room).all()


def test_shares_are_kept_where_there_is_room() -> None:
    assert allot(10, np.array([0.5, 0.3, 0.2]), np.array([99, 99, 99])).tolist() == [5, 3, 2]
    assert allot(10, np.array([0.5, 0.3, 0.2]), np.array([2, 99, 99])).tolist() == [
        2,
        5,
        3,
    ]  # 8 as 3 to 2, rounded
    assert allot(7, np.array([1.0, 0.0, 0.0]), np.array([4, 9, 0])).tolist() == [4, 3, 0]


@settings(max_examples=200)
@given(
    inputs=concentrations,
    targets=concentrations,
    sizes=st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(1, 300)),
    room=st.integers(1, 196),
    seed=st.integers(0, 2**32 - 1),
)
def test_draws_keep_their_budgets(
    inputs: dict[str, float], targets: dict[str, float], sizes: tuple[int, ...], room: int, seed: int
) -> None:
    low_in, high_in, low_out, high_out = *sorted(sizes[:2]), *sorted(sizes[2:])
    budgets = Budgets((low_in, high_in), (low_out, high_out), [Mixture(inputs, targets)])
    shown, asked = draw_counts(budgets, NAMES, room, np.random.default_rng(seed))
    allowed_in, allowed_out = (np.array([m in alphas for m in NAMES]) for alphas in (inputs, targets))
    assert (shown[~allowed_in] == 0).all()
    assert (asked[~allowed_out] == 0).all()
    assert (shown + asked <= room).all()
    assert shown.sum() <= high_in
    assert 1 <= asked.sum() <= high_out
    # A budget is used up, unless its modalities are: one position of a lone target is kept back for it.
    # Of what is left after the inputs, the targets' budget is used up.
    assert asked.sum() >= min(low_out, int((room - shown)[allowed_out].sum()))


def test_a_draw_depends_on_the_seed_alone() -> None:
    budgets = Budgets((10, 90), (10, 90), [Mixture({"DEM": 1, "NDVI": 1}, {"NDVI": 1, "LULC": 1})])
    one, two, other = (
        draw_counts(budgets, NAMES, 50, np.random.default_rng(s)) for s in (3, 3, 4)
    )  # fmt: skip
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_mean_shares_are_the_concentrations() -> None:
    budgets = Budgets((100, 100), (1, 1), [Mixture({"DEM": 3, "NDVI": 1}, {"LULC": 1})])
    rng = np.random.default_rng(0)
    shown = np.mean([draw_counts(budgets, NAMES, 196, rng)[0] for _ in range(2000)], 0)
    # The Dirichlet's mean is alpha over their sum: 75 and 25 tokens; standard error 0.4.
    assert shown == pytest.approx([75, 0, 25, 0], abs=2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Budgets((5, 4), (1, 2), [Mixture({"DEM": 1}, {"DEM": 1})]), "budgets.inputs"),
        (lambda: Budgets((1, 4), (0, 2), [Mixture({"DEM": 1}, {"DEM": 1})]), "budgets.targets"),
        (lambda: Budgets((1, 4), (1, 2), [Mixture({"DEM": -1}, {"DEM": 1})]), "negative"),
        (lambda: Budgets((1, 4), (1, 2), []), "mixtures is empty"),
    ],
)
def test_bad_budgets_are_refused(make: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make().check()  # type: ignore[operator]


def test_a_sample_that_no_mixture_fits_is_an_error() -> None:
    budgets = Budgets((1, 4), (1, 2), [Mixture({"DEM": 1}, {"S1RTC": 1})])
    with pytest.raises(ConfigError, match="no mixture"):
        draw_counts(budgets, NAMES, 10, np.random.default_rng(0))


@given(
    valid=st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4),
    inputs=st.integers(0, 6),
    targets=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_positions_do_not_meet_and_avoid_nodata(
    valid: list[list[bool]], inputs: int, targets: int, seed: int
) -> None:
    mask = np.array(valid)
    shown, asked = draw_positions(mask, inputs, targets, np.random.default_rng(seed))
    assert shown.shape == (len(mask), inputs)
    assert asked.shape == (len(mask), targets)
    for row, a, b in zip(mask, shown, asked, strict=True):
        chosen = [*a.tolist(), *b.tolist()]
        assert len(set(chosen)) == inputs + targets
        # Invalid positions are used only when the valid ones are.
        assert row[chosen].sum() == min(row.sum(), inputs + targets)


# --------------------------------------------------------------------------- softmax


def test_the_sampled_softmax_is_the_full_one_when_all_are_drawn() -> None:
    torch.manual_seed(0)
    table, y = torch.randn(50, 8), torch.randn(20, 8, requires_grad=True)
    tokens = torch.randint(0, 50, (20,))
    found = sampled_cross_entropy(y, tokens, lambda t: table[t], 50, 50, torch.Generator().manual_seed(1))
    full = torch.nn.functional.cross_entropy(y @ table.T, tokens, reduction="none")
    torch.testing.assert_close(found, full)


def test_the_sampled_sum_is_unbiased() -> None:
    torch.manual_seed(0)
    table, y, tokens = torch.randn(200, 4), torch.randn(3, 4), torch.tensor([5, 6, 7])
    generator = torch.Generator().manual_seed(0)
    logits = y @ table.T
    # exp(loss) = sum of exponentials over the exponential of the token's own.
    draws = torch.stack(
        [sampled_cross_entropy(y, tokens, lambda t: table[t], 200, 20, generator).exp() for _ in range(4000)]
    )
    exact = logits.exp().sum(1) / logits.gather(1, tokens[:, None])[:, 0].exp()
    error = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()
