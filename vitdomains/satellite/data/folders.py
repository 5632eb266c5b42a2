"""Data sets that have one folder a class: EuroSAT, AID, RESISC45, UC Merced, RSSCN7, or the user's own.

What is in a release and what its labels mean stands in ``data_cards/``. No reader opens an image.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitdomains.core.config.schema import Source
from vitdomains.core.data.manifest import Manifest, make_manifest
from vitdomains.core.errors import ManifestError
from vitdomains.satellite.data.positions import LONGITUDE_COLUMN

log = logging.getLogger(__name__)

ENDINGS = (".tif", ".tiff", ".jp2", ".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class Layout:
    """How a release lies on disk.

    Attributes:
        card: Name of the data card.
        bases: Folders below the root that may hold the class folders, the first that does counts.
        classes: The release's class folders.
        prefix: Split lists in the root are ``PREFIX-train.txt``, ``-val.txt``, ``-test.txt``, one file name a line;
            those by longitude are ``PREFIX-spatial-train.txt`` and so on.
    """

    card: str
    bases: tuple[str, ...]
    classes: tuple[str, ...]
    prefix: str = ""


LAYOUTS: dict[str, Layout] = {
    "eurosat": Layout(
        "eurosat",
        ("EuroSAT_MS", "EuroSAT_RGB", "2750", "EuroSAT/2750", "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"),
        ("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
         "Residential", "River", "SeaLake"),
        "eurosat",
    ),
    "aid": Layout(
        "aid",
        ("AID", "AID/AID", "AID_dataset/AID"),
        ("Airport", "BareLand", "BaseballField", "Beach", "Bridge", "Center", "Church", "Commercial",
         "DenseResidential", "Desert", "Farmland", "Forest", "Industrial", "Meadow", "MediumResidential", "Mountain",
         "Park", "Parking", "Playground", "Pond", "Port", "RailwayStation", "Resort", "River", "School",
         "SparseResidential", "Square", "Stadium", "StorageTanks", "Viaduct"),
    ),
    "resisc45": Layout(
        "resisc45",
        ("NWPU-RESISC45", "NWPU-RESISC45/NWPU-RESISC45"),
        ("airplane", "airport", "baseball_diamond", "basketball_court", "beach", "bridge", "chaparral", "church",
         "circular_farmland", "cloud", "commercial_area", "dense_residential", "desert", "forest", "freeway",
         "golf_course", "ground_track_field", "harbor", "industrial_area", "intersection", "island", "lake", "meadow",
         "medium_residential", "mobile_home_park", "mountain", "overpass", "palace", "parking_lot", "railway",
         "railway_station", "rectangular_farmland", "river", "roundabout", "runway", "sea_ice", "ship", "snowberg",
         "sparse_residential", "stadium", "storage_tank", "tennis_court", "terrace", "thermal_power_station", "wetland"),
        "resisc45",
    ),
    "ucmerced": Layout(
        "uc_merced",
        ("UCMerced_LandUse/Images", "Images"),
        ("agricultural", "airplane", "baseballdiamond", "beach", "buildings", "chaparral", "denseresidential", "forest",
         "freeway", "golfcourse", "harbor", "intersection", "mediumresidential", "mobilehomepark", "overpass",
         "parkinglot", "river", "runway", "sparseresidential", "storagetanks", "tenniscourt"),
        "uc_merced",
    ),
    "rsscn7": Layout(
        "rsscn7",
        ("RSSCN7", "RSSCN7-master"),
        ("Field", "Forest", "Grass", "Industry", "Parking", "Resident", "RiverLake"),
    ),
}  # fmt: skip
"""Releases by the name of their source."""


def release(source: Source, root: Path) -> Manifest:
    """A release in its publisher's layout, or its class folders straight under ``root``.

    Raises:
        ManifestError: The root holds none of the release's class folders, or they hold no image.
    """
    layout = LAYOUTS[source.name]
    wanted = {name.lower(): name for name in layout.classes}
    tried = (source.images,) if source.images else ("", *layout.bases)
    for base in tried:
        found = _class_folders(root / base, wanted)
        if len(found) >= 2:
            break
    else:
        raise ManifestError(
            f"No class folders of {source.name} in {root}; looked for {', '.join(layout.classes[:3])}, ... "
            f"in {', '.join(name or '.' for name in tried)}.",
            hint=f"Point the source's root at the release; see data_cards/{layout.card}.md.",
        )
    absent = [name for name in layout.classes if name not in found]
    if absent:
        log.warning("%s: no folder of %s", layout.card, ", ".join(absent))
    classes = [name for name in layout.classes if name in found]
    places = [found[name] for name in classes]
    m = _manifest(classes, places, layout.card)
    lists = {"split": layout.prefix, LONGITUDE_COLUMN: f"{layout.prefix}-spatial"} if layout.prefix else {}
    stems = [Path(path).stem for path in m.table["path"]]
    for column, prefix in lists.items():
        if of := _lists(root, prefix):
            m = replace(m, table=m.table.assign(**{column: [of.get(stem, "") for stem in stems]}))
    return m


def folders(source: Source, root: Path) -> Manifest:
    """Any folder (``images`` of the source, else the root) whose sub-folders are classes; their names are the classes.

    Raises:
        ManifestError: There are fewer than two sub-folders, or no image in them.
    """
    base = root / source.images
    found = {folder.name: folder for folder in _subfolders(base)}
    if len(found) < 2:
        raise ManifestError(
            f"{base} has {len(found)} sub-folders; a folder for each class is needed.",
            hint="Point data.root at the folder that holds the class folders.",
        )
    classes = sorted(found)
    return _manifest(classes, [found[name] for name in classes], root.absolute().name)


def _subfolders(base: Path) -> list[Path]:
    if not base.is_dir():
        return []
    return sorted(p for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_folders(base: Path, wanted: dict[str, str]) -> dict[str, Path]:
    """Class -> folder. RSSCN7 writes a letter before the class (``aGrass``)."""
    found = {}
    for folder in _subfolders(base):
        name = wanted.get(folder.name.lower()) or wanted.get(re.sub("^[a-z](?=[A-Z])", "", folder.name).lower())
        if name:
            found[name] = folder
    return found


def _manifest(classes: Sequence[str], places: Sequence[Path], card: str) -> Manifest:
    paths: list[Path] = []
    owner: list[int] = []
    for k, folder in enumerate(places):
        files = sorted(f.name for f in os.scandir(folder) if f.is_file() and f.name.lower().endswith(ENDINGS))
        paths += [folder.absolute() / name for name in files if not name.startswith(".")]
        owner += [k] * (len(paths) - len(owner))
    if not paths:
        raise ManifestError(
            f"No image in the class folders of {places[0].parent} ({', '.join(ENDINGS)}).", hint="Finish the download."
        )
    ids = [f"{classes[k]}/{path.stem}" for path, k in zip(paths, owner, strict=True)]
    if len(set(ids)) < len(ids):  # one tile in two formats, a.jpg and a.tif
        ids = [f"{classes[k]}/{path.name}" for path, k in zip(paths, owner, strict=True)]
    targets = np.eye(len(classes), dtype=np.float32)[owner]
    return make_manifest(ids, [str(path) for path in paths], ids, classes, targets, name=card)


def _lists(root: Path, prefix: str) -> dict[str, str]:
    """File name without ending -> split, from the lists that lie beside the images; empty unless all three are there."""
    files = {split: root / f"{prefix}-{split}.txt" for split in ("train", "val", "test")}
    if not all(file.is_file() for file in files.values()):
        return {}
    return {
        Path(line.strip()).stem: split
        for split, file in files.items()
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip()
    }
