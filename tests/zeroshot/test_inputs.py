"""Inputs that users have: names that collide, photographs that are turned, files that cannot be decoded."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from apps.labels.pictures import Pictures
from tests.zeroshot import tiny
from vitdomains.core.commands.predict import predict
from vitdomains.core.data.manifest import read_manifest
from vitdomains.core.errors import ConfigError, ImageError, NoResultError
from vitdomains.core.geo.read.pixels import decode_picture
from vitdomains.zeroshot import DOMAIN, clip_zero_shot_classification
from vitdomains.zeroshot.commands import embed, label
from vitdomains.zeroshot.embeddings.run import image_query
from vitdomains.zeroshot.labels.outputs import file_names
from vitdomains.zeroshot.labels.prompts import make_prompts, plain, read_classes
from vitdomains.zeroshot.models.towers import Towers, load_towers
from vitdomains.zeroshot.students.student import read_reviewed, read_tiles, student_manifest

FAST = ["--batch_size", "8", "--threads", "1", "--readers", "1"]
TURNS = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""EXIF orientation -> how an upright picture is stored under it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.clip().save(folder)
    return folder


@pytest.fixture(scope="module")
def towers(model: Path) -> Towers:
    return load_towers(model)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photograph upright and turned by each flag, in each format that can say so."""
    folder = tmp_path_factory.mktemp("photos")
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    photo = coarse.resize((64, 48), Image.Resampling.BICUBIC)
    photo.save(folder / "upright.png")
    for flag, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = flag
        photo.transpose(turn).save(folder / f"turned_{flag}.png", exif=exif)
        photo.transpose(turn).save(folder / f"turned_{flag}.webp", exif=exif, lossless=True)
        photo.transpose(turn).save(folder / f"turned_{flag}.jpg", exif=exif, quality=100, subsampling=0)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["unknown", "forest"], ["Unknown"], ["id"], ["error", "forest"], ["unsure"], ["not forest"], ["forest", "Forest"],
        ["parking lot", "Parking_Lot"], ["forest", "forest"], ["forest|river"], ["for\nest"], ["--"], ["weight"], ["path"],
    ],
)  # fmt: skip
def test_a_name_that_means_two_things_is_refused(names: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        make_prompts({"classes": names})
    assert error.value.hint


def test_groups_are_names_too() -> None:
    for parent in ("unknown", "forest", "FOREST", "a|b"):
        with pytest.raises(ConfigError):
            make_prompts({"classes": ["forest", {"name": "river", "parent": parent}]})


def test_names_of_other_scripts_differ_by_their_marks() -> None:
    assert plain("कि") != plain("का") and plain("Parking_Lot") == plain("parking-lot") and plain("é") == plain("é")
    assert make_prompts({"classes": ["лес", "река", "森林", "C", "C+"]}).names[2] == "森林"


def test_files_of_names_are_distinct_everywhere() -> None:
    names = ["a/b", "a_b", "A_B", "con", "森林", "", "x" * 400, "x" * 401]
    found = file_names(names)
    assert len({name.casefold() for name in found}) == len(names) and max(map(len, found)) < 70
    assert found[0] == "a_b" and found[3] == "_con" and found[4] == "森林"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.yaml", "- forest\n- parking lot\n"),
        ("list.json", '["forest", "parking lot"]'),
        ("names.txt", "\n# mine\nforest\n  parking lot\n"),
        ("bare.csv", "forest\nparking lot\n"),
        ("headed.csv", "id;class\n1;forest\n2;parking lot\n2;parking lot\n"),
        ("two.yaml", "classes:\n  - forest\n  - parking lot\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_classes_come_in_the_files_that_people_have(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_text(text, encoding=encoding)
    assert read_classes(tmp_path / name).names == ("forest", "parking lot")


def test_columns_of_a_class_table_are_what_a_class_file_says(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_bytes("name,synonyms,parent,background\nWälder,bois|woods,natural,\ncloud,,,yes\n".encode("cp1252"))
    prompts = read_classes(file, ["{}"])
    assert prompts.classes[0].prompts == ("Wälder", "bois", "woods") and prompts.classes[0].parent == "natural"
    assert prompts.classes[1].background and read_classes("forest, river,").names == ("forest", "river")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.yaml", "names: {0: forest}"), ("a.yaml", "forest"), ("a.txt", ""), ("a.csv", "name\n"), ("a.yaml", "- no\n")],
)
def test_a_file_of_another_form_is_told_the_two_lines(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        read_classes(tmp_path / name)
    assert any(word in error.value.hint for word in ("classes:", "a row a class", "quotes"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_classes(tmp_path / "absent.csv")


def test_a_turned_photograph_is_one_picture_on_every_way(
    photos: Path, model: Path, towers: Towers, tmp_path: Path
) -> None:
    words = [str(photos), "--model", str(model), "--classes", "forest,river,town", "--out", str(tmp_path / "labels")]
    assert label(DOMAIN, [*words, "--precision", "fp32", *FAST]) == 0
    table = read_tiles(tmp_path / "labels")
    exact = ~table["path"].str.endswith(".jpg").to_numpy()
    numbers = table.filter(like="prob:").to_numpy()
    upright = numbers[table["path"].str.endswith("upright.png").to_numpy()]
    np.testing.assert_allclose(numbers[exact], np.repeat(upright, exact.sum(), 0), atol=1e-6)
    np.testing.assert_allclose(numbers[~exact], np.repeat(upright, (~exact).sum(), 0), atol=0.02)
    query = image_query(towers, photos / "upright.png", towers.preprocess)
    for file in ("turned_6.png", "turned_8.webp"):
        np.testing.assert_allclose(image_query(towers, photos / file, towers.preprocess), query, atol=1e-6)
        with Image.open(photos / file) as opened:
            found = clip_zero_shot_classification([photos / "upright.png", photos / file, opened], ["a", "b"], towers)
        np.testing.assert_allclose(found[1:], found[[0, 0]], atol=1e-6)
    pictures = Pictures(towers.preprocess)
    place = {"item": "x", "error": "", "width": -1}
    seen = [
        pictures.picture(place | {"item": f, "path": str(photos / f)}).result() for f in ("upright.png", "turned_3.png")
    ]
    assert seen[0] == seen[1]
    files = [str(photos / f) for f in ("upright.png", "turned_6.png", "turned_8.webp")]
    out = tmp_path / "predictions.csv"
    assert predict(DOMAIN, [str(tmp_path / "labels" / "bundle"), *files, "--out", str(out), "--precision", "fp32"]) == 0
    scores = pd.read_csv(out).select_dtypes("number").to_numpy()
    np.testing.assert_allclose(scores[1:], scores[[0, 0]], atol=1e-4)


def test_a_turned_photograph_is_not_cut_into_tiles(photos: Path, model: Path, tmp_path: Path) -> None:
    words = [
        str(photos / "turned_6.jpg"),
        "--tile",
        "16",
        "--model",
        str(model),
        "--index",
        str(tmp_path / "index"),
        *FAST,
    ]
    with pytest.raises(NoResultError):
        embed(DOMAIN, words)


def test_grey_images_are_taken_by_every_call(towers: Towers, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "grey.tif"), grey)
    three = np.repeat(grey[:, :, None], 3, 2)
    found = clip_zero_shot_classification([tmp_path / "grey.tif", grey, grey[:, :, None], three], ["a", "b"], towers)
    np.testing.assert_allclose(found, found[[0, 0, 0, 0]], atol=1e-6)
    assert image_query(towers, tmp_path / "grey.tif", towers.preprocess).shape == (16,)
    for wrong in (grey.astype(np.uint16), np.zeros((8, 8, 5), np.uint8), Image.fromarray(grey.astype(np.uint16))):
        with pytest.raises(ConfigError):
            clip_zero_shot_classification([wrong], ["a"], towers)


def test_one_bad_file_never_ends_a_job(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_tiles(tmp_path / "tiles", 3)
    (tmp_path / "tiles" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (tmp_path / "tiles" / "cut.tif").write_bytes(b"II*\0")
    (tmp_path / "tiles" / "empty.png").write_bytes(b"")
    (tmp_path / "tiles" / "clip.gif").write_bytes(b"GIF89a")
    words = [str(tmp_path / "tiles"), "--model", str(model), "--classes", "forest,river", *FAST]
    for tile in ("0", "16"):
        out = tmp_path / f"labels{tile}"
        assert label(DOMAIN, [*words, "--out", str(out), "--tile", tile]) == 0
        assert {Path(p).name for p in pd.read_csv(out / "skipped.csv")["path"]} >= {"clip.gif"}
        wrong = pd.read_csv(out / "errors.csv")
        assert len(wrong) == 3 and wrong["error"].str.len().min() > 10
        assert (read_tiles(out)["label"] != "").sum() >= 3
    assert label(DOMAIN, [*words, "--out", str(tmp_path / "strict"), "--strict"]) == 3
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    for tile in ("0", "16"):
        words[0] = str(tmp_path / "bad")
        with pytest.raises(NoResultError, match="Not one tile") as none:
            label(DOMAIN, [*words, "--out", str(tmp_path / f"none{tile}"), "--tile", tile])
        assert none.value.exit_status == 4

    def too_large(*_: object) -> None:
        raise cv2.error("CV_IO_MAX_IMAGE_PIXELS")

    monkeypatch.setattr(cv2, "imdecode", too_large)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_picture(np.fromfile(next((tmp_path / "tiles").glob("tile*.png")), np.uint8), "huge.png")


def test_reviewed_words_are_read_as_they_are_written(model: Path, tmp_path: Path) -> None:
    tiny.write_tiles(tmp_path / "tiles", 6)
    words = [str(tmp_path / "tiles"), "--model", str(model), "--classes", "NA,None,river", "--out", str(tmp_path / "l")]
    assert label(DOMAIN, [*words, "--no_sheets", *FAST]) == 0
    tiles = read_tiles(tmp_path / "l")
    ids = list(tiles["tile_id"])
    rows = list(zip(ids, ["NA", "None", "not river", "unsure"], strict=False))
    pd.DataFrame(rows, columns=["item", "label"]).rename(columns={"item": "tile_id"}).to_csv(
        tmp_path / "r.csv", index=False
    )
    given = read_reviewed(tmp_path / "r.csv", tiles)
    assert list(given.values()) == ["NA", "None", "unknown", "unknown"]
    m = read_manifest(student_manifest(tmp_path / "l", given, confident=0.0))
    assert set(m.table["id"]) == set(ids) - set(ids[2:4])
