"""From the ``data`` section of a config to one checked manifest: read, merge, choose classes, split, validate."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.schema import Data, Source
from vitdomains.core.data import manifest
from vitdomains.core.data.manifest import (
    LABEL_PREFIX,
    Manifest,
    make_manifest,
    merge,
    read_manifest,
    select_classes,
    take,
    validate,
    with_split,
)
from vitdomains.core.data.manifest import labels as targets_of
from vitdomains.core.data.sources import complete_splits, keep_rows, limited, source_root
from vitdomains.core.data.tables import label_columns, read_table, require_columns
from vitdomains.core.errors import ManifestError
from vitdomains.cxr.data import labels, publishers
from vitdomains.cxr.data.columns import patient_columns
from vitdomains.cxr.data.publishers import boxes

__all__ = ["SOURCES", "boxes", "build_manifest", "csv_source", "phantoms"]

log = logging.getLogger(__name__)

_N_PHANTOMS = 600
_PHANTOM_ROOT = "runs/phantoms"


def csv_source(source: Source, root: Path) -> Manifest:
    """Any table that the config describes: ``columns`` maps id, path, group, split, labels, sex, age, view.

    Classes come, in this order of preference, from one ``labels`` column (names joined by ``separator``); from the keys
    of ``columns`` that are findings; from columns that start with ``label:``; from columns named like a finding; from
    the columns, not mapped to anything, that hold nothing but 1, 0, -1 and blanks.
    """
    if not source.csv:
        raise ManifestError("A `csv` source needs the name of its table.", hint="Set `csv`, relative to its root.")
    path = root / source.csv
    if not path.is_file():
        raise ManifestError(f"No table at {path}.", hint="Check the source's `root` and `csv`.")
    mapped = {**{key: key for key in ("id", "path", "group", "split", "sex", "age", "view")}, **source.columns}
    table = read_table(path, (), text=[mapped[k] for k in ("id", "path", "group", "split")])
    require_columns(table, source.columns.values(), path)
    require_columns(table, [mapped["path"]], path)
    files = table[mapped["path"]].fillna("").astype("str")
    base = (root / source.images).absolute()
    ids = table[mapped["id"]].fillna("") if mapped["id"] in table.columns else files
    if mapped["group"] in table.columns:
        group = table[mapped["group"]].fillna("")
    else:
        log.warning(
            "%s: no group column, so each image counts as a patient of its own; map `group` if that is wrong", path
        )
        group = ids
    classes, values = _csv_labels(source, table, set(mapped.values()), path)
    values = labels.apply_policies(values, classes, source.uncertain, source.blank)
    extra = patient_columns(table, mapped["sex"], mapped["age"], mapped["view"])
    own = {"id", "path", "group", "split", "labels", "sex", "age", "view"}
    for key, column in source.columns.items():
        if key not in own and labels.canonical(key) is None:
            extra[key] = table[column]
    splits = table[mapped["split"]].fillna("").tolist() if mapped["split"] in table.columns else None
    paths = [os.path.normpath(base / f) if f else "" for f in files]
    name = root.absolute().name or "csv"
    return make_manifest(ids.tolist(), paths, group.tolist(), classes, values, splits=splits, extra=extra, name=name)


def _csv_labels(
    source: Source, table: pd.DataFrame, mapped: set[str], path: Path
) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """Class names and values [N, K] of 1, 0, -1, NaN."""
    if "labels" in source.columns:
        cells = table[source.columns["labels"]].fillna("").astype("str")
        listed = [[labels.canonical(x) or x.strip() for x in c.split(source.separator) if x.strip()] for c in cells]
        seen = {x for row in listed for x in row} - {labels.NO_FINDING}
        classes = _in_order(seen)
        values = labels.from_lists(listed, {c: frozenset({c}) for c in classes}, {})
        values[[not row for row in listed]] = np.nan
        return classes, values
    chosen = {c: column for key, column in source.columns.items() if (c := labels.canonical(key))}
    free = [str(c) for c in table.columns if c not in mapped]
    chosen = chosen or {c.removeprefix(LABEL_PREFIX): c for c in free if c.startswith(LABEL_PREFIX)}
    chosen = chosen or {found: c for c in free if (found := labels.canonical(c))}
    chosen = chosen or {c: c for c in free if _is_label(table[c])}
    if not chosen:
        raise ManifestError(
            f"{path} has no class column; it has {', '.join(map(str, table.columns))}.",
            hint="Map a `labels` column, or each class as `Effusion: its_column`, in the source's `columns`.",
        )
    classes = _in_order(chosen)
    return classes, label_columns(table, [chosen[c] for c in classes], path)


def _is_label(column: pd.Series) -> bool:
    if not pd.api.types.is_numeric_dtype(column):
        return False
    known = column.dropna()
    return len(known) > 0 and bool(known.isin([0, 1, -1]).all())


def _in_order(names: Sequence[str] | set[str] | dict[str, str]) -> tuple[str, ...]:
    """Findings in the order of the label space, then others by name."""
    space = (*labels.FINDINGS, labels.NO_FINDING)
    return (*(c for c in space if c in names), *sorted(c for c in names if c not in space))


def phantoms(source: Source, root: Path) -> Manifest:
    """Films drawn by ``cxr.phantom``, made under ``root`` unless they are there; ``limit`` is how many (0: 600)."""
    # The drawing code takes longer to import than all other sources together; most runs need none of it.
    from vitdomains.cxr.phantoms.make import make_phantoms

    def progress(done: int, total: int) -> None:
        if done % (total // 10 or 1) == 0:
            log.info("drawing phantoms: %d of %d films", done, total)

    folder = make_phantoms(root, n_films=source.limit or _N_PHANTOMS, progress=progress)
    made = read_manifest(folder / "manifest.csv", name="phantoms")
    masks = [str(folder.resolve() / "masks" / f"{film}.png") for film in made.table["id"]]
    return replace(made, table=made.table.assign(mask=masks))


def read_regions(path: str) -> Mapping[str, npt.NDArray[np.bool_]]:
    """Where the findings of a phantom film lie, finding -> bool [H, W]; ``path`` is that of its mask."""
    from vitdomains.cxr.phantoms.make import read_masks

    return read_masks(Path(path).parents[1], Path(path).stem)


SOURCES: dict[str, Callable[[Source, Path], Manifest]] = {
    "phantoms": phantoms,
    "nih": publishers.nih,
    "chexpert": publishers.chexpert,
    "padchest": publishers.padchest,
    "vindr": publishers.vindr,
    "mimic": publishers.mimic,
    "csv": csv_source,
}
"""Reader by name. Each takes the source and its resolved root and opens no image."""

_OFFICIAL = ("nih", "chexpert", "vindr", "mimic")
_COLUMN = ("csv", "phantoms")


def build_manifest(data: Data, *, check_files: bool = True, require_positives: bool = True) -> Manifest:
    """The manifest of a config: sources -> keep, limit -> merge -> classes -> split -> checks.

    Args:
        data: The config's ``data``; without sources: the phantoms.
        check_files: Look whether every file is there.
        require_positives: A class that ``data.classes`` names needs a positive in training.

    Returns:
        A validated manifest, every row in train, val or test, none without a known label.

    Raises:
        ManifestError: A source is not there, not what it claims, or inconsistent.
        ConfigError: An unknown policy or impossible fractions.
    """
    sources = data.sources or [Source(name="phantoms")]
    joined = merge([_read(source, data) for source in sources])
    chosen = _explicit_classes(joined, data.classes) if data.classes else joined
    m = complete_splits(chosen, data)
    if not data.classes:
        m = _drop_rare_classes(m, data.min_positives)
    known = ~np.isnan(targets_of(m)).all(axis=1)
    if not known.all():
        log.info("%d of %d images have no known label of any class and are left out", int((~known).sum()), len(m))
        m = take(m, known)
    validate(m, check_files=check_files, require_positives=require_positives and bool(data.classes))
    return m


def _read(source: Source, data: Data) -> Manifest:
    reader = SOURCES.get(source.name)
    if reader is None:
        near = difflib.get_close_matches(source.name, SOURCES, n=1)
        guess = f"Did you mean {near[0]}? " if near else ""
        raise ManifestError(f"Unknown source {source.name!r}.", hint=f"{guess}Allowed: {', '.join(SOURCES)}.")
    m = reader(source, _root(source, data))
    wanted = {"official": _OFFICIAL, "column": _COLUMN}.get(data.split)
    if wanted is not None and (source.name not in wanted or not (m.table["split"] != "").any()):
        raise ManifestError(
            f"`data.split` is {data.split}, but the source {source.name} ({m.name}) has no such split.",
            hint="Use `data.split: auto` or `grouped`, or add the publisher's lists (csv: map `split`).",
        )
    if data.split == "grouped":
        m = with_split(m, [""] * len(m))
    m = keep_rows(m, source.keep)
    if source.limit > 0 and source.name != "phantoms":
        m = limited(m, source.limit, data.split_seed)
    log.info("%s: %d images, %d groups", m.name, len(m), m.table["group"].nunique())
    return m


def _root(source: Source, data: Data) -> Path:
    """The source's folder; phantoms alone may have a root that does not exist yet."""
    if source.name == "phantoms":
        return Path(data.root, source.root) if data.root or source.root else Path(_PHANTOM_ROOT)
    return source_root(source, data)


def _explicit_classes(m: Manifest, names: Sequence[str]) -> Manifest:
    classes = labels.resolve(names, m.classes)
    absent = [c for c in classes if c not in m.classes]
    if absent:
        raise ManifestError(
            f"No source annotates {', '.join(absent)}.",
            hint=f"Choose from {', '.join(_in_order(set(m.classes)))}, or add a source.",
        )
    return select_classes(m, classes)


def _drop_rare_classes(m: Manifest, least: int) -> Manifest:
    """Without the classes that have fewer than ``least`` positives in training, and without No_Finding."""
    m = select_classes(m, [c for c in _in_order(set(m.classes)) if c != labels.NO_FINDING])
    splits = m.table["split"].to_numpy(dtype=object)
    rare = {m.classes[k] for k in manifest.classes_without_positives(splits, targets_of(m), max(1, least))}
    if rare:
        log.warning(
            "left out, fewer than %d positives in training: %s",
            max(1, least),
            ", ".join(c for c in m.classes if c in rare),
        )
    kept = [c for c in m.classes if c not in rare]
    if not kept:
        raise ManifestError(
            f"No class has {max(1, least)} positives in training.",
            hint="Lower `data.min_positives`, raise `limit`, or check the labels.",
        )
    return select_classes(m, kept)
