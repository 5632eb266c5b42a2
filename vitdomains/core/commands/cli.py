"""The commands that every domain shares: train, evaluate, predict, explain. A domain's ``__main__`` adds its own.

Each command is a function of the domain and the words after its name; it returns the exit status.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from vitdomains.core import pipeline, terminal
from vitdomains.core.bundle import Bundle, read_bundle, update_bundle
from vitdomains.core.commands.audit import command as audit_command
from vitdomains.core.commands.probe import probe_command
from vitdomains.core.config.parse import config_from_dict, parse_config, take_overrides
from vitdomains.core.config.schema import Config
from vitdomains.core.data.manifest import folder_manifest
from vitdomains.core.domain import Domain, domain_reader
from vitdomains.core.errors import BundleError, ConfigError, VitDomainsError
from vitdomains.core.evaluation.evaluate import headline, summary
from vitdomains.core.evaluation.report import terminal_table, write_report
from vitdomains.core.explain import METHODS
from vitdomains.core.explain.render import WRITTEN, explain_file, faithfulness_text, write_explained
from vitdomains.core.export.command import export
from vitdomains.core.inference.backend import PRECISIONS
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.inference.runtimes import RUNTIMES
from vitdomains.core.inference.table import write_predictions
from vitdomains.core.process import helps_another, restart_with_tuned_allocator
from vitdomains.core.review.command import reviews
from vitdomains.core.terminal import console, shown_progress
from vitdomains.core.training.memory import free_memory, measured_memory

logger = logging.getLogger(__name__)

Command = Callable[[Domain, list[str]], int]


def main(domain: Domain, argv: Sequence[str], more: Mapping[str, Command] | None = None) -> int:
    """Run ``python -m vitdomains.DOMAIN COMMAND ...`` and return its exit status: 0, 2 for an error, 130 for Ctrl-C."""
    commands = {**SHARED, **(more or {})}
    name, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if name in ("-h", "--help"):
        _show_commands(domain, commands)
        return 0
    try:
        if name not in commands:
            raise ConfigError(
                f"{name!r} is no command of vitdomains.{domain.name}.", hint=f"Use one of {', '.join(commands)}."
            )
        if "-h" not in rest and "--help" not in rest:
            restart_with_tuned_allocator()
        terminal.set_up_logging()
        return commands[name](domain, rest)
    except VitDomainsError as error:
        terminal.show_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        terminal.messages.print(
            "stopped; the same command with --resume goes on from the last step saved" if name == "train" else "stopped"
        )
        return 130


def train(domain: Domain, argv: list[str]) -> int:
    """Train, calibrate, evaluate and write a bundle."""
    prog = f"python -m vitdomains.{domain.name} train"
    about = f"{domain.title}: train a model and write its bundle."
    # A file says all that it wants; without one the main job stands. The keys of the one do not leak into the other.
    default = Config() if any(word.split("=")[0] == "--config" for word in argv) else domain.default_config()
    config = parse_config(argv, default, prog, description=about, allowed=_allowed(domain))
    if config.run.dry_run:
        return _rehearse(domain, config)
    if helps_another():
        terminal.be_quiet()
    with shown_progress() as on_progress:
        outcome = pipeline.train(domain, config, on_progress)
    console.print(terminal_table(outcome.report, width=console.width))
    _summarise(domain, outcome)
    return 0


def evaluate(domain: Domain, argv: list[str]) -> int:
    """Measure a bundle on labelled data; the report goes into the bundle, or to --out."""
    prog = f"python -m vitdomains.{domain.name} evaluate"
    options, own = take_overrides(argv, sections=("data", "run"))
    parser = argparse.ArgumentParser(prog=prog, add_help=False)
    parser.add_argument("bundle")
    parser.add_argument("--split", default="test", choices=("train", "val", "test", "all"))
    parser.add_argument("--out", default="")
    usage = "BUNDLE [--split train|val|test|all] [--out FOLDER] [--data.KEY VALUE ...]"
    if "--help" in options or "-h" in options:
        parse_config(
            ["--help"],
            domain.default_config(),
            f"{prog} {usage}",
            description=(evaluate.__doc__ or ""),
            sections=("data", "run"),
        )
    args = _parse(parser, own, usage)
    bundle = _own_bundle(domain, args.bundle)
    default = config_from_dict(bundle.provenance["config"], check=False)
    config = parse_config(
        options,
        replace(default, run=replace(default.run, dir=str(Path(args.bundle).parent))),
        prog,
        sections=("data", "run"),
    )
    with shown_progress() as on_progress:
        report, predictions, pictures = pipeline.assess(domain, bundle, config.data, args.split, config, on_progress)
    title = f"{domain.title}: {args.split} split"
    if args.out:
        where = Path(args.out)
        write_report(report, predictions, where, title=title, notice=domain.notice, pictures=pictures)
    else:
        where = bundle.path / "report"
        update_bundle(
            bundle,
            lambda folder: write_report(
                report, predictions, folder / "report", title=title, notice=domain.notice, pictures=pictures
            ),
            metrics=summary(report),
        )
    console.print(terminal_table(report, width=console.width))
    console.print(f"report: {where / 'report.html'}")
    return 0


def predict(domain: Domain, argv: list[str]) -> int:
    """Write one row of probabilities a file; bad files get an error in their row."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} predict", description=predict.__doc__)
    parser.add_argument("bundle", help="folder that train wrote")
    parser.add_argument("inputs", nargs="+", help="files and folders; folders are searched to the bottom")
    parser.add_argument("--out", default="predictions.csv", help=".csv or .parquet (default: %(default)s)")
    parser.add_argument(
        "--batch_size", type=int, default=8, help="most images of a forward pass (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: one a physical core")
    parser.add_argument(
        "--precision", default="auto", choices=PRECISIONS, help="auto: bf16 where it is fast, else fp32"
    )
    parser.add_argument("--runtime", default="auto", choices=("auto", *RUNTIMES),
                        help="auto: the fastest of those that the bundle was exported for (default: %(default)s)")  # fmt: skip
    args = _parse(parser, argv, "BUNDLE FILE_OR_FOLDER ... [--out predictions.csv]")
    bundle = _own_bundle(domain, args.bundle)
    records = folder_manifest(args.inputs, domain.extensions, domain.name).table
    reader = domain_reader(domain, bundle.preprocess)
    predictor = Predictor(bundle, reader, precision=args.precision, threads=args.threads, batch_size=args.batch_size,
                          runtime=args.runtime, read_checked=domain.read_checked)  # fmt: skip
    logger.info("%s in %s", predictor.way.runtime, predictor.way.precision)
    with shown_progress() as on_progress:
        errors = write_predictions(predictor, list(zip(records["id"], records["path"], strict=True)), Path(args.out),
                                   lambda done, total: on_progress("predict", done, total, "files"))  # fmt: skip
    console.print(f"{len(records)} files, {len(errors)} with an error: {args.out}")
    for error in errors[:5]:
        console.print(f"  {error}", markup=False, highlight=False, soft_wrap=True)
    return 0


def explain(domain: Domain, argv: list[str]) -> int:
    """Draw heat maps of one image: where the score of a finding comes from."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} explain", description=explain.__doc__)
    parser.add_argument("bundle", help="folder that train wrote")
    parser.add_argument("input", help="image file")
    parser.add_argument("--finding", action="append", default=[],
                        help="class to explain, may be repeated; all: every class; default: what the model calls")  # fmt: skip
    parser.add_argument("--method", default="relevance", choices=sorted(METHODS), help="(default: %(default)s)")
    parser.add_argument("--out", default="overlay.png", help="file to write: .png; .pdf or .svg, a figure for print; .tif, the "
                        "maps on the grid of a georeferenced image (default: %(default)s)")  # fmt: skip
    args = _parse(parser, argv, "BUNDLE FILE [--finding NAME] [--method rollout] [--out overlay.png]")
    if Path(args.out).suffix not in WRITTEN:
        raise ConfigError(f"--out {args.out} ends in none of {', '.join(WRITTEN)}.", hint="Choose another name.")
    bundle = _own_bundle(domain, args.bundle)
    predictor = Predictor(bundle, domain_reader(domain, bundle.preprocess))
    findings = bundle.classes if args.finding == ["all"] else args.finding
    explained = explain_file(predictor, args.input, args.method, findings)
    write_explained(explained, bundle.classes, args.method, args.input, args.out)
    for heatmap, finding in zip(explained.maps, explained.findings, strict=True):
        score = explained.scores[bundle.classes.index(finding)]
        console.print(f"{finding}: probability {score:.3f}; {faithfulness_text(heatmap)}")
    console.print(f"written: {args.out}")
    if domain.notice:
        console.print(domain.notice)
    return 0


SHARED: dict[str, Command] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "explain": explain,
    "export": export,
    "reviews": reviews,
    "probe": probe_command,
    "audit": audit_command,
}


def _rehearse(domain: Domain, config: Config) -> int:
    manifest, memory = pipeline.rehearse(domain, config)
    counts = ", ".join(f"{n} {split or 'unassigned'}" for split, n in manifest.table["split"].value_counts().items())
    console.print(f"images: {counts}; classes: {', '.join(manifest.classes)}")
    estimate, mib = sum(memory.values()), 2**20
    for what, size in memory.items():
        console.print(f"{what:<16}{size / mib:10.1f} MiB")
    console.print(f"{'in all':<16}{estimate / mib:10.1f} MiB at batch size {config.recipe.batch_size}, estimated")
    free = free_memory(config)
    if free is not None and estimate > free:
        console.print(
            f"not measured: {free / mib:.0f} MiB are free; lower recipe.batch_size or set model.grad_checkpointing"
        )
        return 1
    peak = measured_memory(config, pipeline.preprocess_spec(config, domain), len(manifest.classes))
    if peak is None:
        console.print("not measured: the system stopped the step for want of memory")
        return 1
    console.print(
        f"{'measured':<16}{peak / mib:10.1f} MiB in real steps, beside what the process itself takes; "
        f"the estimate is {estimate / peak:.2f} of it"
    )
    return 0


def _allowed(domain: Domain) -> dict[str, Sequence[str]]:
    return {"data.sources.name": domain.sources} if domain.sources else {}


def _own_bundle(domain: Domain, path: str) -> Bundle:
    bundle = read_bundle(path)
    if bundle.domain != domain.name:
        raise BundleError(f"{path} is a bundle of {bundle.domain}.", hint=f"Use python -m vitdomains.{bundle.domain}.")
    return bundle


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str], usage: str) -> argparse.Namespace:
    """``parse_args``, with errors as ours: one line that says how to call it."""
    parser.exit_on_error = False

    def fail(message: str) -> None:
        raise ConfigError(f"{parser.prog}: {message}.", hint=f"Call it as: {parser.prog} {usage}")

    parser.error = fail  # type: ignore[assignment, method-assign]
    return parser.parse_args(argv)


def _show_commands(domain: Domain, commands: Mapping[str, Command]) -> None:
    table = Table(
        title=f"python -m vitdomains.{domain.name} COMMAND", title_justify="left", show_header=False, box=None
    )
    for name, command in commands.items():
        table.add_row(f"  {name}", (command.__doc__ or "").splitlines()[0])
    console.print(f"{domain.title}. {domain.notice}".strip())
    console.print(table)
    console.print("Every command explains itself with --help.")


def _summarise(domain: Domain, outcome: pipeline.Outcome) -> None:
    """Where things are, how good the model is beside its floors, and what to type next."""
    bundle, report = outcome.bundle, outcome.report
    name, value = headline(report)
    console.print(f"\n{name} {_interval(value)} on held-out groups")
    for floor, reached in report.get("floors", {}).items():
        console.print(f"  floor, {floor:<10} {_interval(reached[name])}")
    if outcome.fit:
        console.print(
            f"  best epoch {outcome.fit.best_epoch + 1}, {outcome.fit.images_per_second:.0f} images/s in training"
        )
    if outcome.skipped:
        console.print(f"  {len(outcome.skipped)} images could not be read: {bundle.path.parent / 'skipped.csv'}")
    console.print(f"\nbundle    {bundle.path}")
    console.print(f"report    {bundle.path / 'report' / 'report.html'}")
    console.print(f"pictures  {bundle.path / 'report' / 'plots'}")
    console.print("\nnext:")
    for command in (
        f"predict {bundle.path} FILE_OR_FOLDER --out predictions.csv",
        f"explain {bundle.path} FILE --out overlay.png",
        f"evaluate {bundle.path} --split val",
    ):
        console.print(f"  python -m vitdomains.{domain.name} {command}", soft_wrap=True)
    if domain.notice:
        console.print(f"\n{domain.notice}")


def _interval(value: Mapping[str, float | None]) -> str:
    if value.get("value") is None:
        return "n/a"
    low, high = value.get("low"), value.get("high")
    return f"{value['value']:.3f}" + (
        f" (95 % {low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    )
