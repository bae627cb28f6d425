"""All backends and instruction sets give the same digits, for every layout and odd input."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from fsq_helpers import (
    BACKENDS,
    DTYPES,
    FAST_BACKENDS,
    FORMS,
    GOLDEN,
    ISAS,
    LEVEL_LISTS,
    golden_latents,
    instruction_set,
    random_latents,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.fsq import FSQ, backends, ops, reference
from tmcodec.fsq import levels as lv
from tmcodec.fsq.grid import make_grid


def assert_same(levels, form, z, backend):
    codes, indices = ops.quantize(z, levels, form, backend=backend)
    expected_codes, expected = ops.quantize(z, levels, form, backend="torch")
    assert torch.equal(indices, expected)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(ops.quantize_indices(z, levels, form, backend=backend), expected)
    assert torch.equal(ops.dequantize(expected, levels, form, backend=backend), expected_codes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['form']}-{'x'.join(map(str, c['levels']))}")
def test_golden_vectors(case, backend):
    fsq = FSQ(case["levels"], case["form"], backend=backend)
    z = golden_latents(case)
    assert fsq.digits(z).tolist() == case["digits"]
    assert fsq.latents_to_indices(z).tolist() == case["indices"]
    assert fsq(z)[1].tolist() == case["indices"]
    codes = fsq(z)[0]
    assert torch.equal(
        codes, reference.digits_to_codes(torch.tensor(case["digits"]), make_grid(fsq.levels, fsq.form))
    )
    assert fsq.codes_to_indices(codes).tolist() == case["indices"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['form']}-{'x'.join(map(str, c['levels']))}")
def test_golden_vectors_on_every_instruction_set(case, isa):
    with instruction_set(isa):
        assert (
            FSQ(case["levels"], case["form"], backend="native")(golden_latents(case))[1].tolist()
            == case["indices"]
        )


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", LEVEL_LISTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree_on_random_latents(dtype, levels, form, backend):
    assert_same(levels, form, random_latents(100_000 // len(levels), levels, form, dtype, 5), backend)


MANY_LISTS = [
    ((8, 8, 8, 6, 5), "sigmoid"),
    ((7, 5, 5, 5, 5), "sigmoid"),
    ((5, 5, 5), "sigmoid"),
    ((16, 16, 16), "sigmoid"),
    ((3, 2), "sigmoid"),
    ((8, 6, 4), "tanh"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "form"), MANY_LISTS)
def test_backends_agree_on_ten_million_latents(levels, form):
    """10^7 vectors of each data type, a million at a time.

    torch, the slowest by far, sees all in float32 and a hundredth in the other types; there the others
    are compared with their own digits of the same values in float32.
    """
    names = [name for name in backends.NAMES if name != "torch" and not backends.unavailable(name)]
    if not names:
        pytest.skip("torch is the only backend here")
    different = {(name, dtype): 0 for name in names for dtype in DTYPES}
    for part in range(10):
        base = random_latents(1_000_000, levels, form, torch.float32, part)
        for dtype in DTYPES:
            z = base.to(dtype)
            pivot = "torch" if dtype == torch.float32 else names[0]
            expected = ops.quantize_indices(z.float(), levels, form, backend=pivot)
            for name in names:
                found = ops.quantize_indices(z, levels, form, backend=name)
                different[name, dtype] += int((found != expected).sum())
                assert_same(levels, form, z[part::100], name)
    assert different == dict.fromkeys(different, 0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_agree(dtype, isa):
    for levels in LEVEL_LISTS:
        with instruction_set(isa):
            assert_same(levels, "sigmoid", random_latents(5_003, levels, "sigmoid", dtype, 7), "native")


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@given(
    levels=st.lists(st.integers(2, 90), min_size=1, max_size=4),
    shape=st.lists(st.integers(0, 7), max_size=4),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_levels_shape_and_axis(backend, levels, shape, form, seed, data):
    axis = data.draw(st.integers(0, len(shape)))
    full = (*shape[:axis], len(levels), *shape[axis:])
    z = torch.randn(full, generator=torch.Generator().manual_seed(seed)) * 3
    codes, indices = ops.quantize(z, levels, form, axis, backend)
    last = ops.quantize(z.movedim(axis, -1).contiguous(), levels, form, -1, "torch")
    assert indices.shape == torch.Size(shape)
    assert indices.dtype == torch.int32
    assert torch.equal(indices, last[1])
    assert torch.equal(codes, last[0].movedim(-1, axis))
    assert torch.equal(ops.dequantize(indices, levels, form, axis, backend), codes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axis", [1, -1])
def test_strides_do_not_matter(backend, axis):
    levels = (8, 6, 5)
    base = torch.randn(4, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    views = [
        base,
        base.contiguous(memory_format=torch.channels_last),
        base[:, :, ::2, 1:7],
        base.flip(0).transpose(2, 3),
    ]
    for view in views:
        z = view if axis == 1 else view.permute(0, 2, 3, 1)
        expected = ops.quantize(
            z.clone(memory_format=torch.contiguous_format), levels, axis=axis, backend="torch"
        )
        found = ops.quantize(z, levels, axis=axis, backend=backend)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (5,), (1, 5)])
def test_empty_and_single(backend, shape):
    codes, indices = ops.quantize(torch.zeros(shape), (8, 8, 8, 6, 5), backend=backend)
    assert codes.shape == shape
    assert indices.shape == shape[:-1]
    assert ops.dequantize(indices, (8, 8, 8, 6, 5), backend=backend).shape == shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_nan_is_digit_zero_and_infinity_an_end(form, dtype, backend):
    z = torch.tensor([[float("nan"), float("inf")], [float("-inf"), float("nan")]], dtype=dtype)
    codes, indices = ops.quantize(z, (8, 5), form, backend=backend)
    assert indices.tolist() == [0 + 8 * 4, 0]
    low = 0.0 if form == "sigmoid" else -1.0
    assert codes.tolist() == [[low, 1.0], [low, low]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_is_rounded_to_float32_first(backend):
    edge = float(lv.thresholds(8)[4])  # the rule is z > edge
    z = torch.tensor([[edge], [edge * (1 + 1e-12)], [edge * (1 + 1e-6)]], dtype=torch.float64)
    assert ops.quantize_indices(z, (8,), backend=backend).tolist() == [4, 4, 5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_indices_outside_the_codebook_wrap(backend):
    levels = (8, 8, 8, 6, 5)
    indices = torch.tensor([-1, -15361, 15360, 2**31 - 1, -(2**31)], dtype=torch.int32)
    expected = lv.indices_to_digits(indices.numpy(), levels) / (np.array(levels) - 1)
    np.testing.assert_array_equal(
        ops.dequantize(indices, levels, backend=backend), expected.astype(np.float32)
    )


@pytest.mark.parametrize("isa", ISAS)
def test_flushing_subnormals_does_not_move_the_tie(isa):
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush subnormals")
    try:
        with instruction_set(isa):
            z = torch.zeros(100, 5)
            assert ops.quantize_indices(z, (8, 8, 8, 6, 5), backend="native").unique().tolist() == [7460]
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_threads_do_not_matter(backend, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same(
            (8, 8, 8, 6, 5),
            "sigmoid",
            random_latents(60_001, (8, 8, 8, 6, 5), "sigmoid", torch.float32, 9),
            backend,
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numpy_without_torch_gives_the_same(backend):
    if backend != "native":
        pytest.skip("native only")
    from tmcodec.fsq import native

    z = random_latents(1000, (8, 6, 5), "tanh", torch.float32, 1)
    found = native.quantize_array(z.numpy(), make_grid((8, 6, 5), "tanh"))
    assert torch.equal(torch.from_numpy(found), ops.quantize_indices(z, (8, 6, 5), "tanh", backend="torch"))


# --------------------------------------------------------------------------- arguments


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="4 channels"):
        ops.quantize(torch.zeros(3, 4), (8, 6, 5))
    with pytest.raises(ValueError, match="axis"):
        ops.quantize(torch.zeros(3, 3), (8, 6, 5), axis=2)
    with pytest.raises(TypeError, match="int64"):
        ops.quantize(torch.zeros(3, 3, dtype=torch.int64), (8, 6, 5))
    with pytest.raises(TypeError, match="float32"):
        ops.dequantize(torch.zeros(3), (8, 6, 5))


def test_backend_by_argument_and_variable(monkeypatch):
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    assert backends.choose("cpu", "torch").name == "torch"
    assert backends.choose("cpu").name == next(n for n in backends.NAMES if backends.unavailable(n) is None)
    monkeypatch.setenv(backends.VARIABLE, "torch")
    assert backends.choose("cpu").name == "torch"
    assert backends.choose("meta").name == "torch"
    assert backends.describe()["kernels on the CPU"] == "torch; TMCODEC_BACKEND=torch"
    with pytest.raises(backends.BackendError, match="unknown backend 'cuda'"):
        backends.choose("cpu", "cuda")
    with pytest.raises(backends.BackendError, match="numba kernels are for the CPU"):
        backends.choose("cuda", "numba")
    monkeypatch.setenv(backends.VARIABLE, "fast")
    with pytest.raises(backends.BackendError, match="unknown backend 'fast'"):
        backends.choose("cpu")
    assert "fast is unknown" in backends.describe()["kernels on the CPU"]


def test_without_library_and_numba_torch_does_the_work():
    code = """
import sys
sys.modules["numba"] = None
from tmcodec.fsq import native, backends
native.FOLDER = native.FOLDER / "missing"
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "numba" else find(name, *a)
print(backends.describe()["kernels on the CPU"])
import torch
from tmcodec.fsq import FSQ
print(FSQ((8, 8, 8, 6, 5)).latents_to_indices(torch.zeros(1, 5)).tolist())
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert out[0].startswith("torch; native: libtmcodec_cpu")
    assert out[0].endswith("was not built; numba: numba is not installed")
    assert out[1] == "[7460]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_forked_child_keeps_to_one_thread_and_ends():
    code = """
import os, signal
import torch
from tmcodec.fsq import FSQ
torch.set_num_threads(2)
def work():
    x = torch.linspace(-1, 1, 900 * 500).view(900, 500)
    return FSQ((8, 5)).latents_to_indices((x @ x.T)[:, :2].relu()).tolist()
expected = work()
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends it where it waits for threads that are not there
    os._exit(0 if work() == expected and torch.get_num_threads() == 1 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["0", "2"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_a_child_of_an_idle_parent_may_give_torch_its_threads_back():
    code = """
import os, signal
import torch
import tmcodec.fsq.native
torch.set_num_threads(2)
child = os.fork()
if child == 0:
    signal.alarm(20)
    limited = torch.get_num_threads()
    torch.set_num_threads(2)
    x = torch.linspace(-1, 1, 900 * 500).view(900, 500)
    done = (x @ x.T).relu().isfinite().all()
    os._exit(0 if done and (limited, torch.get_num_threads()) == (1, 2) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["0"]


def test_describing_needs_no_torch():
    code = "import sys; from tmcodec.fsq import describe; describe(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
