"""Widen a tokenizer to a modality of more bands: the same tokens, and the new bands guessed from them.

    python -m tmcodec.training.bands S2L1C --start mini-s2l2a-v2 --data ../shared/data --out FILE.safetensors

Level 1C of Sentinel-2 has what Level 2A has, before the atmosphere was taken off, and B10 of thin clouds. So
a tokenizer of the one is one of the other, but for B10: its encoder does not look at new bands, all else
decodes as before, and the rows of the decoder's last layers that draw the new bands are fitted here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tmcodec.codec.models import find_weights
from tmcodec.codec.weights import load_weights, save_weights
from tmcodec.modalities import Modality, get_modality
from tmcodec.networks.mini import MiniNet
from tmcodec.training.corpus import CropSampler, Scene, load_scenes
from tmcodec.training.loop import schedule
from tmcodec.training.mini import BAND_AXES, band_statistics, masked_mean, start_from
from tmcodec.training.recipes import RECIPES

CROP, BATCH = 160, 8


def widened(source: MiniNet, modality: Modality, scenes: Sequence[Scene]) -> MiniNet:
    """Return the network with the modality's bands: those of `source` as they are, new ones unseen and zero.

    Parameters
    ----------
    source
        A small tokenizer whose bands the modality has, too.
    modality
        Of the result.
    scenes
        Rasters that the mean and deviation of new bands are measured on.
    """
    known, bands = get_modality(source.cfg.modality).bands, modality.bands
    cfg = replace(source.cfg, modality=modality.name, channels=len(bands), mean=(), std=(), residual_basis=())
    measured = band_statistics(list(scenes), cfg)

    def spread(old: Sequence[float], new: Sequence[float]) -> tuple[float, ...]:
        return tuple(old[known.index(b)] if b in known else new[i] for i, b in enumerate(bands))

    nothing = (0.0,) * len(bands)
    net = MiniNet(replace(
        measured,
        mean=spread(source.cfg.mean, measured.mean), std=spread(source.cfg.std, measured.std),
        residual_basis=tuple(spread(row, nothing) for row in source.cfg.residual_basis),
    ))  # fmt: skip
    with torch.no_grad():
        for name in BAND_AXES:
            net.get_parameter(name).zero_()
    start_from(net, {"weights": source.state_dict(), "config": json.dumps(source.cfg.to_dict())})
    return net.train()


def fit_new_bands(net: MiniNet, sampler: CropSampler, new: Sequence[int], steps: int, lr: float) -> float:
    """Fit the rows of the decoder's last layers that draw the bands `new`, in place; return the last loss.

    Their squared error in normalised units is a function of these rows alone, so that no other moves.
    """
    last = [net.get_parameter(n) for n in BAND_AXES if n.startswith("decoder.")]
    optimizer = torch.optim.Adam(last, lr)
    average, recent = [p.detach().clone() for p in last], 0.0
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * schedule((step + 1) / steps)
        values, valid = (torch.from_numpy(x) for x in sampler.batch(BATCH))
        loss = new_band_loss(net, values, valid, new)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent += 0.02 * (float(loss.detach()) - recent) if step else float(loss.detach())
        for kept, p in zip(average, last, strict=True):
            kept.lerp_(p.detach(), 0.02)
    with torch.no_grad():
        for kept, p in zip(average, last, strict=True):
            p.copy_(kept)
    return recent


def new_band_loss(net: MiniNet, values: Tensor, valid: Tensor, new: Sequence[int]) -> Tensor:
    """Return the mean squared error of the bands `new`, normalised."""
    z = net.compander.compress(values)
    with torch.no_grad():
        codes = net.fsq.quantize(net.encoder(z))
    mean, _ = net.decoder(codes)
    return masked_mean((mean - z)[:, new].square(), valid[:, new]).mean()


def main() -> None:
    """Widen a tokenizer and write its weights."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("modality")
    ap.add_argument("--start", required=True, help="embedded tokenizer or weights file of fewer bands")
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--steps", type=int, default=400)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    torch.manual_seed(args.seed)
    source, name, sha256, _ = load_weights(find_weights(args.start))
    modality = get_modality(args.modality)
    new = [i for i, b in enumerate(modality.bands) if b not in get_modality(source.cfg.modality).bands]
    scenes = [
        scene for scene in load_scenes(args.data, "train", modality, dict(RECIPES[modality.name].folders))
        if scene.valid[new].any()
    ]  # fmt: skip
    net = widened(source, modality, scenes)
    # No change of colours: new bands would have other ones than what they are guessed from.
    sampler = CropSampler(scenes, CROP, None, 0.5, 0.15, args.seed)
    loss = fit_new_bands(net, sampler, new, args.steps, args.lr)
    training = {"start": f"{name} {sha256.hex()}", "steps": args.steps, "loss": round(loss, 4)}
    digest = save_weights(args.out, net, f"mini-{modality.name.lower()}", {"training": json.dumps(training)})
    print(f"{args.out}  loss {loss:.4f}  sha256 {digest.hex()}")


if __name__ == "__main__":
    main()
