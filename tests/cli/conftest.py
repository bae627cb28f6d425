"""Run commands in this process or in their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tmcodec.cli import cli

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Return a function that runs `tmcodec` with arguments and checks the exit status."""

    def call(*args: object, status: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(arg) for arg in args])
        assert result.exit_code == status, result.output
        return result

    return call


@pytest.fixture
def spawn() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs Python code or a module in a process of its own."""

    def call(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return call


@pytest.fixture
def token_file(
    make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path], run: Run
) -> Path:
    """Return a token file of a small scene, made by the command line."""
    scene = make_scene()
    tokens = scene.with_suffix(".tmc")
    run("encode", scene, tokens, "--tokenizer", tiny_tokenizer("S2L2A"), "--quiet")
    return tokens
