"""Land cover of a Landsat 7 scene: a small ViT against a majority baseline and a random forest, on held-out blocks.

    python benchmarks/satellite_landcover.py --scene landsat7_multiband.tif --labels landsat7_landcover.tif

Scene and labels lie in different CRSs. ``tile`` cuts tiles of 8 x 8 pixels (228 m) with the class that covers most of each;
blocks of 1.2 km, with a buffer between them, are held out; the recipe of ``configs/satellite/landsat7_landcover.yaml``
trains on the rest. The random forest (scikit-learn, 500 trees) sees the mean of each band over the same tiles, and learns
from the same training tiles; a second one sees the standard deviations too. All are measured on the same test tiles by
``core/evaluate``, with intervals from a bootstrap over blocks, for each seed of the split. Then the scene is mapped.
Writes ``benchmarks/results/satellite_landcover.json``, and scene, truth and map as a picture into the bundle's report.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from harness import write_result
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import RandomForestClassifier

from vitdomains.core import pipeline
from vitdomains.core.bundle import update_bundle
from vitdomains.core.config.parse import parse_config
from vitdomains.core.config.schema import Config, Source
from vitdomains.core.config.yaml_file import read_yaml
from vitdomains.core.data.manifest import Manifest, labels, subset
from vitdomains.core.data.spatial_splits import nearness
from vitdomains.core.evaluation.evaluate import evaluate
from vitdomains.core.evaluation.plots import render
from vitdomains.core.evaluation.report import write_report
from vitdomains.core.explain.overlay import composite
from vitdomains.core.geo.map.outputs import Labels, class_colours
from vitdomains.core.geo.read.raster import describe_raster, read_window
from vitdomains.core.terminal import set_up_logging, shown_progress
from vitdomains.satellite import DOMAIN
from vitdomains.satellite.data.reader import reader
from vitdomains.satellite.scenes.label_raster import reference_labels
from vitdomains.satellite.scenes.map import map_command
from vitdomains.satellite.scenes.tiles import TileRules, cut_tiles

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "satellite"
BANDS = ("B1", "B2", "B3", "B4", "B5")
RULES = TileRules(size=8, bands=BANDS)
METRICS = ("accuracy", "kappa", "macro F1")


def band_features(m: Manifest, config: Config) -> npt.NDArray[np.float64]:
    """Mean, then standard deviation, of each band of every tile, [N, 2 C]."""
    read = reader(pipeline.preprocess_spec(config, DOMAIN))
    tiles = [read(path) for path in m.table["path"]]
    return np.array([np.concatenate([tile.mean(axis=(0, 1)), tile.std(axis=(0, 1))]) for tile in tiles])


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a report."""
    by_class = {name: cells["f1"]["value"] for name, cells in report["classes"].items()}
    values = (report["overall"]["accuracy"], report["overall"]["kappa"], report["macro"]["f1"])
    return {**dict(zip(METRICS, values, strict=True)), "F1 by class": by_class}


def baselines(m: Manifest, config: Config, seed: int) -> dict[str, dict[str, Any]]:
    """The majority class and two random forests, trained and tested on the same tiles as the ViT."""
    train, test = subset(m, "train"), subset(m, "test")
    y = labels(train).argmax(axis=1)
    x, x_test = band_features(train, config), band_features(test, config)
    share = np.bincount(y, minlength=len(m.classes)) / len(y)
    scores = {"majority class": np.tile(share, (len(test), 1))}
    for name, width in (("random forest, band means", 5), ("random forest, band means and deviations", 10)):
        forest = RandomForestClassifier(500, random_state=seed, n_jobs=-1).fit(x[:, :width], y)
        scores[name] = np.zeros((len(test), len(m.classes)))
        scores[name][:, forest.classes_] = forest.predict_proba(x_test[:, :width])
    groups, thresholds = test.table["group"].to_numpy(), [0.5] * len(m.classes)
    return {
        name: kept(evaluate(labels(test), found, groups, m.classes, thresholds, "singlelabel", seed=seed))
        for name, found in scores.items()
    }


def about(m: Manifest) -> dict[str, Any]:
    """What the split looks like."""
    apart = nearness(m)
    assert apart is not None
    return {
        "tiles": m.table["split"].value_counts().to_dict(),
        "blocks": m.table.groupby("split")["group"].nunique().to_dict(),
        "classes": dict(zip(m.classes, labels(m).sum(axis=0).astype(int).tolist(), strict=True)),
        "nearest_training_tile_m": {"median": round(apart.median), "least": round(apart.least)},
    }


def picture(scene: Path, truth_path: Path, map_path: Path, classes: tuple[str, ...], names: dict[str, str]) -> bytes:
    """Scene, truth and map side by side; grey: no label, or a class that was too rare to learn."""
    info, drawn = describe_raster(scene), read_window(map_path, collar=False)
    with reference_labels(truth_path, info, names=names) as truth:
        rows = truth.rows(0, info.height)
        values = np.array([classes.index(n) + 1 if n in classes else 0 for n in truth.classes] + [0])[rows]
    colours = {k: np.array(colour) / 255 for k, colour in class_colours(Labels(classes)).items()}
    lookup = np.stack([colours.get(k, np.full(3, 0.8)) for k in range(len(classes) + 1)])
    window = read_window(scene, bands=[4, 3, 2])
    seen = composite(np.where(window.valid, window.pixels, np.nan).transpose(1, 2, 0))
    left, top = drawn.transform @ (0, 0)
    right, bottom = drawn.transform @ (drawn.pixels.shape[2], drawn.pixels.shape[1])
    box = (info.bounds.left, info.bounds.right, info.bounds.bottom, info.bounds.top)
    mapped = lookup[np.where(drawn.valid[:, :, None], drawn.pixels.transpose(1, 2, 0), 0).astype(int)[:, :, 0]]
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = (("near infrared, red, green", seen, box), ("truth", lookup[values], box))
    for axis, (title, image, extent) in zip(
        figure.subplots(1, 3), (*panels, ("map", mapped, (left, right, bottom, top))), strict=True
    ):
        axis.imshow(image, extent=extent, interpolation="nearest")
        axis.set(title=title, xlim=box[:2], ylim=box[2:])
        axis.set_axis_off()
    figure.legend(
        handles=[Patch(color=colours[k + 1], label=name) for k, name in enumerate(classes)],
        loc="outside lower center", ncols=len(classes),
    )  # fmt: skip
    return render(figure)[0]


def draw_map(args: argparse.Namespace, outcome: pipeline.Outcome, names: dict[str, str], out: Path) -> float:
    """Map the scene, put the picture into the bundle's report and beside the results; seconds that mapping took."""
    began = time.perf_counter()
    argv = [str(args.scene), "--bundle", str(outcome.bundle.path), "--out", str(out / "landcover.tif"), "--tile", "8",
            "--overlap", "0.5", "--cell", "2", "--bands", ",".join(f"{name}={i}" for i, name in enumerate(BANDS, start=1)),
            "--tiles", str(out / "landcover.parquet")]  # fmt: skip
    map_command(DOMAIN, argv)
    seconds = time.perf_counter() - began
    drawn = picture(args.scene, args.labels, out / "landcover.tif", outcome.bundle.classes, names)
    (out / "landcover.png").write_bytes(drawn)
    predictions = pd.read_csv(outcome.bundle.path / "report" / "predictions.csv")
    caption = "The scene, the labels that it was tiled by, and its map. The model saw only the training blocks."
    update_bundle(
        outcome.bundle,
        lambda folder: write_report(
            outcome.report, predictions, folder / "report", title=DOMAIN.title, pictures=[(caption, drawn)]
        ),
    )
    return seconds


def shown(results: list[dict[str, Any]]) -> Table:
    """One row a method and seed of the split."""
    table = Table("split", "method", *METRICS, box=None)
    for result in results:
        for name, found in result["methods"].items():
            cells = [f"{found[m]['value']:.3f} ({found[m]['low']:.3f} to {found[m]['high']:.3f})" for m in METRICS]
            table.add_row(str(result["seed"]), name, *cells)
    if len(results) > 1:
        for name in results[0]["methods"]:
            means = [np.mean([r["methods"][name][m]["value"] for r in results]) for m in METRICS]
            table.add_row("mean", name, *(f"{value:.3f}" for value in means))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument(
        "--seeds", type=int, default=3, help="splits of the blocks; the scene is mapped after the first"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="folder of tiles, runs and map (default: a temporary one)"
    )
    parser.add_argument("--no_map", action="store_true")
    words, rest = parser.parse_known_args()
    set_up_logging()
    with tempfile.TemporaryDirectory() as temporary:
        out = words.out or Path(temporary)
        names = {str(value): str(name) for value, name in read_yaml(CONFIGS / "landclass96_classes.yaml").items()}
        began = time.perf_counter()
        with shown_progress() as on_progress:
            cut_tiles([words.scene], words.labels, out / "tiles", RULES, names=names,
                      on_progress=lambda done, total: on_progress("cutting tiles", done, total, "rows"))  # fmt: skip
        seconds = {"tile": time.perf_counter() - began}
        results = []
        for seed in range(words.seeds):
            config = parse_config(
                ["--config", str(CONFIGS / "landsat7_landcover.yaml"), *rest], Config(), "satellite_landcover"
            )
            data = replace(config.data, root=str(out), sources=[Source(name="tiles", root="tiles")], split_seed=seed,
                           cache_dir=str(out / "cache"))  # fmt: skip
            config = replace(
                config, data=data, run=replace(config.run, dir=str(out / f"run{seed}"), seed=seed, overwrite=True)
            )
            began = time.perf_counter()
            with shown_progress() as on_progress:
                outcome = pipeline.train(DOMAIN, config, on_progress)
            seconds[f"train {seed}"] = time.perf_counter() - began
            m = DOMAIN.build_manifest(config.data)
            methods = {**baselines(m, config, seed), f"ViT ({config.model.name})": kept(outcome.report)}
            results.append(
                {"seed": seed, "split": about(m), "best_epoch": outcome.fit.best_epoch + 1, "methods": methods}
            )  # type: ignore[union-attr]
            if seed == 0 and not words.no_map:
                seconds["map"] = draw_map(words, outcome, names, out)
        Console(width=120).print(shown(results))
        path = write_result("satellite_landcover", {"results": results, "seconds": seconds})
        Console().print(f"written: {path}")


if __name__ == "__main__":
    main()
