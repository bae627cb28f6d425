"""Train the context coder's tables for a tokenizer's chunks after another's; minutes on one core.

    python -m tmcodec.training.context_layers NDVI S2L2A --data ../shared/data

The first modality is coded, the second is an earlier layer of the same file. Draws crops where both are
known: rasters of one name in both folders, and NDVI and true colour computed from Sentinel-2. Starts from
the tokenizer's own tables, if there are any, and writes
``tmcodec/tokenfile/tables/<tokenizer>+<reference's tokenizer>.ctx``. Released tables are never overwritten,
as `tmcodec.training.context` says.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import tmcodec
from tmcodec.codec.models import default_model
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.modalities import MODALITIES, S2_OFFSET, Modality
from tmcodec.tokenfile.context.model import ContextModel, Network, slot_rows
from tmcodec.tokenfile.context.tables import FOLDER, PairTables, find_tables, overflow, pack_pair_tables
from tmcodec.training import context
from tmcodec.training.context import FloatNetwork, Pairs, Schedule, coarser, encode
from tmcodec.training.corpus import AUGMENT, READERS, Array, CropSampler, Scene
from tmcodec.training.recipes import RECIPES

SLOTS = (*((0, dy, dx) for dy, dx in context.NEAR[:6]), *((1, dy, dx) for dy, dx in context.AROUND))
"""Six neighbours in the chunk, five in the reference: what 40 kB hold."""
ALIKE = {"S1GRD": ("S1GRD", "S1RTC"), "S1RTC": ("S1RTC", "S1GRD")}
"""Folders that hold the same kind of raster."""


@dataclass(frozen=True)
class Place:
    """One place: the reference's bands, and below them those of what is coded, unless computed from it."""

    scene: Scene
    computed: bool


# --------------------------------------------------------------------------- rasters of one place


def ndvi(reflectance: Array, bands: tuple[str, ...]) -> Array:
    """Return NDVI (1, h, w) of Sentinel-2 digital numbers with the offset."""
    nir, red = (np.maximum(reflectance[bands.index(b)] - S2_OFFSET, 0) for b in ("B08", "B04"))
    return ((nir - red) / np.maximum(nir + red, 1))[None].astype(np.float32)


def true_colour(reflectance: Array, bands: tuple[str, ...]) -> Array:
    """Return a picture (3, h, w), 0 to 255, stretched to the crop's own range as the provider's chips are."""
    values = np.stack([reflectance[bands.index(b)] for b in ("B04", "B03", "B02")])
    low, high = np.percentile(values, (0.2, 99.8))
    return np.clip((values - low) / max(high - low, 1) * 255, 0, 255).round().astype(np.float32)


COMPUTED: dict[str, Callable[[Array, tuple[str, ...]], Array]] = {"NDVI": ndvi, "S2RGB": true_colour}


def place_name(path: Path) -> str:
    """Return what rasters of one place have in common: the stem, or the patch of BigEarthNet's names."""
    patch = re.search(r"(\d+_\d+)(_VVVH)?$", path.stem) if path.stem.startswith("bigearthnet") else None
    return patch[1] if patch else path.stem


def places(data: Path, split: str, own: Modality, other: Modality) -> list[Place]:
    """Load the places of a split where both modalities are known."""
    partners = {
        place_name(path): path
        for folder in reversed(ALIKE.get(own.name, (own.name,)))
        for path in sorted((data / split / folder).glob("*.tif"))
    }
    found = []
    # To train on, also what the reference's tokenizer was trained on besides its own modality.
    for folder in RECIPES[other.name].folders if split == "train" else (other.name,):
        for path in sorted((data / split / folder).glob("*.tif")):
            values, valid = READERS[other.name](path, other.bands)
            weight = float(values.shape[1] * values.shape[2]) ** 0.5
            partner = partners.get(place_name(path))
            if partner is not None:
                below, below_valid = READERS[own.name](partner, own.bands)
                if below.shape[1:] == values.shape[1:]:
                    both = np.concatenate([values, below]), np.concatenate([valid, below_valid])
                    found.append(Place(Scene(path.stem, *both, weight), False))
                    continue
            if own.name in COMPUTED and other.optical:
                found.append(Place(Scene(path.stem, values, valid, weight), True))
    return found


def draw(own: Tokenizer, other: Tokenizer, found: list[Place], crops: int, seed: int) -> Pairs:
    """Return tokens of random crops, (coded, reference)."""
    bands, rng = len(other.modality.bands), np.random.default_rng(seed)
    warp = 0.0 if own.modality.categorical or own.modality.name in ALIKE else context.WARPED
    sampler = CropSampler([p.scene for p in found], context.CROP, None, warp, 0.0, seed + 1)
    pairs = []
    for _ in range(crops):
        values = sampler.one()[0]
        above, below = values[:bands], values[bands:]
        if rng.random() < context.AUGMENTED:
            above = AUGMENT[other.modality.name](above, rng)
            if len(below) and not own.modality.categorical:
                below = AUGMENT[own.modality.name](below, rng)
        if not len(below):
            below = COMPUTED[own.modality.name](above, other.modality.bands)
        pairs.append((encode(own, below[None])[0], encode(other, above[None])[0]))
    return pairs


def held_out(own: Tokenizer, other: Tokenizer, found: list[Place]) -> Pairs:
    """Return the tokens of whole scenes, (coded, reference)."""
    bands, pairs = len(other.modality.bands), []
    for place in found:
        above, below = place.scene.values[:bands], place.scene.values[bands:]
        if place.computed:
            below = COMPUTED[own.modality.name](above, other.modality.bands)
        pairs.append((encode(own, below[None])[0], encode(other, above[None])[0]))
    return pairs


# --------------------------------------------------------------------------- training


def start_from(net: FloatNetwork, model: ContextModel, trained: Network) -> None:
    """Copy a network that was trained for chunks on their own; the reference says little to it yet."""
    rows, starts = slot_rows(model, net.slots)[0], slot_rows(model, trained.slots)[0]
    old = {tuple(slot): int(start[0]) for slot, start in zip(trained.slots.tolist(), starts, strict=True)}
    count = sum(model.levels) + len(model.levels)

    def real(array: npt.NDArray[np.integer], places: int) -> torch.Tensor:
        return torch.from_numpy(array / 2.0**places).float()

    def copy(
        layer: Any, weight: Any, bias: Any, scale: float = 1.0, places: tuple[int, int] = (10, 18)
    ) -> None:
        layer.weight.copy_(real(weight, places[0]) * scale)
        layer.bias.copy_(real(bias, places[1]) * scale)

    with torch.no_grad():
        net.first.weight.mul_(0.1)
        for slot, row in zip(net.slots.tolist(), rows[:, 0].tolist(), strict=True):
            if tuple(slot) in old:
                at = old[tuple(slot)]
                net.first.weight[row : row + count] = real(trained.first[at : at + count], 9)
        net.first_bias.copy_(real(trained.first_bias, 9))
        copy(net.second, trained.second.T, trained.second_bias)
        start = 0
        for n, k in enumerate(net.order):
            copy(net.heads[k], trained.heads[k].T, trained.head_bias[k])
            previous: Any = net.previous[k]
            for j in net.order[:n]:
                stop = start + model.levels[j]
                previous.weight[net.starts[j] : net.starts[j + 1]] = real(trained.previous[start:stop], 10)
                start = stop
            mine = slice(net.starts[k], net.starts[k + 1])
            # Q12 and Q16 in bits, of which a nat has 1 / log 2.
            copy(net.last[k], trained.last[mine], trained.last_bias[mine], math.log(2), (12, 16))


def train_pair(
    own: Tokenizer, other: Tokenizer, data: Path, crops: int, plan: Schedule, seed: int
) -> ContextModel:
    """Train the model of `own`'s chunks after `other`'s."""
    alone = find_tables(own.sha256)
    order = tuple(reversed(range(len(own.levels))))
    predictor = None if alone is None else alone.alone.predictor
    rates = np.zeros((6, 64), np.int32)
    base = ContextModel(own.levels, order, None, rates, 0, predictor, other.levels)
    found, kept = (places(data, split, own.modality, other.modality) for split in ("train", "val"))
    if not found or not kept:
        raise SystemExit(f"no places where {own.modality.name} and {other.modality.name} are both known")
    print(f"{len(found)} places to train on, {len(kept)} to choose by", flush=True)
    held = held_out(own, other, kept)
    pairs = draw(own, other, found, crops, seed + 1)
    net = FloatNetwork(base, np.array(SLOTS, np.int32))
    if alone is not None and alone.alone.network is not None:
        start_from(net, base, alone.alone.network)
        before = context.coded_bits(alone.alone, [(t, None) for t, _ in held])
        print(f"{before:.3f} bits a token without the reference", flush=True)
    return context.fit(net, base, pairs, held, plan, coarser)


def main() -> None:
    """Train the tables of one pair."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("modality", choices=list(MODALITIES), help="what is coded")
    ap.add_argument("reference", choices=list(MODALITIES), help="what an earlier layer holds")
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--tokenizer", help="name or weights file; the embedded one without it")
    ap.add_argument("--reference-tokenizer", help="the same of the reference")
    ap.add_argument("--crops", type=int, default=3000)
    ap.add_argument("--epochs", type=float, default=4.0)
    ap.add_argument("--number", type=int, default=1, help="of these tables among the pair's")
    ap.add_argument("--out", type=Path, default=FOLDER)
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    torch.manual_seed(args.seed)
    own = tmcodec.load_tokenizer(args.tokenizer or default_model(args.modality), device="cpu")
    other = tmcodec.load_tokenizer(args.reference_tokenizer or default_model(args.reference), device="cpu")
    suffix = "" if args.number == 1 else f"-{args.number}"
    path = args.out / f"{own.name}+{other.name}{suffix}.ctx"
    if path.exists():
        raise SystemExit(f"{path} exists, and files may depend on it; remove it if it was never released")
    model = train_pair(own, other, args.data, args.crops, Schedule(args.epochs), args.seed)
    if why := overflow(model):
        raise SystemExit(f"{why}; train again with a larger weight decay")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack_pair_tables(PairTables(own.sha256, other.sha256, args.number, model)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f'{path.stat().st_size} bytes\n"{path.name}": "{digest}"')


if __name__ == "__main__":
    main()
