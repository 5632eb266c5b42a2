"""Sources in their publishers' layouts, on miniature copies: classes, labels, splits, and errors that say what to do."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.satellite.tile_files import write_picture, write_raster
from vitdomains.core.config.schema import Data, Source
from vitdomains.core.data.folders import folder_manifest
from vitdomains.core.data.manifest import labels, subset
from vitdomains.core.errors import ManifestError
from vitdomains.satellite import DOMAIN
from vitdomains.satellite.data.bigearthnet import CLASSES_19, CLASSES_43
from vitdomains.satellite.data.folders import LAYOUTS
from vitdomains.satellite.data.sources import SOURCES, build_manifest

N = 8  # tiles a class


def class_folders(base: Path, classes: list[str], suffix: str = ".png", n: int = N) -> None:
    for k, name in enumerate(classes):
        for i in range(n):
            write_picture(base / name / f"{name.lower()}_{i}{suffix}", (40 * k, 10 * i, 90), size=8)


def data(root: Path, name: str, **more: object) -> Data:
    source = {key: more.pop(key) for key in ("csv", "columns", "separator", "keep", "limit", "images") if key in more}
    return Data(root=str(root), sources=[Source(name=name, **source)], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "base", "spelling"),
    [
        ("aid", "AID", {"BareLand": "BareLand", "Port": "Port"}),
        ("resisc45", "NWPU-RESISC45", {"airplane": "airplane", "tennis_court": "tennis_court"}),
        ("ucmerced", "UCMerced_LandUse/Images", {"harbor": "harbor", "runway": "runway"}),
        ("rsscn7", "RSSCN7", {"aGrass": "Grass", "dRiverLake": "RiverLake"}),
        ("eurosat", "2750", {"AnnualCrop": "AnnualCrop", "SeaLake": "SeaLake"}),
        ("rsscn7", "", {"Grass": "Grass", "RiverLake": "RiverLake"}),
    ],
)
def test_a_release_is_found_in_its_own_layout(tmp_path: Path, name: str, base: str, spelling: dict[str, str]) -> None:
    class_folders(tmp_path / base, list(spelling))
    m = build_manifest(data(tmp_path, name))
    assert set(m.classes) == set(spelling.values())
    assert m.name == LAYOUTS[name].card
    assert len(m) == N * len(spelling)
    assert (labels(m).sum(axis=1) == 1).all()
    assert set(m.table["split"]) == {"train", "val", "test"}


def test_classes_of_a_release_are_the_published_number() -> None:
    assert {name: len(layout.classes) for name, layout in LAYOUTS.items()} == {
        "eurosat": 10, "aid": 30, "resisc45": 45, "ucmerced": 21, "rsscn7": 7
    }  # fmt: skip
    assert (len(CLASSES_19), len(CLASSES_43), len(set(CLASSES_43))) == (19, 43, 43)


def test_a_wrong_root_says_where_it_looked(tmp_path: Path) -> None:
    class_folders(tmp_path, ["cats", "dogs"], n=1)
    with pytest.raises(ManifestError, match=r"No class folders of aid .* looked for Airport, .*data_cards/aid.md"):
        build_manifest(data(tmp_path, "aid"))


def test_the_split_is_stratified_and_takes_the_shares(tmp_path: Path) -> None:
    class_folders(tmp_path, ["a", "b"], n=28)
    m = build_manifest(data(tmp_path, "folders", val_fraction=1 / 7, test_fraction=2 / 7))
    counts = {split: labels(subset(m, split)).sum(axis=0).tolist() for split in ("train", "val", "test")}
    assert counts == {"train": [16, 16], "val": [4, 4], "test": [8, 8]}


def test_published_split_lists_are_taken(tmp_path: Path) -> None:
    class_folders(tmp_path / "EuroSAT_RGB", ["Forest", "River"])
    names = [f"{c}_{i}" for c in ("forest", "river") for i in range(N)]
    for prefix, order in (("eurosat", names), ("eurosat-spatial", names[::-1])):
        for split, part in (("train", order[:8]), ("val", order[8:12]), ("test", order[12:])):
            (tmp_path / f"{prefix}-{split}.txt").write_text("\n".join(f"{n}.jpg" for n in part))
    m = build_manifest(data(tmp_path, "eurosat", split="official"))
    assert set(subset(m, "train").table["id"]) == {f"Forest/forest_{i}" for i in range(N)}
    m = build_manifest(data(tmp_path, "eurosat", split="longitude"))
    assert set(subset(m, "train").table["id"]) == {f"River/river_{i}" for i in range(N)}


def test_no_published_split_is_an_error(tmp_path: Path) -> None:
    class_folders(tmp_path, ["Forest", "River"])
    with pytest.raises(ManifestError, match="has no such split"):
        build_manifest(data(tmp_path, "eurosat", split="official"))


def test_classes_are_chosen_in_order_and_other_tiles_left_out(tmp_path: Path) -> None:
    class_folders(tmp_path, ["DenseResidential", "Forest", "River"])
    m = build_manifest(data(tmp_path, "folders", classes=["river", "dense_residential"]))
    assert m.classes == ("river", "dense_residential")
    assert len(m) == 2 * N and (labels(m).sum(axis=1) == 1).all()


def test_two_releases_share_a_class_and_deny_each_others(tmp_path: Path) -> None:
    class_folders(tmp_path / "one", ["Forest", "Field"])
    class_folders(tmp_path / "two", ["Forest", "Beach"])
    m = build_manifest(
        Data(root=str(tmp_path), sources=[Source(name="rsscn7", root="one"), Source(name="aid", root="two")])
    )
    assert set(m.classes) == {"Forest", "Field", "Beach"}
    assert not np.isnan(labels(m)).any() and (labels(m).sum(axis=1) == 1).all()
    assert labels(m)[:, m.classes.index("Forest")].sum() == 2 * N


def test_a_model_can_be_measured_where_some_of_its_classes_are_absent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class_folders(tmp_path, ["Forest", "River"])
    with caplog.at_level(logging.WARNING):
        m = build_manifest(data(tmp_path, "folders", classes=["Forest", "Glacier"]))
    assert m.classes == ("Forest", "Glacier") and len(m) == N
    assert "no image of Glacier" in caplog.text
    with pytest.raises(ManifestError, match="No source has Glacier"):
        build_manifest(data(tmp_path, "folders", classes=["Glacier"]))


def test_a_table_with_one_class_a_tile(tmp_path: Path) -> None:
    rows = [{"file": f"im/{i}.png", "what": ["wood", "water"][i % 2], "site": f"s{i // 2}"} for i in range(24)]
    for row in rows:
        write_picture(tmp_path / row["file"], size=8)
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    columns = {"path": "file", "labels": "what", "group": "site"}
    m = build_manifest(data(tmp_path, "csv", csv="t.csv", columns=columns))
    assert m.classes == ("water", "wood") and m.table["group"].nunique() == 12
    with pytest.raises(ManifestError, match="no column 'kind'"):
        build_manifest(data(tmp_path, "csv", csv="t.csv", columns={**columns, "labels": "kind"}))


def test_a_table_with_several_classes_a_tile(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.png", "labels": ["a|b", "b", "", "a"][i % 4]} for i in range(32)]
    for row in rows:
        write_picture(tmp_path / row["path"], size=8)
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ManifestError, match=r"more than one class.*--data.task multilabel"):
        build_manifest(data(tmp_path, "csv", csv="t.csv"))
    m = build_manifest(data(tmp_path, "csv", csv="t.csv", task="multilabel"))
    assert len(m) == 24, "a tile without any label is unknown"
    assert sorted(labels(m).sum(axis=1).tolist()) == [1.0] * 16 + [2.0] * 8


@pytest.mark.parametrize(
    ("encoding", "separator", "slash"),
    [("utf-8", ";", "/"), ("utf-16", "\t", "/"), ("cp1252", ",", "/"), ("utf-8-sig", ",", "\\")],
)
def test_tables_of_windows(tmp_path: Path, encoding: str, separator: str, slash: str) -> None:
    rows = [("file", "label")]
    for i in range(16):
        write_picture(tmp_path / "x" / f"{i}.png", size=8)
        rows.append((f"x{slash}{i}.png", ["forêt", "eau"][i % 2]))
    (tmp_path / "t.csv").write_bytes("\r\n".join(separator.join(row) for row in rows).encode(encoding))
    m = build_manifest(data(tmp_path, "csv", csv="t.csv", columns={"path": "file", "labels": "label"}))
    assert m.classes == ("eau", "forêt") and labels(m).sum(axis=0).tolist() == [8, 8]


def test_class_codes_and_words_for_missing_stay_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    codes = ["3301010900", "3301010901", "NA", "None", "", "007"]
    rows = [{"path": f"{i}.png", "labels": codes[i % 6]} for i in range(72)]
    for row in rows:
        write_picture(tmp_path / row["path"], size=8)
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    with caplog.at_level(logging.INFO):
        m = build_manifest(data(tmp_path, "csv", csv="t.csv"))
    assert m.classes == ("007", "3301010900", "3301010901", "NA", "None") and len(m) == 60
    assert "72 images found, 60 used" in caplog.text and "12 left out, no known label" in caplog.text
    with pytest.raises(ManifestError, match="of 72 images found only 60 can be used"):
        build_manifest(data(tmp_path, "csv", csv="t.csv", max_lost=0.1))


def test_class_folders_of_webp_upper_case_links_and_deeper_folders(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", ["river"], ".webp")
    class_folders(tmp_path / "set" / "forest", ["2020"], ".PNG")
    class_folders(tmp_path / "away", ["lake"], ".jpg")
    (tmp_path / "set" / "lake").symlink_to(tmp_path / "away" / "lake")
    m = build_manifest(data(tmp_path / "set", "folders"))
    assert m.classes == ("forest", "lake", "river") and labels(m).sum(axis=0).tolist() == [N, N, N]
    assert folder_manifest(tmp_path / "set", DOMAIN.extensions).table["path"].tolist() == sorted(m.table["path"])


@pytest.mark.parametrize("name", ["folders", "aid"])
def test_train_val_and_test_are_splits_in_a_release_too(tmp_path: Path, name: str) -> None:
    for split in ("train", "val", "test"):
        class_folders(tmp_path / split, ["Forest", "River"])
    m = build_manifest(data(tmp_path, name))
    assert m.classes == ("Forest", "River") and set(m.table["split"].value_counts()) == {2 * N}
    assert build_manifest(data(tmp_path, name, split="official")).table["split"].tolist() == m.table["split"].tolist()


def patches(root: Path, n: int, fine: list[list[str]]) -> list[str]:
    names = [f"S2A_MSIL2A_20170613T101031_{i}_45" for i in range(n)]
    for i, name in enumerate(names):
        folder = root / name
        write_raster(folder / f"{name}_B02.tif", np.full((1, 4, 4), i, np.uint16))
        (folder / f"{name}_labels_metadata.json").write_text(json.dumps({"labels": fine[i % len(fine)]}))
    return names


def test_bigearthnet_version_1(tmp_path: Path) -> None:
    fine = [["Rice fields", "Olive groves"], ["Sea and ocean"], ["Airports"], ["Vineyards", "Airports"]]
    patches(tmp_path / "BigEarthNet-v1.0", 24, fine)
    m = build_manifest(data(tmp_path, "bigearthnet", task="multilabel"))
    assert m.classes == ("Arable land", "Permanent crops", "Marine waters")
    assert len(m) == 18, "airports alone are none of the 19"
    assert m.table["path"].str.endswith("_B02.tif").all()
    m = build_manifest(data(tmp_path, "bigearthnet43", task="multilabel"))
    assert set(m.classes) == {"Rice fields", "Olive groves", "Sea and ocean", "Airports", "Vineyards"}
    with pytest.raises(ManifestError, match="--data.task multilabel"):
        build_manifest(data(tmp_path, "bigearthnet"))


def test_bigearthnet_version_2(tmp_path: Path) -> None:
    names = [f"S2B_MSIL2A_20170709T094029_N9999_R036_T35VNL_{i}_7" for i in range(9)]
    for name in names:
        scene = name.rsplit("_", 2)[0]
        write_raster(tmp_path / "BigEarthNet-S2" / scene / name / f"{name}_B02.tif", np.ones((1, 4, 4), np.uint16))
    table = pd.DataFrame(
        {"patch_id": names, "labels": [["Mixed forest"], ["Pastures", "Mixed forest"], ["Pastures"]] * 3}
    )
    table["split"] = ["train"] * 3 + ["validation"] * 3 + ["test"] * 3
    table.to_parquet(tmp_path / "metadata.parquet")
    m = build_manifest(data(tmp_path, "bigearthnet", task="multilabel"))
    assert m.classes == ("Pastures", "Mixed forest")
    assert m.table["split"].value_counts().to_dict() == {"train": 3, "val": 3, "test": 3}
    table.assign(labels=[["Moon"]] * 9).to_parquet(tmp_path / "metadata.parquet")
    with pytest.raises(ManifestError, match="'Moon' is no BigEarthNet class"):
        build_manifest(data(tmp_path, "bigearthnet", task="multilabel"))


def test_a_random_split_of_neighbours_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(100):
        place = (500_000.0 + 640 * (i % 10), 5_000_000.0 - 640 * (i // 10))
        name = ["Forest", "River"][i % 2]
        write_raster(tmp_path / name / f"{name}_{i}.tif", np.ones((3, 64, 64), np.uint8), origin=place)
    with caplog.at_level(logging.WARNING):
        build_manifest(data(tmp_path, "eurosat"))
    found = re.search(r"tiles that lie (\d+) m apart: the nearest training tile of a test tile is (\d+) m", caplog.text)
    assert found and 636 <= int(found[1]) == int(found[2]) <= 644
    caplog.clear()
    m = build_manifest(data(tmp_path, "eurosat", split="spatial", block_size=1500.0))
    assert "random split" not in caplog.text
    assert m.table["group"].nunique() < 40
    m = build_manifest(data(tmp_path, "eurosat", split="longitude"))
    assert subset(m, "train").table["lon"].max() < subset(m, "test").table["lon"].min()


def test_pictures_have_no_place_to_split_by(tmp_path: Path) -> None:
    class_folders(tmp_path, ["Forest", "River"])
    with pytest.raises(ManifestError, match="have no position"):
        build_manifest(data(tmp_path, "folders", split="spatial"))


def test_real_aid(shared: Path) -> None:
    m = build_manifest(Data(root=str(shared / "data" / "aid_subset"), sources=[Source(name="aid")]))
    assert len(m) == 2100 and m.classes == LAYOUTS["aid"].classes


def test_every_source_is_named_in_the_domain() -> None:
    assert set(DOMAIN.sources) == set(SOURCES)


def test_a_misspelt_source_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="Did you mean folders\\?"):
        build_manifest(data(tmp_path, "folder"))
