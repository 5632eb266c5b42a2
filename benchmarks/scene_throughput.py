"""``satellite map`` against its own model and against TorchGeo's grid sampler, and its memory against the size of the scene.

    python benchmarks/scene_throughput.py landsat8_224078_bgr.tif

One ViT-Ti/16 at 224 pixels with random weights (speed does not depend on them) and 30 classes; the scene is cut into 224-pixel
tiles that overlap by a quarter. In turns, in one process:

- ``bare``: batches of prepared tiles that lie in memory through the same runtime, nothing else, all threads at one batch;
- ``bare, streams``: the same in smaller batches, one a thread at once, as ``map`` does it;
- ``map, tiles``: reading, preparing, inference, shards on disk;
- ``map, whole``: the same, and what is drawn from them (COG of labels, GeoParquet);
- ``torchgeo``: RasterDataset, GridGeoSampler, DataLoader and the same model in float32, and under bf16 autocast.

Tiles are counted where they reach the model: tiles without data are skipped by ``map`` and not by TorchGeo. Then ``map`` runs as
a command of its own, with a COG of probabilities too, on the scene and on the scene mosaicked 4 x 4, and the peaks of its
resident memory are compared.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import torch
from harness import interleave, require, write_result
from rasterio.windows import Window

from vitdomains.core.bundle import Bundle, read_bundle, write_bundle
from vitdomains.core.config.schema import Model
from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.geo.map.outputs import Labels
from vitdomains.core.geo.map.run import ComputeOptions, Scene, Tiling, draw, label_scenes, open_scene
from vitdomains.core.geo.map.scene import LabelTiles
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.models.build import build_model
from vitdomains.core.process import physical_cores, restart_with_tuned_allocator
from vitdomains.satellite.data.reader import read_image, window_reader
from vitdomains.satellite.scenes.map import CACHE_MB

SIZE, CLASSES = 224, tuple(f"class {i}" for i in range(30))
SENSOR, BANDS = "landsat8_l1", ("red=3", "green=2", "blue=1")
MOSAIC = 4


@dataclass(frozen=True)
class Setup:
    """A bundle with its model in memory, the scene, the worker of ``map``, and a folder for what is written."""

    bundle: Bundle
    scene: Scene
    predictor: Predictor
    work: LabelTiles
    folder: Path


def make_bundle(folder: Path, name: str) -> Bundle:
    model = Model(name=name, image_size=SIZE)
    torch.manual_seed(0)
    built = build_model(model, len(CLASSES), image_size=SIZE)
    spec = PreprocessSpec(SIZE, SIZE, "squash", 3, (0.5,) * 3, (0.5,) * 3)
    bundle = Bundle(
        path=folder, domain="satellite", task_kind="singlelabel", classes=CLASSES, model=model, preprocess=spec,
        temperature=(1.0,), thresholds=(0.5,) * len(CLASSES), threshold_rule="", metrics={}, data_card="", provenance={},
        exports={}, files={},
    )  # fmt: skip
    write_bundle(bundle, built.state_dict())
    return read_bundle(folder)


def set_up(path: Path, folder: Path, name: str, overlap: float, batch_size: int) -> Setup:
    bundle = make_bundle(folder / "bundle", name)
    predictor = Predictor(bundle, read_image, batch_size=batch_size)
    spec = replace(bundle.preprocess, sensor=SENSOR, bands=BANDS)
    scene = open_scene(str(path), Tiling(SIZE, overlap), set())
    same = partial(_loaded, predictor)
    return Setup(
        bundle, scene, predictor, LabelTiles(same, window_reader(spec), scene.place.grid.cell, batch_size), folder
    )


def _loaded(predictor: Predictor, **_: object) -> Predictor:
    """The predictor that is in memory: loading it is no part of the throughput."""
    return predictor


def run_map(setup: Setup, *, outputs: bool) -> pd.DataFrame:
    job = Path(tempfile.mkdtemp(dir=setup.folder))
    shards = label_scenes([setup.scene], setup.work, job, {}, ComputeOptions(), lambda *_: None)
    if outputs:
        draw([setup.scene], shards, job, Labels(CLASSES), job / "map.tif", tiles=job / "t.parquet")
    table = pd.concat([pd.read_parquet(file) for file in sorted(job.glob("shards/*.parquet"))])
    shutil.rmtree(job)
    return table


def run_bare(setup: Setup, tiles: int, batch: torch.Tensor) -> None:
    for start in range(0, tiles, len(batch)):
        setup.predictor.logits(batch[: min(len(batch), tiles - start)])


def run_streams(setup: Setup, tiles: int, batch: torch.Tensor) -> None:
    own, size = setup.predictor, setup.predictor.stream_batch
    parts = [batch[: min(size, tiles - start)] for start in range(0, tiles, size)]
    list(own.in_streams(partial(own.logits, streams=own.streams), parts))


def torchgeo_loader(path: Path, overlap: float, batch_size: int) -> Callable[[], Iterator[torch.Tensor]]:
    """Batches [B, 3, 224, 224] float32 in 0..1 as TorchGeo's users make them."""
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    class Scenes(RasterDataset):
        filename_glob = "*.tif"
        all_bands = ("blue", "green", "red")
        rgb_bands = ("red", "green", "blue")

    dataset = Scenes(paths=[str(path)], bands=["red", "green", "blue"])

    def batches() -> Iterator[torch.Tensor]:
        sampler = GridGeoSampler(dataset, size=SIZE, stride=round(SIZE * (1 - overlap)))
        for sample in DataLoader(
            dataset, batch_size=batch_size, sampler=sampler, collate_fn=stack_samples, num_workers=0
        ):
            yield (sample["image"] * 2e-5 - 0.1).clamp(0, 1)

    return batches


def run_torchgeo(setup: Setup, batches: Callable[[], Iterator[torch.Tensor]], *, bf16: bool) -> int:
    done = 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for images in batches():
            setup.predictor.model(normalise(images, setup.bundle.preprocess))
            done += len(images)
    return done


def write_mosaic(path: Path, out: Path) -> None:
    """The scene beside and below itself, ``MOSAIC`` times each way, block by block."""
    with rasterio.open(path) as source:
        pixels = source.read()
        profile = source.profile | {
            "width": source.width * MOSAIC,
            "height": source.height * MOSAIC,
            "bigtiff": "IF_SAFER",
        }
    _, height, width = pixels.shape
    wide = np.tile(pixels, (1, 1, MOSAIC))
    with rasterio.open(out, "w", **profile) as target:
        for row in range(0, height * MOSAIC, 256):
            rows = np.arange(row, min(row + 256, height * MOSAIC)) % height
            target.write(wide[:, rows], window=Window(0, row, width * MOSAIC, len(rows)))


def peak_memory(path: Path, setup: Setup, overlap: float) -> int:
    """Largest resident set of the command ``map``, bytes."""
    out = setup.folder / f"peak-{path.stem}"
    command = [
        sys.executable,
        "-m",
        "vitdomains.satellite",
        "map",
        path,
        "--bundle",
        setup.bundle.path,
        "--sensor",
        SENSOR,
    ]
    command += [
        "--bands",
        ",".join(BANDS),
        "--overlap",
        overlap,
        "--out",
        out / "map.tif",
        "--tiles",
        out / "t.parquet",
    ]
    command += ["--probabilities", out / "p.tif"]
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        _, status, usage = os.wait4(job.pid, 0)
        job.returncode = os.waitstatus_to_exitcode(status)
    if job.returncode:
        raise SystemExit(f"map failed with {job.returncode}")
    return usage.ru_maxrss * 1024


@contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scene", type=Path, help="landsat8_224078_bgr.tif, or another of blue, green and red in uint16")
    parser.add_argument("--model", default="timm:vit_tiny_patch16_224")
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="leave TorchGeo out")
    parser.add_argument("--no-memory", action="store_true", help="leave the mosaic out")
    parser.add_argument("--out", type=Path, default=None, help="folder of the result (default: benchmarks/results)")
    args = parser.parse_args()
    if not args.no_peers:
        require("torchgeo", otherwise="or leave it out: --no-peers")
    restart_with_tuned_allocator()
    os.environ.setdefault("GDAL_CACHEMAX", CACHE_MB)
    torch.set_num_threads(physical_cores())
    with tempfile.TemporaryDirectory() as temporary, quiet():
        setup = set_up(args.scene.resolve(), Path(temporary), args.model, args.overlap, args.batch_size)
        result = throughput(setup, args) | ({} if args.no_memory else memory(setup, args))
    show(result)
    path = write_result("scene_throughput", result, **({"folder": args.out} if args.out else {}))
    sys.stdout.write(f"{path}\n")


def throughput(setup: Setup, args: argparse.Namespace) -> dict[str, Any]:
    table = run_map(setup, outputs=False)
    labelled = int((table["label"] != "").sum())
    batch = torch.randint(0, 256, (args.batch_size, 3, SIZE, SIZE), dtype=torch.uint8)
    candidates: dict[str, Callable[[], object]] = {
        "bare": lambda: run_bare(setup, labelled, batch),
        "bare, streams": lambda: run_streams(setup, labelled, batch),
        "map, tiles": lambda: run_map(setup, outputs=False),
        "map, whole": lambda: run_map(setup, outputs=True),
    }
    counts = dict.fromkeys(candidates, labelled)
    if not args.no_peers:
        batches = torchgeo_loader(args.scene, args.overlap, args.batch_size)
        for name, bf16 in (("torchgeo, fp32", False), ("torchgeo, bf16 autocast", True)):
            candidates[name] = partial(run_torchgeo, setup, batches, bf16=bf16)
        n = run_torchgeo(setup, batches, bf16=True)
        counts |= dict.fromkeys(("torchgeo, fp32", "torchgeo, bf16 autocast"), n)
    times = interleave(candidates, repeats=args.repeats, warmup=1)
    found = {
        name: {**times[name], "tiles": counts[name], "tiles_per_s": counts[name] / times[name]["median_s"]}
        for name in times
    }
    bare = max(found[name]["tiles_per_s"] for name in ("bare", "bare, streams"))
    for row in found.values():
        row["of_bare"] = row["tiles_per_s"] / bare
    about = {
        "model": args.model,
        "precision": setup.predictor.backend.precision,
        "batch_size": args.batch_size,
    }
    return {**about, "overlap": args.overlap, "tiles": len(table), "labelled": labelled, "throughput": found}


def memory(setup: Setup, args: argparse.Namespace) -> dict[str, Any]:
    mosaic = setup.folder / "mosaic.tif"
    write_mosaic(args.scene, mosaic)
    one, many = (peak_memory(path, setup, args.overlap) for path in (args.scene.resolve(), mosaic))
    return {"memory": {"scene_bytes": one, f"mosaic_{MOSAIC**2}x_bytes": many, "ratio": many / one}}


def show(result: dict[str, Any]) -> None:
    for name, row in result["throughput"].items():
        sys.stdout.write(f"{name:<26}{row['tiles_per_s']:8.1f} tiles/s{row['of_bare']:8.2f} of the faster bare\n")
    if "memory" in result:
        one, many, ratio = result["memory"].values()
        sys.stdout.write(f"peak memory: {one / 2**20:.0f} MiB, mosaic {many / 2**20:.0f} MiB, ratio {ratio:.3f}\n")


if __name__ == "__main__":
    main()
