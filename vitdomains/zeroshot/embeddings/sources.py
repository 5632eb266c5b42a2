"""Labelled tiles, for measuring and calibrating: folders named by class, or a table; names need only mean the same."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.schema import Data
from vitdomains.core.data import sources
from vitdomains.core.data.endings import RASTERS
from vitdomains.core.data.folders import class_folders
from vitdomains.core.data.manifest import Manifest, log_skipped, make_manifest, read_manifest, without
from vitdomains.core.data.sources import DomainSources, Reader, folders, listed_labels, tiles
from vitdomains.core.data.tables import as_text, local_path, read_table
from vitdomains.core.errors import ManifestError
from vitdomains.core.geo.map.tiles_table import PLACE
from vitdomains.zeroshot.embeddings.store import TilePlan
from vitdomains.zeroshot.labels.prompts import PromptSet, matching_class

logger = logging.getLogger(__name__)


SOURCES: dict[str, Reader] = {"folders": folders, "tiles": tiles}


def build_manifest(data: Data) -> Manifest:
    """The manifest of a config, as ``core.data.sources.build_manifest``; without sources: class folders under ``data.root``."""
    return sources.build_manifest(data, DomainSources(SOURCES, "folders", drop_rare=False))


def labelled_sample(source: str | Path, prompts: PromptSet) -> tuple[TilePlan, npt.NDArray[np.float64]]:
    """Labelled image files with their targets over the classes of ``prompts``, [N, K] of 1, 0.

    Args:
        source: A folder of class folders; or a CSV with ``path`` and ``label``; or a manifest (.csv, .parquet).
        prompts: A label is one of its classes if it is the same name or alias, case, blanks and hyphens apart.

    Raises:
        ManifestError: Nothing is there, or no label is a class.
    """
    path = Path(source)
    m = class_folders(path, RASTERS, path.name, least=1) if path.is_dir() else _table(path)
    log_skipped(m)
    matched = {name: matching_class(prompts, name) for name in m.classes}
    strange = [name for name, match in matched.items() if not match]
    if len(strange) == len(m.classes):
        raise ManifestError(
            f"No label of {source} is one of the classes: {', '.join(strange[:10])} are not {', '.join(prompts.names[:10])}.",
            hint="Add the labels as aliases to the class file.",
        )
    if strange:
        logger.warning("left out, for they are none of the classes: %s", ", ".join(strange))
    targets = np.zeros((len(m), len(prompts.names)))
    for name, match in matched.items():
        if match:
            targets[:, prompts.names.index(match)] += np.nan_to_num(m.table[name].to_numpy(np.float64)) == 1
    targets = np.minimum(targets, 1.0)
    known = targets.any(axis=1)
    rows = m.table[known]
    names = [Path(path).name for path in rows["path"]]
    place = {name: np.full(len(rows), -1, np.int32) for name in ("col", "row", "width", "height")}
    table = pd.DataFrame({"tile_id": rows["id"].to_numpy(), "scene": names, "path": rows["path"].to_numpy(), **place})
    return TilePlan(table[list(PLACE)], {}), targets[known]


def _table(path: Path) -> Manifest:
    """A manifest; or any table with ``path`` and ``label``."""
    if not path.is_file():
        raise ManifestError(f"There is no {path}.", hint="Give a folder of class folders, a table or a manifest.")
    table = read_table(path, text=("path", "label"))
    if not {"path", "label"} <= {*table.columns}:
        return read_manifest(path)
    paths = as_text(table["path"])
    classes, listed = listed_labels(table["label"], "\n")
    targets = np.array([[name in names for name in classes] for names in listed], dtype=np.float32)
    files = [local_path(path.parent.absolute(), file) for file in paths]
    m = make_manifest(list(paths), files, list(paths), classes, targets.reshape(len(paths), -1), name=path.stem)
    blank = (paths.str.strip() == "").to_numpy() | ~targets.any(axis=1)
    return without(m, blank, "a row without a path or a label")
