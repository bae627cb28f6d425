"""Whole tokens tried in class maps: where they come from, which are kept, and what they bring."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

import tmcodec
from tmcodec.codec.search.bits import TokenBits
from tmcodec.codec.search.descent import Descent
from tmcodec.codec.search.error import TokenError, rarity
from tmcodec.codec.search.leaps import AROUND, leap, moved, other_tokens, run_and_leap, turns
from tmcodec.codec.tokenizer import MiniTokenizer
from tmcodec.tokenfile.coders import tokens_to_digits
from tmcodec.tokenfile.context.coder import tables_alone

LEVELS = (7, 5, 5)


def grid(rows: int, cols: int, seed: int = 0) -> Tensor:
    """Return random digits of a batch of two."""
    generator = torch.Generator().manual_seed(seed)
    planes = [torch.randint(n, (2, rows, cols), generator=generator) for n in LEVELS]
    return torch.stack(planes, -1)


def test_moved_by_hand() -> None:
    digits = torch.arange(6).reshape(1, 2, 3, 1)
    assert moved(digits, 0, -1)[0, ..., 0].tolist() == [[0, 0, 1], [3, 3, 4]]  # of the left
    assert moved(digits, 1, 0)[0, ..., 0].tolist() == [[3, 4, 5], [3, 4, 5]]  # of below
    assert moved(digits, -1, 1)[0, ..., 0].tolist() == [[1, 2, 2], [1, 2, 2]]  # of the upper right


def test_what_is_tried() -> None:
    digits = grid(6, 7)
    tried = [instead(digits) for instead in islice(other_tokens(LEVELS), 48)]
    again = [instead(digits) for instead in islice(other_tokens(LEVELS), 48)]
    assert all(torch.equal(a, b) for a, b in zip(tried, again, strict=True))
    assert sorted(AROUND) == sorted((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))
    for start in (0, 12, 24, 36):  # and so on for ever
        four = AROUND[start // 12 % 2 * 4 :][:4]
        for place, whole, mixed in zip(four, tried[start:], tried[start + 4 :], strict=False):
            neighbour = moved(digits, *place)
            assert torch.equal(whole, neighbour)
            assert bool(((mixed == neighbour) | (mixed == digits)).all())
            differs = neighbour != digits
            assert 0.3 < float((mixed == neighbour)[differs].float().mean()) < 0.7
        for steps in tried[start + 8 : start + 12]:
            assert int((steps - digits).abs().max()) == 2
            assert 0.2 < float((steps != digits).float().mean()) < 0.5
            assert bool((steps >= 0).all()) and bool((steps < torch.tensor(LEVELS)).all())
    assert torch.equal(tried[0], tried[24]) and not torch.equal(tried[4], tried[28])  # drawn anew


def test_a_token_spreads_to_where_it_pays() -> None:
    wanted = torch.tensor([6, 0, 3])
    digits = torch.zeros(1, 9, 9, 3, dtype=torch.int64)
    digits[0, 4, 4] = wanted

    def cost(found: Tensor) -> Tensor:
        return (found != wanted).sum(-1).float()

    def right(count: int) -> list[list[int]]:
        found = leap(cost, digits, other_tokens(LEVELS), count)
        return (found == wanted).all(-1)[0].nonzero().tolist()

    assert right(0) == [[4, 4]]
    assert right(1) == [[4, 4], [4, 5]]  # whose left neighbour it is
    assert right(2) == [[4, 4], [4, 5], [5, 4], [5, 5]]
    assert right(4) == [[y, x] for y in (3, 4, 5) for x in (3, 4, 5)]


def test_what_costs_the_neighbours_more_is_not_kept() -> None:
    digits = torch.zeros(1, 5, 5, 3, dtype=torch.int64)
    digits[0, 0, 0] = 1

    def ones(walls: float) -> list[list[int]]:
        def cost(found: Tensor) -> Tensor:
            ones = (found == 1).all(-1).float()
            felt = torch.zeros_like(ones)
            felt[..., 2] = walls * ones[..., 1]  # what changes in column 1 is felt in column 2
            return felt - ones

        return (leap(cost, digits, other_tokens(LEVELS), 1) == 1).all(-1)[0].nonzero().tolist()

    assert ones(0.9) == [[0, 0], [0, 1]]
    assert ones(1.1) == [[0, 0]]


def test_no_leap_makes_it_dearer() -> None:
    """Costs of each token alone: what is judged in squares is then exact."""
    digits, table = grid(13, 11), torch.rand(7, 5, 5, generator=torch.Generator().manual_seed(1))
    others, last = other_tokens(LEVELS), torch.inf
    for _ in range(24):
        now = table[digits.unbind(-1)]
        assert float(now.sum()) <= last
        last = float(now.sum())
        digits = leap(lambda d: table[d.unbind(-1)], digits, others, 1)
    assert last < 0.25 * digits[..., 0].numel()  # of 0.5 on average


@pytest.mark.parametrize(("effort", "wanted"), [
    (0, []), (3, [(False, 3)]), (4, [(False, 4)]), (6, [(False, 4), (True, 2)]),
    (24, [(False, 4), (True, 4)] * 3),
])
def test_turns(effort: int, wanted: list[tuple[bool, int]]) -> None:
    assert list(turns(effort)) == wanted


def test_a_map_of_one_class_ends_early() -> None:
    """There whole tokens and mixtures are what is there already, and need no decoding."""

    class Still:
        levels = LEVELS
        rounds = costs = 0

        def run(self, digits: Tensor, count: int) -> Tensor:
            self.rounds += 1
            return digits

        def cost(self, digits: Tensor) -> Tensor:
            self.costs += 1
            return (digits != 2).sum(-1).float()

    still, digits = Still(), torch.full((1, 9, 9, 3), 2)
    assert torch.equal(run_and_leap(still, digits, 1000), digits)  # type: ignore[arg-type]
    assert (still.rounds, still.costs) == (2, 8)
    busy, digits = Still(), grid(9, 9)
    run_and_leap(busy, digits, 16)  # type: ignore[arg-type]
    assert (busy.rounds, busy.costs) == (2, 80)


def test_rare_classes_count_more() -> None:
    truth = torch.zeros(1, 10, 10, dtype=torch.int64)
    truth[0, 0, :4], truth[0, 1:] = 3, 1
    weight = torch.ones(1, 10, 10)
    weight[0, 0, 4:] = 0  # 90 pixels of 1, 4 of 3
    found = rarity(truth, weight, 10)
    assert float(found[0, 0, 0] / found[0, 5, 5]) == pytest.approx((90 / 4) ** 0.15)
    assert float((found * weight).sum() / weight.sum()) == pytest.approx(1)
    assert rarity(truth[:, 1:], weight[:, 1:], 10).tolist() == torch.ones(1, 9, 10).tolist()
    assert bool(torch.isfinite(rarity(truth, weight * 0, 10)).all())


def test_leaps_bring_what_rounds_do_not() -> None:
    """Speckled classes, as of forest and scrub, where single digits get stuck."""
    tok = tmcodec.load_tokenizer("mini-lulc-v2", "cpu")
    assert isinstance(tok, MiniTokenizer)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:192, :192]
    waves = np.sin(x / 31) + np.cos(y / 23) + 0.6 * rng.normal(size=(48, 48)).repeat(4, 0).repeat(4, 1)
    picture = torch.from_numpy(np.digitize(waves, [-0.5, 0.5])[None, None] * 3.0 + 2)
    error = TokenError(tok.net, picture.float(), torch.ones(picture.shape, dtype=torch.bool))
    descent = Descent(error, TokenBits(tables_alone(tok.sha256, tok.levels), tok.device), 0.05)
    tokens = tok.encode(picture)[0].numpy()
    digits = torch.from_numpy(tokens_to_digits(tokens, tok.levels)).long().permute(1, 2, 0)[None]
    start = float(descent.cost(digits).mean())
    rounds = float(descent.cost(descent.run(digits, 24)).mean())
    both = float(descent.cost(run_and_leap(descent, digits, 24)).mean())
    assert both < 0.95 * rounds and rounds < start
