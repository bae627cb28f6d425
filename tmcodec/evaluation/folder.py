"""A report's folder, which appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tmcodec.errors import TargetExistsError, TargetFolderError, TargetNameError

MARK = "report.json"
"""What makes a folder a report: only such ones, and empty ones, are ever replaced."""


def check_folder(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse a target that cannot be written, before any work is done for it.

    Raises
    ------
    TargetExistsError
        If it exists and `overwrite` is false, or it holds something else than a report.
    TargetFolderError
        If the folder above it does not exist.
    """
    target = Path(path)
    if not target.absolute().parent.is_dir():
        raise TargetFolderError(f"{target}: the folder {target.parent} does not exist; create it first")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise TargetExistsError(f"{target} exists; pass overwrite to replace it")
    replaceable = target.is_dir() and not target.is_symlink()
    if not replaceable or ((target / MARK).exists() is False and any(target.iterdir())):
        raise TargetExistsError(f"{target} is no report, and is not replaced; give another folder")


def check_apart(path: str | os.PathLike[str], sources: Sequence[Path]) -> None:
    """Refuse a report whose folder holds what is read: it would be removed with the folder's old report.

    Raises
    ------
    TargetNameError
    """
    target = Path(path).resolve()
    for source in sources:
        if target in (source.resolve(), *source.resolve().parents):
            raise TargetNameError(f"{os.fspath(path)} holds {source}, which is read; give another folder")


@contextlib.contextmanager
def report_folder(path: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place if the block succeeds.

    Raises
    ------
    TargetExistsError, TargetFolderError
        See `check_folder`.
    """
    check_folder(path, overwrite)
    target = Path(path).absolute()
    token = secrets.token_hex(6)
    fresh, old = (target.with_name(f".{target.name[:100]}.{token}.{what}") for what in ("part", "old"))
    fresh.mkdir()
    try:
        yield fresh
        check_folder(target, overwrite)
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
    except BaseException:  # KeyboardInterrupt too must leave nothing behind
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
