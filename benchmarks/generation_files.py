"""Generation from files: what tokens save against encoding anew, what overlaps cost, and memory.

    python benchmarks/generation_files.py [--size 1056] [--repeat 3] [--model mini-any2any-v1]

The demo scene is repeated to a raster of the size given. The peer is the same generation from that raster,
which encodes it anew on each call, as TerraTorch's public classes do; both must give the same bytes. Then
the tiles of the same token file with settled overlaps against independent ones, with the level jumps of the
elevation that they give (across tile borders, over elsewhere), and the peak memory of processes of their own
for two sizes. Seconds are processor time of this process, medians of alternating runs: other work on the
machine does not count. Where the model is not in the package, random weights of its layout stand in, with
which times are right and pictures mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import rasterio
import torch

import tmcodec
from tmcodec.cli.demo import SCENES
from tmcodec.codec.models import default_model
from tmcodec.errors import TokenizerError
from tmcodec.generation.files import generate_files
from tmcodec.generation.models import LoadedGenerator, load_generator
from tmcodec.generation.seams import tile_jumps
from tmcodec.generation.settings import Settings
from tmcodec.generation.weights import TokenizerRef, save_generator
from tmcodec.networks.generator.config import GeneratorConfig, token_spec
from tmcodec.networks.generator.model import Generator

MODALITIES = ("S2L2A", "S2RGB", "S1RTC", "DEM", "NDVI", "LULC")


def load(model: str, folder: Path) -> LoadedGenerator:
    """Load the model, or random weights of the embedded one's layout."""
    try:
        return load_generator(model)
    except TokenizerError as error:
        print(f"{error}\nrandom weights stand in")
    torch.manual_seed(0)
    net = Generator(GeneratorConfig(
        dim=128, encoder_depth=4, decoder_depth=2, heads=4, gated=False, biases=True, embedding="codes",
        codes_hidden=160, modalities=tuple(map(token_spec, MODALITIES)),
    ))  # fmt: skip
    names = {m: default_model(m) for m in MODALITIES}
    refs = {m: TokenizerRef(n, tmcodec.load_tokenizer(n).sha256) for m, n in names.items()}
    path = folder / "random.safetensors"
    save_generator(path, net, "random", refs)
    return load_generator(str(path))


def repeated_scene(path: Path, size: int) -> None:
    """Write the demo scene, repeated to a square of `size` pixels."""
    with rasterio.open(SCENES["S2L2A"]) as scene:
        values, profile, names = scene.read(), scene.profile, scene.descriptions
    times = -(-size // min(values.shape[1:]))
    wide = np.tile(values, (1, times, times))[:, :size, :size]
    profile.update(width=size, height=size)
    with rasterio.open(path, "w", **profile) as out:
        out.write(wide)
        out.descriptions = names
        out.update_tags(TMCODEC_S2_OFFSET="absent")


def cpu_seconds(calls: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Return the median processor time of each call, alternating."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            start = time.process_time()
            call()
            found[name].append(time.process_time() - start)
    return {name: median(values) for name, values in found.items()}


def saved(gen: LoadedGenerator, raster: Path, tokens: Path, repeat: int) -> None:
    """Compare generation from tokens with generation from the raster."""
    for steps in (1, 8):
        settings = Settings(decoding_steps=steps)
        outs = {"tokens": tokens.with_name("a.tmc"), "raster": tokens.with_name("b.tmc")}
        calls = {
            name: partial(generate_files, gen, src, outs[name], ["LULC"], settings=settings, overwrite=True)
            for name, src in (("tokens", tokens), ("raster", raster))
        }
        seconds = cpu_seconds(calls, repeat)
        same = outs["tokens"].read_bytes() == outs["raster"].read_bytes()
        print(f"S2L2A to LULC, {steps} steps: from tokens {seconds['tokens']:.2f} s, from the raster "
              f"{seconds['raster']:.2f} s, {seconds['raster'] / seconds['tokens']:.2f} times; "
              f"same bytes: {same}")


def overlaps(gen: LoadedGenerator, tokens: Path, repeat: int) -> None:
    """Compare settled overlaps with independent tiles."""
    seconds, ratios, how = {}, {}, Settings(decoding_steps=8)
    for overlap in (0, 4):
        out = tokens.with_name(f"dem{overlap}.tif")
        call = partial(
            generate_files, gen, tokens, out, ["DEM"], settings=how, overlap=overlap, overwrite=True
        )
        seconds.update(cpu_seconds({str(overlap): call}, repeat))
        with rasterio.open(out) as dataset:
            ratios[overlap] = tile_jumps(dataset.read().astype(np.float32), gen.cfg.grid, overlap).ratio
    print(f"S2L2A to DEM, 8 steps: independent tiles {seconds['0']:.2f} s, overlap of 4 {seconds['4']:.2f} s "
          f"({seconds['4'] / seconds['0']:.2f} times); level jumps {ratios[0]:.2f} and {ratios[4]:.2f}")


MEMORY = """
import pathlib, re, sys
from tmcodec.generation.files import generate_files
from tmcodec.generation.models import load_generator
from tmcodec.generation.settings import Settings
report = generate_files(load_generator(sys.argv[1]), sys.argv[2], sys.argv[3], ["LULC"], overwrite=True,
                        settings=Settings(decoding_steps=1), overlap=0, batch_size=4)
# Not ru_maxrss, which a child inherits from the process that started it.
print(int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024 / 1e9)
"""


def memory(gen: LoadedGenerator, folder: Path, sizes: tuple[int, ...]) -> None:
    """Print the peak memory of processes of their own, four tiles at once, by the size of the raster."""
    for size in sizes:
        raster, tokens = folder / f"{size}.tif", folder / f"{size}.tmc"
        repeated_scene(raster, size)
        tmcodec.encode(raster, tokens, modality="S2L2A", balance=False, exact=True)
        raster.unlink()
        args = [sys.executable, "-c", MEMORY, str(gen.weights.path), str(tokens), str(folder / "m.tmc")]
        peak = subprocess.run(args, capture_output=True, text=True, check=True).stdout
        print(f"memory of a raster of {size} x {size}: {float(peak):.2f} GB")


def main() -> None:
    """Print all comparisons."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--size", type=int, default=1056)
    ap.add_argument("--repeat", type=int, default=3)
    ap.add_argument("--model", default="mini-any2any-v1")
    ap.add_argument("--memory", type=int, nargs="*", default=[1056, 2112])
    args = ap.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gen = load(args.model, folder)
        raster, tokens = folder / "scene.tif", folder / "scene.tmc"
        repeated_scene(raster, args.size)
        tmcodec.encode(raster, tokens, modality="S2L2A", balance=False, exact=True)
        print(f"{gen.name}, {args.size} x {args.size} pixels, one thread, {gen.device}")
        saved(gen, raster, tokens, args.repeat)
        overlaps(gen, tokens, args.repeat)
        memory(gen, folder, tuple(args.memory))


if __name__ == "__main__":
    main()
