"""Seams: the jump of decoded values across tile borders against the jump inside tiles.

    python benchmarks/seams.py [--data ../shared/data] [--steps 1 4]

A real scene is decoded in three ways: as the codec does it, in squares of 256 pixels with the context
that the networks' layers reach; in the same squares without any context, as tile-wise codecs do; and
whole, in one piece. The jump is the mean absolute difference between neighbouring pixels. Across
borders over inside should be 1; the largest difference to the whole picture should be a rounding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import tmcodec
from tmcodec.codec.models import default_model
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.rasters import open_raster
from tmcodec.rasters.windows import Window, grid_windows

TILE = 256
Array = npt.NDArray[np.float32]


def jump_ratio(picture: Array) -> float:
    """Mean jump across columns and rows at multiples of the tile, over that everywhere else."""
    across, inside = [], []
    for axis in (1, 2):
        jumps = np.abs(np.diff(picture.astype(np.float64), axis=axis)).mean(axis=(0, 3 - axis))
        border = (np.arange(len(jumps)) + 1) % TILE == 0
        across.append(jumps[border])
        inside.append(jumps[~border])
    return float(np.concatenate(across).mean() / np.concatenate(inside).mean())


def decode_tiles(tok: Tokenizer, tokens: npt.NDArray[np.int32], steps: int, halo: int) -> Array:
    """Decode tile by tile with `halo` tokens of context."""
    rows, cols = tokens.shape
    out = np.empty((len(tok.modality.bands), rows * 16, cols * 16), np.float32)
    for w in grid_windows(cols, rows, TILE // 16):
        around = w.expand(halo, cols, rows)
        r, c = around.slices
        part = torch.from_numpy(tokens[r, c])[None]
        picture = tok.decode(part, steps, 0, (around.row, around.col))[0].numpy()
        inner = w.relative_to(around)
        top, left = inner.row * 16, inner.col * 16
        out[:, w.row * 16 : w.row_end * 16, w.col * 16 : w.col_end * 16] = picture[
            :, top : top + w.height * 16, left : left + w.width * 16
        ]
    return out


def main() -> None:
    """Print a row for each scene and number of steps."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--steps", type=int, nargs="+", default=[1, 4])
    args = ap.parse_args()
    scenes = {
        "S2L1C": args.data / "train/S2L1C/virginia_coast_north.tif",
        "DEM": args.data / "val/DEM/mt_hood_30m.tif",
        "S1GRD": args.data / "val/S1GRD/sen1floods11_India_900498_S1Hand.tif",
    }
    print(f"{'':8s}{'steps':>6s}{'source':>9s}{'codec':>9s}{'no context':>12s}{'codec - whole':>15s}")
    for modality, path in scenes.items():
        tok = tmcodec.load_tokenizer(default_model(modality), device="cpu")
        offset = "absent" if tok.modality.optical else "auto"
        with open_raster(path, modality, s2_offset=offset) as src:
            side = Window(0, 0, min(src.width, 1024) // TILE * TILE, min(src.height, 1024) // TILE * TILE)
            values, valid = src.read(side)
        values = np.where(valid, values, values[valid].mean()).astype(np.float32)
        tokens = tok.encode(torch.from_numpy(values)[None])[0].numpy()
        for steps in args.steps:
            codec = decode_tiles(tok, tokens, steps, tok.decoder_halo(steps))
            alone = decode_tiles(tok, tokens, steps, 0)
            whole = tok.decode(torch.from_numpy(tokens)[None], steps, 0)[0].numpy()
            ratios = "".join(f"{jump_ratio(p):9.3f}" for p in (values, codec))
            off = float(np.abs(codec - whole).max())
            print(f"{modality:8s}{steps:6d}{ratios}{jump_ratio(alone):12.3f}{off:12.4f} {tok.modality.units}")


if __name__ == "__main__":
    main()
