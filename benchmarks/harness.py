"""What every benchmark here shares: interleaved timing, a record of the machine, and one JSON file a benchmark.

Candidates take turns, so that a machine that slows down for a while slows all of them down, and in another order each
round, so that none always pays for the memory that its predecessor gave back or the caches that it left cold.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("numpy", "torch", "torchvision", "timm", "transformers", "opencv-python-headless", "pydicom", "pillow")


def environment(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """The machine, its load now, versions of ``packages``, the command: what a number means nothing without."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "threads": {key: os.environ[key] for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if key in os.environ},
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "command": " ".join(["python", *(Path(part).name if part.startswith("/") else part for part in sys.argv)]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def interleave(
    candidates: Mapping[str, Callable[[], object]], repeats: int = 20, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Time candidates in turns, in a shuffled order each round (the same ones every time).

    Args:
        candidates: Name to a call without arguments.
        repeats: Timed rounds; in each every candidate runs once.
        warmup: Rounds before, not timed.

    Returns:
        Name to ``median_s``, ``p10_s``, ``p90_s``, ``min_s`` (seconds a call) and ``repeats``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = random.Random(0)
    for round_ in range(warmup + repeats):
        for name in order.sample(list(candidates), len(candidates)):
            call = candidates[name]
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if round_ >= warmup:
                seconds[name].append(elapsed)
    return {
        name: {
            "median_s": float(np.median(values)),
            "p10_s": float(np.percentile(values, 10)),
            "p90_s": float(np.percentile(values, 90)),
            "min_s": float(min(values)),
            "repeats": float(repeats),
        }
        for name, values in seconds.items()
    }


def write_result(name: str, payload: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``payload`` with the environment to ``folder/name.json`` and return that path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = json.dumps({"environment": environment(), **payload}, indent=2, sort_keys=False) + "\n"
    path.write_text(content, encoding="utf-8")
    return path


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
