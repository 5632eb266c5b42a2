"""Write a report: report.json, report.html with its plots, predictions.csv, and tables for the terminal."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from vitdomains.core.evaluation import plots
from vitdomains.core.evaluation.html import (
    BASELINE_NAMES,
    BINARY_COLUMNS,
    MULTICLASS_COLUMNS,
    cell_text,
    compared,
    number,
    page,
)

Report = Mapping[str, Any]

PLOTS = ("metrics", "roc", "precision_recall", "reliability", "confusion")
"""Every file name, less ``.png``, that may stand in ``plots/``."""


def finite(value: Any) -> Any:
    """The same tree in JSON's own types: NaN and infinities become null, numpy scalars and arrays plain ones."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return finite(value.tolist())
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def terminal_table(report: Report, title: str = "", width: int = 200) -> Table:
    """Classes, averages and baselines, for a terminal of ``width`` characters; an undefined value reads ``n/a``.

    The last columns are left out where there is no room for them.
    """
    columns = BINARY_COLUMNS if report["kind"] == "multilabel" else MULTICLASS_COLUMNS
    # Eight characters a column, beside a name folded at 13, the count, the first metric with its interval, and lines.
    columns = dict(list(columns.items())[: 1 + max(0, width - 49) // 8])
    averages = {average: report[average] for average in ("macro", "weighted")}
    lead = next(iter(columns))
    table = Table(
        title=Text(title) if title else None, caption=_caption(report), caption_justify="left", pad_edge=False
    )
    table.add_column("class", overflow="fold")
    table.add_column("positives" if report["kind"] == "multilabel" else "images", justify="right", no_wrap=True)
    for metric, label in columns.items():
        table.add_column(label, justify="right", no_wrap=metric == lead)

    def row(name: str, count: str, cells: Mapping[str, Any], style: str = "") -> None:
        # Text, not str: a class name with brackets is no markup.
        values = [cell_text(cells.get(metric), interval=metric == lead) for metric in columns]
        table.add_row(Text(name), count, *values, style=style)

    for name, cells in report["classes"].items():
        if not cells["n"]:
            table.add_row(Text(name), "not annotated here", style="dim")
            continue
        count = f"{cells['n_positive']} of {cells['n']}" if report["kind"] == "multilabel" else str(cells["n_positive"])
        row(name, count, cells)
    table.add_section()
    for name, cells in averages.items():
        row(name, "", cells, style="bold" if name == "macro" else "")
    if report["kind"] == "singlelabel":
        table.add_section()
        for metric, cell in report["overall"].items():
            table.add_row(
                Text(metric), "", cell_text(cell, interval=True), style="bold" if metric == "accuracy" else ""
            )
    if report.get("baselines"):
        table.add_section()
        for name, cells in report["baselines"].items():
            label = f"baseline: {BASELINE_NAMES.get(name, name)}"
            if report["kind"] == "multilabel":
                row(label, "", cells, style="dim")
            else:
                table.add_row(
                    Text(f"{label} (accuracy)"), "", cell_text(cells.get("accuracy"), interval=True), style="dim"
                )
    return table


def home_table(report: Report) -> Table | None:
    """Prevalence, discrimination, operating points and calibration here beside those at home; None without a home."""
    headings, rows = compared(report)
    if not rows:
        return None
    table = Table(title="here / at home", title_justify="left", pad_edge=False)
    table.add_column("class", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")

    def text(value: Any) -> str:
        return ("" if value is None else number(value)) if not isinstance(value, Mapping) else cell_text(value)

    for name, pairs in rows:
        table.add_row(Text(name), *(f"{text(here)} / {text(there)}" for here, there in pairs))
    return table


def _caption(report: Report) -> str:
    text = f"{report['n']:,} images of {report['groups']:,} groups"
    replicates = report["bootstrap"]["replicates"]
    return f"{text}; 95 % intervals from {replicates:,} bootstrap replicates over groups" if replicates else text


def _figures(report: Report, predictions: pd.DataFrame) -> dict[str, tuple[bytes, str]]:
    """The plots that this report can have, (PNG, SVG) by name."""
    classes = list(report["classes"])
    figures = {}
    if report["kind"] == "multilabel":
        rows = [(name, cells["auroc"]) for name, cells in report["classes"].items()] + [
            ("macro", report["macro"]["auroc"])
        ]
        figures["metrics"] = plots.forest(rows, "AUROC with 95 % interval", chance=0.5)
        shown = plots.plotted_classes(predictions, classes)
        thresholds = {name: float(report["classes"][name]["threshold"]) for name in shown}
        if shown:
            figures["roc"] = plots.roc(predictions, shown, thresholds)
            figures["precision_recall"] = plots.precision_recall(predictions, shown, thresholds)
            figures["reliability"] = plots.reliability(predictions, shown)
    else:
        rows = [(name, cells["f1"]) for name, cells in report["classes"].items()] + [("macro", report["macro"]["f1"])]
        figures["metrics"] = plots.forest(rows, "F1 with 95 % interval")
        figures["confusion"] = plots.confusion_matrix(report["confusion"]["counts"], classes)
        figures["reliability"] = plots.top_label_reliability(predictions, classes)
    return {name: plots.render(figure) for name, figure in figures.items()}


def _place(built: Path, out: Path) -> None:
    """Move a finished folder to its place; files of others that lie there stay, and report.json goes last."""
    if not out.exists() or not any(out.iterdir()):
        os.replace(built, out)
        return
    (out / "plots").mkdir(exist_ok=True)
    for name in PLOTS:
        if not (built / "plots" / f"{name}.png").exists():
            (out / "plots" / f"{name}.png").unlink(missing_ok=True)
    files = sorted((f for f in built.rglob("*") if f.is_file()), key=lambda f: f.name == "report.json")
    for file in files:
        os.replace(file, out / file.relative_to(built))
    shutil.rmtree(built)


def write_report(
    report: Report,
    predictions: pd.DataFrame,
    out_dir: str | Path,
    *,
    title: str = "Evaluation",
    notice: str = "",
    facts: Mapping[str, object] | None = None,
    pictures: Sequence[tuple[str, bytes]] = (),
    with_groups: bool = False,
) -> Path:
    """Write report.json, report.html, plots/*.png and predictions.csv; a reader never meets half of a file.

    Args:
        report: From ``evaluate``; ``baselines`` and further keys that the caller adds are kept.
        predictions: From ``predictions_table``, the rows behind the report.
        out_dir: The folder; other files in it are left alone.
        title: Heading of the page.
        notice: A sentence shown before anything else, e.g. that this is no medical device.
        facts: What was evaluated on what, name -> value, for the head of the page.
        pictures: (caption, PNG bytes) for a section of pictures.
        with_groups: Write the ``group`` column too. Groups are patients' identifiers more often than not, so by
            default they do not leave the run.

    Returns:
        The path of report.html. It needs no other file and no network.
    """
    out = Path(out_dir)
    out.parent.mkdir(parents=True, exist_ok=True)
    built = out.parent / f".{out.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        (built / "plots").mkdir(parents=True)
        figures = _figures(report, predictions)
        for name, (png, _) in figures.items():
            (built / "plots" / f"{name}.png").write_bytes(png)
        table = predictions if with_groups else predictions.drop(columns="group", errors="ignore")
        table.to_csv(built / "predictions.csv", index=False, float_format="%.6g")
        head = {"title": title, "notice": notice} | ({"facts": finite(facts)} if facts else {})
        text = json.dumps(finite({**head, **report}), indent=1, ensure_ascii=False, allow_nan=False, default=str)
        (built / "report.json").write_text(text + "\n", encoding="utf-8")
        svgs = {name: svg for name, (_, svg) in figures.items()}
        html = page(report, svgs, title=title, notice=notice, facts=facts or {}, pictures=pictures)
        (built / "report.html").write_text(html, encoding="utf-8")
        _place(built, out)
    finally:
        shutil.rmtree(built, ignore_errors=True)
    return out / "report.html"
