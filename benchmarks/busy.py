"""Encoding on an idle and on a busy machine: how long threads should look for work before they sleep.

    python benchmarks/busy.py [--repeat 3]

Whole processes of ``tmcodec encode`` on a demo scene, in turns: as GNU OpenMP waits by itself, and as the
command line tells it to (``tmcodec.cli.group.SPINS``). Idle; two encodings at once; beside a process for each
core that computes without end. Linux alone; elsewhere torch's threads are not GNU OpenMP's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tmcodec.cli.demo import SCENES
from tmcodec.cli.group import SPINS

OWN = 300_000
"""What libgomp takes where nobody tells it."""


@contextlib.contextmanager
def working(processes: int) -> Iterator[None]:
    """Keep so many cores busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(at_once: int, spins: int, folder: Path) -> float:
    """Wall clock of so many encodings at once."""
    environment = {**os.environ, "GOMP_SPINCOUNT": str(spins)}
    environment.pop("OMP_WAIT_POLICY", None)
    command = [sys.executable, "-m", "tmcodec", "encode", str(SCENES["S2L2A"])]
    start = time.perf_counter()
    running = [
        subprocess.Popen([*command, str(folder / f"{k}.tmc"), "--modality", "S2L2A", "--overwrite"],
                         env=environment, stdout=subprocess.DEVNULL)
        for k in range(at_once)
    ]  # fmt: skip
    assert [process.wait() for process in running] == [0] * at_once
    return time.perf_counter() - start


def main() -> None:
    """Print medians and ratios."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--repeat", type=int, default=3)
    args = ap.parse_args()
    cores = os.cpu_count() or 1
    print(f"{'':24s}{OWN:>10,d}{SPINS:>10,d}{'ratio':>8s}   seconds by spins, {cores} cores")
    with tempfile.TemporaryDirectory() as name:
        ways = (("idle", 1, 0), ("two at once", 2, 0), ("beside other work", 1, cores))
        for label, at_once, others in ways:
            times: dict[int, list[float]] = {OWN: [], SPINS: []}
            with working(others):
                for _ in range(args.repeat):
                    for spins, taken in times.items():
                        taken.append(seconds(at_once, spins, Path(name)))
            theirs, ours = (statistics.median(taken) for taken in times.values())
            print(f"{label:24s}{theirs:10.1f}{ours:10.1f}{ours / theirs:8.2f}", flush=True)


if __name__ == "__main__":
    main()
