"""Reconstruction quality of the embedded tokenizers beside what needs no network, at equal bytes.

    python benchmarks/floors.py --data ../shared/data [--modality S2L2A] [--json OUT]

For each modality, on the validation rasters (class maps: accuracy and mIoU, else PSNR in dB over all
bands with the stated peak):

* ``tokenizer``: the embedded tokenizer at one step, decoded from a real token file;
* ``k-means``: a codebook of as many mean spectra as there are tokens, learnt on the train split's
  16x16 patches and interpolated bicubically (class maps: the most frequent classes of a patch in
  2x2 parts, as far as the codebook reaches);
* ``block means``: the same without quantizing;
* ``JPEG 2000``: GDAL's OpenJPEG on the scene's principal components, at the token file's
  bytes; the components are free, and in a second column its headers too.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rasterio.io import MemoryFile

import tmcodec
from tmcodec.fsq import codebook_size
from tmcodec.modalities import MODALITIES, Modality, get_modality
from tmcodec.rasters import fill_invalid
from tmcodec.training.corpus import Scene, load_scenes
from tmcodec.training.mini import VAL_FOLDERS
from tmcodec.training.recipes import RECIPES

Array = npt.NDArray[np.float32]
PATCH = 16


def patch_means(values: Array, part: int = PATCH) -> Array:
    """Means ``(rows, cols, C)`` of whole parts of a picture ``(C, H, W)`` extended by reflection."""
    c, h, w = values.shape
    padded = np.pad(values, ((0, 0), (0, -h % part), (0, -w % part)), mode="reflect")
    rows, cols = padded.shape[1] // part, padded.shape[2] // part
    return padded.reshape(c, rows, part, cols, part).mean((2, 4)).transpose(1, 2, 0).astype(np.float32)


def interpolate(means: Array, shape: tuple[int, int]) -> Array:
    """Bicubic picture ``(C, H, W)`` of means ``(rows, cols, C)``."""
    grid = torch.from_numpy(means.transpose(2, 0, 1)[None].copy())
    big = F.interpolate(grid, scale_factor=PATCH, mode="bicubic", align_corners=False)[0].numpy()
    return big[:, : shape[0], : shape[1]]


def train_spectra(scenes: list[Scene], shifts: int = 4) -> Array:
    """Mean spectra ``(n, C)`` of the train split's patches, at several shifts of the grid."""
    found = []
    for s in scenes:
        step = PATCH // shifts
        for dy in range(0, PATCH, step):
            for dx in range(0, PATCH, step):
                values, valid = s.values[:, dy:, dx:], s.valid[:, dy:, dx:]
                whole = patch_means(valid.astype(np.float32)).min(axis=-1) == 1
                found.append(patch_means(values)[whole])
    return np.concatenate(found)


def nearest(points: Array, centres: Array) -> npt.NDArray[np.int64]:
    """Index of the nearest centre of each point."""
    p, c = torch.from_numpy(points), torch.from_numpy(centres)
    half = (c * c).sum(1) / 2
    return torch.cat([(half - q @ c.T).argmin(1) for q in p.split(2048)]).numpy()


def kmeans(points: Array, count: int, rounds: int = 8, seed: int = 0) -> Array:
    """Lloyd's algorithm from random points; empty clusters stay where they were."""
    rng = np.random.default_rng(seed)
    if len(points) > 120_000:
        points = points[rng.choice(len(points), 120_000, replace=False)]
    centres = points[rng.choice(len(points), min(count, len(points)), replace=False)].copy()
    for _ in range(rounds):
        owner = nearest(points, centres)
        size = np.bincount(owner, minlength=len(centres))
        total = np.zeros_like(centres)
        np.add.at(total, owner, points)
        centres[size > 0] = total[size > 0] / size[size > 0, None]
    return centres


def psnr(got: Array, scene: Scene, peak: float) -> float:
    """PSNR over all valid values."""
    mse = float(np.square(got - scene.values, dtype=np.float64)[scene.valid].mean())
    return 10 * math.log10(peak**2 / max(mse, 1e-12))


def jpeg2000(values: Array, size: int, free_headers: bool) -> Array | None:
    """Compress principal components with OpenJPEG to at most `size` bytes, side information free.

    With `free_headers`, what an empty picture costs is forgiven too (468 bytes for three components of
    264 x 264): on chips of half a kilobyte the markers decide.

    The components that carry the variance are quantized to 16 bit; the rate that just fits is found
    by bisection. Returns None where no rate fits.
    """
    c, h, w = values.shape
    flat = values.reshape(c, -1).astype(np.float64)
    mean = flat.mean(1, keepdims=True)
    _, vectors = np.linalg.eigh(np.cov(flat - mean) if c > 1 else np.eye(1))
    best: tuple[float, Array] | None = None
    for keep in (k for k in (1, 2, 3) if k <= c):
        axes = vectors[:, ::-1][:, :keep]
        parts = axes.T @ (flat - mean)
        # One scale for all components keeps their errors comparable.
        low, span = parts.min(1, keepdims=True), float(np.ptp(parts, axis=1).max()) or 1.0
        stored = ((parts - low) / span * 65000).round().astype(np.uint16).reshape(keep, h, w)
        spare = pack_jpeg2000(np.zeros_like(stored), 1.0)[0] if free_headers else 0
        decoded = fit_rate(stored, size + spare)
        if decoded is None:
            continue
        back = axes @ (decoded.reshape(keep, -1).astype(np.float64) / 65000 * span + low) + mean
        error = float(np.square(back - flat).mean())
        if best is None or error < best[0]:
            best = (error, back.reshape(c, h, w).astype(np.float32))
    return best[1] if best else None


def pack_jpeg2000(stored: npt.NDArray[np.uint16], quality: float) -> tuple[int, npt.NDArray[np.uint16]]:
    """Compress and decompress; bytes of the codestream and the picture."""
    options = {"driver": "JP2OpenJPEG", "CODEC": "J2K", "QUALITY": f"{quality:.6g}", "REVERSIBLE": "NO"}
    count, height, width = stored.shape
    shape = {"count": count, "height": height, "width": width, "dtype": "uint16", "YCBCR420": "NO"}
    with MemoryFile(ext=".j2k") as memory:
        with memory.open(**options, **shape) as dst:
            dst.write(stored)
        with memory.open() as src:
            return len(memory.getbuffer()), src.read()


def fit_rate(stored: npt.NDArray[np.uint16], size: int) -> npt.NDArray[np.uint16] | None:
    """Return the best picture whose codestream has at most `size` bytes, None where none has."""
    low, high, best = 1e-5, 10.0, None
    for _ in range(16):
        quality = math.sqrt(low * high)
        found, picture = pack_jpeg2000(stored, quality)
        if found <= size:
            best, low = picture, quality
        else:
            high = quality
    return best


def tokenizer_result(scene: Scene, modality: Modality, folder: Path) -> tuple[Array, int]:
    """Encode and decode one scene through a real file; physical values and the file's bytes."""
    stored = np.where(scene.valid, scene.values, np.nan).astype(np.float32)
    path = folder / "scene.tmc"
    source = {"descriptions": modality.bands}
    offset = "present" if modality.optical else "auto"
    if modality.categorical:
        stored, source["nodata"] = np.where(scene.valid, scene.values, 255).astype(np.uint8), 255
    report = tmcodec.encode(
        stored, path, profile=source, modality=modality.name, s2_offset=offset, scale=1.0, overwrite=True
    )
    got, _ = tmcodec.decode_array(path)
    return got.astype(np.float32), report.file_bytes


def class_floor(train: list[Scene], scene: Scene, count: int) -> Array:
    """Give each patch the commonest 2x2 majority pattern of the train split nearest to its own."""

    def patterns(values: Array) -> npt.NDArray[np.int64]:
        ids = np.pad(
            values[0], ((0, -values.shape[1] % 16), (0, -values.shape[2] % 16)), mode="reflect"
        ).astype(int)
        rows, cols = ids.shape[0] // 8, ids.shape[1] // 8
        parts = ids.reshape(rows, 8, cols, 8).transpose(0, 2, 1, 3).reshape(rows, cols, 64)
        major = (parts[..., None] == np.arange(10)).sum(2).argmax(-1)
        return (
            major.reshape(rows // 2, 2, cols // 2, 2).transpose(0, 2, 1, 3).reshape(rows // 2, cols // 2, 4)
        )

    seen = Counter(tuple(p) for s in train for p in patterns(s.values).reshape(-1, 4))
    book = np.array([p for p, _ in seen.most_common(count)])
    own = patterns(scene.values)
    agree = (own[:, :, None, :] == book[None, None]).sum(-1)
    chosen = book[agree.argmax(-1)]
    quads = chosen.reshape(*chosen.shape[:2], 2, 2).transpose(0, 2, 1, 3).reshape(chosen.shape[0] * 2, -1)
    big = quads.repeat(8, 0).repeat(8, 1)[: scene.values.shape[1], : scene.values.shape[2]]
    return big[None].astype(np.float32)


def run(modality: Modality, data: Path, with_tokenizer: bool, with_jpeg: bool) -> dict[str, dict[str, float]]:
    """Score every validation scene of a modality; ``{scene: {method: score}}``."""
    recipe = RECIPES[modality.name]
    own = dict.fromkeys(recipe.folders, 1.0)
    train = load_scenes(data, "train", modality, own)
    val = load_scenes(data, "val", modality, VAL_FOLDERS.get(modality.name, {modality.name: 1.0}))
    count = codebook_size(modality.levels)
    table: dict[str, dict[str, float]] = {}
    centres = None if modality.categorical else kmeans(train_spectra(train), count)
    with tempfile.TemporaryDirectory() as folder:
        for s in val:
            row: dict[str, float] = {}
            size = (s.values.shape[1:], 0)
            nbytes = math.ceil(-(-size[0][0] // 16) * -(-size[0][1] // 16) * math.log2(count) / 8)
            if with_tokenizer:
                got, nbytes = tokenizer_result(s, modality, Path(folder))
                row["tokenizer"] = accuracy(got, s) if modality.categorical else psnr(got, s, recipe.peak)
                row["bytes"] = nbytes
                row["ratio"] = s.values.size * np.dtype(modality.dtype).itemsize / nbytes
            if modality.categorical:
                row["k-means"] = accuracy(class_floor(train, s, count), s)
            else:
                assert centres is not None
                # Where there is nothing, all see what the codec's own filling puts there.
                filled = fill_invalid(s.values, s.valid, modality.mean)
                means = patch_means(filled)
                flat = means.reshape(-1, means.shape[-1])
                book = centres[nearest(flat, centres)].reshape(means.shape)
                row["k-means"] = psnr(interpolate(book, s.values.shape[1:]), s, recipe.peak)
                row["block means"] = psnr(interpolate(means, s.values.shape[1:]), s, recipe.peak)
                for label, free in (("JPEG 2000", False), ("headers free", True)) if with_jpeg else ():
                    packed = jpeg2000(filled, nbytes, free)
                    if packed is not None:
                        row[label] = psnr(packed, s, recipe.peak)
            table[s.name] = row
    return table


def accuracy(got: Array, scene: Scene) -> float:
    """Share of valid pixels of the right class."""
    return float((got == scene.values)[scene.valid].mean())


def main() -> None:
    """Print one table a modality."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--modality", action="append", choices=list(MODALITIES))
    ap.add_argument("--no-tokenizer", action="store_true", help="floors alone")
    ap.add_argument("--no-jpeg", action="store_true")
    ap.add_argument("--json", type=Path)
    ap.add_argument("--markdown", action="store_true", help="print the README's table at the end")
    args = ap.parse_args()
    everything = {}
    for name in args.modality or list(MODALITIES):
        table = run(get_modality(name), args.data, not args.no_tokenizer, not args.no_jpeg)
        everything[name] = table
        seen = dict.fromkeys(m for row in table.values() for m in row)
        methods = [m for m in seen if m not in ("bytes", "ratio")]
        print(f"\n{name:48s}" + "".join(f"{m:>13s}" for m in methods))
        for scene, row in table.items():
            print(f"{scene[-48:]:48s}" + "".join(f"{row.get(m, float('nan')):13.3f}" for m in methods))
        means = [np.nanmean([r.get(m, np.nan) for r in table.values()]) for m in methods]
        print(f"{'mean':48s}" + "".join(f"{v:13.3f}" for v in means), flush=True)
        if name == "S2L2A":
            large = [r for s, r in table.items() if "bigearthnet" not in s]
            means = [np.nanmean([r.get(m, np.nan) for r in large]) for m in methods]
            print(
                f"{'mean of the five larger scenes':48s}" + "".join(f"{v:13.3f}" for v in means), flush=True
            )
    if args.markdown:
        print("\n".join(markdown(everything)))
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1))


def markdown(everything: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return the README's table: means over the validation scenes of each modality."""
    methods = ("ratio", "tokenizer", "k-means", "block means", "JPEG 2000", "headers free")
    lines = [
        "| modality | scenes | raw : file | embedded | k-means | block means | JPEG 2000 | headers free |",
        "|---|" + "---|" * 7,
    ]
    for name, table in everything.items():
        rows = {name: list(table.values())}
        if name == "S2L2A":
            large = [r for s, r in table.items() if "bigearthnet" not in s]
            rows = {"S2L2A, all": rows[name], "S2L2A, the five larger": large}
        unit = "" if get_modality(name).categorical else " dB"
        for label, chosen in rows.items():
            cells = []
            for method in methods:
                found = [r[method] for r in chosen if method in r]
                digits = 0 if method == "ratio" else (2 if unit else 3)
                cells.append(
                    f"{np.mean(found):.{digits}f}{unit if method != 'ratio' else ''}" if found else "–"
                )
            lines.append(f"| {label} | {len(chosen)} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
