"""What a labelling leaves beside its tables: lists for people, totals, and the bundle that all other commands take."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from vitdomains.core.bundle import Bundle, write_bundle
from vitdomains.core.config.schema import Config, Data, Run, Source
from vitdomains.core.data.preprocess import PreprocessSpec, resize_filtered
from vitdomains.core.errors import ImageError
from vitdomains.core.evaluation.card import model_card, provenance
from vitdomains.core.files import as_file_name, temporary_sibling, write_atomically, write_text
from vitdomains.core.geo.map.tiles_table import UNKNOWN
from vitdomains.core.models.image_tower import text_head
from vitdomains.zeroshot.embeddings.reader import read_image, read_pixels
from vitdomains.zeroshot.embeddings.store import About
from vitdomains.zeroshot.labels.classify import Classifier, top_k
from vitdomains.zeroshot.models.towers import Towers

# Contact sheets: for each class the tiles of which the labels are surest, and those of which they are least sure.

SIDE = 112
CAPTION = 14
PER_ROW = 8
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}
_COLUMNS = ["tile_id", "path", "col", "row", "width", "height", "probability"]


@dataclass
class Examples:
    """Collects, over any number of tables, the ``n`` most and ``n`` least certain tiles of each label."""

    n: int = PER_ROW
    best: dict[str, pd.DataFrame] = field(default_factory=dict)
    worst: dict[str, pd.DataFrame] = field(default_factory=dict)

    def add(self, table: pd.DataFrame) -> None:
        """Take the tiles of a tile table into account."""
        for label, rows in table[table["label"] != ""].groupby("label", sort=False):
            name, own = str(label), rows[_COLUMNS]
            for kept, most in ((self.best, True), (self.worst, False)):
                both = pd.concat([kept[name], own]) if name in kept else own
                pick = both.nlargest if most else both.nsmallest
                kept[name] = pick(self.n, "probability", keep="first")


def contact_sheets(examples: Examples, spec: PreprocessSpec, folder: Path) -> list[Path]:
    """One PNG a label: the surest tiles in the first row, the least sure in the second."""
    written = []
    names = sorted(examples.best)
    for name, stem in zip(names, file_names(names), strict=True):
        rows = [examples.best[name], examples.worst[name].iloc[::-1]]
        sheet = Image.new("RGB", (PER_ROW * SIDE, 20 + len(rows) * (SIDE + CAPTION)), "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((4, 4), f"{name}: surest above, least sure below", fill="black")
        for y, tiles in enumerate(rows):
            for x, tile in enumerate(tiles.itertuples()):
                corner = (x * SIDE, 20 + y * (SIDE + CAPTION))
                sheet.paste(_thumbnail(tile, spec), corner)
                draw.text((corner[0] + 2, corner[1] + SIDE), f"{tile.probability:.3f}", fill="black")
        path = folder / f"{stem}.png"
        write_atomically(path, partial(sheet.save, format="png", compress_level=1))
        written.append(path)
    return written


def file_names(names: Sequence[str]) -> list[str]:
    """Names of files for names of anything, without endings: short, allowed on every system, and different where case does not
    count."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        stem = as_file_name(name)[:60]
        if stem.upper() in _DEVICES:
            stem = f"_{stem}"
        stem = next(s for s in (stem, *(f"{stem}-{i}" for i in range(2, len(taken) + 3))) if s.casefold() not in taken)
        taken.add(stem.casefold())
        found.append(stem)
    return found


def _thumbnail(tile: Any, spec: PreprocessSpec) -> Image.Image:
    try:
        if tile.width < 0:
            image = read_image(tile.path, spec)
        else:
            image = read_pixels(tile.path, (tile.col, tile.row, tile.width, tile.height), spec)[0]
    except ImageError:  # it could be read before; the sheet goes on with a grey square
        return Image.new("RGB", (SIDE, SIDE), "grey")
    return Image.fromarray(resize_filtered(shown(image, spec), SIDE, SIDE, "bilinear", crop=True))


def shown(image: npt.NDArray[Any], spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] for the eye; other units are shown from two standard deviations below the mean to two above."""
    image = image[:, :, None] if image.ndim == 2 else image
    if image.dtype != np.uint8:
        mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
        image = np.clip((image - mean) / (4 * std) + 0.5, 0, 1) * 255
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.uint8))


DOMAIN_NAME = "zeroshot"


@dataclass
class Summary:
    """Totals over all tiles: how many have each label (``unknown``, and "" for those without data or with an error), the sums
    behind the means of probability and margin, the errors by tile, and those of scenes that could not be cut, by path."""

    counts: Counter[str] = field(default_factory=Counter)
    sums: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> int:
        """Tiles with a label, ``unknown`` among them."""
        return sum(count for label, count in self.counts.items() if label)

    def add(self, table: pd.DataFrame) -> None:
        """Take a tile table into account."""
        grouped = table.groupby("label", sort=False)
        for label, rows in grouped[["probability", "margin", "entropy"]]:
            self.counts[str(label)] += len(rows)
            self.sums[str(label)] = self.sums.get(str(label), 0.0) + np.nansum(rows.to_numpy(np.float64), axis=0)
        wrong = table["error"] != ""
        self.errors.update(zip(table["tile_id"][wrong], table["error"][wrong], strict=True))

    def table(self, names: tuple[str, ...]) -> pd.DataFrame:
        """One row a label: tiles, share of the labelled ones, and means of probability, margin and entropy."""
        labels = [*names, *sorted(set(self.counts) - {*names, "", UNKNOWN}), UNKNOWN]
        total = max(1, self.labelled)
        rows = []
        for label in labels:
            count = self.counts[label]
            means = self.sums[label] / count if count else [float("nan")] * 3
            rows.append((label, count, count / total, *means))
        return pd.DataFrame(rows, columns=["label", "tiles", "share", "probability", "margin", "entropy"])


@contextmanager
def label_list(path: Path, classifier: Classifier, k: int) -> Iterator[Any]:
    """Yields a function that adds tile tables to ``labels.csv``, which appears whole when all are in it."""
    part = temporary_sibling(path)
    columns = ["tile_id", "path", "col", "row", "label", "probability", "margin"]

    def add(table: pd.DataFrame, handle: TextIO, first: bool) -> None:
        shown = table[columns].assign(top=top_k(table, classifier.prompts.names, k), error=table["error"])
        shown.to_csv(handle, index=False, header=first, float_format="%.4f", quoting=csv.QUOTE_MINIMAL)

    try:
        with part.open("w", encoding="utf-8", newline="") as handle:
            yield lambda table: add(table, handle, handle.tell() == 0)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_totals(folder: Path, summary: Summary, names: tuple[str, ...]) -> None:
    """``summary.csv`` and ``errors.csv``."""
    write_text(folder / "summary.csv", summary.table(names).to_csv(index=False, float_format="%.4f"))
    wrong = pd.DataFrame(list((summary.unread | summary.errors).items()), columns=["tile_id", "error"])
    write_text(folder / "errors.csv", wrong.to_csv(index=False))


def write_label_bundle(
    path: Path, towers: Towers, classifier: Classifier, about: About, tiles: int, made_by: str = "text embeddings"
) -> Bundle:
    """The image tower with the classifier as its last layer, as a bundle.

    Args:
        path: Folder to write.
        towers: Whose image tower it is.
        classifier: Its weights, bias, temperature and thresholds; its prompts go into the provenance.
        about: The preprocessing that the embeddings were made with.
        tiles: How many tiles were labelled with it.
        made_by: Where the last layer comes from.
    """
    model = text_head(towers.image, classifier.weights, classifier.bias)
    total = sum(p.numel() for p in model.parameters())
    sample = f"F1 on {classifier.calibrated_on} labelled tiles" if classifier.calibrated_on else "not calibrated"
    config = Config(
        data=Data(sources=[Source(name="folders")], image_size=about.preprocess.height), run=Run(dir=str(path.parent))
    )
    history = provenance(
        config,
        towers.source,
        towers.id,
        0,
        total,
        {"labelled": tiles},
        head=made_by,
        prompts=classifier.prompts.to_dict(),
    )
    bundle = Bundle(
        path=path, domain=DOMAIN_NAME, task_kind=classifier.task_kind, classes=classifier.prompts.names,
        model=towers.image.spec(), preprocess=about.preprocess, temperature=(classifier.temperature,),
        thresholds=classifier.thresholds, threshold_rule=sample, metrics={}, data_card="", provenance=history,
        exports={}, files={},
    )  # fmt: skip
    card = model_card(bundle, "zero-shot labels")
    return write_bundle(bundle, model.state_dict(), lambda folder: write_text(folder / "MODEL_CARD.md", card))
