"""Labelled tiles in, reviewed labels in: names that only have to mean the same, and tables that are explained where wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.zeroshot.tiny import write_tiles
from vitdomains.core.config.schema import Data, Source
from vitdomains.core.data.manifest import labels
from vitdomains.core.errors import ImageError, ManifestError
from vitdomains.zeroshot.embeddings.reader import read_image
from vitdomains.zeroshot.embeddings.sources import build_manifest, labelled_sample
from vitdomains.zeroshot.embeddings.store import plan_tiles, tile_keys
from vitdomains.zeroshot.labels.prompts import make_prompts
from vitdomains.zeroshot.students.student import read_reviewed

PROMPTS = make_prompts(
    {"classes": ["parking lot", {"name": "river or lake", "aliases": ["RiverLake"]}, "forest"]}, ["{}"]
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sorted")
    for seed, name in enumerate(("ParkingLot", "RiverLake", "Desert")):
        write_tiles(folder / name, 5, 16, seed)
    return folder


def test_folders_are_matched_to_classes_by_name_and_alias(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan, targets = labelled_sample(root, PROMPTS)
    assert len(plan.table) == 10 and (plan.table["width"] == -1).all()
    assert targets.sum(axis=0).tolist() == [5, 5, 0] and (targets.sum(axis=1) == 1).all()
    assert "Desert" in caplog.text
    with pytest.raises(ManifestError, match="none|No label"):
        labelled_sample(root, make_prompts({"classes": ["moon"]}))
    with pytest.raises(ManifestError, match="sub-folders"):
        labelled_sample(root / "Desert", PROMPTS)


def test_a_table_of_paths_and_labels_is_a_sample_too(root: Path) -> None:
    rows = [("ParkingLot/tile_00001.png", "parking lot"), ("Desert/tile_00002.png", "forest")]
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(root / "labels.csv", index=False)
    plan, targets = labelled_sample(root / "labels.csv", PROMPTS)
    assert np.array_equal(targets, [[1, 0, 0], [0, 0, 1]]) and all(Path(p).is_file() for p in plan.table["path"])


def test_the_manifest_of_a_bundles_classes(root: Path) -> None:
    m = build_manifest(Data(root=str(root), classes=["parking lot", "desert", "beach"]))
    assert m.classes == ("parking lot", "desert", "beach") and len(m) == 10
    assert np.nansum(labels(m), axis=0).tolist() == [5, 5, 0] and set(m.table["split"]) == {"train", "val", "test"}
    with pytest.raises(ManifestError, match="No source has beach"):
        build_manifest(Data(root=str(root), classes=["beach"]))


def test_a_key_is_the_content_and_an_unchanged_file_is_not_read_again(root: Path, tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", 3, 16)
    (tiles / "tile_00002.png").write_bytes((tiles / "tile_00000.png").read_bytes())
    plan, hashed = plan_tiles([tiles]), list[int]()
    first = tile_keys(plan.table, tmp_path / "files.parquet", lambda done, total: hashed.append(total))
    again = tile_keys(plan.table, tmp_path / "files.parquet", lambda done, total: hashed.append(total))
    assert first == again and first[0] == first[2] != first[1] and hashed == [3]
    (tiles / "tile_00001.png").unlink()
    gone = tile_keys(plan.table, tmp_path / "files.parquet")
    assert gone[0] == first[0] and gone[1] != first[1]
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image(tiles / "tile_00001.png")


def test_reviewed_labels_come_in_three_shapes(tmp_path: Path) -> None:
    tiles = pd.DataFrame(
        {"tile_id": ["a", "b", "c"], "path": ["/a", "/b", "/c"], "prob:forest": 0.5, "prob:parking lot": 0.5}
    )
    file = tmp_path / "reviewed.csv"
    file.write_text("tile_id,label\na,forest\na,Parking_Lot\nb,unknown\nz,forest\n")
    assert read_reviewed(file, tiles) == {"a": "parking lot", "b": "unknown"}
    file.write_text("item,value:label\n11,forest\n22,parking lot\n33,\n")
    assert read_reviewed(file, tiles, {"/b": "11", "/c": "99"}) == {"b": "forest"}
    file.write_text("id,path,group,split,label:forest,label:parking lot,reviewed\na,a,a,,1,0,True\nb,b,b,,0,1,False\n")
    assert read_reviewed(file, tiles) == {"a": "forest"}
    for text, said in {
        "tile_id,label\na,swamp\n": "swamp",
        "tile,name\na,forest\n": "tile_id and label",
        "tile_id,label\nz,forest\n": "none of the tiles",
    }.items():
        file.write_text(text)
        with pytest.raises(ManifestError, match=said):
            read_reviewed(file, tiles)
    with pytest.raises(ManifestError, match="no file"):
        read_reviewed(tmp_path / "absent.csv", tiles)


def test_a_misspelt_source_is_suggested(root: Path) -> None:
    with pytest.raises(ManifestError, match="Did you mean tiles\\?"):
        build_manifest(Data(root=str(root), sources=[Source(name="tile")]))


def test_a_sample_keeps_labels_that_read_like_missing_ones(tmp_path: Path) -> None:
    write_tiles(tmp_path / "x", 3, 16)
    names = sorted(p.name for p in (tmp_path / "x").iterdir())
    rows = zip([f"x\\{name}" for name in names], ["None", "NA", ""], strict=True)
    text = "path;label\r\n" + "".join(f"{path};{label}\r\n" for path, label in rows)
    (tmp_path / "t.csv").write_bytes(text.encode("utf-16"))
    plan, targets = labelled_sample(tmp_path / "t.csv", make_prompts({"classes": ["none", "na"]}))
    assert targets.tolist() == [[1, 0], [0, 1]] and all(Path(p).is_file() for p in plan.table["path"])


def test_splits_are_no_classes_of_a_sample(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_tiles(tmp_path / split / "forest", 2, 16)
    plan, targets = labelled_sample(tmp_path, PROMPTS)
    assert len(plan.table) == 4 and targets.sum(axis=0).tolist() == [0, 0, 4]
