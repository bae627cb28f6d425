"""Files that appear under their name complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tmcodec.errors import TargetExistsError, TargetFolderError, TargetNameError


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


RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".nc", ".jp2", ".png", ".jpg", ".jpeg")
"""Names that a token file should not have."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".jp2", ".nc", ".vrt")
"""Names that a GeoTIFF should not have."""


def check_suffix(target: str | os.PathLike[str], source: Any, wrong: Sequence[str], kind: str) -> None:
    """Refuse to write over the source, or under a name that says something else than what is written.

    Parameters
    ----------
    target
        What is to be written.
    source
        What is read; anything that is no path cannot be the target.
    wrong
        Suffixes, in lower case.
    kind
        What is written, and how to name it; for the message.

    Raises
    ------
    TargetNameError
    """
    name = os.fspath(target)
    both = isinstance(source, str | os.PathLike) and os.path.exists(source) and os.path.exists(target)
    if both and os.path.samefile(source, target):
        raise TargetNameError(f"{name} is the source itself; choose another target")
    if Path(target).suffix.lower() in wrong:
        raise TargetNameError(f"{name}: what is written is {kind}")


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
    stem = os.fsdecode(os.fsencode(target.stem)[:100])  # names are limited in bytes, not characters
    temporary = target.with_name(f".{stem}.{secrets.token_hex(6)}.part{target.suffix}")
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
