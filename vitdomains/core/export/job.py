"""The export itself: every format made, sent through the gates, and kept or thrown away.

Behind the bundle and its validation images; the artefacts that pass lie beside the weights, and what the gates saw of each,
passed or refused, stands in ``bundle.json``.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from vitdomains.core.bundle import WEIGHTS, Bundle, load_model, update_bundle
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.errors import ExportError
from vitdomains.core.evaluation.run import OnProgress
from vitdomains.core.export.checks import Check, check
from vitdomains.core.export.formats import BF16_TOLERANCE, FORMATS, chosen_formats, refuse_impossible
from vitdomains.core.export.layer_errors import KindError, Remedy, blame, by_kind, kind_of, remedies
from vitdomains.core.export.reference import end_to_end, of_logits
from vitdomains.core.export.workbench import HELD_IN_FP16, Options, Workbench
from vitdomains.core.inference.runtimes import Forward, session
from vitdomains.core.process import has_fast_bf16

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
    blame: tuple[KindError, ...] = ()
    remedies: tuple[Remedy, ...] = ()


def export_bundle(
    bundle: Bundle,
    images: ImageDataset,
    options: Options,
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
        source, yard = end_to_end(model, bundle, images, options.threads, on_progress)
    else:
        source, yard = of_logits(model, bundle, images, options.batch_size, options.threads, on_progress)
    with tempfile.TemporaryDirectory(prefix="vitdomains-export-") as folder:
        bench = Workbench(Path(folder), model, source, yard, bundle, options)
        made = []
        for done, name in enumerate(names):
            on_progress("export", done, len(names), FORMATS[name].about)
            made.append(_export(bench, name, lambda done, total: on_progress("blame", done, total, "kinds of layers")))
        on_progress("export", len(names), len(names), "done")
        return _record(bundle, Path(folder), made, options), tuple(made)


def _refuse_unknown_kinds(keep: Sequence[str], model: nn.Module) -> None:
    kinds = {kind_of(path) for path, module in model.named_modules() if isinstance(module, HELD_IN_FP16)}
    unknown = sorted(set(keep) - kinds)
    if unknown:
        raise ExportError(
            f"The model has no kind of layer {', '.join(unknown)}.", hint=f"It has {', '.join(sorted(kinds))}."
        )


def _export(bench: Workbench, name: str, on_progress: Callable[[int, int], None]) -> Exported:
    """Make one format and send it through the gates; a file that fails is removed."""
    form, options = FORMATS[name], bench.options
    prefix = PREPROCESSED if options.with_preprocessing else ""
    paths = [bench.folder / (prefix + file) for file in form.files]
    stand_in = form.stand_in or name
    try:
        kinds = by_kind(bench.layers(stand_in)) if FORMATS[stand_in].keeps else {}
        kept = {layer for kind in options.keep for layer in kinds.get(kind, ())}
        path = bench.make(name, paths[0], kept)
    except ExportError as error:
        return Exported(prefix + name, (), 0, (), refused=str(error))
    checks = [_check(bench, name, path, "fp32")]
    if form.runtime == "openvino" and has_fast_bf16():
        checks.append(_check(bench, name, path, "bf16"))
    problem = checks[0].problem
    size = sum(each.stat().st_size for each in paths)
    if not problem:
        return Exported(prefix + name, tuple(prefix + file for file in form.files), size, tuple(checks))
    for each in paths:
        each.unlink()
    if not kinds:
        return Exported(prefix + name, (), size, tuple(checks), refused=problem)

    trial = bench.folder / "trial.onnx"
    left = {kind: names for kind, names in kinds.items() if kind not in options.keep}

    def loaded(more: set[str]) -> Forward:
        return session(bench.make(stand_in, trial, kept | more), FORMATS[stand_in].runtime, threads=options.threads)

    def attempt(more: set[str]) -> tuple[str, int]:
        seen = _check(bench, name, bench.make(name, trial, kept | more), "fp32")
        return seen.problem, trial.stat().st_size

    errors = blame(left, loaded, bench.yard, on_progress=on_progress)
    tried = remedies(errors, left, attempt) if form.keeps else ()
    return Exported(prefix + name, (), size, tuple(checks), problem, errors, tried)


def _check(bench: Workbench, name: str, path: Path, precision: str) -> Check:
    form, options = FORMATS[name], bench.options
    tolerance = max(form.tolerance, BF16_TOLERANCE) if precision == "bf16" else form.tolerance
    forward = session(path, form.runtime, threads=options.threads, precision=precision)
    return check(forward, bench.yard, runtime=form.runtime, precision=precision, tolerance=tolerance,
                 allowed=options.allowed)  # fmt: skip


def _record(bundle: Bundle, folder: Path, made: list[Exported], options: Options) -> Bundle:
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


def _described(each: Exported, bundle: Bundle, options: Options) -> dict[str, Any]:
    packages = ("torch", "onnx", "onnxruntime", "openvino", "nncf")
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    return {
        "files": list(each.files),
        "bytes": each.size,
        "refused": each.refused,
        "checks": [one.to_dict() for one in each.checks],
        "blame": [asdict(one) for one in islice(each.blame, 8)],
        "kept_in_float32": list(options.keep),
        "weights_sha256": bundle.files[WEIGHTS],
        "packages": {name: importlib.metadata.version(name) for name in packages if name in installed},
    }
