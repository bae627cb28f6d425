"""`tmcodec evaluate` on the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def scene(make_scene: Callable[..., Path]) -> Path:
    """Return a small raster."""
    return make_scene(width=40, height=40)


def test_evaluate_prints_and_writes(
    run: Run, scene: Path, tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    out, tokenizer = tmp_path / "out", tiny_tokenizer("S2L2A")
    args = ("evaluate", "--data", scene, "--tokenizer", tokenizer, "--steps", "1,2", "--baselines", "webp")
    shown = run(*args, "--report", out).output
    assert "tiny-s2l2a, 2 steps" in shown and f"report: {out}/report.html" in shown
    assert "LPIPS left out" in shown
    assert (out / "report.html").stat().st_size > 50_000
    again = run(*args, "--report", out, status=1)
    assert "tmcodec: error:" in again.output and "--overwrite" in again.output
    plain = json.loads(run(*args, "--json").output)
    assert plain["modality"] == "S2L2A" and plain["scenes"][0]["width"] == 40


def test_evaluate_says_what_is_wrong(
    run: Run, scene: Path, tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    for status, text, args in (
        (2, "whole numbers", ("--steps", "1,x")),
        (2, "PATTERN=present", ("--s2-offset-of", "S2A*")),
        (1, "no tokenizer", ()),
        (1, "unknown baseline", ("-m", "S2L2A", "--baselines", "gif")),
        (1, "DEM and S2L2A", ("-m", "DEM", "--tokenizer", "mini-s2l2a-v2")),
    ):
        assert text in run("evaluate", "--data", scene, *args, status=status).output
    (tmp_path / "none").mkdir()
    assert "no raster" in run("evaluate", "--data", tmp_path / "none", "-m", "DEM", status=1).output


def test_help_says_what_the_modality_is_for(run: Run) -> None:
    output = " ".join(run("evaluate", "--help").output.split())
    assert "Evaluate the embedded tokenizer of this modality; not needed beside --tokenizer." in output
    assert "18446744073709551615" not in output


def test_help_imports_nothing_heavy(spawn: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    code = (
        "import sys; from tmcodec.cli import cli; cli(['evaluate', '--help'], standalone_mode=False);"
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'torchmetrics') if m in sys.modules])"
    )
    assert spawn("-c", code).stdout.strip().endswith("[]")
