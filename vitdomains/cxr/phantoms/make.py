"""A data set of phantom films: a folder of DICOM files with labels, boxes and masks.

They serve the demonstration, the tests and the checks of explanations; data_cards/phantoms.md says what they cannot show.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitdomains.core.errors import ManifestError
from vitdomains.core.files import replace_folder
from vitdomains.cxr.data.columns import age_band
from vitdomains.cxr.phantoms.cohort import PHANTOM_FINDINGS, FilmSpec, assign_splits, draw_cohort
from vitdomains.cxr.phantoms.dicom import write_dicom
from vitdomains.cxr.phantoms.film import make_film

__all__ = ["PHANTOM_FINDINGS", "make_film", "make_phantoms", "mask_boxes", "read_masks"]

log = logging.getLogger(__name__)

_STAMP = "phantoms.json"
_CHUNK = 8  # films that a worker takes at once
_ABANDONED_SECONDS = 3600.0

Row = dict[str, Any]


def make_phantoms(
    root: Path,
    n_films: int = 600,
    seed: int = 0,
    size: int = 448,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draws a data set of phantom films, or returns the one that is already there.

    The folder then holds ``films/ID.dcm``, ``manifest.csv``, ``boxes.csv`` (id, finding, x, y, w, h in pixels, one row for
    each connected part of a mask), ``masks/ID.png`` (uint8, bit i set where ``PHANTOM_FINDINGS[i]`` is) and the stamp
    ``phantoms.json``. It appears whole or not at all, and depends on (n_films, seed, size) alone.

    Args:
        root: Folder to make. A finished one with the same parameters is kept; one of other parameters is replaced.
        n_films: Number of films.
        seed: Seed of everything.
        size: Longer side of a film, pixels.
        workers: Processes; None: one per core.
        progress: Called with (films done, films in all).

    Returns:
        ``root``.

    Raises:
        ManifestError: If ``root`` holds something that this function did not make, or a parameter is impossible.
    """
    root = Path(root)
    if n_films < 1 or size < 64:
        raise ManifestError(
            f"Cannot draw {n_films} phantom films of {size} px.", hint="Ask for at least 1 film of at least 64 px."
        )
    stamp = {"n_films": n_films, "seed": seed, "size": size, "code": _code_hash()}
    if _read_stamp(root) == stamp:
        return root
    if root.exists() and _read_stamp(root) is None and (not root.is_dir() or any(root.iterdir())):
        raise ManifestError(
            f"{root} exists and is not a folder of phantoms.", hint="Name another folder, or move this one away."
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(root)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=root.parent))
    try:
        _draw_all(partial, draw_cohort(n_films, seed), seed, size, workers, progress)
        (partial / _STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        replace_folder(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def read_masks(root: Path, id: str) -> dict[str, NDArray[np.bool_]]:
    """The masks of one film: finding name to bool [H, W]; findings that are not on the film are left out.

    Raises:
        ManifestError: If the film has no mask file.
    """
    path = Path(root) / "masks" / f"{id}.png"
    bits = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if bits is None:
        raise ManifestError(f"No mask for film {id!r} in {path.parent}.", hint="Check the id against manifest.csv.")
    masks = {name: np.bitwise_and(bits, 1 << i) > 0 for i, name in enumerate(PHANTOM_FINDINGS)}
    return {name: mask for name, mask in masks.items() if mask.any()}


def _draw_all(
    folder: Path,
    films: list[FilmSpec],
    seed: int,
    size: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    (folder / "films").mkdir()
    (folder / "masks").mkdir()
    rows: dict[str, Row] = {}
    boxes: list[Row] = []
    count = min(workers or os.cpu_count() or 1, -(-len(films) // _CHUNK))
    chunks = [(start, films[start : start + _CHUNK]) for start in range(0, len(films), _CHUNK)]
    for chunk_rows, chunk_boxes in _run(folder, chunks, seed, size, count):
        rows.update({row["id"]: row for row in chunk_rows})
        boxes.extend(chunk_boxes)
        if progress is not None:
            progress(len(rows), len(films))
    table = pd.DataFrame([rows[film.id] for film in films])
    table.insert(3, "split", assign_splits(films, seed))
    _write_tables(folder, table, sorted(boxes, key=lambda b: (b["id"], b["finding"], b["x"], b["y"])))


def _run(
    folder: Path, chunks: list[tuple[int, list[FilmSpec]]], seed: int, size: int, workers: int
) -> Iterator[tuple[list[Row], list[Row]]]:
    if workers <= 1:
        for start, films in chunks:
            yield _draw_chunk(folder, films, start, seed, size)
        return
    # Spawn: a forked child would inherit the locks of threads (OpenCV, torch) that do not exist in it.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        tasks = [pool.submit(_draw_chunk, folder, films, start, seed, size) for start, films in chunks]
        for task in as_completed(tasks):
            yield task.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _draw_chunk(folder: Path, films: list[FilmSpec], start: int, seed: int, size: int) -> tuple[list[Row], list[Row]]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes already fill the cores
    try:
        drawn = [_draw_one(folder, film, start + i, seed, size) for i, film in enumerate(films)]
    finally:
        cv2.setNumThreads(threads)
    return [row for row, _ in drawn], [box for _, boxes in drawn for box in boxes]


def _draw_one(folder: Path, film: FilmSpec, index: int, seed: int, size: int) -> tuple[Row, list[Row]]:
    picture, format_ = np.random.SeedSequence([seed, 3, index]).spawn(2)
    pixels, masks, metadata = make_film(film, np.random.default_rng(picture), size)
    path = folder / "films" / f"{film.id}.dcm"
    write_dicom(path, pixels, film, metadata["pixel_spacing"], np.random.default_rng(format_))
    bits = np.zeros(pixels.shape, np.uint8)
    boxes: list[Row] = []
    for i, name in enumerate(PHANTOM_FINDINGS):
        if name in masks:
            bits |= masks[name].astype(np.uint8) << i
            boxes += [{"id": film.id, "finding": name, **box} for box in mask_boxes(masks[name])]
    cv2.imwrite(str(folder / "masks" / f"{film.id}.png"), bits, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    row: Row = {"id": film.id, "path": str(path), "group": film.patient.id}
    row |= {name: float(name in film.findings) for name in PHANTOM_FINDINGS}
    row |= {"sex": film.patient.sex, "age": film.patient.age, "age_band": age_band(film.patient.age), "view": film.view}
    row |= {"width": pixels.shape[1], "height": pixels.shape[0]}
    row |= {"habitus": round(film.patient.habitus, 2), "devices": metadata["devices"]}
    row |= {f"severity_{name}": f.severity for name in PHANTOM_FINDINGS if (f := film.findings.get(name))}
    return row, boxes


def mask_boxes(mask: NDArray[np.bool_], share: float = 0.08) -> list[dict[str, int]]:
    """Bounding boxes x, y, w, h (pixels) of the connected parts of a mask that hold at least ``share`` of its area."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    least = share * mask.sum()
    keys = ((cv2.CC_STAT_LEFT, "x"), (cv2.CC_STAT_TOP, "y"), (cv2.CC_STAT_WIDTH, "w"), (cv2.CC_STAT_HEIGHT, "h"))
    return [
        {name: int(stats[i, key]) for key, name in keys} for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= least
    ]


def _write_tables(folder: Path, table: pd.DataFrame, boxes: list[Row]) -> None:
    # Imported here: worker processes draw and need no tables.
    from vitdomains.core.data.manifest import Manifest, write_manifest

    for name in PHANTOM_FINDINGS:
        if f"severity_{name}" not in table:
            table[f"severity_{name}"] = np.nan
    severities = [f"severity_{name}" for name in PHANTOM_FINDINGS]
    table = table[[c for c in table if c not in severities] + severities].round(dict.fromkeys(severities, 3))
    write_manifest(Manifest(table, PHANTOM_FINDINGS, "phantoms"), folder / "manifest.csv")
    with (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["id", "finding", "x", "y", "w", "h"])
        writer.writeheader()
        writer.writerows(boxes)


def _clear_abandoned(root: Path) -> None:
    for folder in root.parent.glob(f".{root.name}.partial-*"):
        films = folder / "films"
        touched = (films if films.is_dir() else folder).stat().st_mtime
        if time.time() - touched > _ABANDONED_SECONDS:
            log.info("removing what a killed run left behind: %s", folder)
            shutil.rmtree(folder, ignore_errors=True)


def _read_stamp(root: Path) -> Row | None:
    path = root / _STAMP
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _code_hash() -> str:
    """Hash of the modules that draw: a change of theirs makes older folders stale."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
