"""The sources of chest films: published releases, the user's own tables, and drawn phantoms."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.schema import Data, Source
from vitdomains.core.data import sources
from vitdomains.core.data.manifest import Manifest, read_manifest, select_classes
from vitdomains.core.data.sources import DomainSources, Labels, Reader, listed_labels, prefixed_labels, source_root
from vitdomains.core.data.tables import label_columns
from vitdomains.core.errors import ManifestError
from vitdomains.cxr.data import labels, publishers
from vitdomains.cxr.data.columns import patient_columns

log = logging.getLogger(__name__)

_N_PHANTOMS = 600
_PHANTOM_ROOT = "runs/phantoms"
_FACTS = ("sex", "age", "view")


def csv_source(source: Source, root: Path) -> Manifest:
    """Any table that the config describes: ``columns`` maps id, path, group, split, labels, sex, age, view.

    Classes come, in this order of preference, from one ``labels`` column (names joined by ``separator``); from the keys
    of ``columns`` that are findings; from columns that start with ``label:``; from columns named like a finding; from
    the columns, not mapped to anything, that hold nothing but 1, 0, -1 and blanks.
    """

    def further(table: pd.DataFrame, mapped: Mapping[str, str], classes: Collection[str]) -> pd.DataFrame:
        extra = patient_columns(table, *(mapped[key] for key in _FACTS))
        own = {"id", "path", "group", "split", "labels", *_FACTS}
        names = {key: column for key, column in source.columns.items() if key not in own and not labels.canonical(key)}
        return extra.assign(**{key: table[column] for key, column in names.items()})

    return sources.csv_source(source, root, _csv_labels, further, _FACTS)


def _csv_labels(source: Source, table: pd.DataFrame, mapped: Collection[str], path: Path) -> Labels:
    classes, values = _csv_values(source, table, mapped, path)
    return classes, labels.apply_policies(values, classes, source.uncertain, source.blank)


def _csv_values(source: Source, table: pd.DataFrame, mapped: Collection[str], path: Path) -> Labels:
    """Class names and values [N, K] of 1, 0, -1, NaN."""
    if "labels" in source.columns:
        cells = table[source.columns["labels"]]
        names, listed = listed_labels(cells, source.separator, lambda name: labels.canonical(name) or name)
        classes = _in_order({*names} - {labels.NO_FINDING})
        values = labels.from_lists(listed, {c: frozenset({c}) for c in classes}, {})
        values[[not row for row in listed]] = np.nan
        return classes, values
    chosen = {c: column for key, column in source.columns.items() if (c := labels.canonical(key))}
    free = [str(c) for c in table.columns if c not in mapped]
    if not chosen and (prefixed := prefixed_labels(table[free], path)):
        return prefixed
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


def _in_order(names: Collection[str]) -> tuple[str, ...]:
    """Findings in the order of the label space, then others by name."""
    space = (*labels.FINDINGS, labels.NO_FINDING)
    return (*(c for c in space if c in names), *sorted(c for c in names if c not in space))


def phantoms(source: Source, root: Path) -> Manifest:
    """Films drawn by ``cxr.phantoms``, made under ``root`` unless they are there; ``limit`` is how many (0: 600)."""
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


SOURCES: dict[str, Reader] = {
    "phantoms": phantoms,
    "nih": publishers.nih,
    "chexpert": publishers.chexpert,
    "padchest": publishers.padchest,
    "vindr": publishers.vindr,
    "mimic": publishers.mimic,
    "csv": csv_source,
}
"""Reader by name. Each takes the source and its resolved root and opens no image."""


def build_manifest(data: Data, *, check_files: bool = True, require_positives: bool = True) -> Manifest:
    """The manifest of a config, as ``core.data.sources.build_manifest``; without sources: the phantoms.

    Raises:
        ManifestError: As there, or an unknown class.
        ConfigError: An unknown policy or impossible fractions.
    """
    domain = DomainSources(
        SOURCES, "phantoms", "multilabel", root=_root, choose=_chosen, candidates=_candidates,
        given={"official": ("nih", "chexpert", "vindr", "mimic"), "column": ("csv", "phantoms")},
    )  # fmt: skip
    return sources.build_manifest(data, domain, check_files=check_files, require_positives=require_positives)


def _root(source: Source, data: Data) -> Path:
    """The source's folder; phantoms alone may have a root that does not exist yet."""
    if source.name == "phantoms":
        return Path(data.root, source.root) if data.root or source.root else Path(_PHANTOM_ROOT)
    return source_root(source, data)


def _chosen(m: Manifest, names: Sequence[str]) -> Manifest:
    classes = labels.resolve(names, m.classes)
    absent = [c for c in classes if c not in m.classes]
    if absent:
        raise ManifestError(
            f"No source annotates {', '.join(absent)}.",
            hint=f"Choose from {', '.join(_in_order(set(m.classes)))}, or add a source.",
        )
    return select_classes(m, classes)


def _candidates(classes: Collection[str]) -> tuple[str, ...]:
    """All but No_Finding, which is a class only where a config names it."""
    return tuple(c for c in _in_order(classes) if c != labels.NO_FINDING)
