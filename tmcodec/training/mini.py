"""Train one embedded tokenizer and write its weights.

    python -m tmcodec.training.mini S2L2A --data ../shared/data --out runs --minutes 40

Stage 1 trains encoder, quantizer and mean decoder together; stage 2 freezes them and trains the
denoiser on the residual. Both run by the clock, save a checkpoint every few minutes and go on from
it. The validation split only chooses; no gradient sees it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tmcodec.modalities import Modality, get_modality
from tmcodec.networks.compand import Compander
from tmcodec.networks.mini import PATCH, MiniConfig, MiniNet
from tmcodec.networks.terramind.inference import has_bf16
from tmcodec.samplers import TRAIN_STEPS, alpha_bar
from tmcodec.training.corpus import AUGMENT, CropSampler, Scene, load_scenes
from tmcodec.training.loop import LOG_EVERY, Log, Stage
from tmcodec.training.recipes import RECIPES, Recipe

BALANCE_PRIOR = 0.02
"""Variance that pulls the gains of flat crops towards one."""

VAL_FOLDERS = {"LULC": {"LULC": 0.5, "LULC_nlcd8": 0.5}}


def one_hot(classes: Tensor, count: int) -> Tensor:
    """Class ids ``(B, 1, H, W)`` to float planes ``(B, count, H, W)``."""
    return F.one_hot(classes[:, 0].long(), count).permute(0, 3, 1, 2).float()


def network_input(net: MiniNet, values: Tensor, categorical: bool) -> Tensor:
    """Physical values to what the encoder takes."""
    return one_hot(values, net.cfg.channels) if categorical else net.compander.compress(values)


def band_statistics(scenes: list[Scene], cfg: MiniConfig) -> MiniConfig:
    """Set the companded mean and std of each band, from the scenes by their weights."""
    curve = Compander(cfg.compand, cfg.origin, cfg.knee, [0.0], [1.0]).curve
    first, second, total = (np.zeros(cfg.channels) for _ in range(3))
    for s in scenes:
        y = curve(torch.from_numpy(s.values)).numpy().astype(np.float64)
        for band in range(cfg.channels):
            picked = y[band][s.valid[band]]
            if picked.size:
                first[band] += s.weight * picked.mean()
                second[band] += s.weight * (picked**2).mean()
                total[band] += s.weight
    mean = first / total
    std = np.sqrt(second / total - mean**2)
    return replace(cfg, mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over valid elements of each sample: ``(B, ...)`` to ``(B,)``; None means all are valid."""
    if mask is None:
        return x.flatten(1).mean(1)
    m = mask.expand_as(x).flatten(1).float()
    return (x.flatten(1) * m).sum(1) / m.sum(1).clamp_min(1)


@torch.no_grad()
def band_balance(mean: Tensor, z: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Least-squares gain and offset ``(B, C, 1, 1)`` of each crop and band: ``gain * mean + offset ~ z``.

    The codec stores such a balance for each neighbourhood of a raster (`tmcodec.codec.balance`), so
    tokens need not spend themselves on what it mends.
    """
    w = torch.ones_like(z) if valid is None else valid.expand_as(z).float()
    total = w.sum((2, 3), keepdim=True).clamp_min(1)
    a, b = ((w * x).sum((2, 3), keepdim=True) / total for x in (mean, z))
    variance = (w * (mean - a).square()).sum((2, 3), keepdim=True) / total
    covariance = (w * (mean - a) * (z - b)).sum((2, 3), keepdim=True) / total
    gain = (covariance + BALANCE_PRIOR) / (variance + BALANCE_PRIOR)
    return gain, b - gain * a


def image_loss(mean: Tensor, z: Tensor, slope: Tensor, valid: Tensor | None, balance: float = 0.0) -> Tensor:
    """Squared error after companding, plus the logarithm of each crop's error in physical units.

    The logarithm is what PSNR measures: a crop of dark water counts as much as one of clouds.
    `slope` is d(physical)/d(normalised) over the peak, so errors stay first-order exact and cheap.
    `balance` is the share of `band_balance` that is applied before.
    """
    if balance:
        gain, offset = band_balance(mean, z, valid)
        mean = mean + balance * ((gain - 1) * mean + offset)
    miss = mean - z
    companded = masked_mean(miss.square(), valid).mean()
    decibel = torch.log(masked_mean((miss * slope).square(), valid) + 1e-6).mean()
    return companded + 0.1 * decibel


def class_loss(logits: Tensor, values: Tensor, valid: Tensor | None) -> Tensor:
    """Cross-entropy over valid pixels."""
    loss = F.cross_entropy(logits, values[:, 0].long(), reduction="none")
    return masked_mean(loss[:, None], valid).mean()


def pad_to_patch(x: Tensor) -> Tensor:
    """Reflect the last rows and columns up to a multiple of the patch."""
    h, w = x.shape[-2:]
    return F.pad(x, (0, -w % PATCH, 0, -h % PATCH), mode="reflect")


@torch.no_grad()
def evaluate(net: MiniNet, scenes: list[Scene], peak: float, balance: bool = False) -> dict[str, float]:
    """PSNR in dB (accuracy for classes) of the one-step reconstruction, scene by scene.

    With `balance`, after each scene's own `band_balance`.
    """
    net.eval()
    categorical, scores = peak == 0, {}
    for s in scenes:
        values = torch.from_numpy(s.values)[None]
        z = network_input(net, pad_to_patch(values), categorical)
        tokens = net.fsq.latents_to_indices(net.encoder(z))
        mean, _ = net.decoder(net.fsq.indices_to_codes(tokens))
        ok = torch.from_numpy(s.valid)[None]
        height, width = s.values.shape[1:]
        mean = mean[..., :height, :width]
        if balance:
            gain, offset = band_balance(mean, z[..., :height, :width], ok)
            mean = gain * mean + offset
        if categorical:
            scores[s.name] = float((mean.argmax(1, keepdim=True) == values)[ok].float().mean())
        else:
            mse = float((net.compander.expand(mean) - values)[ok].square().mean())
            scores[s.name] = 10 * math.log10(peak**2 / max(mse, 1e-12))
    net.train()
    return scores


@dataclass(frozen=True)
class Run:
    """What both stages need."""

    net: MiniNet
    sampler: CropSampler
    recipe: Recipe
    log: Log
    out: Path
    lr: float
    bf16: bool

    def batch(self) -> tuple[Tensor, Tensor | None]:
        """Draw values and validity; None where everything is valid."""
        values, valid = (torch.from_numpy(a) for a in self.sampler.batch(self.recipe.batch))
        return values, None if bool(valid.all()) else valid

    def autocast(self) -> torch.autocast:
        """bfloat16 for the networks, where asked for and where the processor computes in it."""
        enabled = self.bf16 and has_bf16(torch.device("cpu"))
        return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def train_mean(run: Run, minutes: float) -> None:
    """Stage 1: encoder, quantizer and mean decoder."""
    net, categorical = run.net, run.recipe.peak == 0

    def step_loss() -> Tensor:
        values, valid = run.batch()
        z = network_input(net, values, categorical)
        with run.autocast():
            latents = net.encoder(z)
            mean, _ = net.decoder(net.fsq.quantize(latents))
        # Latents far outside the outermost thresholds have no gradient left: hold them back.
        hold = 1e-3 * F.relu(latents.abs() - 4).square().mean()
        if categorical:
            return class_loss(mean.float(), values, valid) + hold
        # A crop is smaller than what shares a balance in a file: it gets a part of its own.
        balance = float(torch.rand(())) if run.recipe.balance else 0.0
        return image_loss(mean, z, net.compander.slope(values) / run.recipe.peak, valid, balance) + hold

    params = {n: p for n, p in net.named_parameters() if not n.startswith("denoiser.")}
    Stage(params, step_loss, minutes, run.lr, run.log, run.out / "stage1.pt").run()


@torch.no_grad()
def residual_components(net: MiniNet, sampler: CropSampler, batches: int = 16) -> Tensor:
    """Principal components ``(K, C)`` of what the mean misses, scaled by their standard deviation.

    Where there are as many components as bands, the bands themselves are taken.
    """
    channels, count = net.cfg.channels, net.cfg.residual_channels
    total, weight = torch.zeros(channels, channels), torch.zeros(channels, channels)
    for _ in range(batches):
        values, valid = (torch.from_numpy(a) for a in sampler.batch(8))
        z = net.compander.compress(values)
        mean, _ = net.decoder(net.fsq.quantize(net.encoder(z)))
        error = ((mean - z) * valid).movedim(1, 0).flatten(1)
        ok = valid.movedim(1, 0).flatten(1).float()
        total += error @ error.T
        weight += ok @ ok.T
    covariance = total / weight.clamp_min(1)
    if count == channels:
        return torch.diag(covariance.diagonal().sqrt())
    variances, vectors = torch.linalg.eigh(covariance)
    return (vectors * variances.clamp_min(1e-8).sqrt()).T.flip(0)[:count].contiguous()


def residual_fields(basis: Tensor) -> dict[str, Any]:
    """Return the fields of the configuration that keep these components."""
    if basis.shape[0] == basis.shape[1]:
        return {"residual_std": tuple(basis.diagonal().tolist())}
    return {"residual_basis": tuple(map(tuple, basis.tolist()))}


def train_denoiser(run: Run, minutes: float) -> None:
    """Stage 2: the denoiser on the residual, everything else frozen. Noise schedule: `alpha_bar`."""
    net, levels = run.net, alpha_bar()
    assert net.denoiser is not None
    denoiser = net.denoiser

    def step_loss() -> Tensor:
        values, valid = run.batch()
        with run.autocast():
            with torch.no_grad():
                z = net.compander.compress(values)
                mean, features = net.decoder(net.fsq.quantize(net.encoder(z)))
                clean = net.to_components(z - mean.float()).clamp(-6, 6)
            # The last timestep is pure noise, where the answer is zero by construction.
            t = torch.randint(0, TRAIN_STEPS - 1, (len(values),))
            signal, noise = levels[t].sqrt(), torch.randn_like(clean)
            noisy = signal.view(-1, 1, 1, 1) * clean + (1 - levels[t]).sqrt().view(-1, 1, 1, 1) * noise
            guess = denoiser(noisy, features, t, signal)
        whole = None if valid is None else valid.all(1, keepdim=True)
        return masked_mean((guess - clean).square(), whole).mean()

    params = {n: p for n, p in net.named_parameters() if n.startswith("denoiser.")}
    Stage(params, step_loss, minutes, run.lr, run.log, run.out / "stage2.pt").run()


# Layers whose inputs or outputs run over bands (the band index fastest), and along which axis.
BAND_AXES = {
    "encoder.embed.weight": 1,
    "decoder.coarse.weight": 0,
    "decoder.coarse.bias": 0,
    "decoder.fine.weight": 0,
    "decoder.fine.bias": 0,
}


def fit_bands(
    theirs: Tensor, own: Tensor, axis: int, bands: Sequence[str], own_bands: Sequence[str]
) -> Tensor:
    """Copy what belongs to shared bands from `theirs` into a copy of `own`."""
    source = theirs.movedim(axis, -1).unflatten(-1, (-1, len(bands)))
    target = own.clone().movedim(axis, -1).unflatten(-1, (-1, len(own_bands)))
    for i, band in enumerate(own_bands):
        if band in bands:
            target[..., i] = source[..., bands.index(band)]
    return target.flatten(-2).movedim(-1, axis)


def start_from(net: MiniNet, saved: dict[str, Any]) -> int:
    """Copy the tensors of another modality's run that fit, band by band; return how many."""
    own, weights = net.state_dict(), saved["weights"]
    bands = get_modality(json.loads(saved["config"])["modality"]).bands
    own_bands = get_modality(net.cfg.modality).bands
    fitting = {}
    for name, theirs in weights.items():
        if name in own and own[name].shape == theirs.shape:
            fitting[name] = theirs
        elif name in BAND_AXES:
            fitting[name] = fit_bands(theirs, own[name], BAND_AXES[name], bands, own_bands)
    net.load_state_dict(fitting, strict=False)
    return len(fitting)


def main() -> None:
    """Parse the command line, train both stages, save ``<out>/<modality>/final.pt`` and metrics."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("modality", choices=list(RECIPES))
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--out", type=Path, default=Path("runs"))
    ap.add_argument("--minutes", type=float, default=40, help="stage 1, wall clock")
    ap.add_argument("--denoiser-minutes", type=float, default=5)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    ap.add_argument("--start", type=Path, help="final.pt of another run to start from")
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    train(args)


def build(modality: Modality, recipe: Recipe, scenes: list[Scene]) -> MiniNet:
    """Make the network of a recipe, its statistics taken from the scenes."""
    base = {"modality": modality.name, "channels": len(modality.bands), "levels": modality.levels}
    cfg = MiniConfig(**{**base, **recipe.net})
    return MiniNet(cfg if modality.categorical else band_statistics(scenes, cfg))


def make_log(net: MiniNet, val: list[Scene], recipe: Recipe) -> Log:
    """Return a logger that also scores the averaged weights now and then."""

    def log(step: int, spent: float, loss: float, average: dict[str, Tensor]) -> None:
        line = f"{net.cfg.modality} step {step} {spent:.0f}s loss {loss:.4f}"
        if any(name.startswith("decoder.") for name in average) and step % (3 * LOG_EVERY) == 0:
            averaged = copy.deepcopy(net)
            averaged.load_state_dict(average, strict=False)
            scores = evaluate(averaged, val, recipe.peak, recipe.balance)
            line += f" val {np.mean(list(scores.values())):.3f}"
        print(line, flush=True)

    return log


def train(args: argparse.Namespace) -> None:
    """Train `args.modality` as its recipe says."""
    recipe, modality = RECIPES[args.modality], get_modality(args.modality)
    out = args.out / args.modality
    out.mkdir(parents=True, exist_ok=True)
    scenes = load_scenes(args.data, "train", modality, dict(recipe.folders))
    val = load_scenes(args.data, "val", modality, VAL_FOLDERS.get(modality.name, {modality.name: 1.0}))
    net = build(modality, recipe, scenes)
    if args.start:
        saved = torch.load(args.start, weights_only=True)
        cfg = MiniConfig.from_dict(json.loads(saved["config"]))
        if cfg.modality == modality.name:  # the weights know these statistics
            shapes = {k: v for k, v in recipe.net.items() if k in ("components", "smooth", "antialias")}
            net = MiniNet(replace(cfg, residual_std=(), residual_basis=(), **shapes))
        print(f"{start_from(net, saved)} tensors taken from {args.start}", flush=True)
    augment = AUGMENT[modality.name]
    sampler = CropSampler(scenes, recipe.crop, augment, recipe.warp, recipe.blend, args.seed)
    run = Run(net, sampler, recipe, make_log(net, val, recipe), out, args.lr, not args.fp32)
    train_mean(run, args.minutes)
    if net.denoiser is not None:
        basis = residual_components(net, sampler)
        net.cfg = replace(net.cfg, **residual_fields(basis))
        net.set_residual_basis(basis)
        train_denoiser(run, args.denoiser_minutes)
    scores = evaluate(net, val, recipe.peak, recipe.balance)
    torch.save({"weights": net.state_dict(), "config": json.dumps(net.cfg.to_dict())}, out / "final.pt")
    (out / "metrics.json").write_text(json.dumps(scores, indent=1))
    print("\n".join(f"{k}: {v:.3f}" for k, v in scores.items()), flush=True)


if __name__ == "__main__":
    main()
