"""Inference sessions of PyTorch, ONNX Runtime and OpenVINO behind one call: array in, array out.

Threads are always set, never left to a runtime's guess.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import importlib.util
import queue
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitdomains.core.config.choices import RUNTIMES
from vitdomains.core.errors import ConfigError, ExportError
from vitdomains.core.process import physical_cores

Forward = Callable[[np.ndarray], np.ndarray]
"""Input [B, ...] -> output [B, K], float32; B is free."""


def session(
    artefact: str | Path | nn.Module,
    runtime: str,
    *,
    threads: int = 0,
    precision: str = "fp32",
    device: str = "cpu",
    streams: int = 1,
) -> Forward:
    """Load an artefact for inference.

    Args:
        artefact: For ``torch`` a module, or a .pt2 or .torchscript file; for ``onnx`` .onnx; for ``openvino`` .xml or .onnx.
        runtime: One of ``RUNTIMES``.
        threads: Compute threads; 0: one per physical core.
        precision: ``fp32`` or ``bf16``, where the artefact leaves it open: weights of a copy of the module are cast, OpenVINO is
            told; other files compute in what they say and take ``fp32`` only.
        device: ``cpu`` or, for ``torch`` and ``onnx``, ``cuda``.
        streams: For ``onnx`` and ``openvino``: how many threads of the caller may call at once; the compute threads are shared
            out among them. One stream answers a single call soonest, many do the most work, for they never wait for each other.

    Returns:
        A function of an array [B, ...] in the input's type that gives float32 [B, K].

    Raises:
        ConfigError: An unknown runtime or precision.
        ExportError: The runtime is not installed.
    """
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision {precision!r} is not known.", hint="Use fp32 or bf16.")
    threads = threads or physical_cores()
    if runtime == "torch":
        return _torch_session(artefact, threads, precision, device)
    if runtime == "onnx":
        if precision != "fp32":
            raise ConfigError(
                "ONNX Runtime computes in the precision of the file.", hint="Use fp32, or openvino for bf16."
            )
        return _onnx_session(Path(str(artefact)), max(1, threads // streams), device)
    if runtime == "openvino":
        return _openvino_session(Path(str(artefact)), threads, precision, streams)
    raise ConfigError(f"runtime {runtime!r} is not known.", hint=f"Use one of {', '.join(RUNTIMES)}.")


def _torch_session(artefact: str | Path | nn.Module, threads: int, precision: str, device: str) -> Forward:
    torch.set_num_threads(threads)
    model: Any = artefact
    if not isinstance(artefact, nn.Module):
        file = str(artefact)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated; whoever exports it is told
            model = torch.export.load(file).module() if file.endswith(".pt2") else torch.jit.load(file)
        model = model.to(device)
        if precision != "fp32":
            raise ConfigError(f"{Path(file).name} computes in the precision that it was exported in.", hint="Use fp32.")
    else:
        model = (in_bf16(artefact) if precision == "bf16" else artefact).to(device).eval()
    kind = torch.bfloat16 if precision == "bf16" else None

    def forward(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(device)
            output: np.ndarray = model(batch if kind is None else batch.to(kind)).float().cpu().numpy()
        return output

    return forward


def in_bf16(model: nn.Module) -> nn.Module:
    """A copy with bfloat16 weights: on small models clearly faster than autocast, which casts anew at every layer.

    Batch normalisation stays in float32, for its running variance has no bits to spare.
    """
    cast = copy.deepcopy(model).bfloat16()
    for module in cast.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.float()
    return cast


def _onnx_session(path: Path, threads: int, device: str) -> Forward:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers = ["CUDAExecutionProvider"] if device == "cuda" else []
    missing = [name for name in providers if name not in ort.get_available_providers()]
    if missing:
        raise ExportError("This ONNX Runtime has no CUDA.", hint="Run: pip install onnxruntime-gpu")
    loaded = ort.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])
    name = loaded.get_inputs()[0].name

    def forward(images: np.ndarray) -> np.ndarray:
        return np.asarray(loaded.run(None, {name: images})[0], dtype=np.float32)

    return forward


def _openvino_session(path: Path, threads: int, precision: str, streams: int) -> Forward:
    ov = openvino_module()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
    }
    if streams > 1 and threads >= physical_cores():
        # The whole machine is ours: two streams that met on one core would leave another idle. Not with fewer threads, for
        # several processes would all take the first cores.
        settings["ENABLE_CPU_PINNING"] = True
    with preserved_signal_stack():
        compiled = ov.Core().compile_model(str(path), "CPU", settings)
    free: queue.SimpleQueue[Any] = (
        queue.SimpleQueue()
    )  # a request serves one caller at a time; its memory is used again

    def forward(images: np.ndarray) -> np.ndarray:
        try:
            request = free.get_nowait()
        except queue.Empty:
            request = compiled.create_infer_request()
        try:
            return np.array(request.infer([images], share_inputs=True)[0], dtype=np.float32)
        finally:
            free.put(request)

    return forward


def default_precision(path: Path) -> str:
    """What OpenVINO computes a file in on this processor where a program does not say: ``f32`` or ``bf16``."""
    with preserved_signal_stack():
        compiled = openvino_module().Core().compile_model(str(path), "CPU")
        return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def available(runtime: str) -> bool:
    """Whether the packages of a runtime are installed; of OpenVINO also its quantiser, for one extra brings both."""
    needs = {"torch": ("torch",), "onnx": ("onnxruntime",), "openvino": ("openvino", "nncf")}
    return all(importlib.util.find_spec(name) is not None for name in needs[runtime])


def openvino_module() -> Any:
    """The package openvino.

    Raises:
        ExportError: It is not installed; the hint names the extra.
    """
    return _optional("openvino")


def nncf_module() -> Any:
    """The package nncf, OpenVINO's quantiser."""
    return _optional("nncf")


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"{name} is not installed.", hint="Run: pip install 'vitdomains[openvino]'") from error


# The CPU plugin of every ``ov.Core`` gives the thread that loads it a signal stack, and on its end puts back the one that it
# found. Where several end in another order than they began (NNCF makes some of its own), the thread is left with the address of
# memory that is gone, and the next signal with a handler, an alarm or Ctrl-C, ends the process without a word.

_DISABLED = 2  # SS_DISABLE of Linux


class _Stack(ctypes.Structure):
    """stack_t of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int, int]:
    """Address and size of this thread's signal stack, bytes; (0, 0) where it has none or the system is not Linux."""
    found = _exchange(None)
    return (0, 0) if found.flags & _DISABLED else (found.address or 0, found.size)


@contextlib.contextmanager
def preserved_signal_stack() -> Iterator[None]:
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
