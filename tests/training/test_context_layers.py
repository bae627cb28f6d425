"""Training of pair tables: places are matched, a trained network is taken over, what follows is learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tmcodec.modalities import MODALITIES
from tmcodec.tokenfile.context.model import generic_model
from tmcodec.tokenfile.context.tables import PairTables, overflow, pack_pair_tables, unpack_pair_tables

torch = pytest.importorskip("torch")
from tmcodec.training import context, context_layers  # noqa: E402

OWN, OTHER = (4, 3), (5, 6)


def write(path: Path, values: np.ndarray, names: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    with rasterio.open(path, "w", dtype=values.dtype, **profile) as file:
        file.write(values)
        file.descriptions = names


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_rasters_of_one_place_are_matched(tmp_path: Path) -> None:
    bands = MODALITIES["S2L2A"].bands
    optical, radar = np.full((12, 32, 32), 2000, np.uint16), np.full((2, 32, 32), -12, np.float32)
    optical[bands.index("B08")] = 4000
    for name in ("bigearthnet_S2A_MSIL2A_20170613T101031_87_48", "alone", "larger"):
        write(tmp_path / "val" / "S2L2A" / f"{name}.tif", optical, bands)
    write(
        tmp_path / "val" / "S1GRD" / "bigearthnet_S1A_IW_GRDH_1SDV_x_33UUP_87_48_VVVH.tif",
        radar,
        ("VV", "VH"),
    )
    write(tmp_path / "val" / "S1GRD" / "larger.tif", np.zeros((2, 48, 32), np.float32), ("VV", "VH"))
    found = context_layers.places(tmp_path, "val", MODALITIES["S1GRD"], MODALITIES["S2L2A"])
    assert [(p.scene.values.shape, p.computed) for p in found] == [((14, 32, 32), False)]
    assert float(found[0].scene.values[13, 0, 0]) == -12
    ndvi = context_layers.places(tmp_path, "val", MODALITIES["NDVI"], MODALITIES["S2L2A"])
    assert [p.computed for p in ndvi] == [True] * 3
    # (3000 - 1000) / (3000 + 1000) without the offset.
    assert np.allclose(context_layers.ndvi(ndvi[0].scene.values, bands), 0.5)


def test_a_network_taken_over_says_the_same() -> None:
    torch.manual_seed(0)
    near = np.array([(0, *place) for place in context.NEAR[:6]], np.int32)
    base = replace(generic_model(OWN), rates=np.zeros((6, 64), np.int32))
    net = context.FloatNetwork(base, near)
    trained = context.to_integers(net)
    pair = replace(base, reference_levels=OTHER)
    larger = context.FloatNetwork(pair, np.array(context_layers.SLOTS, np.int32))
    context_layers.start_from(larger, pair, trained)
    with torch.no_grad():
        larger.first.weight[len(near) * (sum(OWN) + 2) :] = 0  # what the reference adds
    own = np.random.default_rng(0).integers(0, 12, (9, 9), dtype=np.int32)
    other = np.random.default_rng(1).integers(0, 30, (9, 9), dtype=np.int32)
    expected = net.bits(*context.samples(base, near, [(own, None)]))
    found = larger.bits(*context.samples(pair, np.array(context_layers.SLOTS, np.int32), [(own, other)]))
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.01)  # Q9 and Q10


def test_what_follows_from_the_reference_is_learnt() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    def pair() -> tuple[np.ndarray, np.ndarray]:
        other = rng.integers(0, 30, (14, 14), dtype=np.int32)
        own = other % 5 % 4 + 4 * (other // 5 % 3)
        noise = rng.integers(0, 12, own.shape)
        return np.where(rng.random(own.shape) < 0.25, noise, own).astype(np.int32), other

    base = replace(generic_model(OWN, True, OTHER), rates=np.zeros((6, 64), np.int32))
    slots = np.array(context_layers.SLOTS, np.int32)
    held = [pair() for _ in range(4)]
    plan = context.Schedule(epochs=4, batch=512, looks=2)
    net = context.FloatNetwork(base, slots)
    model = context.fit(net, base, [pair() for _ in range(80)], held, plan, context.coarser)
    assert overflow(model) is None
    # Right three times of four, and once in twelve of the rest: 1.57 bits; 3.5 without the reference.
    bits = context.coded_bits(model, held)
    assert 1.5 < bits < 2.1
    again = unpack_pair_tables(pack_pair_tables(PairTables(bytes(32), bytes(32), 1, model))).model
    assert context.coded_bits(again, held) == bits
