"""A lease on the folder that a job writes: one process at a time, held by the kernel, so that it ends with its holder."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from vitdomains.core.errors import ConfigError

logger = logging.getLogger(__name__)

FILE = ".lease"


@contextmanager
def lease(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is made where absent, for the time of the block.

    The file in it stays behind; only its lock counts (``flock``). Where a file system has no locks, a warning is logged.

    Raises:
        ConfigError: Another process holds it; its number, machine and start are named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder} is being written by {_holder(descriptor)}.",
                hint="Wait until that has ended, or choose another folder.",
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): do not write it from two processes", folder, error.strerror)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": f"{datetime.now().astimezone():%F %T %Z}"}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(descriptor)  # which also gives the lock back


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}, started {holder['start']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
