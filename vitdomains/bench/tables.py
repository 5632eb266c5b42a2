"""A result to look at: a table in the terminal or in Markdown, rows against one of them, accuracy against latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from vitdomains.core.errors import ConfigError

Row = Mapping[str, Any]

VALUES = {
    "ms": ("median_s", 1e3),
    "images/s": ("images_per_second", 1.0),
    "MB on disk": ("size_bytes", 1e-6),
    "peak MiB": ("peak_memory_mib", 1.0),
    "GPU MiB": ("peak_gpu_mib", 1.0),
}
"""What ``cell`` shows: the key in a row, and its unit."""


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn: texts by row and column, and what stands below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def details(rows: Sequence[Row]) -> list[Grid]:
    """One grid for each model, batch size and number of threads, with all that was measured of it."""
    columns = ("runtime", "ms", "spread (10 to 90 %)", "images/s", "MB on disk", "peak MiB")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["batch"], row["threads"]), []).append(row)
    grids = []
    for (name, batch, threads), own in groups.items():
        lines = []
        for row in own:
            if "failed" not in row:
                values = {what: cell(row, what) for what in VALUES}
                spread = " to ".join(_number(1e3 * row[key]) for key in ("p10_s", "p90_s") if key in row)
                memory = values["GPU MiB"] or values["peak MiB"]
                how = f"{row['runtime']} {row['precision']}"
                lines.append((how, values["ms"], spread, values["images/s"], values["MB on disk"], memory))
        parameters = f", {own[0]['parameters'] / 1e6:.2f} M parameters" if own[0].get("parameters") else ""
        where = own[0]["device"] if own[0]["device"] != "cpu" else f"{threads} thread{'s' if threads > 1 else ''}"
        title = f"{name}{parameters}, {own[0]['image_size']} px, batch {batch}, {where}"
        grids.append(Grid(title, columns, tuple(lines), failures(own)))
    return grids


def drawn(grid: Grid) -> Table:
    """For the terminal."""
    table = Table(
        title=grid.title, title_justify="left", box=box.SIMPLE, caption="\n".join(grid.notes), caption_justify="left"
    )
    for place, name in enumerate(grid.columns):
        if place == 0:
            table.add_column(name, min_width=12, overflow="fold")
        else:
            table.add_column(name.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for row in grid.rows:
        table.add_row(*row)
    return table


def cell(row: Row, what: str) -> str:
    """One of ``VALUES`` of a row as text; empty where it was not measured."""
    key, unit = VALUES[what]
    return _number(unit * row[key]) if row.get(key) is not None and "failed" not in row else ""


def _number(value: float) -> str:
    """Three digits or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def failures(rows: Sequence[Row]) -> tuple[str, ...]:
    """A line a reason, with the columns that it keeps from running, and of which models unless of all."""
    everyone = {row["model"] for row in rows}
    columns: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if "failed" in row:
            columns.setdefault((row["failed"], f"{row['runtime']} {row['precision']}"), set()).add(row["model"])
    reasons: dict[str, list[str]] = {}
    for (reason, how), models in columns.items():
        reasons.setdefault(reason, []).append(how if models == everyone else f"{how} ({', '.join(sorted(models))})")
    return tuple(f"not run, {reason}: {', '.join(names)}" for reason, names in reasons.items())


def against(rows: Sequence[Row], baseline: str = "") -> list[tuple[Row, dict[str, float]]]:
    """How many times as fast as one of them the rows of one result are, image for image.

    Args:
        rows: Of one result. Rounds are paired, so that what slowed a whole round down cancels; rows of another run of the
            machine than the baseline's are left out.
        baseline: Label of a row, or words that stand in one label only; empty: the first row that was run.

    Returns:
        Each row that was run, with ``median``, ``p10`` and ``p90`` of the ratio over the rounds.

    Raises:
        ConfigError: No row or several fit ``baseline``, or nothing was run.
    """
    run = [row for row in rows if row.get("seconds")]
    words = [word.strip() for word in baseline.split(",")]
    fit = [row for row in run if row["label"] == baseline] or [
        row for row in run if all(word in row["label"].split(", ") for word in words)
    ]
    fit = fit if baseline else run[:1]
    if len(fit) != 1:
        known = "; ".join(row["label"] for row in fit or run) or "nothing was run"
        raise ConfigError(f"{len(fit)} rows fit {baseline!r}.", hint=f"Name one of: {known}.")
    base = np.array(fit[0]["seconds"]) / fit[0]["batch"]
    compared = []
    for row in run:
        if row["run"] != fit[0]["run"]:
            continue
        ratio = base / (np.array(row["seconds"]) / row["batch"])
        low, median, high = np.percentile(ratio, [10, 50, 90])
        compared.append((row, {"median": float(median), "p10": float(low), "p90": float(high)}))
    return compared


def comparison(rows: Sequence[Row], baseline: str = "") -> Table:
    """``against`` for the terminal, the fastest first."""
    compared = sorted(against(rows, baseline), key=lambda pair: -pair[1]["median"])
    shown = Table("row", "times as fast", "10 to 90 % of the rounds", title_justify="left")
    for row, ratio in compared:
        shown.add_row(row["label"], f"{ratio['median']:.2f}", f"{ratio['p10']:.2f} to {ratio['p90']:.2f}")
    return shown
