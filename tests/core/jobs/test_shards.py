"""Jobs in shards: nothing is lost, nothing counts twice, and it may be killed at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.core.jobs.shard_job import BAD, LETHAL, MakeWork, plan
from vitdomains.core.errors import BundleError, ConfigError, ManifestError
from vitdomains.core.jobs.pool import Work
from vitdomains.core.jobs.shards import finished, merge_shards, plan_shards, run_shards, verify_shards

ROOT = Path(__file__).resolve().parents[3]


def uninterrupted(tiles: int = 600) -> pd.DataFrame:
    rows = pd.DataFrame({"tile_id": [f"t{i:05d}" for i in range(tiles)], "col": range(tiles)})
    number = rows["tile_id"].str[1:].astype(float)
    bad = rows["tile_id"] == BAD
    return rows.assign(
        square=(number**2).where(~bad).astype("float32"),
        label="odd",
        error=bad.map({True: "cannot be read", False: ""}),
    )


def start(out: Path, executor: str, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.core.jobs.shard_job", str(out), executor, str(workers)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def records(out: Path) -> int:
    return len(list((out / "shards").glob("shard-*.json")))


def wait_for(out: Path, shards: int, job: subprocess.Popen[bytes], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while records(out) < shards and job.poll() is None:
        assert time.monotonic() < until, "no progress"
        time.sleep(0.005)


def kill_a_worker(out: Path) -> None:
    for file in out.glob("worker-*"):
        pid = int(file.name.split("-")[1])
        try:
            os.kill(pid, signal.SIGKILL)
            return
        except ProcessLookupError:
            file.unlink()
    raise AssertionError("no worker is alive")


@pytest.mark.parametrize(("executor", "kills"), [("processes", 3), ("ray", 2)])
def test_killed_at_random_moments_every_tile_is_there_once(tmp_path: Path, executor: str, kills: int) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    rng = random.Random(3)
    for _ in range(kills):
        job = start(tmp_path, executor, 2)
        wait_for(tmp_path, records(tmp_path) + rng.randint(1, 4), job)
        time.sleep(rng.uniform(0, 0.05))
        job.send_signal(signal.SIGKILL)
        job.wait()
    assert 0 < records(tmp_path) < 30
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "shards").glob("*.json")}
    job = start(tmp_path, executor, 2)
    wait_for(tmp_path, records(tmp_path) + 1, job)
    kill_a_worker(tmp_path)
    assert job.wait(120) == 0
    shards = plan(tmp_path)
    checked = verify_shards(shards, tmp_path)
    assert (checked.tiles, checked.errors) == (600, 1)
    pd.testing.assert_frame_equal(merge_shards(shards, tmp_path), uninterrupted())
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "shards").glob("*.json")}
    assert {name: after[name] for name in before} == before, "a finished shard was done again"


def test_a_half_written_or_altered_shard_does_not_count(tmp_path: Path) -> None:
    shards = plan(tmp_path, 60)
    seen: list[tuple[int, int]] = []
    run_shards(
        shards, tmp_path, MakeWork(str(tmp_path)), on_progress=lambda _, done, total, __: seen.append((done, total))
    )
    assert seen == [(0, 60), (20, 60), (40, 60), (60, 60)]
    folder = tmp_path / "shards"
    data = (folder / "shard-000000.parquet").read_bytes()
    (folder / "shard-000000.parquet").write_bytes(data[: len(data) // 2])  # torn
    (folder / "shard-000001.json").unlink()  # killed before the record was written
    (folder / "shard-000002.json").write_text('{"sha')  # torn record
    (folder / ".shard-000002.parquet.part77").write_bytes(b"left by a killed process")
    assert [finished(shard, tmp_path) for shard in shards] == [None, None, None]
    with pytest.raises(ManifestError, match="not finished"):
        verify_shards(shards, tmp_path)
    run_shards(shards, tmp_path, MakeWork(str(tmp_path)))
    pd.testing.assert_frame_equal(merge_shards(shards, tmp_path), uninterrupted(60))


def test_another_job_is_refused_with_what_differs(tmp_path: Path) -> None:
    table = pd.DataFrame({"tile_id": ["a", "b"], "col": [0, 1]})
    plan_shards(table, tmp_path, 1, {"model": "x"})
    assert len(plan_shards(table, tmp_path, 1, {"model": "x"})) == 2
    with pytest.raises(ManifestError, match="model: x there, y now"):
        plan_shards(table, tmp_path, 1, {"model": "y"})
    with pytest.raises(ManifestError, match="shard_size: 1 there, 2 now"):
        plan_shards(table, tmp_path, 2, {"model": "x"})
    with pytest.raises(ManifestError, match="plan_sha256"):
        plan_shards(table.assign(col=[0, 2]), tmp_path, 1, {"model": "x"})


@pytest.mark.parametrize("ids", [["a", "a"], ["a", ""], ["a", None]])
def test_ids_are_unique_and_not_empty(tmp_path: Path, ids: list[str | None]) -> None:
    with pytest.raises(ManifestError, match="tile_id"):
        plan_shards(pd.DataFrame({"tile_id": ids}), tmp_path, 1, {})


def test_an_empty_plan_is_a_finished_job(tmp_path: Path) -> None:
    shards = plan_shards(pd.DataFrame({"tile_id": pd.Series([], dtype="str")}), tmp_path, 8, {})
    run_shards(shards, tmp_path, MakeWork(str(tmp_path)))
    assert verify_shards(shards, tmp_path).tiles == len(merge_shards(shards, tmp_path)) == 0


def test_a_strange_shard_is_found(tmp_path: Path) -> None:
    shards = plan(tmp_path, 40)
    run_shards(shards, tmp_path, MakeWork(str(tmp_path)))
    (tmp_path / "shards" / "shard-000009.parquet").write_bytes(b"?")
    with pytest.raises(ManifestError, match="no planned shard"):
        verify_shards(shards, tmp_path)


def wrong_tiles() -> Work:
    return lambda rows: rows.iloc[1:].assign(error="")


def damaged() -> Work:
    raise BundleError("The bundle is damaged.", hint="Copy it again.")


def broken() -> Work:
    os._exit(3)


def test_a_worker_that_returns_other_tiles_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not the tiles"):
        run_shards(plan(tmp_path, 40), tmp_path, wrong_tiles)


def test_impossible_executors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inline, processes, ray"):
        run_shards(plan(tmp_path, 20), tmp_path, wrong_tiles, executor="cluster")  # type: ignore[arg-type]


def test_ray_that_is_not_there_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="vitdomains\\[ray\\]"):
        run_shards(plan(tmp_path, 20), tmp_path, wrong_tiles, executor="ray")


def test_an_error_of_a_worker_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="damaged") as caught:
        run_shards(plan(tmp_path, 20), tmp_path, damaged, executor="processes")
    assert caught.value.hint == "Copy it again."


def test_a_tile_that_kills_its_workers_becomes_a_row_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "lethal").touch()
    shards = plan(tmp_path, 72, 8)
    run_shards(shards, tmp_path, MakeWork(str(tmp_path)), executor="processes", workers=2)
    merged = merge_shards(shards, tmp_path)
    assert verify_shards(shards, tmp_path).errors == 2
    row = merged.set_index("tile_id").loc[LETHAL]
    assert "exit code 9" in row["error"] and row["label"] == "" and row["col"] == 42 and pd.isna(row["square"])
    others = merged["tile_id"] != LETHAL
    pd.testing.assert_frame_equal(merged[others], uninterrupted(72)[others])


def test_workers_that_never_live_end_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdomains.core.jobs.pool.DEATHS", 2)
    with pytest.raises(ConfigError, match="2 workers died one after the other.*exit code 3"):
        run_shards(plan(tmp_path, 20), tmp_path, broken, executor="processes")


def test_a_second_process_is_refused_by_name_until_the_first_is_gone(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from vitdomains.core.jobs.lease import lease\n"
    code += "with lease(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        shards = plan(tmp_path, 4, 2)
        with pytest.raises(ConfigError, match=f"is being written by process {holder.pid} on .*, started 20"):
            run_shards(shards, tmp_path, MakeWork(str(tmp_path)))
    finally:
        holder.kill()
        holder.wait()
    run_shards(shards, tmp_path, MakeWork(str(tmp_path)))
    assert verify_shards(shards, tmp_path).tiles == 4
