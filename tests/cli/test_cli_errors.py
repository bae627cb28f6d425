"""Exit status, one line on stderr, and what is not imported."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import tmcodec
from tmcodec.cli import group
from tmcodec.cli.command import Command, describe
from tmcodec.cli.group import COMMANDS, cli
from tmcodec.errors import TargetExistsError, WindowError

Run = Callable[..., Result]
Spawn = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("command", ["", *COMMANDS, "models list", "models show"])
def test_help(run: Run, command: str) -> None:
    output = run(*command.split(), "--help").output
    assert output.startswith("Usage: ")
    assert "--help" in output


def test_every_command_takes_debug(run: Run) -> None:
    for name in COMMANDS:
        if name != "models":
            assert "--debug" in run(name, "--help").output


def test_version(run: Run) -> None:
    assert run("--version").output.startswith("tmcodec ")


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["encode", "a.tif"],
        ["encode", "a.tif", "b.tmc", "--modality", "S3"],
        ["encode", "a.tif", "b.tmc", "--window", "1", "2", "3"],
        ["encode", "a.tif", "b.tmc", "--device", "tpu"],
        ["encode", "a.tif", "b.tmc", "--tag", "novalue"],
        ["encode", "a.tif", "b.tmc", "--tag", "a=b", "--tag", "a=c"],
        ["encode", "a.tif", "b.tmc", "--batch-size", "0"],
        ["decode", "a.tmc", "b.tif", "--steps", "0"],
        ["decode", "a.tmc", "b.tif", "--window", "0", "0", "1", "1", "--bounds", "0", "0", "1", "1"],
        ["info"],
        ["info", "a.tmc", "--system"],
        ["stack", "a.tmc"],
    ],
)
def test_usage_errors_are_status_2(run: Run, args: list[str]) -> None:
    assert "Error:" in run(*args, status=2).stderr


@pytest.mark.parametrize(
    "args",
    [
        ["encode", "-", "b.tmc"],
        ["encode", "a.tif", "-"],
        ["decode", "-", "b.tif"],
        ["decode", "a.tmc", "-"],
        ["info", "-"],
        ["verify", "-"],
        ["compare", "a.tif", "b.tif", "--plot", "-"],
        ["stack", "a.tmc", "-", "c.tmc"],
        ["generate", "a.tmc", "--to", "DEM", "-o", "-"],
        ["embed", "a.tmc", "-o", "-"],
        ["demo", "-"],
    ],
)
def test_streams_are_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "standard input and output are not supported; name a file" in run(*args, status=2).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_one_line(spawn: Spawn, tmp_path: Path) -> None:
    done = spawn("-m", "tmcodec", "info", tmp_path / "none.tmc")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"tmcodec: error: {tmp_path / 'none.tmc'}: no such file or directory\n"


def test_debug_shows_the_traceback(spawn: Spawn, tmp_path: Path) -> None:
    for args in (["--debug", "info", tmp_path / "none.tmc"], ["info", tmp_path / "none.tmc", "--debug"]):
        done = spawn("-m", "tmcodec", *args)
        assert done.returncode == 1
        assert "Traceback" in done.stderr
        assert "FileNotFoundError" in done.stderr


def test_a_raster_is_no_token_file(run: Run, make_scene: Callable[..., Path]) -> None:
    line = run("info", make_scene(), status=1).stderr
    assert "not a token file but a TIFF; `tmcodec encode` makes a token file of it" in line
    assert line.count("\n") == 1


def test_a_token_file_is_no_raster(run: Run, token_file: Path) -> None:
    line = run("encode", token_file, token_file.parent / "again.tmc", status=1).stderr
    assert f"{token_file} is a token file already; give the raster that it was made of, or decode it" in line
    assert line.count("\n") == 1
    assert not (token_file.parent / "again.tmc").exists()


class _OutOfMemoryError(RuntimeError):
    """Stands for torch's."""


_OutOfMemoryError.__name__ = "OutOfMemoryError"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["encode", "a.tif", "b.tmc", "-m", "S3"], "'S3' is not one of S2L2A, S2L1C, S2RGB, S1GRD,"),
        (["generate", "a.tmc", "-o", "b.tmc"], "Choose from S2L2A, S2L1C, S2RGB, S1GRD, S1RTC, DEM,"),
    ],
)
def test_names_are_listed_as_they_are_written(run: Run, args: list[str], says: str) -> None:
    assert says in " ".join(run(*args, status=2).stderr.split())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (WindowError("two\n  lines"), "two lines"),
        (TargetExistsError("x exists; pass overwrite to replace it"), "x exists; pass --overwrite to"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device; nothing was written"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: permission denied"),
        (OSError("odd"), "odd"),
        (MemoryError(), "out of memory"),
        (_OutOfMemoryError("CUDA"), "out of memory"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_errors_of_the_user(error: BaseException, expected: str) -> None:
    @click.command(cls=Command)
    def failing() -> None:
        raise error

    result = CliRunner().invoke(failing)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"tmcodec: error: {expected}")
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_report_that_cannot_be_printed_is_not_a_file_that_was_not_written(
    make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path], tmp_path: Path, form: list[str]
) -> None:
    scene, tokens = make_scene(), tmp_path / "a.tmc"
    args = ["encode", scene, tokens, "--tokenizer", tiny_tokenizer("S2L2A"), *form]
    command = [sys.executable, "-m", "tmcodec", *map(str, args)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ("tmcodec: error: cannot print the report (no space left on device); "
                           "any file that was written is complete\n")  # fmt: skip
    with tmcodec.open(tokens) as file:
        assert list(file) == ["S2L2A"]


@pytest.mark.parametrize("error", [ValueError("bug"), RuntimeError("bug"), BrokenPipeError(errno.EPIPE, "")])
def test_other_errors_keep_their_traceback(error: BaseException) -> None:
    assert describe(error) is None


@pytest.mark.parametrize(
    "code",
    [
        "import tmcodec; dir(tmcodec)",
        "from tmcodec.cli import cli; cli(['--help'], standalone_mode=False)",
        "from tmcodec.cli import cli; cli(['models', 'list'], standalone_mode=False)",
        "from tmcodec.cli import cli; cli(['info', {token_file!r}], standalone_mode=False)",
        "from tmcodec.cli import cli; cli(['verify', {token_file!r}], standalone_mode=False)",
    ],
)
def test_light_commands_load_nothing_heavy(spawn: Spawn, token_file: Path, code: str) -> None:
    heavy = "{'torch', 'diffusers', 'rasterio', 'skimage', 'PIL', 'rich'} & set(sys.modules)"
    done = spawn("-c", f"import sys; {code.format(token_file=str(token_file))}; print('loaded:', {heavy})")
    assert done.stdout.endswith("loaded: set()\n"), done.stdout + done.stderr


def test_import_and_help_load_no_numpy(spawn: Spawn) -> None:
    code = "import sys, tmcodec; from tmcodec.cli import cli; cli(['--help'], standalone_mode=False)"
    assert spawn("-c", f"{code}; print('numpy' in sys.modules)").stdout.endswith("False\n")


def test_the_list_of_commands_is_the_group(run: Run) -> None:
    assert set(COMMANDS) == set(cli.list_commands(click.Context(cli)))
    assert "no such command" in run("frobnicate", status=2).stderr.lower()


@pytest.mark.parametrize(("stopped", "status"), [(False, 1), (True, 128 + signal.SIGTERM)])
def test_an_error_that_a_stop_became_has_the_status_of_the_stop(
    stopped: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code that is stopped in its midst may raise something else than what the stop raised."""

    def work(**_: object) -> None:
        if stopped:
            with pytest.raises(SystemExit):
                group._terminate(signal.SIGTERM, None)
        raise SystemExit(1)

    monkeypatch.setattr(group, "_received", [])
    monkeypatch.setattr(group.cli, "main", work)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        group.main(["info", "a.tmc"])
    assert ended.value.code == status
