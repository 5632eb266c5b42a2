"""Timing of candidates in turns, and the record of the machine without which a number means nothing.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vitdomains.core.files import write_text

PACKAGES = (
    "numpy", "torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime", "openvino", "nncf",
    "opencv-python-headless", "pydicom", "pillow",
)  # fmt: skip
FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "amx_int8", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Flags of /proc/cpuinfo that decide which kernels a runtime takes, of x86 and of ARM."""
_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_PRELOAD",
    "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_",
)  # fmt: skip


def environment(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """The machine, its load now, versions of ``packages``, the command."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        **machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": load_average(),
        "variables": {key: os.environ[key] for key in _VARIABLES if key in os.environ},
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "command": " ".join(["python", *(Path(part).name if part.startswith("/") else part for part in sys.argv)]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """Processor, those of its ``FEATURES`` that it has, and the first GPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "features": [name for name in FEATURES if name in flags],
        "gpu": _gpu(),
    }


def load_average() -> list[float]:
    """Processes that ran or waited for a core, over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def rounds(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 2,
    warm_below: float = 0.0,
    seed: int = 0,
) -> Iterator[dict[str, float]]:
    """Run every candidate once a round, in a shuffled order each round (the same ones every time).

    Args:
        candidates: Name to a call without arguments.
        repeats: Timed rounds.
        warmup: Rounds before, not timed.
        warm_below: A call that took less than this (seconds) the last time is preceded by an untimed one in the same turn, so
            that caches hold what they hold where it runs alone; a longer one sweeps the caches by itself.
        seed: Of the order.

    Yields:
        For each timed round, name -> seconds.
    """
    order = random.Random(seed)
    last = dict.fromkeys(candidates, float("inf"))
    for round_ in range(warmup + repeats):
        for name in order.sample(list(candidates), len(candidates)):
            call = candidates[name]
            if last[name] < warm_below:
                call()
            start = time.perf_counter()
            call()
            last[name] = time.perf_counter() - start
        if round_ >= warmup:
            yield dict(last)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """``median_s``, ``p10_s``, ``p90_s``, ``min_s`` and ``repeats`` of timed calls."""
    return {
        "median_s": float(np.median(seconds)),
        "p10_s": float(np.percentile(seconds, 10)),
        "p90_s": float(np.percentile(seconds, 90)),
        "min_s": float(min(seconds)),
        "repeats": float(len(seconds)),
    }


def write_result(path: Path, payload: Mapping[str, Any]) -> Path:
    """Write ``payload`` with the environment to a JSON file and return its path."""
    write_text(path, json.dumps({"environment": environment(), **payload}, indent=2, sort_keys=False) + "\n")
    return path


def _gpu() -> str:
    torch = sys.modules.get("torch")  # a benchmark of file readers need not load it
    return str(torch.cuda.get_device_name(0)) if torch and torch.cuda.is_available() else ""
