"""The command ``train``: the main job, or with ``--dry_run`` what it would take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitdomains.core import terminal
from vitdomains.core.config.parse import parse_config
from vitdomains.core.config.schema import Config
from vitdomains.core.domain import Domain
from vitdomains.core.process import helps_another
from vitdomains.core.terminal import console, shown_progress

if TYPE_CHECKING:
    from vitdomains.core import pipeline
    from vitdomains.core.bundle import Bundle


def train(domain: Domain, argv: list[str]) -> int:
    """Train, calibrate, evaluate and write a bundle."""
    prog = f"python -m vitdomains.{domain.name} train"
    about = f"{domain.title}: train a model and write its bundle."
    # A file says all that it wants; without one the main job stands. The keys of the one do not leak into the other.
    default = Config() if any(word.split("=")[0] == "--config" for word in argv) else domain.default_config()
    allowed = {"data.sources.name": domain.sources} if domain.sources else {}
    config = parse_config(argv, default, prog, description=about, allowed=allowed)
    from vitdomains.core import pipeline
    from vitdomains.core.evaluation.report import terminal_table

    if config.run.dry_run:
        return _dry_run(domain, config)
    if helps_another():
        terminal.be_quiet()
    with shown_progress() as on_progress:
        outcome = pipeline.train(domain, config, on_progress)
    if outcome.bundle is None:  # a process that helped the first one to train
        return 0
    console.print(terminal_table(outcome.report, width=console.width))
    _summarise(domain, outcome, outcome.bundle)
    return 0


def _dry_run(domain: Domain, config: Config) -> int:
    from vitdomains.core import pipeline
    from vitdomains.core.training.memory import free_memory, measured_memory

    manifest, memory = pipeline.dry_run(domain, config)
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


def _summarise(domain: Domain, outcome: pipeline.Outcome, bundle: Bundle) -> None:
    """Where things are, how good the model is beside its baselines, and what to type next."""
    from vitdomains.core.evaluation.evaluate import headline
    from vitdomains.core.evaluation.roles import PHRASES, Rows

    report = outcome.report
    folder = bundle.path / Rows(**report["rows"]).folder
    name, value = headline(report)
    console.print(f"\n{name} {_interval(value)} on {PHRASES[report['rows']['role']]}")
    for baseline, reached in report["baselines"].items():
        console.print(f"  baseline, {baseline:<10} {_interval(reached[name])}")
    if outcome.fit:
        console.print(
            f"  best epoch {outcome.fit.best_epoch + 1}, {outcome.fit.images_per_second:.0f} images/s in training"
        )
    if outcome.skipped:
        console.print(f"  {len(outcome.skipped)} images could not be read: {bundle.path.parent / 'skipped.csv'}")
    console.print(f"\nbundle    {bundle.path}")
    console.print(f"report    {folder / 'report.html'}")
    console.print(f"pictures  {folder / 'plots'}")
    console.print("\nnext:")
    for command in (
        f"predict {bundle.path} FILE_OR_FOLDER --out predictions.csv",
        f"explain {bundle.path} FILE --out overlay.png",
        f"evaluate {bundle.path} --data.root OTHER_DATA",
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
