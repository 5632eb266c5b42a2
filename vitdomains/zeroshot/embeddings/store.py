"""The index: image embeddings on disk by what was looked at, so that new classes cost no image pass.

A folder belongs to one model, preprocessing and precision. Finished parts are Arrow files that are mapped, not loaded; a part
is the result of one job in shards, and a job holds only what no part has, so that a stopped one goes on and added tiles
cost what they are.

    index.json   parts/JOB.arrow (key, embedding, valid_fraction)   tiles.parquet   jobs/JOB/ (until it is done)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import ManifestError
from vitdomains.core.files import write_atomically, write_text
from vitdomains.core.geo.map.run import Means
from vitdomains.core.jobs.pool import MakeWorker
from vitdomains.core.jobs.shards import OnProgress, iter_shards, plan_shards, run_shards, verify_shards
from vitdomains.zeroshot.plan import KEY_DIGITS

Floats = npt.NDArray[np.float32]
VERSION = 1


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
    means: Means,
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
