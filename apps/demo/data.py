"""What the apps are demonstrated on, made here: phantom films, drawn land, and models that learned from them within a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from apps.demo.folders import Size
from apps.demo.land import BANDS, KINDS, draw_land, write_scene, write_truth
from apps.demo.towers import small_towers
from vitdomains import cxr, satellite
from vitdomains.core import pipeline
from vitdomains.core.config.schema import Config, Data, Model, Recipe, Run, Source
from vitdomains.core.terminal import OnProgress
from vitdomains.satellite.scenes.map import map_command
from vitdomains.satellite.scenes.queue import command as queue_command
from vitdomains.satellite.scenes.tiles import TileRules, cut_tiles
from vitdomains.zeroshot.align.data import Pairs
from vitdomains.zeroshot.align.train import Alignment, align
from vitdomains.zeroshot.embeddings.store import plan_tiles
from vitdomains.zeroshot.labels.label import Compute, Options, label_tiles
from vitdomains.zeroshot.labels.prompts import make_prompts
from vitdomains.zeroshot.models.towers import load_towers
from vitdomains.zeroshot.students.student import read_tiles

TILE, PICTURE = 32, 64
"""Side of a tile of the satellite and of the zero-shot demonstration, pixels."""

TEMPLATES = ("a satellite photo of {}.", "an aerial view of {}.", "{} seen from above.")
SYNONYMS = {
    "built-up area": ["houses", "roofs and streets"],
    "farm field": ["cropland", "furrows"],
    "meadow": ["grassland", "pasture"],
    "water": ["a river", "a lake"],
    "woods": ["a forest", "trees"],
}


def make_cxr(folder: Path, size: Size, on_progress: OnProgress) -> str:
    """Phantom films in ``phantoms``, a small ViT in ``run/bundle``."""
    config = Config(
        data=Data(
            root=str(folder / "phantoms"),
            sources=[Source(name="phantoms", limit=size.films)],
            image_size=size.film_side,
            cache="memory",
        ),
        model=Model(name="vit:Ti/16", channels=1, options={"stem": "conv", "pool": "lse", "depth": 3}),
        recipe=Recipe(
            epochs=size.film_epochs, batch_size=16, lr=1e-3, warmup_epochs=1.0, ema_decay=0.97, region_weight=1.0
        ),
        run=Run(dir=str(folder / "run"), bootstrap=50, save_seconds=1e9, accelerator="cpu"),
    )  # fmt: skip
    report = pipeline.train(cxr.DOMAIN, config, on_progress).report
    auroc = float(report["macro"]["auroc"]["value"])
    return (
        f"a ViT that saw {size.films} phantoms only (macro AUROC {auroc:.2f} on held-out phantoms); "
        "after `make demo` its better model is taken"
    )


def make_satellite(folder: Path, size: Size, on_progress: OnProgress) -> str:
    """A small ViT trained on tiles of one drawn scene, in ``run/bundle``, and the map of another one that it never saw."""
    land, truth = draw_land(size.land_side, seed=1)
    names = {str(k): name for k, name in enumerate(KINDS, start=1)}
    cut_tiles(
        [write_scene(folder / "training.tif", land)], write_truth(folder / "training_truth.tif", truth), folder / "cut",
        TileRules(size=TILE, min_purity=0.7, bands=BANDS), names=names,
        on_progress=lambda done, total: on_progress("cutting tiles", done, total, "rows"),
    )  # fmt: skip
    level = land.reshape(len(BANDS), -1) / 255  # as the sensor's scale makes it
    config = Config(
        data=Data(
            root=str(folder), sources=[Source(name="tiles", root="cut")], split="spatial", block_size=2.0 * TILE,
            sensor="naip", bands=list(BANDS), mean=level.mean(axis=1).tolist(), std=level.std(axis=1).tolist(),
            image_size=TILE, resize="squash", cache="memory",
        ),
        model=Model(name="vit:Ti/8", channels=len(BANDS), options={"depth": 2, "pool": "avg"}),
        recipe=Recipe(epochs=size.land_epochs, batch_size=32, lr=1e-3, warmup_epochs=1.0, augment="multispectral"),
        run=Run(dir=str(folder / "run"), bootstrap=50, save_seconds=1e9, accelerator="cpu", subgroups=[]),
    )  # fmt: skip
    report = pipeline.train(satellite.DOMAIN, config, on_progress).report
    scene = write_scene(folder / "scene.tif", draw_land(size.land_side, seed=2)[0])
    tiles, queue = folder / "landcover.parquet", folder / "queue.parquet"
    map_command(satellite.DOMAIN, [str(scene), "--bundle", str(folder / "run" / "bundle"), "--tiles", str(tiles),
                                   "--out", str(folder / "landcover.tif"), "--overlap", "0"])  # fmt: skip
    queue_command(satellite.DOMAIN, [str(tiles), "--by", "margin", "--n", "50", "--out", str(queue)])
    accuracy = float(report["overall"]["accuracy"]["value"])
    return f"a drawn scene, mapped by a ViT that learned from another drawn one (accuracy {accuracy:.2f} on its held-out blocks)"


def make_zeroshot(folder: Path, size: Size, on_progress: OnProgress) -> str:
    """Drawn tiles in ``tiles``, labelled by a small dual encoder that was aligned on drawn tiles with captions."""
    prompts = make_prompts(
        {"name": "drawn land", "templates": list(TEMPLATES),
         "classes": [{"name": name, "synonyms": SYNONYMS[name]} for name in KINDS]}
    )  # fmt: skip
    shown = _write_pictures(folder / "shown", size.land_side, seed=3, step=PICTURE // 2, purity=0.85)
    groups = np.array([KINDS.index(kind) for kind in shown.values()], np.int64)
    pairs = Pairs(
        tuple(str(folder / "shown" / name) for name in shown), groups, KINDS, tuple(c.prompts for c in prompts.classes)
    )
    parts = small_towers([text for c in prompts.classes for text in c.prompts], PICTURE)
    how = Alignment("full", True, steps=size.pair_steps, batch_size=64, lr=1e-3, text_rate=1.0)
    align(parts, pairs, folder / "work", how, on_progress=on_progress).save(folder / "model")
    truth = _write_pictures(folder / "tiles", size.land_side, seed=4, step=PICTURE)
    label_tiles(
        load_towers(folder / "model"), prompts, plan_tiles([folder / "tiles"]), folder / "labels",
        options=Options(threshold=0.4), compute=Compute(precision="fp32"), on_progress=on_progress,
    )  # fmt: skip
    found = read_tiles(folder / "labels")
    right = np.mean(
        [label == truth[Path(path).name] for path, label in zip(found["path"], found["label"], strict=True)]
    )
    return (
        f"{len(found)} drawn tiles and a small model that learned drawn tiles and their captions: it knows these words only, "
        f"and labels {right:.0%} of the tiles as the kind that covers most of each"
    )


MAKERS: dict[str, Callable[[Path, Size, OnProgress], str]] = {
    "cxr": make_cxr, "satellite": make_satellite, "zeroshot": make_zeroshot,
}  # fmt: skip


def _write_pictures(folder: Path, side: int, seed: int, step: int, purity: float = 0.0) -> dict[str, str]:
    """Cut drawn land into PNG files; the kind that covers most of each, by file name. Less pure ones are left out."""
    pixels, kinds = draw_land(side, seed)
    folder.mkdir(parents=True)
    truth = {}
    for top in range(0, side - PICTURE + 1, step):
        for left in range(0, side - PICTURE + 1, step):
            place = (slice(top, top + PICTURE), slice(left, left + PICTURE))
            shares = np.bincount(kinds[place].ravel(), minlength=len(KINDS) + 1) / PICTURE**2
            if shares.max() >= purity:
                name = f"{top:05d}_{left:05d}.png"
                blue_first = pixels[(slice(2, None, -1), *place)].transpose(1, 2, 0)
                cv2.imwrite(str(folder / name), np.ascontiguousarray(blue_first))
                truth[name] = KINDS[int(shares.argmax()) - 1]
    return truth
