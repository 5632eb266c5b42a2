"""The index: image embeddings on disk by the content of tiles, so that new classes cost no image pass; planning and search.

A folder belongs to one model, preprocessing and precision. Finished parts are Arrow files that are mapped, not loaded; a part
is the result of one job in shards, and a job holds only what no part has, so that a stopped one goes on and added tiles
cost what they are.

    index.json   parts/JOB.arrow (key, embedding, valid_fraction)   tiles.parquet   jobs/JOB/ (until it is done)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from vitdomains.core.data.endings import RASTERS
from vitdomains.core.data.folders import folder_manifest
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import ImageError, ManifestError
from vitdomains.core.files import file_sha256, write_atomically, write_text
from vitdomains.core.geo.map.grid import plan_table
from vitdomains.core.geo.map.run import ComputeOptions, Tiling, open_scene
from vitdomains.core.geo.map.tiles_table import PLACE
from vitdomains.core.geo.map.vectors import Georeference
from vitdomains.core.geo.read.raster import describe_raster
from vitdomains.core.jobs.pool import MakeWorker
from vitdomains.core.jobs.shards import iter_shards, plan_shards, run_shards, verify_shards
from vitdomains.core.terminal import OnProgress

logger = logging.getLogger(__name__)

# What is to be looked at: the tiles of files, folders and scenes, each with a stable id and the key of its content.
#
# The key is a hash of the bytes of a file, for a window of the scene's hash and the window, so that the same picture is
# recognised under any name and a changed one is not mistaken for the old.

KEY_DIGITS = 32
_HASHERS = 4
_PLACE_TYPES = dict(zip(PLACE, ["str"] * 3 + ["int32"] * 4, strict=True))


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a job: ``table`` has the columns of ``tiles_table.PLACE``; ``places`` where each scene's pixels lie;
    ``unread`` why a scene could not be cut, and ``skipped`` why a file of a folder was not taken, by path."""

    table: pd.DataFrame
    places: dict[str, Georeference]
    unread: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def plan_tiles(inputs: Sequence[str | Path], tile: int = 0, overlap: float = 0.0) -> TilePlan:
    """Every image file as one tile, or with ``tile`` every file as a scene that is cut.

    Args:
        inputs: Files and folders; folders are searched to the bottom.
        tile: Side of a tile, pixels of the scene; 0: files are not cut.
        overlap: Share of a tile's side that it has in common with its neighbour, 0 to below 1.

    Raises:
        ManifestError: Nothing was found.
        ConfigError: The tiling is not possible.
    """
    found = folder_manifest(inputs, RASTERS, "tiles")
    files = found.table
    skipped = {path: part.reason for part in found.skipped for path in part.names}
    if not tile:
        whole = {name: np.full(len(files), -1, np.int32) for name in ("col", "row", "width", "height")}
        names = [os.path.basename(path) for path in files["path"]]
        table = pd.DataFrame(
            {"tile_id": files["id"], "scene": pd.Series(names, dtype="str"), "path": files["path"], **whole}
        )
        return TilePlan(table[list(PLACE)], {}, skipped=skipped)
    tables = [pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in _PLACE_TYPES.items()})]
    places, unread = dict[str, Georeference](), dict[str, str]()
    for path in files["path"]:
        try:
            scene = open_scene(path, Tiling(tile, overlap), set(places))
        except ImageError as error:
            unread[path] = str(error)
            continue
        places[scene.name] = (scene.place.transform, scene.place.crs)
        tables.append(plan_table(scene.place.grid, scene.name, path))
    return TilePlan(pd.concat(tables[len(tables) > 1 :], ignore_index=True)[list(PLACE)], places, unread, skipped)


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
        return file_sha256(path)
    except OSError:
        return hashlib.sha256(f"unreadable {path}".encode("utf-8", "surrogateescape")).hexdigest()


Floats = npt.NDArray[np.float32]
VERSION = 1
_SEARCHED = 65_536
"""Embeddings that a search holds at a time."""


@dataclass(frozen=True)
class About:
    """What made the embeddings of an index: a model, its preprocessing and precision. ``source`` is where it was loaded from."""

    model_id: str
    source: str
    precision: str
    preprocess: PreprocessSpec
    width: int

    @property
    def identity(self) -> dict[str, Any]:
        """What two indices have to share."""
        return {
            "version": VERSION, "model_id": self.model_id, "precision": self.precision, "width": self.width,
            "preprocess": self.preprocess.to_dict(),
        }  # fmt: skip

    @property
    def dtype(self) -> npt.DTypeLike:
        """bf16 computation does not fill a float16; float32 computation keeps float32."""
        return np.float16 if self.precision == "bf16" else np.float32


class Index:
    """An opened index. Rows are found by key; their vectors are read from the mapped files when taken."""

    def __init__(self, folder: Path, about: About) -> None:
        self.folder, self.about = folder, about
        self._blocks: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        keys: list[npt.NDArray[np.bytes_]] = [np.empty(0, f"S{KEY_DIGITS}")]
        starts = [0]
        for part in sorted((folder / "parts").glob("*.arrow")):
            with pa.ipc.open_file(pa.memory_map(str(part))) as reader:
                for i in range(reader.num_record_batches):
                    batch = reader.get_batch(i)
                    keys.append(np.array(batch["key"].to_pylist(), dtype=f"S{KEY_DIGITS}"))
                    vectors = batch["embedding"].flatten().to_numpy(zero_copy_only=True).reshape(-1, about.width)
                    self._blocks.append((vectors, batch["valid_fraction"].to_numpy(zero_copy_only=True)))
                    starts.append(starts[-1] + len(vectors))
        all_keys = np.concatenate(keys)
        order = np.argsort(all_keys, kind="stable")
        self._keys, self._rows, self._starts = all_keys[order], order, np.array(starts)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Iterable[str]) -> npt.NDArray[np.int64]:
        """Row of each key, -1 where it has none."""
        wanted = np.array(list(keys), dtype=f"S{KEY_DIGITS}")
        at = np.searchsorted(self._keys, wanted)
        at[at == len(self._keys)] = 0
        hit = self._keys[at] == wanted if len(self._keys) else np.zeros(len(wanted), bool)
        return np.where(hit, self._rows[at] if len(self._keys) else 0, -1)

    def take(self, rows: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Unit vectors [N, D] and valid fractions [N] of rows; NaN where a row is -1 or its tile holds no data."""
        vectors = np.full((len(rows), self.about.width), np.nan, np.float32)
        valid = np.full(len(rows), np.nan, np.float32)
        block = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(block[rows >= 0]):
            own = (block == number) & (rows >= 0)
            inside = rows[own] - self._starts[number]
            vectors[own] = self._blocks[number][0][inside]
            valid[own] = self._blocks[number][1][inside]
        vectors[valid == 0] = np.nan
        return vectors, valid

    def tiles(self) -> pd.DataFrame:
        """All tiles that were ever embedded into this index: their place, and ``key``."""
        return pd.read_parquet(self.folder / "tiles.parquet")


def open_index(folder: str | Path, about: About | None = None) -> Index:
    """Open an index, or begin one where ``about`` is given and the folder holds none.

    Raises:
        ManifestError: It is none, or one of another model, preprocessing or precision.
    """
    folder = Path(folder)
    description = folder / "index.json"
    if not description.is_file():
        if about is None:
            raise ManifestError(
                f"{folder} is no index of embeddings.", hint="Make one: python -m vitdomains.zeroshot embed."
            )
        write_text(description, json.dumps({**about.identity, "source": about.source}, indent=1) + "\n")
        return Index(folder, about)
    raw = json.loads(description.read_text(encoding="utf-8"))
    if raw.get("version") != VERSION:
        raise ManifestError(f"{folder} is an index of version {raw.get('version')}, not {VERSION}.", hint="Delete it.")
    there = About(
        raw["model_id"], raw["source"], raw["precision"], PreprocessSpec.from_dict(raw["preprocess"]), raw["width"]
    )
    if about is not None and there.identity != about.identity:
        other = [key for key, value in about.identity.items() if there.identity[key] != value]
        raise ManifestError(
            f"{folder} holds embeddings of another kind ({', '.join(other)}: "
            f"{'; '.join(str(there.identity[key])[:60] for key in other)}).",
            hint="Choose another --index, or use the same model, bands and precision.",
        )
    return Index(folder, there)


def add_tiles(
    index: Index,
    table: pd.DataFrame,
    keys: list[str],
    make_worker: Callable[[], MakeWorker],
    means: ComputeOptions,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> tuple[Index, dict[str, str]]:
    """Embed what the index lacks. Stopped at any moment, the same call goes on behind the last finished shard.

    Args:
        index: The index.
        table: Tiles (``TilePlan.table``).
        keys: Their content keys.
        make_worker: Gives the worker function's maker; called only where something is lacking.
        means: Executor, workers and size of shards.
        on_progress: As in ``run_shards``.

    Returns:
        The index with the new part, and the error of each key that could not be embedded. Errors are tried again by the next
        call.
    """
    folder = index.folder
    keyed = table.assign(key=keys)
    lacking = keyed[index.find(keys) < 0].drop_duplicates("key")
    errors: dict[str, str] = {}
    if len(lacking):
        plan = lacking.drop(columns=["tile_id"]).rename(columns={"key": "tile_id"})
        plan = plan[["tile_id", "path", "col", "row", "width", "height"]]
        facts = [str(means.shard_size), *plan["tile_id"], *plan["path"]]
        name = hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        job = folder / "jobs" / name
        shards = plan_shards(plan, job, means.shard_size, {"about": index.about.identity})
        run_shards(
            shards, job, make_worker(), executor=means.executor, workers=means.workers, threads=means.threads,
            ray_address=means.ray_address, num_gpus=means.num_gpus, on_progress=on_progress,
        )  # fmt: skip
        verify_shards(shards, job)
        _write_part(folder / "parts" / f"{name}.arrow", iter_shards(shards, job), index.about, errors)
        shutil.rmtree(folder / "jobs")  # with what stopped jobs left of tiles that are gone
        index = Index(folder, index.about)
    _remember(folder / "tiles.parquet", keyed[~keyed["key"].isin(errors)])
    return index, errors


def _write_part(path: Path, tables: Iterable[pd.DataFrame], about: About, errors: dict[str, str]) -> None:
    value = pa.float16() if about.dtype == np.float16 else pa.float32()
    schema = pa.schema(
        [("key", pa.string()), ("embedding", pa.list_(value, about.width)), ("valid_fraction", pa.float32())]
    )

    def write(part: Path) -> None:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for table in tables:
                bad = table["error"] != ""
                errors.update(zip(table["tile_id"][bad], table["error"][bad], strict=True))
                good = table[~bad]
                flat = np.frombuffer(b"".join(good["embedding"]), dtype=about.dtype)
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat, value), about.width)
                valid = pa.array(good["valid_fraction"].to_numpy(np.float32))
                batch = pa.RecordBatch.from_arrays(
                    [pa.array(good["tile_id"], pa.string()), vectors, valid], schema=schema
                )
                writer.write_batch(batch)

    write_atomically(path, write)


def _remember(path: Path, keyed: pd.DataFrame) -> None:
    """Add tiles to the table of the index; a tile that is there already takes its new place."""
    if path.is_file():
        old = pd.read_parquet(path)
        if len(old) >= len(keyed) and keyed.reset_index(drop=True).equals(old.tail(len(keyed)).reset_index(drop=True)):
            return
        keyed = pd.concat([old[~old["tile_id"].isin(keyed["tile_id"])], keyed], ignore_index=True)
    write_atomically(path, lambda part: keyed.to_parquet(part, index=False))


def nearest_tiles(index: Index, query: Floats, k: int = 20) -> pd.DataFrame:
    """The ``k`` tiles of highest cosine similarity to a unit vector [D], the nearest first; ties in the order of the index.

    Returns:
        The rows of ``index.tiles()`` with a column ``similarity``, -1..1.

    Raises:
        ManifestError: The index is empty.
    """
    if not len(index):
        raise ManifestError(
            f"{index.folder} holds no embeddings.", hint="Embed tiles: python -m vitdomains.zeroshot embed."
        )
    tiles = index.tiles()
    rows = index.find(tiles["key"])
    similarity = np.full(len(tiles), -np.inf, np.float32)
    for at in range(0, len(rows), _SEARCHED):
        vectors, _ = index.take(rows[at : at + _SEARCHED])
        similarity[at : at + _SEARCHED] = np.nan_to_num(vectors @ query.astype(np.float32), nan=-np.inf)
    best = np.argsort(-similarity, kind="stable")[:k]
    best = best[np.isfinite(similarity[best])]
    return tiles.iloc[best].drop(columns="key").assign(similarity=similarity[best]).reset_index(drop=True)
