"""Turn finished runs into the embedded weights files.

python -m tmcodec.training.export runs/S2L2A [...] --out tmcodec/weights
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tmcodec.codec.weights import save_weights
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


def main() -> None:
    """Export every run named on the command line."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("runs", nargs="+", type=Path)
    ap.add_argument("--out", type=Path, default=Path("tmcodec/weights"))
    ap.add_argument("--version", type=int, default=1)
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        path, digest = export(run, args.out, args.version)
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB  sha256 {digest.hex()}")


if __name__ == "__main__":
    main()
