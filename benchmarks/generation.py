"""Any-to-any generation: ours beside TerraTorch's, same random weights, same inputs, in one run.

    python benchmarks/generation.py [--size base] [--batch 8] [--steps 2] [--repeat 2] [--device cuda]

S2L2A pixels to land cover and then elevation, which sees the land cover (TerraTorch's chained generation),
one decoding step each, decoded to pixels with the same number of diffusion steps. Needs the extra
``[parity]``. Times are medians of alternating calls. Weights are random: speed can be seen with them, and
whether greedy tokens agree; quality cannot. *encoder once* is the case that TerraTorch's public class has no
name for: independent targets, for which one pass of the encoder is enough. Without ``--device`` a GPU is
taken where there is one.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "parity"))

TARGETS = ("LULC", "DEM")
KEYS = {"LULC": "tok_lulc@224", "DEM": "tok_dem@224"}
SIDE = 224

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


def theirs(size: str, steps: int) -> Any:
    """Return TerraTorch's generating class with random weights, greedy."""
    from generator_parity import official_modules, randomise
    from parity_helpers import no_initialisation
    from parity_helpers import randomise as randomise_tokenizer

    official_modules()
    from terratorch.models.backbones.terramind.model import terramind_register

    torch.set_float32_matmul_precision("highest")  # importing TerraTorch sets "medium"
    build = getattr(terramind_register, f"terramind_v1_{size}_generate")
    with no_initialisation():
        net = build(modalities=["S2L2A"], output_modalities=list(TARGETS), pretrained=False, timesteps=steps,
                    top_k=1, top_p=0.0)  # fmt: skip
    randomise(net.sampler, 0)
    for seed, key in enumerate(KEYS.values()):
        randomise_tokenizer(net.tokenizer[key], seed)
    return net.eval().requires_grad_(False)


def ours(official: Any, precision: str, folder: Path, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """Return our generator and tokenizers with the same weights."""
    from parity_helpers import as_checkpoint

    from tmcodec.codec.terramind import TerraMindTokenizer
    from tmcodec.generation.models import load_generator

    path = folder / "generate.pt"
    if not path.exists():
        state = {k: v for k, v in official.state_dict().items() if k.startswith("sampler.model.")}
        torch.save(state, path)
    loaded = load_generator(str(path), str(device), precision=precision)
    tokenizers = {}
    for name, key in KEYS.items():
        official_name = f"terramind-v1-{name.lower()}"
        checkpoint = as_checkpoint(official_name, official.tokenizer[key].state_dict())
        tokenizers[name] = TerraMindTokenizer(checkpoint, str(device), precision, tile=224)
    return loaded, tokenizers


def made_by_them(official: Any, z: Tensor, keep: bool) -> dict[str, Tensor]:
    """Run the public class; with `keep` return the tokens that it decodes, and decode nothing."""
    tokens: dict[str, Tensor] = {}
    if not keep:
        with torch.inference_mode():
            official({"S2L2A": z})
        return tokens
    kept = {name: official.tokenizer[key].decode_tokens for name, key in KEYS.items()}
    for name, key in KEYS.items():
        def skip(given: Tensor, *args: object, name: str = name, **kwargs: object) -> Tensor:
            tokens[name] = given
            return given

        official.tokenizer[key].decode_tokens = skip
    try:
        with torch.inference_mode():
            official({"S2L2A": z})
    finally:
        for name, key in KEYS.items():
            official.tokenizer[key].decode_tokens = kept[name]
    return tokens


def made_by_us(
    loaded: Any, tokenizers: dict[str, Any], x: Tensor, steps: int, order: str
) -> dict[str, Tensor]:
    """Generate, and decode where `steps` is not 0; return the tokens."""
    made = loaded.generate({"S2L2A": x}, list(TARGETS), order=order, decoding_steps=1, temperature=0.0)
    if steps:
        for name, tok in tokenizers.items():
            tok.decode(made.tokens[name], steps)
    return made.tokens


def measure(size: str, batch: int, steps: int, repeat: int, device: torch.device) -> list[list[str]]:
    """Return rows of the table."""
    import tempfile

    from tmcodec.modalities import get_modality

    row = get_modality("S2L2A")
    mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (row.mean, row.std))
    z = torch.randn(batch, 12, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    x = z * std + mean
    official = theirs(size, steps)
    with tempfile.TemporaryDirectory() as folder:
        both = {name: ours(official, name, Path(folder), device) for name in ("fp32", "bf16")}
    official.to(device)
    gc.collect()
    alone: dict[str, Callable[[], object]] = {"TerraTorch, fp32": lambda: made_by_them(official, z, True)}
    full: dict[str, Callable[[], object]] = {"TerraTorch, fp32": lambda: made_by_them(official, z, False)}
    for precision, (loaded, toks) in both.items():
        for order, suffix in (("chained", ""), ("independent", ", encoder once")):
            def tokens_only(loaded: Any = loaded, toks: Any = toks, order: str = order) -> object:
                return made_by_us(loaded, toks, x, 0, order)

            def whole(loaded: Any = loaded, toks: Any = toks, order: str = order) -> object:
                return made_by_us(loaded, toks, x, steps, order)

            alone[precision + suffix], full[precision + suffix] = tokens_only, whole
    agreement(made_by_them(official, z, True), {p: made_by_us(*b, x, 0, "chained") for p, b in both.items()})
    rows = report(f"tokens of two targets, {batch} tiles", seconds(alone, repeat))
    return rows + report(f"with pixels, {steps} diffusion steps", seconds(full, repeat))


def agreement(expected: dict[str, Tensor], found: dict[str, dict[str, Tensor]]) -> None:
    """Print the share of greedy tokens that are TerraTorch's, and how many different ones there are."""
    for precision, made in found.items():
        shares = ", ".join(
            f"{name} {float((made[name].long() == expected[name].long()).float().mean()):.2%} "
            f"of {expected[name].numel()} ({expected[name].unique().numel()} different)"
            for name in TARGETS
        )
        print(f"greedy tokens equal to TerraTorch's, {precision}: {shares}")


def report(what: str, taken: dict[str, float]) -> list[list[str]]:
    """Return the rows of one task."""
    first = next(iter(taken.values()))
    return [[what, name, f"{value:.2f}", f"{first / value:.2f}"] for name, value in taken.items()]


def show(rows: list[list[str]], markdown: bool) -> None:
    """Print the table."""
    header = ["task", "", "seconds", "times better"]
    for i, cells in enumerate([header, *rows]):
        print("| " + " | ".join(cells) + " |" if markdown else "  ".join(f"{c:<34s}" for c in cells))
        if markdown and i == 0:
            print("|" + "---|" * len(header))


def main() -> None:
    """Measure and print."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--size", choices=("tiny", "small", "base", "large"), default="base")
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--steps", type=int, default=2)
    ap.add_argument("--repeat", type=int, default=2)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--one-core", action="store_true", help="CPU seconds of one thread: for busy machines")
    ap.add_argument("--markdown", action="store_true")
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
    threads = f"{torch.get_num_threads()} threads"
    computes = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    print(f"{args.size}, {computes}, torch {torch.__version__}")
    show(measure(args.size, args.batch, args.steps, args.repeat, device), args.markdown)


if __name__ == "__main__":
    main()
