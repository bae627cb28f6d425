"""The compiled kernels of ``csrc/``: loading with ctypes, and wrappers over tensors.

The libraries know no torch: they get pointers, sizes and, on CUDA, a stream. Their interface,
with all layouts and rules, is ``csrc/tmcodec.h``.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tmcodec.fsq.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from tmcodec.fsq.backends import Layer, Scale, Tiling, Weights
    from tmcodec.fsq.curves import Curve

ABI_VERSION = 3
FOLDER = Path(__file__).with_name("_native")

DTYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3, "uint8": 4, "uint16": 5, "int16": 6}
"""Codes of the data types that kernels take, by the names that NumPy and torch share."""

CUDA_MAX_THRESHOLDS = 640

_ERRORS = {
    -1: "a size or a level is out of its range",
    -2: "data type not supported",
    -3: "out of memory",
    -4: "a CUDA call failed",
}
_CUDA_ERROR = -4


class NativeUnavailable(Exception):
    """A library cannot be used; the message says why."""


class _CGrid(ctypes.Structure):
    _fields_ = (
        ("dims", ctypes.c_int32),
        ("grad_rate", ctypes.c_float),
        ("levels", ctypes.c_void_p),
        ("thresholds", ctypes.c_void_p),
        ("code_shift", ctypes.c_void_p),
        ("code_span", ctypes.c_void_p),
        ("grad_shift", ctypes.c_void_p),
        ("grad_gain", ctypes.c_void_p),
    )


class _CCurve(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("origin", ctypes.c_float),
        ("knee", ctypes.c_float),
        ("root", ctypes.c_float),
    )


def _pointer_to(grid: Grid) -> Any:
    """Return the grid as the C interface takes it; `grid` must outlive the call."""
    known = _grids.get(grid)
    if known is None:
        names = ("level_array", "thresholds", "code_shift", "code_span", "grad_shift", "grad_gain")
        struct = _CGrid(grid.dims, grid.grad_rate, *(_at(getattr(grid, name)) for name in names))
        known = _grids[grid] = ctypes.byref(struct)
    return known


_grids: weakref.WeakKeyDictionary[Grid, Any] = weakref.WeakKeyDictionary()

_PTR, _I32, _I64, _F32 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_TILES = (_I64, _PTR, _I64, _PTR, _I64)  # tile, row_starts, rows, col_starts, cols

# Arguments of each function; the last, threads on the CPU and the stream on CUDA, is added below.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "fsq_quantize": (_PTR, _PTR, _I32, _I64, _I64, _PTR, _PTR),
    "fsq_dequantize": (_PTR, _PTR, _I64, _I64, _PTR),
    "fsq_backward": (_PTR, _PTR, _I32, _PTR, _I64, _I64, _PTR),
    "fsq_project_quantize": (_PTR, _PTR, _I32, _I64, _I64, _PTR, _PTR, _PTR, _PTR, _PTR),
    "fsq_dequantize_project": (_PTR, _PTR, _I64, _I64, _PTR, _PTR, _PTR, _I32),
    "normalize_patchify": (_PTR, _I32, _I64, _I64, _I64, _PTR, _PTR, _PTR, _F32, *_TILES, _PTR, _I32),
    "blend": (_PTR, _I32, _I64, *_TILES, _PTR, _PTR, _PTR, _PTR, _PTR, _F32, _I64, _I64, _PTR, _I32),
}
_CPU_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "compand_cells": (_PTR, _I64, _I64, _I64, _I64, _PTR, _PTR, _PTR, _I64, _PTR),
    "expand_double": (_PTR, _I64, _I64, _I64, _I64, _PTR, _PTR, _PTR, _F32, _F32, _PTR),
}


class Library:
    """One loaded library.

    Parameters
    ----------
    kind
        ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    NativeUnavailable
        If the file is missing, cannot be loaded, or has another interface version.
    """

    def __init__(self, kind: str) -> None:
        suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
        self.path = FOLDER / f"libtmcodec_{kind}{suffix}"
        self.kind = kind
        if not self.path.exists():
            raise NativeUnavailable(f"{self.path.name} was not built")
        try:
            self._dll = ctypes.CDLL(str(self.path))
            version = getattr(self._dll, self._symbol("abi_version"))()
        except (OSError, AttributeError) as error:
            raise NativeUnavailable(f"{self.path.name} cannot be loaded ({error})") from error
        if version != ABI_VERSION:
            raise NativeUnavailable(f"{self.path.name} has interface version {version}, not {ABI_VERSION}")
        last, own = (_I32, _CPU_SIGNATURES) if kind == "cpu" else (_PTR, {})
        for name, arguments in {**_SIGNATURES, **own}.items():
            function = getattr(self._dll, self._symbol(name))
            function.argtypes, function.restype = (*arguments, last), _I32
            setattr(self, name, function)

    def _symbol(self, name: str) -> str:
        return f"tmc_{name}" if self.kind == "cpu" else f"tmc_cuda_{name}"

    def __getattr__(self, name: str) -> Any:  # the functions set above
        raise AttributeError(name)

    @property
    def isa(self) -> str:
        """Instruction set in use: ``avx512``, ``avx2`` or ``baseline``."""
        self._dll.tmc_isa.restype = ctypes.c_char_p
        return str(self._dll.tmc_isa().decode())

    @isa.setter
    def isa(self, name: str) -> None:
        if self._dll.tmc_set_isa(name.encode()) != 0:
            raise ValueError(f"this machine has no {name!r}")

    @property
    def openmp(self) -> bool:
        """Whether the library uses several threads."""
        return bool(self._dll.tmc_has_openmp())

    def why_not(self) -> str | None:
        """Return why the CUDA kernels cannot run on the current device, or None. Initialises CUDA."""
        return self._text("why_not")

    def last_error(self) -> str | None:
        """Return the CUDA error of this thread's last call that failed."""
        return self._text("last_error")

    def _text(self, name: str) -> str | None:
        function = getattr(self._dll, self._symbol(name))
        function.restype = ctypes.c_char_p
        text = function()
        return None if text is None else str(text.decode())


@lru_cache(maxsize=2)
def load(kind: str) -> Library:
    """Load the ``cpu`` or ``cuda`` library once; `NativeUnavailable` says why not."""
    return Library(kind)


def try_cuda(device: str) -> None:
    """Make sure that the CUDA kernels run on a device, e.g. ``"cuda:1"``; ``"cuda"`` is the current one.

    A library can be loaded without a driver, with one that is older than it, and where it has no code
    for the device. This initialises CUDA, so call it only where somebody uses CUDA anyway.

    Raises
    ------
    NativeUnavailable
        If they do not.
    """
    try:
        import torch
    except ImportError as error:
        raise NativeUnavailable(f"torch is not usable ({error})") from error
    if not torch.cuda.is_available():
        raise NativeUnavailable("torch finds no CUDA device")
    library = load("cuda")
    with torch.cuda.device(device):
        why_not = library.why_not()
    if why_not is not None:
        raise NativeUnavailable(f"{library.path.name}: {why_not}")


def default_threads() -> int:
    """Return the processors that this process may use; 1 in a forked child, see `_after_fork`."""
    if _threads:
        return _threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_threads = 0


def _after_fork() -> None:
    """Keep to one thread: OpenMP's do not survive a fork, and waiting for them would never end.

    Torch's neither, and it may have been at work in the parent. Its own data loader does the same. Where
    it was not, ``torch.set_num_threads(n)`` in the child has it use n again, and where it was, hangs at
    the next computation: nothing tells which, so that the limit cannot wait until it is needed.
    """
    global _threads
    _threads = 1
    limit = getattr(sys.modules.get("torch"), "set_num_threads", None)
    if limit is not None:
        limit(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _check(status: int, library: Library | None = None) -> None:
    if status:
        detail = f": {library.last_error()}" if library and status == _CUDA_ERROR else ""
        raise RuntimeError(f"native kernel: {_ERRORS.get(status, f'error {status}')}{detail}")


def _code(tensor: Tensor) -> int:
    return DTYPES[str(tensor.dtype).removeprefix("torch.")]


def _ptr(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _places(tiling: Tiling) -> tuple[Any, ...]:
    """Return the arguments `_TILES`."""
    rows, cols = tiling.row_starts, tiling.col_starts
    return tiling.tile, _ptr(rows), rows.numel(), _ptr(cols), cols.numel()


def _at(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data)


def quantize_array(latents: npt.NDArray[Any], grid: Grid) -> npt.NDArray[np.int32]:
    """Return int32 indices of a NumPy array ``(..., d)`` without importing torch."""
    latents = np.ascontiguousarray(latents)
    indices = np.empty(latents.shape[:-1], np.int32)
    quantize = load("cpu").fsq_quantize
    dtype = DTYPES[latents.dtype.name]
    _check(
        quantize(
            _pointer_to(grid), _at(latents), dtype, indices.size, 1, None, _at(indices), default_threads()
        )
    )
    return indices


_HUGE = 4 << 20
"""Bytes from which fresh memory is NumPy's."""


def _empty(shape: Sequence[int], dtype: Any, device: Any) -> Tensor:
    """Return an uninitialised tensor, on the CPU in huge pages where it is large.

    NumPy asks the kernel for huge pages, PyTorch does not. A kernel that writes once over fresh memory
    spends most of its time in page faults of 4 KiB each.
    """
    import torch

    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _HUGE:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(shape)


class NativeKernels:
    """The kernels over contiguous tensors of one device type; shapes as in ``csrc/tmcodec.h``.

    Parameters
    ----------
    device
        ``"cpu"`` or ``"cuda"``.
    """

    name = "native"

    def __init__(self, device: str) -> None:
        self._library = load(device)
        self._cuda = device == "cuda"

    def supports(self, grid: Grid) -> bool:
        """Tell whether the grid fits: on CUDA it travels in the kernel's arguments."""
        return not self._cuda or grid.thresholds.size <= CUDA_MAX_THRESHOLDS

    def _call(self, function: Any, tensor: Tensor, *arguments: Any) -> None:
        import torch

        if not self._cuda:
            threads = 1 if _threads == 1 else torch.get_num_threads()
            _check(function(*arguments, threads))
            return
        with torch.cuda.device(tensor.device):
            _check(function(*arguments, torch.cuda.current_stream().cuda_stream), self._library)

    def quantize(
        self, grid: Grid, latents: Tensor, codes: bool = True, indices: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return codes (outer, d, inner) and indices (outer, inner) of latents, as asked for."""
        import torch

        outer, _, inner = latents.shape
        code = _empty(latents.shape, torch.float32, latents.device) if codes else None
        index = _empty((outer, inner), torch.int32, latents.device) if indices else None
        self._call(
            self._library.fsq_quantize, latents,
            _pointer_to(grid), _ptr(latents), _code(latents), outer, inner, _ptr(code), _ptr(index),
        )  # fmt: skip
        return code, index

    def dequantize(self, grid: Grid, indices: Tensor) -> Tensor:
        """Return codes (outer, d, inner) of int32 indices (outer, inner)."""
        import torch

        outer, inner = indices.shape
        codes = _empty((outer, grid.dims, inner), torch.float32, indices.device)
        self._call(
            self._library.fsq_dequantize, indices, _pointer_to(grid), _ptr(indices), outer, inner, _ptr(codes)
        )
        return codes

    def backward(self, grid: Grid, latents: Tensor, grad_codes: Tensor) -> Tensor:
        """Return the gradient of latents (outer, d, inner) for that of the codes, float32."""
        import torch

        outer, _, inner = latents.shape
        grad_latents = torch.empty_like(latents)
        self._call(
            self._library.fsq_backward, latents,
            _pointer_to(grid), _ptr(latents), _code(latents), _ptr(grad_codes), outer, inner,
            _ptr(grad_latents),
        )  # fmt: skip
        return grad_latents

    def project_quantize(
        self, grid: Grid, x: Tensor, layer: Layer, latents: bool = False, codes: bool = True
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Return latents (n, d), codes (n, d), as asked for, and indices (n) of x (n, dim)."""
        import torch

        if self._cuda and x.dtype == torch.float64:
            x = x.float()
        n, dim = x.shape
        latent = _empty((n, grid.dims), torch.float32, x.device) if latents else None
        code = _empty((n, grid.dims), torch.float32, x.device) if codes else None
        index = _empty((n,), torch.int32, x.device)
        self._call(
            self._library.fsq_project_quantize, x,
            _pointer_to(grid), _ptr(x), _code(x), n, dim, _ptr(layer.weight), _ptr(layer.bias),
            _ptr(latent), _ptr(code), _ptr(index),
        )  # fmt: skip
        return latent, code, index

    def dequantize_project(self, grid: Grid, indices: Tensor, layer: Layer, dtype: Any) -> Tensor:
        """Return (n, dim) of `dtype` for indices (n) and a weight (dim, d)."""

        rows, n, dim = layer.weight.t().contiguous(), indices.numel(), layer.weight.shape[0]
        out = _empty((n, dim), dtype, indices.device)
        self._call(
            self._library.fsq_dequantize_project, indices,
            _pointer_to(grid), _ptr(indices), n, dim, _ptr(rows), _ptr(layer.bias), _ptr(out), _code(out),
        )  # fmt: skip
        return out

    def normalize_patchify(self, raster: Tensor, scale: Scale, tiling: Tiling, dtype: Any) -> Tensor:
        """Return tiles (rows, cols, C, tile, tile); see `tmcodec.fsq.rasters.normalize_patchify`."""

        channels, height, width = raster.shape
        places = _places(tiling)
        shape = (places[2], places[4], channels, tiling.tile, tiling.tile)
        tiles = _empty(shape, dtype, raster.device)
        values = (_ptr(scale.mask), _ptr(scale.mean), _ptr(scale.std), scale.fill)
        self._call(
            self._library.normalize_patchify, raster,
            _ptr(raster), _code(raster), channels, height, width, *values, *places, _ptr(tiles), _code(tiles),
        )  # fmt: skip
        return tiles

    def blend(
        self, tiles: Tensor, tiling: Tiling, weights: Weights, scale: Scale, size: tuple[int, int], dtype: Any
    ) -> Tensor:
        """Return a raster (C, height, width); see `tmcodec.fsq.rasters.blend`."""

        channels = tiles.shape[2]
        raster = _empty((channels, *size), dtype, tiles.device)
        values = (_ptr(scale.mean), _ptr(scale.std), _ptr(scale.mask), scale.fill)
        self._call(
            self._library.blend, tiles,
            _ptr(tiles), _code(tiles), channels, *_places(tiling), _ptr(weights.rows), _ptr(weights.cols),
            *values, *size, _ptr(raster), _code(raster),
        )  # fmt: skip
        return raster

    def compand_cells(self, picture: Tensor, curve: Curve, cell: int) -> Tensor:
        """Return cells (B, H / 2cell, W / 2cell, cell * cell * C); see `tmcodec.fsq.curves`. CPU only."""
        import torch

        batch, channels, height, width = picture.shape
        shape = (batch, height // (2 * cell), width // (2 * cell), cell * cell * channels)
        cells = _empty(shape, torch.float32, picture.device)
        self._call(
            self._library.compand_cells, picture,
            _ptr(picture), batch, channels, height, width, _curve(curve), _ptr(curve.mean), _ptr(curve.std),
            cell, _ptr(cells),
        )  # fmt: skip
        return cells

    def expand_double(self, half: Tensor, curve: Curve, low: float, high: float) -> Tensor:
        """Return a picture (B, C, 2H, 2W) of a half (B, C, H, W); see `tmcodec.fsq.curves`. CPU only."""
        import torch

        batch, channels, height, width = half.shape
        picture = _empty((batch, channels, 2 * height, 2 * width), torch.float32, half.device)
        self._call(
            self._library.expand_double, half,
            _ptr(half), batch, channels, height, width, _curve(curve), _ptr(curve.mean), _ptr(curve.std),
            low, high, _ptr(picture),
        )  # fmt: skip
        return picture


def _curve(curve: Curve) -> Any:
    """Return a curve as the C interface takes it."""
    kind = {"linear": 0, "sqrt": 1}[curve.kind]
    return ctypes.byref(_CCurve(kind, curve.origin, curve.knee, curve.knee**0.5))
