"""Shared by all benchmarks: timing in turns, peers that have to be installed, tables, and one JSON file a benchmark."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdomains.bench import timing
from vitdomains.bench.tables import Grid, Row, cell, failures
from vitdomains.bench.timing import environment, rounds, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "RESULTS",
    "accuracy_plot",
    "environment",
    "interleave",
    "markdown",
    "missing",
    "pivot",
    "require",
    "write_result",
]

RESULTS = Path(__file__).resolve().parent / "results"

EXTRAS = {
    "torchgeo": "bench", "torchxrayvision": "bench", "open_clip": "dev", "playwright": "dev", "data_store": "dev",
    "openvino": "openvino", "nncf": "openvino", "psycopg": "postgres", "streamlit": "apps", "ray": "ray",
}  # fmt: skip
"""Package that a benchmark imports -> extra of this package that brings it."""


def missing(package: str) -> str:
    """Why a peer cannot be measured and how to get it; empty where it imports."""
    try:
        importlib.import_module(package)
    except Exception as error:  # noqa: BLE001  whatever a package raises that does not fit the others
        how = f"vitdomains[{EXTRAS[package]}]" if package in EXTRAS else package
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            return f"{package} is not installed. Run: pip install '{how}'"
        return (
            f"{package} is installed but does not import ({type(error).__name__}: {error}). Run: pip install -U '{how}'"
        )
    return ""


def require(*packages: str, otherwise: str = "") -> None:
    """End the benchmark before it measures where a package is missing.

    Args:
        packages: Names to import.
        otherwise: What else the user can do, as ``or leave it out with --no-peers``.
    """
    reasons = [reason for reason in map(missing, packages) if reason]
    if reasons:
        raise SystemExit("\n".join(reasons) + (f"\n{otherwise}" if otherwise else ""))


def interleave(
    candidates: Mapping[str, Callable[[], object]], repeats: int = 20, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Time candidates in turns; see ``rounds``.

    Returns:
        Name -> ``summary``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for timed in rounds(candidates, repeats, warmup=warmup):
        for name, value in timed.items():
            seconds[name].append(value)
    return {name: summary(values) for name, values in seconds.items()}


def write_result(name: str, payload: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``payload`` with the environment to ``folder/name.json`` and return that path."""
    return timing.write_result(folder / f"{name}.json", payload)


def pivot(rows: Sequence[Row], what: str, title: str) -> Grid:
    """A line a model, a column for each runtime and precision, one of ``VALUES`` in the cells; empty: not run."""
    columns = list(dict.fromkeys((row["runtime"], row["precision"]) for row in rows if cell(row, what)))
    cells = {(row["model"], row["runtime"], row["precision"]): cell(row, what) for row in rows}
    lines = []
    for row in {row["model"]: row for row in rows}.values():
        parameters = f"{row['parameters'] / 1e6:.1f}" if row.get("parameters") else ""
        texts = (cells.get((row["model"], *column), "") for column in columns)
        lines.append((row["model"], parameters, str(row["image_size"]), *texts))
    names = ("model", "M parameters", "px", *(" ".join(column) for column in columns))
    return Grid(title, names, tuple(lines), failures(rows))


def markdown(grid: Grid) -> str:
    """For a README."""
    rows = [grid.columns, ("---",) * len(grid.columns), *grid.rows]
    lines = [f"**{grid.title}**", "", *(f"| {' | '.join(row)} |" for row in rows)]
    notes = ["", *(f"- {note}" for note in grid.notes)] if grid.notes else []
    return "\n".join([*lines, *notes]) + "\n"


def accuracy_plot(
    points: Sequence[tuple[str, float, float, str]], x_label: str, y_label: str, note: str = ""
) -> Figure:
    """Accuracy against time, for the eye; ``points`` are (name, time, accuracy, kind), one colour a kind."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from vitdomains.core.evaluation.plots import ACCENT, FAINT, LINE

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    colours = dict(zip(dict.fromkeys(kind for *_, kind in points), (LINE, ACCENT, FAINT), strict=False))
    for kind, colour in colours.items():
        own = [point for point in points if point[3] == kind]
        axis.scatter([x for _, x, _, _ in own], [y for _, _, y, _ in own], color=colour, label=kind, s=30)
    for name, x, y, _ in points:
        axis.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axis.set(xlabel=x_label, ylabel=y_label, xscale="log")
    # Plain numbers: the style of the reports takes the powers of ten for text.
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    if note:
        figure.supxlabel(note, fontsize=6.5)
    return figure
