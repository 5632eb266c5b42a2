"""From the ``data`` section of a config to one checked manifest: read the sources, merge, choose classes, split, validate.

A domain gives its readers and what it calls classes. The readers that all have are here: the user's own CSV, class folders,
and the manifest that ``tile`` and ``student`` write.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.schema import Data, Source
from vitdomains.core.data.endings import RASTERS
from vitdomains.core.data.folders import SPLIT_FOLDERS, class_folders
from vitdomains.core.data.manifest import (
    LABEL_PREFIX,
    Manifest,
    check_splits,
    classes_without_positives,
    labels,
    log_skipped,
    make_manifest,
    merge,
    plain_name,
    read_manifest,
    select_classes,
    take,
    validate,
    with_split,
    without,
)
from vitdomains.core.data.splits import grouped_split
from vitdomains.core.data.tables import as_text, label_columns, local_path, read_table, require_columns
from vitdomains.core.errors import ManifestError
from vitdomains.core.terminal import nearest

log = logging.getLogger(__name__)

Reader = Callable[[Source, Path], Manifest]
"""Reads a source from its resolved root; opens no image."""

Labels = tuple[tuple[str, ...], npt.NDArray[np.float32]]
"""Class names, and [N, K] of 1, 0, -1 (uncertain), NaN (unknown)."""


def source_root(source: Source, data: Data) -> Path:
    """The folder of a source.

    Raises:
        ManifestError: None is given, or it is no folder.
    """
    if not data.root and not source.root:
        raise ManifestError(
            f"The source {source.name} has no root.", hint="Say where the data set lies: --data.root FOLDER."
        )
    root = Path(data.root, source.root).expanduser()
    if not root.is_dir():
        raise ManifestError(
            f"The root of the source {source.name}, {root}, is no folder.",
            hint="Set --data.root to where the data set lies; data_cards/ says how to get it.",
        )
    return root


def tiles(source: Source, root: Path) -> Manifest:
    """What ``tile`` or ``student`` wrote: ``manifest.csv`` (or ``csv`` of the source, .csv or .parquet) under the root.

    Raises:
        ManifestError: It is not there.
    """
    return read_manifest(root / (source.csv or "manifest.csv"), name=root.absolute().name)


def folders(source: Source, root: Path) -> Manifest:
    """Any folder (``images`` of the source, else the root) whose sub-folders are classes, below train, val and test or not.

    Raises:
        ManifestError: There are fewer than two classes, or no image in them.
    """
    return class_folders(root / source.images, RASTERS, root.absolute().name)


def csv_source(
    source: Source,
    root: Path,
    labels_of: Callable[[Source, pd.DataFrame, Collection[str], Path], Labels],
    further: Callable[[pd.DataFrame, Mapping[str, str], Collection[str]], pd.DataFrame],
    keys: Sequence[str],
) -> Manifest:
    """Any table that the config describes: ``columns`` maps id, path, group, split, labels and the domain's own keys.

    Args:
        source: Names the table, relative to its root.
        root: Folder of the source.
        labels_of: (source, table, columns that are mapped, path of the table) -> classes and labels.
        further: (table, key -> column, classes) -> further columns of the manifest.
        keys: What the domain maps besides.

    Raises:
        ManifestError: The table or a column is not there.
    """
    if not source.csv:
        raise ManifestError("A `csv` source needs the name of its table.", hint="Set `csv`, relative to its root.")
    path = root / source.csv
    if not path.is_file():
        raise ManifestError(f"No table at {path}.", hint="Check the source's `root` and `csv`.")
    own = ("id", "path", "group", "split", "labels")
    mapped = {**{key: key for key in (*own, *keys)}, **source.columns}
    table = read_table(path, text=[mapped[key] for key in own])
    require_columns(table, [*source.columns.values(), mapped["path"]], path)

    def column(key: str, default: pd.Series) -> pd.Series:
        return as_text(table[mapped[key]]) if mapped[key] in table else default

    files = column("path", pd.Series())
    ids = column("id", files)
    if mapped["group"] not in table:
        log.warning(
            "%s: no group column: each image counts as a group (a patient, a scene) of its own; map `group`", path
        )
    classes, values = labels_of(source, table, {*mapped.values()}, path)
    base = (root / source.images).absolute()
    m = make_manifest(
        ids.tolist(), [local_path(base, file) for file in files], column("group", ids).tolist(), classes, values,
        splits=[SPLIT_FOLDERS.get(word.strip().lower(), word) for word in column("split", files)]
        if mapped["split"] in table else None,
        extra=further(table, mapped, classes), name=root.absolute().name or "csv",
    )  # fmt: skip
    return without(m, (files.str.strip() == "").to_numpy(dtype=bool), "a row without a path")


def listed_labels(
    cells: pd.Series, separator: str, canonical: Callable[[str], str] = lambda name: name
) -> tuple[list[str], list[list[str]]]:
    """Names in a column of labels, sorted, and the list of each row; none for an empty cell."""
    listed = [[canonical(x.strip()) for x in cell.split(separator) if x.strip()] for cell in as_text(cells)]
    return sorted({name for names in listed for name in names}), listed


def keep_rows(m: Manifest, keep: Mapping[str, Sequence[str]]) -> Manifest:
    """The rows whose column has one of the values, for each column that ``keep`` names.

    Raises:
        ManifestError: There is no such column, or no such row.
    """
    for column, values in keep.items():
        require_columns(m.table, [column], f"The source {m.name}")
        chosen = as_text(m.table[column]).isin([str(v) for v in values]).to_numpy(dtype=bool)
        if not chosen.any():
            raise ManifestError(
                f"No image of {m.name} has {column} in {', '.join(map(str, values))}.",
                hint="Correct the source's `keep`.",
            )
        m = without(m, ~chosen, f"`keep` asks for another {column}", "asked")
    return m


def limited(m: Manifest, limit: int, seed: int) -> Manifest:
    """Whole groups in the order of a seeded shuffle, as many as fit, rows in table order."""
    sizes = m.table.groupby("group", sort=True).size()
    order = sizes.iloc[np.random.default_rng(seed).permutation(len(sizes))]
    fits = order.index[(order.cumsum() <= limit).to_numpy()]
    if not len(fits):
        raise ManifestError(
            f"`limit: {limit}` is less than the {int(order.iloc[0])} images of the first group of {m.name}.",
            hint="Raise the limit.",
        )
    return without(m, ~m.table["group"].isin(fits).to_numpy(dtype=bool), f"beyond `limit: {limit}`", "asked")


def complete_splits(m: Manifest, data: Data) -> Manifest:
    """Fill the split column source by source.

    Where a source gives a test but no validation split (or the reverse), the other is taken by group from its training
    rows.
    """
    check_splits(m)
    owner = m.table["source"] if "source" in m.table.columns else pd.Series("", index=m.table.index)
    splits = m.table["split"].to_numpy(dtype=object).copy()
    for name in owner.unique():
        rows = np.flatnonzero((owner == name).to_numpy())
        given = set(splits[rows])
        if {"val", "test"} - given:
            # Only undecided rows are assigned: offer the training rows for what is missing.
            splits[rows] = np.where(splits[rows] == "train", "", splits[rows])
        part = with_split(take(m, rows), splits[rows])
        full = grouped_split(part, data.val_fraction, data.test_fraction, data.split_seed)
        splits[rows] = full.table["split"].to_numpy(dtype=object)
    return with_split(m, list(splits))


def choose_classes(m: Manifest, names: Sequence[str]) -> Manifest:
    """The classes asked for, in that order and spelling, matched by ``plain_name``.

    A class that no source has is a warning, so that a model can be measured on data with fewer classes than its own.

    Raises:
        ManifestError: No source has any of them.
    """
    spelled = {plain_name(c): c for c in m.classes}
    absent = [name for name in names if plain_name(name) not in spelled]
    if len(absent) == len(names):
        raise ManifestError(
            f"No source has {', '.join(names[:5])}.", hint=f"Its classes are {', '.join(m.classes[:40])}."
        )
    if absent:
        log.warning("no image of %s; the sources have %s", ", ".join(absent), ", ".join(m.classes))
    wanted = {spelled[plain_name(n)]: n for n in names if plain_name(n) in spelled}
    renamed = tuple(wanted.get(c, c) for c in m.classes)
    others = [c for c in renamed if c not in names]
    if others and not absent:
        log.info("%d classes are left out: %s", len(others), ", ".join(others[:10]))
    return select_classes(replace(m, table=m.table.rename(columns=wanted), classes=renamed), names)


def _in_order(classes: Collection[str]) -> tuple[str, ...]:
    return tuple(classes)


@dataclass(frozen=True)
class DomainSources:
    """How a domain reads its data.

    Attributes:
        readers: By the name of the source.
        default: The source of a config that names none.
        task: What ``data.task`` falls back to.
        root: Where a source lies.
        choose: The classes that ``data.classes`` names.
        candidates: Those to learn, in order, where it names none.
        drop_rare: Leave out candidates with fewer positives in training than ``data.min_positives``.
        split: Fills the split column.
        given: For ``data.split`` official and column, the sources that have it; without an entry any that brings splits.
    """

    readers: Mapping[str, Reader]
    default: str
    task: str = "singlelabel"
    root: Callable[[Source, Data], Path] = source_root
    choose: Callable[[Manifest, Sequence[str]], Manifest] = choose_classes
    candidates: Callable[[Collection[str]], Sequence[str]] = _in_order
    drop_rare: bool = True
    split: Callable[[Manifest, Data], Manifest] = complete_splits
    given: Mapping[str, Collection[str]] = field(default_factory=dict)


def build_manifest(
    data: Data, domain: DomainSources, *, check_files: bool = True, require_positives: bool = False
) -> Manifest:
    """The manifest of a config: sources -> keep, limit -> merge -> classes -> split -> checks.

    What was found and is not used is logged and stands in ``Manifest.skipped``.

    Args:
        data: The config's ``data``.
        domain: How the domain reads.
        check_files: Look whether every file is there.
        require_positives: A class that ``data.classes`` names needs a positive in training.

    Returns:
        A validated manifest, every row in train, val or test, none without a known label. For a single-label task every
        row has exactly one class.

    Raises:
        ManifestError: A source is not there, not what it claims, or inconsistent; too many images are lost.
        ConfigError: An unknown policy or impossible fractions.
    """
    single = (data.task or domain.task) == "singlelabel"
    joined = merge([_read(source, data, domain) for source in data.sources or [Source(name=domain.default)]])
    m = _labelled(joined, single)
    if single:
        m = _one_class_each(m)
    if data.classes:
        m = _labelled(domain.choose(m, data.classes), single, "no label of a chosen class", "asked")
    m = domain.split(m, data)
    if not data.classes:
        rare = _without_rare(m, domain, data.min_positives)
        m = _labelled(rare, single, f"of a class with fewer than {data.min_positives} positives in training")
    validate(m, check_files=check_files, require_positives=require_positives and bool(data.classes))
    log_skipped(m, data.max_lost)
    return m


def _read(source: Source, data: Data, domain: DomainSources) -> Manifest:
    reader = domain.readers.get(source.name)
    if reader is None:
        near = nearest(source.name, list(domain.readers), 1)
        guess = f"Did you mean {near[0]}? " if near else ""
        raise ManifestError(f"Unknown source {source.name!r}.", hint=f"{guess}Allowed: {', '.join(domain.readers)}.")
    m = reader(source, domain.root(source, data))
    if data.split in ("official", "column"):
        allowed = domain.given.get(data.split, domain.readers)
        if source.name not in allowed or not (m.table["split"] != "").any():
            raise ManifestError(
                f"`data.split` is {data.split}, but the source {source.name} ({m.name}) has no such split.",
                hint="Use `data.split: auto` or `grouped`, or add the publisher's lists beside the images (csv: map `split`).",
            )
    if data.split in ("grouped", "spatial", "longitude"):
        m = with_split(m, [""] * len(m))
    m = keep_rows(m, source.keep)
    if 0 < source.limit < len(m):
        m = limited(m, source.limit, data.split_seed)
    log.info("%s: %d images, %d groups", m.name, len(m), m.table["group"].nunique())
    return m


def _labelled(m: Manifest, single: bool, why: str = "no known label", kind: Any = "lost") -> Manifest:
    """Without the rows that have no known label; for a single-label task without those of none of the classes."""
    values = labels(m)
    known = (values == 1).any(axis=1) if single else ~np.isnan(values).all(axis=1)
    return without(m, ~known, why, kind)


def _one_class_each(m: Manifest) -> Manifest:
    """A tile of one class is none of the others, those of another source included."""
    targets = labels(m)
    several = (targets == 1).sum(axis=1) > 1
    if several.any():
        first = m.table["id"].iloc[int(np.argmax(several))]
        raise ManifestError(
            f"{int(several.sum())} tiles have more than one class, the first is {first}.",
            hint="Set --data.task multilabel.",
        )
    return replace(m, table=m.table.assign(**dict(zip(m.classes, np.nan_to_num(targets, nan=0.0).T, strict=True))))


def _without_rare(m: Manifest, domain: DomainSources, least: int) -> Manifest:
    """The domain's candidates without those that have fewer than ``least`` positives in training."""
    m = select_classes(m, domain.candidates(m.classes))
    if not domain.drop_rare or not least:  # evaluation asks for all that a data set labels
        return m
    rows = classes_without_positives(m.table["split"].to_numpy(dtype=object), labels(m), least)
    rare = {m.classes[k] for k in rows}
    if rare:
        names = ", ".join(c for c in m.classes if c in rare)
        log.warning("left out, fewer than %d positives in training: %s", least, names)
    if len(rare) == len(m.classes):
        raise ManifestError(
            f"No class has {least} positives in training.",
            hint="Lower `data.min_positives`, raise `limit`, or check the labels.",
        )
    return select_classes(m, [c for c in m.classes if c not in rare])


def prefixed_labels(table: pd.DataFrame, path: Path) -> Labels | None:
    """Classes of the columns that start with ``label:``; None where there are none."""
    columns = [c for c in table.columns if c.startswith(LABEL_PREFIX)]
    if not columns:
        return None
    return tuple(c.removeprefix(LABEL_PREFIX) for c in columns), label_columns(table, columns, path)
