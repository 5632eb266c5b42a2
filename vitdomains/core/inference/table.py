"""Table of predictions on disk: in the order of the input, whole or not at all, and resumed after a stop.

Rows go to a journal beside the output as they come; the same command after a stop reads it and goes on behind its last row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitdomains.core.errors import ConfigError
from vitdomains.core.files import write_atomically
from vitdomains.core.inference.predictor import Prediction, Predictor, Record

OWN_COLUMNS = ("id", "path", "labels", "quality", "error")
"""Columns beside those of the classes; a class of such a name stands in ``score:NAME``."""


def write_predictions(
    predictor: Predictor,
    records: Sequence[Record],
    out: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Predict every record and write ``id, path``, one probability column a class, ``labels`` and ``error``.

    Where the predictor looks at it, ``quality`` comes before ``error``: why an image is not of the kind that the model is
    made for, empty for most.

    Returns:
        The errors of the files that could not be read.

    Raises:
        ConfigError: ``out`` is neither .csv nor .parquet.
    """
    suffix = out.suffix.lower()
    if suffix not in (".csv", ".parquet") or out.is_dir():
        raise ConfigError(f"--out {out} is {'a folder' if out.is_dir() else 'neither .csv nor .parquet'}.",
                          hint="Give the name of a file that ends in one of the two.")  # fmt: skip
    journal = out.with_name(f".{out.name}.journal")
    backend = f"{predictor.backend.runtime} {predictor.backend.precision}"
    about = {"bundle": predictor.bundle.id, "backend": backend, "files": len(records)}
    header = json.dumps({**about, "first": records[0], "last": records[-1]}) if records else ""
    done = _read_journal(journal, header, records)
    journal.parent.mkdir(parents=True, exist_ok=True)
    if not done:
        journal.write_text(header + "\n", encoding="utf-8")
    with journal.open("a", encoding="utf-8", buffering=1) as handle:
        for prediction in predictor.predict(records[len(done) :]):
            done.append(_row(prediction))
            handle.write(json.dumps(done[-1]) + "\n")
            on_progress(len(done), len(records))
    table = _table(done, predictor.bundle.classes, quality=predictor.read_checked is not None)
    if suffix == ".csv":
        write_atomically(out, lambda part: table.to_csv(part, index=False, float_format="%.6f"))
    else:
        write_atomically(out, lambda part: table.to_parquet(part, index=False))
    journal.unlink()
    return [row["error"] for row in done if row["error"]]


def predictions_table(predictions: Sequence[Prediction], classes: Sequence[str], *, quality: bool) -> pd.DataFrame:
    """``id, path``, one probability column a class, ``labels``, ``quality`` where it was looked at, ``error``."""
    return _table([_row(prediction) for prediction in predictions], classes, quality=quality)


def _table(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], *, quality: bool) -> pd.DataFrame:
    scores = np.array([row["scores"] or [np.nan] * len(classes) for row in rows], dtype=np.float64)
    table = pd.DataFrame({"id": [r["id"] for r in rows], "path": [r["path"] for r in rows]})
    for name, column in zip(classes, scores.reshape(len(rows), len(classes)).T, strict=True):
        table[f"score:{name}" if name in OWN_COLUMNS else name] = column
    table["labels"] = ["|".join(r["labels"]) for r in rows]
    if quality:
        table["quality"] = [r.get("quality", "") for r in rows]  # a journal of an older version has none
    table["error"] = [r["error"] for r in rows]
    return table


def _row(prediction: Prediction) -> dict[str, object]:
    scores = None if prediction.error else [float(s) for s in prediction.scores]
    return {
        "id": prediction.id,
        "path": prediction.path,
        "scores": scores,
        "labels": prediction.labels,
        "quality": prediction.quality,
        "error": prediction.error,
    }


def _read_journal(journal: Path, header: str, records: Sequence[Record]) -> list[dict]:  # type: ignore[type-arg]
    """Whole rows of an earlier try with the same bundle and files; a torn last line does not count and is cut off."""
    if not journal.exists():
        return []
    lines = journal.read_bytes().split(b"\n")
    if lines[0].decode("utf-8", "replace") != header:
        return []
    rows = []
    for line, record in zip(lines[1:-1], records, strict=False):
        row = json.loads(line)
        if (row["id"], row["path"]) != record:
            return []
        rows.append(row)
    with journal.open("r+b") as handle:
        handle.truncate(sum(len(line) + 1 for line in lines[: len(rows) + 1]))
    return rows
