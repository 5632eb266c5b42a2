"""A process of its own that loads one artefact, runs it a few times, and says how much memory that took at most.

Runs as ``python -m vitdomains.bench.resident CASE WORK``. For ONNX Runtime and OpenVINO it imports neither PyTorch nor
what imports it: a device that serves such a file has neither. It is the first to run a case, so that one that crashes
takes nothing else with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

RUNS = 3


def resident_mib(field: str = "VmHWM") -> float:
    """Resident set of this process, MiB: the largest so far (VmHWM) or that of now (VmRSS)."""
    try:
        # Not getrusage: its maximum starts with that of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return float(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _onnx(file: Path, threads: int) -> Callable[[Any], object]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def _openvino(file: Path, threads: int, precision: str) -> Callable[[Any], object]:
    import openvino as ov

    hint = "bf16" if precision == "bf16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(str(file), "CPU", settings).create_infer_request()
    return lambda images: request.infer([images], share_inputs=True)


def run(case: dict[str, Any], work: Path) -> dict[str, float]:
    """Memory of this process, MiB: before it had a model, at its peak, and on the GPU where the case runs there."""
    if case["runtime"].startswith("torch"):
        return _run_torch(case, work)
    subject, file = case["subject"], work / f"{case['precision']}.{'onnx' if case['runtime'] == 'onnx' else 'xml'}"
    shape = (case["batch"], subject["channels"], subject["height"], subject["width"])
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    importlib.import_module("onnxruntime" if case["runtime"] == "onnx" else "openvino")
    imported = resident_mib("VmRSS")
    if case["runtime"] == "onnx":
        call = _onnx(file, case["threads"])
    else:
        call = _openvino(file, case["threads"], case["precision"])
    for _ in range(RUNS):
        call(images)
    return {"import_mib": imported, "peak_memory_mib": resident_mib()}


def _run_torch(case: dict[str, Any], work: Path) -> dict[str, float]:
    import torch

    from vitdomains.bench.candidates import forward_call, module
    from vitdomains.bench.cases import case_from_json

    imported = resident_mib("VmRSS")
    call = forward_call(case_from_json(json.dumps(case)), work)
    module.cache_clear()
    gc.collect()
    with suppress(OSError):  # what it took to draw random weights is no part of serving a model
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for _ in range(RUNS):
        call()
    measured = {"import_mib": imported, "peak_memory_mib": resident_mib()}
    if case["device"] == "cuda":
        measured["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return measured


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(run(json.loads(sys.argv[1]), Path(sys.argv[2]))) + "\n")
