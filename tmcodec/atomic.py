"""Files that appear under their name complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from tmcodec.errors import TargetExistsError, TargetFolderError


def check_target(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse a target that cannot be written, before any work is done for it.

    Raises
    ------
    TargetExistsError
        If `path` exists and `overwrite` is false.
    TargetFolderError
        If its folder does not exist.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise TargetFolderError(f"{os.fspath(path)}: the folder {folder} does not exist; create it first")
    if not overwrite and os.path.lexists(path):
        raise TargetExistsError(f"{os.fspath(path)} exists; pass overwrite to replace it")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` if the block succeeds.

    The temporary file lies in the same directory (a rename across file systems is not
    atomic) and keeps the suffix (writers choose a format by it). It exists, empty, when the
    block starts. On success it is synced and renamed, on any exception it is removed.

    Parameters
    ----------
    path
        The target.
    overwrite
        Whether an existing target may be replaced.

    Raises
    ------
    TargetExistsError
        If the target exists, before the block or at its end, and `overwrite` is false.
    """
    target = Path(path)
    check_target(target, overwrite)
    temporary = target.with_name(f".{target.stem[:100]}.{secrets.token_hex(6)}.part{target.suffix}")
    # Not tempfile.mkstemp: its mode 0600 would stay with the target; here the umask decides.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        _sync(temporary)
        check_target(target, overwrite)
        os.replace(temporary, target)
    except BaseException:  # KeyboardInterrupt too must leave nothing behind
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_directory(target.parent)


def _sync(path: Path) -> None:
    """Flush the contents of `path` to the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    """Flush the rename itself; not every system can, and the data is safe without it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
