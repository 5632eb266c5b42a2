"""From labels to a model of one's own: reviewed and confident tiles as a weighted manifest, and a file to train with."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import rasterio
import yaml

from vitdomains.core.bundle import read_bundle
from vitdomains.core.data.manifest import make_manifest, read_manifest, write_manifest
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.data.tables import read_table
from vitdomains.core.errors import ManifestError
from vitdomains.core.files import write_atomically, write_text
from vitdomains.core.geo.map.tiles_table import UNKNOWN, classes_of
from vitdomains.zeroshot.embeddings.reader import read_pixels
from vitdomains.zeroshot.labels.outputs import file_names
from vitdomains.zeroshot.labels.prompts import plain

logger = logging.getLogger(__name__)

BLOCK = 4
"""Tiles along the side of a block of a scene that stays on one side of a split."""


def read_tiles(labels: str | Path) -> pd.DataFrame:
    """The tile table that ``label`` wrote, without geometry.

    Raises:
        ManifestError: There is none.
    """
    files = sorted((Path(labels) / "tiles").glob("part-*.parquet"))
    if not files:
        raise ManifestError(f"{labels} holds no labelled tiles.", hint="Give the folder that `label` wrote (--out).")
    tables = [pd.read_parquet(file) for file in files]
    return pd.concat([t.drop(columns=["geometry", "bbox"], errors="ignore") for t in tables], ignore_index=True)


def read_reviewed(file: str | Path, tiles: pd.DataFrame, digests: Mapping[str, str] | None = None) -> dict[str, str]:
    """Labels that people gave: tile id -> class, or ``unknown`` for a tile that was looked at and is none of them.

    Args:
        file: A table (.csv, .parquet) with ``tile_id`` (or ``id``) and ``label``; or what ``reviews export`` writes, with
            ``item`` (sha256 of the file) and ``value:label``; or a manifest with columns ``label:CLASS`` (and ``reviewed``). Of
            several rows of a tile the last counts.
        tiles: The tile table.
        digests: Path -> sha256 of the file, for ``item``.

    Raises:
        ManifestError: Columns are missing, a class is not known, or no tile of the table was reviewed.
    """
    path = Path(file)
    if not path.is_file():
        raise ManifestError(f"There is no file {path}.", hint="Give the table of reviewed labels.")
    table = read_table(path, text=("tile_id", "id", "item", "label", "value:label"))
    classes = classes_of(list(tiles.columns))
    if any(str(c).startswith("label:") for c in table.columns):
        m = read_manifest(path)
        rows = m.table[m.table["reviewed"].astype(bool)] if "reviewed" in m.table else m.table
        given = {str(i): c for c in m.classes for i in rows["id"][rows[c] == 1]}
    else:
        label = next((c for c in ("label", "value:label") if c in table.columns), "")
        key = next((c for c in ("tile_id", "id", "item") if c in table.columns), "")
        if not label or not key:
            raise ManifestError(
                f"{path} has the columns {', '.join(map(str, table.columns))}.", hint="It needs tile_id and label."
            )
        table = table.dropna(subset=[key, label])
        # The last word on a tile counts.
        given = dict(zip(table[key].astype(str), table[label].astype(str), strict=True))
        if key == "item":
            known = {
                digests[p]: t for p, t in zip(tiles["path"], tiles["tile_id"], strict=True) if digests and p in digests
            }
            given = {known[item]: value for item, value in given.items() if item in known}
    spelled = {plain(c): c for c in classes} | {plain(word): UNKNOWN for word in (UNKNOWN, "unsure", "")}
    given = {t: UNKNOWN if v.startswith("not ") else v for t, v in given.items()}
    strange = {value for value in given.values() if plain(value) not in spelled}
    if strange:
        raise ManifestError(
            f"{path}: {', '.join(sorted(strange)[:5])} are none of the classes {', '.join(classes)}.",
            hint="Correct the labels, or label the tiles again with these classes.",
        )
    present = set(tiles["tile_id"])
    foreign = [t for t in given if t not in present]
    if foreign:
        logger.warning("%d reviewed ids are none of the tiles: %s", len(foreign), ", ".join(foreign[:5]))
    found = {t: spelled[plain(v)] for t, v in given.items() if t in present}
    if set(found.values()) <= {UNKNOWN}:
        raise ManifestError(f"{path} has a label for none of the tiles.", hint="Compare its tile_id with labels.csv.")
    return found


def student_manifest(
    labels: str | Path,
    reviewed: Mapping[str, str] | None = None,
    confident: float = 0.9,
    confident_weight: float = 0.5,
    quality: Mapping[str, float] | None = None,
) -> Path:
    """Write ``labels/manifest.csv``: reviewed tiles with weight 1, others from ``confident`` on with a smaller one.

    A tile that was reviewed as none of the classes is left out, however sure the model was of it.

    Windows of scenes are cut out into ``labels/chips``. Their group is a block of neighbours, so that few of them overlap one on
    the other side of a split; a plain file is a group of its own.

    Args:
        labels: Folder of a labelling.
        reviewed: Tile id -> class.
        confident: Least probability of a label that nobody looked at, 0..1.
        confident_weight: Weight of such a label times its probability.
        quality: Tile id -> quality of such a label, 0..1, a further factor (``refine.doubtful_labels``); 1 where it has none.

    Raises:
        ManifestError: No tile is left.
    """
    folder, tiles = Path(labels), read_tiles(labels)
    reviewed = reviewed or {}
    classes = classes_of(list(tiles.columns))
    looked_at = tiles["tile_id"].isin(list(reviewed))
    sure = tiles["label"].isin(classes) & (tiles["probability"] >= confident) & ~looked_at
    said = [reviewed.get(t, label) for t, label in zip(tiles["tile_id"], tiles["label"], strict=True)]
    tiles = tiles.assign(label=said, reviewed=looked_at)
    tiles = tiles[sure | (looked_at & tiles["label"].isin(classes))]
    if tiles.empty:
        raise ManifestError(
            f"No tile of {folder} was reviewed or is at least {confident:g} probable.",
            hint="Lower --confident, or review some.",
        )
    spec = read_bundle(folder / "bundle", verify=False).preprocess
    paths = [_chip(row, folder / "chips", spec) for row in tiles.itertuples()]
    targets = (tiles["label"].to_numpy(dtype=object)[:, None] == np.asarray(classes, dtype=object)).astype(np.float32)
    block = scene_blocks(tiles)
    sound = tiles["tile_id"].map(dict(quality or {})).fillna(1.0)
    extra = pd.DataFrame(
        {
            "weight": np.where(tiles["reviewed"], 1.0, confident_weight * tiles["probability"] * sound),
            "reviewed": tiles["reviewed"].to_numpy(),
            "probability": tiles["probability"].to_numpy(),
        }
    )
    m = make_manifest(
        list(tiles["tile_id"]), paths, list(block), classes, targets, extra=extra,
        name=folder.absolute().name,
    )  # fmt: skip
    logger.info(
        "%d tiles: %d reviewed, %d confident", len(m), int(tiles["reviewed"].sum()), int((~tiles["reviewed"]).sum())
    )
    return write_manifest(m, folder / "manifest.csv")


def scene_blocks(tiles: pd.DataFrame) -> pd.Series:
    """What stays on one side of a split, a name a tile: a file, or a square of a scene, whose windows may overlap."""
    side = {name: BLOCK * tiles[name].clip(lower=1) for name in ("width", "height")}
    names = tiles["scene"] + [
        f"_{x}_{y}" for x, y in zip(tiles["col"] // side["width"], tiles["row"] // side["height"], strict=True)
    ]
    return names.where(tiles["width"] > 0, tiles["tile_id"])


def _chip(tile: Any, folder: Path, spec: PreprocessSpec) -> str:
    """Path of the tile's own file, cut from its scene where it has none."""
    if tile.width < 0:
        return str(tile.path)
    # Ids are long and may differ in what no name of a file can hold.
    digest = hashlib.sha256(tile.tile_id.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    (stem,) = file_names([tile.tile_id])
    path = (folder / f"{stem}-{digest}{'.tif' if spec.bands else '.png'}").absolute()
    if path.is_file():
        return str(path)
    pixels, _ = read_pixels(tile.path, (tile.col, tile.row, tile.width, tile.height), spec)
    if not spec.bands:
        coded = cv2.imencode(".png", pixels[:, :, ::-1] if pixels.shape[2] == 3 else pixels)[1]
        write_atomically(path, lambda part: part.write_bytes(coded.tobytes()))
        return str(path)

    def write(part: Path) -> None:
        height, width, count = pixels.shape
        with rasterio.open(part, "w", "GTiff", width, height, count, dtype="float32", compress="deflate") as dataset:
            dataset.write(pixels.transpose(2, 0, 1))
            dataset.descriptions = spec.bands

    write_atomically(path, write)
    return str(path)


def student_config(labels: str | Path, out: str | Path, run_dir: str = "runs/student") -> Path:
    """Write a training file for ``python -m vitdomains.satellite train --config OUT``: a small ViT on ``labels/manifest.csv``.

    Raises:
        ManifestError: There is no manifest yet.
    """
    folder = Path(labels).absolute()
    m = read_manifest(folder / "manifest.csv")
    bundle = read_bundle(folder / "bundle", verify=False)
    spec = bundle.preprocess
    data: dict[str, Any] = {
        "root": str(folder), "sources": [{"name": "tiles"}], "classes": list(m.classes), "image_size": spec.height,
        "resize": spec.resize,
    }  # fmt: skip
    if spec.bands:
        data |= {"bands": list(spec.bands), "mean": list(spec.mean), "std": list(spec.std)}
    raw = {
        "data": data,
        "model": {"name": "timm:vit_tiny_patch16_224", "weights": "pretrained"},
        "recipe": {
            "epochs": 8, "batch_size": 32, "lr": 5e-4, "layer_decay": 0.75, "augment": "overhead", "label_smoothing": 0.1,
        },
        "run": {"dir": run_dir},
    }  # fmt: skip
    head = (
        f"# A student of the labels in {folder.name}: {len(m)} tiles, {int(m.table['reviewed'].sum())} of them reviewed.\n"
        "# Validation and test have labels of the same kind: accuracy is agreement with those, not with the ground.\n"
        f"#     python -m vitdomains.satellite train --config {Path(out).name}\n"
    )
    write_text(Path(out), head + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
    return Path(out)
