"""Tables as publishers ship them: found, read, and checked for the columns that a reader needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.errors import ManifestError


def find_file(root: Path, named: str, candidates: Sequence[str], what: str) -> Path:
    """The first of the candidate names that the root holds, plain or gzipped; ``named`` (from the config) comes alone.

    Raises:
        ManifestError: None is there; all names that were looked for are listed.
    """
    wanted = (named,) if named else tuple(candidates)
    for name in wanted:
        for variant in (name, f"{name}.gz", name.removesuffix(".gz")):
            if (root / variant).is_file():
                return root / variant
    nearby = sorted(p.name for p in root.iterdir() if p.name.removesuffix(".gz").endswith(".csv"))
    seen = f" It holds {', '.join(nearby[:5])}." if nearby else ""
    raise ManifestError(
        f"No {what} in {root}; looked for {', '.join(wanted)}.{seen}",
        hint="Point the source's `root` at the release, or name the table in its `csv`.",
    )


def read_table(path: Path, required: Sequence[str], text: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV with these columns; column names are stripped, and those in ``text`` are read as strings.

    Raises:
        ManifestError: Not a table, no rows, or a required column missing (those it has are listed).
    """
    try:
        header = pd.read_csv(path, nrows=0, encoding="utf-8-sig")
        kinds = {c: "str" for c in header.columns if c.strip() in text}
        table = pd.read_csv(path, dtype=kinds, low_memory=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise ManifestError(f"{path} cannot be read as a table ({error}).", hint="Download the file again.") from error
    table.columns = pd.Index([str(c).strip() for c in table.columns])
    require_columns(table, required, path)
    if table.empty:
        raise ManifestError(f"{path} has no rows.", hint="Download the file again.")
    return table


def require_columns(table: pd.DataFrame, required: Iterable[str], origin: object) -> None:
    """Raise a ManifestError that names the missing columns and lists those that the table has."""
    absent = [c for c in required if c not in table.columns]
    if absent:
        has = [str(c) for c in table.columns]
        shown = ", ".join(has[:40]) + (", ..." if len(has) > 40 else "")
        raise ManifestError(
            f"{origin} has no column {', '.join(map(repr, absent))}; it has {shown}.",
            hint="Check that this is the table of this source, or map its columns with a `csv` source.",
        )


def label_columns(table: pd.DataFrame, columns: Sequence[str], origin: object) -> npt.NDArray[np.float32]:
    """float32 [N, K] of label columns.

    Raises:
        ManifestError: A cell is neither a number nor empty.
    """
    values = np.full((len(table), len(columns)), np.nan, dtype=np.float32)
    for k, column in enumerate(columns):
        numbers = pd.to_numeric(table[column], errors="coerce")
        bad = numbers.isna() & table[column].notna()
        if bool(bad.any()):
            raise ManifestError(
                f"{origin}: column {column!r} holds {table[column][bad].iloc[0]!r} where a label belongs.",
                hint="Labels are 1, 0, -1 (uncertain) or empty.",
            )
        values[:, k] = numbers.to_numpy(dtype=np.float32)
    return values
