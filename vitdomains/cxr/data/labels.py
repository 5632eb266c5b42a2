"""One label space for chest films: canonical findings, what each publisher calls them, and what its silence means.

The rule behind every map here: a publisher's label may make a finding positive (1), negative (0) or unknown (NaN).
Where its vocabulary is coarser than ours ("Nodule/Mass") or only hints at a finding ("COPD signs" for Emphysema), the
finding is unknown, never guessed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vitdomains.core.errors import ConfigError, ManifestError

NIH: tuple[str, ...] = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
"""The 14 findings of NIH ChestX-ray14 (Wang et al. 2017), in the order of its paper; its films are annotated for no more."""

NO_FINDING = "No_Finding"
"""Not a finding but a statement about all of them: a class only where a config asks for it by name."""

CHEXPERT: tuple[str, ...] = (
    NO_FINDING, "Enlarged_Cardiomediastinum", "Cardiomegaly", "Lung_Opacity", "Lung_Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Effusion", "Pleural_Other", "Fracture", "Support_Devices",
)  # fmt: skip
"""The 14 observations of CheXpert (Irvin et al. 2019) in its column order, also used by MIMIC-CXR-JPG."""

FINDINGS: tuple[str, ...] = NIH + tuple(c for c in CHEXPERT if c not in NIH and c != NO_FINDING)
"""The label space: the 14 of NIH, then the six that only CheXpert has. A finding that neither annotates is added behind them."""

ALIASES: dict[str, str] = {
    "pleural effusion": "Effusion",
    "infiltrate": "Infiltration",
    "infiltrates": "Infiltration",
    "pulmonary fibrosis": "Fibrosis",
    "pulmonary edema": "Edema",
    "oedema": "Edema",
    "pulmonary mass": "Mass",
    "lung mass": "Mass",
    "lung nodule": "Nodule",
    "hiatal hernia": "Hernia",
    "airspace opacity": "Lung_Opacity",
    "lung opacities": "Lung_Opacity",
    "normal": NO_FINDING,
    "collapse": "Atelectasis",
}
"""Other names of a finding, in lower case with blanks; underscores, hyphens and case never matter."""

POLICIES = ("ignore", "zeros", "ones")


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", name).strip().lower()


_CANONICAL = {_plain(c): c for c in (*FINDINGS, NO_FINDING)} | ALIASES


def canonical(name: str) -> str | None:
    """The canonical finding behind a name, e.g. ``Pleural Effusion`` -> ``Effusion``; None where there is none."""
    return _CANONICAL.get(_plain(name))


def resolve(names: Iterable[str], known: Sequence[str] = ()) -> tuple[str, ...]:
    """Class names as a config gives them, made canonical.

    Args:
        names: What the user wrote; aliases and other spellings are understood.
        known: Further names that are allowed as they are (classes of a user's own table).

    Raises:
        ManifestError: A name is neither; the nearest known one is suggested. Or two names mean the same finding.
    """
    result = []
    for name in names:
        found = name if name in known else canonical(name)
        if found is None:
            allowed = tuple(dict.fromkeys((*known, *FINDINGS, NO_FINDING)))
            near = difflib.get_close_matches(_plain(name), [_plain(a) for a in allowed], n=1)
            guess = next((a for a in allowed if near and _plain(a) == near[0]), "")
            hint = f"Did you mean {guess}? " if guess else ""
            raise ManifestError(f"Unknown class {name!r}.", hint=f"{hint}Known: {', '.join(allowed)}.")
        result.append(found)
    twice = sorted({c for c in result if result.count(c) > 1})
    if twice:
        raise ManifestError(f"`data.classes` names {', '.join(twice)} twice.", hint="Name each class once.")
    return tuple(result)


def apply_policies(
    values: npt.NDArray[np.float32], classes: Sequence[str], uncertain: str | Mapping[str, str], blank: str
) -> npt.NDArray[np.float32]:
    """Uncertain (-1) and blank labels turned into 1, 0 or NaN (the U-Ignore, U-Zeros, U-Ones of Irvin et al. 2019).

    Args:
        values: [N, K] of 1, 0, -1, NaN.
        classes: K canonical names.
        uncertain: ``ignore``, ``zeros`` or ``ones``; or finding -> policy, where a finding not named is ignored.
        blank: ``unknown`` or ``negative``, for NaN.

    Returns:
        [N, K] of 1, 0, NaN; other values pass through for the manifest's checks to find.

    Raises:
        ConfigError: An unknown policy.
        ManifestError: A policy for an unknown finding.
    """
    if isinstance(uncertain, str):
        policies = dict.fromkeys(classes, uncertain)
    else:
        policies = dict(zip(resolve(uncertain, classes), uncertain.values(), strict=True))
    for policy in policies.values():
        if policy not in POLICIES:
            raise ConfigError(f"`uncertain` is {policy!r}.", hint=f"Allowed: {', '.join(POLICIES)}.")
    result = values.astype(np.float32, copy=True)
    if blank == "negative":
        result[np.isnan(result)] = 0.0
    fill = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}
    for k, name in enumerate(classes):
        result[values[:, k] == -1, k] = fill[policies.get(name, "ignore")]
    return result


def no_finding_closure(values: npt.NDArray[np.float32], classes: Sequence[str]) -> npt.NDArray[np.float32]:
    """What CheXpert's ``No Finding`` says about the blanks beside it.

    The labeler sets it where no pathology is positive or uncertain (Irvin et al. 2019), so a blank pathology in such a
    row is negative; support devices may still be there and stay unknown. In turn a positive pathology makes a blank
    ``No Finding`` negative.

    Args:
        values: [N, K] of 1, 0, -1, NaN, before any policy.
        classes: K canonical names.
    """
    if NO_FINDING not in classes:
        return values
    result = values.copy()
    own = classes.index(NO_FINDING)
    pathology = np.array([c not in (NO_FINDING, "Support_Devices") for c in classes])
    clear = result[:, own] == 1
    result[np.isnan(result) & clear[:, None] & pathology] = 0.0
    ill = (result[:, pathology] == 1).any(axis=1)
    result[np.isnan(result[:, own]) & ill, own] = 0.0
    return result


def from_lists(
    labels: Sequence[Iterable[str]], positive: Mapping[str, frozenset[str]], unsure: Mapping[str, frozenset[str]]
) -> npt.NDArray[np.float32]:
    """Targets from lists of a publisher's labels.

    Args:
        labels: One list an image, N of them; what is not listed is negative.
        positive: Finding -> labels that assert it, K findings.
        unsure: Finding -> labels that leave it open, where none asserts it.

    Returns:
        [N, K] of 1, 0, NaN.
    """
    asserts: dict[str, list[int]] = {}
    opens: dict[str, list[int]] = {}
    for k, finding in enumerate(positive):
        for label in positive[finding]:
            asserts.setdefault(label, []).append(k)
        for label in unsure.get(finding, ()):
            opens.setdefault(label, []).append(k)
    result = np.zeros((len(labels), len(positive)), dtype=np.float32)
    for row, listed in zip(result, labels, strict=True):
        for label in listed:
            for k in opens.get(label, ()):
                if row[k] == 0:
                    row[k] = np.nan
            for k in asserts.get(label, ()):
                row[k] = 1.0
    return result
