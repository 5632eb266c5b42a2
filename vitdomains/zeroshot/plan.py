"""What is to be looked at: the tiles of files, folders and scenes, each with a stable id and the key of its content.

The key is a hash of the bytes of a file, for a window of the scene's hash and the window, so that the same picture is
recognised under any name and a changed one is not mistaken for the old.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vitdomains.core.data.manifest import folder_manifest
from vitdomains.core.files import write_atomically
from vitdomains.core.geo.map.grid import plan_table
from vitdomains.core.geo.map.run import Tiling, open_scene
from vitdomains.core.geo.map.tiles_table import PLACE
from vitdomains.core.geo.map.vectors import Georeference
from vitdomains.core.geo.read.raster import describe_raster

EXTENSIONS = (".tif", ".tiff", ".jp2", ".jpg", ".jpeg", ".png", ".bmp", ".webp")
KEY_DIGITS = 32
_HASHERS = 4


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a job: ``table`` has the columns of ``tiles_table.PLACE``; ``places`` where each scene's pixels lie."""

    table: pd.DataFrame
    places: dict[str, Georeference]


def plan_tiles(inputs: Sequence[str | Path], tile: int = 0, overlap: float = 0.0) -> TilePlan:
    """Every image file as one tile, or with ``tile`` every file as a scene that is cut.

    Args:
        inputs: Files and folders; folders are searched to the bottom.
        tile: Side of a tile, pixels of the scene; 0: files are not cut.
        overlap: Share of a tile's side that it has in common with its neighbour, 0 to below 1.

    Raises:
        ManifestError: Nothing was found.
        ImageError: A scene cannot be read.
        ConfigError: The tiling is not possible.
    """
    files = folder_manifest(inputs, EXTENSIONS, "tiles").table
    if not tile:
        whole = {name: np.full(len(files), -1, np.int32) for name in ("col", "row", "width", "height")}
        names = [os.path.basename(path) for path in files["path"]]
        table = pd.DataFrame(
            {"tile_id": files["id"], "scene": pd.Series(names, dtype="str"), "path": files["path"], **whole}
        )
        return TilePlan(table[list(PLACE)], {})
    tables, places = [], dict[str, Georeference]()
    for path in files["path"]:
        scene = open_scene(path, Tiling(tile, overlap), set(places))
        places[scene.name] = (scene.place.transform, scene.place.crs)
        tables.append(plan_table(scene.place.grid, scene.name, path))
    return TilePlan(pd.concat(tables, ignore_index=True)[list(PLACE)], places)


def places_of(table: pd.DataFrame) -> dict[str, Georeference]:
    """Where the pixels of each scene of a tile table lie.

    Raises:
        ImageError: A scene cannot be read.
    """
    scenes = table.loc[table["width"] >= 0, ["scene", "path"]].drop_duplicates("scene")
    found = {name: describe_raster(path) for name, path in zip(scenes["scene"], scenes["path"], strict=True)}
    return {name: (info.transform, info.crs) for name, info in found.items()}


def tile_keys(
    table: pd.DataFrame, memory: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[str]:
    """The content key of each tile, 32 hex digits.

    Args:
        table: Of a ``TilePlan``.
        memory: Parquet file of hashes by path, size and time of change, so that an unchanged file is not read again.
        on_progress: Called with (files done, files in all).
    """
    paths = list(dict.fromkeys(table["path"]))
    digests = dict(zip(paths, _digests(paths, memory, on_progress), strict=True))
    return [
        digests[path][:KEY_DIGITS] if width < 0 else _window_key(digests[path], col, row, width, height)
        for path, col, row, width, height in zip(
            *(table[name].tolist() for name in ("path", "col", "row", "width", "height")), strict=True
        )
    ]


def _window_key(digest: str, *window: int) -> str:
    return hashlib.sha256(f"{digest} {window}".encode()).hexdigest()[:KEY_DIGITS]


def _digests(paths: Sequence[str], memory: Path, on_progress: Callable[[int, int], None]) -> list[str]:
    stamps = [_stamp(path) for path in paths]
    known = _read_memory(memory)
    new = [i for i, (path, stamp) in enumerate(zip(paths, stamps, strict=True)) if (path, *stamp) not in known]
    with ThreadPoolExecutor(_HASHERS, thread_name_prefix="hash") as pool:
        for done, (i, digest) in enumerate(zip(new, pool.map(_digest, (paths[i] for i in new)), strict=True), start=1):
            known[(paths[i], *stamps[i])] = digest
            if done % 256 == 0 or done == len(new):
                on_progress(done, len(new))
    if new:
        rows = pd.DataFrame(
            [(*key, digest) for key, digest in known.items()], columns=["path", "size", "changed", "digest"]
        )
        write_atomically(memory, lambda part: rows.to_parquet(part, index=False))
    return [known[(path, *stamp)] for path, stamp in zip(paths, stamps, strict=True)]


def _read_memory(memory: Path) -> dict[tuple[str, int, int], str]:
    if not memory.is_file():
        return {}
    rows = pd.read_parquet(memory)
    return dict(
        zip(
            zip(rows["path"], rows["size"].tolist(), rows["changed"].tolist(), strict=True), rows["digest"], strict=True
        )
    )


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _digest(path: str) -> str:
    """Of the bytes; of the name where they cannot be had, which embedding the tile will say."""
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return hashlib.sha256(f"unreadable {path}".encode("utf-8", "surrogateescape")).hexdigest()
