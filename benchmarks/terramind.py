"""TerraMind's tokenizers: ours beside TerraTorch's, same random weights, same inputs, in one run.

    python benchmarks/terramind.py [--batch 4] [--repeat 3] [--steps 5] [--device cuda] [--markdown]
    python benchmarks/terramind.py --compile encode --compile decode   # ours beside ours, compiled

Needs the extra ``[parity]``. Times are medians of alternating calls. The share of peak is work over what the
fastest large matrix product of the same precision reaches there (on a CPU in oneDNN's layout, in this run).
Weights are random: speed and flips of tokens can be seen with them, quality cannot. TerraTorch's default is
50 steps, whose time is scaled from the steps that were timed; ours is one. Without ``--device`` a GPU is
taken where there is one; memory is then the GPU's.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "parity"))

NAME = "terramind-v1-s2l2a"
SIZE = 256


clock: Callable[[], float] = time.perf_counter


def cuda_clock(device: torch.device) -> float:
    """Return the seconds of a GPU's clock on the wall: kernels that were started have ended."""
    torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(calls: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Return the median seconds of each call, taken in turns after a first round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeat + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if turn:
                taken[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Return operations per second of a large matrix product on a device, the best of several."""
    from tmcodec.networks.terramind.inference import FastLinear

    side = 2048 if device.type == "cpu" else 8192  # a GPU is busy with less for microseconds only
    layer = FastLinear(torch.randn(side, side, device=device), None, dtype, "none")
    x = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        start = clock()
        layer(x)
        best = min(best, clock() - start)
    return 2 * side**3 / best


def flops_of(call: Callable[[], object]) -> int:
    """Return the operations of a call, two for each multiply and add."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def both(device: torch.device) -> tuple[Any, Any, Any]:
    """Return TerraTorch's tokenizer, and ours in both precisions, with the same random weights."""
    from parity_helpers import as_checkpoint, build_official, import_terratorch

    from tmcodec.codec.terramind import TerraMindTokenizer

    official = build_official(import_terratorch(), NAME)
    checkpoint = as_checkpoint(NAME, official.state_dict())
    ours = (TerraMindTokenizer(checkpoint, str(device), precision) for precision in ("fp32", "bf16"))
    return official.to(device), *ours


def measure(batch: int, repeat: int, steps: int, device: torch.device) -> list[list[str]]:
    """Return rows of the table."""
    from tmcodec.networks.terramind.inference import has_bf16

    official, exact, half = both(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 12, SIZE, SIZE, generator=generator).to(device) * exact.std + exact.mean
    z = (x - exact.mean) / exact.std
    tokens = exact.encode(x)
    noise, time_step = torch.randn(1, 12, SIZE, SIZE, device=device), torch.tensor(500, device=device)
    codes = official.tokens_to_embedding(tokens[:1])
    with torch.no_grad():  # the counter sees nothing in inference mode
        encode_work = flops_of(lambda: official.tokenize(z[:1])) * batch
        step_work = flops_of(lambda: official.decoder(noise, time_step, codes)) * batch
    with torch.inference_mode():
        types = {"fp32": torch.float32, "bf16": torch.bfloat16}
        peaks = {name: peak_flops(dtype, device) for name, dtype in types.items()}
        encoded = seconds({
            "theirs": lambda: official.tokenize(z),
            "fp32": lambda: exact.encode(x),
            "bf16": lambda: half.encode(x),
        }, repeat)  # fmt: skip
        rows = report("encode", encoded, encode_work, peaks)
        decoded = seconds({
            "theirs": lambda: official.decode_tokens(tokens, timesteps=steps, verbose=False),
            "fp32": lambda: exact.decode(tokens, steps, sampler="official"),
            "bf16": lambda: half.decode(tokens, steps),
        }, repeat)  # fmt: skip
        rows += report(f"decode, {steps} steps", decoded, steps * step_work, peaks)
        # What precision "auto" decodes in here.
        usual, tok = ("bf16", half) if has_bf16(device) else ("fp32", exact)
        once = seconds({usual: lambda: tok.decode(tokens)}, repeat)
    ratio = decoded["theirs"] * 50 / steps / once[usual]
    rows.append(["decode, default (50 steps, ours 1)", usual, f"{once[usual]:.2f}", f"{ratio:.0f}",
                 f"{step_work / 1e9:.0f}", share(step_work, once[usual], peaks[usual])])  # fmt: skip
    flipped = float((half.encode(x) != tokens).float().mean())
    print(f"machine peak: fp32 {peaks['fp32'] / 1e9:.0f}, bf16 {peaks['bf16'] / 1e9:.0f} GFLOP/s; "
          f"{batch} tiles of 12 x {SIZE} x {SIZE}, {where(device)}")  # fmt: skip
    wrong = different(official, exact, x, z)
    print(f"tokens that differ: fp32 {wrong} of {tokens.numel()}, bf16 {flipped:.2%}")
    return rows


def where(device: torch.device) -> str:
    """Return what computes, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def different(official: Any, exact: Any, x: torch.Tensor, z: torch.Tensor) -> int:
    """Return how many of our float32 tokens are not TerraTorch's."""
    with torch.inference_mode():
        return int((official.tokenize(z) != exact.encode(x)).sum())


def share(work: float, taken: float, peak: float) -> str:
    """Return the share of peak in per cent."""
    return f"{100 * work / taken / peak:.0f} %"


def report(what: str, taken: dict[str, float], work: float, peaks: dict[str, float]) -> list[list[str]]:
    """Return the rows of one task."""
    rows = []
    for name, value in taken.items():
        peak = peaks["bf16" if name == "bf16" else "fp32"]
        label = "TerraTorch, fp32" if name == "theirs" else name
        rows.append([what, label, f"{value:.2f}", f"{taken['theirs'] / value:.2f}", f"{work / 1e9:.0f}",
                     share(work, value, peak)])  # fmt: skip
    return rows


# --------------------------------------------------------------------------- memory


def _resident(what: str) -> float:
    """Return this process's ``VmRSS`` or ``VmHWM`` in GB; getrusage's peak is the parent's too."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{what}:")[1].split()[0]) / 1e6


def _peak(kind: str, path: str, device: str, pipe: Any) -> None:
    """Send the peak memory in GB of loading weights and encoding, or decoding, one tile.

    Of the process on a CPU, of PyTorch's tensors on a GPU: its libraries take some, too, which are no one's.
    """
    from parity_helpers import import_terratorch

    x, tokens = torch.randn(1, 12, SIZE, SIZE), torch.randint(0, 15360, (1, 16, 16))
    x, tokens = x.to(device), tokens.to(device)
    if kind.startswith("theirs"):
        module = import_terratorch()
        base = _resident("VmRSS")
        net = module.terramind_v1_tokenizer_s2l2a(ckpt_path=path).eval().to(device)
        with torch.inference_mode():
            net.tokenize(x) if "encode" in kind else net.decode_tokens(tokens, timesteps=1, verbose=False)
    else:
        import tmcodec

        base = _resident("VmRSS")
        tok = tmcodec.load_tokenizer(NAME, device, checkpoint=path, precision=kind.split()[-1])
        tok.encode(x) if "encode" in kind else tok.decode(tokens)
    on_gpu = torch.device(device).type == "cuda"
    pipe.send(torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else _resident("VmHWM") - base)


def memory(folder: Path, device: torch.device) -> list[list[str]]:
    """Return rows with the memory that loading and one tile take beyond the imported libraries."""
    from parity_helpers import build_official, import_terratorch

    from tmcodec.codec.terramind_models import OFFICIAL
    from tmcodec.codec.terramind_weights import import_checkpoint

    pt = folder / OFFICIAL[NAME].filename
    torch.save(build_official(import_terratorch(), NAME).state_dict(), pt)
    imported = import_checkpoint(pt, folder / "imported.safetensors").path
    context = multiprocessing.get_context("spawn")
    rows = []
    for task in ("encode", "decode"):
        values = {}
        for kind in (f"theirs {task}", f"ours {task} fp32", f"ours {task} bf16"):
            here, there = context.Pipe()
            path = pt if kind.startswith("theirs") else imported
            worker = context.Process(target=_peak, args=(kind, str(path), str(device), there))
            worker.start()
            values[kind] = here.recv()
            worker.join()
        theirs = values[f"theirs {task}"]
        for kind, value in values.items():
            label = "TerraTorch, fp32" if kind.startswith("theirs") else kind.split()[-1]
            times = f"{theirs / value:.2f}"
            rows.append([f"memory, {task} one tile", label, f"{value:.2f} GB", times, "", ""])
    return rows


# --------------------------------------------------------------------------- torch.compile


def compile_rows(batch: int, repeat: int, tasks: list[str], device: torch.device) -> list[list[str]]:
    """Return rows of ours through torch.compile beside ours without: first use, then each use."""
    from parity_helpers import as_checkpoint

    from tmcodec.codec.terramind import TerraMindTokenizer
    from tmcodec.codec.terramind_models import OFFICIAL
    from tmcodec.networks.terramind.net import DecoderHalf, EncoderHalf

    cfg, rows = OFFICIAL[NAME].config, []
    state = {**EncoderHalf(cfg).state_dict(), **DecoderHalf(cfg).state_dict()}
    plain = TerraMindTokenizer(as_checkpoint(NAME, state), str(device), "fp32")
    x = torch.randn(batch, 12, SIZE, SIZE).to(device) * plain.std + plain.mean
    tokens = plain.encode(x)
    for precision, task in itertools.product(("fp32", "bf16"), tasks):
        calls: dict[str, Callable[[], torch.Tensor]] = {}
        for name in ("plain", "compiled"):
            tok = TerraMindTokenizer(plain.checkpoint, str(device), precision, compile=name == "compiled")
            calls[name] = partial(tok.encode, x) if task == "encode" else partial(tok.decode, tokens)
        begun = _all_seconds()
        calls["compiled"]()
        begun, taken = _all_seconds() - begun, seconds(calls, repeat)
        first, second = calls["plain"](), calls["compiled"]()
        apart = (first != second).float().mean() if task == "encode" else (first - second).abs().max()
        figures = taken["plain"], taken["compiled"], taken["plain"] / taken["compiled"]
        rows.append([task, precision, *(f"{v:.2f}" for v in figures), f"{begun:.0f}", f"{float(apart):.3g}"])
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _all_seconds() -> float:
    """Return the time that compiling counts in: with one core, processor seconds of compilers too."""
    return sum(os.times()[:4]) if clock is time.process_time else clock()


HEADER = ("task", "", "seconds", "times better", "GFLOP", "of peak")


def show(rows: list[list[str]], markdown: bool, header: Sequence[str] = HEADER) -> None:
    """Print the table."""
    for i, row in enumerate([list(header), *rows]):
        print("| " + " | ".join(row) + " |" if markdown else "  ".join(f"{c:<18s}" for c in row))
        if markdown and i == 0:
            print("|" + "---|" * len(header))


def main() -> None:
    """Measure and print."""
    import tempfile

    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--batch", type=int, default=4)
    ap.add_argument("--repeat", type=int, default=3)
    ap.add_argument("--steps", type=int, default=5)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--one-core", action="store_true", help="CPU seconds of one thread: for busy machines")
    ap.add_argument("--no-memory", action="store_true", help="leave out the memory")
    ap.add_argument("--markdown", action="store_true")
    ap.add_argument(
        "--compile", choices=("encode", "decode"), action="append", help="only this through torch.compile"
    )
    args = ap.parse_args()
    device = torch.device(args.device)
    if args.one_core and device.type != "cpu":
        ap.error("--one-core counts a processor's seconds; give --device cpu, too")
    global clock
    if device.type == "cuda":
        clock = partial(cuda_clock, device)
    if args.one_core:
        clock = time.process_time
        torch.set_num_threads(1)
    if args.compile:
        header = ["task", "", "seconds", "compiled", "times faster", "first use, seconds", "difference"]
        show(compile_rows(args.batch, args.repeat, args.compile, device), args.markdown, header)
        return
    show(measure(args.batch, args.repeat, args.steps, device), args.markdown)
    if args.no_memory:
        return
    with tempfile.TemporaryDirectory() as folder:
        show(memory(Path(folder), device), args.markdown)


if __name__ == "__main__":
    main()
