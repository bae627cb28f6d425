"""What the embedded generator is worth: against the truth, against fewer decoding steps, against trivial
guesses.

    python benchmarks/any2any.py [--model mini-any2any-v1] [--data ../shared/data] [--seeds 3] [--out FILE.md]

All on the validation split, which no gradient saw; the tokens of Sentinel-2 alone are the condition.

1. Sentinel-2 to NDVI and true colour in 1, 2, 4 and 8 decoding steps: root mean square error of the
   decoded picture, mean over tiles and seeds, with the defaults, in random order, with MaskGIT, with
   temperature 0 and with means; the same error of the differences between neighbouring patches' means, which
   is small where neighbours agree on what they err in; and the cross-entropy of the true tokens when they are
   asked for in so many groups, each group knowing the ones before.
   Beside it: what the tokenizer's own decoder makes of the true tokens (no generator can be better but by
   luck), NDVI computed from the decoded Sentinel-2 tokens (what they know), and the mean of the training
   scenes.
2. Chains: true colour and NDVI through another modality against directly, by what the first counts for.
3. Elevation, land cover and radar against the training scenes' mean or commonest class.
4. Level jumps at tile borders with settled overlaps against independent tiles.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import torch
import torch.nn.functional as F
from torch import Tensor

import tmcodec
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.generation.files import generate_files
from tmcodec.generation.models import LoadedGenerator, load_generator
from tmcodec.generation.seams import tile_jumps
from tmcodec.generation.settings import Settings
from tmcodec.modalities import MODALITIES
from tmcodec.networks.generator.model import Part
from tmcodec.training.any2any.aligned import computed
from tmcodec.training.corpus import read_optical

Array = npt.NDArray[np.float32]
Taken = Callable[[Array], npt.NDArray[Any]]
STEPS = (1, 2, 4, 8)
WAYS: dict[str, dict[str, Any]] = {
    "default (nearest, top-p 0.8)": {},
    "random order": {"schedule": "roar"},
    "MaskGIT": {"schedule": "maskgit"},
    "temperature 0": {"temperature": 0.0},
    "mean of the codes": {"choice": "mean"},
}
MEANS: dict[str, Any] = {"choice": "mean", "decoding_steps": 1}
CHAINS = (
    (None, "S2RGB"), ("NDVI", "S2RGB"), ("LULC", "S2RGB"), ("S1RTC", "S2RGB"),
    (None, "NDVI"), ("S2RGB", "NDVI"), ("LULC", "NDVI"), ("DEM", "NDVI"),
)  # fmt: skip
UNITS = {"NDVI": "NDVI", "S2RGB": "of 255", "DEM": "m", "S1RTC": "dB"}


@dataclass(frozen=True)
class Tile:
    """One validation tile: Sentinel-2 with the offset, and the truth of other modalities, ``(C, H, W)``."""

    name: str
    optical: Array
    truth: Mapping[str, Array]


def read(path: Path) -> Array:
    """Read a raster whole."""
    with rasterio.open(path) as dataset:
        return dataset.read().astype(np.float32)


def validation_tiles(data: Path, side: int) -> list[Tile]:
    """Return tiles of at most `side` pixels: the corners of larger scenes, whole patches of smaller ones.

    NDVI and true colour are the provider's where there are any, else computed, as for training.
    """
    tiles, bands = [], MODALITIES["S2L2A"].bands
    for path in sorted((data / "val" / "S2L2A").glob("*.tif")):
        values, valid = read_optical(path, bands)
        truth = {m: computed(values, valid, bands, m)[0] for m in ("NDVI", "S2RGB")}
        for modality in ("NDVI", "S2RGB", "DEM", "LULC", "S1RTC"):
            own = data / "val" / modality / path.name
            if own.is_file():
                truth[modality] = read(own)
        size = [min(n // 16 * 16, side) for n in values.shape[1:]]
        corners = {(r, c) for r in (0, values.shape[1] - size[0]) for c in (0, values.shape[2] - size[1])}
        if min(values.shape[1:]) - side < 16:  # corners that nearly coincide
            corners = {(0, 0)}
        for row, col in sorted(corners):
            cut = np.s_[:, row : row + size[0], col : col + size[1]]
            tiles.append(Tile(f"{path.stem} {row},{col}", values[cut], {m: t[cut] for m, t in truth.items()}))
    return tiles


class Bench:
    """A generator, its tokenizers and the tiles."""

    def __init__(
        self, gen: LoadedGenerator, tokenizers: Mapping[str, Tokenizer], tiles: Sequence[Tile], seeds: int
    ):
        self.gen, self.toks, self.tiles, self.seeds = gen, tokenizers, tiles, seeds
        self.tokens = [self.encode("S2L2A", t.optical) for t in tiles]

    def encode(self, modality: str, values: Array) -> Tensor:
        """Return tokens ``(1, rows, cols)``."""
        return self.toks[modality].encode(torch.from_numpy(np.ascontiguousarray(values))[None])

    def decode(self, modality: str, tokens: Tensor) -> Array:
        """Return the mean picture ``(C, H, W)``."""
        return self.toks[modality].decode(tokens)[0].numpy()

    def groups(self, target: str) -> list[list[int]]:
        """Return the tiles that have a truth, those of one size together."""
        sizes: dict[tuple[int, ...], list[int]] = {}
        for i, tile in enumerate(self.tiles):
            if target in tile.truth:
                sizes.setdefault(tuple(self.tokens[i].shape), []).append(i)
        return list(sizes.values())

    def made(self, targets: Sequence[str], seed: int, **how: Any) -> dict[int, Array]:
        """Return the last target's pictures by tile, from the tiles' Sentinel-2 tokens."""
        last, pictures = targets[-1], {}
        for tiles in self.groups(last):
            shown = torch.cat([self.tokens[i] for i in tiles])
            seeds = [seed * 1000 + i for i in tiles]
            tokens = self.gen.generate({"S2L2A": shown}, list(targets), seed=seeds, **how).tokens[last]
            pictures.update({i: self.decode(last, tokens[k : k + 1]) for k, i in enumerate(tiles)})
        return pictures

    def error(self, target: str, guess: Callable[[int], Array], part: Taken = np.asarray) -> float:
        """Return the root mean square error over the tiles that have a truth, mean over tiles.

        `part` takes what is compared from a picture.
        """
        found = []
        for i, tile in enumerate(self.tiles):
            if target in tile.truth:
                found.append(float(np.sqrt(np.mean((part(guess(i)) - part(tile.truth[target])) ** 2))))
        return float(np.mean(found))

    def mean_error(self, targets: Sequence[str], **how: Any) -> float:
        """Return `error` of generated pictures, mean over seeds."""
        return self.mean_errors(targets, (np.asarray,), **how)[0]

    def mean_errors(self, targets: Sequence[str], parts: Sequence[Taken], **how: Any) -> list[float]:
        """Return `error` of generated pictures for each part of them, mean over seeds."""
        found = []
        for seed in range(self.seeds):
            pictures = self.made(targets, seed, **how)
            found.append([self.error(targets[-1], pictures.__getitem__, part) for part in parts])
        return [float(x) for x in np.mean(found, 0)]

    @torch.no_grad()
    def cross_entropy(self, target: str, groups: int) -> float:
        """Return bits a token of the true tokens, asked for in so many groups in random order."""
        keys = {s.modality: s.key for s in self.gen.cfg.modalities if s.kind == "tokens"}
        total, count = 0.0, 0
        for tiles in self.groups(target):
            known = torch.cat([self.tokens[i] for i in tiles]).long()
            true = torch.cat([self.encode(target, self.tiles[i].truth[target]) for i in tiles]).long()
            grid, flat = (int(true.shape[1]), int(true.shape[2])), true.flatten(1)
            order = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))
            parts, done = [Part(keys["S2L2A"], known.flatten(1), None, grid)], 0
            for some in order.tensor_split(groups):
                before = order[:done].expand(len(tiles), -1)
                shown = [*parts, Part(keys[target], flat.gather(1, before), before, grid)] if done else parts
                asked = some.expand(len(tiles), -1)
                logits = self.gen.net.predict(self.gen.net.encode(shown), keys[target], asked, grid)
                losses = F.cross_entropy(
                    logits.flatten(0, 1).float(), flat.gather(1, asked).flatten(), reduction="sum"
                )
                total, done = total + float(losses), done + len(some)
            count += flat.numel()
        return total / count / float(np.log(2))


def contrasts(picture: Array) -> Array:
    """Return the differences between the means of neighbouring patches of 16 x 16 pixels."""
    bands, height, width = picture.shape
    means = picture.reshape(bands, height // 16, 16, width // 16, 16).mean((2, 4), dtype=np.float64)
    across, down = np.diff(means, axis=2), np.diff(means, axis=1)
    return np.concatenate([across.ravel(), down.ravel()])


def training_means(data: Path, target: str) -> Array:
    """Return the mean of each band over the training scenes ``(C, 1, 1)``; of classes the commonest."""
    scenes = [read(p) for p in sorted((data / "train" / target).glob("terramesh_*.tif"))]
    if MODALITIES[target].categorical:
        ids = np.concatenate([s.ravel() for s in scenes]).astype(int)
        return np.full((1, 1, 1), np.bincount(ids).argmax(), np.float32)
    return np.mean([s.mean((1, 2)) for s in scenes], 0, dtype=np.float32)[:, None, None]


def computed_ndvi(bench: Bench, tile: int) -> Array:
    """Return the NDVI of the decoded Sentinel-2 tokens."""
    back = bench.decode("S2L2A", bench.tokens[tile])
    return computed(back, np.ones(back.shape, bool), MODALITIES["S2L2A"].bands, "NDVI")[0]


def steps_table(bench: Bench, data: Path) -> list[str]:
    """Return the first table: errors and cross-entropies by steps."""
    lines = [
        f"| S2L2A to | way | {' | '.join(f'{n} steps' if n > 1 else '1 step' for n in STEPS)} |",
        f"|---|---|{'---|' * len(STEPS)}",
    ]
    for target in ("NDVI", "S2RGB"):
        for name, how in WAYS.items():
            found = [
                bench.mean_errors([target], (np.asarray, contrasts), decoding_steps=n, **how) for n in STEPS
            ]
            for what, errors in zip(("RMSE", "RMSE between patches"), zip(*found, strict=True), strict=True):
                cells = " | ".join(f"{error:.4g}" for error in errors)
                lines.append(f"| {target}, {what} {UNITS[target]} | {name} | {cells} |")
        bits = [f"{bench.cross_entropy(target, n):.2f}" for n in STEPS]
        lines.append(f"| {target}, bits a token | true tokens in groups | {' | '.join(bits)} |")
    return [*lines, "", *references(bench, data)]


def references(bench: Bench, data: Path) -> list[str]:
    """Return what the errors are to be compared with."""
    lines = ["| reference | NDVI | S2RGB |", "|---|---|---|"]
    own = [
        bench.error(m, lambda i, m=m: bench.decode(m, bench.encode(m, bench.tiles[i].truth[m])))  # type: ignore[misc]
        for m in ("NDVI", "S2RGB")
    ]
    lines.append(f"| the tokenizer's reconstruction of the truth | {own[0]:.4g} | {own[1]:.4g} |")
    known = bench.error("NDVI", lambda i: computed_ndvi(bench, i))
    lines.append(f"| computed from decoded S2L2A tokens | {known:.4g} | – |")
    means = [bench.error(m, lambda i, m=m: training_means(data, m)) for m in ("NDVI", "S2RGB")]  # type: ignore[misc]
    return [*lines, f"| training mean | {means[0]:.4g} | {means[1]:.4g} |"]


def chain_table(bench: Bench) -> list[str]:
    """Return the second table: through a modality against directly."""
    lines = ["| S2L2A to | trust | drawn, 8 steps | between patches | means, 1 step |", f"|{'---|' * 5}"]
    for through, target in CHAINS:
        targets = [target] if through is None else [through, target]
        for trust in (None,) if through is None else (1.0, None):
            drawn = bench.mean_errors(targets, (np.asarray, contrasts), trust=trust)
            means = bench.mean_error(targets, trust=trust, **MEANS)
            name = f"{target}, {'directly' if through is None else f'through {through}'}"
            counts = bench.gen.trust if trust is None else trust
            lines.append(f"| {name} | {counts:g} | {drawn[0]:.4g} | {drawn[1]:.4g} | {means:.4g} |")
    return lines


def others_table(bench: Bench, data: Path) -> list[str]:
    """Return the third table: modalities that three places taught."""
    head = "| S2L2A to | drawn, 8 steps | means, 1 step | trivial | tokenizer's reconstruction |"
    lines = [head, "|---|---|---|---|---|"]
    for target in ("DEM", "S1RTC"):
        made = bench.mean_error([target], decoding_steps=8)
        means = bench.mean_error([target], **MEANS)
        mean = training_means(data, target)
        own = bench.error(
            target, lambda i, m=target: bench.decode(m, bench.encode(m, bench.tiles[i].truth[m]))
        )  # type: ignore[misc]
        trivial = bench.error(target, lambda i, mean=mean: mean)  # type: ignore[misc]
        lines.append(
            f"| {target}, RMSE {UNITS[target]} | {made:.4g} | {means:.4g} | {trivial:.4g} (training mean) "
            f"| {own:.4g} |"
        )
    right, means, own, trivial = class_shares(bench, float(training_means(data, "LULC")[0, 0, 0]))
    return [
        *lines,
        f"| LULC, share of pixels right | {right:.3f} | {means:.3f} | {trivial:.3f} (commonest in training) "
        f"| {own:.3f} |",
    ]


def class_shares(bench: Bench, common: float) -> tuple[float, float, float, float]:
    """Return the shares of right pixels: drawn, by means, the tokenizer's, of one class throughout."""
    tiles = [i for i, tile in enumerate(bench.tiles) if "LULC" in tile.truth]
    truth = {i: bench.tiles[i].truth["LULC"] for i in tiles}
    made, means = [], []
    for seed in range(bench.seeds):
        for found, how in ((made, {"decoding_steps": 8}), (means, MEANS)):
            pictures = bench.made(["LULC"], seed, **how)
            found += [np.mean(pictures[i] == truth[i]) for i in tiles]
    own = [np.mean(bench.decode("LULC", bench.encode("LULC", truth[i])) == truth[i]) for i in tiles]
    trivial = [np.mean(truth[i] == common) for i in tiles]
    return float(np.mean(made)), float(np.mean(means)), float(np.mean(own)), float(np.mean(trivial))


def jumps_table(bench: Bench, data: Path, seeds: int) -> list[str]:
    """Return the fourth table: level jumps at tile borders of a scene of several tiles."""
    path = data / "val" / "S2L1C" / "sen1floods11_India_900498_S2Hand.tif"
    bands = MODALITIES["S2L2A"].bands
    values, _ = read_optical(path, bands)
    lines = ["| target | overlap | across borders | inside tiles | ratio |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "s2.tmc"
        tmcodec.encode(values, tokens, modality="S2L2A", s2_offset="present", balance=False, exact=True,
                       tokenizer=bench.toks["S2L2A"], profile={"descriptions": bands})  # fmt: skip
        for target in ("DEM", "S2RGB", "NDVI"):
            for overlap in (0, 4):
                found = [jumps(bench, tokens, target, overlap, s) for s in range(seeds)]
                across, inside = np.mean(found, 0)
                lines.append(
                    f"| {target} | {overlap} | {across:.4g} | {inside:.4g} | {across / inside:.2f} |"
                )
    return lines


def jumps(bench: Bench, tokens: Path, target: str, overlap: int, seed: int) -> tuple[float, float]:
    """Return the level jumps of one generated raster, across borders of tiles and inside them."""
    out = tokens.with_name(f"{target}{overlap}-{seed}.tif")
    generate_files(bench.gen, tokens, out, [target], settings=Settings(), overlap=overlap, seed=seed,
                   tokenizers=[bench.toks[target]])  # fmt: skip
    found = tile_jumps(read(out), bench.gen.cfg.grid, overlap)
    return found.across, found.inside


def main() -> None:
    """Print all tables."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="mini-any2any-v1")
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--seeds", type=int, default=3)
    ap.add_argument("--tables", nargs="*", default=["steps", "chain", "others", "jumps"])
    ap.add_argument("--out", type=Path)
    args = ap.parse_args()
    gen = load_generator(args.model, "cpu")
    toks = {m: tmcodec.load_tokenizer(ref.name, "cpu") for m, ref in gen.tokenizers.items()}
    bench = Bench(gen, toks, validation_tiles(args.data, gen.cfg.grid * 16), args.seeds)
    makers: dict[str, Callable[[], list[str]]] = {
        "steps": lambda: steps_table(bench, args.data), "chain": lambda: chain_table(bench),
        "others": lambda: others_table(bench, args.data),
        "jumps": lambda: jumps_table(bench, args.data, args.seeds),
    }  # fmt: skip
    print(f"{gen.name}, {len(bench.tiles)} tiles, {args.seeds} seeds", flush=True)
    text = "\n".join("\n".join([*makers[name](), ""]) for name in args.tables)
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
