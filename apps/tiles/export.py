"""Reviewed tiles on their way out: tables with review columns for other programs, and a training set of tile files."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import rasterio
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from apps.tiles.session import TileSession
from vitdomains.core.data.manifest import Manifest, make_manifest, write_manifest
from vitdomains.core.errors import ConfigError
from vitdomains.core.geo.map.outline import tile_outlines
from vitdomains.core.geo.read.info import LONLAT
from vitdomains.core.geo.read.raster import describe_raster, read_window
from vitdomains.core.geo.read.scene_paths import files_of
from vitdomains.core.review.agreement import Rule, consensus, readings
from vitdomains.core.review.export import SUBJECT, training_manifest
from vitdomains.satellite.scenes.multi_file import resolution_of

FORMATS = {
    ".gpkg": ("GeoPackage", "application/geopackage+sqlite3"),
    ".parquet": ("GeoParquet", "application/vnd.apache.parquet"),
    ".geojson": ("GeoJSON", "application/geo+json"),
    ".csv": ("CSV", "text/csv"),
}
_EXACT = ("uint8", "uint16", "int16", "float32")  # kept as they are by the reader, which works in float32


def reviewed_tiles(session: TileSession, rule: Rule = "unanimous", *, only_reviewed: bool = False) -> pd.DataFrame:
    """The table of tiles with what the reviewers say of them.

    Args:
        session: Of the page.
        rule: When the readers' word holds, see ``consensus``.
        only_reviewed: Leave out tiles of which nobody has said anything.

    Returns:
        The tile table with ``review`` (what holds: a class or ``not NAME``; of several classes those that are present, joined
        by ``|``; ``unsure`` where nothing holds; empty where nobody has said anything), ``settled``, ``reviewers``,
        ``reviewed_at`` and ``notes``.
    """
    decisions, table = session.decisions.table, session.tiles.table
    decisions = decisions[decisions["item"].isin(set(table["item"]))]
    settled = consensus(readings(decisions), rule)
    by_item = settled.groupby("item", sort=False)
    if session.single:
        review = settled[settled["subject"] == SUBJECT].set_index("item")["value"]
    else:
        words = settled.assign(word=np.where(settled["value"] == "present", settled["subject"], ""))
        review = words.groupby("item")["word"].agg(lambda names: "|".join(filter(None, names)))
    standing = decisions[decisions["item"].isin(set(settled["item"]))]
    last = standing.drop_duplicates(["item", "reviewer", "role"], keep="last").groupby("item")
    out = table.assign(
        review=table["item"].map(review).fillna("").astype("str"),
        settled=table["item"].map(by_item["settled"].all()).eq(True)
        & ~table["item"].isin(session.decisions.unfinished()),
        reviewers=table["item"].map(last["reviewer"].agg(lambda names: ", ".join(sorted(set(names))))).fillna(""),
        reviewed_at=table["item"].map(last["time"].max()).fillna(""),
        notes=table["item"].map(last["note"].agg(lambda notes: " / ".join(filter(None, notes)))).fillna(""),
    )
    return out[out["reviewers"] != ""].reset_index(drop=True) if only_reviewed else out


def write_table(session: TileSession, table: pd.DataFrame, target: Path) -> None:
    """Write the table, by the ending of its name (``FORMATS``): polygons in the scene's CRS, GeoJSON in longitude and latitude.

    Raises:
        ConfigError: A format with polygons, and the scene has no CRS.
    """
    if target.suffix == ".csv":
        table.assign(**{c: table[c].map(_no_formula) for c in ("notes", "reviewers", "review")}).to_csv(
            target, index=False
        )
        return
    info = session.context.scene.info
    if info.crs is None:
        raise ConfigError("The scene has no CRS, so its tiles have no place on the earth.", hint="Export CSV.")
    frame = geopandas.GeoDataFrame(table, geometry=polygons(table, info.transform), crs=info.crs.to_wkt())
    if target.suffix == ".parquet":
        frame.to_parquet(target, index=False, write_covering_bbox=True, schema_version="1.1.0")
    elif target.suffix == ".geojson":
        shapes, _ = tile_outlines(table, info.transform, info.crs, LONLAT)  # cut at 180 degrees, as map does
        geopandas.GeoDataFrame(table, geometry=shapes, crs="OGC:CRS84").to_file(
            target, driver="GeoJSON", engine="pyogrio", RFC7946="YES"
        )
    else:
        frame.to_file(target, layer="reviewed", driver="GPKG", engine="pyogrio")


def _no_formula(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text


def polygons(table: pd.DataFrame, transform: Affine) -> np.ndarray:
    """The outline of each tile, in coordinates of the scene's CRS."""
    left, top = table["col"].to_numpy(np.float64), table["row"].to_numpy(np.float64)
    right, bottom = left + table["width"].to_numpy(), top + table["height"].to_numpy()
    x, y = np.stack([left, right, right, left], axis=1), np.stack([top, top, bottom, bottom], axis=1)
    a, b, c, d, e, f = tuple(transform)[:6]
    return np.asarray(shapely.polygons(np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)))


def settled_manifest(session: TileSession, rule: Rule = "unanimous") -> Manifest:
    """What the reviewers settled, as records for training; ``path`` is the scene, the window stands in col to height.

    Raises:
        ManifestError: No tile was reviewed.
    """
    table = session.tiles.table
    table = table[~table["item"].isin(session.decisions.unfinished())]
    unknown = np.full((len(table), len(session.tiles.classes)), np.nan, np.float32)
    base = make_manifest(
        table["tile_id"].tolist(), table["path"].tolist(), table["tile_id"].tolist(), session.tiles.classes, unknown,
        extra=table[["scene", "col", "row", "width", "height"]], name="reviewed",
    )  # fmt: skip
    return training_manifest(session.store, base, dict(zip(table["tile_id"], table["item"], strict=True)), rule=rule)


def training_set(session: TileSession, target: Path, rule: Rule = "unanimous") -> None:
    """Write a ZIP of ``manifest.csv`` and a GeoTIFF for each settled tile, as ``tile`` writes them: ``train`` takes it unpacked.

    One tile is in memory at a time.

    Raises:
        ManifestError: No tile was reviewed.
        ImageError: The scene cannot be read.
    """
    made = settled_manifest(session, rule)
    with tempfile.TemporaryDirectory(prefix="vitdomains-tiles-") as name, zipfile.ZipFile(target, "w") as archive:
        folder = Path(name)
        rows = made.table
        paths = [str(folder / "tiles" / f"{tile}.tif") for tile in rows["id"]]
        moved = Manifest(rows.assign(path=paths), made.classes, made.name)
        archive.write(write_manifest(moved, folder / "manifest.csv"), "manifest.csv")
        windows = rows[["col", "row", "width", "height"]].itertuples(index=False, name=None)
        for tile, window in zip(rows["id"], windows, strict=True):
            archive.writestr(f"tiles/{tile}.tif", tile_file(session, tuple(map(int, window))))


def tile_file(session: TileSession, window: tuple[int, ...]) -> bytes:
    """A window of the scene as a GeoTIFF, in its own numbers and all its bands."""
    scene = session.context.scene
    info, asked = scene.info, session.options
    col, row, width, height = window
    files = files_of(scene.path)
    resolutions = [resolution_of(file, files[0], asked.resolution, asked.crs) for file in files]
    parts = [read_window(file, (col, row, width, height), resolution=own, crs=asked.crs)
             for file, own in zip(files, resolutions, strict=True)]  # fmt: skip
    valid = np.logical_and.reduce([part.valid for part in parts])
    types = {describe_raster(file).dtype for file in files}
    stored = types <= set(_EXACT) and asked.crs is None and set(resolutions) == {None}
    dtype = str(np.result_type(*types)) if stored else "float32"
    dtype = dtype if dtype in _EXACT else "float32"
    crs: CRS | None = parts[0].crs
    pixels = np.concatenate([part.pixels for part in parts]).astype(dtype)
    profile = {
        "driver": "GTiff", "dtype": dtype, "count": len(pixels), "width": width, "height": height, "crs": crs,
        "transform": parts[0].transform if crs else None, "nodata": info.nodata, "compress": "deflate",
        "photometric": "minisblack",
    }  # fmt: skip
    if info.nodata is not None:
        pixels[:, ~valid] = info.nodata
    with MemoryFile() as memory:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), memory.open(**profile) as file:
            file.write(pixels)
            if info.bands:
                file.descriptions = info.bands
            if not valid.all() and info.nodata is None:
                file.write_mask(valid)
        return bytes(memory.getbuffer())
