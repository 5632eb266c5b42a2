"""A job over one or more scenes: plan the tiles, label them in shards, draw a map of each scene, write the tiles.

A stopped job goes on from its last finished shard; what is drawn from the shards is drawn anew, which takes little time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitdomains.core.geo.map.grid import make_grid, plan_table
from vitdomains.core.geo.map.outputs import Labels, Place, write_map
from vitdomains.core.geo.map.scene import LabelTiles
from vitdomains.core.geo.map.vectors import write_geoparquet, write_vectors
from vitdomains.core.geo.read.http import is_remote, shown
from vitdomains.core.geo.read.metadata import NOTHING_KNOWN, PixelMetadata, from_file
from vitdomains.core.geo.read.raster import describe_raster
from vitdomains.core.geo.read.scene_paths import Input, files_of, join_files
from vitdomains.core.jobs.shards import Executor, Shard, iter_shards, plan_shards, run_shards, verify_shards
from vitdomains.core.terminal import OnProgress


@dataclass(frozen=True)
class Scene:
    """A raster to map.

    ``name`` is unique in the job, ``item`` the address of its STAC item, ``when`` it was taken. ``known`` is what the user or
    the item say of the numbers of its files, by file without what signs an address; ``tags`` what its map says of the scene.
    """

    name: str
    path: str
    place: Place
    dtype: str
    item: str = ""
    when: datetime | None = None
    known: Mapping[str, PixelMetadata] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tiling:
    """How scenes are cut, in pixels as they are read.

    ``tile``: side; ``overlap``: shared with the neighbour, 0 to below 1; ``cell``: side of a cell of the map, 0 for a
    sixteenth of the tile; ``resolution``: metres on the ground a pixel, None for the scene's own; ``crs``: None likewise.
    """

    tile: int
    overlap: float = 0.25
    cell: int = 0
    resolution: float | None = None
    crs: str | None = None


@dataclass(frozen=True)
class ComputeOptions:
    """Executor, workers and devices of a job; see ``run_shards``."""

    executor: Executor = "inline"
    workers: int = 1
    threads: int = 0
    ray_address: str = ""
    num_gpus: float = 0.0
    shard_size: int = 512


@dataclass(frozen=True)
class MapResult:
    """What a job left: tiles by fate, and for each scene the cells of its map by name."""

    tiles: int
    skipped: int
    errors: tuple[str, ...]
    cells: dict[str, dict[str, int]] = field(default_factory=dict)


def open_scene(found: Input | str, tiling: Tiling, taken: set[str], given: PixelMetadata = NOTHING_KNOWN) -> Scene:
    """Look at a raster and lay the grid of tiles over it.

    Args:
        found: Its files, or their path: the first one's grid is that of the scene.
        tiling: How it is cut.
        taken: Names of other scenes of the job.
        given: What the user says of its numbers.

    Raises:
        ImageError: It cannot be read.
    """
    found = Input(tuple(files_of(found))) if isinstance(found, str) else found
    # Workers may run in another folder.
    files = [file if is_remote(file) else str(Path(file).resolve()) for file in found.files]
    info = describe_raster(files[0], resolution=tiling.resolution, crs=tiling.crs)
    stem = Path(shown(found.item if len(files) > 1 else files[0])).stem or "scene"
    lower = {name.lower() for name in taken}  # some file systems do not tell them apart
    name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(taken) + 3))) if n.lower() not in lower)
    known = [given.over(one) for one in found.known or (NOTHING_KNOWN,) * len(files)]
    grid = make_grid(info.width, info.height, tiling.tile, tiling.overlap, tiling.cell)
    place = Place(grid, info.transform, info.crs)
    listed = {shown(file): one for file, one in zip(files, known, strict=True) if one != NOTHING_KNOWN}
    whole = known[0].over(from_file(info))
    tags = replace(whole, units="", add_offset=None).tags()  # those of a map are no numbers of the sensor
    return Scene(name, join_files(files), place, info.dtype, found.item, whole.acquired, listed, tags)


def label_scenes(
    scenes: Sequence[Scene],
    work: LabelTiles,
    folder: Path,
    context: dict[str, Any],
    compute: ComputeOptions,
    on_progress: OnProgress,
) -> list[Shard]:
    """Label the tiles of all scenes, or the rest of them: the finished shards in ``folder``.

    Args:
        scenes: Opened with the same tiling.
        work: The worker.
        folder: Of the job.
        context: What else the results depend on, beside the plan (``plan_shards``).
        compute: Executor and workers.
        on_progress: As in ``run_shards``.
    """
    plan = pd.concat([plan_table(s.place.grid, s.name, s.path) for s in scenes], ignore_index=True)
    georeference = [[*tuple(s.place.transform)[:6], s.place.crs.to_wkt() if s.place.crs else ""] for s in scenes]
    shards = plan_shards(plan, folder, compute.shard_size, context | {"georeference": georeference})
    run_shards(
        shards, folder, work, executor=compute.executor, workers=compute.workers, threads=compute.threads,
        ray_address=compute.ray_address, num_gpus=compute.num_gpus, on_progress=on_progress,
    )  # fmt: skip
    verify_shards(shards, folder)
    return shards


def scene_tables(shards: Sequence[Shard], folder: Path, scene: Scene) -> Iterator[pd.DataFrame]:
    """The rows of one scene, in the order of the plan, a shard at a time."""
    own = [shard for shard in shards if (shard.rows["scene"] == scene.name).any()]
    for table in iter_shards(own, folder):
        yield table[table["scene"] == scene.name]


def path_for(out: Path, scene: Scene, scenes: Sequence[Scene]) -> Path:
    """``out`` for the only scene of a job; else with the scene's name behind its own: ``landcover-north.tif``."""
    return out if len(scenes) == 1 else out.with_name(f"{out.stem}-{scene.name}{out.suffix}")


def draw(
    scenes: Sequence[Scene],
    shards: Sequence[Shard],
    folder: Path,
    labels: Labels,
    out: Path,
    *,
    probabilities: Path | None = None,
    tiles: Path | None = None,
    vectors: Sequence[Path] = (),
    about: Mapping[str, str] | None = None,
    on_progress: OnProgress = lambda phase, done, total, text: None,
) -> MapResult:
    """Write the outputs of a finished job: a map for each scene, one table of tiles for all.

    Args:
        scenes, shards, folder: Of the job.
        labels: What becomes of probabilities.
        out: COG of labels (``path_for``).
        probabilities: COG of probabilities; None: not written.
        tiles: GeoParquet of the tiles; None: not written.
        vectors: GeoPackage, GeoJSON or FlatGeobuf of the tiles.
        about: Metadata of the GeoParquet, key to text.
        on_progress: Called with ("map", files done, files in all, "files").
    """
    total, done = len(scenes) + (tiles is not None) + len(vectors), 0
    cells = {}
    for scene in scenes:
        on_progress("map", done, total, "files")
        soft = path_for(probabilities, scene, scenes) if probabilities else None
        tables = scene_tables(shards, folder, scene)
        cells[scene.name] = write_map(tables, scene.place, labels, path_for(out, scene, scenes), soft, scene.tags)
        done += 1
    places = {scene.name: (scene.place.transform, scene.place.crs) for scene in scenes}
    for path in (*([tiles] if tiles else []), *vectors):
        on_progress("map", done, total, "files")
        write = partial(write_geoparquet, about=about) if path == tiles else write_vectors
        write(iter_shards(shards, folder), path, labels.classes, places)
        done += 1
    on_progress("map", done, total, "files")
    return replace(tile_counts(shards, folder), cells=cells)


def tile_counts(shards: Sequence[Shard], folder: Path) -> MapResult:
    """How many tiles of a finished job hold too little data, and which could not be read."""
    tiles = skipped = 0
    errors: list[str] = []
    for table in iter_shards(shards, folder):
        wrong = table["error"] != ""
        tiles += len(table)
        skipped += int((np.isnan(table["probability"]) & ~wrong).sum())
        errors += (table["tile_id"] + ": " + table["error"])[wrong].tolist()
    return MapResult(tiles, skipped, tuple(errors))
