"""A labelling as a program that tests and benchmarks can kill: MODEL TILES OUT EXECUTOR WORKERS [SHARD_SIZE [TILE]]."""

from __future__ import annotations

import sys

from vitdomains.core.geo.map.run import ComputeOptions
from vitdomains.zeroshot.embeddings.store import plan_tiles
from vitdomains.zeroshot.labels.label import Compute, Options, label_tiles
from vitdomains.zeroshot.labels.prompts import read_classes
from vitdomains.zeroshot.models.towers import load_towers

CLASSES = "forest, river or lake, residential buildings, parking lot"


def main() -> int:
    """Label, or go on."""
    model, tiles, out, executor, workers = sys.argv[1:6]
    shard_size, tile = (int(word) for word in (sys.argv[6:8] + ["8", "0"][len(sys.argv) - 6 :]))
    means = ComputeOptions(executor, int(workers), 1, "", 0.0, shard_size)  # type: ignore[arg-type]
    plan = plan_tiles([tiles], tile)
    compute = Compute(means, batch_size=8, readers=1)
    label_tiles(load_towers(model), read_classes(CLASSES), plan, out, options=Options(sheets=False), compute=compute)
    return 0


if __name__ == "__main__":
    sys.exit(main())
