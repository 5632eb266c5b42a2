"""Columns of a release in one spelling: sex, age, view and size of a film, from tables and DICOM headers; image folders."""

from __future__ import annotations

import bisect
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vitdomains.core.config.schema import Source
from vitdomains.core.data.manifest import Skipped
from vitdomains.core.data.tables import as_text
from vitdomains.core.errors import ManifestError

AGE_BANDS = ("0-17", "18-39", "40-59", "60-79", "80+")
_AGE_EDGES = (18.0, 40.0, 60.0, 80.0)
_OLDEST = 120.0
_AGE_UNITS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

_VIEWS = {
    "POSTEROANTERIOR": "PA", "PA LLD": "PA", "PA RLD": "PA",
    "ANTEROPOSTERIOR": "AP", "AP_HORIZONTAL": "AP", "AP AXIAL": "AP", "AP LLD": "AP", "AP RLD": "AP",
    **dict.fromkeys(("L", "R", "LL", "RL", "LAT", "LLAT", "RLAT", "LEFT LATERAL", "RIGHT LATERAL"), "LATERAL"),
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


def named_rows(table: pd.DataFrame, key: str, path: Path) -> tuple[pd.DataFrame, tuple[Skipped, ...]]:
    """The rows of a release's table that name an image in the column ``key``, and the others as left out."""
    blank = as_text(table[key]).str.strip() == ""
    if not blank.any():
        return table, ()
    names = tuple(f"{path.name}, row {row + 2}" for row in table.index[blank])
    return table[~blank].reset_index(drop=True), (Skipped(f"a row without {key}", names),)


def sex(text: str) -> str:
    """``F``, ``M`` or empty, of any spelling that begins so."""
    first = text.strip().upper()[:1]
    return first if first in ("F", "M") else ""


def years(text: str) -> float:
    """Age in years of a number or of DICOM's ``058Y``, ``013M``, ``002W``, ``005D`` (PS3.5, 6.2); beyond 0..120 NaN."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([YMWD]?)", text.strip().upper())
    value = float(found[1]) * _AGE_UNITS[found[2]] if found else math.nan
    return value if value <= _OLDEST else math.nan


def age_band(value: float) -> str:
    """One of ``AGE_BANDS``, or empty where the age is not known."""
    return "" if math.isnan(value) else AGE_BANDS[bisect.bisect_right(_AGE_EDGES, value)]


def view(text: str) -> str:
    """``PA``, ``AP``, ``LATERAL``, another view as it is written (in capitals), or empty, of a publisher's or DICOM's word."""
    word = text.strip().upper()
    return _VIEWS.get(word, word if word[:1].isalpha() else "")


def patient_columns(table: pd.DataFrame, sexes: str = "", ages: str = "", views: str = "") -> pd.DataFrame:
    """``sex``, ``age``, ``age_band`` and ``view`` from the named columns, each where the table has it."""
    extra = pd.DataFrame(index=table.index)
    if sexes in table.columns:
        extra["sex"] = as_text(table[sexes]).map(sex).astype("str")
    if ages in table.columns:
        extra["age"] = as_text(table[ages]).map(years).astype(np.float64)
        extra["age_band"] = extra["age"].map(age_band).astype("str")
    if views in table.columns:
        extra["view"] = as_text(table[views]).map(view).astype("str")
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
