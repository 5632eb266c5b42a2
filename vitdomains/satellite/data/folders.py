"""Published releases that have one folder a class: EuroSAT, AID, RESISC45, UC Merced, RSSCN7.

What is in a release and what its labels mean stands in ``data_cards/``. No reader opens an image.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from vitdomains.core.config.schema import Source
from vitdomains.core.data.endings import RASTERS
from vitdomains.core.data.folders import class_folders, class_names
from vitdomains.core.data.manifest import Manifest
from vitdomains.core.data.tables import read_list
from vitdomains.core.errors import ManifestError
from vitdomains.satellite.data.positions import LONGITUDE_COLUMN

log = logging.getLogger(__name__)


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

    def class_of(folder: str) -> str | None:
        """RSSCN7 writes a letter before the class (``aGrass``)."""
        return wanted.get(folder.lower()) or wanted.get(re.sub("^[a-z](?=[A-Z])", "", folder).lower())

    tried = (source.images,) if source.images else ("", *layout.bases)
    base = next((base for base in tried if len(class_names(root / base, class_of)) >= 2), None)
    if base is None:
        raise ManifestError(
            f"No class folders of {source.name} in {root}; looked for {', '.join(layout.classes[:3])}, ... "
            f"in {', '.join(name or '.' for name in tried)}.",
            hint=f"Point the source's root at the release; see data_cards/{layout.card}.md.",
        )
    m = class_folders(root / base, RASTERS, layout.card, class_of=class_of, order=layout.classes)
    absent = [name for name in layout.classes if name not in m.classes]
    if absent:
        log.warning("%s: no folder of %s", layout.card, ", ".join(absent))
    lists = {"split": layout.prefix, LONGITUDE_COLUMN: f"{layout.prefix}-spatial"} if layout.prefix else {}
    stems = [Path(path).stem for path in m.table["path"]]
    for column, prefix in lists.items():
        if of := _lists(root, prefix):
            lost = [name for name, stem in zip(m.table["id"], stems, strict=True) if stem not in of]
            if lost:
                log.warning(
                    "%s: %d tiles are in none of the lists %s-*.txt: %s", layout.card, len(lost), prefix, lost[:5]
                )
            m = replace(m, table=m.table.assign(**{column: [of.get(stem, "") for stem in stems]}))
    return m


def _lists(root: Path, prefix: str) -> dict[str, str]:
    """File name without ending -> split, from the lists that lie beside the images; empty unless all three are there."""
    files = {split: root / f"{prefix}-{split}.txt" for split in ("train", "val", "test")}
    if not all(file.is_file() for file in files.values()):
        return {}
    return {PureWindowsPath(line).stem: split for split, file in files.items() for line in read_list(file)}
