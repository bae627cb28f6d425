"""The CUDA kernels' logic on the host: digits, codes, gradients as of the CPU kernels, in bounds, aligned.

See ``cuda_emulation/cuda_runtime.h``. Every case runs with the threads of a block in several orders and with
few blocks, so that loops over the grid go round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import emulate_cuda
import numpy as np
import pytest
import torch
from fsq_helpers import DTYPES, FORMS, GOLDEN, LEVEL_LISTS, golden_latents, random_latents
from torch import Tensor

from tmcodec.fsq import backends, blend_weights, native
from tmcodec.fsq import levels as lv
from tmcodec.fsq.backends import Layer, Scale, Tiling, Weights, choose, unavailable
from tmcodec.fsq.grid import make_grid
from tmcodec.fsq.rasters import RASTER_DTYPES, TILE_DTYPES

pytestmark = pytest.mark.skipif(
    bool(unavailable("native", "cpu")) or native.sys.platform != "linux", reason="needs a compiler, on Linux"
)
LEVELS = (8, 8, 8, 6, 5)
ORDERS = (0, 1, 2)
SIZES = (1, 3, 1021, 9000)
GUARD = 64
PATTERN = 0xA5


class Emulated(native.NativeKernels):
    """The binding of the CUDA library, with tensors of the CPU."""

    def __init__(self, library: native.Library) -> None:
        self._library, self._cuda = library, True

    def _call(self, function: Any, tensor: Tensor, *arguments: Any) -> None:
        native._check(function(*arguments, None), self._library)


class Guards:
    """Tensors between guards: what lies beside them must stay, and is no number."""

    def __init__(self, offset: int) -> None:
        self.offset = offset  # of the first byte from a multiple of 64; 0: of one element
        self.buffers: list[tuple[np.ndarray, int, int]] = []

    def empty(self, shape: Any, dtype: torch.dtype, device: Any = None) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        buffer = np.full(size + 3 * GUARD, PATTERN, np.uint8)
        start = GUARD + -(buffer.ctypes.data + GUARD) % 64 + (self.offset or dtype.itemsize)
        self.buffers.append((buffer, start, start + size))
        return torch.from_numpy(buffer)[start : start + size].view(dtype).view(shape)

    def copy(self, tensor: Tensor) -> Tensor:
        return self.empty(tensor.shape, tensor.dtype).copy_(tensor)

    def intact(self) -> bool:
        return all(
            bool((b[:start] == PATTERN).all() and (b[stop:] == PATTERN).all())
            for b, start, stop in self.buffers
        )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> native.Library:
    folder: Path = tmp_path_factory.mktemp("emulated")
    try:
        emulate_cuda.build(folder)
    except emulate_cuda.build_native.BuildError as error:
        if "cannot find" in str(error) or "no C++ compiler" in str(error):
            pytest.skip(str(error))
        raise
    before, native.FOLDER = native.FOLDER, folder
    try:
        return native.Library("cuda")
    finally:
        native.FOLDER = before


@pytest.fixture(params=[16, 0], ids=["aligned", "unaligned"])
def guards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Iterator[Guards]:
    """Outputs between guards, at addresses that are multiples of 16 and not of 32, or of one element only."""
    found = Guards(request.param)
    monkeypatch.setattr(native, "_empty", found.empty)
    yield found
    assert found.buffers and found.intact()
    assert "runtime error" not in capfd.readouterr().err  # the sanitizer's words


@pytest.fixture
def cuda(library: native.Library) -> Emulated:
    return Emulated(library)


@pytest.fixture(scope="module")
def cpu() -> Any:
    return choose("cpu", "native")


def each_order(kernels: Emulated, processors: int = 1) -> Iterator[int]:
    for order in ORDERS:
        kernels._library._dll.emulate(order, processors)
        yield order


def same(found: Tensor | None, expected: Tensor | None) -> bool:
    """Bit for bit, but any NaN is like any other."""
    assert found is not None and expected is not None
    return bool(((found == expected) | (found.isnan() & expected.isnan())).all())


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['form']}-{'x'.join(map(str, c['levels']))}")
def test_golden_vectors(case: Any, cuda: Emulated, guards: Guards) -> None:
    grid = make_grid(case["levels"], case["form"])
    if not cuda.supports(grid):
        assert grid.thresholds.size > native.CUDA_MAX_THRESHOLDS
        guards.empty((1,), torch.float32)
        return
    z = guards.copy(golden_latents(case)[..., None])
    for _ in each_order(cuda):
        codes, indices = cuda.quantize(grid, z)
        assert indices is not None and indices[:, 0].tolist() == case["indices"]
        assert same(cuda.dequantize(grid, indices), codes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", LEVEL_LISTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize(
    levels: tuple[int, ...], dtype: torch.dtype, form: str, cuda: Emulated, cpu: Any, guards: Guards
) -> None:
    grid = make_grid(levels, form)
    for n, order in zip(SIZES, (0, *each_order(cuda)), strict=True):
        z = random_latents(max(n, 10), levels, form, dtype, n)[:n, :, None].contiguous()
        z[-1] = float("nan")
        codes, indices = cpu.quantize(grid, z)
        found, numbers = cuda.quantize(grid, guards.copy(z))
        assert same(found, codes) and same(numbers, indices), order
        assert same(cuda.quantize(grid, guards.copy(z), codes=False)[1], indices)
        assert same(cuda.quantize(grid, guards.copy(z), indices=False)[0], codes)
        assert same(cuda.dequantize(grid, guards.copy(indices)), codes)


@pytest.mark.parametrize("inner", [2, 3, 4, 196])
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_first(inner: int, dtype: torch.dtype, cuda: Emulated, cpu: Any, guards: Guards) -> None:
    grid = make_grid(LEVELS)
    z = (
        random_latents(37 * inner, LEVELS, "sigmoid", dtype, 2)
        .view(37, inner, 5)
        .transpose(1, 2)
        .contiguous()
    )
    codes, indices = cpu.quantize(grid, z)
    for _ in each_order(cuda):
        found, numbers = cuda.quantize(grid, guards.copy(z))
        assert same(found, codes) and same(numbers, indices)
        assert same(cuda.dequantize(grid, guards.copy(indices)), codes)


def test_indices_outside_the_codebook_wrap(cuda: Emulated, cpu: Any, guards: Guards) -> None:
    grid = make_grid((3, 5, 7))
    indices = torch.tensor([-1, 105, 2**31 - 1, -(2**31), -106, 0], dtype=torch.int32)[:, None]
    digits = np.array(
        [[i // b % level for b, level in ((1, 3), (3, 5), (15, 7))] for i in indices[:, 0].tolist()]
    )
    expected = torch.from_numpy(((digits - grid.code_shift) / grid.code_span).astype(np.float32))
    assert same(cpu.dequantize(grid, indices)[..., 0], expected)
    for _ in each_order(cuda):
        assert same(cuda.dequantize(grid, guards.copy(indices))[..., 0], expected)
        assert same(
            cuda.dequantize(grid, guards.copy(indices.view(3, 2))), cpu.dequantize(grid, indices.view(3, 2))
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype: torch.dtype, form: str, cuda: Emulated, cpu: Any, guards: Guards) -> None:
    grid = make_grid(LEVELS, form)
    for shape in ((1101, 5, 1), (1104, 5, 1), (64, 5, 12), (8, 5, 3), (7, 5, 3)):
        z = random_latents(math.prod(shape) // 5, LEVELS, form, dtype, 3)
        z[-1, -1], z[0, 0], z[0, 1] = float("nan"), float("inf"), -float("inf")
        z, g = z.view(shape), torch.randn(shape)
        expected = cpu.backward(grid, z, g)
        for _ in each_order(cuda):
            found = cuda.backward(grid, guards.copy(z), guards.copy(g))
            torch.testing.assert_close(
                found, expected, atol=1e-6, rtol=8e-3 if dtype.itemsize == 2 else 1e-5, equal_nan=True
            )


@pytest.mark.parametrize("dim", [0, 1, 17, 64, 768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("levels", [LEVELS, (7,), (2,) * 17])
def test_project_quantize(
    levels: tuple[int, ...], dtype: torch.dtype, dim: int, cuda: Emulated, cpu: Any, guards: Guards
) -> None:
    generator, d, grid = torch.Generator().manual_seed(dim), len(levels), make_grid(levels)
    n = 7 if d > 8 else 67
    x = torch.randn(n, dim, generator=generator).to(dtype)
    weight, bias = torch.randn(d, dim, generator=generator) / max(dim, 1) ** 0.5, torch.randn(d)
    exact = x.double() @ weight.double().t() + bias.double()
    for _ in each_order(cuda):
        layer = Layer(guards.copy(weight), guards.copy(bias))
        latents, codes, indices = cuda.project_quantize(grid, guards.copy(x), layer, True, True)
        torch.testing.assert_close(latents.double(), exact, atol=2e-6, rtol=2e-6)
        expected = cpu.quantize(grid, latents[..., None].contiguous())
        assert same(codes, expected[0][..., 0]) and same(indices, expected[1][:, 0])


def test_projecting_goes_round(cuda: Emulated, guards: Guards) -> None:
    grid, x = make_grid((8, 5)), torch.randn(1100, 8)
    layer = Layer(torch.randn(2, 8), None)
    cuda._library._dll.emulate(2, 1)
    latents, _, indices = cuda.project_quantize(grid, guards.copy(x), layer, True, False)
    torch.testing.assert_close(latents, x @ layer.weight.t(), atol=1e-5, rtol=1e-5)
    clear = (latents[:, 0, None] - torch.from_numpy(lv.thresholds(8))).abs().min(1).values > 1e-5
    digit = (latents[:, 0, None] > torch.from_numpy(lv.thresholds(8))).sum(1)
    assert torch.equal(indices[clear] % 8, digit[clear].int())


@pytest.mark.parametrize("dim", [1, 17, 64, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_project(dim: int, dtype: torch.dtype, cuda: Emulated, cpu: Any, guards: Guards) -> None:
    grid = make_grid(LEVELS)
    indices = torch.randint(0, 15360, (1301,), dtype=torch.int32)
    for bias in (None, torch.randn(dim)):
        weight = torch.randn(dim, 5)
        expected = cpu.dequantize_project(grid, indices, Layer(weight, bias), dtype)
        for _ in each_order(cuda):
            layer = Layer(guards.copy(weight), None if bias is None else guards.copy(bias))
            assert same(cuda.dequantize_project(grid, guards.copy(indices), layer, dtype), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shifted", ["x", "weight", "bias", "out"])
def test_each_tensor_may_be_a_slice(
    shifted: str, dtype: torch.dtype, cuda: Emulated, cpu: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """One that starts at no multiple of 16 bytes, beside others that do: none is read or written wide."""
    places = {name: Guards(0 if name == shifted else 16) for name in ("x", "weight", "bias", "out")}
    monkeypatch.setattr(native, "_empty", places["out"].empty)
    grid, indices = make_grid(LEVELS), torch.randint(0, 15360, (67,), dtype=torch.int32)
    weight, bias, x = torch.randn(5, 64), torch.randn(64), torch.randn(67, 64).to(dtype)
    rows = places["weight"].copy(weight)  # its transpose's transpose is this again, not a copy
    layer = Layer(rows.t(), places["bias"].copy(bias))
    found = cuda.dequantize_project(grid, places["x"].copy(indices), layer, dtype)
    assert same(found, cpu.dequantize_project(grid, indices, Layer(weight.t(), bias), dtype))
    layer = Layer(rows, places["bias"].copy(bias[:5]))
    latents, codes, numbers = cuda.project_quantize(grid, places["x"].copy(x), layer, True, True)
    torch.testing.assert_close(latents, x.float() @ weight.t() + bias[:5], atol=1e-4, rtol=1e-4)
    expected = cpu.quantize(grid, latents[..., None].contiguous())
    assert same(codes, expected[0][..., 0]) and same(numbers, expected[1][:, 0])
    assert all(place.intact() for place in places.values())
    assert "runtime error" not in capfd.readouterr().err


@pytest.mark.parametrize("tile_dtype", TILE_DTYPES)
@pytest.mark.parametrize("dtype", RASTER_DTYPES)
def test_rasters(
    dtype: torch.dtype, tile_dtype: torch.dtype, cuda: Emulated, cpu: Any, guards: Guards
) -> None:
    low, high = (-300, 300) if dtype == torch.int16 else (0, 255)
    raster = (torch.rand(3, 70, 131) * (high - low) + low).to(dtype)
    if dtype == torch.float32:
        raster[0, 5, 7], raster[1, 6, 8] = float("nan"), float("inf")
    tiling = Tiling(37, torch.tensor([0, 30, 60]), torch.tensor([-3, 31, 60, 94]))
    scale = Scale(
        torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 4.0, 5.0]), (torch.rand(70, 131) > 0.1).byte(), 9.0
    )
    weights = Weights(
        blend_weights(tiling.row_starts.tolist(), 37), blend_weights(tiling.col_starts.tolist(), 37)
    )
    guarded = Scale(guards.copy(scale.mean), guards.copy(scale.std), guards.copy(scale.mask), 9.0)
    tiles = cpu.normalize_patchify(raster, scale, tiling, tile_dtype)
    expected = cpu.blend(tiles, tiling, weights, scale, (70, 131), dtype)
    for _ in each_order(cuda):
        assert same(cuda.normalize_patchify(guards.copy(raster), guarded, tiling, tile_dtype), tiles)
        again = Weights(guards.copy(weights.rows), guards.copy(weights.cols))
        assert same(cuda.blend(guards.copy(tiles), tiling, again, guarded, (70, 131), dtype), expected)


@pytest.fixture
def foreign(library: native.Library) -> Iterator[native.Library]:
    """The library on a device that it was not compiled for."""
    library._dll.emulate_foreign_device(1)
    yield library
    library._dll.emulate_foreign_device(0)


def test_a_failed_call_says_what_cuda_says(foreign: native.Library) -> None:
    with pytest.raises(RuntimeError, match="native kernel: a CUDA call failed: invalid device function"):
        Emulated(foreign).dequantize(make_grid(LEVELS), torch.zeros(3, 1, dtype=torch.int32))
    assert foreign.last_error() == "invalid device function"


def test_kernels_that_cannot_run_are_not_chosen(
    foreign: native.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    load = native.load
    monkeypatch.setattr(native, "load", lambda kind: foreign if kind == "cuda" else load(kind))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    backends.unavailable.cache_clear()
    try:
        assert backends.choose("cuda").name == backends.choose("cuda:1").name == "torch"
        reason = "libtmcodec_cuda.so: invalid device function"
        assert backends.describe(try_cuda=True)["kernels on CUDA"].startswith(f"torch; native: {reason}")
        assert backends.describe()["kernels on CUDA"] == "native (libtmcodec_cuda.so, not tried)"
        with pytest.raises(backends.BackendError, match=reason):
            backends.choose("cuda:0", "native")
        foreign._dll.emulate_foreign_device(0)
        assert foreign.why_not() is None
        backends.unavailable.cache_clear()
        assert backends.unavailable("native", "cuda") is None
    finally:
        backends.unavailable.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_where_torch_finds_no_gpu_the_library_is_not_asked(
    library: native.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "load", lambda kind: library)
    assert backends.unavailable.__wrapped__("native", "cuda") == "torch finds no CUDA device"


def test_bad_arguments_are_refused(library: native.Library) -> None:
    grid = native._pointer_to(make_grid(LEVELS))
    assert library.fsq_quantize(grid, None, 0, -1, 1, None, None, None) == -1
    assert library.fsq_quantize(grid, None, 0, 2**40, 2**40, None, None, None) == -1
    assert library.fsq_quantize(grid, None, 4, 1, 1, None, None, None) == -2
    assert library.fsq_quantize(grid, None, 0, 0, 1, None, None, None) == 0
    assert library.fsq_quantize(native._pointer_to(make_grid((5000,))), None, 0, 1, 1, None, None, None) == -1
    assert library.fsq_project_quantize(grid, None, 1, 1, 1, None, None, None, None, None, None) == -2
