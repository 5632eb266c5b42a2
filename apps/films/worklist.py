"""The worklist: one row a film with its probabilities, precomputed into a Parquet file by a thread that can be stopped any time.

A film is read once: a row is kept as long as path, size, time of change and bundle are the same. Patients appear as keyed hashes
(the key stays in the cache folder), so the table can group films of a patient and names none.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apps.films.engine import Engine
from vitdomains.core.data.manifest import folder_manifest, read_manifest
from vitdomains.core.errors import ImageError, VitDomainsError
from vitdomains.core.files import write_atomically

logger = logging.getLogger(__name__)

EXTENSIONS = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", "")
BATCH = 8
SAVE_SECONDS = 10.0
SUBGROUPS = ("sex", "age_band", "view", "modality")
TEXT = ("item", "path", "name", "patient", "date", *SUBGROUPS, "error")
_AGES = ((18, "under 18"), (40, "18-39"), (55, "40-54"), (70, "55-69"), (200, "70+"))


@dataclass(frozen=True)
class Progress:
    """How far the reading is: films done of all, how many cannot be read, seconds left (NaN: not known yet)."""

    done: int = 0
    total: int = 0
    failed: int = 0
    running: bool = True
    seconds_left: float = float("nan")
    error: str = ""


class Worklist:
    """Films of a folder or manifest, with what the bundle says of them.

    Args:
        studies: A folder, searched to the bottom, or a manifest (.csv, .parquet) with columns for group and sub-groups.
        folder: Where the table is kept; one a pair of studies and bundle.
        engine: Loads and runs the model.
    """

    def __init__(self, studies: Path, folder: Path, engine: Engine) -> None:
        key = hashlib.sha256(str(studies.resolve()).encode()).hexdigest()[:8]
        self.studies, self.engine = studies, engine
        self.folder = folder / f"{engine.facts.id}-{key}"
        self.file = self.folder / "predictions.parquet"
        self._lock = threading.Lock()
        self._progress = Progress()
        self._rows: dict[str, dict[str, Any]] = {}
        self._table = self._read_table()
        self._saved = 0.0
        self._started = threading.Lock()

    def start(self) -> None:
        """Bring the table up to date in the background, once."""
        if self._started.acquire(blocking=False):
            threading.Thread(target=self._run, name="worklist", daemon=True).start()

    @property
    def table(self) -> pd.DataFrame:
        """The rows so far, films in order of their path: item, path, name, patient, date, sub-groups, error, ``prob:CLASS``."""
        return self._table

    @property
    def progress(self) -> Progress:
        """How far the reading is."""
        return self._progress

    def _read_table(self) -> pd.DataFrame:
        columns = [*TEXT, "size", "mtime", *(f"prob:{c}" for c in self.engine.facts.classes)]
        if self.file.is_file():
            try:
                table = pd.read_parquet(self.file)
            except (OSError, ValueError) as error:
                logger.warning("%s cannot be read and is made anew: %s", self.file, error)
            else:
                if list(table.columns) == columns:
                    return table
        return pd.DataFrame({c: pd.Series(dtype="str" if c in TEXT else "float64") for c in columns})

    def _run(self) -> None:
        try:
            self._bring_up_to_date()
        except (VitDomainsError, OSError, RuntimeError) as error:
            logger.exception("the worklist stopped")
            self._progress = replace(self._progress, running=False, error=str(error))

    def _bring_up_to_date(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        known = {row["path"]: {str(k): v for k, v in row.items()} for row in self._table.to_dict("records")}
        listed = list(self._listing())
        todo = []
        for path, extra in listed:
            row, stat = known.get(path), os.stat(path) if os.path.exists(path) else None
            if row is not None and stat is not None and (row["size"], row["mtime"]) == (stat.st_size, stat.st_mtime):
                self._rows[path] = {**row, **extra}
            else:
                todo.append((path, extra))
        self._order = [path for path, _ in listed]
        self._publish(len(listed), float("nan"), save=len(todo) == 0 and len(known) != len(self._rows))
        began = time.monotonic()
        for start in range(0, len(todo), BATCH):
            for row in self._read(todo[start : start + BATCH]):
                self._rows[row["path"]] = row
            done = min(start + BATCH, len(todo))
            left = (time.monotonic() - began) / done * (len(todo) - done)
            self._publish(len(listed), left, save=done == len(todo) or time.monotonic() - self._saved > SAVE_SECONDS)
        self._progress = replace(self._progress, running=False, seconds_left=0.0)

    def _listing(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Path, and what a manifest says of it."""
        if self.studies.suffix not in (".csv", ".parquet"):
            yield from ((path, {}) for path in folder_manifest(self.studies, EXTENSIONS).table["path"])
            return
        manifest = read_manifest(self.studies)
        columns = [c for c in (*SUBGROUPS, "date") if c in manifest.table]
        for row in manifest.table[["path", "group", *columns]].fillna("").to_dict("records"):
            extra = {c: str(row[c]) for c in columns}
            yield str(row["path"]), extra | {"patient": self._pseudonym(str(row["group"]))}

    def _read(self, batch: list[tuple[str, dict[str, str]]]) -> list[dict[str, Any]]:
        """Rows of a few films; one that cannot be read has an error instead of probabilities."""
        rows, stacks = [], {}
        for number, (path, extra) in enumerate(batch):
            row = self._blank(path)
            try:
                row |= identity(path)
                row |= header_facts(path) | {"patient": self._patient(path)}
                stacks[number], _ = self.engine.prepared(path)
            except (ImageError, OSError) as error:
                row["error"] = error.problem if isinstance(error, ImageError) else f"cannot be read: {error.strerror}"
            rows.append(row | {k: v for k, v in extra.items() if v})
        for shape in {stack.shape for stack in stacks.values()}:
            chosen = [n for n, stack in stacks.items() if stack.shape == shape]
            for n, scores in zip(chosen, self.engine.scores([stacks[n] for n in chosen]), strict=True):
                rows[n] |= {f"prob:{c}": float(p) for c, p in zip(self.engine.facts.classes, scores, strict=True)}
        return rows

    def _blank(self, path: str) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(TEXT, "") | {"path": path, "name": Path(path).name}
        row["item"] = hashlib.sha256(path.encode()).hexdigest()  # where the file cannot be read at all
        return row | {"size": -1.0, "mtime": -1.0} | {f"prob:{c}": float("nan") for c in self.engine.facts.classes}

    def _patient(self, path: str) -> str:
        from vitdomains.cxr.film.display import read_facts

        facts = read_facts(path)
        # A film without a patient (PNG, JPEG, anonymised) is a patient of its own: nothing may be taken for its prior.
        return self._pseudonym((facts.text("PatientID") if facts else "") or f"file {path}")

    def _pseudonym(self, patient: str) -> str:
        return hashlib.blake2b(patient.encode(), key=self._key(), digest_size=8).hexdigest()

    def _key(self) -> bytes:
        file = self.folder / "key"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(32))
        return file.read_bytes()

    def _publish(self, total: int, left: float, *, save: bool) -> None:
        rows = [self._rows[path] for path in self._order if path in self._rows]
        table = pd.DataFrame(rows, columns=self._table.columns)
        failed = int((table["error"] != "").sum())
        self._table, self._progress = table, Progress(len(rows), total, failed, seconds_left=left)
        if save:
            write_atomically(self.file, lambda part: table.to_parquet(part, index=False))
            self._saved = time.monotonic()


def identity(path: str) -> dict[str, Any]:
    """Item (sha256 of the file), size and time of change."""
    from vitdomains.core.files import file_sha256

    stat = os.stat(path)
    return {"item": file_sha256(Path(path)), "size": float(stat.st_size), "mtime": stat.st_mtime}


def header_facts(path: str) -> dict[str, str]:
    """Date of the study, and the sub-groups that a film's own header says; nothing for PNG and JPEG."""
    from vitdomains.cxr.film.display import read_facts

    facts = read_facts(path)
    if facts is None:
        return {}
    age = facts.text("PatientAge")
    years = (
        None if not age[:-1].isdecimal() else float(age[:-1]) if age[-1:].upper() == "Y" else 0.0
    )  # months, weeks, days
    return {
        "date": facts.text("StudyDate") + facts.text("StudyTime")[:6],
        "sex": facts.text("PatientSex").upper(),
        "age_band": "" if years is None else next((name for limit, name in _AGES if years < limit), ""),
        "view": facts.text("ViewPosition").upper(),
        "modality": facts.text("Modality"),
    }


def over_threshold(probabilities: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far above its threshold each probability is, [..., K]: 1 at a probability of 1, 0 at the threshold, -1 at 0.

    In the unit of the threshold, so that findings with low and with high thresholds compare.
    """
    above = (probabilities - thresholds) / np.maximum(1 - thresholds, 1e-9)
    below = probabilities / np.maximum(thresholds, 1e-9) - 1
    return np.asarray(np.where(probabilities >= thresholds, above, below), dtype=np.float64)


def uncertainty(probabilities: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """How near to its threshold each probability is, [N, K]: 1 at the threshold, 0 at probabilities of 0 and 1.

    Linear on either side, so that findings with low and with high thresholds compare.
    """
    above = (1 - probabilities) / np.maximum(1 - thresholds, 1e-9)
    below = probabilities / np.maximum(thresholds, 1e-9)
    return np.asarray(np.clip(np.where(probabilities >= thresholds, above, below), 0, 1), dtype=np.float64)
