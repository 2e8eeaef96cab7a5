"""Batches made ahead of time by one background thread, so the host works while the device does."""

from __future__ import annotations

import collections
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

from jaxlm.core.config import require

Batch = TypeVar("Batch")


class Prefetch(Generic[Batch]):
    """Iterates over (step, ``loader(step)``) from ``start_step``, ``depth`` steps ahead of its user.

    An exception of the loader is raised at the step it belongs to, and ends the iteration. `close` (or leaving a
    ``with``) drops what was made ahead and joins the thread; a program that ends without it waits for at most
    ``depth`` batches.

    Args:
      loader: a function of the step, called in the thread (moving batches to the device may be part of it).
      start_step: the first step.
      depth: how many batches are ready or in the making, at least 1.
      stop_step: one past the last step; ``None`` for no end.

    Raises:
      ConfigError: ``depth`` below 1.
    """

    def __init__(
        self, loader: Callable[[int], Batch], start_step: int = 0, depth: int = 2, stop_step: int | None = None
    ):
        require(depth >= 1, f"prefetch depth: expected at least 1, got {depth}")
        self._loader, self._next, self._stop = loader, start_step, stop_step
        self._ready: collections.deque[tuple[int, Future[Batch]]] = collections.deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        for _ in range(depth):
            self._submit()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, Batch]:
        if not self._ready:
            self.close()
            raise StopIteration
        step, future = self._ready.popleft()
        try:
            batch = future.result()
        except BaseException:
            self.close()
            raise
        self._submit()
        return step, batch

    def close(self) -> None:
        """Ends the iteration and the thread. Calling it again does nothing."""
        self._ready.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self) -> None:
        if self._stop is None or self._next < self._stop:
            self._ready.append((self._next, self._pool.submit(self._loader, self._next)))
            self._next += 1
