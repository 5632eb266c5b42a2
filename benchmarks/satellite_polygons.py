"""From a scene and a few polygons to a map, by the commands that a user types; and that the border of the scene stays empty.

    python benchmarks/satellite_polygons.py --scene landsat8_224078_bgr.tif --labels landsat8_224078_landcover_polygons.gpkg

``tile`` cuts tiles of 4 x 4 pixels under the polygons, ``train`` learns from them (``configs/satellite/landsat8_polygons.yaml``)
and measures on blocks of 120 m that were held out, ``map`` maps the scene. The polygons are one field a class: held-out tiles
come from the same fields, so the accuracy says that the way works and nothing about other places. The scene has a border of
zeros that it does not declare as nodata; what the map says there is counted. Writes ``satellite_polygons.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
from harness import write_result
from rich.console import Console

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "satellite" / "landsat8_polygons.yaml"
SIZE, STRIDE = 4, 1


def ran(command: str, *words: object) -> float:
    """Run a command of the package; seconds that it took."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vitdomains.satellite", command, *map(str, words)], check=True)
    return time.perf_counter() - began


def border(scene: Path, drawn: Path) -> dict[str, Any]:
    """What the map says where the scene holds nothing but zeros, by cells; a cell counts where all its pixels are zero."""
    with rasterio.open(drawn) as labels, rasterio.open(scene) as source:
        said, nodata = labels.read(1), labels.nodata
        side = round(labels.res[0] / source.res[0])
        empty = (source.read() == 0).all(axis=0)
        rows, columns = (side * -(-length // side) - length for length in empty.shape)
        padded = np.pad(empty, ((0, rows), (0, columns)), constant_values=True)
        cells = padded.reshape(padded.shape[0] // side, side, -1, side).all(axis=(1, 3))
        cells = cells[: said.shape[0], : said.shape[1]]
    return {
        "empty_cells": int(cells.sum()),
        "labelled_among_them": int((said[cells] != nodata).sum()),
        "labelled_share_of_the_rest": float((said[~cells] != nodata).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--field", default="name", help="field of the polygons that holds the class")
    parser.add_argument("--out", type=Path, help="folder of tiles, run and map (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = (args.out or Path(temporary)).resolve()
        tiles, run, drawn = out / "tiles", out / "run", out / "landcover.tif"
        seconds = {
            "tile": ran("tile", args.scene, "--labels", args.labels, "--field", args.field, "--size", SIZE, "--stride",
                        STRIDE, "--min_purity", 0.9, "--bands", "blue,green,red", "--out", tiles),
            "train": ran("train", "--config", CONFIG, "--data.root", tiles, "--run.dir", run, "--run.overwrite", "true"),
            "map": ran("map", args.scene, "--bundle", run / "bundle", "--bands", "red=3,green=2,blue=1", "--out", drawn,
                       "--tiles", out / "landcover.parquet"),
        }  # fmt: skip
        report = json.loads((run / "bundle" / "report" / "report.json").read_text(encoding="utf-8"))
        table = pd.read_parquet(out / "landcover.parquet", columns=["label"])
        found = {
            "held_out": report["overall"],
            "map": border(args.scene, drawn),
            "map_tiles": {str(k) or "without data": int(v) for k, v in table["label"].value_counts().items()},
            "seconds": seconds,
        }
    Console().print(found)
    Console().print(f"written: {write_result('satellite_polygons', found)}")


if __name__ == "__main__":
    main()
