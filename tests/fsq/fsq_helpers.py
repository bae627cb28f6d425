"""What several test files need: backends of this machine, level lists, latents near edges."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tmcodec.fsq import backends
from tmcodec.fsq import levels as lv

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("fsq_v1.json").read_text())
FORMS = ("sigmoid", "tanh")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# TerraMind's two, the paper's 2^8, one level, many dimensions, levels beyond all-compare.
LEVEL_LISTS = [(8, 8, 8, 6, 5), (7, 5, 5, 5, 5), (8, 6, 5), (16,), (2,) * 12, (3, 200, 70)]
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(why), reason=f"{name}: {why}"))
    for name in backends.NAMES
    for why in [backends.unavailable(name, "cpu")]
]
FAST_BACKENDS = [param for param in BACKENDS if param.values != ("torch",)]
ISAS = ("baseline", "avx2", "avx512")


def golden_latents(case: dict[str, list[list[str]]]) -> Tensor:
    return torch.tensor([[float.fromhex(z) for z in row] for row in case["latents"]], dtype=torch.float32)


def random_latents(n: int, levels: tuple[int, ...], form: str, dtype: torch.dtype, seed: int) -> Tensor:
    """Latents over all digits, a tenth of them within three float32 steps of an edge."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, len(levels)), np.float32) * np.float32(2)
    for c, level in enumerate(levels):
        at = rng.integers(0, n, n // 10)
        near = [lv.thresholds(level, form)]
        for direction in (-np.inf, np.inf):
            for step in range(3):
                near.append(np.nextafter(near[-1] if step else near[0], np.float32(direction)))
        z[at, c] = rng.choice(np.concatenate(near), at.size)
    return torch.from_numpy(z).to(dtype)


def needs_cuda_kernels() -> None:
    """Skip a test where the CUDA kernels cannot run; fail where they could have been built."""
    why_not = backends.unavailable("native", "cuda")
    if why_not is None:
        return
    if torch.cuda.is_available() and (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()):
        pytest.fail(f"{why_not}, but nvcc is there; run TMCODEC_CUDA=1 python csrc/build_native.py")
    pytest.skip(why_not)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run the native kernels with another instruction set; skip where the machine has it not."""
    from tmcodec.fsq import native

    try:
        library = native.load("cpu")
    except native.NativeUnavailable as error:
        pytest.skip(str(error))
    before = library.isa
    try:
        library.isa = name
    except ValueError as error:
        pytest.skip(str(error))
    try:
        yield
    finally:
        library.isa = before
