"""A job of shards with a worker of a few lines, as a program that tests can kill: OUT EXECUTOR WORKERS [TILES SIZE]."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vitdomains.core.jobs.pool import Work
from vitdomains.core.jobs.shards import Shard, plan_shards, run_shards, verify_shards

BAD = "t00007"
"""This tile cannot be read: a row with an error."""

LETHAL = "t00042"
"""This tile ends the process that touches it, where there is a file named lethal in the folder of the job."""


@dataclass(frozen=True)
class MakeWork:
    """Squares the number in the id; leaves its process id in the folder, so that a test can kill it."""

    out: str
    seconds_a_tile: float = 0.0

    def __call__(self) -> Work:
        folder = Path(self.out)
        (folder / f"worker-{os.getpid()}").touch()
        lethal = (folder / "lethal").exists()

        def work(rows: pd.DataFrame) -> pd.DataFrame:
            time.sleep(self.seconds_a_tile * len(rows))
            if lethal and LETHAL in set(rows["tile_id"]):
                os._exit(9)
            number = rows["tile_id"].str[1:].astype(float)
            bad = rows["tile_id"] == BAD
            return pd.DataFrame(
                {
                    "tile_id": rows["tile_id"],
                    "col": rows["col"],
                    "square": (number**2).where(~bad).astype("float32"),
                    "label": "odd",
                    "error": bad.map({True: "cannot be read", False: ""}),
                }
            ).reset_index(drop=True)

        return work


def plan(out: Path, tiles: int = 600, size: int = 20) -> list[Shard]:
    """Shards of ``tiles`` tiles."""
    table = pd.DataFrame({"tile_id": [f"t{i:05d}" for i in range(tiles)], "col": range(tiles)})
    return plan_shards(table, out, size, {"model": "squares"})


def main() -> int:
    """Run or go on."""
    out, executor, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    shards = plan(out, *(int(word) for word in sys.argv[4:6]))
    run_shards(shards, out, MakeWork(str(out), 0.002), executor=executor, workers=workers)  # type: ignore[arg-type]
    verify_shards(shards, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
