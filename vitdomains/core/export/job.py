"""Export of a bundle: every format is written, checked against the model, and added to the bundle or deleted.

Artefacts that pass lie beside the weights; what the checks saw of each, passed or refused, stands in ``bundle.json``.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from vitdomains.core.bundle import WEIGHTS, Bundle, load_model, update_bundle
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.errors import ExportError
from vitdomains.core.export import int8
from vitdomains.core.export.checks import Check, bf16_difference, check
from vitdomains.core.export.formats import (
    ALLOWED_LOSS,
    BF16_TOLERANCE,
    FORMATS,
    OPSET,
    Calibration,
    chosen_formats,
    is_transformer,
    refuse_impossible,
)
from vitdomains.core.export.layer_errors import KindError, Trial, by_kind, errors_by_kind, kind_of, try_in_float32
from vitdomains.core.export.onnx import layer_of, to_fp16, to_onnx
from vitdomains.core.export.reference import Reference, Source, end_to_end, of_logits
from vitdomains.core.export.torch_formats import to_openvino, to_pt2, to_torchscript
from vitdomains.core.inference.runtimes import Forward, default_precision, session
from vitdomains.core.process import has_fast_bf16
from vitdomains.core.terminal import OnProgress

HELD_IN_FP16 = (nn.Linear, nn.Conv2d, nn.LayerNorm)
"""Modules that fp16 can leave in float32; INT8 holds the linear layers and convolutions among them."""


@dataclass(frozen=True)
class ExportOptions:
    """What the user can say about an export.

    Attributes:
        formats: Names of ``FORMATS``, ``int8`` or ``all``.
        with_preprocessing: 8-bit images of any size in, calibrated probabilities out.
        keep: Kinds of layers that stay in float32 in ``fp16`` and INT8.
        calibration: How ranges of INT8 are found.
        calibration_images: Images for that.
        allowed: Loss of the metric that passes, absolute.
        opset: Of the ONNX files.
        threads: Compute threads; 0: one per physical core.
        batch_size: Images per forward pass on the validation split.
    """

    formats: tuple[str, ...]
    with_preprocessing: bool = False
    keep: tuple[str, ...] = ()
    calibration: Calibration = "percentile"
    calibration_images: int = 256
    allowed: float = ALLOWED_LOSS
    opset: int = OPSET
    threads: int = 0
    batch_size: int = 8


@dataclass(frozen=True)
class Job:
    """One export: its folder, model, reference and options; what several formats start from is made once."""

    folder: Path
    model: nn.Module
    source: Source
    reference: Reference
    bundle: Bundle
    options: ExportOptions

    @cached_property
    def notes(self) -> dict[str, str]:
        """What a consumer of a file needs to know, as text."""
        bundle = self.bundle
        return {
            "bundle_id": bundle.id,
            "domain": bundle.domain,
            "task": bundle.task_kind,
            "classes": json.dumps(bundle.classes),
            "preprocess": json.dumps(bundle.preprocess.to_dict()),
            "temperature": json.dumps(bundle.temperature),
            "thresholds": json.dumps(bundle.thresholds),
            "input": self.source.names[0],
            "output": self.source.names[1],
        }

    @cached_property
    def float_onnx(self) -> Path:
        return self._onnx(to_onnx, self.folder / "float" / "model.onnx")

    @cached_property
    def float_openvino(self) -> Path:
        return to_openvino(self.float_onnx, self.folder / "float" / "model.xml", metadata=self.notes)

    @cached_property
    def ranges(self) -> Path:
        method, count = self.options.calibration, self.options.calibration_images
        return int8.calibrate(self.float_onnx, self.folder / "ranges.json", self.calibration_inputs(count), method)

    def calibration_inputs(self, count: int) -> Iterator[np.ndarray]:
        """``count`` inputs, or all of a smaller split, spread over it so that every class that it is sorted by is seen."""
        total = len(self.reference.targets)
        rows = set(np.linspace(0, total - 1, min(count, total)).astype(int).tolist())
        singles = (one for batch in self.reference.batches() for one in np.split(batch, len(batch)))
        return (one for row, one in enumerate(singles) if row in rows)

    def _onnx(self, writer: Callable[..., Path], path: Path, **more: Any) -> Path:
        source, options = self.source, self.options
        return writer(source.module, source.example, path, opset=options.opset, names=source.names,
                      dynamic=source.dynamic, metadata=self.notes, **more)  # fmt: skip

    def layers(self, name: str) -> dict[str, str]:
        """Layers that a format holds in low precision: name -> path of the module in the model."""
        if name == "fp16":
            return {path: path for path, module in self.model.named_modules() if isinstance(module, HELD_IN_FP16)}
        proto = onnx.load(self.float_onnx)
        weights = {tensor.name for tensor in proto.graph.initializer}
        nodes = [n for n in proto.graph.node if n.op_type in int8.QUANTISED and n.input[1] in weights]
        return {node.name: layer_of(node.name).removeprefix("model.") for node in nodes}

    def make(self, name: str, path: Path, keep: Collection[str] = ()) -> Path:
        """Write one format to ``path``, with the layers ``keep`` in float32."""
        source, options = self.source, self.options
        if name == "fp16":
            return self._onnx(to_fp16, path, keep=sorted(keep))
        if name == "int8-dynamic":
            return int8.quantize_dynamic(self.float_onnx, path, skip=keep)
        if name == "int8-static":
            return int8.quantize_static(self.float_onnx, path, self.ranges, method=options.calibration, skip=keep)
        if name == "int8-openvino":
            return self._int8_openvino(path)
        if name in ("torchscript", "pt2"):
            writer = to_torchscript if name == "torchscript" else partial(to_pt2, dynamic=source.dynamic)
            return writer(source.module, source.example, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name not in ("onnx", "openvino"):
            raise KeyError(f"no code writes the format {name}")
        made, suffixes = (self.float_onnx, (".onnx",)) if name == "onnx" else (self.float_openvino, (".xml", ".bin"))
        for suffix in suffixes:
            shutil.copyfile(made.with_suffix(suffix), path.with_suffix(suffix))
        return path

    def _int8_openvino(self, path: Path) -> Path:
        def score(forward: Forward) -> float:
            return self.reference.metric(np.concatenate([forward(batch) for batch in self.reference.batches()]))

        inputs = list(self.calibration_inputs(self.options.calibration_images))
        return int8.quantize_openvino(self.float_openvino, path, inputs, score, self.options.allowed,
                                      transformer=is_transformer(self.model))  # fmt: skip


PREPROCESSED = "with_preprocessing/"
"""Before the name of a format whose artefact takes images instead of normalised arrays: in the record and of its file."""


@dataclass(frozen=True)
class Exported:
    """What became of one format: the files that passed, or why there are none."""

    format: str
    files: tuple[str, ...]
    size: int
    checks: tuple[Check, ...]
    refused: str = ""
    layer_errors: tuple[KindError, ...] = ()
    trials: tuple[Trial, ...] = ()


def export_bundle(
    bundle: Bundle,
    images: ImageDataset,
    options: ExportOptions,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> tuple[Bundle, tuple[Exported, ...]]:
    """Export a bundle to files that lie beside its weights.

    Args:
        bundle: A bundle on disk.
        images: Its validation split, without augmentation, prepared by the bundle's preprocessing.
        options: What to make.
        on_progress: Called with phase, done, total and text.

    Returns:
        The bundle with its new artefacts and records, and what became of each format.

    Raises:
        ExportError: A format cannot take this model, or a kind of layer is not known; nothing was made.
    """
    model = load_model(bundle)
    names = chosen_formats(options.formats, model, with_preprocessing=options.with_preprocessing)
    refuse_impossible(names, model, with_preprocessing=options.with_preprocessing)
    _refuse_unknown_kinds(options.keep, model)
    if options.with_preprocessing:
        source, reference = end_to_end(model, bundle, images, options.threads, on_progress)
    else:
        source, reference = of_logits(model, bundle, images, options.batch_size, options.threads, on_progress)
    with tempfile.TemporaryDirectory(prefix="vitdomains-export-") as folder:
        job = Job(Path(folder), model, source, reference, bundle, options)
        made = []
        for done, name in enumerate(names):
            on_progress("export", done, len(names), FORMATS[name].about)
            made.append(_export(job, name, lambda done, total: on_progress("layers", done, total, "kinds of layers")))
        on_progress("export", len(names), len(names), "done")
        return _record(bundle, Path(folder), made, options), tuple(made)


def _refuse_unknown_kinds(keep: Sequence[str], model: nn.Module) -> None:
    kinds = {kind_of(path) for path, module in model.named_modules() if isinstance(module, HELD_IN_FP16)}
    unknown = sorted(set(keep) - kinds)
    if unknown:
        raise ExportError(
            f"The model has no kind of layer {', '.join(unknown)}.", hint=f"It has {', '.join(sorted(kinds))}."
        )


def _export(job: Job, name: str, on_progress: Callable[[int, int], None]) -> Exported:
    """Make one format and send it through the gates; a file that fails is removed."""
    form, options = FORMATS[name], job.options
    prefix = PREPROCESSED if options.with_preprocessing else ""
    paths = [job.folder / (prefix + file) for file in form.files]
    stand_in = form.stand_in or name
    try:
        kinds = by_kind(job.layers(stand_in)) if FORMATS[stand_in].keeps else {}
        in_float = {layer for kind in options.keep for layer in kinds.get(kind, ())}
        path = job.make(name, paths[0], in_float)
    except ExportError as error:
        return Exported(prefix + name, (), 0, (), refused=str(error))
    checks = [_check(job, name, path, "fp32")]
    if form.runtime == "openvino" and has_fast_bf16():
        checks.append(_check(job, name, path, "bf16"))
    problem = checks[0].problem
    if name == "openvino" and prefix and not problem:
        problem = _problem_by_default(job, path, checks)
    size = sum(each.stat().st_size for each in paths)
    if not problem:
        return Exported(prefix + name, tuple(prefix + file for file in form.files), size, tuple(checks))
    for each in paths:
        each.unlink()
    if not kinds:
        return Exported(prefix + name, (), size, tuple(checks), refused=problem)

    trial = job.folder / "trial.onnx"
    left = {kind: names for kind, names in kinds.items() if kind not in options.keep}

    def loaded(more: set[str]) -> Forward:
        return session(job.make(stand_in, trial, in_float | more), FORMATS[stand_in].runtime, threads=options.threads)

    def attempt(more: set[str]) -> tuple[str, int]:
        seen = _check(job, name, job.make(name, trial, in_float | more), "fp32")
        return seen.problem, trial.stat().st_size

    errors = errors_by_kind(left, loaded, job.reference, on_progress=on_progress)
    tried = try_in_float32(errors, left, attempt) if form.keeps else ()
    return Exported(prefix + name, (), size, tuple(checks), problem, errors, tried)


def _problem_by_default(job: Job, path: Path, checks: Sequence[Check]) -> str:
    """Why an IR with preprocessing gives other numbers to a program that leaves the precision to OpenVINO; empty: it does not.

    By default OpenVINO computes in bf16 on processors that have it; on others that is emulated.
    """
    if len(checks) > 1:
        problem = checks[1].problem
    else:
        difference, limit = bf16_difference(job.source.module, job.reference), BF16_TOLERANCE * job.reference.scale
        problem = "" if difference <= limit else f"outputs differ by {difference:.2g}, at most {limit:.2g} is allowed"
    if not problem:
        return ""
    to_openvino(job.float_onnx, path, metadata=job.notes, default_precision="f32")
    if has_fast_bf16() and default_precision(path) == "f32":
        return ""
    return f"in bf16, which OpenVINO takes by default on processors that have it, {problem}"


def _check(job: Job, name: str, path: Path, precision: str) -> Check:
    form, options = FORMATS[name], job.options
    tolerance = max(form.tolerance, BF16_TOLERANCE) if precision == "bf16" else form.tolerance
    forward = session(path, form.runtime, threads=options.threads, precision=precision)
    return check(forward, job.reference, runtime=form.runtime, precision=precision, tolerance=tolerance,
                 allowed=options.allowed)  # fmt: skip


def _record(bundle: Bundle, folder: Path, made: list[Exported], options: ExportOptions) -> Bundle:
    """Put the files that passed into the bundle, take out those that they replace, and write down what was seen."""
    records = dict(bundle.exports)
    for each in made:
        records[each.format] = _described(each, bundle, options)

    def fill(part: Path) -> None:
        for each in made:
            for stale in bundle.exports.get(each.format, {}).get("files", ()):
                (part / stale).unlink(missing_ok=True)
            for file in each.files:
                (part / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, part / file)

    return update_bundle(bundle, fill, exports=records)


def _described(each: Exported, bundle: Bundle, options: ExportOptions) -> dict[str, Any]:
    packages = ("torch", "onnx", "onnxruntime", "openvino", "nncf")
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    return {
        "files": list(each.files),
        "bytes": each.size,
        "refused": each.refused,
        "checks": [one.to_dict() for one in each.checks],
        "layer_errors": [asdict(one) for one in islice(each.layer_errors, 8)],
        "kept_in_float32": list(options.keep),
        "weights_sha256": bundle.files[WEIGHTS],
        "packages": {name: importlib.metadata.version(name) for name in packages if name in installed},
    }
