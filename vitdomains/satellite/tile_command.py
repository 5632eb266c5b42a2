"""The command ``tile``: labelled tiles of scenes, on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from vitdomains.core.config.yaml_file import read_yaml
from vitdomains.core.data.manifest import labels
from vitdomains.core.domain import Domain
from vitdomains.core.errors import ConfigError
from vitdomains.core.terminal import console, shown_progress
from vitdomains.satellite.scenes.tiles import MANIFEST, TileRules, cut_tiles


def command(domain: Domain, argv: list[str]) -> int:
    """Cut labelled tiles from scenes and a label raster or polygons."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} tile", description=command.__doc__)
    parser.add_argument("scenes", nargs="+", help="rasters")
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
        "--bands", default="", help="names of the scene's bands to write into the tiles, e.g. blue,green,red"
    )
    words = parser.parse_args(argv)
    rules = TileRules(
        words.size, words.stride, words.min_purity, words.min_valid, words.field,
        tuple(name.strip() for name in words.bands.split(",") if name.strip()),
    )  # fmt: skip
    names = _names(words.classes) if words.classes else None
    with shown_progress() as on_progress:
        m = cut_tiles(words.scenes, words.labels, words.out, rules, names=names,
                      on_progress=lambda done, total: on_progress("cutting tiles", done, total, "rows"))  # fmt: skip
    table = Table("class", "tiles", "purity", box=None)
    for k, name in enumerate(m.classes):
        rows = labels(m)[:, k] == 1
        table.add_row(name, str(int(rows.sum())), f"{m.table['purity'][rows].mean():.2f}")
    console.print(table)
    console.print(f"{len(m)} tiles: {Path(words.out) / MANIFEST}")
    return 0


def _names(path: str) -> dict[str, str]:
    found = read_yaml(Path(path))
    if not isinstance(found, dict) or not all(isinstance(v, (str, int)) for v in found.values()):
        raise ConfigError(f"{path} maps no values to class names.", hint="Write a line each, e.g. 1: forest.")
    return {str(value): str(name) for value, name in found.items()}
