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
from vitdomains.core.errors import BundleError
from vitdomains.core.files import write_text
from vitdomains.core.inference.runtimes import available
from vitdomains.core.process import has_fast_bf16

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Way:
    """One way to compute logits: a runtime, what it computes in, and the exported format that it loads (none for torch)."""

    runtime: str
    precision: str
    format: str = ""

    @property
    def arithmetic(self) -> str:
        """What ``session`` is told: eight-bit files leave the rest of the arithmetic open, too."""
        return self.precision if self.precision == "bf16" else "fp32"


WAYS = (
    Way("torch", "fp32"),
    Way("torch", "bf16"),
    Way("onnx", "fp32", "onnx"),
    Way("onnx", "fp16", "fp16"),
    Way("onnx", "int8", "int8-dynamic"),
    Way("onnx", "int8", "int8-static"),
    Way("openvino", "fp32", "openvino"),
    Way("openvino", "bf16", "openvino"),
    Way("openvino", "int8", "int8-openvino"),
)


def possible_ways(bundle: Bundle, runtime: str, precision: str, *, cuda: bool = False) -> tuple[Way, ...]:
    """The ways that fit what was asked, with the one to take first where speed is not measured.

    Args:
        bundle: Its ``exports`` say what there is and what passed.
        runtime: ``torch``, ``onnx``, ``openvino`` or ``auto``.
        precision: One of ``PRECISIONS``. ``auto`` is bf16 or fp32 (fp16 for ONNX on a GPU), never INT8: what changes scores
            by more than rounding is asked for by name.
        cuda: Whether the model runs on a GPU.

    Raises:
        BundleError: There is none; the hint says what to export.
    """
    if precision not in PRECISIONS or runtime not in ("torch", "onnx", "openvino", "auto"):
        raise BundleError(
            f"runtime {runtime!r} with precision {precision!r} is not known.",
            hint=f"Use torch, onnx, openvino or auto, and {', '.join(PRECISIONS)}.",
        )
    wanted = [way for way in WAYS if runtime in ("auto", way.runtime)]
    if precision != "auto":
        wanted = [way for way in wanted if way.precision == precision]
    else:
        low = {"torch": "bf16", "onnx": "fp16" if cuda else "", "openvino": "bf16"}
        if not (cuda or has_fast_bf16()):
            low = dict.fromkeys(low, "")
        wanted = [way for way in wanted if way.precision in ("fp32", low[way.runtime])]
        wanted.sort(key=lambda way: way.precision == "fp32")
    reasons = {way: _reason_against(bundle, way, cuda) for way in wanted}
    found = tuple(way for way, reason in reasons.items() if not reason)
    if not found:
        why = "; ".join(dict.fromkeys(reasons.values())) or "this runtime has no such precision"
        formats = ",".join(sorted({way.format for way in wanted}))
        raise BundleError(
            f"The bundle {bundle.path} cannot run on {runtime} in {precision}: {why}.",
            hint=f"Run: python -m vitdomains.{bundle.domain} export {bundle.path} --formats {formats}"
            if formats
            else "Use another precision, or auto.",
        )
    return found


def _reason_against(bundle: Bundle, way: Way, cuda: bool) -> str:
    if way.runtime == "torch":
        return ""
    record = bundle.exports.get(way.format)
    if record is None:
        return f"it has no {way.format} artefact"
    if record["refused"]:
        return f"{way.format} was refused: {record['refused']}"
    if record["weights_sha256"] != bundle.files[WEIGHTS]:
        return f"{way.format} was exported from other weights"
    if way.precision == "bf16" and not any(c["precision"] == "bf16" and c["passed"] for c in record["checks"]):
        return f"{way.format} did not pass its gates in bf16"
    if cuda and way.runtime == "openvino":
        return "OpenVINO does not run on this GPU"
    return "" if available(way.runtime) else f"{way.runtime} is not installed"


def choose(
    bundle: Bundle,
    ways: Sequence[Way],
    measured: Callable[[Way], float],
    shape: tuple[int, ...],
    *,
    threads: int,
) -> Way:
    """The fastest of several ways on this machine, measured once and remembered.

    Args:
        bundle: The bundle.
        ways: From ``possible_ways``.
        measured: Images per second of one of them.
        shape: Of a batch, [B, ...]; part of what is remembered.
        threads: Compute threads; likewise.
    """
    if len(ways) == 1:
        return ways[0]
    file = cache_folder() / "runtimes.json"
    key = _key(bundle, ways, shape, threads)
    known = _read(file).get(key)
    if known is None:
        logger.info("finding the fastest of %d runtimes, once for this bundle and machine", len(ways))
        speeds = {way: measured(way) for way in ways}
        named = {f"{way.runtime} {way.precision}": round(speed, 2) for way, speed in speeds.items()}
        logger.info("images/s: %s", ", ".join(f"{name} {speed:.1f}" for name, speed in named.items()))
        known = {"way": asdict(max(speeds, key=lambda way: speeds[way])), "images_per_second": named}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**_read(file), key: known}, indent=2) + "\n")
    return Way(**known["way"])


def cache_folder() -> Path:
    """Where this package keeps what can be found out again: ``$XDG_CACHE_HOME/vitdomains``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitdomains"


def _key(bundle: Bundle, ways: Sequence[Way], shape: tuple[int, ...], threads: int) -> str:
    """What the answer depends on: the artefacts, the machine, the runtimes and the size of the work."""
    files = {
        way.format: [bundle.files.get(f) for f in bundle.exports[way.format]["files"]] for way in ways if way.format
    }
    installed = {name: _version(name) for name in ("torch", "onnxruntime", "openvino")}
    machine = [
        platform.node(),
        platform.machine(),
        _processor(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    ]
    facts = [bundle.id, sorted(map(str, ways)), files, installed, machine, list(shape), threads]
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
