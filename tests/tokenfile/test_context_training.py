"""Training of the context tables: rounding to integers keeps what was learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tmcodec.tokenfile.context.heights import number_to_reflected
from tmcodec.tokenfile.context.model import generic_model
from tmcodec.tokenfile.context.tables import Tables, overflow, pack_tables, unpack_tables, with_rates

torch = pytest.importorskip("torch")
from tmcodec.training import context  # noqa: E402
from tmcodec.training.corpus import Scene  # noqa: E402

LEVELS = (4, 3)
NEAR = np.array([(0, dy, dx) for dy, dx in context.NEAR], np.int32)


def stripes(seed: int) -> np.ndarray:
    """Return tokens that repeat the left one three times of four: int32 (16, 16)."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 12, (16, 16), dtype=np.int32)
    keep = rng.random((16, 16)) < 0.75
    for col in range(1, 16):
        tokens[:, col] = np.where(keep[:, col], tokens[:, col - 1], tokens[:, col])
    return tokens


def test_integers_code_as_well_as_the_network() -> None:
    torch.manual_seed(0)
    pairs = [(stripes(i), None) for i in range(60)]
    base = replace(generic_model(LEVELS), rates=np.zeros((6, 64), np.int32))
    net = context.FloatNetwork(base, NEAR)
    data = context.samples(base, NEAR, pairs)
    context.train(net, data, lambda: 0.0, context.Schedule(epochs=4, batch=512, looks=1))
    held = [(stripes(100 + i), None) for i in range(8)]
    near, digits = context.samples(base, NEAR, held)
    with torch.no_grad():
        ideal = float(net.bits(near, digits).sum(1).mean())
    model = replace(base, network=context.to_integers(net))
    assert overflow(model) is None
    coded = context.coded_bits(with_rates(model, [(0, 0)] * 6, 0), held)
    # A token that repeats three times of four, else is uniform: 1.64 bits; one in sixteen has no left one.
    assert 1.6 < ideal < 2.2
    assert abs(coded - ideal) < 0.04  # up to a byte a grid at the end, 0.03 bits a token
    again = unpack_tables(pack_tables(Tables(bytes(32), 1, model, None))).alone
    assert context.coded_bits(again, held) == coded


def test_the_predictor_of_planes() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:12, :12]
    numbers = [(5000 + a * x + b * y).astype(np.int32) for a, b in rng.integers(-90, 90, (40, 2))]
    tokens = np.stack([number_to_reflected(n, (8, 8, 8, 6, 5)) for n in numbers])
    weights = context.fit_predictor(tokens, (8, 8, 8, 6, 5))
    w, n, nw, ne, ww, nn = weights
    assert sum(weights) == 256
    # Exact for every plane a x + b y: the weighted mean of the offsets is (0, 0).
    assert abs(-w - nw + ne - 2 * ww) <= 3 and abs(-n - nw - ne - 2 * nn) <= 3


def test_dates_of_one_place() -> None:
    values, valid = np.zeros((2, 4, 4), np.float32), np.ones((2, 4, 4), bool)
    other = np.zeros((2, 5, 4), np.float32)
    names = ["S2L2A/a_0", "S2L2A/a_1", "S2L2A/b_0", "S2L2A/a_x"]
    scenes = [Scene(n, values, valid, 1.0) for n in names] + [Scene("S2L2A/a_2", other, valid, 1.0)]
    assert [[s.name for s in g] for g in context.dates(scenes)] == [["S2L2A/a_0", "S2L2A/a_1"]]
    grids = {"p_0": np.zeros((2, 2)), "p_1": np.ones((2, 2)), "q_1": np.ones((2, 2))}
    assert [(a.sum(), b.sum()) for a, b in context.validation_dates(grids)] == [(4, 0)]
