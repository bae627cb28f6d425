"""Files that appear under their name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tmcodec.errors import TargetExistsError, TargetFolderError, TargetNameError, TargetWriteError
from tmcodec.texts import shown

SIDECARS = (".aux.xml", ".msk", ".msk.ovr", ".ovr")
"""What GDAL appends to the name of a GeoTIFF, for files that it reads along with it."""


def check_target(path: str | os.PathLike[str], overwrite: bool, sidecars: Sequence[str] = ()) -> None:
    """Refuse a target that cannot be written, before any work is done for it.

    Parameters
    ----------
    path
        The target.
    overwrite
        Whether it may be replaced.
    sidecars
        Endings of files that would be read as parts of the target, as `SIDECARS`.

    Raises
    ------
    TargetExistsError
        If `path` or one of its sidecars exists and `overwrite` is false.
    TargetFolderError
        If its folder does not exist.
    TargetNameError
        If it is no path, too long for the file system, or that of a folder, a device, a pipe or a socket, or
        ``-``, which means standard output to many programs and none here.
    """
    _refuse_no_path(path)
    _refuse_too_long(path)
    folder = Path(path).parent
    if not folder.is_dir():
        raise TargetFolderError(f"{os.fspath(path)}: the folder {folder} does not exist; create it first")
    _refuse_special(path)
    if not overwrite and os.path.lexists(path):
        raise TargetExistsError(f"{os.fspath(path)} exists; pass overwrite to replace it")
    if not overwrite and (stray := _existing(path, sidecars)):
        names = " and ".join(f"{os.fspath(path)}{ending}" for ending in stray)
        raise TargetExistsError(
            f"{names} would be read as part of the new file; pass overwrite to remove them"
        )


def _refuse_no_path(path: object) -> None:
    if not isinstance(path, str | os.PathLike):
        raise TargetNameError(f"{shown(path)} is no path; name a file to write")
    if path == "-":  # not of Path("./-"), which has lost its folder
        raise TargetNameError("- names no file, and nothing is written to standard output; name a file")


def _refuse_too_long(path: str | os.PathLike[str]) -> None:
    """Refuse what the file system does not take: the rename at the end would find out after all the work."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise TargetNameError(f"{os.fspath(path)}: the name is too long; give a shorter one") from None


def _refuse_special(path: str | os.PathLike[str]) -> None:
    """Refuse what a rename would replace by a file, as root's does /dev/null, or would not, as a folder."""
    try:
        mode = os.stat(path).st_mode  # of what a link points to
    except OSError:
        return
    if stat.S_ISDIR(mode):
        raise TargetNameError(f"{os.fspath(path)} is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise TargetNameError(f"{os.fspath(path)} is a {kind}, which cannot be written in place; name a file")


def _existing(path: str | os.PathLike[str], sidecars: Sequence[str]) -> list[str]:
    """Return the endings for which a sidecar of `path` exists; a folder is none."""
    named = [(ending, f"{os.fspath(path)}{ending}") for ending in sidecars]
    return [ending for ending, name in named if os.path.lexists(name) and not os.path.isdir(name)]


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file takes no more."""
GEOTIFF_SUFFIXES = (".tif", ".tiff", ".gtif", ".gtiff")
"""Names that a GeoTIFF may have, beside one without suffix."""
RASTER_SUFFIXES = (
    *GEOTIFF_SUFFIXES, ".vrt", ".nc", ".jp2", ".png", ".jpg", ".jpeg", ".webp", ".img", ".gpkg", ".h5",
)  # fmt: skip
"""Names that a token file should not have."""


def check_geotiff_name(target: str | os.PathLike[str], *sources: Any) -> None:
    """Refuse to write a GeoTIFF over one of its sources, or under a name that says something else.

    GDAL goes by what is in a file and writes under any name; most others go by the name. This comes before
    `check_target`: who swaps source and target should not be told to overwrite the source.

    Parameters
    ----------
    target
        What is to be written.
    sources
        What is read; anything that is no path cannot be the target.

    Raises
    ------
    TargetNameError
    """
    _refuse_sources(target, sources)
    if Path(target).suffix.lower() not in ("", *GEOTIFF_SUFFIXES):
        raise TargetNameError(f"{os.fspath(target)}: what is written is a GeoTIFF; name it .tif")


def check_token_name(target: str | os.PathLike[str], *sources: Any) -> None:
    """Refuse to write a token file over one of its sources, or under a raster's name.

    Parameters
    ----------
    target, sources
        As for `check_geotiff_name`.

    Raises
    ------
    TargetNameError
    """
    _refuse_sources(target, sources)
    if Path(target).suffix.lower() in RASTER_SUFFIXES:
        raise TargetNameError(f"{os.fspath(target)}: what is written is a token file; name it .tmc")


def check_picture_name(target: str | os.PathLike[str], *sources: Any) -> None:
    """Refuse to write a PNG over one of its sources, or under another name than a PNG's.

    Parameters
    ----------
    target, sources
        As for `check_geotiff_name`.

    Raises
    ------
    TargetNameError
    """
    _refuse_sources(target, sources)
    if Path(target).suffix.lower() != ".png":
        raise TargetNameError(f"{os.fspath(target)}: what is written is a picture; name it .png")


def _refuse_sources(target: str | os.PathLike[str], sources: Sequence[Any]) -> None:
    _refuse_no_path(target)
    for source in sources:
        both = isinstance(source, str | os.PathLike) and os.path.exists(source) and os.path.exists(target)
        if both and os.path.samefile(source, target):
            raise TargetNameError(f"{os.fspath(target)} is the source itself; choose another target")


@contextlib.contextmanager
def atomic_path(
    path: str | os.PathLike[str], overwrite: bool = False, sidecars: Sequence[str] = ()
) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` if the block succeeds.

    The temporary file lies in the same directory (a rename across file systems is not
    atomic) and keeps the suffix (writers choose a format by it). It exists, empty, when the
    block starts. On success it is synced and renamed, on any exception it is removed, with
    all that begins with its name but for the suffix.

    Parameters
    ----------
    path
        The target.
    overwrite
        Whether an existing target may be replaced.
    sidecars
        Endings of files that belong to the target, as `SIDECARS`. Those beside the temporary file
        become the target's, any others that the target has are removed.

    Raises
    ------
    TargetExistsError
        If the target or a sidecar exists, before the block or at its end, and `overwrite` is false.
    TargetWriteError
        If the block ends in an error of a full disk, a quota or the largest size that a file may have.
    """
    target = Path(path)
    check_target(target, overwrite, sidecars)
    temporary = _hidden(target, "part")
    try:
        # Not tempfile.mkstemp: its mode 0600 would stay with the target; here the umask decides.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(os.stat(temporary).st_mode)
        yield temporary
        _keep_mode(temporary, mode)
        for ending in ("", *_existing(temporary, sidecars)):
            _sync(_with_ending(temporary, ending))
        check_target(target, overwrite, sidecars)
        put_in_place(temporary, target, sidecars)
    except BaseException as error:  # KeyboardInterrupt too must leave nothing behind
        _remove_all(temporary)
        if is_full(error):
            raise TargetWriteError(f"{os.fspath(path)}: {reason(error)}; nothing was written") from error
        raise
    _sync_directory(target.parent)


def is_full(error: BaseException) -> bool:
    """Tell whether a file takes no more: such errors of the system do not name it."""
    return isinstance(error, OSError) and error.errno in FULL


def reason(error: BaseException) -> str:
    """Return the system's words for an error, as they stand within a message."""
    found = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return found[:1].lower() + found[1:]


def _keep_mode(path: Path, mode: int) -> None:
    """Give a file its mode back: safetensors puts one there that its owner alone may read."""
    if stat.S_IMODE(os.stat(path).st_mode) != mode:
        os.chmod(path, mode)


def _remove_all(temporary: Path) -> None:
    """Remove a temporary file and what its writer made beside it, which begins with its name."""
    for path in temporary.parent.glob(f"{glob.escape(temporary.stem)}*"):
        path.unlink(missing_ok=True)


def put_in_place(made: Path, target: Path, sidecars: Sequence[str] = ()) -> None:
    """Rename `made` to `target` in place of what is there, each with its sidecars.

    Without sidecars this is one rename. With them it takes several, and whoever opens the target,
    or kills this process, between them must not find a file beside another file's mask. So the old
    file goes first and the new one comes last; on an exception all is as before.

    Parameters
    ----------
    made, target
        Paths on one file system.
    sidecars
        As for `atomic_path`.
    """
    old, new = _existing(target, sidecars), _existing(made, sidecars)
    if not old and not new:
        os.replace(made, target)
        return
    aside = _hidden(target, "old")
    first = ["", *old] if os.path.lexists(target) else old
    moves = [(_with_ending(target, ending), _with_ending(aside, ending)) for ending in first]
    moves += [(_with_ending(made, ending), _with_ending(target, ending)) for ending in (*new, "")]
    _move_all(moves)
    with contextlib.ExitStack() as stack:  # an interrupt while one is removed keeps none of the others
        for ending in first:
            stack.callback(_with_ending(aside, ending).unlink, missing_ok=True)


def _move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename one after the other, or none."""
    begun: list[tuple[Path, Path]] = []
    try:
        for before, after in moves:
            begun.append((before, after))  # first, for an interrupt may come right after the rename
            os.replace(before, after)
    except BaseException:
        for before, after in reversed(begun):
            with contextlib.suppress(FileNotFoundError):
                os.replace(after, before)
        raise


def _hidden(target: Path, kind: str) -> Path:
    """Return a name beside `target` that nothing else has, with its suffix."""
    stem = os.fsdecode(os.fsencode(target.stem)[:100])  # names are limited in bytes, not characters
    return target.with_name(f".{stem}.{secrets.token_hex(6)}.{kind}{target.suffix}")


def _with_ending(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


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
