"""cxr room: memory for films that is handed on from one to the next.

A film fills tens of megabytes. Fresh from the system, these must be mapped and zeroed page by page, which takes longer than
computing what goes into them; and the allocator gives large blocks back as soon as they are free. A reader that works
through a folder therefore keeps the memory of a film that nobody uses any more for the next one.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np
from numpy.typing import NDArray

MAX_KEPT_BYTES = 64 << 20

_kept: list[bytearray] = []
_lock = threading.Lock()


def display_array(rows: int, columns: int) -> NDArray[np.float32]:
    """An uninitialised float32 array ``[rows, columns]``, in kept memory where some of about that size is free.

    The memory is free again when the array and every view of it are gone. At most 64 MiB are kept.
    """
    needed = 4 * rows * columns
    memory = _take(needed)
    if memory is None:
        memory = bytearray(needed)
    # The base of an array over a bytearray is that bytearray, and numpy lets views of such an array keep the array itself
    # alive, so that its end is the end of all of them.
    flat = np.frombuffer(memory, np.float32, rows * columns)
    weakref.finalize(flat, _give_back, memory).atexit = False
    return flat.reshape(rows, columns)


def _take(needed: int) -> bytearray | None:
    with _lock:
        for index, memory in enumerate(_kept):
            if needed <= len(memory) <= 2 * needed:
                return _kept.pop(index)
    return None


def _give_back(memory: bytearray) -> None:
    # Runs wherever the last reference dies, even inside _take when the collector strikes there: it must not wait.
    if _lock.acquire(blocking=False):
        try:
            if len(memory) <= MAX_KEPT_BYTES:
                _kept.append(memory)
                while sum(map(len, _kept)) > MAX_KEPT_BYTES:
                    _kept.pop(0)
        finally:
            _lock.release()
