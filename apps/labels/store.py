"""What ``label`` wrote, as the zero-shot review app holds it: one row a picture, by the hash of its content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitdomains.core.bundle import read_header
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import ManifestError
from vitdomains.core.geo.map.tiles_table import probability_columns
from vitdomains.zeroshot.embeddings.store import KEY_DIGITS, Index, open_index
from vitdomains.zeroshot.labels.prompts import PromptSet, read_prompts
from vitdomains.zeroshot.models.towers import Kind
from vitdomains.zeroshot.students.student import read_tiles

FROM_TEXT = "text embeddings"
"""What a bundle says of its last layer if that is the classes' texts."""


@dataclass(frozen=True)
class Labels:
    """A labelling on disk.

    Attributes:
        folder: Where it lies.
        tiles: The tile table, all N rows.
        items: [N] hash of each tile's content: sha256 of a file, or of a scene and the window in it.
        rows: Rows of ``tiles``, one an item: what is shown. Copies of a picture share its decisions.
        keys: [N] key of each tile in the index, empty where it has none.
        index: The embeddings.
        prompts: What the labels were asked with.
        kind: softmax or sigmoid.
        thresholds: [K] least probability of each class.
        temperature: Of the calibration.
        prior: Whether scenes were corrected for their own class shares.
        from_text: Whether the last layer is text; else a probe on reviewed tiles, which other texts would replace.
        bundle_id: Of the bundle beside the labels.
    """

    folder: Path
    tiles: pd.DataFrame
    items: NDArray[np.object_]
    rows: NDArray[np.int64]
    keys: tuple[str, ...]
    index: Index
    prompts: PromptSet
    kind: Kind
    thresholds: tuple[float, ...]
    temperature: float
    prior: bool
    from_text: bool
    bundle_id: str

    @property
    def spec(self) -> PreprocessSpec:
        """How tiles are read."""
        return self.index.about.preprocess

    @property
    def shown(self) -> pd.DataFrame:
        """The table of what is shown, [M] rows."""
        return self.tiles.iloc[self.rows]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """[M, K] of what is shown, NaN where a tile holds no data or cannot be read."""
        return self.shown[probability_columns(self.prompts.names)].to_numpy(np.float64)

    def vectors(self) -> NDArray[np.float32]:
        """Unit vectors [M, D] of what is shown, NaN where a tile has no label."""
        found, _ = self.index.take(self.index.find(self.keys[i] for i in self.rows))
        found[np.isnan(self.probabilities).any(axis=1)] = np.nan
        return found


def read_labels(folder: Path) -> Labels:
    """Read a labelling.

    Raises:
        VitDomainsError: A part of it is missing or cannot be read.
    """
    tiles = read_tiles(folder)
    prompts = read_prompts(folder / "prompts.json")
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        about = read_header(folder / "bundle")
        index = open_index(folder / run["index"])
        keys, items = _content(index, tiles)
        made_by = str(about["provenance"].get("head", FROM_TEXT))
        return Labels(
            folder, tiles, items, pd.Series(items).drop_duplicates().index.to_numpy(np.int64), keys, index, prompts,
            run["scores"], tuple(run["thresholds"]), float(run["temperature"]), bool(run["prior"]), made_by == FROM_TEXT,
            str(run["bundle"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{folder} is not whole: {type(error).__name__}: {error}.", hint="Run the same `label` command again."
        ) from error


def _content(index: Index, tiles: pd.DataFrame) -> tuple[tuple[str, ...], NDArray[np.object_]]:
    """Key and item of each tile."""
    keyed = index.tiles().drop_duplicates("tile_id", keep="last").set_index("tile_id")["key"]
    keys = tiles["tile_id"].map(keyed).fillna("")
    known = pd.read_parquet(index.folder / "files.parquet")
    whole = known.drop_duplicates(["path"], keep="last").set_index("path")["digest"]
    digests = tiles["path"].map(whole).fillna("")
    plain = (tiles["width"] < 0) & (digests.str[:KEY_DIGITS] == keys)
    # What could not be read has no key: its name stands for it, and nobody decides on it.
    named = pd.Series([f"unreadable {t}"[:200] for t in tiles["tile_id"]], index=tiles.index, dtype="str")
    items = keys.where(keys != "", named).where(~plain | (keys == ""), digests)
    # Without a key of its own a tile would share its error with the others that have none.
    missing = pd.Series([f"none {i}" for i in range(len(tiles))], index=tiles.index, dtype="str")
    return tuple(keys.where(keys != "", missing)), items.to_numpy(dtype=object)


def places(labels: Labels, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Item, path and window of some of what is shown, by number 0..M-1."""
    at = labels.rows[list(numbers)]
    part = labels.tiles.iloc[at]
    columns = ["tile_id", "path", "col", "row", "width", "height", "error"]
    rows = [{str(k): v for k, v in row.items()} for row in part[columns].to_dict("records")]
    return [row | {"item": item} for row, item in zip(rows, labels.items[at], strict=True)]
