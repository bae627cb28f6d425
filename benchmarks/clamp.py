"""What TerraTorch's clamp to plus and minus one standard deviation costs, scene by scene.

    python benchmarks/clamp.py WEIGHTS.safetensors --data ../shared/data --steps 10

WEIGHTS is a tokenizer of TerraMind's layout. Each validation scene is cut into tiles, encoded, and sampled
twice from the same noise and at the same timesteps (TerraTorch's, which for 10 steps are also the default's):
with every estimate clamped to -1..1, as TerraTorch does, and without. PSNR is in physical units over valid
pixels (peak: 10000 for Sentinel-2, 50 dB for Sentinel-1, 2 for NDVI, 1000 m for heights). *beyond* is the
share of the scene's own values more than one standard deviation from the modality's mean; *ceiling* is the
PSNR of the scene itself, clamped: no tokenizer with the clamp can be better.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import tmcodec
from tmcodec.codec.terramind import TerraMindTokenizer, reflect_to
from tmcodec.metrics import PEAKS
from tmcodec.samplers.sample import ddim
from tmcodec.samplers.schedule import TRAIN_STEPS, trailing_timesteps
from tmcodec.training.corpus import Scene, load_scenes


def tiles_of(scene: Scene, side: int) -> tuple[Tensor, Tensor]:
    """Return whole tiles ``(N, C, side, side)`` and their validity; the last ones are moved inwards.

    Scenes smaller than a tile are reflected, as the codec does; what is reflected does not count.
    """
    whole = reflect_to(torch.from_numpy(scene.values)[None], side)[0]
    mask = torch.zeros(whole.shape, dtype=torch.bool)
    mask[:, : scene.values.shape[1], : scene.values.shape[2]] = torch.from_numpy(scene.valid)
    height, width = whole.shape[1:]

    def starts(size: int) -> list[int]:
        return sorted({*range(0, size - side, side), size - side})

    places = [(r, c) for r in starts(height) for c in starts(width)]
    x, ok = ([t[:, r : r + side, c : c + side] for r, c in places] for t in (whole, mask))
    return torch.stack(x), torch.stack(ok)


@torch.inference_mode()
def reconstruct(tok: TerraMindTokenizer, x: Tensor, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return physical reconstructions of tiles, clamped on the way and not."""
    net = tok.decoder("official")
    stride, times = TRAIN_STEPS // steps, trailing_timesteps(steps)
    found: list[list[Tensor]] = [[], []]
    generator = torch.Generator().manual_seed(seed)
    for part in x.split(8):
        codes = net.codes(tok.encode(part))
        noise = torch.randn(part.shape, generator=generator)

        def denoise(noisy: Tensor, at: Tensor, codes: Tensor = codes) -> Tensor:
            return net.denoise(noisy, at, codes)

        for kept, clamp in zip(found, (True, False), strict=True):
            z = ddim(denoise, noise, times, [t - stride for t in times], clamp)
            kept.append((z * tok.std + tok.mean).clamp(*tok.modality.valid_range))
    clamped, free = (torch.cat(parts) for parts in found)
    return clamped, free


def psnr(a: Tensor, b: Tensor, valid: Tensor, peak: float) -> float:
    """Return the PSNR over valid pixels in dB."""
    mse = float((a - b)[valid].double().square().mean())
    return 10 * math.log10(peak**2 / mse) if mse else math.inf


def main() -> None:
    """Print a Markdown table."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("weights")
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--steps", type=int, default=10)
    ap.add_argument("--tile", type=int, default=128, help="side in pixels; the one it was trained at")
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    tok = tmcodec.load_tokenizer(args.weights, "cpu", precision="fp32")
    if not isinstance(tok, TerraMindTokenizer) or tok.cfg.categorical:
        raise SystemExit(f"{args.weights} is no diffusion tokenizer of TerraMind's layout")
    scenes = load_scenes(args.data, "val", tok.modality, {tok.modality.name: 1.0})
    peak, sums = PEAKS.get(tok.modality.name, 1000.0), []
    print("| scene | beyond ±1σ | PSNR clamped | PSNR free | gain | ceiling |\n|---|---|---|---|---|---|")
    for scene in scenes:
        x, valid = tiles_of(scene, args.tile)
        low, high = tok.mean - tok.std, tok.mean + tok.std
        beyond = float(((x < low) | (x > high))[valid].double().mean())
        clamped, free = reconstruct(tok, x, args.steps, args.seed)
        a, b = (psnr(back, x, valid, peak) for back in (clamped, free))
        ceiling = psnr(x.clamp(low, high), x, valid, peak)
        sums.append((beyond, a, b, b - a, ceiling))
        cells = f"{beyond:.1%} | {a:.2f} | {b:.2f} | {b - a:+.2f} | {ceiling:.2f}"
        print(f"| {scene.name} | {cells} |", flush=True)
    means = np.mean([[v if math.isfinite(v) else np.nan for v in row] for row in sums], axis=0)
    print(f"| mean | {means[0]:.1%} | {means[1]:.2f} | {means[2]:.2f} | {means[3]:+.2f} | {means[4]:.2f} |")


if __name__ == "__main__":
    main()
