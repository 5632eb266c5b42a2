"""A small memo of computed values, shared by threads of one server."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from vitdomains.core.errors import ImageError, VitDomainsError

T = TypeVar("T")
HEAT_FAILURES_KEPT = 10.0  # seconds: several times what the viewer waits before it asks again


class Memo:
    """Results by key, the least recently used forgotten first; a result that is being made is made once.

    Args:
        size: How many are kept.
        workers: Threads that make them.
        name: Of the threads.
        failures_kept: Seconds for which a failure stands; whoever asks now and then would else never hear of it.
    """

    def __init__(self, size: int, workers: int, name: str, failures_kept: float = 0.0) -> None:
        self._size, self._failures_kept = size, failures_kept
        self._failed: dict[Hashable, float] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._futures: OrderedDict[Hashable, Future[Any]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> Future[T]:
        """The result of ``make``, begun now or before; one that failed a while ago or was dropped is made anew."""

        def made() -> T:
            try:
                return make()
            except BaseException:
                self._failed[key] = time.monotonic()
                raise

        with self._lock:
            future = self._futures.get(key)
            failed = future is not None and future.done() and (future.cancelled() or future.exception() is not None)
            if future is None or (failed and time.monotonic() >= self._failed.get(key, 0.0) + self._failures_kept):
                self._failed.pop(key, None)
                future = self._futures[key] = self._pool.submit(made)
            self._futures.move_to_end(key)
            while len(self._futures) > self._size:
                self._futures.popitem(last=False)[1].cancel()
            return future

    def drop_waiting(self, but: Hashable = None) -> None:
        """Forget what has not begun: the reader has gone elsewhere."""
        with self._lock:
            for key in [k for k, f in self._futures.items() if k != but and f.cancel()]:
                del self._futures[key]


def not_there(future: Future[Any], key: str) -> dict[str, Any] | None:
    """What a viewer is told of a heat map that it cannot have yet: to ask again, or why there is none. None: it is there."""
    if not future.done():
        return {"pending": True, "key": key}
    error = future.exception()
    if error is None:
        return None
    if not isinstance(error, VitDomainsError):
        raise error
    # Not the file's name: it may be a patient's.
    why = f"the image {error.problem}." if isinstance(error, ImageError) else str(error)
    return {"error": f"no heat map: {why} {error.hint}".strip(), "key": key}
