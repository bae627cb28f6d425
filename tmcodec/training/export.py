"""Turn finished runs into the embedded weights files.

python -m tmcodec.training.export runs/S2L2A [...] --out tmcodec/weights
python -m tmcodec.training.export RUN.safetensors --texture-of mini-s1grd-v2 --version 1
python -m tmcodec.training.export RUN.safetensors --difference-to mini-s2l2a-v2 --version 3
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tmcodec.codec.models import find_weights, texture_path
from tmcodec.codec.textures import PREFIX, save_texture
from tmcodec.codec.weights import load_weights, save_difference, save_weights
from tmcodec.errors import WeightsError
from tmcodec.networks.mini import MiniConfig, MiniNet

LICENCE = "Apache-2.0; trained on Copernicus Sentinel data and open elevation and land-cover data"


def export(run: Path, out: Path, version: int = 1) -> tuple[Path, bytes]:
    """Write one run's weights in half precision; return the file and its content hash.

    Raises
    ------
    FileExistsError
        If the file is there: weights that somebody may hold never change, better ones get a new version.
    """
    saved = torch.load(run / "final.pt", weights_only=True)
    cfg = MiniConfig.from_dict(json.loads(saved["config"]))
    net = MiniNet(cfg)
    net.load_state_dict(saved["weights"])
    name = f"mini-{cfg.modality.lower()}-v{version}"
    notes = {"licence": LICENCE, "validation": (run / "metrics.json").read_text()}
    path = out / f"{name}.safetensors"
    if path.exists():
        raise FileExistsError(f"{path} exists; give another --version")
    return path, save_weights(path, net, name, notes)


def export_texture(run: Path, tokenizer: str, version: int = 1) -> tuple[Path, bytes]:
    """Put a run's diffusion decoder beside its tokenizer (`tmcodec.codec.textures`); return file and hash.

    Parameters
    ----------
    run
        The weights file that the run wrote.
    tokenizer
        Embedded name, or weights file, that it started from.
    version
        Of the texture.

    Raises
    ------
    FileExistsError
        If there is a texture already.
    WeightsError
        If anything but the diffusion decoder moved.
    """
    weights = find_weights(tokenizer)
    own, name, sha256, _ = load_weights(weights)
    net, _, _, notes = load_weights(run)
    before, after = own.state_dict(), net.state_dict()
    moved = [k for k, v in before.items() if not k.startswith(PREFIX) and not torch.equal(v, after[k])]
    if moved:
        raise WeightsError(f"{run}: {moved[0]} is not that of {tokenizer}; a texture leaves tokens and mean")
    path = texture_path(weights)
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it first")
    path.parent.mkdir(exist_ok=True)
    label = f"{name.rpartition('-')[0]}-texture-v{version}"
    training = {"training": notes["training"]} if "training" in notes else {}
    return path, save_texture(path, net, label, sha256, {"licence": LICENCE, **training})


def export_difference(run: Path, base: str, out: Path, version: int) -> tuple[Path, bytes]:
    """Write a run's weights as their difference to an embedded tokenizer's; return the file and its hash.

    Parameters
    ----------
    run
        The weights file that the run wrote.
    base
        Embedded name of what it started from.
    out, version
        Folder and generation.

    Raises
    ------
    FileExistsError
        If the file is there.
    """
    net, _, _, notes = load_weights(run)
    name = f"mini-{net.cfg.modality.lower()}-v{version}"
    path = out / f"{name}.safetensors"
    if path.exists():
        raise FileExistsError(f"{path} exists; give another --version")
    training = {"training": notes["training"]} if "training" in notes else {}
    return path, save_difference(path, net, name, base, {"licence": LICENCE, **training})


def main() -> None:
    """Export every run named on the command line."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("runs", nargs="+", type=Path)
    ap.add_argument("--out", type=Path, default=Path("tmcodec/weights"))
    ap.add_argument("--version", type=int, default=1)
    ap.add_argument("--texture-of", metavar="NAME", help="take the diffusion decoder alone")
    ap.add_argument("--difference-to", metavar="NAME", help="store the difference to embedded weights")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        if args.texture_of:
            path, digest = export_texture(run, args.texture_of, args.version)
        elif args.difference_to:
            path, digest = export_difference(run, args.difference_to, args.out, args.version)
        else:
            path, digest = export(run, args.out, args.version)
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB  sha256 {digest.hex()}")


if __name__ == "__main__":
    main()
