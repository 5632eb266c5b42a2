"""The pool of Ray actors: any number of machines, GPUs by resource request; dead actors are replaced."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any, Literal

import pandas as pd

from vitdomains.core.errors import ConfigError, VitDomainsError
from vitdomains.core.jobs.pool import MakeWorker, Message, limit_threads

logger = logging.getLogger(__name__)

_PATIENCE = 20.0
"""Seconds without an answer before the cluster is asked whether it is still there."""


class RayPool:
    """Actors of a Ray cluster, on any number of machines; they load the model once each.

    Args:
        make_worker: Sent to the actors; the package is installed where they run, and inputs lie under the same paths.
        workers: Number of actors.
        threads: Compute threads, and CPUs that are asked for, an actor.
        address: Of a running cluster (``auto`` finds it on this machine); empty: one is started for this job only.
        num_gpus: GPUs that are asked for, an actor; may be a fraction.
    """

    def __init__(self, make_worker: MakeWorker, workers: int, threads: int, address: str, num_gpus: float) -> None:
        self._ray = _import_ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            local = {"num_cpus": workers * threads, "include_dashboard": False, "object_store_memory": 2**28}
            self._ray.init(address or "local", **({} if address else local), logging_level=logging.WARNING)
        wanted = {"CPU": float(workers * threads), "GPU": workers * num_gpus}
        there = self._ray.cluster_resources()
        for kind, amount in wanted.items():
            if amount > there.get(kind, 0.0):
                logger.warning(
                    "some workers have to wait: %g %s asked for, %g there", amount, kind, there.get(kind, 0.0)
                )
        self._actor = self._ray.remote(_Actor).options(num_cpus=threads, num_gpus=num_gpus, max_restarts=0)
        self._make_worker, self._threads = make_worker, threads
        self._workers: dict[int, Any] = {}
        self._pending: dict[Any, tuple[int, Literal["ready", "done"]]] = {}
        for worker in range(workers):
            self.replace(worker)

    def submit(self, worker: int, rows: pd.DataFrame) -> None:
        """Call an idle actor."""
        self._pending[self._workers[worker].compute.remote(rows)] = (worker, "done")

    def messages(self) -> list[Message]:
        """What the actors have answered.

        Raises:
            ConfigError: No machine of the cluster is left: actors would wait for ever.
        """
        answered: list[Any] = []
        while not answered:
            answered, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=_PATIENCE)
            if not answered and not any(node["Alive"] for node in self._ray.nodes()):
                raise ConfigError(
                    "The Ray cluster has lost all of its machines.",
                    hint="Give the same command again: finished shards are kept. Ray also gives up a machine that is too "
                    "busy or too short of memory to answer; take fewer --workers then.",
                )
        return [self._message(reference, *self._pending.pop(reference)) for reference in answered]

    def _message(self, reference: Any, worker: int, kind: Literal["ready", "done"]) -> Message:
        try:
            return Message(worker, kind, self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, VitDomainsError):
                raise cause from None
            return Message(worker, "died", why=f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")

    def replace(self, worker: int) -> None:
        """Start an actor, in the place of a dead one where there was one."""
        if worker in self._workers:
            self._ray.kill(self._workers[worker])
        actor = self._actor.remote(self._make_worker, self._threads)
        self._workers[worker] = actor
        self._pending[actor.ready.remote()] = (worker, "ready")

    def close(self) -> None:
        """End the actors, and the cluster where this job started it."""
        if self._own:
            self._ray.shutdown()
            return
        for actor in self._workers.values():
            self._ray.kill(actor)


class _Actor:
    def __init__(self, make_worker: MakeWorker, threads: int) -> None:
        limit_threads(threads)
        self._work = make_worker()

    def ready(self) -> None:
        """Comes back once the worker is loaded."""

    def compute(self, rows: pd.DataFrame) -> pd.DataFrame:
        return self._work(rows)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            "The executor ray needs the package ray, which is not installed.", hint="pip install 'vitdomains[ray]'"
        ) from error
