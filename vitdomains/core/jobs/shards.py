"""Large jobs in pieces that survive a stop: a plan of tiles with stable ids, shards of it, one checked file a shard.

The plan is written first. A shard is the unit of work; its result is one Parquet file, written atomically, with a record
beside it that carries the file's sha256 and comes last. What has no record, or does not fit it, does not count and is done
again; what has one is never redone. Only the process that the user started writes, so workers may die at any moment.

    out/plan.json  out/shards/shard-000000.parquet  out/shards/shard-000000.json
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from vitdomains.core.errors import ConfigError, ManifestError
from vitdomains.core.files import file_sha256, write_atomically, write_text
from vitdomains.core.jobs.lease import lease
from vitdomains.core.jobs.pool import Chunk, MakeWorker, ProcessPool, inline, on_pool, threads_per_worker
from vitdomains.core.jobs.ray_pool import RayPool
from vitdomains.core.terminal import OnProgress

logger = logging.getLogger(__name__)

Executor = Literal["inline", "processes", "ray"]


@dataclass(frozen=True)
class Shard:
    """A slice of the plan: its number, counted from 0, and its rows, with ``tile_id``."""

    index: int
    rows: pd.DataFrame


@dataclass(frozen=True)
class Verified:
    """What the finished shards hold: tiles in all, and those whose row carries an error."""

    tiles: int
    errors: int


def plan_shards(plan: pd.DataFrame, out: Path, shard_size: int, context: dict[str, Any]) -> list[Shard]:
    """Divide a plan into shards and write it down, or go on with the one that is there.

    Args:
        plan: One row a tile; ``tile_id`` is text and unique.
        out: Folder of the job.
        shard_size: Tiles a shard.
        context: All that the results depend on besides the plan (bundle id, options), as JSON types.

    Raises:
        ManifestError: Ids are missing or double, or ``out`` holds a job with another plan or context.
        ConfigError: ``shard_size`` is below 1.
    """
    if shard_size < 1:
        raise ConfigError(f"A shard of {shard_size} tiles cannot be.", hint="Take 1 or more.")
    ids = plan["tile_id"]
    if ids.isna().any() or (ids == "").any() or ids.duplicated().any():
        wrong = ids[ids.isna() | (ids == "") | ids.duplicated()].iloc[0]
        raise ManifestError(f"The plan has an empty or double tile_id: {wrong!r}.", hint="Every tile needs its own.")
    plan = plan.reset_index(drop=True)
    digest = hashlib.sha256(pd.util.hash_pandas_object(plan, index=False).to_numpy().tobytes())
    job = {
        "tiles": len(plan),
        "columns": [str(name) for name in plan.columns],
        "plan_sha256": digest.hexdigest(),
        "shard_size": shard_size,
        "context": json.loads(json.dumps(context)),
    }
    description = out / "plan.json"
    if description.is_file():
        _refuse_another(out, json.loads(description.read_text(encoding="utf-8")), job)
    else:
        write_text(description, json.dumps(job, indent=1))
    return [
        Shard(index, plan.iloc[start : start + shard_size])
        for index, start in enumerate(range(0, len(plan), shard_size))
    ]


def _refuse_another(out: Path, there: dict[str, Any], job: dict[str, Any]) -> None:
    old, new = ({**d.get("context", {}), **{k: v for k, v in d.items() if k != "context"}} for d in (there, job))
    # As text, for a nodata value of NaN is itself.
    other = [key for key in {**old, **new} if json.dumps(old.get(key)) != json.dumps(new.get(key))]
    if other:
        shown = "; ".join(f"{key}: {str(old.get(key))[:60]} there, {str(new.get(key))[:60]} now" for key in other)
        raise ManifestError(
            f"{out} holds another job ({shown}).", hint="Choose another folder, or delete this one to start anew."
        )


def run_shards(
    shards: Sequence[Shard],
    out: Path,
    make_worker: MakeWorker,
    *,
    executor: Executor = "inline",
    workers: int = 1,
    threads: int = 0,
    ray_address: str = "",
    num_gpus: float = 0.0,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> None:
    """Compute what is not finished. Stopped at any moment, the same call goes on behind the last finished shard.

    Args:
        shards: All shards of the plan.
        out: Folder of the job.
        make_worker: Called once in each worker process, after torch got its threads; the function that it returns maps the
            rows of a shard to result rows with the same ``tile_id`` in the same order and a column ``error``.
        executor: ``inline``: this process; ``processes``: spawned ones; ``ray``: actors on any number of machines.
        workers: Processes or actors.
        threads: Compute threads a worker; 0: the cores of this machine divided by ``workers``.
        ray_address: Of a running cluster; empty: one is started for this job only.
        num_gpus: GPUs that each actor asks for.
        on_progress: Called with ("tiles", tiles done, tiles in all, "tiles").

    Raises:
        ConfigError: Unknown executor, Ray is not installed, no worker stays alive, or another process writes ``out``.
        ManifestError: A worker returned other tiles than it was given.
    """
    if executor not in get_args(Executor) or workers < 1:
        raise ConfigError(
            f"executor {executor!r} with {workers} workers cannot be.",
            hint=f"Use one of {', '.join(get_args(Executor))} with 1 worker or more.",
        )
    with lease(out):
        todo = [shard for shard in shards if finished(shard, out) is None]
        total = sum(len(shard.rows) for shard in shards)
        done = total - sum(len(shard.rows) for shard in todo)
        if done and todo:
            logger.info("going on: %d of %d tiles were finished before", done, total)
        on_progress("tiles", done, total, "tiles")
        if not todo:
            return
        by_index = {shard.index: shard for shard in todo}
        chunks = [Chunk(shard.index, 0, shard.rows) for shard in todo]
        threads = threads or threads_per_worker(1 if executor == "inline" else workers)
        # Writing, with its wait for the disk, happens beside the next shard's work; at most one result waits.
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            last: Future[None] | None = None
            results = _results(chunks, make_worker, executor, min(workers, len(chunks)), threads, ray_address, num_gpus)
            with closing(results):
                for index, table in results:
                    if last is not None:
                        last.result()
                    last = writer.submit(_write, by_index[index], table, out)
                    done += len(by_index[index].rows)
                    on_progress("tiles", done, total, "tiles")
            if last is not None:
                last.result()


def _results(
    chunks: list[Chunk],
    make_worker: MakeWorker,
    executor: Executor,
    workers: int,
    threads: int,
    address: str,
    gpus: float,
) -> Generator[tuple[int, pd.DataFrame], None, None]:
    if executor == "inline":
        yield from inline(chunks, make_worker, threads)
        return
    pool = (
        ProcessPool(make_worker, workers, threads)
        if executor == "processes"
        else RayPool(make_worker, workers, threads, address, gpus)
    )
    with closing(pool):
        yield from on_pool(chunks, pool)


def _files(index: int, out: Path) -> tuple[Path, Path]:
    stem = out / "shards" / f"shard-{index:06d}"
    return stem.with_suffix(".parquet"), stem.with_suffix(".json")


def _ids_sha256(rows: pd.DataFrame) -> str:
    return hashlib.sha256("\n".join(rows["tile_id"]).encode()).hexdigest()


def _write(shard: Shard, table: pd.DataFrame, out: Path) -> None:
    if "error" not in table or list(table["tile_id"]) != list(shard.rows["tile_id"]):
        raise ManifestError(
            f"The result of shard {shard.index} is not the tiles that were asked for, or lacks the column error.",
            hint="This is a defect of the worker function.",
        )
    data, record = _files(shard.index, out)
    write_atomically(data, lambda part: table.to_parquet(part, index=False))
    about = {
        "sha256": file_sha256(data),
        "ids_sha256": _ids_sha256(shard.rows),
        "tiles": len(table),
        "errors": int((table["error"] != "").sum()),
    }
    write_text(record, json.dumps(about))


def finished(shard: Shard, out: Path) -> Verified | None:
    """What a shard's file holds, None where it is absent, half-written, altered, or of other tiles."""
    data, record = _files(shard.index, out)
    if not (data.is_file() and record.is_file()):
        return None
    try:
        about = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if about.get("sha256") != file_sha256(data) or about.get("ids_sha256") != _ids_sha256(shard.rows):
        return None
    return Verified(about["tiles"], about["errors"])


def verify_shards(shards: Sequence[Shard], out: Path) -> Verified:
    """Check that every planned tile is present exactly once, reading the ids of every file.

    Raises:
        ManifestError: A shard is not finished, or tiles are missing, double or foreign.
    """
    tiles = errors = 0
    for shard in shards:
        found = finished(shard, out)
        if found is None:
            raise ManifestError(f"Shard {shard.index} of {out} is not finished.", hint="Run the same command again.")
        ids = pd.read_parquet(_files(shard.index, out)[0], columns=["tile_id"])
        if list(ids["tile_id"]) != list(shard.rows["tile_id"]):
            raise ManifestError(
                f"Shard {shard.index} of {out} does not hold the tiles that were planned.",
                hint="Delete its two files and run the same command again.",
            )
        tiles, errors = tiles + found.tiles, errors + found.errors
    strangers = len(list((out / "shards").glob("shard-*.parquet"))) - len(shards)
    if strangers:
        raise ManifestError(
            f"{out / 'shards'} holds {strangers} files that belong to no planned shard.", hint="Delete them."
        )
    return Verified(tiles, errors)


def iter_shards(shards: Sequence[Shard], out: Path) -> Iterator[pd.DataFrame]:
    """The results shard by shard, in the order of the plan: what fits in memory where the whole does not."""
    for shard in shards:
        yield pd.read_parquet(_files(shard.index, out)[0])


def merge_shards(shards: Sequence[Shard], out: Path) -> pd.DataFrame:
    """All results as one table, in the order of the plan."""
    tables = list(iter_shards(shards, out))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"tile_id": [], "error": []})
