"""Work that may crash, hang or leave memory behind, each in a process of its own: making artefacts, measuring memory.

Runs as ``python -m vitdomains.bench.processes make SUBJECT WORK ARTEFACT ...``, which exports one model to the files that the
runtimes load, and ``... measure CASE WORK``, which loads one artefact, runs it a few times and prints how much memory that took.
For ONNX Runtime and OpenVINO the latter imports neither PyTorch nor what imports it, as on a device that serves such a file.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.metadata
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdomains.bench.cases import Case, Subject, case_from_json
from vitdomains.core.errors import VitDomainsError

if TYPE_CHECKING:
    import numpy.typing as npt

MAKERS = ("torch", "timm", "transformers", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf")
"""Packages whose version decides what an artefact holds."""


@dataclass
class Prepared:
    """A subject's parameters, the bytes of its weights by precision, and why an artefact is not there ("": the model itself)."""

    parameters: int = 0
    weight_bytes: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def work_folder(root: Path, subject: Subject) -> Path:
    """Where the artefacts of a subject lie; another version of what makes them is another folder."""
    versions = []
    for name in MAKERS:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append((name, importlib.metadata.version(name)))
    digest = hashlib.sha256(json.dumps([asdict(subject), versions], sort_keys=True).encode()).hexdigest()[:12]
    return root / f"{subject.name.replace('/', '_').replace(':', '_')}-{digest}"


def prepare(subject: Subject, artefacts: Sequence[str], work: Path, timeout: float) -> Prepared:
    """Have the artefacts made that are not there yet; one that cannot be made does not keep the others from it.

    Args:
        subject: The model.
        artefacts: File names, each after those that it is made from.
        work: Folder of the subject.
        timeout: Seconds for all that is still to be made.
    """
    work.mkdir(parents=True, exist_ok=True)
    made, failed = work / "prepared.json", dict[str, str]()
    while True:
        left = [name for name in artefacts if not (work / name).is_file() and name not in failed]
        if made.is_file() and not left:
            return Prepared(**json.loads(made.read_text(encoding="utf-8")), failed=failed)
        reason = _run("make", [json.dumps(asdict(subject)), str(work), *left], timeout)[1]
        if not made.is_file():
            return Prepared(failed={"": reason})
        culprit = next((name for name in left if not (work / name).is_file()), "")
        if culprit:
            failed[culprit] = reason or "was not written"


def resident(case: Case, work: Path, timeout: float) -> tuple[dict[str, float], str]:
    """Peak memory of a case in a process of its own, and nothing; or nothing, and why it fails."""
    out, reason = _run("measure", [case.to_json(), str(work)], timeout)
    return (json.loads(out.splitlines()[-1]), "") if not reason else ({}, reason)


def _run(command: str, args: Sequence[str], timeout: float) -> tuple[str, str]:
    """Output of this module run as a program, and why it failed."""
    # What is set for a server with memory to spare would show in the peak.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    program = [sys.executable, "-m", "vitdomains.bench.processes", command, *args]
    try:
        done = subprocess.run(program, capture_output=True, text=True, timeout=timeout, env=environ, check=False)
    except subprocess.TimeoutExpired:
        return "", f"took longer than {timeout:.0f} s"
    if done.returncode == 0:
        return done.stdout, ""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return "", f"the process was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "", (lines[-1] if lines else f"exit status {done.returncode}")[:300]


CALIBRATION_IMAGES = 16
EXPORTED = {
    "fp32.onnx": ("onnx",),
    "int8.onnx": ("int8-static", "int8-dynamic"),
    "fp32.xml": ("openvino",),
    "int8.xml": ("int8-openvino",),
}
"""Formats of ``export`` that are what is measured here under another name."""


def make(subject: Subject, work: Path, artefacts: Sequence[str]) -> None:
    """Write the artefacts, those first that others are made from; each appears whole or not at all."""
    from vitdomains.bench.candidates import module, parameters, weight_bytes
    from vitdomains.core.files import write_text

    model = module(subject)
    sizes = {precision: weight_bytes(model, precision) for precision in ("fp32", "fp16", "bf16")}
    write_text(work / "prepared.json", json.dumps({"parameters": parameters(model), "weight_bytes": sizes}))
    for name in artefacts:
        with tempfile.TemporaryDirectory(dir=work) as part:
            if not _from_bundle(subject, Path(part) / name):
                _make(subject, work, Path(part) / name)
            for file in sorted(Path(part).iterdir()):  # .bin before .xml
                os.replace(file, work / file.name)


def _make(subject: Subject, work: Path, file: Path) -> None:
    """Write ``file``, from what ``work`` holds already."""
    import onnx
    import torch

    from vitdomains.bench.candidates import module, textures
    from vitdomains.core.export import int8
    from vitdomains.core.export.formats import is_transformer
    from vitdomains.core.export.onnx import to_onnx
    from vitdomains.core.export.torch_formats import to_openvino

    def calibration() -> list[npt.NDArray[np.float32]]:
        return np.split(textures(subject, CALIBRATION_IMAGES, seed=1), CALIBRATION_IMAGES)

    source = work / "fp32.onnx"
    if file.name == "fp32.onnx":
        to_onnx(module(subject), torch.from_numpy(textures(subject, 2)), file)
    elif file.name == "int8.onnx" and is_transformer(module(subject)):  # linear layers; static for convolutions
        int8.quantize_dynamic(source, file)
    elif file.name == "int8.onnx":
        int8.quantize_static(source, file, int8.calibrate(source, work / "ranges.json", calibration()))
    elif file.name == "int8.xml":
        # Every layer that NNCF takes: with random weights there is no accuracy to give layers back for.
        nodes = onnx.load(source, load_external_data=False).graph.node
        attention = any(node.op_type == "Softmax" for node in nodes)
        int8.quantize_openvino(work / "fp32.xml", file, calibration(), lambda _: 0.0, 1.0, transformer=attention)
    else:  # bf16: weights in 16 bits on disk; the arithmetic is chosen when the file is loaded
        to_openvino(source, file, fp16_weights=file.name == "bf16.xml")


def _from_bundle(subject: Subject, file: Path) -> bool:
    """Whether the bundle has this artefact already; then it is what is measured."""
    from vitdomains.core.export.formats import FORMATS

    for name in EXPORTED.get(file.name, ()) if subject.bundle else ():
        paths = [Path(subject.bundle) / each for each in FORMATS[name].files]
        if all(path.is_file() for path in paths):
            for path in paths:
                shutil.copyfile(path, file.with_suffix(path.suffix))
            return True
    return False


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


def measure(case: Case, work: Path) -> dict[str, float]:
    """Memory of this process, MiB: before it had a model, at its peak, and on the GPU where the case runs there."""
    if case.runtime.startswith("torch"):
        return _measure_torch(case, work)
    subject, file = case.subject, work / case.artefact
    shape = (case.batch, subject.channels, subject.height, subject.width)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    importlib.import_module("onnxruntime" if case.runtime == "onnx" else "openvino")
    imported = resident_mib("VmRSS")
    if case.runtime == "onnx":
        call = _onnx(file, case.threads)
    else:
        call = _openvino(file, case.threads, case.precision)
    for _ in range(RUNS):
        call(images)
    return {"import_mib": imported, "peak_memory_mib": resident_mib()}


def _measure_torch(case: Case, work: Path) -> dict[str, float]:
    import torch

    from vitdomains.bench.candidates import forward_call, module

    imported = resident_mib("VmRSS")
    call = forward_call(case, work)
    module.cache_clear()
    gc.collect()
    with suppress(OSError):  # what it took to draw random weights is no part of serving a model
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for _ in range(RUNS):
        call()
    measured = {"import_mib": imported, "peak_memory_mib": resident_mib()}
    if case.device == "cuda":
        measured["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return measured


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        sys.stdout.write("\n" + json.dumps(measure(case_from_json(sys.argv[2]), Path(sys.argv[3]))) + "\n")
    else:
        try:
            make(Subject(**json.loads(sys.argv[2])), Path(sys.argv[3]), sys.argv[4:])
        except VitDomainsError as error:
            sys.exit(error.message)
