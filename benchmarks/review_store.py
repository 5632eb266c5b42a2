"""Many reviewers at once: 50 writers x 200 decisions into one store, in SQLite and in PostgreSQL, and the chain afterwards.

    python benchmarks/review_store.py [--writers 50] [--decisions 200]

Each writer is a thread with decisions of its own; a quarter of the writers sits in each of four processes, as four app
servers would. PostgreSQL is started for the run from the system's programs (Debian package ``postgresql``) and left out
where it is absent. Both databases flush every decision to the disk before they confirm it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import environment, missing, write_result
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.postgres import postgres_programs, running_postgres
from vitdomains.core.review.store import Answer, Decision, ReviewStore

FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Mass", "Nodule", "Pneumothorax", "Consolidation", "Edema")
PROCESSES = 4


def decision(writer: int, number: int) -> Decision:
    return Decision(
        item=f"{writer:032x}{number:032x}",
        bundle_id="benchmark",
        reviewer=f"reader{writer}",
        answers={name: Answer("agree") for name in FINDINGS},
        probabilities=dict.fromkeys(FINDINGS, number / 1000),
        calls=dict.fromkeys(FINDINGS, "absent"),
        note="benchmark",
    )


def write(url: str, writers: list[int], decisions: int, start_line: Any, results: Any) -> None:
    """In one process: all its writers at once; seconds of every decision go back."""
    with ReviewStore(url) as store:
        start_line.wait()

        def work(writer: int) -> list[float]:
            seconds = []
            for number in range(decisions):
                start = time.perf_counter()
                store.add(decision(writer, number))
                seconds.append(time.perf_counter() - start)
            return seconds

        with ThreadPoolExecutor(len(writers)) as pool:
            results.put([s for found in pool.map(work, writers) for s in found])


def measure(url: str, writers: int, decisions: int) -> dict[str, Any]:
    ReviewStore(url).close()
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    shares = [list(range(p, writers, PROCESSES)) for p in range(min(PROCESSES, writers))]
    start_line = spawn.Barrier(len(shares) + 1)  # the start of a process is none of the store's business
    workers = [spawn.Process(target=write, args=(url, share, decisions, start_line, results)) for share in shares]
    for worker in workers:
        worker.start()
    start_line.wait(120)
    start = time.perf_counter()
    latencies = np.concatenate([results.get() for _ in workers])
    elapsed = time.perf_counter() - start
    for worker in workers:
        worker.join()
    with ReviewStore(url) as store:
        table = store.table()
        begin = time.perf_counter()
        heads = store.verify()  # raises where a row is missing or altered
        verified = time.perf_counter() - begin
    expected = writers * decisions
    complete = len(table) == expected and table["item"].nunique() == expected and table["reviewer"].nunique() == writers
    return {
        "rows": len(table),
        "expected": expected,
        "nothing_lost": complete and heads["review_decisions"].seq == expected,
        "chain_intact": True,
        "seconds": round(elapsed, 2),
        "decisions_per_second": round(expected / elapsed, 1),
        "wait_median_ms": round(1e3 * float(np.median(latencies)), 1),
        "wait_p99_ms": round(1e3 * float(np.percentile(latencies, 99)), 1),
        "wait_max_ms": round(1e3 * float(latencies.max()), 1),
        "verify_seconds": round(verified, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--decisions", type=int, default=200)
    args = parser.parse_args()
    console = Console()
    before = environment(("sqlalchemy", "psycopg"))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        found["sqlite"] = measure(f"sqlite:///{folder}/reviews.db", args.writers, args.decisions)
    console.print("sqlite", found["sqlite"])
    programs = postgres_programs() if not missing("psycopg") else None
    if programs:
        with running_postgres(programs, settings=()) as url:
            found["postgresql"] = measure(url, args.writers, args.decisions)
        console.print("postgresql", found["postgresql"])
    else:
        why = missing("psycopg") or "PostgreSQL is not installed. Run as root: apt install postgresql"
        console.print(f"left out: {why}")
    path = write_result(
        "review_store", {"before": before, "writers": args.writers, "decisions": args.decisions, **found}
    )
    console.print(f"written: {path}")
    return 0 if all(f["nothing_lost"] for f in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
