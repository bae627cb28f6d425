"""Bits a token of the context coder beside raw packing, zstandard and order-0 coding, and its speed.

    python benchmarks/context.py --data ../shared/data [--modality S2L2A] [--markdown]

On the validation scenes of each modality, tokens of the embedded tokenizers, coded in chunks of 64 x 64:

* ``raw``: coder 0; ``zstd``: coder 1; ``order 0``: the digits one by one with adaptive counts (Krichevsky-
  Trofimov) and no context, the ideal length; ``context``: coder 2 with its number and checksum.
* ``payload``, ``file``: how much shorter than with coder 0 the payloads and the whole files are in sum;
  ``worst``: the same of the scene that gains least.

Rows below S2L2A: squares of 8 x 8 tokens (each its own chunk) by their pixels, the first rule that
holds: *cloudy* mean B02 above 2500; *water* more than half with (B03 - B08) / (B03 + B08) > 0; *urban*
more than a third with (B11 - B08) / (B11 + B08) > -0.05 and NDVI < 0.4; else *mixed*. *chips* are the
first 16 x 16 tokens of scenes that have them. *seasons* are the dates of one place in one file, without
and with references. Speed is in tokens a second of processor time, a chunk of 64 x 64 tokens.

``--layers`` prints instead what an earlier layer of the same file saves (coder 4): of each pair of default
tokenizers that has tables, on the validation places where both modalities are known (NDVI and true colour
also computed from Sentinel-2), bits a token with the shortest of coders 0 to 2, with the pair's tables, and
without them (table 0); then the place that has every modality, in single files and in a stacked one.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import tmcodec
from tmcodec.codec.models import default_model
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.modalities import MODALITIES, S2_OFFSET, Modality
from tmcodec.tokenfile import FileMeta, TokenFile, TokenFileWriter
from tmcodec.tokenfile.coders import encode_tokens, radix_size
from tmcodec.tokenfile.context.backends import NAMES, choose
from tmcodec.tokenfile.context.coder import Source, context_decode, context_encode
from tmcodec.tokenfile.context.tables import find_pair_tables
from tmcodec.training.context_layers import held_out, places
from tmcodec.training.corpus import Scene, load_scenes
from tmcodec.training.mini import VAL_FOLDERS

Tokens = npt.NDArray[np.int32]
CHUNK, SQUARE, CHIP = 64, 8, 16


def scene_file(scene: Scene, modality: Modality, folder: Path, exact: bool = False) -> bytes:
    """Encode a scene into a token file."""
    stored, profile = np.where(scene.valid, scene.values, np.nan).astype(np.float32), {}
    if modality.categorical:
        stored, profile = np.where(scene.valid, scene.values, 255).astype(np.uint8), {"nodata": 255}
    path = folder / "scene.tmc"
    tmcodec.encode(
        stored, path, profile={**profile, "descriptions": modality.bands}, modality=modality.name,
        s2_offset="present" if modality.optical else "auto", scale=None if modality.categorical else 1.0,
        overwrite=True, exact=exact,
    )  # fmt: skip
    return path.read_bytes()


def rewritten(data: bytes, coders: tuple[int, ...] | None) -> tuple[int, int]:
    """Return (file, payload) bytes of a token file written again with some coders only."""
    with TokenFile.open(io.BytesIO(data)) as file:
        (layer,) = file.layers.values()
        target, side = io.BytesIO(), layer.meta.chunk
        with TokenFileWriter(target, file.meta, coders=coders) as writer:
            for row, col in np.ndindex(layer.meta.grid.chunk_rows, layer.meta.grid.chunk_cols):
                rows, cols = layer.meta.grid.token_shape(row, col)
                place = (col * side, row * side, cols, rows)
                writer.write_chunk(0, 0, row, col, layer.tokens(place), layer.valid(place))
        return len(target.getvalue()), writer.payload_bytes


def chunks(tokens: Tokens, side: int = CHUNK) -> Iterable[Tokens]:
    """Cut a grid."""
    for row in range(0, tokens.shape[0], side):
        for col in range(0, tokens.shape[1], side):
            yield tokens[row : row + side, col : col + side]


def order0_bits(tokens: Tokens, levels: tuple[int, ...]) -> float:
    """Return the ideal length of digits coded with adaptive counts, each beginning at a half."""
    total, rest = 0.0, tokens.ravel()
    for level in levels:
        counts = np.bincount(rest % level, minlength=level)
        rest = rest // level
        lengths = [math.lgamma(c + 0.5) - math.lgamma(0.5) for c in counts]
        total += math.lgamma(tokens.size + level / 2) - math.lgamma(level / 2) - sum(lengths)
    return total / math.log(2)


def coded(parts: Iterable[Tokens], levels: tuple[int, ...], weights: bytes) -> dict[str, float]:
    """Return tokens and bits of each way of coding, summed over chunks."""
    sums: dict[str, float] = dict.fromkeys(("tokens", "raw", "zstd", "order 0", "context", "shortest"), 0.0)
    for part in parts:
        sums["tokens"] += part.size
        sums["raw"] += 8 * radix_size(part.size, levels)
        sums["zstd"] += 8 * len(encode_tokens(part, levels, allowed=(1,))[1])
        sums["order 0"] += order0_bits(part, levels)
        sums["context"] += 8 * len(context_encode(part, levels, weights) or b"")
        sums["shortest"] += 8 * len(encode_tokens(part, levels, weights)[1])
    return sums


def land(values: npt.NDArray[np.float32], bands: tuple[str, ...]) -> str:
    """Name what a square of Sentinel-2 pixels (with the offset) shows mostly."""
    blue, green, red, nir, swir = (
        np.maximum(values[bands.index(b)] - S2_OFFSET, 1) for b in ("B02", "B03", "B04", "B08", "B11")
    )
    if blue.mean() > 2500:
        return "cloudy"
    if ((green - nir) / (green + nir) > 0).mean() > 0.5:
        return "water"
    built = ((swir - nir) / (swir + nir) > -0.05) & ((nir - red) / (nir + red) < 0.4)
    return "urban" if built.mean() > 1 / 3 else "mixed"


def squares(scene: Scene, tokens: Tokens, modality: Modality) -> Iterable[tuple[str, Tokens]]:
    """Yield (kind, tokens) of whole squares."""
    for row in range(0, tokens.shape[0] - SQUARE + 1, SQUARE):
        for col in range(0, tokens.shape[1] - SQUARE + 1, SQUARE):
            pixels = scene.values[:, 16 * row : 16 * (row + SQUARE), 16 * col : 16 * (col + SQUARE)]
            yield land(pixels, modality.bands), tokens[row : row + SQUARE, col : col + SQUARE]


def seasons(files: list[bytes]) -> str:
    """Compare dates in one file, each on its own and with references."""
    parts = []
    for data in files:
        with TokenFile.open(io.BytesIO(data)) as file:
            (layer,) = file.layers.values()
            meta, grid = layer.meta, layer.tokens()
        parts.append(grid)
    times = tuple(np.datetime64("2020-01-01", "s").item().replace(month=1 + 3 * i) for i in range(len(parts)))
    sizes = []
    for coders in ((0,), (0, 1, 2), None):
        with TokenFileWriter(
            io.BytesIO(), FileMeta((meta.replace(times=times, balance=None),)), coders=coders
        ) as w:
            for i, grid in enumerate(parts):
                w.write_chunk(0, i, 0, 0, grid)
        sizes.append(w.payload_bytes)
    gain = 1 - sizes[2] / sizes[1]
    return f"seasons: raw {sizes[0]} bytes, alone {sizes[1]}, with references {sizes[2]} ({gain:.1%} less)"


def line(name: str, rows: list[dict[str, float]], markdown: bool) -> str:
    """Format one row of the table."""
    total = {key: sum(r[key] for r in rows) for key in rows[0]}
    bits = [total[k] / total["tokens"] for k in ("raw", "zstd", "order 0", "context")]
    payload = 1 - total["shortest"] / total["raw"]
    worst = min(1 - r["shortest"] / r["raw"] for r in rows)
    whole = f"{1 - total['file'] / total['raw file']:.1%}" if "file" in total else "–"
    cells = [name, str(len(rows)), f"{total['tokens']:.0f}", *(f"{b:.2f}" for b in bits)]
    cells += [f"{payload:.1%}", whole, f"{worst:.1%}"]
    return (
        "| " + " | ".join(cells) + " |"
        if markdown
        else f"{name:20s}" + "".join(f"{c:>10s}" for c in cells[1:])
    )


def run(modality: Modality, data: Path, markdown: bool, exact: bool) -> None:
    """Print the rows of one modality."""
    tokenizer = tmcodec.load_tokenizer(default_model(modality.name), device="cpu")
    levels, weights = tokenizer.levels, tokenizer.sha256
    rows, chips, kinds, dates = [], [], {}, []
    folders = VAL_FOLDERS.get(modality.name, {modality.name: 1.0})
    with tempfile.TemporaryDirectory() as folder:
        for scene in load_scenes(data, "val", modality, folders):
            content = scene_file(scene, modality, Path(folder), exact)
            with TokenFile.open(io.BytesIO(content)) as file:
                tokens = file[modality.name].tokens()
            row = coded(chunks(tokens), levels, weights)
            row["raw file"], row["file"] = (float(rewritten(content, c)[0]) for c in ((0,), None))
            rows.append(row)
            if min(tokens.shape) >= CHIP:
                chips.append(coded([tokens[:CHIP, :CHIP]], levels, weights))
            if modality.name == "S2L2A":
                for kind, part in squares(scene, tokens, modality):
                    kinds.setdefault(kind, []).append(coded([part], levels, weights))
                dates += [content] if "ssl4eos12" in scene.name else []
    print(line(modality.name, rows, markdown))
    if chips:
        print(line(f"{modality.name}, chips", chips, markdown))
    for kind in sorted(kinds):
        print(line(f"{modality.name}, {kind}", kinds[kind], markdown))
    if len(dates) > 1:
        print(("\n" if markdown else "") + seasons(dates) + ("\n" if markdown else ""), flush=True)


def pair_line(own: Tokenizer, other: Tokenizer, data: Path) -> str | None:
    """Format what the reference saves; None where the pair has no tables or no place."""
    if find_pair_tables(own.sha256, other.sha256) is None:
        return None
    found = places(data, "val", own.modality, other.modality)
    source, sums = Source(other.levels, other.sha256), np.zeros((len(found), 4))
    for row, (tokens, reference) in zip(sums, held_out(own, other, found), strict=True):
        for part, beside in zip(chunks(tokens), chunks(reference), strict=True):
            alone = len(encode_tokens(part, own.levels, own.sha256)[1])
            with_tables = context_encode(part, own.levels, own.sha256, beside, source)
            # Two bytes more in a file: where the reference lies.
            without = context_encode(part, own.levels, own.sha256, beside, Source(other.levels, bytes(32)))
            assert with_tables is not None and without is not None
            row += part.size, alone, min(alone, len(with_tables) + 2), min(alone, len(without) + 2)
    bits = 8 * sums.sum(0)[1:] / sums.sum(0)[0]
    gains = 1 - sums[:, 2] / sums[:, 1]
    cells = [
        f"{own.name} after {other.name}",
        str(len(found)),
        f"{sums.sum(0)[0]:.0f}",
        *(f"{b:.2f}" for b in bits),
    ]
    cells += [f"{1 - bits[1] / bits[0]:.1%}", f"{gains.min():.1%}", f"{gains.max():.1%}"]
    return "| " + " | ".join(cells) + " |"


def layers_table(data: Path) -> None:
    """Print what earlier layers save."""
    print(
        "| pair | places | tokens | alone | after | table 0 | saved | worst place | best place |\n"
        + "|---" * 9
        + "|"
    )
    tokenizers = {m: tmcodec.load_tokenizer(default_model(m), device="cpu") for m in MODALITIES}
    for own, other in itertools.permutations(tokenizers.values(), 2):
        text = pair_line(own, other, data)
        if text is not None:
            print(text, flush=True)
    single: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("S2L2A", "S2RGB", "NDVI", "LULC", "S1RTC", "DEM"):
            scenes = load_scenes(data, "val", MODALITIES[name], {name: 1.0})
            (scene,) = (s for s in scenes if "terramesh_38D_378R_2_3" in s.name)
            single[name] = scene_file(scene, MODALITIES[name], Path(folder))
    target = io.BytesIO()
    tmcodec.stack([io.BytesIO(d) for d in single.values()], target)
    with TokenFile.open(target) as file:
        parts = []
        for name, content in single.items():
            with TokenFile.open(io.BytesIO(content)) as one:
                parts.append(f"{name} {one[name].payload_bytes} -> {file[name].payload_bytes}")
    before, after = sum(map(len, single.values())), len(target.getvalue())
    print(f"\nOne place, files of {before} bytes in one of {after}; chunks: {', '.join(parts)}")


def speed(data: Path) -> None:
    """Print tokens a second of processor time of each backend, coding and decoding a full chunk."""
    modality = MODALITIES["S2L2A"]
    tokenizer = tmcodec.load_tokenizer(default_model("S2L2A"), device="cpu")
    scenes = load_scenes(data, "val", modality, {"S2L2A": 1.0})
    found = []
    for s in scenes:
        rows, cols = (n // 16 * 16 for n in s.values.shape[1:])
        found.append(np.asarray(tokenizer.encode(torch.from_numpy(s.values[None, :, :rows, :cols])))[0])
    flat = np.concatenate([f.ravel() for f in found])
    full = np.resize(flat, (CHUNK, CHUNK)).astype(np.int32)
    for name in NAMES:
        part = full if name != "python" else full[:16, :16]
        try:
            choose(name)
        except tmcodec.errors.TmcodecError as error:
            print(f"{name}: {error}")
            continue
        packed = context_encode(part, tokenizer.levels, tokenizer.sha256, backend=name)
        assert packed is not None
        times = [math.inf, math.inf]
        for _ in range(20 if name != "python" else 2):
            start = time.process_time()
            context_encode(part, tokenizer.levels, tokenizer.sha256, backend=name)
            middle = time.process_time()
            back = context_decode(packed, part.shape, tokenizer.levels, tokenizer.sha256, backend=name)
            times = [min(times[0], middle - start), min(times[1], time.process_time() - middle)]
            assert np.array_equal(back, part)
        print(
            f"{name:8s} coding {part.size / times[0]:12,.0f} tokens/s, decoding {part.size / times[1]:12,.0f}"
        )


def main() -> None:
    """Print one table."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--modality", action="append", choices=list(MODALITIES))
    ap.add_argument("--markdown", action="store_true")
    ap.add_argument("--no-speed", action="store_true")
    ap.add_argument("--exact", action="store_true", help="the encoder's own tokens, not the searched ones")
    ap.add_argument("--layers", action="store_true", help="what earlier layers save")
    args = ap.parse_args()
    if args.layers:
        layers_table(args.data)
        return
    head = ["tokens of", "scenes", "tokens", "raw", "zstd", "order 0", "context", "payload", "file", "worst"]
    print(
        "| " + " | ".join(head) + " |\n" + "|---" * 10 + "|"
        if args.markdown
        else f"{'':20s}" + "".join(f"{h:>10s}" for h in head[1:])
    )
    for name in args.modality or list(MODALITIES):
        run(MODALITIES[name], args.data, args.markdown, args.exact)
    if not args.no_speed:
        speed(args.data)


if __name__ == "__main__":
    main()
