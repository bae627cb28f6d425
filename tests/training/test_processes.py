"""Two processes on the CPU train what one process trains with twice the accumulation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

from tmcodec.training import run as training


@pytest.mark.slow
def test_two_processes_equal_twice_the_accumulation(config: Callable[..., Path], tmp_path: Path) -> None:
    sections = {
        "trainer": {"max_steps": 4, "callbacks": [
            {"class_path": "MovingAverage"},
            {"class_path": "ModelCheckpoint", "init_args": {"dirpath": None, "save_last": True}},
            {"class_path": "WeightsFile", "init_args": {"name": "made"}},
        ]},
        "model": {"optimizer": {"kind": "adamw", "lr": 0.01}, "balance": True},
        "data": {"epoch": 16},
    }  # fmt: skip
    paths = {}
    for name in ("one", "two"):
        sections["trainer"]["callbacks"][1]["init_args"]["dirpath"] = str(tmp_path / name)
        paths[name] = config("S1GRD", name, **sections)
    training.run("fit", ["-c", str(paths["one"]), "--trainer.accumulate_grad_batches=2"])
    devices = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    found = subprocess.run(
        [sys.executable, "-m", "tmcodec", "train", "fit", "-c", str(paths["two"]), *devices],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "world_size=2" in found.stderr or "MEMBER: 2/2" in found.stderr
    assert list((tmp_path / "two").rglob("made.safetensors"))  # written by one process, awaited by both
    one, two = (torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 4
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, rtol=1e-3, atol=1e-5, msg=key)
    for key, value in one["moving_average"].items():
        torch.testing.assert_close(two["moving_average"][key], value, rtol=1e-3, atol=1e-5, msg=key)
