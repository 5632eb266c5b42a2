"""The command ``map``: scenes and a bundle in, a land-cover map and a table of tiles out."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from vitdomains.core.bundle import Bundle, read_bundle
from vitdomains.core.config.choices import PRECISIONS, RUNTIMES
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.domain import Domain, domain_reader
from vitdomains.core.errors import BundleError, ConfigError
from vitdomains.core.geo.map.outputs import Labels
from vitdomains.core.geo.map.run import (
    ComputeOptions,
    MapResult,
    Scene,
    Tiling,
    draw,
    label_scenes,
    open_scene,
    path_for,
    tile_counts,
)
from vitdomains.core.geo.map.scene import LabelTiles, ReadPixels
from vitdomains.core.geo.map.stac import Product, map_item, model_item, write_item
from vitdomains.core.geo.map.tiles_table import READ_AS
from vitdomains.core.geo.map.vectors import check_vectors
from vitdomains.core.geo.read.http import is_remote, shown
from vitdomains.core.geo.read.metadata import from_options, parse_bands
from vitdomains.core.geo.read.scene_paths import files_of, find_input
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.jobs.shards import Executor
from vitdomains.core.terminal import console, shown_progress
from vitdomains.satellite.scenes.multi_file import read_scene
from vitdomains.satellite.sensors import BASELINE_HELP, UNITS_HELP, band_named, catalogue_names, sensor_named

logger = logging.getLogger(__name__)

DOMAINS = ("satellite", "zeroshot")
CACHE_MB = "32"
NOTHING_LABELLED = 4
"""Exit status of a job in which no tile was labelled."""

MATTERS = ("tta", "min_valid", "min_probability", "precision", "runtime")
"""Options on which labels depend: a stopped job goes on with the same ones only."""

GEOTIFF, PARQUET = "image/tiff; application=geotiff; profile=cloud-optimized", "application/vnd.apache.parquet"


def map_command(domain: Domain, argv: list[str]) -> int:
    """Map scenes of any size: a label raster, a table of tiles, a style and STAC items."""
    args = _parser(f"python -m vitdomains.{domain.name} map").parse_args(argv)
    # Decoded blocks would fill a twentieth of the machine's memory; a strip is read once, so a few are enough.
    os.environ.setdefault("GDAL_CACHEMAX", CACHE_MB)
    bundle = read_bundle(Path(args.bundle).resolve())
    if bundle.domain not in DOMAINS:
        raise BundleError(f"{args.bundle} is a bundle of {bundle.domain}.", hint=f"Use one of {', '.join(DOMAINS)}.")
    _check_options(args, bundle)
    given = from_options(bands=args.bands, baseline=args.baseline, units=args.units, acquired=args.datetime)
    spec = scene_spec(bundle.preprocess, args.sensor, args.bands)
    tiling = Tiling(args.tile or tile_side(bundle), args.overlap, args.cell, args.resolution or None, args.crs or None)
    scenes: list[Scene] = []
    for word in args.scenes:
        found = find_input(word, asset=args.asset, bands=catalogue_names(spec.sensor, spec.bands))
        scenes.append(open_scene(found, tiling, {scene.name for scene in scenes}, given))
    known = {file: one for scene in scenes for file, one in scene.known.items()}
    read = partial(read_scene, spec=spec, resolution=tiling.resolution, crs=tiling.crs, known=known)
    _check_numbers(scenes, spec, read)
    labels = Labels(bundle.classes, bundle.task_kind, bundle.thresholds, args.min_probability)
    out, soft, tiles = Path(args.out), _path(args.probabilities), _path(args.tiles)
    vectors = [Path(word) for word in (args.geojson, args.gpkg) if word]
    _check_files(scenes, bundle, out, soft, tiles, vectors)
    work = LabelTiles(
        partial(Predictor, str(bundle.path), domain_reader(domain, bundle.preprocess), precision=args.precision,
                runtime=args.runtime),
        read, scenes[0].place.grid.cell, batch_size=args.batch_size, symmetries=args.tta, readers=args.readers,
        min_valid=args.min_valid, min_probability=args.min_probability,
    )  # fmt: skip
    metadata = json.dumps({file: one.to_dict() for file, one in known.items()})
    context = {name: getattr(args, name) for name in MATTERS} | {
        "bundle": bundle.id, "sensor": spec.sensor, "bands": spec.bands, "files": [_signature(s.path) for s in scenes],
        "known": metadata,
    }  # fmt: skip
    compute = ComputeOptions(
        args.executor, args.workers, args.threads, args.ray_address, args.num_gpus, args.shard_size
    )
    folder = out.with_name(f".{out.name}.job")
    with shown_progress() as on_progress:
        shards = label_scenes(scenes, work, folder, context, compute, on_progress)
        counts = tile_counts(shards, folder)
        if counts.tiles > counts.skipped + len(counts.errors):
            made = draw(
                scenes, shards, folder, labels, out, probabilities=soft, tiles=tiles, vectors=vectors,
                about={READ_AS: json.dumps(_options(args, spec) | {"known": metadata})}, on_progress=on_progress,
            )  # fmt: skip
    if counts.tiles == counts.skipped + len(counts.errors):
        _show_counts(counts)
        console.print("No tile was labelled, so no map was written.")
        shutil.rmtree(folder)  # a shard that is done is not read again
        return NOTHING_LABELLED
    _describe(scenes, bundle, labels, out, soft, tiles)
    if not args.keep_shards:
        shutil.rmtree(folder)
    _show_counts(made)
    _show_maps(made, scenes, out, tiles)
    return 0


def tile_side(bundle: Bundle) -> int:
    """Side of the tiles that a bundle was trained on, pixels, where it knows that; else the size of the model's input."""
    return int(bundle.provenance.get("tile_pixels") or bundle.preprocess.height)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=map_command.__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("scenes", nargs="+", help="rasters: files, http(s) addresses of COGs, STAC items (.json)")
    add("--bundle", required=True, help="folder that train or zeroshot label wrote")
    add("--out", default="landcover.tif", help="COG of labels; with several scenes their names are added (%(default)s)")
    add("--tiles", default="", help="GeoParquet of the tiles, all scenes in one")
    add("--probabilities", default="", help="COG of blended probabilities, a band a class")
    add("--geojson", default="", help="the tiles as GeoJSON")
    add("--gpkg", default="", help="the tiles as GeoPackage")
    cut = parser.add_argument_group("how scenes are cut")
    cut.add_argument("--tile", type=int, default=0, help="side of a tile, pixels as read; 0: as in training")
    cut.add_argument(
        "--overlap", type=float, default=0.25, help="share of a side in common with the next tile (%(default)s)"
    )
    cut.add_argument(
        "--cell", type=int, default=0, help="side of a cell of the map, pixels as read; 0: a sixteenth of a tile"
    )
    cut.add_argument("--resolution", type=float, default=0, help="read at so many metres a pixel; 0: the scene's own")
    cut.add_argument("--crs", default="", help="read in this CRS, such as EPSG:32633; default: the scene's own")
    cut.add_argument(
        "--min_valid", type=float, default=0.25, help="skip tiles with less data than this share (%(default)s)"
    )
    what = parser.add_argument_group("what the scenes hold")
    what.add_argument("--sensor", default="", help="where the bundle names none: what the numbers of the scene mean")
    what.add_argument("--bands", default="", help="comma-separated; where the file does not name them: B4=3,B3=2,B2=1")
    what.add_argument("--baseline", default="", help=BASELINE_HELP)
    what.add_argument("--units", default="", choices=("stored", "physical"), help=UNITS_HELP)
    what.add_argument("--asset", default="", help="key of the asset of STAC items")
    what.add_argument("--datetime", default="", help="when the scene was taken, ISO 8601, for its STAC item")
    how = parser.add_argument_group("how it is computed")
    how.add_argument("--tta", action="store_true", help="mean over rotations and reflections: eight times the work")
    how.add_argument(
        "--min_probability", type=float, default=0.0, help="below it a tile is unknown (%(default)s: never)"
    )
    how.add_argument(
        "--runtime", default="torch", choices=("auto", *RUNTIMES), help="what runs the model (%(default)s)"
    )
    how.add_argument("--precision", default="auto", choices=PRECISIONS, help="(%(default)s)")
    how.add_argument("--batch_size", type=int, default=16, help="most tiles of a forward pass (%(default)s)")
    how.add_argument(
        "--readers", type=int, default=1, help="reading threads a worker; more for remote scenes (%(default)s)"
    )
    how.add_argument("--executor", default="inline", choices=get_args(Executor), help="(%(default)s)")
    how.add_argument("--workers", type=int, default=1, help="processes, or actors of Ray (%(default)s)")
    how.add_argument("--threads", type=int, default=0, help="compute threads a worker; 0: the cores shared out")
    how.add_argument(
        "--ray_address", "--ray.address", default="", help="of a running cluster, or auto; default: start one"
    )
    how.add_argument("--num_gpus", type=float, default=0.0, help="GPUs that each actor of Ray asks for (%(default)s)")
    how.add_argument("--shard_size", type=int, default=512, help="tiles that are saved together (%(default)s)")
    how.add_argument("--keep_shards", action="store_true", help="keep the folder .OUT.job when the job is done")
    return parser


def _check_options(args: argparse.Namespace, bundle: Bundle) -> None:
    """Refuse what would fail after hours of work."""
    endings = {"out": ".tif", "tiles": ".parquet", "probabilities": ".tif", "geojson": ".geojson", "gpkg": ".gpkg"}
    for name, ending in endings.items():
        given = getattr(args, name)
        if given and Path(given).suffix.lower() != ending:
            raise ConfigError(
                f"--{name} {given} does not end in {ending}.", hint=f"Call it {Path(given).stem}{ending}."
            )
    for name in ("min_valid", "min_probability"):
        if not 0 <= getattr(args, name) <= 1:
            raise ConfigError(f"--{name} {getattr(args, name)} is no share.", hint="It lies in 0..1.")
    if args.min_probability and bundle.task_kind == "multilabel":
        raise ConfigError(
            "--min_probability does not fit a multi-label bundle.", hint="It has a threshold for each class."
        )
    for name in ("batch_size", "readers"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)} cannot be.", hint="It is 1 or more.")


def scene_spec(spec: PreprocessSpec, sensor: str = "", bands: str = "") -> PreprocessSpec:
    """The bundle's preprocessing, with what the user says of the scene where the bundle does not.

    Args:
        spec: Of the bundle.
        sensor: What took the scene; empty: as in the bundle.
        bands: Comma-separated names, ``name=number`` where the file does not name its bands; empty: as in the bundle.

    Raises:
        ConfigError: The bundle was trained on another sensor or other bands.
    """
    if sensor and spec.sensor and sensor_named(sensor) != sensor_named(spec.sensor):
        raise ConfigError(f"--sensor {sensor}: the bundle was trained on {spec.sensor}.", hint="Leave it away.")
    name = spec.sensor or (sensor_named(sensor).name if sensor else "")
    chosen = parse_bands(bands) or spec.bands
    if name and spec.sensor and bands:
        known = sensor_named(name)
        if [band_named(known, a).name for a in chosen] != [band_named(known, b).name for b in spec.bands]:
            raise ConfigError(
                f"--bands {bands}: the bundle takes {', '.join(spec.bands)}.",
                hint=f"Name the same in the same order, such as {spec.bands[0]}=1 for the first band of the file.",
            )
    return replace(spec, sensor=name, bands=chosen)


def _check_numbers(scenes: list[Scene], spec: PreprocessSpec, read: ReadPixels) -> None:
    """Refuse numbers whose meaning nobody has said and bands that are not there, before every single tile does."""
    for scene in scenes:
        if not (spec.sensor or spec.bands) and scene.dtype != "uint8":
            raise ConfigError(
                f"{scene.path} holds {scene.dtype}, and the bundle takes pictures of 8 bits.",
                hint="Say what the numbers mean, such as --sensor landsat8_l1 --bands red=3,green=2,blue=1.",
            )
        read(scene.path, (-1, -1, 1, 1))  # outside: all is looked up and no pixel read


def _check_files(
    scenes: list[Scene], bundle: Bundle, out: Path, soft: Path | None, tiles: Path | None, vectors: list[Path]
) -> None:
    """Refuse files that could not be written, or would replace one another or a scene, before the first tile."""
    places = {scene.name: (scene.place.transform, scene.place.crs) for scene in scenes}
    for vector in vectors:
        check_vectors(vector, bundle.classes, places)
    written = [*vectors, *([tiles] if tiles else [])]
    for scene in scenes:
        target = path_for(out, scene, scenes)
        written += [target, target.with_suffix(".json"), *([path_for(soft, scene, scenes)] if soft else [])]
    named = [file for scene in scenes for file in (*files_of(scene.path), scene.item) if file and not is_remote(file)]
    read = {Path(file).resolve() for file in named}
    seen: dict[str, Path] = {}
    for path in written:
        twin = seen.setdefault(str(path.resolve()).lower(), path)  # some file systems do not tell the cases apart
        if twin is not path:
            raise ConfigError(f"{path} and {twin} would be one file.", hint="Give each output a name of its own.")
        if path.resolve() in read:
            raise ConfigError(f"{path} is what is mapped and would be replaced.", hint="Give another --out.")
        if path.is_dir():
            raise ConfigError(f"{path} is a folder.", hint="Give the name of a file.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror}).", hint="Choose another folder.") from error


def _options(args: argparse.Namespace, spec: PreprocessSpec) -> dict[str, str]:
    """How the scenes were read: the review app reads them in the same way."""
    resolution = str(args.resolution) if args.resolution else ""
    return {"asset": args.asset, "sensor": spec.sensor, "bands": ",".join(spec.bands), "baseline": args.baseline,
            "resolution": resolution, "crs": args.crs}  # fmt: skip


def _signature(path: str) -> list[Any]:
    """Name, size and time of local files, so that a job does not go on with others under the same names."""
    found: list[Any] = []
    for file in files_of(path):
        about = None if is_remote(file) else Path(file).stat()
        found.append([Path(file).name, about.st_size, about.st_mtime_ns] if about else [shown(file)])
    return found


def _path(word: str) -> Path | None:
    return Path(word) if word else None


def _describe(
    scenes: list[Scene], bundle: Bundle, labels: Labels, out: Path, soft: Path | None, tiles: Path | None
) -> None:
    """STAC items: one for the model, one for each map, beside the map."""
    model = model_item(bundle, os.path.relpath(bundle.path, out.parent).replace(os.sep, "/"))
    write_item(model, out.with_name(f"{model.id}.json"))
    for scene in scenes:
        target = path_for(out, scene, scenes)
        products = {"labels": Product(target.name, GEOTIFF, "Land cover")}
        for key, path, kind, title in (
            ("probabilities", soft and path_for(soft, scene, scenes), GEOTIFF, "Probability of each class"),
            ("tiles", tiles, PARQUET, "Labelled tiles"),
        ):
            if path:
                products[key] = Product(os.path.relpath(path, out.parent).replace(os.sep, "/"), kind, title)
        sources = [scene.item] if scene.item else []
        item = map_item(target.stem, scene.place, labels, products, model, when=scene.when, sources=sources)
        write_item(item, target.with_suffix(".json"))


def _show_counts(made: MapResult) -> None:
    labelled = made.tiles - made.skipped - len(made.errors)
    console.print(
        f"{made.tiles} tiles: {labelled} labelled, {made.skipped} without enough data, {len(made.errors)} with an error"
    )
    for error in made.errors[:5]:
        console.print(f"  {error}", markup=False, highlight=False, soft_wrap=True)


def _show_maps(made: MapResult, scenes: list[Scene], out: Path, tiles: Path | None) -> None:
    for scene in scenes:
        cells = {name: count for name, count in made.cells[scene.name].items() if name != "nodata" and count}
        total = max(1, sum(cells.values()))
        largest = sorted(cells.items(), key=lambda cell: -cell[1])[:6]
        shares = ", ".join(f"{name} {count / total:.1%}" for name, count in largest)
        text = f"map    {path_for(out, scene, scenes)}: {shares or 'no data'}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if tiles:
        console.print(f"tiles  {tiles}")
