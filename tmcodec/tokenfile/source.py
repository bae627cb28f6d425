"""Where the bytes of a token file come from: a path, a file object or a URL."""

from __future__ import annotations

import importlib
import io
import os
import threading
from typing import IO, Any

from tmcodec.errors import MissingDependencyError, SourceError, TruncatedFileError
from tmcodec.texts import shown

FIRST_BLOCK = 65536
"""Bytes of the first read; nearly every header fits."""
KEEP = 16 * 2**20
"""The last read is kept up to this size: tokens and mask of one window cost one request."""

# GDAL's names of remote files and what fsspec calls them.
_VSI = {"/vsicurl/": "", "/vsis3/": "s3://", "/vsigs/": "gs://", "/vsiaz/": "az://"}


def as_url(source: str) -> str:
    """Return GDAL's ``/vsicurl/https://...`` and the like as a URL; anything else as it is."""
    for prefix, scheme in _VSI.items():
        if source.startswith(prefix):
            return scheme + source.removeprefix(prefix)
    return source


class ByteSource:
    """Random reads from a file, for several threads, and for processes forked or given it pickled.

    Parameters
    ----------
    source
        Path, URL, or seekable binary file object (read from its beginning, not closed).

    Raises
    ------
    SourceError
        If a file object is not seekable or reads text, or a URL cannot be opened.
    MissingDependencyError
        If a URL needs a package that is not installed.
    OSError
        As from `open`.
    """

    def __init__(self, source: str | os.PathLike[str] | IO[bytes]) -> None:
        self._file, self._owned, self.name = _open(source)
        self._path = _path_of(source)
        self._lock = threading.Lock()
        self._kept: tuple[int, bytes] = (0, b"")
        try:
            self.size = self._file.seek(0, io.SEEK_END)
            if self.size is None:  # some file-like objects return nothing
                self.size = self._file.tell()
        except (OSError, ValueError, AttributeError) as cause:
            self.close()
            raise SourceError(
                f"{self.name} cannot be read at random places ({cause}); download it first"
            ) from cause

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`, with one read unless the last one held them.

        Raises
        ------
        TruncatedFileError
            If the file ends before.
        SourceError
            If it is closed, or a URL gives nothing.
        """
        start, kept = self._kept
        if start <= offset and offset + count <= start + len(kept):
            return kept[offset - start : offset - start + count]
        if getattr(self._file, "closed", False):
            raise SourceError(f"{self.name} is closed; open it again")
        if offset + count > self.size:  # before anything is allocated
            raise TruncatedFileError(f"{self.name} ends {offset + count - self.size} bytes too early")
        data = self._fetch(offset, count)
        if len(data) < count:
            raise TruncatedFileError(f"{self.name} ends {count - len(data)} bytes too early")
        if count <= KEEP:
            self._kept = (offset, data)
        return data

    def _fetch(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset`, fewer where the file ends."""
        if self._path is not None and "://" not in self._path and hasattr(os, "pread"):
            # Forked processes share one position in the file; this moves none.
            return _pread_fully(self._file.fileno(), offset, count)
        with self._lock:
            try:
                self._file.seek(offset)
                return _read_fully(self._file, count)
            except Exception as cause:  # of a connection that breaks, each filesystem has errors of its own
                if self._path is None or "://" not in self._path:
                    raise
                raise SourceError(f"cannot read {self.name}: {_reason(cause)}; try again") from cause

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to open the file by itself."""
        if self._path is None:
            raise SourceError(f"{self.name} is a file object, which cannot be pickled; open a path or URL")
        if getattr(self._file, "closed", False):
            raise SourceError(f"{self.name} is closed; open it again")
        return {"path": self._path, "name": self.name, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file again; raise `SourceError` where it has another size than before."""
        self.__init__(state["path"])  # type: ignore[misc]
        self.name = state["name"]
        if self.size != state["size"]:
            self.close()
            raise SourceError(f"{self.name} has {self.size} bytes, and had {state['size']}; open it again")

    def close(self) -> None:
        """Close the file, if it was opened here."""
        self._kept = (0, b"")
        if self._owned:
            self._file.close()


def _open(source: str | os.PathLike[str] | IO[bytes]) -> tuple[Any, bool, str]:
    """Return (file object, whether it is ours to close, name)."""
    if not isinstance(source, str | os.PathLike):
        if not hasattr(source, "read"):
            raise SourceError(f"{shown(source)} is neither a path nor a binary file object; give one of them")
        if isinstance(source, io.TextIOBase):
            raise SourceError(f"{getattr(source, 'name', 'the file object')} reads text; open it as 'rb'")
        return source, False, str(getattr(source, "name", "token file"))
    name = as_url(os.fspath(source))
    if "://" in name:
        return _open_url(name), True, name
    return open(name, "rb", buffering=0), True, name


def _path_of(source: str | os.PathLike[str] | IO[bytes]) -> str | None:
    """Return the URL or absolute path by which another process opens the same; None for a file object."""
    if not isinstance(source, str | os.PathLike):
        return None
    name = as_url(os.fspath(source))
    return name if "://" in name else os.path.abspath(name)


def _open_url(url: str) -> Any:
    """Open `url` through fsspec without its cache: reads here are few and exact."""
    try:
        fsspec = importlib.import_module("fsspec")
    except ImportError:
        raise MissingDependencyError("reading from a URL needs fsspec; pip install 'fsspec[http]'") from None
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        return filesystem.open(path, "rb", cache_type="none")
    except ImportError as cause:
        raise MissingDependencyError(f"reading {url} needs another package: {cause}") from cause
    except Exception as cause:  # each of its filesystems has errors of its own
        raise SourceError(f"cannot open {url}: {_reason(cause)}") from cause


def _reason(error: BaseException) -> str:
    """Return in one line why a URL gives nothing.

    The filesystem for HTTP calls a server that fails or is not there a missing file, too.
    """
    inner = error.__cause__ if isinstance(error, FileNotFoundError) else None
    if isinstance(error, FileNotFoundError) and (inner is None or getattr(inner, "status", 0) in (404, 410)):
        return "there is no such file"
    error = inner or error
    return " ".join(str(error).split()) or type(error).__name__


def _read_fully(file: Any, count: int) -> bytes:
    """Read `count` bytes; raw files and sockets may return fewer at a time."""
    parts = []
    while count > 0:
        part = file.read(count)
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pread_fully(descriptor: int, offset: int, count: int) -> bytes:
    """Do what `_read_fully` does, from `offset` and without a position."""
    parts = []
    while count > 0:
        part = os.pread(descriptor, count, offset)
        if not part:
            break
        parts.append(part)
        offset, count = offset + len(part), count - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
