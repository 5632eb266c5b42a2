"""What can be wrong with a table of records, found without opening an image; ``manifest.validate`` raises it.

Each check returns ``(problem, hint)`` pairs, so that a user sees everything at once and not one error a run.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.errors import ManifestError

Problem = tuple[str, str]

# A folder with fewer wanted files than this is not listed; its files are looked up one by one.
_FEW = 4


def raise_problems(name: str, rows: int, problems: Sequence[Problem]) -> None:
    """Raise one ManifestError that lists them all, if there are any."""
    if problems:
        listed = "; ".join(problem for problem, _ in problems)
        hints = " ".join(dict.fromkeys(hint for _, hint in problems))
        raise ManifestError(f"Manifest {name or '(unnamed)'} of {rows} rows: {listed}.", hint=hints)


def table_problems(
    table: pd.DataFrame, classes: Sequence[str], splits: Collection[str], *, require_positives: bool
) -> list[Problem]:
    """Everything wrong with ids, groups, splits and labels."""
    if table.empty:
        return [("no rows", "Check the source's `root`, `keep` and `limit`.")]
    return [
        *_identity(table),
        *split_problems(table, splits),
        *_labels(table, classes, require_positives=require_positives),
    ]


def missing_files(paths: Iterable[str]) -> list[Problem]:
    """The files that are not there: counted, the first five named, in table order."""
    wanted = [str(p) for p in paths]
    folders: dict[str, list[str]] = {}
    for path in wanted:
        folder, name = os.path.split(path)
        folders.setdefault(folder, []).append(name)
    with ThreadPoolExecutor(max_workers=min(16, max(1, len(folders)))) as pool:
        absent = {path for found in pool.map(lambda item: _absent(*item), folders.items()) for path in found}
    lost = [path or "(empty path)" for path in wanted if path in absent]
    if not lost:
        return []
    hint = "Check the source's `root` and `images`, or finish the download."
    return [(f"{len(lost)} of {len(wanted)} files are missing: {_first(lost)}", hint)]


def _absent(folder: str, names: list[str]) -> list[str]:
    """The full paths of those names that are no files of the folder."""
    if len(names) < _FEW:
        return [p for p in (os.path.join(folder, n) for n in names) if not os.path.isfile(p)]
    try:
        with os.scandir(folder) as entries:
            present = {entry.name for entry in entries if entry.is_file()}
    except OSError:
        present = set()
    return [os.path.join(folder, n) for n in names if n not in present]


def _identity(table: pd.DataFrame) -> list[Problem]:
    problems = []
    repeated = table["id"][table["id"].duplicated()].unique().tolist()
    if repeated:
        problems.append(
            (f"{len(repeated)} ids occur more than once: {_first(repeated)}", "Give each image an id of its own.")
        )
    for column in ("id", "group"):
        blank = int((table[column].isna() | (table[column].astype("str").str.strip() == "")).sum())
        if blank:
            problems.append((f"{blank} rows have no {column}", f"Fill the column that `columns.{column}` names."))
    return problems


def split_problems(table: pd.DataFrame, allowed: Collection[str]) -> list[Problem]:
    """Unknown names of splits, and groups or files that lie in more than one."""
    problems = []
    strange = sorted({str(s) for s in table["split"].unique()} - set(allowed))
    if strange:
        problems.append((f"unknown splits {_first(strange)}", "Use train, val, test, or leave the split empty."))
    given = table[table["split"] != ""]
    for column, noun in (("group", "groups"), ("path", "files")):
        pairs = given[[column, "split"]].drop_duplicates()
        twice = pairs[column][pairs[column].duplicated()].unique().tolist()
        if twice:
            problems.append(
                (
                    f"{len(twice)} {noun} are in more than one split: {_first(twice)}",
                    "Set `data.split: grouped`, or correct the split column: a patient belongs to one split.",
                )
            )
    return problems


def _labels(table: pd.DataFrame, classes: Sequence[str], *, require_positives: bool) -> list[Problem]:
    problems = []
    values = table[list(classes)].to_numpy(dtype=np.float64).reshape(len(table), len(classes))
    odd = ~(np.isnan(values) | (values == 0) | (values == 1))
    for k in map(int, np.flatnonzero(odd.any(axis=0))):
        seen = [f"{v:g}" for v in np.unique(values[odd[:, k], k])]
        problems.append(
            (
                f"{classes[k]} has {int(odd[:, k].sum())} labels other than 1, 0 and unknown: {_first(seen)}",
                "Map such labels with the source's `uncertain`, or correct the table.",
            )
        )
    empty = classes_without_positives(table["split"].to_numpy(dtype=object), values)
    if require_positives and len(empty):
        names = [classes[k] for k in empty]
        problems.append(
            (
                f"no positive{training_phrase(table)} for {', '.join(names)}",
                "Remove the class from `data.classes`, or add images that show it.",
            )
        )
    return problems


def classes_without_positives(
    splits: npt.NDArray[np.object_], values: npt.NDArray[np.floating], least: int = 1
) -> npt.NDArray[np.intp]:
    """Positions of the classes with fewer than ``least`` positives in training (in all rows where none is ``train``).

    Args:
        splits: [N] names of splits.
        values: [N, K] of 1, 0, NaN.
        least: Positives that a class needs.
    """
    training = splits == "train"
    rows = values[training] if training.any() else values
    return np.flatnonzero((rows == 1).sum(axis=0) < least)


def training_phrase(table: pd.DataFrame) -> str:
    """`` in the training split`` where there is one."""
    return " in the training split" if bool((table["split"] == "train").any()) else ""


def _first(values: Sequence[object], count: int = 5) -> str:
    shown = ", ".join(str(v) for v in values[:count])
    return shown + (f", and {len(values) - count} more" if len(values) > count else "")
