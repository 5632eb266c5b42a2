"""Images of folders: one listing for all commands, class folders, splits, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vitdomains.core.data.endings import FILMS, RASTERS
from vitdomains.core.data.folders import (
    class_folders,
    folder_manifest,
    list_images,
    manifest_in,
    split_folders,
)
from vitdomains.core.data.manifest import labels, make_manifest, validate, write_manifest
from vitdomains.core.errors import ManifestError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_folder_manifest_keeps_input_order_and_sorts_within(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.PNG", "b/deep/0.png", "b/notes.txt", "b/.hidden.png", "a/film"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    m = folder_manifest([tmp_path / "b", tmp_path / "a" / "film"], (".png", "dcm"))
    assert [Path(p).relative_to(tmp_path).as_posix() for p in m.table["path"]] == [
        "b/1.PNG",
        "b/2.png",
        "b/deep/0.png",
        "a/film",
    ]
    assert m.classes == ()
    assert m.table["id"].is_unique
    validate(m)
    assert len(folder_manifest([tmp_path / "b" / "2.png", tmp_path / "b"], (".png",))) == 3


def test_folder_manifest_errors(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"does not exist"):
        folder_manifest(tmp_path / "none")
    with pytest.raises(ManifestError, match=r"No image in"):
        folder_manifest(tmp_path, (".dcm",))


def test_folder_manifest_without_ending(tmp_path: Path) -> None:
    """DICOM files named by number or UID count where files without an ending do; notes beside them do not."""
    for name in ("IM0001", "1.2.840.113619", "film.dcm", "notes.txt"):
        (tmp_path / name).touch()
    found = folder_manifest(tmp_path, (".dcm", "")).table["path"]
    assert [Path(p).name for p in found] == ["1.2.840.113619", "IM0001", "film.dcm"]


def test_folder_manifest_keeps_a_missing_file_among_others(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    found = folder_manifest([tmp_path / "gone.png", tmp_path / "a.png"], (".png",)).table["path"]
    assert [Path(p).name for p in found] == ["gone.png", "a.png"]


def reasons(left: object) -> dict[str, tuple[str, int]]:
    return {part.reason: (part.kind, len(part.names)) for part in left}  # type: ignore[attr-defined]


def test_every_readable_ending_counts_in_any_case_and_depth(tmp_path: Path) -> None:
    names = [f"deep/{i}/x{e.upper() if i % 2 else e}" for i, e in enumerate(RASTERS)]
    touch(tmp_path, *names, "a.gif", "b.HEIC", "notes.txt", "x.tif.aux.xml", "._1.png", "__MACOSX/1.png")
    files, left = list_images(tmp_path, RASTERS)
    assert sorted(f.relative_to(tmp_path).as_posix() for f in files) == sorted(names)
    assert reasons(left) == {
        "the ending .gif is not read here": ("lost", 1),
        "the ending .heic is not read here": ("lost", 1),
        "the ending .txt is not read here": ("other", 1),
        "the ending .xml is not read here": ("other", 1),
        "a hidden file": ("other", 1),
    }


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.png", "2.png")
    root = touch(tmp_path / "root", "0.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "3.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(root / "pipe.png")
    files, left = list_images(root, RASTERS)
    assert [f.relative_to(root).as_posix() for f in files] == ["0.png", "3.png", "again/1.png", "again/2.png"]
    assert reasons(left) == {
        "a link to nothing": ("lost", 1),
        "neither file nor folder": ("other", 1),
        "the same folder under another name": ("other", 2),
    }


def test_a_folder_with_a_manifest_lists_its_files_and_no_masks(tmp_path: Path) -> None:
    touch(tmp_path, "site/films/1.png", "site/films/2.png", "site/masks/1.png", "other.png")
    paths = [str(tmp_path / "site" / "films" / f"{i}.png") for i in (1, 2)]
    write_manifest(
        make_manifest(["1", "2"], paths, ["p", "q"], (), np.empty((2, 0))), tmp_path / "site" / "manifest.csv"
    )
    assert manifest_in(tmp_path / "site") == tmp_path / "site" / "manifest.csv" and manifest_in(tmp_path) is None
    found = folder_manifest(tmp_path, FILMS).table["path"].tolist()
    assert found == [str(tmp_path / "other.png"), *paths]
    (tmp_path / "site" / "manifest.csv").write_text("name,size\nx,1\n")  # somebody else's
    assert len(folder_manifest(tmp_path / "site", FILMS)) == 3


def test_no_image_says_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.gif", "b.gif")
    with pytest.raises(
        ManifestError, match=r"No image in .* It holds 2 left out, the ending .gif is not read here: .*a.gif"
    ):
        folder_manifest(tmp_path, RASTERS)


def test_class_folders_take_deeper_images_and_two_formats_of_one_tile(tmp_path: Path) -> None:
    touch(tmp_path, "forest/2020/a.png", "forest/b.webp", "river/c.JPG", "river/c.tif", "lost.png", "forest/n.gif")
    m = class_folders(tmp_path, RASTERS, "mine")
    assert m.table["id"].tolist() == ["forest/b", "forest/2020/a", "river/c.JPG", "river/c.tif"]
    assert m.classes == ("forest", "river") and labels(m).sum(axis=0).tolist() == [2, 2]
    assert {part.reason for part in m.skipped if part.kind == "lost"} == {
        "the ending .gif is not read here",
        "an image outside the class folders",
    }


def test_a_class_without_a_readable_image_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "forest/a.png", "sea/b.gif")
    m = class_folders(tmp_path, RASTERS, "mine")
    assert reasons(m.skipped)["a class folder without an image that is read"] == ("lost", 1)


def test_folders_train_val_test_are_splits_and_no_classes(tmp_path: Path) -> None:
    for split in ("Train", "valid", "test"):
        for name in ("forest", "river"):
            touch(tmp_path, f"{split}/{name}/1.png", f"{split}/{name}/2.png")
    touch(tmp_path, "docs/x.pdf")
    m = class_folders(tmp_path, RASTERS, "mine")
    assert m.classes == ("forest", "river") and m.table["id"].is_unique
    assert m.table["split"].value_counts().to_dict() == {"train": 4, "val": 4, "test": 4}
    assert [part.names for part in m.skipped if part.reason == "a folder beside the splits"] == [
        (str(tmp_path / "docs"),)
    ]
    with pytest.raises(ManifestError, match=r"folders train are splits; they hold 0"):
        class_folders(touch(tmp_path / "flat", "train/1.png"), RASTERS, "flat")


def test_one_folder_called_train_among_classes_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "bus/1.png", "train/1.png")
    assert split_folders(tmp_path) == {} and class_folders(tmp_path, RASTERS, "x").classes == ("bus", "train")
