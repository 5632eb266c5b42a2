"""Tables and lists as people have them: any usual encoding and separator, every cell read as text before it counts as a number.

An identity stays what the file says: ``NA`` and ``007`` are texts, a code of ten digits beside a blank is no float.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import logging
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.errors import ManifestError

log = logging.getLogger(__name__)

SEPARATORS = (",", ";", "\t", "|")
MISSING = frozenset({"", "NA", "N/A", "#N/A", "<NA>", "nan", "NaN", "NAN", "null", "NULL", "None"})
"""Cells that are empty in a column of numbers; in a column of text they are what they say, but for the empty one."""
_MOST = 2**31  # bytes of a table, unpacked
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHERS = {
    b"PK\x03\x04": "an Excel workbook or another ZIP archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"SQLite format 3": "an SQLite database",
}
_CSV_HINT = "Save it as CSV with commas in UTF-8."
_COLUMN_HINT = "Check that this is the table of this source, or map its columns with a `csv` source."


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


def read_text(path: str | Path) -> str:
    """The text of a file, without a byte order mark; ``.gz`` is unpacked.

    UTF-8, UTF-16 and UTF-32 by their marks, UTF-16 also without one; what is none of them is taken for Windows-1252, with a
    warning.

    Raises:
        ManifestError: It cannot be opened, or is no text; what it is, is said where its first bytes tell.
    """
    path = Path(path)
    try:
        with path.open("rb") as stored:
            file = gzip.GzipFile(fileobj=stored) if path.suffix.lower() == ".gz" else stored
            raw = file.read(_MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ManifestError(
            f"{path} cannot be read ({error}).", hint="Check the path, or fetch the file again."
        ) from error
    if len(raw) > _MOST:
        raise ManifestError(f"{path} has more than {_MOST} bytes.", hint="Divide the table, or write it as Parquet.")
    kind = next((name for magic, name in _OTHERS.items() if raw.startswith(magic)), "")
    if kind:
        raise ManifestError(f"{path} is {kind}, not a text table.", hint=_CSV_HINT)
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), _without_mark(raw))
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or b"\0" in raw[:4096]:
            raise ManifestError(f"{path} is no text in {encoding} ({error.reason}).", hint=_CSV_HINT) from error
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is text in none of UTF-8, UTF-16 and Windows-1252.", hint=_CSV_HINT) from error
    log.warning("%s is not UTF-8 and is read as Windows-1252; save it as UTF-8 if letters come out wrong", path)
    return text


def _without_mark(raw: bytes) -> str:
    """UTF-16 is known by the zero byte in nearly every character of Latin text."""
    head = raw[:2000]
    if len(head) >= 4 and head[1::2].count(0) > 0.4 * len(head[1::2]):
        return "utf-16-le"
    if len(head) >= 4 and head[::2].count(0) > 0.4 * len(head[::2]):
        return "utf-16-be"
    return "utf-8"


def read_list(path: str | Path) -> list[str]:
    """The lines of a text file that are not empty, without quotes and blanks around them, in any encoding of ``read_text``."""
    lines = (line.strip().strip("\"'").strip() for line in read_text(path).splitlines())
    return [line for line in lines if line]


def read_table(
    path: str | Path, required: Sequence[str] = (), text: Sequence[str] = (), *, hint: str = _COLUMN_HINT
) -> pd.DataFrame:
    """A table of CSV (any separator of ``SEPARATORS``, any encoding of ``read_text``, also gzipped) or Parquet.

    Args:
        path: The file.
        required: Columns that have to be there.
        text: Columns that stay text, empty cells NaN. Another column becomes numbers where all its cells are numbers or
            ``MISSING``: whole ones as integers, also beside blanks, but texts where a number has a leading zero.
        hint: What to do where a required column is missing.

    Raises:
        ManifestError: Not a table, no rows, a column twice, or a required one missing (those that it has are listed).
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise ManifestError(f"{path} cannot be read as Parquet ({error}).", hint="Write the file again.") from error
        table = table.assign(**{c: as_text(table[c]).replace("", np.nan) for c in text if c in table})
    else:
        table = _read_csv(path, {*required, *text})
        for name in table.columns:
            if name not in text:
                table[name] = _numbers(table[name])
    require_columns(table, required, path, hint=hint)
    if table.empty:
        raise ManifestError(f"{path} has no rows.", hint="Download the file again, or check how it was written.")
    return table


def _read_csv(path: Path, wanted: set[str]) -> pd.DataFrame:
    """The cells as text, empty ones NaN."""
    content = read_text(path)
    named = re.match(r"sep=(.)\r?\n", content)  # Excel's own line about the separator
    content = content[named.end() :] if named else content
    header = next((line for line in content.splitlines() if line.strip()), "")
    separator = named[1] if named else _separator(header, wanted)
    columns = [cell.strip() for cell in next(csv.reader([header], delimiter=separator), [])]
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise ManifestError(f"{path} has the column {twice[0]!r} twice.", hint="Give each column a name of its own.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.StringIO(content), sep=separator, dtype="str", keep_default_na=False, na_values=[""], index_col=False
            )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning) as error:
        raise ManifestError(
            f"{path} cannot be read as a table ({str(error).strip()}).",
            hint="Quote cells that hold the separator, or download the file again.",
        ) from error
    table.columns = pd.Index([str(c).strip() for c in table.columns])
    if separator == ";":  # where numbers have a comma before their decimals
        for name in table.columns:
            known = table[name].dropna()
            if len(known) and known.str.fullmatch(r"[+-]?\d+,\d+").all():
                table[name] = table[name].str.replace(",", ".")
    return table


def _separator(header: str, wanted: set[str]) -> str:
    """The separator that shows most of the wanted columns, of equal ones the most columns, else the comma."""

    def found(separator: str) -> tuple[int, int]:
        cells = [cell.strip() for cell in next(csv.reader([header], delimiter=separator), [])]
        return len(wanted & set(cells)), len(cells)

    return max(SEPARATORS, key=found)


def _numbers(column: pd.Series) -> pd.Series:
    known = column[column.notna() & ~column.isin(MISSING)]
    if known.empty or known.str.fullmatch(r"[+-]?0\d+").any():
        return column
    if len(known) == len(column) and known.str.lower().isin(["true", "false"]).all():
        return known.str.lower() == "true"
    if known.str.fullmatch(r"[+-]?\d{1,18}").all():
        return known.astype("Int64").reindex(column.index) if len(known) < len(column) else known.astype("int64")
    numbers = pd.to_numeric(known, errors="coerce")
    return column if numbers.isna().any() else numbers.astype("float64").reindex(column.index)


def as_text(values: pd.Series) -> pd.Series:
    """Identities as text: empty for missing ones, and a whole number without the decimals that a float would show."""
    if pd.api.types.is_float_dtype(values):
        whole = values.dropna()
        if (whole % 1 == 0).all():
            values = values.astype("Int64")
    return values.astype("str").where(values.notna(), "").astype("str")


def local_path(base: str | Path, name: str) -> str:
    """The absolute path of a file that a table names, from ``base``; empty for no name.

    Blanks around the name are dropped and backslashes become slashes where no file is called so.
    """
    path = os.path.join(base, name)
    if ("\\" in name or name != name.strip()) and not os.path.exists(path):
        path = os.path.join(base, name.strip().replace("\\", "/"))
    return os.path.abspath(path) if name.strip() else ""


def require_columns(table: pd.DataFrame, required: Iterable[str], origin: object, *, hint: str = _COLUMN_HINT) -> None:
    """Raise a ManifestError that names the missing columns, each once, and lists those that the table has."""
    absent = [c for c in dict.fromkeys(required) if c not in table.columns]
    if absent:
        has = [str(c) for c in table.columns]
        shown = ", ".join(has[:40]) + (", ..." if len(has) > 40 else "")
        raise ManifestError(
            f"{origin} has no column {', '.join(map(repr, absent))}; it has {shown}.",
            hint=hint,
        )


def label_columns(table: pd.DataFrame, columns: Sequence[str], origin: object) -> npt.NDArray[np.float32]:
    """float32 [N, K] of label columns.

    Raises:
        ManifestError: A cell is neither a number nor empty.
    """
    values = np.full((len(table), len(columns)), np.nan, dtype=np.float32)
    for k, column in enumerate(columns):
        cells = table[column].where(~table[column].isin(MISSING))
        numbers = pd.to_numeric(cells, errors="coerce")
        bad = numbers.isna() & cells.notna()
        if bool(bad.any()):
            raise ManifestError(
                f"{origin}: column {column!r} holds {table[column][bad].iloc[0]!r} where a label belongs.",
                hint="Labels are 1, 0, -1 (uncertain) or empty.",
            )
        values[:, k] = numbers.astype("float64").to_numpy(dtype=np.float32)
    return values
