"""Thresholds, ties and level lists: the definition itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from fsq_helpers import FORMS, LEVEL_LISTS, random_latents
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.fsq import FSQ
from tmcodec.fsq import levels as lv
from tmcodec.fsq.grid import make_grid

_spec = importlib.util.spec_from_file_location(
    "make_fsq_v1", Path(__file__).with_name("golden") / "make_fsq_v1.py"
)
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)


def test_terraminds_edges_are_those_of_its_reference():
    # terramind.md: L=8: 0, ±.588, ±1.299, ±2.565; L=6: 0, ±.847, ±2.197; L=5: ±.511, ±1.946.
    for level, edges in {8: [0.588, 1.299, 2.565], 6: [0.847, 2.197], 5: [0.511, 1.946]}.items():
        middle = [0.0] if level % 2 == 0 else []
        expected = [-e for e in reversed(edges)] + middle + edges
        np.testing.assert_allclose(lv.thresholds(level), expected, atol=5e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", [*range(2, 33), 100, 255])
def test_thresholds_are_those_of_decimal_arithmetic_to_the_last_bit(level, form):
    expected = np.array(golden.decimal_thresholds(level, form), np.float32)
    np.testing.assert_array_equal(lv.thresholds(level, form).view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", [2, 3, 8, 255, 4096, lv.MAX_LEVEL])
def test_thresholds_ascend(level, form):
    assert (np.diff(lv.thresholds(level, form)) > 0).all()


def test_ties_at_zero_go_to_the_even_digit():
    zero = torch.zeros(1, 1)
    assert int(FSQ((8,)).latents_to_indices(zero)) == 4  # 3.5
    assert int(FSQ((6,)).latents_to_indices(zero)) == 2  # 2.5
    assert int(FSQ((8,)).latents_to_indices(-zero)) == 4
    assert int(FSQ((4,)).latents_to_indices(zero)) == 2  # 1.5
    assert int(FSQ((2,)).latents_to_indices(zero)) == 0  # 0.5


@pytest.mark.parametrize("levels", LEVEL_LISTS)
def test_sigmoid_agrees_with_the_formula_except_within_one_ulp_of_an_edge(levels):
    z = random_latents(20_000, levels, "sigmoid", torch.float32, 1)
    spans = torch.tensor(levels, dtype=torch.float64) - 1
    formula = (z.double().sigmoid() * spans).round().long()
    _assert_equal_but_at_edges(z, FSQ(levels).digits(z), formula, levels, "sigmoid")


@pytest.mark.parametrize("levels", LEVEL_LISTS)
def test_tanh_agrees_with_the_formula_except_within_one_ulp_of_an_edge(levels):
    z = random_latents(20_000, levels, "tanh", torch.float32, 2)
    level = torch.tensor(levels, dtype=torch.float64)
    half = (level - 1) * 1.001 / 2
    offset = torch.where(level % 2 == 0, 0.5, 0.0).double()
    bounded = (z.double() + (offset / half).atanh()).tanh() * half - offset
    formula = bounded.round().long() + (level // 2).long()
    _assert_equal_but_at_edges(z, FSQ(levels, "tanh").digits(z), formula, levels, "tanh")


def _assert_equal_but_at_edges(z, digits, formula, levels, form):
    assert int((digits - formula).abs().max()) <= 1
    for c, level in enumerate(levels):
        edges = np.array([float(golden.edge(level, k, form)[0]) for k in range(level - 1)])
        values = z[digits[:, c] != formula[:, c], c].numpy()
        distance = np.abs(values.astype(np.float64)[:, None] - edges).min(1, initial=np.inf)
        # Within 2^-50 of z = 0 float64 cannot tell sigmoid(z) from 1/2: there the rule is the finer one.
        assert (distance <= np.maximum(np.spacing(np.abs(values)), 2.0**-50)).all()


def test_far_from_the_edges_nothing_differs():
    z = torch.linspace(-4, 4, 4001)[:, None]
    edges = torch.from_numpy(lv.thresholds(8))
    clear = ((z - edges).abs() > 1e-5).all(1)
    formula = (z.double().sigmoid() * 7).round().long()
    assert torch.equal(FSQ((8,)).digits(z)[clear], formula[clear])
    assert int(clear.sum()) > 3900


@pytest.mark.parametrize("levels", [(5,), (7,), (8,), (8, 6, 5), (4, 4, 4, 4)])
def test_tanh_is_vector_quantize_pytorchs(levels):
    vq = pytest.importorskip("vector_quantize_pytorch")
    z = torch.randn(1, 5000, len(levels), generator=torch.Generator().manual_seed(3)) * 2
    codes, indices = vq.FSQ(list(levels))(z)
    ours = FSQ(levels, "tanh")
    assert float((ours.latents_to_indices(z) != indices).float().mean()) < 1e-3  # float32 tanh at the edges
    same = (ours.quantize(z) - codes).abs().amax(-1) < 1e-6
    assert float(same.float().mean()) > 0.999
    torch.testing.assert_close(ours.indices_to_codes(indices), vq.FSQ(list(levels)).indices_to_codes(indices))


@pytest.mark.parametrize("form", FORMS)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_indices_and_codes_are_inverse(form, levels):
    size = lv.codebook_size(levels)
    indices = torch.arange(0, size, max(size // 500, 1), dtype=torch.int32)
    fsq = FSQ(levels, form)
    codes = fsq.indices_to_codes(indices)
    assert torch.equal(fsq.codes_to_indices(codes), indices)
    assert torch.equal(fsq.codes_to_indices(codes.bfloat16()), indices)
    low = 0.0 if form == "sigmoid" else -1.0
    assert float(codes.min()) >= low
    assert float(codes.max()) <= 1.0


def test_first_and_last_index_are_terraminds():
    fsq = FSQ((8, 8, 8, 6, 5))
    assert fsq.indices_to_codes(torch.tensor([0])).tolist() == [[0.0] * 5]
    assert fsq.indices_to_codes(torch.tensor([15359])).tolist() == [[1.0] * 5]
    assert fsq.codebook_size == 15360
    assert fsq.state_dict() == {}


@pytest.mark.parametrize(
    ("levels", "form"),
    [((), "sigmoid"), ((1, 4), "sigmoid"), ((8, 65537), "sigmoid"), ((2,) * 31, "sigmoid"), ((8,), "relu")],
)
def test_levels_that_do_not_fit_are_refused(levels, form):
    with pytest.raises(ValueError, match=r"levels|form"):
        FSQ(levels, form)


def test_the_largest_codebook_packs():
    levels = (2,) * 30
    z = torch.full((1, 30), 9.0)
    assert int(FSQ(levels).latents_to_indices(z)) == 2**30 - 1
    assert make_grid(levels).dims == 30
