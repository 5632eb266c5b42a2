"""HTML of reports: self-contained pages, light or dark as the reader's system is, every text escaped."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from vitdomains.core.evaluation.roles import PHRASES, UNTOUCHED

Cell = Mapping[str, float | None]

BINARY_COLUMNS = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "sensitivity": "Sens.",
    "specificity": "Spec.",
    "ppv": "PPV",
    "npv": "NPV",
    "f1": "F1",
    "brier": "Brier",
    "ece": "ECE",
}
"""Columns of a multi-label table: metric -> heading."""
MULTICLASS_COLUMNS = {"f1": "F1", "precision": "Precision", "recall": "Recall"}
OVERALL_NAMES = {
    "accuracy": "Accuracy",
    "kappa": "Cohen's kappa",
    "ece": "ECE",
    "brier": "Brier",
    "nll": "NLL",
    "auroc": "Macro AUROC",
    "average_precision": "Macro AP",
    "macro_f1": "Macro F1",
}
BASELINE_NAMES = {
    "shuffled": "shuffled labels",
    "metadata": "metadata only",
    "thumbnail": "thumbnail regression",
}
FIGURES = {
    "metrics": ("Classes at a glance", "Value and 95 % interval of each class."),
    "roc": ("ROC", "The dot is the operating point, chosen on the validation split; dotted: chance."),
    "precision_recall": ("Precision and recall", "Dotted: the share of positives, which a coin would reach."),
    "reliability": (
        "Reliability",
        "Ten bins of equally many images, with 95 % intervals; on the diagonal, scores are probabilities.",
    ),
    "confusion": ("Confusion matrix", "Counts; rows are true classes, shaded by their share of the row."),
}
_STYLE = """
:root{color-scheme:light dark;
--bg:#fff;--ink:#1a1b1e;--soft:#5d636b;--line:#dfe2e6;--panel:#f5f6f8;--note:#fff4d6;--note-ink:#5b4300}
@media(prefers-color-scheme:dark){:root{
--bg:#15171a;--ink:#e6e8eb;--soft:#9aa0a8;--line:#33373d;--panel:#1d2024;--note:#3a3013;--note-ink:#ffe3a0}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0 0 6px}
h2{font-size:19px;margin:40px 0 8px}
h3{font-size:15px;margin:20px 0 6px}
p{margin:6px 0;max-width:80ch}
.soft,figcaption,small{color:var(--soft)}
.notice{background:var(--note);color:var(--note-ink);padding:10px 14px;border-radius:6px;margin:0 0 18px;max-width:none}
.lead{font-size:17px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:14px 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13.5px;min-width:40%}
th,td{padding:4px 6px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top}
th:first-child,td:first-child{text-align:left}
td.text{text-align:left;white-space:normal}
thead th{color:var(--soft);font-weight:600}
tr.strong{background:var(--panel);font-weight:600}
td small{display:block;font-weight:400;font-size:11px}
figure{margin:14px 0}
figure svg{max-width:100%;height:auto}
figure img{max-width:100%;height:auto;border-radius:4px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:14px}
.grid figure{margin:0}
"""


def number(value: float | None) -> str:
    """Three decimals, or ``n/a``."""
    return "n/a" if value is None or math.isnan(value) else f"{value:.3f}"


def cell_text(cell: Cell | None, *, interval: bool = False) -> str:
    """``0.812`` or ``0.812 (0.780-0.843)``; ``n/a`` where undefined, empty where there is no such metric."""
    if cell is None:
        return ""
    text = number(cell["value"])
    if interval and cell["value"] is not None and cell["low"] is not None:
        text += f" ({number(cell['low'])}-{number(cell['high'])})"
    return text


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td></td>"
    spread = ""
    if cell["value"] is not None and cell["low"] is not None:
        spread = f"<small>{number(cell['low'])}&ndash;{number(cell['high'])}</small>"
    return f"<td>{number(cell['value'])}{spread}</td>"


def table(head: Sequence[str], rows: Iterable[str]) -> str:
    """A table of rows of markup, from ``row``, under plain headings."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def row(name: str, cells: Iterable[str], strong: bool = False) -> str:
    """A row of a plain name and cells of markup."""
    kind = ' class="strong"' if strong else ""
    return f"<tr{kind}><td>{escape(name)}</td>{''.join(cells)}</tr>"


def _figure(name: str, svg: str) -> str:
    heading, caption = FIGURES[name]
    label = escape(heading)
    text = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<h2>{label}</h2><figure role="img" aria-label="{label}">{svg}{text}</figure>'


def _lead(report: Mapping[str, Any]) -> str:
    single = report["kind"] == "singlelabel"
    name, cell = ("Accuracy", report["overall"]["accuracy"]) if single else ("Macro AUROC", report["macro"]["auroc"])
    spread = f" (95 % interval {number(cell['low'])} to {number(cell['high'])})" if cell["low"] is not None else ""
    return (
        f'<p class="lead">{name} <strong>{number(cell["value"])}</strong>{spread} on {report["n"]:,} images of '
        f"{report['groups']:,} groups.</p>"
    )


def _baselines(report: Mapping[str, Any]) -> str:
    """The model beside what is reached without looking at the images properly."""
    found: Mapping[str, Mapping[str, Any]] = report.get("baselines") or {}
    if not found:
        return ""
    single = report["kind"] == "singlelabel"
    metrics = ("accuracy", "macro_f1") if single else ("auroc", "average_precision")
    model = {**report["macro"], **report.get("overall", {}), "macro_f1": report["macro"].get("f1")}
    rows = [row("this model", [*(_cell(model.get(m)) for m in metrics), "<td></td>", "<td></td>"], strong=True)]
    for name, cells in found.items():
        margin = (cells.get("margin") or {}).get(metrics[0])
        note = f'<td class="text">{escape(str(cells.get("note", "")))}</td>'
        rows.append(row(BASELINE_NAMES.get(name, name), [*(_cell(cells.get(m)) for m in metrics), _cell(margin), note]))
    head = ["", *(OVERALL_NAMES[m] for m in metrics), f"Model ahead by ({OVERALL_NAMES[metrics[0]]})", ""]
    text = (
        "A model that does not clearly beat these has learned little from the images. "
        "Differences are paired by replicate."
    )
    return f"<h2>Baselines</h2><p>{text}</p>{table(head, rows)}"


def _classes(report: Mapping[str, Any]) -> str:
    single = report["kind"] == "singlelabel"
    columns = MULTICLASS_COLUMNS if single else BINARY_COLUMNS
    head = (
        ["Class", "Images", *columns.values()]
        if single
        else ["Class", "Positive", "Known", "Threshold", *columns.values()]
    )
    rows = []
    for name, cells in report["classes"].items():
        if not cells["n"]:
            span = len(head) - 1
            rows.append(row(name, [f'<td class="text" colspan="{span}"><small>not annotated here</small></td>']))
            continue
        counts = [f"<td>{cells['n_positive']:,}</td>"]
        if not single:
            counts += [f"<td>{cells['n']:,}</td>", f"<td>{number(cells['threshold'])}</td>"]
        rows.append(row(name, [*counts, *(_cell(cells.get(m)) for m in columns)]))
    blank = ["<td></td>"] * (1 if single else 3)
    for average in ("macro", "weighted"):
        cells = [*blank, *(_cell(report[average].get(m)) for m in columns)]
        rows.append(row(average, cells, strong=average == "macro"))
    overall = ""
    if single:
        lines = [row(OVERALL_NAMES.get(m, m), [_cell(cell)]) for m, cell in report["overall"].items()]
        overall = "<h2>Overall</h2>" + table(["", "Value"], lines)
    return f"{overall}<h2>By class</h2>{table(head, rows)}"


def _subgroup(column: str, found: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    heading = f"<h3>{escape(column)}</h3>"
    if "skipped" in found:
        return f'{heading}<p class="soft">Not shown: {escape(found["skipped"])}.</p>'
    single = report["kind"] == "singlelabel"
    columns = MULTICLASS_COLUMNS if single else BINARY_COLUMNS
    lead = next(iter(columns))
    head = [column, "Images", "Groups", *(["Accuracy"] if single else []), *columns.values()]
    rows = []
    for value, block in found["values"].items():
        if "suppressed" in block:
            why = f'<td>{block["n"]:,}</td><td class="text" colspan="{len(head) - 2}"><small>not shown: '
            rows.append(row(value, [why + escape(block["suppressed"]) + "</small></td>"]))
            continue
        counts = [f"<td>{block['n']:,}</td>", f"<td>{block['groups']:,}</td>"]
        overall = [_cell(block["overall"]["accuracy"])] if single else []
        rows.append(row(value, [*counts, *overall, *(_cell(block["macro"][m]) for m in columns)]))
    used = found["averaged_classes"]
    text = f"Means over the {len(used)} of {len(report['classes'])} classes that every sub-group shown can judge."
    shown = {value: block for value, block in found["values"].items() if "suppressed" not in block}
    detail = ""
    if shown:
        lines = []
        for name in report["classes"]:
            cells = []
            for block in shown.values():
                entry = block["classes"][name]
                why = f"<td><small>{escape(entry['suppressed'])}</small></td>" if "suppressed" in entry else ""
                cells.append(why or _cell(entry.get(lead)))
            lines.append(row(name, cells))
        detail = f"<details><summary>{columns[lead]} by class</summary>{table(['Class', *shown], lines)}</details>"
    return f'{heading}{table(head, rows)}<p class="soft">{text}</p>{detail}'


def _method(report: Mapping[str, Any]) -> str:
    draws = report["bootstrap"]
    spread = (
        f"Intervals are 95 % percentile intervals of {draws['replicates']:,} bootstrap replicates that draw whole "
        "groups (patients, scenes or blocks) with replacement, so images of one group are not counted as independent "
        "evidence."
        if draws["replicates"]
        else "Intervals were not computed."
    )
    rest = (
        "n/a: not defined, for instance an AUROC with one outcome only. Images whose label is unknown are left out, "
        "class by class. Macro is the plain mean over the classes with both outcomes, weighted the mean by number of "
        "positives. ECE uses 15 bins of equally many images; noise adds to it, so it reads high in small samples. "
        "Temperature and thresholds come from the validation split of training."
    )
    return f"<h2>How to read this</h2><p>{spread}</p><p>{rest}</p>"


def pictures_grid(pictures: Sequence[tuple[str, bytes]], heading: str = "Pictures") -> str:
    """(caption, PNG) as figures under a heading; nothing without any."""
    if not pictures:
        return ""
    items = "".join(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, png in pictures
    )
    return f'<h2>{escape(heading)}</h2><div class="grid">{items}</div>'


def _role(report: Mapping[str, Any]) -> str:
    """What training did with these images, and what is to be said about their labels."""
    rows = report.get("rows")
    role = rows["role"] if rows else UNTOUCHED
    warning = "" if role == UNTOUCHED else f'<p class="notice" role="note">Measured on {escape(PHRASES[role])}.</p>'
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.get("names", {}).get("notes", ()))
    errors = report.get("errors", {"n": 0})
    lost = f'<p class="soft">{errors["n"]:,} images have no scores and are left out: ' if errors["n"] else ""
    lost += f"{escape('; '.join(errors['first']))}.</p>" if lost else ""
    return warning + (f"<ul>{notes}</ul>" if notes else "") + lost


def compared(report: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[tuple[Any, Any]]]]]:
    """Figures here beside those at home: headings, and rows of a name and (here, at home) pairs of a share or a cell."""
    home = report.get("home") or {}
    if not home:
        return [], []
    single = report["kind"] == "singlelabel"
    names = ("f1", "precision", "recall") if single else ("auroc", "sensitivity", "specificity", "ppv", "ece")
    headings = ["Prevalence", *((MULTICLASS_COLUMNS if single else BINARY_COLUMNS)[n] for n in names)]
    rows = []
    for name, cells in report["classes"].items():
        if cells["n"] and name in home["classes"]:
            there = home["classes"][name]
            pairs = [(cells.get(n), there.get(n)) for n in names]
            rows.append((name, [(cells["n_positive"] / cells["n"], there["prevalence"]), *pairs]))
    pairs = [(home["macro_here"].get(n), home["macro"].get(n)) for n in names]
    rows.append((f"mean of {len(home['both'])} classes", [(None, None), *pairs]))
    return headings, rows


def _home(report: Mapping[str, Any]) -> str:
    headings, rows = compared(report)
    if not rows:
        return ""
    lines = []
    for name, pairs in rows:
        cells = []
        for here, there in pairs:
            for value in (here, there):
                blank = "" if value is None else number(value) if isinstance(value, float) else None
                cells.append(_cell(value) if blank is None else f"<td>{blank}</td>")
        lines.append(row(name, cells, strong=name.startswith("mean of ")))
    if report["kind"] == "singlelabel":
        overall = report["home"]["overall"]
        for m in ("accuracy", "kappa", "ece"):
            rest = ["<td></td>"] * (2 * len(headings) - 2)
            lines.append(row(OVERALL_NAMES[m], [_cell(report["overall"].get(m)), _cell(overall.get(m)), *rest]))
    head = ["", *(f"{name} {where}" for name in headings for where in ("here", "at home"))]
    home = report["home"]
    text = (
        f"At home: {home['n']:,} held-out images of {home['groups']:,} groups. Temperature and operating points are those of "
        "home; where prevalence differs, PPV, NPV and calibration move with it though the model is the same."
    )
    return f"<h2>Here beside at home</h2><p>{text}</p>{table(head, lines)}"


def document(title: str, body: str, *, notice: str = "", facts: Mapping[str, object] | None = None) -> str:
    """A whole page that needs no other file: notice, heading, facts, then ``body``, which is trusted markup."""
    warning = f'<p class="notice" role="note">{escape(notice)}</p>' if notice else ""
    lines = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in (facts or {}).items()
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    main = f"{warning}<h1>{escape(title)}</h1>{f'<dl>{lines}</dl>' if lines else ''}{body}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{main}</main></body></html>\n'


def page(
    report: Mapping[str, Any],
    svgs: Mapping[str, str],
    *,
    title: str,
    notice: str,
    facts: Mapping[str, object],
    pictures: Sequence[tuple[str, bytes]],
) -> str:
    """The page of a report; ``svgs`` are trusted markup by name of ``FIGURES``, all else is escaped."""
    groups = "".join(_subgroup(column, found, report) for column, found in report.get("subgroups", {}).items())
    body = [
        _role(report),
        _lead(report),
        _home(report),
        _baselines(report),
        _classes(report),
        *(_figure(name, svgs[name]) for name in FIGURES if name in svgs),
        f"<h2>Sub-groups</h2>{groups}" if groups else "",
        pictures_grid(pictures),
        _method(report),
    ]
    return document(title, "".join(body), notice=notice, facts=facts)
