"""Export of decisions: a table for people, a manifest for the next training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from vitdomains.core.data.manifest import Manifest, take
from vitdomains.core.errors import ManifestError
from vitdomains.core.files import write_atomically
from vitdomains.core.review.agreement import ABSENT, PRESENT, UNSURE, Rule, consensus, readings, resolved
from vitdomains.core.review.schema import ReviewError
from vitdomains.core.review.store import ReviewStore, parse_answers

SUBJECT = "label"
"""The subject of single-label decisions, whose answer is one of the classes."""
REVIEWED = "reviewed"
"""Column of a training manifest that says whether readers settled a record; left out where a class has that name."""
_FREE_TEXT = ("note", "reviewer")


def export_table(store: ReviewStore) -> pd.DataFrame:
    """One row a decision, in the order of writing.

    Columns: those of the store; and for each subject ``answer:SUBJECT`` (agree, disagree, unsure or the label given),
    ``value:SUBJECT`` (what that says, see ``resolved``), ``call:SUBJECT``; for each class ``prob:CLASS``. ``regions`` is JSON.
    """
    table = store.table()
    rows = []
    for row in table.to_dict("records"):
        calls, answers = json.loads(row["calls"]), parse_answers(row["answers"])
        cells: dict[str, object] = {f"answer:{s}": a.label or a.verdict for s, a in answers.items()}
        cells |= {f"value:{s}": resolved(a, calls.get(s, "")) for s, a in answers.items()}
        cells |= {f"call:{s}": call for s, call in calls.items()}
        cells |= {f"prob:{c}": p for c, p in json.loads(row["probabilities"]).items()}
        rows.append(cells)
    wide = pd.DataFrame(rows, index=table.index)
    wide = wide[sorted(wide.columns, key=lambda c: ("answer", "value", "call", "prob").index(str(c).split(":")[0]))]
    kept = table.drop(columns=["answers", "probabilities", "calls", "token"])
    return pd.concat([kept.assign(blinded=kept["blinded"].astype(bool)), wide], axis=1)


def export(store: ReviewStore, path: str | Path) -> int:
    """Write ``export_table`` as ``.csv`` or ``.parquet``, atomically, and return the number of decisions.

    In CSV a text that a spreadsheet would take for a formula (it begins with =, +, -, @, tab) gets an apostrophe before it.

    Raises:
        ReviewError: The name ends in neither.
    """
    target = Path(path)
    table = export_table(store)
    if target.suffix == ".parquet":
        write_atomically(target, lambda part: table.to_parquet(part, index=False))
    elif target.suffix == ".csv":
        write_atomically(target, lambda part: Path(part).write_text(to_csv(table), encoding="utf-8"))
    else:
        raise ReviewError(f"{target} is neither .csv nor .parquet.", hint="Change the file's ending.")
    return len(table)


def to_csv(table: pd.DataFrame) -> str:
    """CSV whose free text no spreadsheet takes for a formula."""
    safe = {c: table[c].map(lambda text: f"'{text}" if text[:1] in tuple("=+-@\t\r") else text) for c in _FREE_TEXT}
    return str(table.assign(**safe).to_csv(index=False))


def training_manifest(
    store: ReviewStore,
    base: Manifest,
    items: Mapping[str, str],
    *,
    rule: Rule = "unanimous",
    unreviewed: Literal["drop", "keep"] = "drop",
) -> Manifest:
    """The labels that the reviewers settled, as a manifest.

    Args:
        store: The reviews.
        base: The records that were reviewed, with their paths, groups and splits.
        items: Id in ``base`` to the item's hash in the store.
        rule: When the readers' word holds, see ``consensus``.
        unreviewed: ``drop``: a label that nobody settled is unknown, and a record without any known label is left out;
            ``keep``: the labels of ``base`` stay where nothing was settled.

    Returns:
        A manifest with the rows and classes of ``base``, 1, 0 or NaN. Rejecting a class of a single-label task without naming
        the right one makes that class 0 and leaves the others unknown.

    Raises:
        ManifestError: No record of ``base`` was reviewed.
    """
    settled = consensus(readings(store.table()), rule)
    by_item = {item: dict(zip(g["subject"], g["value"], strict=True)) for item, g in settled.groupby("item")}
    values = np.full((len(base), len(base.classes)), np.nan, dtype=np.float32)
    if unreviewed == "keep":
        values = base.table[list(base.classes)].to_numpy(np.float32, copy=True)
    reviewed = np.zeros(len(base), dtype=bool)
    for i, identity in enumerate(base.table["id"]):
        said = by_item.get(items.get(str(identity), ""))
        if said is not None:
            reviewed[i] = True
            _fill(values[i], said, base.classes)
    if not reviewed.any():
        raise ManifestError(
            f"None of the {len(base)} records was reviewed in this store.",
            hint="Give the folder or manifest that was reviewed.",
        )
    columns = {c: values[:, k] for k, c in enumerate(base.classes)}
    table = base.table.assign(**({} if REVIEWED in columns else {REVIEWED: reviewed}), **columns)
    known = ~np.isnan(values).all(axis=1)
    return take(replace(base, table=table), known)


def _fill(row: np.ndarray, said: Mapping[str, str], classes: tuple[str, ...]) -> None:
    """Write what was settled of one record into its row of targets [K]."""
    for k, name in enumerate(classes):
        value = said.get(name)
        if value is not None:
            row[k] = {PRESENT: 1.0, ABSENT: 0.0}.get(value, np.nan)
    label = said.get(SUBJECT)
    if label is None or (SUBJECT in classes and label in (PRESENT, ABSENT, UNSURE)):  # a finding may be called so
        return
    if label in classes:
        row[:] = 0.0
        row[classes.index(label)] = 1.0
    elif label.startswith("not ") and label[4:] in classes:
        row[:] = np.nan
        row[classes.index(label[4:])] = 0.0
    else:
        row[:] = np.nan
