"""Train the context coder's tables for an embedded tokenizer; minutes on one core.

    python -m tmcodec.training.context S2L2A --data ../shared/data

Draws crops of the train split, encodes them with the tokenizer, trains a small network to predict each
digit from the digits known by then, rounds it to integers, chooses the rates of adaptation on the
validation split, and writes ``tmcodec/tokenfile/tables/<tokenizer>.ctx``. Released tables are never
overwritten: files in use need them. A better set gets the next ``--number``. The hash that is printed
at the end belongs into ``tests/golden/tables.json``.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmcodec.codec.models import default_model
from tmcodec.codec.search import search
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.modalities import MODALITIES
from tmcodec.tokenfile.context.backends import choose
from tmcodec.tokenfile.context.coder import _planes, _to_coded, predictor_of
from tmcodec.tokenfile.context.heights import Levels, Tokens, neighbours, reflected_to_number
from tmcodec.tokenfile.context.model import REACH, ContextModel, Network, slot_rows
from tmcodec.tokenfile.context.tables import FOLDER, Tables, overflow, pack_tables, with_rates
from tmcodec.training.corpus import AUGMENT, CropSampler, Scene, load_scenes
from tmcodec.training.mini import VAL_FOLDERS
from tmcodec.training.recipes import RECIPES

CROP = 224
EFFORT = 8
"""Rounds of search for heights: a third of what files have, and nearly the same tokens."""
AUGMENTED, WARPED = 0.75, 0.25
"""Chances that a crop's radiometry is changed, and that it is turned and zoomed; most are as they are."""
COARSER = (2, 3)
"""Land cover of other products is coarser, and its patches hold more classes."""
NEAR = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-1, 2), (-2, -1), (-2, 1))
"""Row and column offsets of the neighbours that the network sees."""
AROUND = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
"""Of those in the reference."""
WIDTHS = (64, 32, 32)
MOST = 1023 / 256
CLIP = 7.99

FIRST_BITS, LAST_BITS = 3, 2
"""Binary places that the first layer's weights and the others do without, so that files are smaller."""

Grids = dict[str, Tokens]
Pairs = Sequence[tuple[Tokens, Tokens | None]]


# --------------------------------------------------------------------------- tokens


def encode(tokenizer: Tokenizer, values: npt.NDArray[np.float32]) -> Tokens:
    """Return int32 tokens (n, rows, cols) of pictures (n, bands, h, w), extended by reflection.

    Where earlier tables predict numbers, heights, they are searched as in files.
    """
    short = [(0, 0), (0, 0), *((0, -n % tokenizer.patch) for n in values.shape[2:])]
    padded = torch.from_numpy(np.pad(values, short, mode="reflect"))
    grids = np.asarray(tokenizer.encode(padded), np.int32)
    if predictor_of(tokenizer.sha256, tokenizer.levels) is None:
        return grids
    pairs = zip(grids, padded.numpy(), strict=True)
    return np.stack([search(tokenizer, grid, x, np.ones(x.shape, np.bool_), EFFORT) for grid, x in pairs])


def thinned(scene: Scene, every: int) -> Scene:
    """Return a scene of classes at a coarser resolution: one pixel of each `every` rows and columns."""
    cut = np.s_[:, ::every, ::every]
    return replace(scene, values=scene.values[cut], valid=scene.valid[cut])


def draw(tokenizer: Tokenizer, data: Path, crops: int, seed: int) -> Tokens:
    """Return tokens of random crops of the train split: int32 (crops, 14, 14)."""
    modality = tokenizer.modality
    recipe, change = RECIPES[modality.name], AUGMENT[modality.name]
    scenes = load_scenes(data, "train", modality, dict(recipe.folders))
    if modality.categorical:  # which is not turned and zoomed
        scenes += [thinned(scene, every) for scene in scenes for every in COARSER]

    def augment(values: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
        return change(values, rng) if rng.random() < AUGMENTED else values

    warp = WARPED if recipe.warp else 0.0
    sampler = CropSampler(scenes, CROP, augment, warp, 0.0, seed)
    found = [encode(tokenizer, sampler.batch(8)[0]) for _ in range(-(-crops // 8))]
    return np.concatenate(found)


def dates(scenes: list[Scene]) -> list[list[Scene]]:
    """Group scenes that are dates of one place: names that end in ``_<digit>``, of one size."""
    groups: dict[tuple[str, tuple[int, ...]], list[Scene]] = {}
    for scene in scenes:
        if re.search(r"_\d$", scene.name):
            groups.setdefault((scene.name[:-2], scene.values.shape), []).append(scene)
    return [group for group in groups.values() if len(group) > 1]


def draw_dates(tokenizer: Tokenizer, data: Path, crops: int, seed: int) -> Pairs:
    """Return tokens of crops at two dates of one place; none where the train split has no such scenes."""
    modality = tokenizer.modality
    change = AUGMENT[modality.name]
    places = dates(load_scenes(data, "train", modality, {modality.name: 1.0}))
    if not places:
        return []
    rng, bands, pairs = np.random.default_rng(seed), len(modality.bands), []
    joined = [
        Scene(g[0].name, np.concatenate([s.values for s in g]), np.concatenate([s.valid for s in g]), 1.0)
        for g in places
    ]
    sampler = CropSampler(joined, CROP, None, WARPED, 0.0, seed + 1)
    for _ in range(crops):
        values = sampler.one()[0]
        chosen = rng.choice(len(values) // bands, 2, replace=False)
        both, changed, alike = [], rng.random() < AUGMENTED, int(rng.integers(2**32))
        for date in chosen:
            crop = values[date * bands : (date + 1) * bands]
            both.append(change(crop, np.random.default_rng(alike)) if changed else crop)
        first, second = encode(tokenizer, np.stack(both))
        pairs.append((first, second))
    return pairs


def validation_dates(names: Grids) -> Pairs:
    """Return each date of a place with one before it, from the tokens of the validation scenes."""
    keys = [k for k in names if re.search(r"_\d$", k)]
    couples = ((a, b) for a in keys for b in keys if a > b and a[:-2] == b[:-2])
    return [(names[a], names[b]) for a, b in couples if names[a].shape == names[b].shape]


def validation(tokenizer: Tokenizer, data: Path) -> Grids:
    """Return the tokens of each validation scene."""
    modality = tokenizer.modality
    folders = VAL_FOLDERS.get(modality.name, {modality.name: 1.0})
    return {s.name: encode(tokenizer, s.values[None])[0] for s in load_scenes(data, "val", modality, folders)}


def fit_predictor(tokens: Tokens, levels: Levels, rounds: int = 30) -> tuple[int, ...]:
    """Return the weights in 256ths that predict numbers from neighbours with the least absolute error."""
    grids = [reflected_to_number(t, levels) for t in tokens]
    near = np.concatenate([neighbours(g)[:, 2:, 2:-1].reshape(6, -1) for g in grids], axis=1).astype(float)
    wanted = np.concatenate([g[2:, 2:-1].ravel() for g in grids]) - near[0]
    steps, trust = (near[1:] - near[0]).T, np.ones(len(wanted))  # the weights add up to one
    for _ in range(rounds):  # iteratively reweighted least squares
        weighted = steps * trust[:, None]
        found = np.linalg.solve(weighted.T @ steps + 1e-6 * np.eye(5), weighted.T @ wanted)
        trust = 1 / np.maximum(np.abs(wanted - steps @ found), 4.0)
    weights = np.rint(np.concatenate([[1 - found.sum()], found]) * 256).astype(int)
    weights[0] += 256 - weights.sum()
    return tuple(weights.tolist())


# --------------------------------------------------------------------------- the network in floating point


class FloatNetwork(nn.Module):
    """`tmcodec.tokenfile.context.model.Network` with real numbers, for training."""

    def __init__(self, model: ContextModel, slots: npt.NDArray[np.int32]) -> None:
        super().__init__()
        h1, h2, hg = WIDTHS
        levels, self.order, self.slots = model.levels, model.order, slots
        self.first = nn.EmbeddingBag(slot_rows(model, slots)[1], h1, mode="sum")
        self.first_bias = nn.Parameter(torch.zeros(h1))
        self.second = nn.Linear(h1, h2)
        self.heads = nn.ModuleList(nn.Linear(h2, hg) for _ in levels)
        self.starts = np.concatenate([[0], np.cumsum(levels)]).tolist()
        self.previous = nn.ModuleList(nn.EmbeddingBag(sum(levels), hg, mode="sum") for _ in levels)
        self.last = nn.ModuleList(nn.Linear(hg, level) for level in levels)
        for table in (self.first, *self.previous):
            nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]

    def bits(self, near: Tensor, digits: Tensor) -> Tensor:
        """Return bits (n, d) of digits (n, d) after the rows `near` (n, slots * d)."""
        h = (self.first(near) + self.first_bias).clamp(0, MOST)
        h = self.second(h).clamp(0, MOST)
        costs = torch.empty(digits.shape)
        for n, k in enumerate(self.order):
            g = self.heads[k](h)
            if n:
                g = g + self.previous[k](
                    torch.stack([digits[:, j] + self.starts[j] for j in self.order[:n]], 1)
                )
            logits = self.last[k](g.clamp(0, MOST))
            costs[:, k] = F.cross_entropy(logits, digits[:, k], reduction="none") / math.log(2)
        return costs


def samples(model: ContextModel, slots: npt.NDArray[np.int32], pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return what the network sees and what it must say: rows (n, slots * d) and digits (n, d)."""
    starts = slot_rows(model, slots)[0]
    near, own = [], []
    for tokens, reference in pairs:
        rows, cols = tokens.shape
        planes = _planes(model, tokens.shape, _to_coded(model, tokens), reference)
        cells = [
            planes[source, REACH + dy : REACH + dy + rows, REACH + dx : REACH + dx + cols] + starts[s]
            for s, (source, dy, dx) in enumerate(slots.tolist())
        ]
        near.append(np.concatenate(cells, -1).reshape(rows * cols, -1))
        own.append(planes[0, REACH:-REACH, REACH:-REACH].reshape(rows * cols, -1))
    return torch.from_numpy(np.concatenate(near)).int(), torch.from_numpy(np.concatenate(own)).long()


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    epochs: float = 3.0
    batch: int = 2048
    lr: float = 4e-3
    looks: int = 8


def train(net: FloatNetwork, data: tuple[Tensor, Tensor], score: Callable[[], float], plan: Schedule) -> None:
    """Train; of some looks at the validation scenes on the way, the best is kept."""
    near, digits = data
    optimizer = torch.optim.AdamW(net.parameters(), lr=plan.lr, weight_decay=1e-4, betas=(0.9, 0.99))
    total = max(1, int(plan.epochs * len(digits) / plan.batch))
    best, kept = math.inf, copy.deepcopy(net.state_dict())
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * min(1, step / 50) * (0.5 + 0.5 * math.cos(math.pi * step / total)) + 1e-6
        chosen = torch.randint(len(digits), (plan.batch,))
        loss = net.bits(near[chosen], digits[chosen]).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % max(1, total // plan.looks) == 0:
            found = score()
            print(
                f"step {step + 1} of {total}: {loss.item():.3f} bits a token, validation {found:.3f}",
                flush=True,
            )
            if found < best:
                best, kept = found, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)


def rounded(value: Tensor, bits: int, limit: float) -> npt.NDArray[np.int64]:
    """Return fixed-point numbers of `bits` binary places, clipped to plus or minus `limit`."""
    return np.rint(np.clip(value.detach().double().numpy(), -limit, limit) * 2**bits).astype(np.int64)


def to_integers(net: FloatNetwork) -> Network:
    """Round the network; its last layer from nats to bits."""
    in_bits = 1 / math.log(2)
    i16, i32 = np.int16, np.int32
    before = [
        rounded(net.previous[k].weight[net.starts[j] : net.starts[j + 1]], 10, CLIP)  # type: ignore[index]
        for n, k in enumerate(net.order)
        for j in net.order[:n]
    ]
    hg = WIDTHS[2]
    heads = np.stack([rounded(h.weight.T, 10, CLIP) for h in net.heads])  # type: ignore[arg-type, operator]
    return Network(
        slots=net.slots,
        first=rounded(net.first.weight, 9, CLIP).astype(i16),
        first_bias=rounded(net.first_bias, 9, CLIP).astype(i16),
        second=rounded(net.second.weight.T, 10, CLIP).astype(i16),
        second_bias=rounded(net.second.bias, 18, 64).astype(i32),
        heads=heads.astype(i16),
        head_bias=np.stack([rounded(h.bias, 18, 64) for h in net.heads]).astype(i32),  # type: ignore[arg-type]
        previous=np.concatenate([*before, np.zeros((0, hg), np.int64)]).astype(i16),
        last=np.concatenate([rounded(v.weight * in_bits, 12, CLIP) for v in net.last]).astype(i16),  # type: ignore[arg-type, operator]
        last_bias=np.concatenate([rounded(v.bias * in_bits, 16, 64) for v in net.last]).astype(i32),  # type: ignore[arg-type, operator]
    )


def coarser(net: Network) -> Network:
    """Return the network with fewer binary places: a third of the file's bytes are their noise."""

    def cut(array: npt.NDArray[np.int16], bits: int) -> npt.NDArray[np.int16]:
        return (np.rint(array / 2**bits).astype(np.int64) << bits).clip(-32768, 32767).astype(np.int16)

    return replace(
        net,
        first=cut(net.first, FIRST_BITS),
        second=cut(net.second, LAST_BITS),
        heads=cut(net.heads, LAST_BITS),
        previous=cut(net.previous, LAST_BITS),
        last=cut(net.last, LAST_BITS),
    )


# --------------------------------------------------------------------------- rates of adaptation


def coded_bits(model: ContextModel, pairs: Pairs) -> float:
    """Return bits a token, the mean over grids: what the coder itself makes, without its frame."""
    backend, found = choose(), []
    for tokens, reference in pairs:
        size = 0
        for row in range(0, tokens.shape[0], 64):
            for col in range(0, tokens.shape[1], 64):
                part = (slice(row, row + 64), slice(col, col + 64))
                other = None if reference is None else reference[part]
                planes = _planes(model, tokens[part].shape, _to_coded(model, tokens[part]), other)
                size += len(backend.code_chunk(model, planes, None) or b"")
        found.append(8 * size / tokens.size)
    return float(np.mean(found))


RATES = ((0, 0), (700, 2800), (1400, 5600), (2836, 5600), (2836, 17000), (5672, 17000))
LAST_RATES = (0, 40, 80, 160, 320, 640, 1280)


def choose_rates(model: ContextModel, pairs: Pairs) -> tuple[ContextModel, float]:
    """Return the model with the rates that code `pairs` best, and its bits a token."""
    rates, last_rate = [(0, 0)] * 6, 0
    best = coded_bits(with_rates(model, rates, 0), pairs)

    def options() -> Iterator[tuple[list[tuple[int, int]], int]]:
        for rate in LAST_RATES:
            yield rates, rate
        for context in (0, 1, 2, 5):
            for pair in RATES:
                yield [*rates[:context], pair, *rates[context + 1 :]], last_rate

    for _ in range(2):
        for trial, rate in options():
            found = coded_bits(with_rates(model, trial, rate), pairs)
            if found < best - 1e-4:
                best, rates, last_rate = found, trial, rate
    return with_rates(model, rates, last_rate), best


# --------------------------------------------------------------------------- all of it


def train_model(
    base: ContextModel,
    slots: npt.NDArray[np.int32],
    train_pairs: Pairs,
    val_pairs: Pairs,
    plan: Schedule,
    finish: Callable[[Network], Network] = lambda network: network,
) -> ContextModel:
    """Train one model on grids and their references (or None)."""
    return fit(FloatNetwork(base, slots), base, train_pairs, val_pairs, plan, finish)


def fit(
    net: FloatNetwork,
    base: ContextModel,
    train_pairs: Pairs,
    val_pairs: Pairs,
    plan: Schedule,
    finish: Callable[[Network], Network] = lambda network: network,
) -> ContextModel:
    """Train a network from where it stands, round it, change it by `finish`, and choose the rates."""
    slots = net.slots
    held = [samples(base, slots, [pair]) for pair in val_pairs]

    @torch.no_grad()
    def score() -> float:
        return float(np.mean([net.bits(*x).sum(1).mean() for x in held]))

    train(net, samples(base, slots, train_pairs), score, plan)
    model, bits = choose_rates(replace(base, network=finish(to_integers(net))), val_pairs)
    if why := overflow(model):
        raise SystemExit(f"{why}; train again with a larger weight decay")
    rates = [(int(r[-1]), int(r[0])) for r in model.rates]
    print(f"{bits:.3f} bits a token on the validation scenes; rates {rates}, last layer {model.last_rate}")
    return model


def main() -> None:
    """Train the tables of one tokenizer."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("modality", choices=list(MODALITIES))
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--tokenizer", help="name or weights file; the embedded one without it")
    ap.add_argument("--crops", type=int, default=6000)
    ap.add_argument("--epochs", type=float, default=3.0)
    ap.add_argument("--number", type=int, default=1, help="of these tables among the tokenizer's")
    ap.add_argument("--coarse", action="store_true", help="fewer binary places, for a smaller file")
    ap.add_argument("--out", type=Path, default=FOLDER)
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    import tmcodec

    torch.manual_seed(args.seed)
    tokenizer = tmcodec.load_tokenizer(args.tokenizer or default_model(args.modality), device="cpu")
    suffix = "" if args.number == 1 else f"-{args.number}"
    path = args.out / f"{tokenizer.name}{suffix}.ctx"
    if path.exists():
        raise SystemExit(f"{path} exists, and files may depend on it; remove it if it was never released")
    grids = draw(tokenizer, args.data, args.crops, args.seed + 1)
    levels = tokenizer.levels
    predictor = predictor_of(tokenizer.sha256, levels)  # what earlier tables settled on stays
    if args.modality == "DEM" and predictor is None:
        predictor = fit_predictor(grids[:2000], levels)
    order = tuple(reversed(range(len(levels))))
    base = ContextModel(levels, order, None, np.zeros((6, 64), np.int32), 0, predictor)
    near = [(0, dy, dx) for dy, dx in NEAR]
    held = validation(tokenizer, args.data)
    plan, finish = Schedule(args.epochs), coarser if args.coarse else lambda network: network
    own, held_out = [(g, None) for g in grids], [(g, None) for g in held.values()]
    alone = train_model(base, np.array(near, np.int32), own, held_out, plan, finish)
    referred, couples = None, validation_dates(held)
    pairs = draw_dates(tokenizer, args.data, args.crops // 2, args.seed + 2) if couples else []
    if pairs:
        around = [(1, dy, dx) for dy, dx in AROUND]
        referred = train_model(base, np.array(near + around, np.int32), pairs, couples, plan, finish)
    tables = Tables(tokenizer.sha256, args.number, alone, referred)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack_tables(tables))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f'{path.stat().st_size} bytes\n"{path.name}": "{digest}"')


if __name__ == "__main__":
    main()
