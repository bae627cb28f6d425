"""Start-up: ``import tmcodec`` and ``tmcodec info`` beside ``python -c pass`` and ``import rasterio``.

    python benchmarks/startup.py [--repeat 15]

Medians of whole processes in one run, in turns, so that a busy moment hits all alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import tmcodec
from tmcodec.cli.demo import SCENES


def seconds(command: list[str]) -> float:
    """Wall clock of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print medians and ratios."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--repeat", type=int, default=15)
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.tmc"
        tmcodec.encode(SCENES["S2L2A"], path, modality="S2L2A")
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import tmcodec": [sys.executable, "-c", "import tmcodec"],
            "tmcodec info FILE": [sys.executable, "-m", "tmcodec", "info", str(path)],
            "import numpy": [sys.executable, "-c", "import numpy"],
            "import rasterio": [sys.executable, "-c", "import rasterio"],
            "import torch": [sys.executable, "-c", "import torch"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(args.repeat):
            for name, command in commands.items():
                times[name].append(seconds(command))
    medians = {name: statistics.median(t) for name, t in times.items()}
    nothing, rasterio = medians["python -c pass"], medians["import rasterio"]
    print(f"{'':20s}{'seconds':>9s}{'/ pass':>9s}{'/ rasterio':>12s}   numpy {np.__version__}")
    for name, median in medians.items():
        print(f"{name:20s}{median:9.3f}{median / nothing:9.2f}{median / rasterio:12.2f}")


if __name__ == "__main__":
    main()
