"""100,000 small tiles of one scene, one in a hundred of them corrupt, killed again and again: nothing lost, memory flat.

    python benchmarks/zeroshot_soak.py                                        # local processes, then Ray
    python benchmarks/zeroshot_soak.py --tiles 3000 --kills 2 --shard_size 64 --executors processes      # a try

For each executor the job is started, killed with SIGKILL at a random moment, and started again, as often as asked; at one more
start a worker is killed instead. After the last run every planned tile has to be there once, the corrupt ones with an error, and
all labels equal to those of a run that nobody touched. Memory is the resident set of the job and all of its processes together,
sampled in the undisturbed run; flat means that the last quarter of it needs no more than the second. Writes
``benchmarks/results/zeroshot_soak.json``.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
from affine import Affine
from harness import write_result
from rich.console import Console
from zeroshot_throughput import CLASSES, random_clip

from vitdomains.core.geo.map.run import ComputeOptions
from vitdomains.zeroshot.embeddings.store import plan_tiles
from vitdomains.zeroshot.labels.label import Compute, Options, label_tiles
from vitdomains.zeroshot.labels.prompts import read_classes
from vitdomains.zeroshot.models.towers import load_towers
from vitdomains.zeroshot.students.student import read_tiles

SIDE = 32
"""Of a tile and of a block of the file, pixels: a damaged block is a damaged tile."""
console = Console()


def write_scene(path: Path, tiles: int, seed: int = 0) -> int:
    """A compressed scene of at least so many tiles; one block in a hundred is overwritten. Returns how many were."""
    across = int(np.ceil(tiles**0.5))
    size, rng = across * SIDE, np.random.default_rng(seed)
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000)}
    layout = {
        "tiled": True,
        "blockxsize": SIDE,
        "blockysize": SIDE,
        "compress": "deflate",
        "interleave": "pixel",
        "zlevel": 1,
    }
    with rasterio.open(path, "w", "GTiff", size, size, 3, dtype="uint8", **layout, **place) as out:
        for row in range(across):
            coarse = rng.integers(0, 256, (3, 8, size // 4), dtype=np.uint8)
            band = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)
            out.write(band, window=rasterio.windows.Window(0, row * SIDE, size, SIDE))
    with rasterio.open(path) as source:
        chosen = rng.permutation(across * across)[: across * across // 100]
        spots = [
            tuple(
                int(source.get_tag_item(f"{what}_{c}_{r}", "TIFF", bidx=1)) for what in ("BLOCK_OFFSET", "BLOCK_SIZE")
            )
            for r, c in (divmod(int(i), across) for i in chosen)
        ]
    with path.open("r+b") as handle:
        for offset, length in spots:
            handle.seek(offset)
            handle.write(b"\xff" * length)
    return len(spots)


def job(args: argparse.Namespace, model: str, scene: str, out: str, executor: str) -> None:
    """The labelling itself, in a process of its own."""
    means = ComputeOptions(executor, args.workers, 1, shard_size=args.shard_size)  # type: ignore[arg-type]
    label_tiles(
        load_towers(model), read_classes(CLASSES), plan_tiles([scene], SIDE, 0.0), out, options=Options(sheets=False),
        compute=Compute(means, "auto", 64, readers=1),
    )  # fmt: skip


def start(args: argparse.Namespace, model: Path, scene: Path, out: Path, executor: str) -> subprocess.Popen[bytes]:
    own = ["--job", str(model), str(scene), str(out), executor, "--workers", str(args.workers)]
    command = [sys.executable, __file__, *own, "--shard_size", str(args.shard_size)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)


def finished(out: Path) -> int:
    """Finished shards of the running job."""
    return len(list(out.glob("index/jobs/*/shards/shard-*.json")))


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def resident_mb(pid: int) -> float:
    """Resident memory of a process and all that it started, shared pages shared out among them, MiB."""
    total = 0.0
    for member in family(pid):
        try:
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(float(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def watched(process: subprocess.Popen[bytes], out: Path, shards: int) -> list[tuple[float, float]]:
    """Samples (share of the shards that is finished, MiB) until the job ends."""
    samples = []
    while process.poll() is None:
        samples.append((finished(out) / shards, resident_mb(process.pid)))
        time.sleep(0.5)
    return [sample for sample in samples if 0 < sample[0] < 1]


def kill_at_random(process: subprocess.Popen[bytes], out: Path, rng: random.Random, upto: int, worker: bool) -> bool:
    """Wait until some more shards are finished, and kill; False where the job ended before."""
    wanted = finished(out) + rng.randint(1, max(1, upto))
    while finished(out) < wanted:
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    if worker:
        members = family(process.pid)[1:]
        busy = [pid for pid in members if b"spawn_main" in _command(pid) or b"ray::_Actor" in _command(pid)]
        os.kill((busy or members)[0], signal.SIGKILL)
        process.wait()
        return process.returncode == 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def soak(args: argparse.Namespace, root: Path, executor: str, bad: int) -> dict[str, Any]:
    model, scene = root / "clip", root / "scene.tif"
    tiles = len(plan_tiles([scene], SIDE, 0.0).table)
    shards = -(-tiles // args.shard_size)
    whole, torn = root / f"whole-{executor}", root / f"torn-{executor}"
    begin = time.perf_counter()
    samples = watched(start(args, model, scene, whole, executor), whole, shards)
    seconds = time.perf_counter() - begin
    quarters = [[mb for share, mb in samples if low < share <= low + 0.25] for low in (0.25, 0.75)]
    memory = [float(np.median(part)) if part else float("nan") for part in quarters]
    rng, kills, starts, done = random.Random(args.seed), {"job": 0, "worker": 0}, 0, False
    for number in range(args.kills + 1):
        process = start(args, model, scene, torn, executor)
        starts += 1
        victim = "worker" if number == args.kills else "job"
        upto = max(1, (shards - finished(torn)) // (args.kills - number + 2))
        if not kill_at_random(process, torn, rng, upto, victim == "worker"):
            done = process.returncode == 0
            break
        kills[victim] += 1
        done = process.returncode == 0
    if not done:
        assert start(args, model, scene, torn, executor).wait() == 0
        starts += 1
    expected, found = read_tiles(whole), read_tiles(torn)
    assert list(found["tile_id"]) == list(plan_tiles([scene], SIDE, 0.0).table["tile_id"]), (
        "tiles are missing or double"
    )
    pd.testing.assert_frame_equal(found.drop(columns="model_id"), expected.drop(columns="model_id"))
    errors = int((found["error"] != "").sum())
    assert errors == bad, f"{errors} errors for {bad} corrupt tiles"
    return {
        "tiles": tiles, "corrupt": bad, "listed": errors, "starts": starts, "kills": kills, "identical": True,
        "seconds_undisturbed": seconds, "tiles_per_second": tiles / seconds,
        "memory_mib": {"second_quarter": memory[0], "last_quarter": memory[1], "peak": max((m for _, m in samples), default=0.0)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=100_000, help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="a run (%(default)s)")
    parser.add_argument("--shard_size", type=int, default=512, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--executors", default="processes,ray", help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--write", action="store_true", help="write the result also of another size than the default")
    parser.add_argument("--job", nargs=4, metavar=("MODEL", "SCENE", "OUT", "EXECUTOR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job(args, *args.job)
        return
    found: dict[str, Any] = {}
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        random_clip(root / "clip", small=True)
        bad = write_scene(root / "scene.tif", args.tiles)
        for executor in args.executors.split(","):
            found[executor] = soak(args, root, executor, bad)
            console.print(executor, found[executor], highlight=False)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if args.write or args.tiles == parser.get_default("tiles"):
        console.print(f"written: {write_result('zeroshot_soak', found)}")


if __name__ == "__main__":
    main()
