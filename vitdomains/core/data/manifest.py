"""The table of records: one row an image, one column a class with 1, 0 or NaN, its checks, and what was left out of it.

Unknown is a value of its own (NaN) and stays one through merging, training and metrics. On disk a class column carries
the prefix ``label:`` and a path is written relative to the table's folder, so a data set can move with its manifest.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.data.tables import as_text, label_columns, local_path, read_table
from vitdomains.core.errors import ManifestError
from vitdomains.core.files import write_atomically, write_text

log = logging.getLogger(__name__)

FIXED = ("id", "path", "group", "split")
SPLITS = ("train", "val", "test", "")
LABEL_PREFIX = "label:"
RESERVED = frozenset({*FIXED, "source", "labels", "quality", "error", "unknown"})
"""What no class may be called, whatever its case: columns of tables, and the word for a tile of no class."""

_TEXT = ("sex", "view", "age_band", "source", "scene")
"""Further columns of a manifest that are text, whatever they look like."""

Problem = tuple[str, str]
SkipKind = Literal["lost", "asked", "other"]


@dataclass(frozen=True)
class Skipped:
    """What was found and is not used, for one reason.

    Attributes:
        reason: As it stands in the log and in ``skipped.csv``.
        names: Ids of records, or paths.
        kind: ``lost``: images that somebody may miss; ``asked``: left out by a filter, a limit or the choice of classes;
            ``other``: files and folders that were no images to begin with.
    """

    reason: str
    names: tuple[str, ...]
    kind: SkipKind = "lost"

    def __str__(self) -> str:
        return f"{len(self.names)} left out, {self.reason}: {_first(self.names)}"


@dataclass(frozen=True)
class Manifest:
    """A table of records and the names of its classes.

    Attributes:
        table: Columns ``id`` (str, unique), ``path`` (str, absolute), ``group`` (str: patient, scene), ``split``
            (``train``, ``val``, ``test`` or empty), one float column a class (1, 0, NaN), then any further columns
            (``sex``, ``age``, ``view``, ...). The index is 0..N-1.
        classes: Names of the class columns, in the order of the model's outputs.
        name: Name of the data card, e.g. ``nih_chestxray14``.
        skipped: What was found on the way to this table and is not in it.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    name: str = ""
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        absent = [c for c in (*FIXED, *self.classes) if c not in self.table.columns]
        if absent:
            raise ManifestError(
                f"The manifest has no column {', '.join(absent)}; it has {', '.join(map(str, self.table.columns))}.",
                hint="Add the column, or map it in the source's `columns`.",
            )
        if len(set(self.classes)) != len(self.classes):
            raise ManifestError(f"A class is named twice: {', '.join(self.classes)}.", hint="Name each class once.")
        if not self.table.columns.is_unique:
            twice = self.table.columns[self.table.columns.duplicated()][0]
            raise ManifestError(
                f"Two columns of the manifest are called {twice!r}, one of them may be a class.",
                hint="Give the class or the column another name.",
            )
        if not isinstance(self.table.index, pd.RangeIndex) or self.table.index.start != 0 or self.table.index.step != 1:
            object.__setattr__(self, "table", self.table.reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.table)


def make_manifest(
    ids: Sequence[str],
    paths: Sequence[str],
    groups: Sequence[str],
    classes: Sequence[str],
    targets: npt.ArrayLike,
    *,
    splits: Sequence[str] | None = None,
    extra: pd.DataFrame | None = None,
    name: str = "",
) -> Manifest:
    """A manifest from parallel columns.

    Args:
        ids, paths, groups: One string a record; ``paths`` absolute.
        classes: K names.
        targets: [N, K] of 1, 0, NaN.
        splits: One of ``train``, ``val``, ``test``, empty a record; None: all empty.
        extra: Further columns, N rows.
        name: Name of the data card.
    """
    values = np.asarray(targets, dtype=np.float32).reshape(len(ids), len(classes))
    head = pd.DataFrame(
        {
            "id": pd.Series(ids, dtype="str"),
            "path": pd.Series(paths, dtype="str"),
            "group": pd.Series(groups, dtype="str"),
            "split": pd.Series(list(splits) if splits is not None else [""] * len(ids), dtype="str"),
        }
    )
    parts = [head, pd.DataFrame(values, columns=list(classes))]
    if extra is not None:
        parts.append(extra.reset_index(drop=True))
    return Manifest(pd.concat(parts, axis=1), tuple(classes), name)


def labels(m: Manifest) -> npt.NDArray[np.float32]:
    """The targets, float32 [N, K], NaN where unknown."""
    return m.table[list(m.classes)].to_numpy(dtype=np.float32).reshape(len(m), len(m.classes))


def take(m: Manifest, rows: npt.ArrayLike) -> Manifest:
    """The rows at these positions (integers) or where the mask (bool [N]) is true, in that order."""
    chosen = np.asarray(rows)
    positions = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
    return replace(m, table=m.table.iloc[positions].reset_index(drop=True))


def subset(m: Manifest, split: str) -> Manifest:
    """The rows of one split; may be empty."""
    if split not in SPLITS:
        raise ManifestError(f"Unknown split {split!r}.", hint=f"Allowed: {', '.join(SPLITS[:3])}, or empty.")
    return take(m, m.table["split"].to_numpy(dtype=object) == split)


def with_split(m: Manifest, splits: Sequence[str] | pd.Series | npt.NDArray[Any]) -> Manifest:
    """The same rows with another ``split`` column (N strings, in row order)."""
    values = [str(s) for s in splits]
    if len(values) != len(m):
        raise ManifestError(f"{len(values)} splits for {len(m)} rows.", hint="Give one split a row.")
    return replace(m, table=m.table.assign(split=pd.Series(values, dtype="str", index=m.table.index)))


def without(m: Manifest, rows: npt.ArrayLike, reason: str, kind: SkipKind = "lost") -> Manifest:
    """The manifest without the rows where the mask, bool [N], is true, which go to ``skipped``."""
    mask = np.asarray(rows, dtype=np.bool_)
    if not mask.any():
        return m
    gone = Skipped(reason, tuple(m.table["id"].to_numpy(dtype=object)[mask].tolist()), kind)
    return replace(take(m, ~mask), skipped=(*m.skipped, gone))


def log_skipped(m: Manifest, most: float = 1.0) -> None:
    """Say how much was found and how much is used, and why the rest is not, the first five of each reason by name.

    Args:
        m: The manifest.
        most: Largest share of the images that may be lost, 0..1.

    Raises:
        ManifestError: More are lost.
    """
    reasons: dict[tuple[str, SkipKind], tuple[str, ...]] = {}
    for part in m.skipped:
        key = (part.reason, part.kind)
        reasons[key] = reasons.get(key, ()) + part.names
    summed = [Skipped(reason, names, kind) for (reason, kind), names in reasons.items()]
    lost = [part for part in summed if part.kind == "lost"]
    found = len(m) + sum(len(part.names) for part in summed if part.kind != "other")
    log.info("%s: %d images found, %d used", m.name, found, len(m))
    for part in summed:
        log.log(logging.WARNING if part.kind == "lost" else logging.INFO, "%s: %s", m.name, part)
    count = sum(len(part.names) for part in lost)
    if count > most * found:
        raise ManifestError(
            f"{m.name}: of {found} images found only {len(m)} can be used: {'; '.join(map(str, lost))}.",
            hint="Correct the data, or allow a larger share with --data.max_lost.",
        )


def write_skipped(m: Manifest, path: Path) -> None:
    """Write what was found and is not used: ``name, reason``, one row each; no file where there is nothing to say."""
    rows = [(name, part.reason) for part in m.skipped for name in part.names]
    if rows:
        write_text(path, pd.DataFrame(rows, columns=["name", "reason"]).to_csv(index=False))


def plain_name(name: str) -> str:
    """A class name without case, blanks, hyphens and underscores: what tells two classes apart."""
    return re.sub(r"[\s_\-]+", "", unicodedata.normalize("NFC", name)).casefold()


def select_classes(m: Manifest, classes: Sequence[str]) -> Manifest:
    """The same rows with these classes in this order; a class that the manifest lacks becomes a column of NaN."""
    values = {c: m.table[c] if c in m.classes else np.full(len(m), np.nan, dtype=np.float32) for c in classes}
    further = [c for c in m.table.columns if c not in FIXED and c not in m.classes and c not in values]
    table = pd.concat([m.table[list(FIXED)], pd.DataFrame(values, index=m.table.index), m.table[further]], axis=1)
    return replace(m, table=table, classes=tuple(classes))


def merge(parts: Sequence[Manifest]) -> Manifest:
    """Several manifests in one: the union of their classes, NaN where a part does not annotate one.

    With more than one part, groups are prefixed by the part's name, since two publishers may number their patients
    alike; ids only where they collide. A column ``source`` names the part. A class that is the same but for case, blanks,
    hyphens and underscores is written as the first part does.
    """
    if not parts:
        raise ManifestError("No source to merge.", hint="List at least one under `data.sources`.")
    if len(parts) == 1:
        return parts[0]
    parts = _same_spelling(parts)
    classes = tuple(dict.fromkeys(c for part in parts for c in part.classes))
    names = _distinct([part.name or "source" for part in parts])
    owners = pd.concat([pd.Series(part.table["id"].unique()) for part in parts], ignore_index=True)
    collide = set(owners[owners.duplicated()])
    tables = []
    for part, name in zip(parts, names, strict=True):
        table = select_classes(part, classes).table
        ids = table["id"].where(~table["id"].isin(collide), name + "/" + table["id"])
        # One data set listed twice (two filters, say) keeps one patient list: the prefix is its name, not its number.
        owner = part.name or "source"
        table = table.assign(id=ids, group=owner + "/" + table["group"], source=owner)
        tables.append(table)
    joined = pd.concat(tables, ignore_index=True)
    further = [c for c in joined.columns if c not in FIXED and c not in classes]
    label = "+".join(dict.fromkeys(part.name for part in parts if part.name))
    skipped = tuple(part for m in parts for part in m.skipped)
    return Manifest(joined[[*FIXED, *classes, *further]], classes, label, skipped)


def _same_spelling(parts: Sequence[Manifest]) -> list[Manifest]:
    spelling: dict[str, str] = {}
    result = []
    for part in parts:
        other = {c: spelling[plain_name(c)] for c in part.classes if spelling.get(plain_name(c), c) != c}
        # A part that has two such classes itself is left for the checks to name.
        other = {c: name for c, name in other.items() if name not in part.classes}
        if other:
            log.info("%s: %s", part.name, ", ".join(f"{c} is {name}" for c, name in other.items()))
            classes = tuple(other.get(c, c) for c in part.classes)
            part = replace(part, table=part.table.rename(columns=other), classes=classes)
        spelling = {plain_name(c): c for c in part.classes} | spelling
        result.append(part)
    return result


def _distinct(names: Sequence[str]) -> list[str]:
    """Names made unique by a running number, so that one data set listed twice stays two sources."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result


def manifest_hash(m: Manifest) -> str:
    """sha256 over ids, groups, splits, classes and labels, in row order; where the files lie plays no part."""
    digest = hashlib.sha256("\x1f".join(m.classes).encode())
    for column in ("id", "group", "split"):
        digest.update(b"\x1e" + "\x1f".join(m.table[column].astype(str)).encode())
    codes = np.nan_to_num(labels(m), nan=2.0).astype(np.uint8)
    digest.update(b"\x1e" + codes.tobytes())
    return digest.hexdigest()


def write_manifest(m: Manifest, path: str | Path) -> Path:
    """Write as ``.csv`` or ``.parquet``, atomically; paths under the file's folder become relative to it.

    Raises:
        ManifestError: The name ends in neither.
    """
    target = Path(path)
    kind = _kind(target)
    base = target.parent.resolve()
    table = m.table.rename(columns={c: LABEL_PREFIX + c for c in m.classes})
    table = table.assign(path=pd.Series([_relative(p, base) for p in m.table["path"]], dtype="str"))
    if kind == "csv":
        write_atomically(target, lambda part: table.to_csv(part, index=False))
    else:
        table.attrs = {}
        write_atomically(target, lambda part: table.to_parquet(part, index=False))
    return target


def read_manifest(path: str | Path, *, name: str = "") -> Manifest:
    """Read what ``write_manifest`` wrote; relative paths are taken from the file's folder.

    Args:
        path: A ``.csv`` or ``.parquet`` file.
        name: Name of the data card; empty: the name of the file's folder.

    Raises:
        ManifestError: No such file, another format, a fixed column missing, or a label that is no number.
    """
    source = Path(path)
    _kind(source)
    if not source.is_file():
        raise ManifestError(f"No manifest at {source}.", hint="Check the path.")
    table = read_table(source, text=(*FIXED, *_TEXT))
    classes = tuple(str(c)[len(LABEL_PREFIX) :] for c in table.columns if str(c).startswith(LABEL_PREFIX))
    values = label_columns(table, [LABEL_PREFIX + c for c in classes], source)
    table = table.rename(columns={LABEL_PREFIX + c: c for c in classes})
    m = Manifest(table, classes, name or source.resolve().parent.name)
    fixed = {c: as_text(m.table[c]) for c in (*FIXED, *_TEXT) if c in m.table}
    base = source.parent.resolve()
    fixed["path"] = pd.Series([local_path(base, p) for p in fixed["path"]], dtype="str")
    return replace(m, table=m.table.assign(**fixed, **dict(zip(classes, values.T, strict=True))))


def _kind(path: Path) -> str:
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("csv", "parquet"):
        raise ManifestError(f"{path}: a manifest is .csv or .parquet.", hint="Change the file's ending.")
    return kind


def _relative(path: str, base: Path) -> str:
    """``path`` from ``base`` where it lies below, else as it is."""
    try:
        return Path(os.path.abspath(path)).relative_to(base).as_posix() if path else ""
    except ValueError:
        return path


# Checks: each returns (problem, hint) pairs, so that a user sees everything at once and not one error a run.


def validate(m: Manifest, *, check_files: bool = True, require_positives: bool = True) -> None:
    """Check everything that can be known before a single image is read.

    Args:
        m: The manifest.
        check_files: Look for every file (by listing folders: about a second for 100,000 files).
        require_positives: A class without a positive in the training split (in the whole table where nothing is split
            yet) is an error.

    Raises:
        ManifestError: All problems found, listed at once: no rows, missing files (counted, first five named), duplicate
            ids, rows without a group, a group in two splits, one file in two splits, an unknown split, a class without
            positives, labels other than 1, 0 and NaN.
    """
    problems = table_problems(m.table, m.classes, SPLITS, require_positives=require_positives)
    if check_files:
        problems += missing_files(m.table["path"])
    raise_problems(m.name, len(m), problems)


def check_splits(m: Manifest) -> None:
    """Raise a ManifestError where a group or a file is in two splits, or a split has an unknown name."""
    raise_problems(m.name, len(m), split_problems(m.table, SPLITS))


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
        *_names(classes),
        *_identity(table),
        *split_problems(table, splits),
        *_labels(table, classes, require_positives=require_positives),
    ]


# A folder with fewer wanted files than this is not listed; its files are looked up one by one.
_FEW = 4


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
    if any("\\" in path or re.search(r"(^|/)[A-Za-z]:(/|$)", path) for path in lost[:100]):
        hint = (
            "These are paths of a Windows machine: write them relative to the table's folder, with / between the parts."
        )
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


def _names(classes: Sequence[str]) -> list[Problem]:
    """Class names that collide with one another or with what the tables use."""
    problems = []
    spelled: dict[str, list[str]] = {}
    for name in classes:
        spelled.setdefault(plain_name(name), []).append(name)
    if alike := [" and ".join(names) for names in spelled.values() if len(names) > 1]:
        hint = "Name one class one way: rename the folder or the label."
        problems.append((f"classes that differ in case, blanks, hyphens or underscores only: {_first(alike)}", hint))
    if taken := [name for name in classes if name.strip().casefold() in RESERVED]:
        hint = f"Call them otherwise; {', '.join(sorted(RESERVED))} are columns of our tables or mean no class."
        problems.append((f"classes with a name that is taken: {_first(taken)}", hint))
    if odd := [repr(name) for name in classes if "|" in name or "\n" in name or not name.strip()]:
        problems.append((f"class names that are empty or hold | or a line break: {_first(odd)}", "Rename them."))
    return problems


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
