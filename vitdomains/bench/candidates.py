"""From a case to a call without arguments that makes one forward pass on the same input again and again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitdomains.bench.cases import Case, Subject
from vitdomains.core.bundle import load_model, read_bundle
from vitdomains.core.config.schema import Model
from vitdomains.core.inference.runtimes import session
from vitdomains.core.models.build import build_model

Call = Callable[[], object]

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def textures(subject: Subject, n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """``n`` normalised images [n,C,height,width] with the falling spectrum of photographs: random octaves, each finer and weaker.

    White noise would do for the time; the ranges on which INT8 is calibrated, and the running statistics of batch
    normalisation, need neighbouring pixels that agree. Spectrum: Field, J. Opt. Soc. Am. A 4, 2379 (1987).
    """
    generator = torch.Generator().manual_seed(seed)
    size = (subject.height, subject.width)
    total = torch.zeros(n, subject.channels, *size)
    for octave in range(6):
        cells = min(3 * 2**octave, *size)
        noise = torch.randn(n, subject.channels, cells, cells, generator=generator)
        total += F.interpolate(noise, size, mode="bilinear") / 2**octave
    array: npt.NDArray[np.float32] = (total / total.std()).numpy()
    return array


@lru_cache(maxsize=1)
def module(subject: Subject) -> nn.Module:
    """The model in evaluation mode, branches that only training needs folded away; do not change it, copy it.

    Weights of a named model are random, from a fixed seed. Its batch normalisations are shown a few images first: with the
    statistics that they start with, the values in a deep network shrink to denormal numbers, on which processors are slow.
    """
    from timm.utils import reparameterize_model

    if subject.bundle:
        return load_model(read_bundle(subject.bundle))
    torch.manual_seed(0)
    model = build_model(
        Model(name=subject.model, channels=subject.channels), subject.classes, image_size=subject.height
    )
    normalisations = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if normalisations:
        for layer in normalisations:
            layer.momentum = None  # plain average over what was seen
        with torch.no_grad():
            model.train()(torch.from_numpy(textures(subject, 8)))
    return reparameterize_model(model.eval()) if subject.model.startswith("timm:") else model.eval()


def parameters(model: nn.Module) -> int:
    """How many, of the model as it is deployed."""
    return sum(p.numel() for p in model.parameters())


def weight_bytes(model: nn.Module, precision: str) -> int:
    """Bytes of a state dict in this precision; what is no floating point number keeps its type."""
    width = _TYPES[precision].itemsize
    return sum(t.numel() * (width if t.is_floating_point() else t.element_size()) for t in model.state_dict().values())


def forward_call(case: Case, work: Path) -> Call:
    """Load the case's artefact and run it once.

    Args:
        case: One that is not ``impossible``.
        work: Folder with the artefacts of the subject.

    Returns:
        A call that makes one forward pass and gives its logits [B, K]. On a GPU input and weights lie there already, and it
        returns when the pass is done.
    """
    images = textures(case.subject, case.batch)
    if case.artefact:
        runtime_precision = "bf16" if case.precision == "bf16" else "fp32"  # an INT8 file says so itself
        forward = session(work / case.artefact, case.runtime, threads=case.threads, precision=runtime_precision)
        forward(images)
        return lambda: forward(images)
    call = _torch_call(case, torch.from_numpy(images))
    call()
    return call


def _torch_call(case: Case, images: Tensor) -> Call:
    options, device = case.runtime.split("+")[1:], torch.device(case.device)
    layout = torch.channels_last if "channels_last" in options else torch.contiguous_format
    placed: dict[str, Any] = {"device": device, "dtype": _TYPES[case.precision], "memory_format": layout}
    model: Any = copy.deepcopy(module(case.subject)).to(**placed).requires_grad_(False)
    batch = images.to(**placed)
    torch.set_num_threads(case.threads)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    if "jit" in options:
        model = _frozen_trace(model, batch)
    if "compile" in options:
        model = _compiled(model, cpu=device.type == "cpu", cudagraph="cudagraph" in options)
    elif "cudagraph" in options:
        return _captured(model, batch)

    def call() -> object:
        if torch.get_num_threads() != case.threads:  # one setting for all of a process
            torch.set_num_threads(case.threads)
        with torch.no_grad():
            logits = model(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return logits

    return call


def _frozen_trace(model: nn.Module, batch: Tensor) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (batch,), check_trace=False)
        return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


def _compiled(model: nn.Module, *, cpu: bool, cudagraph: bool) -> Any:
    """On a CPU weights become constants of the program (``freezing``), which lets them be packed once for the kernels."""
    if cpu:
        return torch.compile(model, options={"freezing": True})
    return torch.compile(model, mode="reduce-overhead" if cudagraph else None)


def _captured(model: nn.Module, batch: Tensor) -> Call:
    """The pass as one CUDA graph: one launch instead of hundreds, which is what small batches wait for."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):  # memory is allocated and kernels are chosen before the capture
            model(batch)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad(), torch.cuda.graph(graph):
        logits = model(batch)

    def call() -> object:
        graph.replay()
        torch.cuda.synchronize()
        return logits

    return call
