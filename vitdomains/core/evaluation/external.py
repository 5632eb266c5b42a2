"""A bundle on data of another place: class names brought together, and its figures there beside those at home."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitdomains.core.bundle import Bundle
from vitdomains.core.data.manifest import Manifest, labels, plain_name, select_classes, take
from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.evaluation.roles import read_report
from vitdomains.core.metrics.calibrate import Kind
from vitdomains.core.metrics.scores import Array, mean_defined
from vitdomains.core.terminal import nearest

SEPARATOR = "|"
"""Stands in ``--class_map`` between classes of the bundle that one label of the data means together."""
COMPARED: Mapping[Kind, tuple[str, ...]] = {
    "multilabel": ("prevalence", "auroc", "sensitivity", "specificity", "ppv", "ece"),
    "singlelabel": ("prevalence", "f1", "precision", "recall"),
}
"""What a class is compared by, here and at home."""


@dataclass(frozen=True)
class ClassNames:
    """Classes that a report is about, and what stands behind each.

    Attributes:
        classes: G names, in the order of the bundle; classes that one label of the data means together are one.
        parts: For each the positions of its classes in the bundle.
        own: The bundle's classes.
        renamed: Label of the data -> class of the report.
        notes: What is to be said about the names.
    """

    classes: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    own: tuple[str, ...]
    renamed: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def scores(self, scores: Array, kind: Kind) -> Array:
        """Probabilities [N, G] of the bundle's [N, K]: those of a single-label task are added, else the highest counts."""
        join = np.sum if kind == "singlelabel" else np.max
        return np.stack([join(scores[:, list(part)], axis=1) for part in self.parts], axis=1)

    def thresholds(self, thresholds: Sequence[float]) -> tuple[float, ...]:
        """G operating points: of classes that are one here the lowest."""
        return tuple(min(thresholds[k] for k in part) for part in self.parts)


def class_names(
    bundle: Bundle, annotated: Sequence[str], class_map: Mapping[str, str] | None = None, asked: Sequence[str] = ()
) -> ClassNames:
    """How the labels of a data set and the classes of a bundle fit together.

    A name is matched as it is, else without regard to case, blanks, hyphens and underscores; ``class_map`` goes first.

    Args:
        bundle: The bundle.
        annotated: Labels of the data set.
        class_map: Label of the data -> class of the bundle, or several joined by ``|`` where the label is coarser.
        asked: Classes of the bundle to measure; empty: all.

    Raises:
        ConfigError: The map or ``asked`` names a label or class that there is not, or a class twice.
        ManifestError: Data and bundle share no class.
    """
    own = {name: k for k, name in enumerate(bundle.classes)}
    members = {label: _members(bundle, label, given) for label, given in (class_map or {}).items()}
    for label in members:
        if label not in annotated:
            close = "".join(f"Did you mean {name}? " for name in nearest(label, list(annotated), 1))
            raise ConfigError(
                f"--class_map names {label!r}, which the data does not label.",
                hint=f"{close}Its labels are {', '.join(annotated[:40])}.",
            )
    joined = {part for part in members.values() if len(part) > 1}
    within = [k for part in joined for k in part]
    if len(set(within)) < len(within) or any(len(part) == 1 and part[0] in within for part in members.values()):
        raise ConfigError("--class_map puts a class of the bundle into two groups.", hint="Put each class into one.")
    parts = [*joined, *((k,) for k in own.values() if k not in within)]
    parts.sort()
    names = {part: SEPARATOR.join(bundle.classes[k] for k in part) for part in parts}
    renamed = {label: names[part] for label, part in members.items()}
    alike = _alike(bundle.classes)
    for label in annotated:
        match = label if label in own else alike.get(plain_name(label), "")
        # Of labels that differ in case alone the one that is spelt as here counts.
        if label not in renamed and match in names.values() and (label == match or match not in annotated):
            renamed[label] = match
    if asked:
        wanted = {k for name in asked for k in _members(bundle, "data.classes", name)}
        renamed = {
            label: name for label, name in renamed.items() if any(wanted & set(p) for p in parts if names[p] == name)
        }
        if bundle.task_kind == "multilabel":
            parts = [part for part in parts if wanted & set(part)]
    classes = tuple(names[part] for part in parts)
    if not set(classes) & set(renamed.values()):
        raise ManifestError(
            f"The data labels none of the bundle's classes ({', '.join(bundle.classes[:20])}).",
            hint=f"Its labels are {', '.join(annotated[:40])}; --class_map says which is which, "
            f"e.g. '{{{annotated[0] if annotated else 'theirs'}: {bundle.classes[0]}}}'.",
        )
    return ClassNames(
        classes, tuple(parts), bundle.classes, renamed, tuple(_notes(bundle, annotated, renamed, classes))
    )


def _alike(classes: Sequence[str]) -> dict[str, str]:
    """Plain name -> class, of those that no other class has too."""
    plain = [plain_name(name) for name in classes]
    return {short: name for short, name in zip(plain, classes, strict=True) if plain.count(short) == 1}


def _members(bundle: Bundle, label: str, given: str) -> tuple[int, ...]:
    """Positions of the classes that a value of the map names."""
    alike, positions = _alike(bundle.classes), set()
    for name in [given] if given in bundle.classes else [part.strip() for part in given.split(SEPARATOR)]:
        found = name if name in bundle.classes else alike.get(plain_name(name))
        if found is None:
            close = "".join(f"Did you mean {near}? " for near in nearest(name, list(bundle.classes), 1))
            raise ConfigError(
                f"{label}: the bundle has no class {name!r}.", hint=f"{close}It has {', '.join(bundle.classes[:40])}."
            )
        positions.add(bundle.classes.index(found))
    return tuple(sorted(positions))


def _notes(bundle: Bundle, annotated: Sequence[str], renamed: Mapping[str, str], classes: Sequence[str]) -> list[str]:
    behind: dict[str, list[str]] = {}
    for label, name in renamed.items():
        behind.setdefault(name, []).append(label)
    how = "added" if bundle.task_kind == "singlelabel" else "taken as the highest of them, at the lowest threshold"
    notes = []
    for name in classes:
        found = behind.get(name, [])
        if name not in bundle.classes and found:
            parts = name.replace(SEPARATOR, ", ")
            notes.append(f"Coarser here: {' and '.join(found)} means {parts}; their probabilities are {how}.")
        elif len(found) > 1:
            notes.append(f"Finer here: {', '.join(found)} together count as {name}.")
        elif found and plain_name(found[0]) != plain_name(name):
            notes.append(f"Called otherwise here: {found[0]} is {name}.")
    left = [label for label in annotated if renamed.get(label) not in classes]
    for label in left:
        words = [w for w in bundle.classes if renamed.get(label) is None and _shares_words(label, w)]
        if words:
            notes.append(
                f"Another granularity? The label {label} is not used; the bundle has {', '.join(words[:3])}. "
                "--class_map can say what it means."
            )
    if left:
        more = f" and {len(left) - 10} more" if len(left) > 10 else ""
        notes.append(f"Labels that the bundle does not know and that are left out: {', '.join(left[:10])}{more}.")
    return notes


def _shares_words(label: str, name: str) -> bool:
    """Whether one of two names holds the words of the other, as Nodule/Mass does those of Nodule."""
    one, other = (
        {w for w in "".join(c if c.isalnum() else " " for c in s.casefold()).split() if len(w) > 2}
        for s in (label, name)
    )
    return bool(one and other) and (one <= other or other <= one)


def renamed_manifest(m: Manifest, names: ClassNames, kind: Kind) -> tuple[Manifest, npt.NDArray[np.bool_]]:
    """The rows with a known label under the names of the report, and which they are, [N].

    A class that the data does not label is NaN. Labels that mean one class together are positive where one is, negative where
    all are, else unknown.
    """
    values: dict[str, npt.NDArray[np.float32]] = {}
    own = dict(zip(m.classes, labels(m).T, strict=True))
    for name in names.classes:
        columns = [own[label] for label, target in names.renamed.items() if target == name]
        if columns:
            stacked = np.stack(columns)
            negative = np.where(np.isnan(stacked).any(axis=0), np.nan, 0.0)
            values[name] = np.where((stacked == 1).any(axis=0), 1.0, negative).astype(np.float32)
    table = m.table.drop(columns=[c for c in m.classes if c in m.table]).assign(**values)
    found = select_classes(Manifest(table, tuple(values), m.name), names.classes)
    targets = labels(found)
    known = (targets == 1).any(axis=1) if kind == "singlelabel" else ~np.isnan(targets).all(axis=1)
    rows = np.asarray(known, dtype=np.bool_)
    return take(found, rows), rows


def home_figures(bundle: Bundle, report: Mapping[str, Any]) -> dict[str, Any]:
    """The bundle's figures on its own held-out images, for the classes that a report has too; empty where there are none.

    ``classes.NAME.METRIC`` and ``overall.METRIC`` are ``{value, low, high}`` as in a report, prevalence a share; ``macro`` are
    means over the classes that both reports average.
    """
    try:
        home = read_report(bundle.path / "report")
    except (OSError, ValueError):
        return {}
    classes = {
        name: _with_prevalence(cells, home) for name, cells in home["classes"].items() if name in report["classes"]
    }
    both = [name for name in report["averaged_classes"] if name in home["averaged_classes"] and name in classes]
    names = [n for n in COMPARED[home["kind"]] if n != "prevalence"]
    macro = {}
    for source, found in (("home", home), ("here", report)):
        values = {n: np.array([_value(found["classes"][c].get(n)) for c in both], dtype=np.float64) for n in names}
        macro[source] = {n: _finite(float(mean_defined(v))) if len(v) else None for n, v in values.items()}
    return {"n": home["n"], "groups": home["groups"], "classes": classes, "overall": home.get("overall", {}), "both": both,
            "macro": macro["home"], "macro_here": macro["here"]}  # fmt: skip


def _with_prevalence(cells: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    n = cells["n"] if report["kind"] == "multilabel" else report["n"]
    return {**cells, "prevalence": cells["n_positive"] / n if n else None}


def _value(cell: Mapping[str, float | None] | None) -> float:
    value = None if cell is None else cell["value"]
    return float("nan") if value is None else value


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
