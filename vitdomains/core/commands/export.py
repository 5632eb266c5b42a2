"""The command ``export``: a bundle in, files for other programs out, and a table of what the gates saw."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.table import Table

from vitdomains.core.config.parse import config_from_dict, parse_config, take_overrides
from vitdomains.core.config.schema import Config
from vitdomains.core.domain import Domain
from vitdomains.core.errors import ExportError, ManifestError
from vitdomains.core.export.formats import ALLOWED_LOSS, FORMATS, OPSET, Calibration
from vitdomains.core.terminal import OnProgress, console, parse_args, shown_progress

if TYPE_CHECKING:
    from vitdomains.core.bundle import Bundle
    from vitdomains.core.data.dataset import ImageDataset
    from vitdomains.core.export.job import Exported, ExportOptions

USAGE = "BUNDLE --formats onnx,openvino,int8 [--with_preprocessing] [--data.KEY VALUE ...]"


def export(domain: Domain, argv: list[str]) -> int:
    """Write ONNX, OpenVINO, INT8 and other files of a bundle, each checked against it."""
    path, options, data_args = parse(domain, argv)
    from vitdomains.core.bundle import read_bundle
    from vitdomains.core.export.job import export_bundle

    bundle = read_bundle(path, domain=domain.name)
    config = data_config(domain, bundle, data_args)
    with shown_progress() as on_progress:
        images = validation_images(domain, bundle, config, on_progress)
        bundle, made = export_bundle(bundle, images, options, on_progress)
    console.print(results_table(made))
    for line in findings(made):
        console.print(line, highlight=False, soft_wrap=True)
    if not all(each.refused for each in made):
        console.print(f"artefacts: {bundle.path}")
    refused = [each.format for each in made if each.refused]
    if refused:
        raise ExportError(
            f"{len(refused)} of {len(made)} formats did not pass and were not kept: {', '.join(refused)}.",
            hint="The lines above say what each was refused for, and what to try.",
        )
    return 0


def validation_images(domain: Domain, bundle: Bundle, config: Config, on_progress: OnProgress) -> ImageDataset:
    """The validation split of the data in ``config``, prepared as the bundle does.

    Raises:
        ManifestError: It is empty.
    """
    from vitdomains.core import pipeline
    from vitdomains.core.data.manifest import select_classes, subset

    manifest = subset(pipeline.labelled_images(domain, bundle, config.data)[0], "val")
    if not len(manifest):
        raise ManifestError(
            "There is no validation split to check the artefacts on.",
            hint="Say where the data is: --data.root FOLDER, and --data.val_fraction where it has no split of its own.",
        )
    spec, cache = bundle.preprocess, pipeline.image_cache(config, bundle.preprocess)
    part = select_classes(manifest, bundle.classes)
    part, _ = pipeline.drop_unreadable(domain, part, spec, cache, None, on_progress)
    return pipeline.dataset(domain, part, spec, cache, config)


def results_table(made: Sequence[Exported]) -> Table:
    """One row a check: size, the largest difference of an output and what it may be, the metric, and the verdict."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("format", "in", "MB", "differs by", "of at most", "metric", "lost", ""):
        table.add_column(name, justify="right" if name in ("MB", "differs by", "of at most", "lost") else "left")
    for each in made:
        if not each.checks:
            table.add_row(each.format, "", "", "", "", "", "", "refused")
        for one in each.checks:
            verdict = "passed" if not one.problem else "refused" if each.refused else "fp32 only"
            table.add_row(each.format, one.precision, f"{each.size / 1e6:.1f}", f"{max(one.differences.values()):.1e}",
                          f"{one.limit:.1e}", f"{one.metric} {one.value:.4f}", f"{one.lost:+.4f}", verdict)  # fmt: skip
    return table


def findings(made: Sequence[Exported]) -> Iterator[str]:
    """Why formats were refused, which kinds of layers lose most, and what helps."""
    for each in made:
        if not each.refused:
            continue
        yield f"\n{each.format}: {each.refused}"
        stand_in = FORMATS[each.format.rpartition("/")[2]].stand_in
        if each.layer_errors and stand_in:
            yield f"  measured on {stand_in}, where one kind of layer can be quantised alone:"
        for one in each.layer_errors:
            yield f"  {one.kind:<24} {one.layers:3d} layers, alone they change the outputs by {one.share:.1%} of their deviation"
        for trial in each.trials:
            keep = ",".join(trial.keep)
            outcome = trial.problem or f"passes, with {trial.size / 1e6:.1f} MB"
            yield f"  with {keep} in float32: {outcome}"
        helped = [trial for trial in each.trials if not trial.problem]
        if helped:
            yield f"  try: --formats {each.format.rpartition('/')[2]} --keep {','.join(helped[-1].keep)}"
        elif each.layer_errors and stand_in:
            yield f"  try: more --calibration_images, or --formats {stand_in} --keep {each.layer_errors[0].kind}"
        elif each.layer_errors:
            yield "  try: another INT8 (int8-static, int8-openvino), the other --calibration, or fp16"
        elif each.checks:
            yield "  try: another of onnx, openvino, torchscript and pt2"


def parse(domain: Domain, argv: Sequence[str]) -> tuple[str, ExportOptions, list[str]]:
    """Path of the bundle, options of the export, and the arguments that configure the data.

    Raises:
        ConfigError: An argument that is not known.
    """
    prog = f"python -m vitdomains.{domain.name} export"
    rest, own = take_overrides(argv, sections=("data", "run"))
    parser = argparse.ArgumentParser(
        prog=prog, description=export.__doc__, epilog=_epilog(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", help="folder that train wrote")
    parser.add_argument("--formats", default="onnx", help="names, separated by commas (default: %(default)s)")
    parser.add_argument("--with_preprocessing", action="store_true",
                        help="8-bit images [B,H,W,C] of any size in, calibrated probabilities out")  # fmt: skip
    parser.add_argument(
        "--keep", default="", help="kinds of layers that stay in float32 in fp16 and INT8, e.g. mlp.fc2,head"
    )
    parser.add_argument(
        "--calibration",
        default="percentile",
        choices=get_args(Calibration),
        help="ranges of int8-static (default: %(default)s)",
    )
    parser.add_argument("--calibration_images", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument("--allowed_loss", type=float, default=ALLOWED_LOSS,
                        help="loss of AUROC, or share of top-1 accuracy, that passes (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--opset", type=int, default=OPSET, help="of the ONNX files, 18 or newer (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: one a physical core")
    parser.add_argument("--batch_size", type=int, default=8, help="images a forward pass (default: %(default)s)")
    if {"-h", "--help"} & {*own, *rest}:
        parser.parse_args(["--help"])
    args = parse_args(parser, own, USAGE)
    from vitdomains.core.export.job import ExportOptions

    options = ExportOptions(
        _names(args.formats), args.with_preprocessing, _names(args.keep), args.calibration, args.calibration_images,
        args.allowed_loss, args.opset, args.threads, args.batch_size,
    )  # fmt: skip
    return args.bundle, options, rest


def data_config(domain: Domain, bundle: Bundle, args: Sequence[str]) -> Config:
    """The configuration that the bundle was trained with, with the user's ``args`` on top."""
    default = config_from_dict(bundle.provenance["config"], check=False)
    default = replace(default, run=replace(default.run, dir=str(Path(bundle.path).parent)))
    return parse_config(args, default, f"python -m vitdomains.{domain.name} export", sections=("data", "run"))


def _names(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _epilog() -> str:
    rows = "\n".join(f"  {name:<16} {form.about}" for name, form in FORMATS.items())
    return (
        f"formats:\n{rows}\n  int8             INT8 that suits the model: int8-dynamic for transformers, else int8-static;"
        " with openvino also int8-openvino\n  all              all that the model allows\n\n"
        "data: --data.KEY VALUE as in train; the default is the data that the bundle was trained on\n"
    )
