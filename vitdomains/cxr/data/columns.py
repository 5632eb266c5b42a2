"""What every reader of a release needs: its tables, its image folders, and patient facts in one spelling."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vitdomains.core.config.schema import Source
from vitdomains.core.errors import ManifestError

log = logging.getLogger(__name__)

AGE_BANDS = ("0-17", "18-39", "40-59", "60-79", "80+")
_AGE_EDGES = (18.0, 40.0, 60.0, 80.0)
_OLDEST = 120.0
_AGE_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

_VIEWS = {
    "PA": "PA", "POSTEROANTERIOR": "PA", "AP": "AP", "ANTEROPOSTERIOR": "AP", "AP_HORIZONTAL": "AP", "AP AXIAL": "AP",
    "AP LLD": "AP", "AP RLD": "AP", "PA LLD": "PA", "PA RLD": "PA", "L": "LATERAL", "LL": "LATERAL", "RL": "LATERAL",
    "LATERAL": "LATERAL", "LLD": "LATERAL", "LEFT LATERAL": "LATERAL",
}  # fmt: skip


def image_folders(root: Path, source: Source, patterns: Sequence[str]) -> list[Path]:
    """The folders that may hold a release's images: ``source.images`` alone, or those that match the patterns
    (an empty pattern is the root itself).

    Raises:
        ManifestError: There is none.
    """
    if source.images:
        folders = [root / source.images]
        folders = [f for f in folders if f.is_dir()]
    else:
        folders = [
            f for pattern in patterns for f in _numbered(root.glob(pattern) if pattern else [root]) if f.is_dir()
        ]
    if not folders:
        wanted = source.images or ", ".join(p for p in patterns if p)
        raise ManifestError(
            f"No image folder in {root}; looked for {wanted}.",
            hint="Unpack the images there, or name their folder in the source's `images`.",
        )
    return folders


def locate(folders: Sequence[Path], names: Iterable[str]) -> list[str]:
    """The full path of each image name, found by listing the folders once (no look-up per file).

    An image that was converted to another format counts (``a.png`` for ``a.dicom``). A name that is nowhere gets the
    path that it would have in the first folder, for the manifest's checks to report.
    """
    present: dict[str, str] = {}
    by_stem: dict[str, str] = {}
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                present.setdefault(entry.name, entry.path)
                by_stem.setdefault(os.path.splitext(entry.name)[0], entry.path)
    base = str(folders[0].absolute())
    result = []
    for name in names:
        found = present.get(name) or by_stem.get(os.path.splitext(name)[0]) or by_stem.get(name)
        result.append(os.path.abspath(found) if found else os.path.join(base, name))
    return result


def sex(values: pd.Series) -> pd.Series:
    """``F``, ``M`` or empty."""
    first = values.fillna("").astype("str").str.strip().str.upper().str[:1]
    return first.where(first.isin(["F", "M"]), "").astype("str")


def age(values: pd.Series) -> pd.Series:
    """Years as float; DICOM's ``058Y``, ``013M``, ``002W``, ``005D`` are understood; beyond 0..120 is NaN."""
    if pd.api.types.is_numeric_dtype(values):
        years = values.astype(np.float64)
    else:
        parts = values.fillna("").astype("str").str.strip().str.upper().str.extract(r"^(\d+(?:\.\d+)?)([YMWD]?)$")
        years = pd.to_numeric(parts[0], errors="coerce").astype(np.float64)
        years = years * parts[1].map(_AGE_UNITS).astype(np.float64).fillna(1.0)
    return years.where(years.between(0, _OLDEST))


def age_band(years: pd.Series) -> pd.Series:
    """One of ``AGE_BANDS``, or empty where the age is unknown."""
    values = years.to_numpy(dtype=np.float64)
    bands = np.array(AGE_BANDS, dtype=object)[np.digitize(np.nan_to_num(values), _AGE_EDGES)]
    return pd.Series(np.where(np.isnan(values), "", bands), index=years.index, dtype="str")


def view(values: pd.Series) -> pd.Series:
    """``PA``, ``AP``, ``LATERAL`` or empty."""
    upper = values.fillna("").astype("str").str.strip().str.upper()
    return upper.map(_VIEWS).fillna("").astype("str")


def patient_columns(
    table: pd.DataFrame, sexes: str = "", years: str = "", views: str = "", *, index: pd.Index | None = None
) -> pd.DataFrame:
    """``sex``, ``age``, ``age_band`` and ``view`` from the named columns, each where the table has it."""
    extra = pd.DataFrame(index=table.index if index is None else index)
    if sexes in table.columns:
        extra["sex"] = sex(table[sexes])
    if years in table.columns:
        extra["age"] = age(table[years])
        extra["age_band"] = age_band(extra["age"])
    if views in table.columns:
        extra["view"] = view(table[views])
    return extra


def size_columns(table: pd.DataFrame, columns: str, rows: str) -> pd.DataFrame:
    """``width`` and ``height`` of the original image in pixels, NaN where unknown, from two columns; none without both."""
    if columns not in table.columns or rows not in table.columns:
        return pd.DataFrame(index=table.index)
    sizes = {
        "width": pd.to_numeric(table[columns], errors="coerce"),
        "height": pd.to_numeric(table[rows], errors="coerce"),
    }
    return pd.DataFrame({name: size.astype(np.float64).where(size > 0) for name, size in sizes.items()})


def _numbered(folders: Iterable[Path]) -> list[Path]:
    """Sorted as people count: 2 before 10."""
    return sorted(folders, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", str(p))])
