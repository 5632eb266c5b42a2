"""Keep the thread's signal stack from OpenVINO.

The CPU plugin of every ``ov.Core`` gives the thread that loads it a signal stack, and on its end puts back the one that it
found. Where several end in another order than they began (NNCF makes some of its own), the thread is left with the address of
memory that is gone, and the next signal with a handler, an alarm or Ctrl-C, ends the process without a word.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_DISABLED = 2  # SS_DISABLE of Linux


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int, int]:
    """Address and size of this thread's signal stack, bytes; (0, 0) where it has none or the system is not Linux."""
    found = _exchange(None)
    return (0, 0) if found.flags & _DISABLED else (found.address or 0, found.size)


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Whatever happens inside, this thread has the same signal stack afterwards. Also a decorator."""
    before = _exchange(None)
    try:
        yield
    finally:
        _exchange(before)


def _exchange(stack: _Stack | None) -> _Stack:
    """Set this thread's signal stack where one is given; the one that stood."""
    found = _Stack(None, _DISABLED, 0)
    if sys.platform == "linux":
        given = None if stack is None else ctypes.byref(stack)
        ctypes.CDLL(None).sigaltstack(given, ctypes.byref(found))
    return found
