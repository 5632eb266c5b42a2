"""BigEarthNet and what is laid out like it: a folder a patch, one GeoTIFF a band, any number of classes a patch.

Version 1 (Sumbul et al. 2019, 2021) has ``PATCH/PATCH_labels_metadata.json`` with CORINE classes of level 3, version 2
("reBEN", Clasen et al. 2024) one ``metadata.parquet`` with the 19 classes. Patches stand as the path of their 10 m blue
band; the reader finds the other bands beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitdomains.core.config.schema import Source
from vitdomains.core.data.folders import sub_folders
from vitdomains.core.data.manifest import Manifest, make_manifest, without
from vitdomains.core.data.tables import read_list, read_table
from vitdomains.core.errors import ManifestError

REFERENCE = "B02"
"""The band whose path stands for the patch: at full resolution in every release."""

CLASSES_19: dict[str, tuple[str, ...]] = {
    "Urban fabric": ("Continuous urban fabric", "Discontinuous urban fabric"),
    "Industrial or commercial units": ("Industrial or commercial units",),
    "Arable land": ("Non-irrigated arable land", "Permanently irrigated land", "Rice fields"),
    "Permanent crops": (
        "Vineyards", "Fruit trees and berry plantations", "Olive groves",
        "Annual crops associated with permanent crops",
    ),
    "Pastures": ("Pastures",),
    "Complex cultivation patterns": ("Complex cultivation patterns",),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
    ),
    "Agro-forestry areas": ("Agro-forestry areas",),
    "Broad-leaved forest": ("Broad-leaved forest",),
    "Coniferous forest": ("Coniferous forest",),
    "Mixed forest": ("Mixed forest",),
    "Natural grassland and sparsely vegetated areas": ("Natural grassland", "Sparsely vegetated areas"),
    "Moors, heathland and sclerophyllous vegetation": ("Moors and heathland", "Sclerophyllous vegetation"),
    "Transitional woodland, shrub": ("Transitional woodland/shrub",),
    "Beaches, dunes, sands": ("Beaches, dunes, sands",),
    "Inland wetlands": ("Inland marshes", "Peatbogs"),
    "Coastal wetlands": ("Salt marshes", "Salines"),
    "Inland waters": ("Water courses", "Water bodies"),
    "Marine waters": ("Coastal lagoons", "Estuaries", "Sea and ocean"),
}  # fmt: skip
"""The 19 classes of the BigEarthNet-19 nomenclature (Sumbul et al. 2021, table I) and the CORINE classes in each."""

DROPPED = (
    "Road and rail networks and associated land", "Port areas", "Airports", "Mineral extraction sites", "Dump sites",
    "Construction sites", "Green urban areas", "Sport and leisure facilities", "Bare rock", "Burnt areas",
    "Intertidal flats",
)  # fmt: skip
"""CORINE classes that the 19 leave out."""

CLASSES_43 = (*(fine for group in CLASSES_19.values() for fine in group), *DROPPED)
"""CORINE classes of level 3 that occur in version 1."""


def bigearthnet(source: Source, root: Path) -> Manifest:
    """Patches with the 19 classes. The group is the patch, since the official splits part the Sentinel-2 tiles.

    Raises:
        ManifestError: Neither layout is there, or a label is of no known class.
    """
    return _read(source, root, tuple(CLASSES_19))


def bigearthnet43(source: Source, root: Path) -> Manifest:
    """Patches of version 1 with the 43 CORINE classes.

    Raises:
        ManifestError: It is not there, or a label is of no known class.
    """
    return _read(source, root, CLASSES_43)


def _read(source: Source, root: Path, classes: tuple[str, ...]) -> Manifest:
    table = root / (source.csv or "metadata.parquet")
    if table.is_file():
        return _version_2(source, root, table, classes)
    base = next((b for b in (root / source.images, root / "BigEarthNet-v1.0") if _has_patches(b)), None)
    if base is None:
        raise ManifestError(
            f"{root} holds neither metadata.parquet nor patch folders with a *_labels_metadata.json.",
            hint="Point the source's root at the release; see data_cards/bigearthnet.md.",
        )
    patches = [folder.name for folder in sub_folders(base)]
    with ThreadPoolExecutor(8) as pool:
        listed = list(pool.map(lambda name: _labels_of(base / name), patches))
    return _manifest(patches, [base / name for name in patches], listed, classes, _split_lists(root), "bigearthnet")


def _has_patches(base: Path) -> bool:
    first = next(iter(sub_folders(base)), None)
    return first is not None and (first / f"{first.name}_labels_metadata.json").is_file()


def _labels_of(patch: Path) -> list[str]:
    file = patch / f"{patch.name}_labels_metadata.json"
    try:
        return [str(name) for name in json.loads(file.read_text(encoding="utf-8"))["labels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{file} holds no labels ({error}).", hint="Unpack the patch again.") from error


def _split_lists(root: Path) -> dict[str, str]:
    """Patch -> split, from ``train.csv``, ``val.csv`` and ``test.csv`` (also with ``bigearthnet-`` before)."""
    splits: dict[str, str] = {}
    for split in ("train", "val", "test"):
        for file in (root / f"{split}.csv", root / f"bigearthnet-{split}.csv"):
            if file.is_file():
                splits |= dict.fromkeys((re.split("[,;\t]", line)[0].strip() for line in read_list(file)), split)
    return splits


def _version_2(source: Source, root: Path, table: Path, classes: tuple[str, ...]) -> Manifest:
    meta = read_table(table, ("patch_id", "labels"), text=("patch_id",))
    base = root / (source.images or "BigEarthNet-S2")
    patches = meta["patch_id"].tolist()
    # S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57 lies in the folder of its scene, the name without row and column.
    places = [base / patch.rsplit("_", 2)[0] / patch for patch in patches]
    splits = {}
    if "split" in meta:
        splits = dict(zip(patches, meta["split"].replace({"validation": "val"}).astype("str"), strict=True))
    extra = meta[[c for c in ("country", "lon", "lat") if c in meta]]
    return _manifest(
        patches, places, [list(map(str, x)) for x in meta["labels"]], classes, splits, "bigearthnet", extra
    )


def _manifest(
    patches: Sequence[str],
    places: Sequence[Path],
    listed: Sequence[Iterable[str]],
    classes: tuple[str, ...],
    splits: dict[str, str],
    card: str,
    extra: pd.DataFrame | None = None,
) -> Manifest:
    targets = multi_hot(listed, classes)
    paths = [str((place / f"{patch}_{REFERENCE}.tif").absolute()) for place, patch in zip(places, patches, strict=True)]
    m = make_manifest(
        patches, paths, patches, classes, targets, name=card,
        splits=[splits.get(name, "") for name in patches] if splits else None, extra=extra,
    )  # fmt: skip
    return without(m, ~targets.any(axis=1), f"none of the {len(classes)} classes", "asked")


def multi_hot(listed: Sequence[Iterable[str]], classes: Sequence[str]) -> npt.NDArray[np.float32]:
    """float32 [N, K] of lists of CORINE class names, or of the names of the 19 classes themselves.

    Raises:
        ManifestError: A name is of no known class.
    """
    index: dict[str, int] = {name: k for k, name in enumerate(classes)}
    if tuple(classes) == tuple(CLASSES_19):
        index |= {fine: k for k, group in enumerate(CLASSES_19.values()) for fine in group if fine not in index}
    targets = np.zeros((len(listed), len(classes)), dtype=np.float32)
    for row, names in zip(targets, listed, strict=True):
        for name in names:
            if name in index:
                row[index[name]] = 1
            elif name not in DROPPED:
                raise ManifestError(
                    f"{name!r} is no BigEarthNet class.", hint="43 classes are in version 1 only; 19 are in both."
                )
    return targets


READERS: dict[str, Callable[[Source, Path], Manifest]] = {"bigearthnet": bigearthnet, "bigearthnet43": bigearthnet43}
