"""What of GDAL holds for the process or a dataset: block cache, warnings, locks, errors."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast
from weakref import WeakKeyDictionary

import rasterio
import rasterio._err
from rasterio.env import get_gdal_config, getenv, hasenv, set_gdal_config
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from tmcodec.rasters.arrays import Dataset

CPLE_BaseError: type[Exception] = rasterio._err.CPLE_BaseError
GDAL_ERRORS: tuple[type[Exception], ...] = (RasterioError, CPLE_BaseError, OSError, ValueError, TypeError)
"""What rasterio raises for a bad file or option; some functions pass GDAL's own classes through."""

_CACHE_BYTES = 256 << 20


class _Inside:
    """Counts the threads inside something that holds for the process: the first begins it, the last ends it.

    The lock is held for that alone, so that no thread waits for another's work. A forked child has none of
    the other threads, which would never leave there, and nobody to open the lock.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            self._begin()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside = max(self._inside - 1, 0)  # who was inside while forking leaves in the child, too
            if self._inside == 0:
                self._end()

    def after_fork(self) -> None:
        """Forget the parent's threads."""
        self._lock, self._inside = threading.Lock(), 0

    def _begin(self) -> None:
        """Begin, unless that is done."""
        raise NotImplementedError

    def _end(self) -> None:
        """End, unless that is done."""
        raise NotImplementedError


class _SmallCache(_Inside):
    """Holds GDAL's block cache, one for the whole process, at 256 MB while any thread is inside.

    A child forked meanwhile gets the old size back when it leaves for the first time itself. To set it in
    `after_fork` would take a lock of GDAL's, which another thread of the parent may hold for ever there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before, self._held = 0, 0  # nothing is held

    def _begin(self) -> None:
        if not self._held:
            self._before = int(get_gdal_config("GDAL_CACHEMAX"))
            self._held = min(self._before, _CACHE_BYTES)
            set_gdal_config("GDAL_CACHEMAX", self._held)

    def _end(self) -> None:
        # Who has set another size meanwhile wants that one.
        if self._held and int(get_gdal_config("GDAL_CACHEMAX")) == self._held:
            set_gdal_config("GDAL_CACHEMAX", self._before)
        self._held = 0


class _Quiet(_Inside):
    """Filters out rasterio's warning that a raster lies on no map while any thread is inside.

    Filters are the process's, and `warnings.catch_warnings` would leave one there for good where threads put
    them back out of turn. This takes out its own and no other, from the list it is in and the one in use:
    somebody's `catch_warnings` may have begun or ended meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self._own = ("ignore", None, NotGeoreferencedWarning, None, 0)
        self._filters: list[Any] | None = None

    def _begin(self) -> None:
        if self._filters is None:
            self._filters = cast("list[Any]", warnings.filters)
            self._filters.insert(0, self._own)

    def _end(self) -> None:
        for filters in (self._filters or [], cast("list[Any]", warnings.filters)):
            for place, one in enumerate(filters):
                if one is self._own:  # an equal one is somebody else's
                    del filters[place]
                    break
        self._filters = None

    def after_fork(self) -> None:
        super().after_fork()
        self._end()


class Locks:
    """One lock for each open dataset: GDAL crashes where two threads use one at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: WeakKeyDictionary[Dataset, AbstractContextManager[Any]] = WeakKeyDictionary()

    def of(self, dataset: Dataset) -> AbstractContextManager[Any]:
        """Return the lock of a dataset, which a thread may take again."""
        with self._lock:
            return self._locks.setdefault(dataset, threading.RLock())

    def after_fork(self) -> None:
        """Forget the parent's threads, which may have held any of them."""
        self._lock, self._locks = threading.Lock(), WeakKeyDictionary()


class _Workers:
    """How many threads of GDAL's work: its pool does not survive a fork, and waiting for it never ends."""

    def __init__(self) -> None:
        self._forked = False

    @property
    def count(self) -> int | str:
        """What GDAL's options of threads are to be."""
        return 1 if self._forked else "ALL_CPUS"

    @property
    def options(self) -> dict[str, int]:
        """What a `rasterio.Env` needs besides: readers and copies ask the configuration, which users set."""
        return {"GDAL_NUM_THREADS": 1} if self._forked else {}

    def after_fork(self) -> None:
        """Keep to one thread; nothing tells whether the parent had a pool."""
        self._forked = True


_SMALL_CACHE, _QUIET, LOCKS, WORKERS = _SmallCache(), _Quiet(), Locks(), _Workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SMALL_CACHE.after_fork)
    os.register_at_fork(after_in_child=_QUIET.after_fork)
    os.register_at_fork(after_in_child=LOCKS.after_fork)
    os.register_at_fork(after_in_child=WORKERS.after_fork)


def cache_chosen() -> bool:
    """Tell whether the user chose GDAL's cache size: by the variable, or this thread's rasterio.Env."""
    options = getenv() if hasenv() else {}
    return "GDAL_CACHEMAX" in os.environ or "GDAL_CACHEMAX" in {name.upper() for name in options}


@contextmanager
def gdal_env(chosen: bool | None = None) -> Iterator[None]:
    """Enter GDAL's environment with a block cache that fits small machines.

    GDAL's own default is 5 % of the memory, which on a large machine is more than all the
    rest of this program. A size that the user chose is respected, and the old one comes back.
    In a forked process GDAL keeps to one thread (`WORKERS`).

    Parameters
    ----------
    chosen
        What `cache_chosen` said in the user's thread, whose rasterio.Env others do not see; None asks here.
    """
    own = nullcontext() if (cache_chosen() if chosen is None else chosen) else _SMALL_CACHE
    with rasterio.Env(**WORKERS.options), own:
        yield


def open_quietly(path: str | os.PathLike[str], mode: str = "r", **profile: Any) -> Any:
    """Open with rasterio, without its warning that the raster lies on no map: such are welcome."""
    with _QUIET:
        return rasterio.open(os.fspath(path), mode, **profile)


def one_line(error: BaseException) -> str:
    """Return the first line of the innermost message of an exception."""
    inner = error.__cause__ or error
    return (str(inner).strip() or type(inner).__name__).splitlines()[0]
