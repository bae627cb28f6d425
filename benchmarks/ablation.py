"""Train and score the rows of the ablation: one change at a time, the same budget, data and seeds.

    python benchmarks/ablation.py --data ../shared/data --out runs/ablation > ablation.md

Each row is a file in ``configs/ablation``. Rows that are there already are not trained again. Scores are
means over all validation scenes of S2L2A, of the reconstruction in as many steps as the row says, against
the raster in digital numbers:

PSNR    peak 10000, dB
SSIM    mean over bands
SAM     spectral angle, degrees
NDVI    mean absolute error
ImageNet, encoder
        perceptual distances: features of EfficientNet-Lite0 on true colour, false colour and short-wave
        infrared (`tmcodec.training.imagenet`), and of mini-s2l2a-v2's encoder (loss ``features``)
digits  entropy of the tokens' digits over the validation scenes, each digit on its own, bits a token
context bits a token that a small causal network needs (`tmcodec.training.rate`), fitted to tokens of
        training crops: nearer to what a token file takes
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import tmcodec.training  # noqa: F401  (lets torchvision import)
from tmcodec.codec.tokenizer import MiniTokenizer
from tmcodec.metrics import image_metrics
from tmcodec.modalities import get_modality
from tmcodec.networks.mini import PATCH
from tmcodec.training import run as training
from tmcodec.training.corpus import Scene, load_scenes
from tmcodec.training.losses import LossTerm, make_loss
from tmcodec.training.mini import band_balance
from tmcodec.training.pair import Pair
from tmcodec.training.rate import RateModel

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "ablation"
TRAINED = ("baseline", "imagenet", "features", "rate", "linear", "balance", "joint-first", "decoder-only",
           "denoiser", "distill")  # fmt: skip
ROWS: tuple[tuple[str, str, int, str], ...] = (
    ("baseline (mse + 0.1 decibel)", "baseline", 1, ""),
    ("+ 0.2 imagenet", "imagenet", 1, ""),
    ("+ 0.1 features of mini-s2l2a-v2", "features", 1, ""),
    ("+ rate term, 0.01 a bit", "rate", 1, ""),
    ("without companding", "linear", 1, ""),
    ("decoder alone for the last third", "decoder-only", 1, ""),
    ("baseline, clamped to ±1σ", "baseline", 1, "clamp"),
    ("baseline + stored balance", "baseline", 1, "balance"),
    ("trained for a balance, without it", "balance", 1, ""),
    ("trained for a balance + stored balance", "balance", 1, "balance"),
    ("baseline + denoiser, 2 steps", "denoiser", 2, ""),
    ("baseline + denoiser, 8 steps", "denoiser", 8, ""),
    ("denoiser distilled from 8 to 2, 2 steps", "distill", 2, ""),
)
"""Label, weights, sampling steps, and what is done to the reconstruction."""

PLACES = {"psnr": 2, "ssim": 4, "sam": 2, "ndvi": 4, "imagenet": 4, "encoder": 4, "digits": 2, "context": 2}
COLUMNS = tuple(PLACES)


def weights_of(name: str, out: Path) -> Path:
    """Return where a row's weights are, or will be."""
    return out / name / f"{name}.safetensors"


def train(name: str, data: Path, out: Path, share: float) -> Path:
    """Train a row where its weights are not there; return them."""
    target = weights_of(name, out)
    if target.exists():
        return target
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for source in config["data"]["train"] + config["data"]["val"]:
        path = Path(source["init_args"]["path"])
        source["init_args"]["path"] = str(data / path.relative_to("data"))
    if "start" in config["model"]:
        config["model"]["start"] = str(out / Path(config["model"]["start"]).relative_to("runs/ablation"))
    config["trainer"]["max_steps"] = round(config["trainer"]["max_steps"] * share)
    config["trainer"].update(default_root_dir=str(out / name), logger=False, enable_progress_bar=False,
                             enable_model_summary=False, accelerator="cpu", limit_val_batches=0)  # fmt: skip
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    begin, cpu = time.time(), time.process_time()
    training.run("fit", ["-c", str(path)])
    seconds = {"wall": time.time() - begin, "processor": time.process_time() - cpu}
    (out / f"{name}.seconds.json").write_text(json.dumps(seconds))
    return target


def reconstruct(tok: MiniTokenizer, scene: Scene, steps: int, change: str) -> tuple[Tensor, Tensor]:
    """Return the reconstruction ``(C, H, W)`` of whole patches of a scene, and its tokens."""
    rows, cols = (n // PATCH * PATCH for n in scene.values.shape[1:])
    x = torch.from_numpy(scene.values[None, :, :rows, :cols])
    tokens = tok.encode(x)
    back = tok.decode(tokens, steps)
    row = get_modality("S2L2A")
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (row.mean, row.std))
    if change == "clamp":
        back = back.clamp(mean - std, mean + std)
    elif change == "balance":
        valid = torch.from_numpy(scene.valid[None, :, :rows, :cols])
        compander = tok.net.compander
        guess = compander.compress(back)
        gain, offset = band_balance(guess, compander.compress(x), valid)
        back = compander.expand(gain * guess + offset)
    return back[0], tokens


def score(tok: MiniTokenizer, scenes: list[Scene], steps: int, change: str) -> dict[str, float]:
    """Return the columns but those of the rate, means over scenes."""
    row = get_modality("S2L2A")
    names = {"imagenet": "imagenet", "encoder": "features"}
    losses = {column: make_loss(LossTerm(name), row) for column, name in names.items()}
    found: dict[str, list[float]] = {}
    for scene in scenes:
        back, _ = reconstruct(tok, scene, steps, change)
        rows, cols = back.shape[1:]
        truth, valid = scene.values[:, :rows, :cols], scene.valid[:, :rows, :cols]
        m = image_metrics(truth, back.numpy(), valid, row)
        values = {"psnr": m.psnr, "ssim": m.ssim, "sam": m.sam, "ndvi": m.ndvi_error}
        compander = tok.net.compander
        z = [compander.compress(t[None]) for t in (back, torch.from_numpy(truth))]
        pair = Pair(z[0], z[1], torch.from_numpy(valid)[None], row, compander)
        with torch.no_grad():
            values |= {name: float(loss(pair)) for name, loss in losses.items()}
        for name, value in values.items():
            found.setdefault(name, []).append(float(value))  # type: ignore[arg-type]
    return {name: float(np.mean(values)) for name, values in found.items()}


def rate(tok: MiniTokenizer, name: str, out: Path, scenes: list[Scene], batches: int) -> dict[str, float]:
    """Return bits a token on the validation scenes, by digits alone and in context."""
    fsq, levels = tok.net.fsq, tok.levels
    grids = [reconstruct(tok, scene, 1, "")[1] for scene in scenes]
    codes = torch.cat([fsq.indices_to_codes(g).flatten(0, 2) for g in grids])
    digits = (codes * (torch.tensor(levels) - 1)).round()
    entropy = 0.0
    for k, level in enumerate(levels):
        p = torch.bincount(digits[:, k].long(), minlength=level).double() / len(digits)
        entropy -= float((p[p > 0] * p[p > 0].log2()).sum())
    torch.manual_seed(0)
    model = RateModel(levels)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    data = training.build(["-c", str(out / f"{name}.yaml")], run_it=False).datamodule
    for i, batch in enumerate(data.loader("train", batches * data.batch, endless=True)):
        codes = fsq.indices_to_codes(tok.encode(batch["values"]))
        loss = model(codes.logit(), codes).mean()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (0.5 + 0.5 * math.cos(math.pi * i / batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        bits = [model(c.logit(), c).flatten() for c in map(fsq.indices_to_codes, grids)]
    return {"digits": entropy, "context": float(torch.cat(bits).mean())}


def main() -> None:
    """Train what is missing, score all rows, print a Markdown table."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--out", type=Path, default=Path("runs/ablation"))
    ap.add_argument("--batches", type=int, default=300, help="that the rate is fitted to")
    ap.add_argument("--share", type=float, default=1.0, help="of the steps that the configurations state")
    ap.add_argument("--only", nargs="*", default=list(TRAINED), help="train these, and do not score")
    ap.add_argument("--no-train", action="store_true", help="score the rows that are there")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    files = {name: weights_of(name, args.out) for name in TRAINED}
    if not args.no_train:
        for name in args.only:
            train(name, args.data, args.out, args.share)
    if args.only != list(TRAINED):
        return
    row = get_modality("S2L2A")
    scenes = load_scenes(args.data, "val", row, {"S2L2A": 1.0})
    rates: dict[str, dict[str, float]] = {}
    results: list[dict[str, Any]] = []
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for label, name, steps, change in ROWS:
        if not files[name].exists():
            continue
        tok = MiniTokenizer.from_file(files[name], "cpu")
        maker = {"denoiser": "baseline", "distill": "baseline"}.get(name, name)  # of the same tokens
        if maker not in rates:
            rates[maker] = rate(tok, maker, args.out, scenes, args.batches)
        found = {**score(tok, scenes, steps, change), **rates[maker]}
        results.append({"row": label, "weights": name, "steps": steps, "change": change, **found})
        print(f"| {label} | {' | '.join(f'{found[c]:.{PLACES[c]}f}' for c in COLUMNS)} |", flush=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
