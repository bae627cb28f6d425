"""What several sampling steps draw, against what one step misses.

    python benchmarks/texture.py [--data ../shared/data] [--modality S1GRD ...] [--steps 2 4]

Every validation scene (at most 512 x 512 pixels of it) is tokenized and decoded by the embedded tokenizer;
where a texture lies beside its weights, by the weights' own diffusion decoder, too. All in the normalised
space of the tokenizer, without balance or files. Means over scenes of

- strength: root mean square, about patches' means, of what is added to the mean over that of what it misses;
- follows: correlation of the logarithms of both, patch by patch;
- spectrum: mean absolute difference in dB of the power spectra of first differences;
- energy: energy score (`tmcodec.training.energy`) of two draws, lower is better, over that of one step;
- lattice: jumps between pixels across the denoiser's cells of 4 over all others;
- PSNR lost against one step.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from torch import Tensor

from tmcodec.codec.models import EMBEDDED, default_model
from tmcodec.codec.tokenizer import MiniTokenizer
from tmcodec.modalities import MODALITIES, S2_OFFSET
from tmcodec.training.energy import energy_score, relief_weights, whole_cells

SIDE, CELL, PATCH = 512, 4, 16
ALL = ("S2L2A", "S2L1C", "S2RGB", "S1GRD", "S1RTC", "NDVI")
Array = npt.NDArray[np.float64]


def scenes(data: Path, modality: str) -> list[Tensor]:
    """Return validation scenes ``(1, C, H, W)``, all pixels valid, physical units, sides multiples of 32."""
    found = []
    for path in sorted((data / "val" / modality).glob("*.tif")):
        with rasterio.open(path) as source:
            height, width = (min(n // 32 * 32, SIDE) for n in source.shape)
            values = source.read(window=((0, height), (0, width))).astype(np.float32)
        row = MODALITIES[modality]
        values = np.where(np.isfinite(values), values, np.array(row.mean, np.float32)[:, None, None])
        # Digital numbers below 900 have no offset yet; the tokenizers expect it.
        if row.optical and modality != "S2RGB" and np.percentile(values, 0.5) < 900:
            values = values + S2_OFFSET
        found.append(torch.from_numpy(values.astype(np.float32))[None])
    return found


def spectrum(z: Array) -> Array:
    """Return the mean power of first differences ``(C, H, W)`` over rings of frequency."""
    power = []
    for d in (np.diff(z, axis=-1)[:, :-1], np.diff(z, axis=-2)[..., :-1]):
        n = min(d.shape[-2:])
        window = np.hanning(n)[:, None] * np.hanning(n)
        cut = d[:, :n, :n] - d[:, :n, :n].mean((1, 2), keepdims=True)
        frequency = np.fft.fftfreq(n)
        ring = (np.hypot(frequency[:, None], frequency) * n).astype(int).ravel()
        squares = np.abs(np.fft.fft2(cut * window)) ** 2
        rings = [np.bincount(ring, s.ravel()) / np.bincount(ring) for s in squares]
        power.append(np.array(rings)[:, 1 : n // 2])
    return np.mean(power, 0)


def patch_strength(r: Array) -> Array:
    """Return the root mean square of each patch about its mean, all bands, of ``(C, H, W)``."""
    c, h, w = r.shape
    patches = r.reshape(c, h // PATCH, PATCH, w // PATCH, PATCH)
    return np.sqrt(patches.var((2, 4)).mean(0)).ravel()


def lattice(z: Array) -> float:
    """Return the jumps between cells over those inside them."""
    ratios = []
    for jumps in (np.abs(np.diff(z, axis=-1)).mean((0, 1)), np.abs(np.diff(z, axis=-2)).mean((0, 2))):
        across = np.arange(len(jumps)) % CELL == CELL - 1
        ratios.append(jumps[across].mean() / jumps[~across].mean())
    return float(np.mean(ratios))


@torch.no_grad()
def measure(tok: MiniTokenizer, scene: Tensor, steps: int) -> list[float]:
    """Return the figures of one scene: strengths, follows, spectrum, energy, lattice, PSNR lost."""
    net, tokens = tok.net, tok.encode(scene)
    z, mean = net.compander.compress(scene), net.compander.compress(tok.decode(tokens))
    one, other = (net.compander.compress(tok.decode(tokens, steps=steps, seed=seed)) for seed in (0, 1))
    truth, drawn = (patch_strength((x - mean)[0].double().numpy()) for x in (z, one))
    weights = relief_weights(mean)
    scored = energy_score(*(whole_cells(x) for x in (z - mean, one - mean, other - mean, weights)))
    nothing = torch.zeros_like(z)
    alone = energy_score(*(whole_cells(x) for x in (z - mean, nothing, nothing, weights)))
    original, picture = (x[0].double().numpy() for x in (z, one))
    power = spectrum(original)
    apart = np.abs(10 * np.log10((spectrum(picture) + 1e-4 * power) / power)).mean()
    before, after = (float((tok.decode(tokens, steps=n) - scene).square().mean()) for n in (1, steps))
    follows = np.corrcoef(np.log(truth + 1e-4), np.log(drawn + 1e-4))[0, 1]
    lost = 10 * float(np.log10(after / before))
    return [drawn.mean() / truth.mean(), follows, apart, float(scored / alone), lattice(picture), lost]


def rows(data: Path, modality: str, steps: Sequence[int]) -> list[str]:
    """Return the table's lines of a modality."""
    path, lines = EMBEDDED[default_model(modality)].path, []
    with tempfile.TemporaryDirectory() as folder:
        # Copied, the weights have no texture beside them.
        own = MiniTokenizer.from_file(Path(shutil.copy(path, folder)), "cpu")
    toks = [("own", own)]
    beside = MiniTokenizer.from_file(path, "cpu")
    if beside.texture is not None:
        toks.append((beside.texture.name, beside))
    taken = scenes(data, modality)
    for name, tok in toks:
        for n in steps:
            found = np.mean([measure(tok, scene, n) for scene in taken], 0)
            cells = " | ".join(f"{value:.2f}" for value in found)
            lines.append(f"| {modality} | {name} | {n} | {cells} |")
    return lines


def main() -> None:
    """Print the table."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--modality", nargs="+", default=list(ALL), choices=ALL)
    ap.add_argument("--steps", nargs="+", type=int, default=[2, 4])
    args = ap.parse_args()
    columns = ("strength", "follows", "spectrum, dB", "energy", "lattice", "PSNR lost, dB")
    print(f"| modality | diffusion decoder | steps | {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for modality in args.modality:
        print("\n".join(rows(args.data, modality, args.steps)), flush=True)


if __name__ == "__main__":
    main()
