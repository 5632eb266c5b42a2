"""Workers that compute shards: this process, or a pool whose dead workers are replaced; the pool of local processes.

All pools call the same worker, a function from planned rows to result rows, and only the process that was started by the
user writes anything. A worker that dies costs its shard a retry. A shard that keeps killing workers is divided until the
tile that does it stands alone; that tile becomes a row with an error.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Literal, Protocol

import cv2
import pandas as pd
import torch

from vitdomains.core.errors import ConfigError, VitDomainsError
from vitdomains.core.process import physical_cores

logger = logging.getLogger(__name__)

Work = Callable[[pd.DataFrame], pd.DataFrame]
"""Result rows of planned rows: the same ``tile_id`` in the same order, and a column ``error``, empty where all is well."""

MakeWorker = Callable[[], Work]
"""Loads what a worker needs, once in each process; is sent there, so it is a frozen dataclass or a partial of a function."""

PARTS = 8
"""Parts into which the rows of a chunk are divided that has killed a worker twice."""

DEATHS = 10
"""Workers that die in a row, with nothing done in between, before the job is given up: more than one bad tile can kill."""


def limit_threads(threads: int) -> None:
    """Let this process compute with so many threads; worker functions pass ``torch.get_num_threads()`` on."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)


def threads_per_worker(workers: int) -> int:
    """The cores of this machine shared out among its workers, at least one each."""
    return max(1, physical_cores() // max(1, workers))


@dataclass(frozen=True)
class Chunk:
    """Rows of a shard that go to a worker together: all of them, or a part where the whole killed its worker."""

    shard: int
    start: int
    rows: pd.DataFrame
    retried: bool = False


@dataclass(frozen=True)
class Message:
    """What a worker says: that it is ready, its result, or how it died."""

    worker: int
    kind: Literal["ready", "done", "died"]
    table: pd.DataFrame | None = None
    why: str = ""


class Pool(Protocol):
    """A number of workers, each of which takes one chunk at a time."""

    def submit(self, worker: int, rows: pd.DataFrame) -> None:
        """Start the work of an idle worker."""

    def messages(self) -> list[Message]:
        """Wait for at least one message. A ``VitDomainsError`` of a worker is raised: it would come again in any other."""

    def replace(self, worker: int) -> None:
        """Start a new worker in the place of a dead one."""

    def close(self) -> None:
        """End all workers."""


def inline(chunks: list[Chunk], make_worker: MakeWorker, threads: int) -> Iterator[tuple[int, pd.DataFrame]]:
    """Compute in this process, one shard after the other: (number of the shard, its result)."""
    if not chunks:
        return
    limit_threads(threads)
    work = make_worker()
    for chunk in chunks:
        yield chunk.shard, work(chunk.rows)


def on_pool(chunks: list[Chunk], pool: Pool) -> Iterator[tuple[int, pd.DataFrame]]:
    """Share chunks out among the workers of a pool: (number of the shard, its result), in the order in which they are done.

    Raises:
        ConfigError: Workers die one after the other with nothing done.
        VitDomainsError: As a worker raised it.
    """
    waiting, busy = deque(chunks), dict[int, Chunk]()
    parts: dict[int, dict[int, pd.DataFrame]] = {chunk.shard: {} for chunk in chunks}
    sizes = {chunk.shard: len(chunk.rows) for chunk in chunks}
    pattern: pd.DataFrame | None = None
    idle: set[int] = set()
    deaths = 0
    while parts:
        while waiting and idle:
            chunk = waiting.popleft()
            busy[worker := idle.pop()] = chunk
            pool.submit(worker, chunk.rows)
        finished: list[tuple[Chunk, pd.DataFrame]] = []
        for message in pool.messages():
            current = busy.pop(message.worker, None)
            if message.kind == "died":
                idle.discard(message.worker)
                deaths += 1
                _give_up_after(deaths, message.why)
                logger.warning("a worker died (%s); another takes its place", message.why)
                pool.replace(message.worker)
                if current and len(current.rows) == 1 and current.retried:
                    finished.append((current, _failed(current.rows, message.why, pattern)))
                elif current:
                    waiting.extendleft(reversed(_again(current)))
                continue
            idle.add(message.worker)
            if message.table is not None and current is not None:
                deaths, pattern = 0, message.table.iloc[:0]
                finished.append((current, message.table))
        for chunk, table in finished:
            of_shard = parts[chunk.shard]
            of_shard[chunk.start] = table
            if sum(map(len, of_shard.values())) >= sizes[chunk.shard]:
                whole = [of_shard[start] for start in sorted(of_shard)]
                del parts[chunk.shard]
                yield chunk.shard, whole[0] if len(whole) == 1 else pd.concat(whole, ignore_index=True)


def _give_up_after(deaths: int, why: str) -> None:
    if deaths >= DEATHS:
        raise ConfigError(
            f"{deaths} workers died one after the other with nothing done; the last: {why}.",
            hint="Look at their messages above; where memory is short take fewer --workers or a smaller batch. "
            "Finished shards are kept.",
        )


def _again(chunk: Chunk) -> list[Chunk]:
    """A chunk that killed its worker, once more; the second time in parts."""
    if not chunk.retried:
        return [replace(chunk, retried=True)]
    step = -(-len(chunk.rows) // PARTS)
    # A part that fails is divided at once; a single row gets a second chance, for workers also die by accident.
    return [
        Chunk(chunk.shard, chunk.start + at, chunk.rows.iloc[at : at + step], retried=step > 1)
        for at in range(0, len(chunk.rows), step)
    ]


def _failed(rows: pd.DataFrame, why: str, pattern: pd.DataFrame | None) -> pd.DataFrame:
    """The row of a tile on which every worker died, with the columns of other results: NaN, empty text, or as planned."""
    error = f"the worker dies on this tile ({why})"
    logger.warning("%s: %s", rows["tile_id"].iloc[0], error)
    if pattern is None:
        return rows.assign(error=error)
    row = pattern.reindex(range(len(rows)))
    for name, kind in pattern.dtypes.items():
        if name in rows:
            row[name] = rows[name].to_numpy()
        elif isinstance(kind, pd.StringDtype):
            row[name] = ""
    return row.assign(error=error)


class ProcessPool:
    """Local processes, started anew (never forked: neither thread pools nor raster handles survive that)."""

    def __init__(self, make_worker: MakeWorker, workers: int, threads: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._make_worker, self._threads = make_worker, threads
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        for worker in range(workers):
            self._start(worker)

    def _start(self, worker: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._make_worker, self._threads), daemon=True, name=f"shards-{worker}"
        )
        process.start()
        theirs.close()  # so that its death closes the pipe
        self._workers[worker] = (process, ours)

    def submit(self, worker: int, rows: pd.DataFrame) -> None:
        """Send rows to an idle worker."""
        try:
            self._workers[worker][1].send(rows)
        except OSError:
            logger.debug("worker %d is gone; its closed pipe is reported next", worker)

    def messages(self) -> list[Message]:
        """What has come through the pipes."""
        at = {connection: worker for worker, (_, connection) in self._workers.items()}
        return [self._message(at[ready], ready) for ready in wait(list(at)) if isinstance(ready, Connection)]

    def _message(self, worker: int, connection: Connection) -> Message:
        try:
            answer = connection.recv()
        except (EOFError, OSError):
            process = self._workers[worker][0]
            process.join()
            return Message(worker, "died", why=f"exit code {process.exitcode}")
        if isinstance(answer, VitDomainsError):
            raise answer
        return Message(worker, "ready" if answer is None else "done", answer)

    def replace(self, worker: int) -> None:
        """Start a process in the place of a dead one."""
        self._workers[worker][1].close()
        self._start(worker)

    def close(self) -> None:
        """Stop all processes."""
        for process, connection in self._workers.values():
            connection.close()
            process.kill()
        for process, _ in self._workers.values():
            process.join()


def _serve(connection: Connection, make_worker: MakeWorker, threads: int) -> None:
    """The life of a worker process; an error that is not ours ends it, with its traceback on standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that the user started
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_threads(threads)
    try:
        work = make_worker()
        connection.send(None)
        while True:
            try:
                rows = connection.recv()
            except (EOFError, ConnectionResetError):
                return  # the process that gave the work is done, or was killed
            connection.send(work(rows))
    except VitDomainsError as error:
        connection.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
