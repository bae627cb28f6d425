"""Which implementation does the work: compiled kernels, numba, or torch.

``TMCODEC_BACKEND`` or an argument names one; else the first that this machine has, in the order
``native``, ``numba``, ``torch``. All give the same digits for the same float. `describe` says
what is active and why.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tmcodec.errors import BackendError as BackendError  # was defined here, and may be imported from here
from tmcodec.fsq.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("native", "numba", "torch")
VARIABLE = "TMCODEC_BACKEND"


class Tiling(NamedTuple):
    """Where tiles lie in a raster: the side of one, and the first rows and columns, int64."""

    tile: int
    row_starts: Tensor
    col_starts: Tensor


class Scale(NamedTuple):
    """How pixel values become normalised ones and back.

    Mean and standard deviation are float32, one a channel; the mask is uint8 ``(H, W)``, 0 where
    values are unknown and ``fill`` stands in their place.
    """

    mean: Tensor
    std: Tensor
    mask: Tensor | None
    fill: float


class Weights(NamedTuple):
    """Weights of a tile's rows ``(rows, tile)`` and columns ``(cols, tile)``, float32."""

    rows: Tensor
    cols: Tensor


class Layer(NamedTuple):
    """A linear layer's weight ``(out, in)`` and bias ``(out,)`` or None, float32 and contiguous."""

    weight: Tensor
    bias: Tensor | None


class Kernels(Protocol):
    """What a backend does; all tensors are contiguous and on one device.

    Latents and codes are ``(outer, d, inner)``, indices ``(outer, inner)``; the layouts of the fused
    projections and the raster steps stand in ``csrc/tmcodec.h``.
    """

    name: str

    def supports(self, grid: Grid) -> bool:
        """Tell whether the grid fits."""
        return True

    def quantize(
        self, grid: Grid, latents: Tensor, codes: bool = True, indices: bool = True
    ) -> tuple[Tensor | None, Tensor | None]: ...

    def dequantize(self, grid: Grid, indices: Tensor) -> Tensor: ...

    def backward(self, grid: Grid, latents: Tensor, grad_codes: Tensor) -> Tensor: ...

    def project_quantize(
        self, grid: Grid, x: Tensor, layer: Layer, latents: bool = False, codes: bool = True
    ) -> tuple[Tensor | None, Tensor | None, Tensor]: ...

    def dequantize_project(self, grid: Grid, indices: Tensor, layer: Layer, dtype: Any) -> Tensor: ...

    def normalize_patchify(self, raster: Tensor, scale: Scale, tiling: Tiling, dtype: Any) -> Tensor: ...

    def blend(
        self, tiles: Tensor, tiling: Tiling, weights: Weights, scale: Scale, size: tuple[int, int], dtype: Any
    ) -> Tensor: ...


def choose(device: str = "cpu", name: str | None = None) -> Kernels:
    """Return the kernels for a device.

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or any other torch device. Native kernels are tried on a GPU
        before they are chosen, which initialises CUDA.
    name
        One of `NAMES`; None reads ``TMCODEC_BACKEND``, and without it takes the fastest there is.

    Raises
    ------
    BackendError
        If the backend asked for is unknown or cannot run on this device.
    """
    asked = name or os.environ.get(VARIABLE) or None
    if asked is not None and asked not in NAMES:
        raise BackendError(f"unknown backend {asked!r}; use {', '.join(NAMES)}")
    kind = device.partition(":")[0]
    if asked is not None:
        why_not = unavailable(asked, device)
        # The variable speaks for the whole process; a device that it does not fit falls to torch.
        if why_not is not None and (name is not None or kind == "cpu"):
            raise BackendError(f"backend {asked!r} cannot run on {device}: {why_not}")
        return _kernels(asked if why_not is None else "torch", kind)
    return _kernels(next(n for n in NAMES if unavailable(n, device) is None), kind)


def check_devices(first: Tensor, *others: Tensor | None) -> None:
    """Refuse tensors of several devices: kernels take addresses, which mean nothing elsewhere.

    Raises
    ------
    ValueError
        If one of the others lies on another device than the first.
    """
    for other in others:
        if other is not None and other.device != first.device:
            raise ValueError(f"tensors lie on {first.device} and {other.device}; move them to one device")


@lru_cache(maxsize=128)
def unavailable(name: str, device: str = "cpu", try_cuda: bool = True) -> str | None:
    """Return why a backend cannot run on a device as of `choose`, or None where it can.

    Without `try_cuda`, CUDA kernels that were built count as running.
    """
    kind = device.partition(":")[0]
    if name == "torch":
        return None
    if name == "numba":
        if kind != "cpu":
            return "numba kernels are for the CPU"
        return None if importlib.util.find_spec("numba") else "numba is not installed"
    if kind not in ("cpu", "cuda"):
        return f"there are no native kernels for {device}"
    from tmcodec.fsq import native

    try:
        native.load(kind)
        if kind == "cuda" and try_cuda:
            native.try_cuda(device)
    except native.NativeUnavailable as error:
        return str(error)
    return None


@lru_cache(maxsize=32)
def _kernels(name: str, kind: str) -> Kernels:
    if name == "native":
        from tmcodec.fsq.native import NativeKernels

        return NativeKernels(kind)
    if name == "numba":
        from tmcodec.fsq.numba_backend import NumbaKernels

        return NumbaKernels()
    from tmcodec.fsq.reference import TorchKernels

    return TorchKernels()


def describe(try_cuda: bool = False) -> dict[str, str]:
    """Return what is active on the CPU and on CUDA, and why, as ``{title: text}``.

    Parameters
    ----------
    try_cuda
        Whether to find out if the CUDA kernels run here. That initialises CUDA, which no forked child can
        use then, and needs torch; the rest does not.
    """
    return {
        "kernels on the CPU": _describe("cpu", try_cuda),
        "kernels on CUDA": _describe("cuda", try_cuda),
    }


def _describe(device: str, try_cuda: bool) -> str:
    asked = os.environ.get(VARIABLE) or None
    if asked is not None and asked not in NAMES:
        return f"none: {VARIABLE}={asked} is unknown"
    reasons = {name: unavailable(name, device, try_cuda) for name in NAMES}
    if asked is not None and reasons[asked] is not None and device == "cpu":
        return f"none: {VARIABLE}={asked}, but {reasons[asked]}"
    order = (asked, "torch") if asked is not None else NAMES
    active = next(name for name in order if reasons[name] is None)
    skipped = [
        f"{name}: {why}" for name in order[: order.index(active)] if (why := reasons[name]) is not None
    ]
    notes = ([f"{VARIABLE}={asked}"] if asked is not None else []) + skipped
    text = f"{active} ({_detail(device, try_cuda)})" if active == "native" else active
    return "; ".join([text, *notes])


def _detail(device: str, try_cuda: bool) -> str:
    from tmcodec.fsq import native

    library = native.load(device)
    if device == "cuda":
        return library.path.name if try_cuda else f"{library.path.name}, not tried"
    return f"{library.path.name}, {library.isa}, {'OpenMP' if library.openmp else 'one thread'}"
