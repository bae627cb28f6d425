"""The FSQ and raster kernels against PyTorch, vector-quantize-pytorch, and a plain memory copy.

    python benchmarks/fsq.py [--vectors 1048576] [--rounds 15] [--device cpu|cuda] [--json OUT]

One table. Contenders of a group take turns, round by round, on inputs that rotate through more
memory than the caches hold; each line is the median of its rounds, and ratios compare medians of
the same run. "copy" copies as many bytes as the group's first line reads and writes, so a ratio
of 1 means as fast as memory allows. Outputs are allocated in every call, the copy's are not; "fresh copy"
allocates as PyTorch does. "formula" is FSQ as one writes it in PyTorch, "reference" tmcodec's definition,
which counts thresholds.

The last lines are the share of these steps in encoding and decoding 1024 x 1024 pixels of Sentinel-2 with
the embedded tokenizer: quantizer and companding in PyTorch (before) and in the native kernels (after).
Needs vector-quantize-pytorch for its line, a C++ compiler for torch.compile's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmcodec.fsq import backends, blend, blend_weights, normalize_patchify, ops
from tmcodec.fsq.grid import make_grid

LEVELS = (8, 8, 8, 6, 5)
DIM = 768  # activations of TerraMind's encoder
SETS = 4  # input sets that take turns
clock = time.perf_counter


@dataclass
class Group:
    """Contenders for one task: name and function of the number of the round."""

    title: str
    count: int
    unit: str
    moved: int
    contenders: dict[str, Callable[[int], Any]] = field(default_factory=dict)


# --------------------------------------------------------------------------- contenders


class Formula:
    """FSQ as one writes it in PyTorch."""

    def __init__(self, device: str) -> None:
        self.spans = torch.tensor(LEVELS, dtype=torch.float32, device=device) - 1
        self.basis = torch.tensor([1, 8, 64, 512, 3072], dtype=torch.int32, device=device)

    def indices(self, z: Tensor) -> Tensor:
        return ((z.float().sigmoid() * self.spans).round().int() * self.basis).sum(-1, dtype=torch.int32)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        digits = (z.float().sigmoid() * self.spans).round()
        return digits / self.spans, (digits.int() * self.basis).sum(-1, dtype=torch.int32)

    def codes(self, indices: Tensor) -> Tensor:
        levels = (self.spans + 1).int()
        return (indices[:, None] // self.basis % levels) / self.spans


class Reference:
    """tmcodec's definition (`tmcodec.fsq.reference`), its constants where torch.compile can see them."""

    def __init__(self, device: str) -> None:
        grid = make_grid(LEVELS)
        edges = torch.from_numpy(grid.thresholds).to(device)
        self.edges = [t.clone() for t in edges.split([level - 1 for level in LEVELS])]
        arrays = (grid.code_shift, grid.code_span, grid.basis, grid.level_array)
        self.shift, self.span, self.basis, self.levels = (
            torch.from_numpy(a.copy()).to(device) for a in arrays
        )

    def digits(self, z: Tensor) -> Tensor:
        found = [torch.bucketize(z[:, c].contiguous(), t) for c, t in enumerate(self.edges)]
        return torch.stack(found, -1).masked_fill(z.isnan(), 0)

    def indices(self, z: Tensor) -> Tensor:
        return (self.digits(z) * self.basis).sum(-1, dtype=torch.int64).int()

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        digits = self.digits(z)
        return (digits - self.shift) / self.span, (digits * self.basis).sum(-1, dtype=torch.int64).int()

    def codes(self, indices: Tensor) -> Tensor:
        return (indices.long().unsqueeze(-1) // self.basis % self.levels - self.shift) / self.span


def vector_quantize_pytorch(device: str) -> Callable[[Tensor], Any] | None:
    """Return its FSQ of the same levels (tanh form; codes and indices in one call), or None."""
    try:
        from vector_quantize_pytorch import FSQ
    except ImportError:
        return None
    module = FSQ(list(LEVELS)).to(device).eval()
    return lambda z: module(z[None])


def compiled(function: Callable[..., Any], example: Tensor) -> Callable[..., Any] | None:
    """Return the function compiled by inductor and warmed up, or None where it cannot."""
    try:
        fast = torch.compile(function, dynamic=False)
        fast(example)
        fast(example)
    except Exception as error:  # of many kinds: no compiler, no Triton, no support
        print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0]}")
        return None
    return fast


def own_backends(device: str) -> list[str]:
    return [name for name in backends.NAMES if backends.unavailable(name, device) is None]


def add_copies(group: Group, device: str) -> None:
    """Copy half of the group's bytes, which reads and writes them all; into memory kept, and fresh."""
    sources = [torch.ones(group.moved // 8, device=device) for _ in range(SETS)]
    targets = [torch.zeros_like(s) for s in sources]
    group.contenders["fresh copy"] = lambda i: sources[i % SETS].clone()
    group.contenders["copy"] = lambda i: targets[i % SETS].copy_(sources[i % SETS])


def quantize_groups(n: int, device: str, inductor: bool) -> list[Group]:
    """Return the groups over latents (n, 5), float32."""
    latents = [torch.randn(n, 5, device=device) * 2 for _ in range(SETS)]
    formula, vq = Formula(device), vector_quantize_pytorch(device)
    rule = Reference(device)
    assert torch.equal(rule.indices(latents[0]), ops.quantize_indices(latents[0], LEVELS, backend="torch"))
    indices = [formula.indices(z) for z in latents]
    names = own_backends(device)

    first = Group("quantize_indices", n, "vectors", n * 24)
    second = Group("quantize", n, "vectors", n * 44)
    third = Group("dequantize", n, "vectors", n * 24)
    for b in names:
        first.contenders[b] = lambda i, b=b: ops.quantize_indices(latents[i % SETS], LEVELS, backend=b)
        second.contenders[b] = lambda i, b=b: ops.quantize(latents[i % SETS], LEVELS, backend=b)
        third.contenders[b] = lambda i, b=b: ops.dequantize(indices[i % SETS], LEVELS, backend=b)
    for group, function, definition, inputs in (
        (first, formula.indices, rule.indices, latents),
        (second, formula.quantize, rule.quantize, latents),
        (third, formula.codes, rule.codes, indices),
    ):
        group.contenders["formula, eager"] = lambda i, f=function, x=inputs: f(x[i % SETS])
        fast = compiled(function, inputs[0]) if inductor else None
        if fast is not None:
            group.contenders["formula, torch.compile"] = lambda i, f=fast, x=inputs: f(x[i % SETS])
        fast = compiled(definition, inputs[0]) if inductor else None
        if fast is not None:
            group.contenders["reference, torch.compile"] = lambda i, f=fast, x=inputs: f(x[i % SETS])
        if vq is not None and group is not third:
            group.contenders["vector-quantize-pytorch"] = lambda i: vq(latents[i % SETS])
        add_copies(group, device)
    return [first, second, third]


def projection_groups(n: int, device: str) -> list[Group]:
    """Return the fused projections over activations (n, 768), float32 and bfloat16."""
    weight = torch.randn(5, DIM, device=device) / DIM**0.5
    expand = weight.t().contiguous()
    formula, groups = Formula(device), []
    indices = [torch.randint(0, 15360, (n,), device=device, dtype=torch.int32) for _ in range(SETS)]
    for dtype in (torch.float32, torch.bfloat16):
        x = [torch.randn(n, DIM, device=device).to(dtype) for _ in range(SETS)]
        short = str(dtype).removeprefix("torch.")
        to = Group(f"project_quantize {short}", n, "rows", n * DIM * x[0].itemsize + n * 24)
        back = Group(f"dequantize_project {short}", n, "rows", n * DIM * x[0].itemsize + n * 4)
        for b in own_backends(device):
            to.contenders[b] = lambda i, b=b, x=x: ops.project_quantize(
                x[i % SETS], weight, None, LEVELS, backend=b
            )
            back.contenders[b] = lambda i, b=b, d=dtype: ops.dequantize_project(
                indices[i % SETS], expand, None, LEVELS, dtype=d, backend=b
            )
        to.contenders["linear + formula, eager"] = lambda i, x=x: formula.quantize(
            x[i % SETS].float() @ weight.t()
        )
        back.contenders["formula + linear, eager"] = lambda i, d=dtype: (
            formula.codes(indices[i % SETS]) @ expand.t()
        ).to(d)
        for group in (to, back):
            add_copies(group, device)
        groups += [to, back]
    return groups


def raster_groups(side: int, device: str) -> list[Group]:
    """Return the raster steps over a 12-band uint16 block; tiles of 256 that overlap by 32."""
    tile, starts = 256, list(range(0, side - 255, 224))
    size = starts[-1] + tile
    blocks = [torch.randint(0, 10000, (12, size, size), dtype=torch.int32).to(torch.uint16) for _ in range(2)]
    blocks = [block.to(device) for block in blocks]
    mask = (torch.rand(size, size) > 0.05).to(device)
    mean, std = [2000.0] * 12, [1800.0] * 12
    weights = [blend_weights(starts, tile).to(device)] * 2
    tiles = [normalize_patchify(block, mean, std, tile, starts, starts) for block in blocks]
    pixels = 12 * size * size
    cut = Group("normalize_patchify uint16 to float32", pixels, "values", pixels * 2 + tiles[0].numel() * 4)
    join = Group("blend float32 to uint16", pixels, "values", pixels * 2 + tiles[0].numel() * 4)
    for b in own_backends(device):
        cut.contenders[b] = lambda i, b=b: normalize_patchify(
            blocks[i % 2], mean, std, tile, starts, starts, mask, backend=b
        )
        join.contenders[b] = lambda i, b=b: blend(
            tiles[i % 2], starts, starts, *weights, size, size, mean, std, mask, dtype=torch.uint16, backend=b
        )
    for group in (cut, join):
        add_copies(group, device)
    return [cut, join]


# --------------------------------------------------------------------------- timing


def seconds(function: Callable[[int], Any], number: int, device: str) -> float:
    """Time one call by `clock`; on CUDA by events, between which the queue never runs dry."""
    if device == "cpu":
        start = clock()
        function(number)
        return clock() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for i in range(10):
        function(number + i)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e4


@torch.inference_mode()
def measure(group: Group, rounds: int, device: str) -> dict[str, float]:
    """Return the median seconds of each contender; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in group.contenders}
    for number in range(-2, rounds):  # two rounds to warm up
        for name, function in group.contenders.items():
            spent = seconds(function, number + 2, device)
            if number >= 0:
                times[name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}


def print_group(group: Group, medians: dict[str, float]) -> None:
    fastest_own = medians[next(iter(group.contenders))]
    print(f"\n{group.title}: {group.count:,} {group.unit}, {group.moved / 1e6:.1f} MB read and written")
    print(f"  {'':26}{'ms':>9}{'ns each':>9}{'GB/s':>8}{'x copy':>8}{'x ours':>8}")
    for name, spent in medians.items():
        print(
            f"  {name:26}{spent * 1e3:9.3f}{spent / group.count * 1e9:9.2f}{group.moved / spent / 1e9:8.1f}"
            f"{spent / medians['copy']:8.2f}{spent / fastest_own:8.2f}"
        )


# --------------------------------------------------------------------------- the share end to end


@torch.inference_mode()
def shares(rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Return seconds of encode and decode and of the quantizer's part in them, by backend."""
    from tmcodec.codec.models import EMBEDDED
    from tmcodec.codec.tokenizer import MiniTokenizer

    tok = MiniTokenizer.from_file(EMBEDDED["mini-s2l2a-v2"].path, device)
    x = torch.rand(1, len(tok.modality.bands), 1024, 1024, device=tok.device) * 4000
    tokens, latents = tok.encode(x), torch.randn(1, 64, 64, len(tok.levels), device=tok.device)
    names = [name for name in own_backends(device) if name != "numba"]
    group = Group("shares", 1, "tile", 0)
    for b in names:
        group.contenders[f"encode, {b}"] = lambda i, b=b: with_backend(b, lambda: tok.encode(x))
        group.contenders[f"decode, {b}"] = lambda i, b=b: with_backend(b, lambda: tok.decode(tokens))
        group.contenders[f"quantize, {b}"] = lambda i, b=b: ops.quantize_indices(
            latents, tok.levels, backend=b
        )
        group.contenders[f"dequantize, {b}"] = lambda i, b=b: ops.dequantize(tokens, tok.levels, backend=b)
    found = measure(group, rounds, device)
    return {
        b: {what: found[f"{what}, {b}"] for what in ("encode", "quantize", "decode", "dequantize")}
        for b in names
    }


def with_backend(name: str, call: Callable[[], Any]) -> None:
    """Call with the whole process's backend set."""
    before = os.environ.get(backends.VARIABLE)
    os.environ[backends.VARIABLE] = name
    try:
        call()
    finally:
        os.environ.pop(backends.VARIABLE) if before is None else os.environ.update(
            {backends.VARIABLE: before}
        )


def print_shares(found: dict[str, dict[str, float]]) -> None:
    print("\n1024 x 1024 x 12 with mini-s2l2a-v2: milliseconds, and the share of the quantizer")
    titles = ("encode", "quantize", "share", "decode", "dequantize", "share")
    print(f"  {'backend':10}" + "".join(f"{title:>11}" for title in titles))
    for name, t in found.items():
        ms = {what: spent * 1e3 for what, spent in t.items()}
        print(
            f"  {name:10}{ms['encode']:11.1f}{ms['quantize']:11.3f}{t['quantize'] / t['encode']:11.3%}"
            f"{ms['decode']:11.1f}{ms['dequantize']:11.3f}{t['dequantize'] / t['decode']:11.3%}"
        )


# --------------------------------------------------------------------------- command


def machine(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, nargs="*", help="default 2^20; on CUDA 12544 and 10^7")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda")
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, and its processor time: for a machine that is busy",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, help="write the medians, in seconds, here too")
    options = parser.parse_args()
    device = options.device
    if options.cpu_time:
        global clock
        clock = time.process_time
        torch.set_num_threads(1)
    sizes = options.vectors or ([12_544, 10_000_000] if device == "cuda" else [1 << 20])
    report: dict[str, Any] = {"machine": machine(device), **backends.describe()}
    for name, text in report.items():
        print(f"{name}: {text}")
    groups = [group for n in sizes for group in quantize_groups(n, device, not options.no_compile)]
    groups += projection_groups(max(sizes) // 32, device)
    groups += raster_groups(4096 if device == "cuda" else 1600, device)
    for group in groups:
        medians = measure(group, options.rounds, device)
        print_group(group, medians)
        report[f"{group.title}, {group.count}"] = medians
    report["shares"] = shares(options.rounds, device)
    print_shares(report["shares"])
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
