"""The films of ``review_app.py``: phantoms, copies of them that are films of their own, a bundle, and the app's cache."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
import torch
from rich.progress import track

from apps.films.engine import Engine
from apps.films.worklist import Worklist, identity
from apps.shared.bundle_info import read_bundle_info
from vitdomains.core.bundle import Bundle, write_bundle
from vitdomains.core.config.schema import Model
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.models.build import build_model
from vitdomains.cxr.phantoms.make import PHANTOM_FINDINGS, make_phantoms

MODEL, INPUT, PIXELS, DRAWN = "vit_small_patch16_384", 384, 1024, 64
MEAN = STD = (0.5, 0.5, 0.5)
STAMP = "prepared.json"
HEADER = 4096  # bytes: what is changed in a copy stands before the pixels


def prepare(folder: Path, studies: int, threads: int) -> list[str]:
    """Films in ``folder/studies``, the bundle, and its predictions in ``folder/cache``; made once.

    Returns:
        The items of the worklist, in its order.
    """
    stamp = {"studies": studies, "drawn": DRAWN, "pixels": PIXELS, "model": MODEL}
    file = folder / STAMP
    if not file.is_file() or json.loads(file.read_text()) != stamp:
        room = shutil.disk_usage(_standing(folder)).free
        if room < 2.2 * studies * PIXELS**2:
            raise SystemExit(f"{studies:,} films need {2.2e-9 * studies * PIXELS**2:.0f} GB of disk in {folder}")
        for name in ("studies", "cache"):
            shutil.rmtree(folder / name, ignore_errors=True)
        make_phantoms(folder / "phantoms", DRAWN, size=PIXELS)
        make_bundle(folder / "bundle")
        fill_cache(folder, studies, threads)
        file.write_text(json.dumps(stamp))
    return worklist(folder, folder / "studies", threads).table["item"].tolist()


def make_bundle(folder: Path) -> None:
    """A bundle with random weights."""
    torch.manual_seed(0)
    model, classes = Model(name=f"timm:{MODEL}"), tuple(PHANTOM_FINDINGS)
    spec = PreprocessSpec(INPUT, INPUT, "letterbox", 3, MEAN, STD)
    bundle = Bundle(
        path=folder, domain="cxr", task_kind="multilabel", classes=classes, model=model, preprocess=spec,
        temperature=(1.0,), thresholds=(0.5,) * len(classes), threshold_rule="none", metrics={}, data_card="phantoms",
        provenance={}, exports={}, files={},
    )  # fmt: skip
    write_bundle(bundle, build_model(model, len(classes), image_size=INPUT).state_dict())


def worklist(folder: Path, films: Path, threads: int) -> Worklist:
    """The app's own worklist over some films."""
    return Worklist(films, folder / "cache", Engine(read_bundle_info(folder / "bundle", "cxr"), threads))


def fill_cache(folder: Path, studies: int, threads: int) -> None:
    """Let the app score the drawn films; copy them, and their rows with each copy's own identity."""
    drawn = worklist(folder, folder / "phantoms" / "films", threads)
    drawn.start()
    while drawn.progress.running:
        time.sleep(0.1)
    if drawn.progress.error or drawn.progress.failed:
        raise SystemExit(f"the drawn films could not be read: {drawn.progress.error or drawn.table['error'].max()}")
    originals = drawn.table.to_dict("records")
    rows: list[dict[str, Any]] = []
    for number in track(range(math.ceil(studies / len(originals))), "films"):
        target = folder / "studies" / f"{number:03d}"
        target.mkdir(parents=True)
        for row in originals[: studies - len(rows)]:
            path = copy_film(Path(row["path"]), target, number)
            own = {
                name: hashlib.blake2b(f"{row[name]}{number}".encode(), digest_size=8).hexdigest()
                for name in ("patient", "study")
            }
            rows.append({**row, **identity(str(path)), "path": str(path), "name": path.name, **own})
    made = worklist(folder, folder / "studies", threads)
    made.folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows, columns=drawn.table.columns)
    if table["item"].nunique() != studies:
        raise SystemExit("two films have the same hash")
    table.to_parquet(made.file, index=False)


def copy_film(film: Path, folder: Path, number: int) -> Path:
    """A film with the same pixels of another patient, study and instance."""
    about = pydicom.dcmread(film, stop_before_pixels=True)
    content = film.read_bytes()
    head = content[:HEADER]
    for uid in (about.SOPInstanceUID, about.StudyInstanceUID, about.SeriesInstanceUID):
        # Of the same length, so that nothing else in the file has to move.
        head = head.replace(uid.encode(), f"{uid[:-4]}{number:04d}".encode())
    head = head.replace(about.PatientID.encode(), f"{number:03d}{about.PatientID[3:]}".encode())
    path = folder / film.name
    path.write_bytes(head + content[HEADER:])
    return path


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return folder if folder.exists() else _standing(folder.parent)
