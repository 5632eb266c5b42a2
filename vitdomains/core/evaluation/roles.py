"""What training did with the images of a report: fitted on them, chose thresholds on them, or never saw them.

A bundle carries a fingerprint of each image that training saw. So the role of an image is known where the data set was moved,
split anew, or merged into another one, and an image counts with its group: a second film of a patient whose first film was
trained on is no held-out film.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.bundle import Bundle
from vitdomains.core.data.manifest import Manifest, manifest_hash
from vitdomains.core.errors import BundleError
from vitdomains.core.files import write_text

FITTED, THRESHOLDS, UNTOUCHED, UNKNOWN, MIXED = "fitted", "thresholds", "untouched", "unknown", "mixed"
OF_SPLIT = {"train": FITTED, "val": THRESHOLDS, "test": UNTOUCHED}
"""What training does with a split."""
SEEN = "training_images.csv"
"""File of a bundle: fingerprint and split of each image of its data set, in the order of the fingerprints."""

PHRASES = {
    UNTOUCHED: "images that training never saw",
    THRESHOLDS: "the images that chose epoch, temperature and thresholds: these figures flatter",
    FITTED: "images that the model was fitted on: these figures say nothing about new images",
    MIXED: "images of which training saw some: these figures flatter",
    UNKNOWN: "images of which it is not known whether training saw them",
}
"""A role in words, after "measured on"."""

_ENDS = 1 << 16


@dataclass(frozen=True)
class Rows:
    """What a report is about.

    Attributes:
        split: The split that was asked for: train, val, test, all.
        role: What training did with all of its images, or ``mixed``.
        counts: Images by role.
        home: Whether they are of the data set that the bundle was made from.
        data: Name of the data set.
    """

    split: str
    role: str
    counts: dict[str, int]
    home: bool
    data: str

    @property
    def folder(self) -> str:
        """Where the report lies in the bundle; ``report`` holds that of held-out images of the bundle's own data alone."""
        if not self.home and self.role == UNTOUCHED:
            return "report_external"
        return "report" if self.role == UNTOUCHED else f"report_{self.role}"

    @property
    def title(self) -> str:
        """A heading for the report."""
        where = "held-out images" if self.home else f"images of another place ({self.data})"
        named = {UNTOUCHED: where, THRESHOLDS: "the images that chose the thresholds", FITTED: "the training images"}
        return f"measured on {named.get(self.role, PHRASES[self.role].split(':')[0])}"

    def to_dict(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)


def rows_of(roles: Sequence[str] | npt.NDArray[Any], split: str, *, home: bool, data: str) -> Rows:
    """The one role of images with these roles."""
    names, sizes = np.unique(np.asarray(roles, dtype=str), return_counts=True)
    counts = {str(name): int(size) for name, size in zip(names, sizes, strict=True)}
    role = next(iter(counts)) if len(counts) == 1 else UNKNOWN if UNKNOWN in counts else MIXED
    return Rows(split, role, counts, home, data)


def fingerprint(path: str | Path) -> str:
    """Sixteen hex digits of an image's content: of its size, its first and its last 64 KiB. A folder: of its files.

    A file that cannot be read has a fingerprint of its path.
    """
    digest = hashlib.sha256()
    file = Path(path)
    try:
        for part in sorted(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else [file]:
            with part.open("rb") as handle:
                size = part.stat().st_size
                digest.update(f"{size} ".encode() + handle.read(_ENDS))
                handle.seek(max(_ENDS, size - _ENDS))
                digest.update(handle.read(_ENDS))
    except OSError:
        digest.update(str(path).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def write_seen(manifest: Manifest, folder: Path) -> None:
    """Write ``training_images.csv`` of a data set whose splits are those of training."""
    table = manifest.table
    rows = sorted(zip(map(fingerprint, table["path"]), table["split"], strict=True))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("image", "split"), *rows])
    write_text(folder / SEEN, text.getvalue())


def roles_of(bundle: Bundle, manifest: Manifest, same_data: bool = False) -> tuple[npt.NDArray[np.object_], bool]:
    """Role of each image, [N], and whether the data set is the one that the bundle was made from.

    Args:
        bundle: On disk.
        manifest: The whole data set with its splits, for images of one group share their role.
        same_data: The configuration names the data as training did; believed where the bundle has no list of its images (0.1).

    Raises:
        BundleError: The bundle's list of images cannot be read.
    """
    splits = manifest.table["split"].map(OF_SPLIT).fillna(UNTOUCHED).to_numpy(dtype=object)
    history = bundle.provenance
    if history.get("manifest_sha256") == manifest_hash(manifest):
        return splits, True
    if SEEN not in bundle.files:
        if same_data:
            return splits, True
        # A head of text embeddings has seen no image, unless labelled ones chose its temperature and thresholds.
        trained = history.get("head") != "text embeddings" or bundle.threshold_rule != "not calibrated"
        return np.full(len(manifest), UNKNOWN if trained else UNTOUCHED, dtype=object), not trained
    try:
        seen = pd.read_csv(bundle.path / SEEN, dtype=str, keep_default_na=False).set_index("image")["split"]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(
            f"{bundle.path / SEEN} cannot be read: {error}.", hint="Copy the whole folder again."
        ) from error
    # An image that lies in two splits counts for the one that spoils it more.
    worst = seen.map({"train": 2, "val": 1}).fillna(0).groupby(level=0).max()
    prints = pd.Series([fingerprint(path) for path in manifest.table["path"]])
    level = prints.map(worst)
    home = bool(level.notna().sum() * 2 > len(seen))
    level = level.fillna(0).groupby(manifest.table["group"]).transform("max")
    return level.map({2: FITTED, 1: THRESHOLDS, 0: UNTOUCHED}).to_numpy(dtype=object), home


def untouched(predictions: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Rows of a report's table that training never saw, [N]; a table of 0.1 says so by its splits alone."""
    if "role" in predictions:
        return (predictions["role"] == UNTOUCHED).to_numpy(dtype=bool)
    if "split" in predictions:
        return (predictions["split"] == "test").to_numpy(dtype=bool)
    return np.zeros(len(predictions), dtype=bool)


def read_report(folder: Path) -> dict[str, Any]:
    """The report that lies in a folder; what 0.1 called floors are baselines here.

    Raises:
        OSError: There is none.
        ValueError: It is not JSON.
    """
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    report.setdefault("baselines", report.pop("floors", {}))
    return report


def baselines_on_record(bundle: Bundle, predictions: pd.DataFrame) -> dict[str, Any]:
    """The baselines of the bundle's reports that are on these very images; those were fitted on the training split."""
    wanted = sorted(predictions["id"].astype(str))
    for folder in sorted(bundle.path.glob("report*")):
        try:
            ids = pd.read_csv(folder / "predictions.csv", usecols=["id"], dtype=str, keep_default_na=False)["id"]
            if sorted(ids) == wanted:
                return dict(read_report(folder)["baselines"])
        except (OSError, ValueError):
            continue
    return {}
