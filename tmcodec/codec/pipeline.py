"""Reading ahead and writing behind, one item at a time, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(load: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield ``(item, load(item))`` in order while the next one loads in a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="tmcodec-read") as pool:
        pending: tuple[T, Future[R]] | None = None
        try:
            for item in items:
                upcoming = (item, pool.submit(load, item))
                if pending is not None:
                    yield pending[0], pending[1].result()
                pending = upcoming
            if pending is not None:
                yield pending[0], pending[1].result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class WriteBehind:
    """Run one call at a time in a thread; the next waits for it, and its error comes up here."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tmcodec-write")
        self._pending: Future[None] | None = None

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def wait(self) -> None:
        """Wait for the call under way and raise what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def submit(self, call: Callable[[], None]) -> None:
        """Start `call` when the one before has ended."""
        self.wait()
        self._pending = self._pool.submit(call)
