"""The suite keeps to the CPU unless it is asked for GPUs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = "[pytest]\nmarkers =\n    gpu: needs a CUDA device\n    slow: minutes long\n"
TESTS = """
import os
import pytest

def test_without_mark():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""

@pytest.mark.gpu
def test_with_mark():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
"""


def run(folder: Path, *options: str) -> str:
    """Run pytest with the suite's conftest.py over `TESTS` and a file that needs a missing package."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "pytest.ini").write_text(SETTINGS)
    (folder / "test_one.py").write_text(TESTS)
    (folder / "test_two.py").write_text("import no_such_package\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "3"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout


@pytest.mark.parametrize("marks", ["not gpu", ""])
def test_gpus_are_hidden(tmp_path: Path, marks: str) -> None:
    out = run(tmp_path, "-m", marks, "test_one.py::test_without_mark")
    assert "1 passed" in out


@pytest.mark.skipif(not importlib.util.find_spec("xdist"), reason="no xdist")
def test_gpus_are_hidden_from_workers(tmp_path: Path) -> None:
    assert "1 passed" in run(tmp_path, "-n", "1", "test_one.py::test_without_mark")


def test_gpus_are_there_where_they_are_asked_for(tmp_path: Path) -> None:
    """And nothing else is imported that might miss a package."""
    out = run(tmp_path, "-m", "gpu")
    assert "1 passed, 1 deselected" in out
    assert "error" not in out
