"""Which runtime a bundle runs on: what was exported and passed its gates, what is installed, and which is fastest here.

The answer of the probe is kept in the user's cache folder, for this bundle on this machine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitdomains.core.bundle import WEIGHTS, Bundle
from vitdomains.core.config.choices import PRECISIONS, RUNTIMES
from vitdomains.core.errors import BundleError
from vitdomains.core.files import write_text
from vitdomains.core.inference.runtimes import available
from vitdomains.core.process import has_fast_bf16

logger = logging.getLogger(__name__)

PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Backend:
    """One backend to compute logits: a runtime, what it computes in, and the exported format that it loads (none for torch)."""

    runtime: str
    precision: str
    format: str = ""

    @property
    def arithmetic(self) -> str:
        """What ``session`` is told: eight-bit files leave the rest of the arithmetic open, too."""
        return self.precision if self.precision == "bf16" else "fp32"


BACKENDS = (
    Backend("torch", "fp32"),
    Backend("torch", "bf16"),
    Backend("onnx", "fp32", "onnx"),
    Backend("onnx", "fp16", "fp16"),
    Backend("onnx", "int8", "int8-dynamic"),
    Backend("onnx", "int8", "int8-static"),
    Backend("openvino", "fp32", "openvino"),
    Backend("openvino", "bf16", "openvino"),
    Backend("openvino", "int8", "int8-openvino"),
)


def possible_backends(bundle: Bundle, runtime: str, precision: str, *, cuda: bool = False) -> tuple[Backend, ...]:
    """The backends that fit what was asked, with the one to take first where speed is not measured.

    Args:
        bundle: Its ``exports`` say what there is and what passed.
        runtime: ``torch``, ``onnx``, ``openvino`` or ``auto``.
        precision: One of ``PRECISIONS``. ``auto`` is bf16 or fp32 (fp16 for ONNX on a GPU), never INT8: what changes scores
            by more than rounding is asked for by name.
        cuda: Whether the model runs on a GPU.

    Raises:
        BundleError: There is none; the hint says what to export.
    """
    if precision not in PRECISIONS or runtime not in (*RUNTIMES, "auto"):
        raise BundleError(
            f"runtime {runtime!r} with precision {precision!r} is not known.",
            hint=f"Use torch, onnx, openvino or auto, and {', '.join(PRECISIONS)}.",
        )
    wanted = [backend for backend in BACKENDS if runtime in ("auto", backend.runtime)]
    if precision != "auto":
        wanted = [backend for backend in wanted if backend.precision == precision]
    else:
        low = {"torch": "bf16", "onnx": "fp16" if cuda else "", "openvino": "bf16"}
        if not (cuda or has_fast_bf16()):
            low = dict.fromkeys(low, "")
        wanted = [backend for backend in wanted if backend.precision in ("fp32", low[backend.runtime])]
        wanted.sort(key=lambda backend: backend.precision == "fp32")
    reasons = {backend: _reason_against(bundle, backend, cuda) for backend in wanted}
    found = tuple(backend for backend, reason in reasons.items() if not reason)
    if not found:
        why = "; ".join(dict.fromkeys(reasons.values())) or "this runtime has no such precision"
        formats = ",".join(sorted({backend.format for backend in wanted}))
        raise BundleError(
            f"The bundle {bundle.path} cannot run on {runtime} in {precision}: {why}.",
            hint=f"Run: python -m vitdomains.{bundle.domain} export {bundle.path} --formats {formats}"
            if formats
            else "Use another precision, or auto.",
        )
    return found


def _reason_against(bundle: Bundle, backend: Backend, cuda: bool) -> str:
    if backend.runtime == "torch":
        return ""
    record = bundle.exports.get(backend.format)
    if record is None:
        return f"it has no {backend.format} artefact"
    if record["refused"]:
        return f"{backend.format} was refused: {record['refused']}"
    if record["weights_sha256"] != bundle.files[WEIGHTS]:
        return f"{backend.format} was exported from other weights"
    if backend.precision == "bf16" and not any(c["precision"] == "bf16" and c["passed"] for c in record["checks"]):
        return f"{backend.format} did not pass its gates in bf16"
    if cuda and backend.runtime == "openvino":
        return "OpenVINO does not run on this GPU"
    return "" if available(backend.runtime) else f"{backend.runtime} is not installed"


def choose(
    bundle: Bundle,
    backends: Sequence[Backend],
    measured: Callable[[Backend], float],
    shape: tuple[int, ...],
    *,
    threads: int,
) -> Backend:
    """The fastest of several backends on this machine, measured once and remembered.

    Args:
        bundle: The bundle.
        backends: From ``possible_backends``.
        measured: Images per second of one of them.
        shape: Of a batch, [B, ...]; part of what is remembered.
        threads: Compute threads; likewise.
    """
    if len(backends) == 1:
        return backends[0]
    file = cache_folder() / "runtimes.json"
    key = _key(bundle, backends, shape, threads)
    known = _read(file).get(key)
    if known is None:
        logger.info("finding the fastest of %d runtimes, once for this bundle and machine", len(backends))
        speeds = {backend: measured(backend) for backend in backends}
        named = {f"{backend.runtime} {backend.precision}": round(speed, 2) for backend, speed in speeds.items()}
        logger.info("images/s: %s", ", ".join(f"{name} {speed:.1f}" for name, speed in named.items()))
        known = {"backend": asdict(max(speeds, key=lambda backend: speeds[backend])), "images_per_second": named}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**_read(file), key: known}, indent=2) + "\n")
    return Backend(**known["backend"])


def cache_folder() -> Path:
    """Where this package keeps what can be found out again: ``$XDG_CACHE_HOME/vitdomains``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitdomains"


def _key(bundle: Bundle, backends: Sequence[Backend], shape: tuple[int, ...], threads: int) -> str:
    """What the answer depends on: the artefacts, the machine, the runtimes and the size of the work."""
    files = {
        backend.format: [bundle.files.get(f) for f in bundle.exports[backend.format]["files"]]
        for backend in backends
        if backend.format
    }
    installed = {name: _version(name) for name in ("torch", "onnxruntime", "openvino")}
    machine = [
        platform.node(),
        platform.machine(),
        _processor(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    ]
    facts = [bundle.id, sorted(map(str, backends)), files, installed, machine, list(shape), threads]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    return next(
        (line for line in text.splitlines() if line.startswith(("model name", "Hardware"))), platform.processor()
    )


def _read(file: Path) -> dict[str, Any]:
    """What earlier probes found; a file that is damaged counts as empty, for it can be made again."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
