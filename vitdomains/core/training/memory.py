"""What a training step needs of memory: estimated on tensors without data before it is run, and measured beside it.

The estimate runs the very step (forward, loss, backward, at this batch, size and precision) on fake tensors, which have
shapes but no storage, and counts what is alive at once. So autocast's copies, the tensors that autograd keeps, checkpointed
blocks and the temporaries of the backward pass are all in it, on a machine where the step itself would not fit.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import resource
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

# torch.compile and torch.export are built on these; torch documents them but keeps them under a private name.
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitdomains.core.config.schema import Config
from vitdomains.core.data.preprocess import PreprocessSpec, normalise, resized_spec
from vitdomains.core.models.build import build_model
from vitdomains.core.models.introspect import split_frozen
from vitdomains.core.models.vit import vit
from vitdomains.core.process import physical_cores
from vitdomains.core.training.optim import parameter_groups
from vitdomains.core.training.setup import precision

CPU_SCRATCH = (0.25, 32 * 2**20)
"""What kernels' scratch space and the gaps of the C library's allocator add on a CPU: a share of the activations, and bytes.
Between counted and measured by ``benchmarks/memory_estimate.py``. On a GPU PyTorch counts by itself and nothing is added."""


def training_memory(model: nn.Module, spec: PreprocessSpec, config: Config) -> dict[str, int]:
    """Bytes alive at the fullest moment of a training step, by what they are for; the model is not touched.

    Args:
        model: From ``build_model``.
        spec: Channels and size of the input.
        config: Batch size, precision, moving average, frozen blocks.
    """
    parameters = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    activations, gradients = _alive(model, spec, config)
    if activations + gradients < trained:  # the optimiser's own step is fuller: all gradients, no activations
        activations, gradients = 0, trained
    scratch = 0 if device_of(config).type == "cuda" else int(CPU_SCRATCH[0] * activations) + CPU_SCRATCH[1]
    return {
        "parameters": parameters,
        "moving average": parameters if config.recipe.ema_decay else 0,
        "optimiser": 2 * trained,
        "sharpness copy": trained if config.recipe.sam_rho else 0,
        "gradients": gradients,
        "activations": activations,
        "scratch space": scratch,
    }


def measured_memory(config: Config, spec: PreprocessSpec, n_classes: int) -> int | None:
    """Bytes that two real training steps add to a fresh process at most; None where the system stopped them for want of memory.

    On a GPU what PyTorch allocated there, on a CPU the growth of the resident set (Linux; elsewhere its largest value).
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, config, spec, n_classes).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):
            return None


def free_memory(config: Config) -> int | None:
    """Bytes that a step can still get, where the system says so."""
    if device_of(config).type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    table = Path("/proc/meminfo")
    if not table.exists():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def device_of(config: Config) -> torch.device:
    """Where ``run.accelerator`` will train."""
    name = config.run.accelerator
    return torch.device("cuda" if name in ("auto", "cuda") and torch.cuda.is_available() else "cpu")


def _step(model: nn.Module, spec: PreprocessSpec, config: Config, device: torch.device) -> Callable[[], None]:
    """Forward and backward of one batch, as the loop makes them."""
    low = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(
        precision(config.recipe.precision, config.run.accelerator)
    )
    shape = (config.recipe.batch_size, spec.channels, spec.height, spec.width)
    storage = torch.uint8 if spec.storage == "uint8" else torch.float32
    parts = split_frozen(model) if config.recipe.frozen_cache_views else None
    model.train()

    def step() -> None:
        inputs, forward = normalise(torch.zeros(shape, dtype=storage, device=device), spec), model
        with torch.autocast(device.type, low or torch.bfloat16, enabled=low is not None):
            if parts is not None:
                with torch.no_grad():
                    inputs = parts[0](inputs)
                forward = parts[1]  # type: ignore[assignment]
            logits = forward(inputs)
            loss = F.binary_cross_entropy_with_logits(logits.float(), torch.zeros_like(logits, dtype=torch.float32))
        loss.backward()

    return step


class _Alive(TorchDispatchMode):
    """Sums the storages that are alive, and keeps the largest sum and the share of gradients in it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}
        self.sum = self.most = self.gradients = 0
        self.parameters = list(model.parameters())
        for tensor in (*self.parameters, *model.buffers()):
            self.add(tensor)
        self.fixed = self.most = self.sum

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.sum += storage.nbytes()
        weakref.finalize(storage, self.remove, key)
        if self.sum > self.most:
            self.most = self.sum
            self.gradients = sum(p.grad.untyped_storage().nbytes() for p in self.parameters if p.grad is not None)

    def remove(self, key: int) -> None:
        self.sum -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


def _alive(model: nn.Module, spec: PreprocessSpec, config: Config) -> tuple[int, int]:
    """Bytes beside the parameters at the fullest moment of forward and backward: (activations, gradients)."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        shadow = copy.deepcopy(model)
    with fake, (alive := _Alive(shadow)):
        _step(shadow, spec, config, torch.device("cpu"))()
    return alive.most - alive.fixed - alive.gradients, alive.gradients


def _measure(config: Config, spec: PreprocessSpec, n_classes: int) -> int:
    """In a process of its own: the peak of two steps over what stood before the model was built."""
    torch.set_num_threads(config.run.threads or physical_cores())
    torch.manual_seed(config.run.seed)
    # What the libraries set up once, code and buffers, is the process's and not the step's.
    tiny = replace(config, recipe=replace(config.recipe, batch_size=2, frozen_cache_views=0))
    _two_steps(vit("Ti/16", n_classes, depth=1, image_size=32, in_channels=spec.channels), resized_spec(spec, 32), tiny)
    gc.collect()
    before = _resident("VmRSS")
    model = build_model(config.model, n_classes, image_size=spec.height)
    _two_steps(model, spec, config)
    return torch.cuda.max_memory_allocated() if device_of(config).type == "cuda" else _resident("VmHWM") - before


def _two_steps(model: nn.Module, spec: PreprocessSpec, config: Config) -> None:
    """Two, because the optimiser's state is there from the second on."""
    device = device_of(config)
    model.to(device)
    groups = parameter_groups(model, config.recipe)
    optimizer = torch.optim.AdamW(groups, lr=config.recipe.lr, fused=True)
    ema = ModelEmaV3(model, decay=config.recipe.ema_decay) if config.recipe.ema_decay else None
    step = _step(model, spec, config, device)
    for _ in range(2):
        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema:
            ema.update(model)


def _resident(field: str) -> int:
    """A figure of this process's resident set, bytes: ``VmRSS`` now, ``VmHWM`` at most."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would also count the parent, as it was when it started this process
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
        return int(lines[field].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
