"""What is measured: a model in a runtime, at a precision, a batch size and a number of threads; and what cannot be.

Imports no PyTorch: the process that measures the memory of other runtimes reads it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitdomains.core.errors import ConfigError

RUNTIMES = ("torch", "onnx", "openvino")
TORCH_OPTIONS = ("channels_last", "jit", "compile", "cudagraph")
"""Joined to ``torch`` with a plus, e.g. ``torch+compile+channels_last``: memory format, a traced and frozen module,
torch.compile (frozen on CPUs), one CUDA graph a call."""
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
DEVICES = ("cpu", "cuda")
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Subject:
    """A model: a name that ``build_model`` takes, with random weights, or a bundle with its own."""

    name: str
    """As it stands in the tables."""
    model: str
    """``timm:NAME``, ``vit:SIZE/PATCH``, ``hf:NAME``; empty for a bundle."""
    height: int
    width: int
    channels: int = 3
    classes: int = IMAGENET_CLASSES
    bundle: str = ""
    """Folder of the bundle; empty: random weights."""
    version: str = ""
    """Of a bundle: changes when its model or an artefact does."""


@dataclass(frozen=True)
class Case:
    """One row: a subject, and how it is run."""

    subject: Subject
    runtime: str
    precision: str
    batch: int
    threads: int
    device: str = "cpu"

    @property
    def label(self) -> str:
        """Unique within a result, and what ``compare --to`` takes."""
        words = [self.subject.name, self.runtime, self.precision, f"batch {self.batch}"]
        words.append("cuda" if self.device == "cuda" else f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        return ", ".join(words)

    @property
    def artefact(self) -> str:
        """File that the runtime loads; empty for ``torch``, which takes the module itself."""
        if self.runtime == "onnx":
            return f"{self.precision}.onnx"
        return f"{self.precision}.xml" if self.runtime == "openvino" else ""

    def to_json(self) -> str:
        """One line from which ``case_from_json`` makes the same case, for another process."""
        return json.dumps(asdict(self))


def case_from_json(text: str) -> Case:
    """The inverse of ``Case.to_json``."""
    raw: dict[str, Any] = json.loads(text)
    return Case(Subject(**raw.pop("subject")), **raw)


def named_subject(name: str, image_size: int = 0) -> Subject:
    """A model by its name; without a prefix it is one of timm's.

    Args:
        name: ``resnet50``, ``timm:resnet50``, ``vit:Ti/16`` or ``hf:NAME``.
        image_size: Height and width of the input, pixels; 0: what the published weights take, 224 where none are.

    Raises:
        ConfigError: timm has no such model (the nearest names are listed), or the size is not one.
    """
    import timm

    if image_size < 0:
        raise ConfigError(f"image_size {image_size} is no size.", hint="Give pixels, or 0 for the model's own.")
    family, _, own = name.rpartition(":")
    size = image_size
    if family in ("", "timm"):
        if not timm.is_model(own.split(".")[0]):
            near = difflib.get_close_matches(own, timm.list_models(), n=3)
            raise ConfigError(
                f"timm has no model {own!r}.",
                hint=f"Did you mean {', '.join(near)}?" if near else "See timm.list_models().",
            )
        published: Any = timm.get_pretrained_cfg(own)
        size = image_size or (published.input_size[-1] if published else 224)
    return Subject(own if family == "timm" else name, f"{family or 'timm'}:{own}", size or 224, size or 224)


def bundle_subject(folder: str | Path) -> Subject:
    """The model of a bundle, at the bundle's input size.

    Raises:
        BundleError: The bundle is damaged.
    """
    from vitdomains.core.bundle import read_bundle

    bundle = read_bundle(folder)
    spec, path = bundle.preprocess, Path(folder).resolve()
    models = sorted(item for item in bundle.files.items() if item[0].startswith("model."))
    version = hashlib.sha256(json.dumps([bundle.id, models]).encode()).hexdigest()[:16]
    return Subject(path.name, "", spec.height, spec.width, spec.channels, len(bundle.classes), str(path), version)


def make_cases(
    subjects: Sequence[Subject],
    runtimes: Iterable[str],
    precisions: Iterable[str],
    batches: Iterable[int],
    threads: Iterable[int],
    device: str = "cpu",
) -> list[Case]:
    """Every combination, in the order of the arguments.

    Raises:
        ConfigError: A word or number that is not possible, or a model given twice.
    """
    runtimes, precisions, batches, threads = list(runtimes), list(precisions), list(batches), list(threads)
    for runtime in runtimes:
        first, *options = runtime.split("+")
        _one_of("runtime", first, RUNTIMES)
        for option in options:
            _one_of("option of torch", option, TORCH_OPTIONS if first == "torch" else ())
    for precision in precisions:
        _one_of("precision", precision, PRECISIONS)
    _one_of("device", device, DEVICES)
    for what, numbers in (("batch", batches), ("threads", threads)):
        for number in numbers:
            if number < 1:
                raise ConfigError(f"{what} is {number}.", hint="It has to be at least 1.")
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{twice!r} is given twice.", hint="Every row needs a name of its own.")
    return [
        Case(subject, runtime, precision, batch, thread, device)
        for subject in subjects for batch in batches for thread in threads
        for runtime in runtimes for precision in precisions
    ]  # fmt: skip


def impossible(case: Case) -> str:
    """Why a case cannot be run anywhere, or nothing."""
    options = case.runtime.split("+")[1:]
    if case.runtime == "onnx" and case.precision == "bf16":
        return "ONNX Runtime has no bf16 kernels for CPUs"
    if case.runtime.startswith("torch") and case.precision == "int8":
        return "PyTorch's own INT8 modules (torch.ao) are being removed"
    if case.device == "cuda" and not case.runtime.startswith("torch"):
        return "on a GPU only PyTorch is measured"
    if case.device == "cpu" and case.precision == "fp16":
        return "fp16 is for GPUs"
    if case.device == "cpu" and "cudagraph" in options:
        return "CUDA graphs need a GPU"
    if "jit" in options and {"compile", "cudagraph"} & set(options):
        return "a TorchScript module is neither compiled nor captured again"
    return ""


def _one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        hint = f"Use one of {', '.join(allowed)}." if allowed else "Only torch has options."
        raise ConfigError(f"{what} {value!r} is not known.", hint=hint)
