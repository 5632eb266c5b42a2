"""The tiles of one scene as ``map`` labelled them, ready for filters over a hundred thousand of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apps.shared.bundle_info import BundleInfo
from vitdomains.core.data.tables import as_text, read_table, require_columns
from vitdomains.core.errors import ManifestError
from vitdomains.core.geo.map.outputs import Labels, class_colours
from vitdomains.core.geo.map.tiles_table import PLACE, classes_of
from vitdomains.core.geo.read.http import is_remote, shown
from vitdomains.core.geo.read.info import place
from vitdomains.core.geo.read.raster import RasterInfo
from vitdomains.core.geo.read.scene_paths import files_of, shown_path

SAMPLE = 1 << 20  # bytes at the start, the middle and the end of a scene by which it is known
GREY = (128, 128, 128)
_NEEDED = (*PLACE, "label", "probability", "margin", "entropy", "error")
_OFF = 1.0  # pixels by which a tile's polygon may differ from its place


@dataclass(frozen=True)
class TileList:
    """The tiles. ``table`` has the columns of the tile table (without geometry) and ``item``, the tile's name in the store."""

    table: pd.DataFrame
    classes: tuple[str, ...]
    kind: str
    called: NDArray[np.bool_]
    """[N, K] which classes the model calls of a tile; none where it has no label."""
    queued: NDArray[np.int64]
    """[N] place in the queue from 0; the number of tiles where a tile is not in it."""
    path: str
    """Of the scene, as the table names it."""

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def items(self) -> NDArray[np.object_]:
        """[N] name of each tile in the store."""
        return self.table["item"].to_numpy(dtype=object)

    @cached_property
    def position(self) -> dict[str, int]:
        """Item to row."""
        return {item: row for row, item in enumerate(self.table["item"])}

    @cached_property
    def labelled(self) -> NDArray[np.bool_]:
        """[N] whether the model has said anything of a tile."""
        return np.asarray(self.table["probability"].notna(), dtype=np.bool_)

    @cached_property
    def code(self) -> NDArray[np.int16]:
        """[N] the class of highest probability, -1 where there is none."""
        p = self.probabilities
        best = np.where(np.isnan(p), -1.0, p).argmax(axis=1)
        return np.where(self.labelled, best, -1).astype(np.int16)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """[N, K]."""
        return self.table[[f"prob:{c}" for c in self.classes]].to_numpy(np.float32)

    @cached_property
    def extents(self) -> NDArray[np.int32]:
        """[N, 4] column, row, width, height."""
        return self.table[["col", "row", "width", "height"]].to_numpy(np.int32)

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """[N, 2] x and y in pixels of the scene."""
        return self.extents[:, :2] + self.extents[:, 2:] / 2

    @cached_property
    def step(self) -> tuple[int, int]:
        """The usual distance from tile to tile, across and down: what each is drawn as, so that overlaps hide nothing."""
        steps = []
        for axis in (0, 1):
            edges = np.unique(self.extents[:, axis])
            steps.append(int(np.median(np.diff(edges))) if len(edges) > 1 else int(self.extents[0, 2 + axis]))
        return steps[0], steps[1]

    @cached_property
    def palette(self) -> NDArray[np.uint8]:
        """[K + 1, 3] colour of each class as on the drawn map; the last is grey, for none."""
        named = class_colours(Labels(self.classes))
        return np.array([*(named[k + 1] for k in range(len(self.classes))), GREY], np.uint8)

    def shown(self, row: int) -> dict[str, float]:
        """Class to probability of a tile."""
        return dict(zip(self.classes, map(float, self.probabilities[row]), strict=True))


def read_tiles(tiles: Path, scene: str, info: RasterInfo, bundle: BundleInfo, queue: Path | None = None) -> TileList:
    """The tiles that lie on a scene.

    Args:
        tiles: What ``map`` wrote.
        scene: Path or address of the raster, as ``scene_path`` has it.
        info: Of the raster, on the grid on which it was mapped.
        bundle: Of the bundle.
        queue: What ``queue`` wrote.

    Raises:
        ManifestError: No table of tiles, none of this scene, of other classes than the bundle's, or not on its pixels.
    """
    table = _read(tiles)
    classes = classes_of([str(c) for c in table.columns])
    if set(classes) != set(bundle.classes):
        raise ManifestError(
            f"{tiles} has the classes {', '.join(classes) or 'none'}; the bundle has {', '.join(bundle.classes)}.",
            hint="Give the bundle with which the tiles were mapped.",
        )
    table = _of_scene(table, scene, tiles)
    _check_place(table, tiles, info)
    text = {name: table[name].fillna("").astype("str") for name in ("tile_id", "label", "error", "scene")}
    table = table.assign(**text, item=_items(table, scene, info)).reset_index(drop=True)
    if not table["tile_id"].is_unique:
        raise ManifestError(f"{tiles} names a tile twice.", hint="Write it again with map.")
    kind = bundle.task_kind
    p = table[[f"prob:{c}" for c in bundle.classes]].to_numpy(np.float32)
    if kind == "multilabel":
        called = p >= np.asarray(bundle.thresholds, np.float32)
    else:
        called = table["label"].to_numpy(dtype=object)[:, None] == np.asarray(bundle.classes, dtype=object)
    return TileList(
        table, bundle.classes, kind, np.asarray(called, np.bool_), _queued(table, queue), str(table["path"].iloc[0])
    )


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            names = [n for n in pq.read_schema(path).names if n not in ("geometry", "bbox")]
            table = pd.read_parquet(path, columns=names)
        else:
            table = read_table(path, text=("tile_id", "scene", "path", "label", "error"))
            table = table.drop(columns=["geometry", "bbox"], errors="ignore")
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {error}.", hint="Write it again with map.") from error
    require_columns(table, _NEEDED, path)
    return table


def _of_scene(table: pd.DataFrame, scene: str, tiles: Path) -> pd.DataFrame:
    """The rows whose path is the scene; else, where it was moved, those whose file has its name."""
    if not len(table):
        raise ManifestError(f"{tiles} holds no tile.", hint="Run map on a scene that holds data.")
    found = table[table["path"] == shown_path(scene)]
    if not len(found):
        found = table[table["path"].map(_names) == _names(scene)]
    if not len(found) or found["path"].nunique() > 1:
        names = sorted({", ".join(_names(p)) for p in table["path"].unique()})
        raise ManifestError(
            f"{tiles} has no tile of {scene}; its scenes are {', '.join(names[:8])}.",
            hint="Give one of them as --scene.",
        )
    if (found["col"] < 0).any():
        raise ManifestError(
            f"{tiles} lists image files, not windows of a scene.",
            hint="Map the scene first: python -m vitdomains.satellite map. For image files there is apps/zeroshot_review.py.",
        )
    return found


def _names(path: object) -> tuple[str, ...]:
    """What a path is known by where its files were moved: their names; of a file a band, which are called alike in every scene of
    a catalogue, their folder's too."""
    files = [Path(shown(file)) for file in files_of(str(path))]
    return tuple(file.name if len(files) == 1 else f"{file.parent.name}/{file.name}" for file in files)


def _check_place(table: pd.DataFrame, tiles: Path, info: RasterInfo) -> None:
    """Refuse tiles that were cut on another grid: they would show another ground than the model saw."""
    first = table.iloc[0]
    wrong = bool((table["col"] >= info.width).any() or (table["row"] >= info.height).any())
    corner = _corner(tiles, str(first["tile_id"]), info)
    if corner is not None:
        wrong |= max(abs(corner[0] - first["col"]), abs(corner[1] - first["row"])) > _OFF
    if wrong:
        raise ManifestError(
            f"The tiles of {tiles} do not lie on the pixels of the scene ({info.width} x {info.height}).",
            hint="Where map was told --resolution or --crs, tell the app the same.",
        )


def _corner(tiles: Path, tile_id: str, info: RasterInfo) -> tuple[float, float] | None:
    """Where the polygon of a tile begins, in pixels of the scene; None where the table has no polygons."""
    if tiles.suffix.lower() != ".parquet" or info.crs is None:
        return None
    import pyarrow.parquet as pq
    import pyproj
    import shapely

    about = pq.read_schema(tiles)
    if b"geo" not in (about.metadata or {}):
        return None
    rows = pq.read_table(tiles, columns=["tile_id", "geometry"], filters=[("tile_id", "=", tile_id)])
    polygon = shapely.from_wkb(rows["geometry"][0].as_py()) if len(rows) and rows["geometry"][0].is_valid else None
    if polygon is None or polygon.geom_type != "Polygon":  # 180 degrees cut it: it begins elsewhere
        return None
    crs = pyproj.CRS.from_json_dict(json.loads(about.metadata[b"geo"])["columns"]["geometry"]["crs"])
    mover = pyproj.Transformer.from_crs(crs, info.crs.to_wkt(), always_xy=True)
    x, y = mover.transform(*polygon.exterior.coords[0])
    if info.crs.is_geographic:  # outlines stay within 180 degrees, scenes need not
        x += 360 * round(((info.bounds.left + info.bounds.right) / 2 - x) / 360)
    return place(~info.transform, x, y)


def _items(table: pd.DataFrame, scene: str, info: RasterInfo) -> list[str]:
    """A hash of the scene's content, its grid and the window: the same tile wherever the files lie, whoever mapped it."""
    mark = hashlib.sha256()
    for path in files_of(scene):
        if is_remote(path):
            mark.update(path.split("?")[0].encode())
            continue
        size = Path(path).stat().st_size
        mark.update(str(size).encode())
        with Path(path).open("rb") as file:
            for at in sorted({0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)}):
                file.seek(at)
                mark.update(hashlib.sha256(file.read(SAMPLE)).digest() + str(at).encode())
    mark.update(json.dumps([info.width, info.height, *tuple(info.transform)[:6]]).encode())
    base = mark.hexdigest()
    windows = zip(table["col"], table["row"], table["width"], table["height"], strict=True)
    return [hashlib.sha256(f"{base} {c} {r} {w} {h}".encode()).hexdigest() for c, r, w, h in windows]


def _queued(table: pd.DataFrame, queue: Path | None) -> NDArray[np.int64]:
    places = np.full(len(table), len(table), np.int64)
    if queue is None:
        return places
    try:
        order = as_text(read_table(queue, ("tile_id",), text=("tile_id",))["tile_id"]).tolist()
    except ManifestError as error:
        raise ManifestError(
            f"{queue} is no queue of tiles: {error.message}", hint="Write it with python -m vitdomains.satellite queue."
        ) from error
    rank = {tile: i for i, tile in reversed([*enumerate(order)])}
    found = table["tile_id"].map(rank)
    if found.isna().all():
        raise ManifestError(f"No tile of {queue} is in the table.", hint="Make the queue from the same table of tiles.")
    return np.asarray(found.fillna(len(table)), dtype=np.int64)
