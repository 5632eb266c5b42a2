"""The worklist: one row a film with its probabilities, precomputed into a Parquet file by a thread that can be stopped any time.

A film is read once: a row is kept as long as path, size, time of change and bundle are the same. Patients appear as keyed hashes
(the key stays in the cache folder), so the table can group films of a patient and names none.
"""

from __future__ import annotations

import hashlib
import logging
import math
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
from vitdomains.core.data.endings import FILMS
from vitdomains.core.data.folders import folder_manifest, manifest_in
from vitdomains.core.data.manifest import read_manifest
from vitdomains.core.errors import ImageError, VitDomainsError
from vitdomains.core.files import write_atomically
from vitdomains.cxr.data.columns import age_band, sex, view, years

logger = logging.getLogger(__name__)

BATCH = 8
SAVE_SECONDS = 10.0
SUBGROUPS = ("sex", "age_band", "view", "modality")
TEXT = ("item", "path", "name", "patient", "study", "date", *SUBGROUPS, "quality", "error")
GROWTH = 20
"""The table is made anew when a twentieth more films are read: what that costs in all is a multiple of their number."""


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
        studies: A folder, searched to the bottom; or a manifest (.csv, .parquet) with columns for group and sub-groups, or a
            folder that holds one.
        folder: Where the table is kept; one a pair of studies and bundle.
        engine: Loads and runs the model.
    """

    def __init__(self, studies: Path, folder: Path, engine: Engine) -> None:
        key = hashlib.sha256(str(studies.resolve()).encode()).hexdigest()[:8]
        self.studies, self.engine = studies, engine
        self.folder = folder / f"{engine.bundle.id}-{key}"
        self.file = self.folder / "predictions.parquet"
        self._progress = Progress()
        self._table = self._read_table()
        self._rows: tuple[pd.DataFrame, dict[str, int]] = (self._table, {})
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

    def row(self, item: str) -> dict[str, Any] | None:
        """The row of an item; None where there is none (yet)."""
        table = self._table
        if self._rows[0] is not table:
            items = table["item"].tolist()
            self._rows = table, {name: n for n, name in reversed([*enumerate(items)])}
        at = self._rows[1].get(item)
        return None if at is None else {str(k): v for k, v in table.iloc[at].items()}

    @property
    def progress(self) -> Progress:
        """How far the reading is."""
        return self._progress

    def _read_table(self) -> pd.DataFrame:
        columns = [*TEXT, "size", "mtime", *(f"prob:{c}" for c in self.engine.bundle.classes)]
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
        listed = dict(self._listing())
        known = {row.path: (row.size, row.mtime) for row in self._table[["path", "size", "mtime"]].itertuples()}
        todo = [path for path in listed if known.get(path, (-1.0, -1.0)) != _stamp(path)]
        place = {path: n for n, path in enumerate(listed)}
        stay = self._table[self._table["path"].isin(place.keys() - set(todo))].reset_index(drop=True)
        listed_more = [n for n, extra in enumerate(listed.values()) if extra]
        if listed_more:  # a manifest may say something else of a film today
            extras = pd.DataFrame([{"path": path, **extra} for path, extra in listed.items()]).set_index("path")
            for column in extras:
                value = stay["path"].map(extras[column])
                stay[column] = value.where(value.fillna("") != "", stay[column])
        self._publish(stay, [], place, len(listed), save=not todo and len(known) != len(stay))
        began, fresh = time.monotonic(), list[dict[str, Any]]()
        try:
            for start in range(0, len(todo), BATCH):
                fresh += self._read([(path, listed[path]) for path in todo[start : start + BATCH]])
                done = min(start + BATCH, len(todo))
                left = (time.monotonic() - began) / done * (len(todo) - done)
                late = time.monotonic() - self._saved > SAVE_SECONDS
                if done == len(todo) or late or len(fresh) >= max(BATCH, len(self._table) // GROWTH):
                    self._publish(self._table, fresh, place, len(listed), save=done == len(todo) or late)
                    fresh = []
                failed = self._failed + sum(row["error"] != "" for row in fresh)
                self._progress = Progress(len(self._table) + len(fresh), len(listed), failed, seconds_left=left)
        finally:
            if fresh:
                self._publish(self._table, fresh, place, len(listed), save=True)
        self._progress = replace(self._progress, running=False, seconds_left=0.0)

    def _listing(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Path, and what a manifest says of it."""
        table = manifest_in(self.studies) or self.studies
        if table.suffix not in (".csv", ".parquet"):
            yield from ((path, {}) for path in folder_manifest(self.studies, FILMS).table["path"])
            return
        manifest = read_manifest(table)
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
                found, stacks[number] = film_row(self.engine, path)
                patient = found["patient"] or f"file {path}"
                # A film without a patient (PNG, JPEG, anonymised) is a patient of its own: nothing may be taken for its prior.
                row |= found | {"patient": self._pseudonym(patient)}
                row["study"] = self._pseudonym(found["study"] or f"file {path}")
            except (ImageError, OSError) as error:
                row["error"] = error.problem if isinstance(error, ImageError) else f"cannot be read: {error.strerror}"
            rows.append(row | {k: v for k, v in extra.items() if v})
        for shape in {stack.shape for stack in stacks.values()}:
            chosen = [n for n, stack in stacks.items() if stack.shape == shape]
            for n, scores in zip(chosen, self.engine.scores([stacks[n] for n in chosen]), strict=True):
                rows[n] |= {f"prob:{c}": float(p) for c, p in zip(self.engine.bundle.classes, scores, strict=True)}
        return rows

    def _blank(self, path: str) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(TEXT, "") | {"path": path, "name": Path(path).name}
        row["item"] = hashlib.sha256(path.encode()).hexdigest()  # where the file cannot be read at all
        return row | {"size": -1.0, "mtime": -1.0} | {f"prob:{c}": float("nan") for c in self.engine.bundle.classes}

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

    def _publish(
        self, table: pd.DataFrame, fresh: list[dict[str, Any]], place: dict[str, int], total: int, *, save: bool
    ) -> None:
        """Put rows into the table, in the order of ``place``."""
        if fresh:
            more = pd.DataFrame(fresh, columns=table.columns)
            table = pd.concat([table, more], ignore_index=True) if len(table) else more
            table = table.iloc[np.argsort(table["path"].map(place).to_numpy(), kind="stable")].reset_index(drop=True)
        self._table = table
        self._failed = int((table["error"] != "").sum())
        self._progress = Progress(len(table), total, self._failed)
        if save:
            write_atomically(self.file, lambda part: table.to_parquet(part, index=False))
            self._saved = time.monotonic()


def _stamp(path: str) -> tuple[float, float]:
    """Size and time of change; of what is not there none that any file has."""
    try:
        stat = os.stat(path)
    except OSError:
        return math.nan, math.nan
    return float(stat.st_size), stat.st_mtime


def identity(path: str) -> dict[str, Any]:
    """Item (sha256 of the file), size and time of change."""
    from vitdomains.core.files import file_sha256

    stat = os.stat(path)
    return {"item": file_sha256(Path(path)), "size": float(stat.st_size), "mtime": stat.st_mtime}


def film_row(engine: Engine, path: str) -> tuple[dict[str, str], NDArray[Any]]:
    """What a film's file says of it, and the model's input [C, h, w] in storage type.

    The first has what the header says (empty for PNG and JPEG): patient, study, date, sub-groups; and ``quality``: why it is not
    acceptable as a frontal chest film.

    Raises:
        ImageError: The film cannot be read.
        OSError: The file cannot be opened.
    """
    from vitdomains.cxr.film.display import read_facts

    row = dict.fromkeys(("patient", "study", "date", *SUBGROUPS), "")
    facts = read_facts(path)
    if facts is not None:
        row |= {
            "patient": facts.text("PatientID"),
            "study": facts.text("StudyInstanceUID"),
            "date": facts.text("StudyDate") + facts.text("StudyTime")[:6],
            "sex": sex(facts.text("PatientSex")),
            "age_band": age_band(years(facts.text("PatientAge"))),
            "view": view(facts.text("ViewPosition")),
            "modality": facts.text("Modality"),
        }
    stacked, row["quality"] = engine.checked(path)
    return row, stacked


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
