"""A scene and what is on the ground -> labelled tiles: GeoTIFF files and the manifest that training reads."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.warp import transform as reproject_points
from rich.table import Table

from vitdomains.core.config.yaml_file import read_yaml
from vitdomains.core.data.manifest import Manifest, labels, make_manifest, write_manifest
from vitdomains.core.domain import Domain
from vitdomains.core.errors import ConfigError, ImageError, ManifestError
from vitdomains.core.files import write_atomically, write_text
from vitdomains.core.geo.read.http import shown
from vitdomains.core.geo.read.metadata import PixelMetadata, from_options, known_of, parse_bands
from vitdomains.core.geo.read.nodata import distinct
from vitdomains.core.geo.read.pixels import band_numbers
from vitdomains.core.geo.read.raster import RasterInfo, describe_raster, read_window
from vitdomains.core.geo.read.scene_paths import find_input
from vitdomains.core.terminal import console, shown_progress
from vitdomains.satellite.scenes.label_raster import LabelRows, reference_labels
from vitdomains.satellite.sensors import BASELINE_HELP, UNITS_HELP

log = logging.getLogger(__name__)

MANIFEST = "manifest.csv"
_EXACT = ("uint8", "int8", "uint16", "int16", "float32")
PLAN = "tiles.json"
OnTiles = Callable[[int, int], None]


@dataclass(frozen=True)
class TileRules:
    """Which tiles are cut.

    Attributes:
        size: Side of a tile, pixels of the scene.
        stride: Step from tile to tile, pixels; 0: ``size``, so that tiles do not overlap.
        min_purity: Least share of a tile's valid pixels that carry its majority label, 0..1.
        min_valid: Least share of a tile's pixels that hold data, 0..1.
        field: Field of the polygons that holds the class.
        bands: Which bands the tiles get, in this order (``tile_bands``); none: all of the scene.
        baseline, units, acquired: What is said of the scene's numbers (``PixelMetadata``), as on the command line.
    """

    size: int = 64
    stride: int = 0
    min_purity: float = 0.5
    min_valid: float = 1.0
    field: str = ""
    bands: tuple[str, ...] = ()
    baseline: str = ""
    units: str = ""
    acquired: str = ""

    def __post_init__(self) -> None:
        if self.size < 1 or self.stride < 0:
            raise ConfigError(f"Tiles of {self.size} pixels every {self.stride}.", hint="Give a size of 1 or more.")
        if not (0 <= self.min_purity <= 1 and 0 < self.min_valid <= 1):
            raise ConfigError(
                f"min_purity {self.min_purity} and min_valid {self.min_valid} are no shares.",
                hint="Purity lies in 0..1, the valid share above 0 and at most 1.",
            )


def cut_tiles(
    scenes: Sequence[str | Path],
    labels: str | Path,
    out: str | Path,
    rules: TileRules = TileRules(),
    *,
    names: Mapping[str, str] | None = None,
    on_progress: OnTiles = lambda done, total: None,
) -> Manifest:
    """Cut the tiles of one or more scenes that one class dominates.

    Only whole tiles are cut, row by row from the top left. Files are written one at a time, whole or not at all, and the
    manifest last: after a stop the same call goes on where it was.

    Args:
        scenes: Rasters; their names without ending are told apart.
        labels: A label raster or polygons, in any CRS (see ``reference_labels``).
        out: Folder of ``manifest.csv`` and ``tiles/``.
        rules: Size, stride, thresholds.
        names: Class name by value of the labels.
        on_progress: Called with (rows of tiles done, in all).

    Returns:
        The manifest, as the source ``tiles`` reads it; beyond the usual columns ``purity`` (share of the valid pixels that
        carry the label), ``valid_fraction``, ``lon`` and ``lat`` of the centre (WGS 84; NaN without a CRS), ``scene``, and
        ``col``, ``row``, ``width``, ``height`` in pixels of the scene.

    Raises:
        ImageError: A scene or the labels cannot be read.
        ManifestError: No tile passes the rules, two scenes share a name, or ``out`` holds tiles of another call.
    """
    folder = Path(out)
    given = from_options(baseline=rules.baseline, units=rules.units, acquired=rules.acquired)
    sources = [_scene(scene, given, rules.bands) for scene in scenes]
    stems = [source.stem for source in sources]
    if len({stem.lower() for stem in stems}) < len(stems):
        raise ManifestError(f"Two scenes share a name: {', '.join(stems)}.", hint="Rename one; tiles are named by it.")
    plan = _plan(folder, scenes, labels, rules, names)
    step = rules.stride or rules.size
    total = sum(len(range(0, source.info.height - rules.size + 1, step)) for source in sources)
    found: list[dict[str, Any]] = []
    classes: list[str] = []
    done = 0
    for source in sources:
        info = source.info
        with reference_labels(labels, info, field=rules.field, names=names) as truth:
            write_text(folder / PLAN, plan)
            classes += [name for name in truth.classes if name not in classes]
            for top in range(0, info.height - rules.size + 1, step):
                found += [_write(tile, source, folder, rules) for tile in _tiles_of_row(source, truth, top, rules)]
                done += 1
                on_progress(done, total)
    if not found:
        raise ManifestError(
            f"No tile of {rules.size} x {rules.size} pixels has {rules.min_purity:g} of one class and "
            f"{rules.min_valid:g} of valid pixels.",
            hint="Lower --min_purity or --min_valid, take smaller tiles, or check that labels and scene overlap.",
        )
    m = _manifest(pd.DataFrame(found), classes, folder)
    write_manifest(m, folder / MANIFEST)
    return m


@dataclass(frozen=True)
class _Source:
    """A scene: GDAL's numbers of the bands that its tiles get, and what these hold."""

    info: RasterInfo
    stem: str
    numbers: tuple[int, ...]
    known: PixelMetadata


def _scene(word: str | Path, given: PixelMetadata, bands: tuple[str, ...]) -> _Source:
    found = find_input(str(word), bands=[{name.partition("=")[0]} for name in bands])
    if len(found.files) > 1:
        raise ImageError(word, "has its bands in files of their own", hint="Stack them: `gdal_merge.py -separate`.")
    info = describe_raster(found.files[0])
    known = known_of(info, given.over(found.known[0]) if found.known else given)
    numbers, names = tile_bands(info, known.bands, bands)
    places = [info.indexes.index(number) for number in numbers]
    scales, offsets = (tuple(v[at] for at in places) if v else () for v in (known.scales, known.offsets))
    stem = Path(shown(found.item or found.files[0])).stem
    return _Source(info, stem, numbers, replace(known, bands=names, scales=scales, offsets=offsets))


def tile_bands(
    info: RasterInfo, names: tuple[str, ...], bands: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """GDAL's numbers of the bands that tiles get, and their names.

    Args:
        info: Of the scene.
        names: Of its bands, where they are known.
        bands: ``red=3`` is the scene's band 3, called red; ``red`` the one of this name, or where the scene has no such
            names all of its bands are called so, in order. None: all as they are.

    Raises:
        ImageError: A band that is not there.
        ConfigError: Some with a number and some without, or not one name for each band.
    """
    parts = [name.partition("=") for name in bands]
    plain = tuple(name.strip() for name, _, _ in parts)
    numbered = [number.strip() for _, equals, number in parts if equals]
    if not bands:
        return info.indexes, names
    if numbered and len(numbered) < len(bands):
        raise ConfigError(f"--bands {','.join(bands)}: some have a number.", hint="Give each one, such as red=3.")
    if numbered:
        return tuple(band_numbers(info, bands)), plain
    if set(plain) & set(names):
        return tuple(band_numbers(replace(info, bands=names), plain)), plain
    if len(plain) != info.count:
        raise ConfigError(
            f"{len(plain)} band names for the {info.count} bands of {info.path}.",
            hint="Name each band once, or choose by number, such as red=3,green=2,blue=1.",
        )
    return info.indexes, plain


@dataclass(frozen=True)
class _Tile:
    id: str
    col: int
    row: int
    label: str
    purity: float
    valid_fraction: float
    valid: npt.NDArray[np.bool_]


def _tiles_of_row(source: _Source, truth: LabelRows, top: int, rules: TileRules) -> Iterator[_Tile]:
    size, info = rules.size, source.info
    strip = truth.rows(top, size)
    for left in range(0, info.width - size + 1, rules.stride or size):
        part = strip[:, left : left + size]
        # The image is read only where a label can win: most of a scene with few polygons is not.
        if (part >= 0).mean() < rules.min_purity * rules.min_valid or not (part >= 0).any():
            continue
        valid = read_window(info.path, (left, top, size, size), bands=source.numbers).valid
        share = float(valid.mean())
        if share < rules.min_valid or not valid.any():
            continue
        votes = np.bincount(part[valid & (part >= 0)], minlength=len(truth.classes))
        best = int(votes.argmax())
        purity = float(votes[best] / valid.sum())
        if votes[best] == 0 or purity < rules.min_purity:
            continue
        name = f"{source.stem}_{top:06d}_{left:06d}"
        yield _Tile(name, left, top, truth.classes[best], purity, share, valid)


def _write(tile: _Tile, source: _Source, folder: Path, rules: TileRules) -> dict[str, Any]:
    """Write the pixels as they are in the scene unless the file is there; a row of the manifest."""
    size, path, info = rules.size, folder / "tiles" / f"{tile.id}.tif", source.info
    transform = info.transform @ Affine.translation(tile.col, tile.row)
    if not path.exists():
        dtype = info.dtype if info.dtype in _EXACT else "float32"
        pixels = read_window(info.path, (tile.col, tile.row, size, size), bands=source.numbers).pixels.astype(dtype)
        nodata = distinct(info.nodatavals[info.indexes.index(number)] for number in source.numbers)
        made = tile_bytes(
            pixels, tile.valid, transform if info.crs else None, info.crs, source.known,
            nodata.pop() if len(nodata) == 1 else None,
        )  # fmt: skip
        write_atomically(path, lambda part: part.write_bytes(made))
    x, y = transform @ (size / 2, size / 2)
    return {
        "id": tile.id, "path": str(path.absolute()), "label": tile.label, "purity": round(tile.purity, 4),
        "valid_fraction": round(tile.valid_fraction, 4), "x": x, "y": y, "crs": info.crs.to_wkt() if info.crs else None,
        "scene": Path(shown(info.path)).name, "col": tile.col, "row": tile.row, "width": size, "height": size,
    }  # fmt: skip


def tile_bytes(
    pixels: npt.NDArray[Any],
    valid: npt.NDArray[np.bool_],
    transform: Affine | None,
    crs: CRS | None,
    known: PixelMetadata,
    nodata: float | None = None,
) -> bytes:
    """A GeoTIFF with all that is known of its numbers; as bytes: GDAL's many small writes go to memory, the disk gets one.

    Args:
        pixels: [C, H, W] as stored; those without data are overwritten.
        valid: [H, W]. Without ``nodata`` it is written as an internal mask: a collar or alpha band of the scene is declared here.
        transform, crs: Where it lies.
        known: Band names, scale, offset and the rest, of these bands.
        nodata: The scene's.
    """
    count, height, width = pixels.shape
    if nodata is not None:
        pixels[:, ~valid] = nodata
    profile = {
        "driver": "GTiff", "dtype": pixels.dtype, "count": count, "width": width, "height": height, "crs": crs,
        "transform": transform, "nodata": nodata, "compress": "deflate", "photometric": "minisblack",
    }  # fmt: skip
    with MemoryFile() as memory:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), memory.open(**profile) as file:
            file.write(pixels)
            if len(known.bands) == count:
                file.descriptions = known.bands
            if len(known.scales) == count:
                file.scales, file.offsets = known.scales, known.offsets
            file.update_tags(**known.tags())
            if nodata is None and not valid.all():
                file.write_mask(valid)
        return bytes(memory.getbuffer())


def _manifest(table: pd.DataFrame, classes: Sequence[str], folder: Path) -> Manifest:
    lon, lat = np.full(len(table), np.nan), np.full(len(table), np.nan)
    for crs, rows in table.groupby("crs", sort=False, dropna=True).groups.items():
        places = np.asarray(rows)
        lon[places], lat[places] = reproject_points(crs, "EPSG:4326", table["x"].iloc[places], table["y"].iloc[places])
    shown = [name for name in classes if (table["label"] == name).any()]
    if len(shown) < len(classes):
        log.warning("no tile of %s", ", ".join(name for name in classes if name not in shown))
    targets = (table["label"].to_numpy(dtype=object)[:, None] == np.array(shown, dtype=object)).astype(np.float32)
    columns = ["purity", "valid_fraction", "scene", "col", "row", "width", "height"]
    extra = table[columns].assign(lon=lon.round(7), lat=lat.round(7))
    ids = table["id"].tolist()
    return make_manifest(ids, table["path"].tolist(), ids, shown, targets, extra=extra, name=folder.absolute().name)


def _plan(
    folder: Path, scenes: Sequence[str | Path], labels: str | Path, rules: TileRules, names: Mapping[str, str] | None
) -> str:
    """What these tiles are cut from, as text; tiles that lie there already must be of the same files and rules."""

    def state(path: str | Path) -> list[Any]:
        file = Path(path)
        return [file.name, *((file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else ())]

    cut = {"scenes": [state(s) for s in scenes], "labels": state(labels), "rules": asdict(rules)}
    plan = json.dumps({**cut, "names": dict(names or {})}, indent=1, sort_keys=True)
    note = folder / PLAN
    if note.is_file() and note.read_text(encoding="utf-8") != plan:
        raise ManifestError(
            f"{folder} holds tiles of other scenes, labels or rules.",
            hint="Choose another --out, or remove the folder.",
        )
    return plan


def command(domain: Domain, argv: list[str]) -> int:
    """Cut labelled tiles from scenes and a label raster or polygons."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} tile", description=command.__doc__)
    parser.add_argument("scenes", nargs="+", help="rasters, or STAC items (.json) of one file each")
    parser.add_argument(
        "--labels", required=True, help="label raster (any CRS and resolution), or polygons: .gpkg .geojson .shp"
    )
    parser.add_argument(
        "--out", required=True, help=f"folder of {MANIFEST} and tiles/; the same command goes on after a stop"
    )
    parser.add_argument(
        "--size", type=int, default=64, help="side of a tile, pixels of the scene (default: %(default)s)"
    )
    parser.add_argument("--stride", type=int, default=0, help="step from tile to tile, pixels; 0: the size")
    parser.add_argument("--min_purity", type=float, default=0.5,
                        help="least share of a tile's valid pixels with its majority label (default: %(default)s)")  # fmt: skip
    parser.add_argument("--min_valid", type=float, default=1.0,
                        help="least share of a tile's pixels that hold data (default: %(default)s)")  # fmt: skip
    parser.add_argument("--field", default="", help="field of the polygons that holds the class")
    parser.add_argument(
        "--classes", default="", help="YAML file that maps values of the labels to class names, e.g. 1: forest"
    )
    parser.add_argument(
        "--bands",
        default="",
        help="bands that tiles get, by name; where the scene does not name them: red=3,green=2,blue=1",
    )
    parser.add_argument("--baseline", default="", help=BASELINE_HELP)
    parser.add_argument("--units", default="", choices=("stored", "physical"), help=UNITS_HELP)
    parser.add_argument("--datetime", default="", help="when the scenes were taken, ISO 8601; default: as they say")
    args = parser.parse_args(argv)
    rules = TileRules(
        args.size, args.stride, args.min_purity, args.min_valid, args.field,
        parse_bands(args.bands), args.baseline, args.units, args.datetime,
    )  # fmt: skip
    names = _names(args.classes) if args.classes else None
    with shown_progress() as on_progress:
        m = cut_tiles(args.scenes, args.labels, args.out, rules, names=names,
                      on_progress=lambda done, total: on_progress("cutting tiles", done, total, "rows"))  # fmt: skip
    table = Table("class", "tiles", "purity", box=None)
    for k, name in enumerate(m.classes):
        rows = labels(m)[:, k] == 1
        table.add_row(name, str(int(rows.sum())), f"{m.table['purity'][rows].mean():.2f}")
    console.print(table)
    console.print(f"{len(m)} tiles: {Path(args.out) / MANIFEST}")
    return 0


def _names(path: str) -> dict[str, str]:
    found = read_yaml(Path(path))
    if not isinstance(found, dict) or not all(isinstance(v, (str, int)) for v in found.values()):
        raise ConfigError(f"{path} maps no values to class names.", hint="Write a line each, e.g. 1: forest.")
    return {str(value): str(name) for value, name in found.items()}
