"""The table of records: labels, merging, checks, files."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdomains.core.data.manifest import (
    Manifest,
    Skipped,
    check_splits,
    labels,
    log_skipped,
    make_manifest,
    manifest_hash,
    merge,
    read_manifest,
    select_classes,
    subset,
    take,
    validate,
    with_split,
    without,
    write_manifest,
    write_skipped,
)
from vitdomains.core.errors import ManifestError


def build(folder: Path, n: int = 6, *, name: str = "made", touch: bool = True) -> Manifest:
    ids = [f"film{i}" for i in range(n)]
    paths = [str(folder / f"{i}.png") for i in ids]
    if touch:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            Path(path).touch()
    targets = np.array([[i % 2, np.nan if i == 0 else (i + 1) % 2] for i in range(n)])
    splits = ["train"] * (n - 2) + ["val", "test"]
    extra = pd.DataFrame({"sex": ["F", "M"] * (n // 2), "age": np.arange(n) + 0.5})
    return make_manifest(
        ids, paths, [f"p{i}" for i in range(n)], ("Effusion", "Mass"), targets, splits=splits, extra=extra, name=name
    )


def test_labels_are_float32_with_unknown_kept(tmp_path: Path) -> None:
    y = labels(build(tmp_path))
    assert y.dtype == np.float32
    assert y.shape == (6, 2)
    assert np.isnan(y[0, 1])
    assert y[1, 0] == 1
    assert y[2, 1] == 1


def test_a_manifest_without_classes_has_labels_of_width_zero(tmp_path: Path) -> None:
    m = select_classes(build(tmp_path), [])
    assert labels(m).shape == (6, 0)


def test_missing_column_is_named() -> None:
    with pytest.raises(ManifestError, match=r"no column group.*it has id, path, split"):
        Manifest(pd.DataFrame({"id": ["a"], "path": ["/a"], "split": [""]}), ())


def test_subset_take_and_with_split(tmp_path: Path) -> None:
    m = build(tmp_path)
    assert list(subset(m, "test").table["id"]) == ["film5"]
    assert isinstance(subset(m, "test").table.index, pd.RangeIndex)
    assert list(take(m, [3, 1]).table["id"]) == ["film3", "film1"]
    assert set(with_split(m, ["val"] * 6).table["split"]) == {"val"}
    with pytest.raises(ManifestError, match=r"5 splits for 6 rows"):
        with_split(m, ["val"] * 5)
    with pytest.raises(ManifestError, match=r"Unknown split 'dev'"):
        subset(m, "dev")


def test_select_classes_adds_unknown_columns_and_keeps_the_others(tmp_path: Path) -> None:
    m = select_classes(build(tmp_path), ["Hernia", "Effusion"])
    assert m.classes == ("Hernia", "Effusion")
    assert np.isnan(labels(m)[:, 0]).all()
    assert labels(m)[:, 1].sum() == 3
    assert "Mass" not in m.table.columns
    assert "sex" in m.table.columns


def test_merge_unites_classes_and_keeps_patients_of_two_publishers_apart(tmp_path: Path) -> None:
    a = select_classes(build(tmp_path / "a", name="one"), ["Effusion"])
    b = select_classes(build(tmp_path / "b", name="two"), ["Mass"])
    m = merge([a, b])
    assert m.classes == ("Effusion", "Mass")
    assert m.name == "one+two"
    assert len(m) == 12
    assert np.isnan(labels(m)[:6, 1]).all()
    assert np.isnan(labels(m)[6:, 0]).all()
    assert m.table["id"].is_unique
    assert m.table["id"].iloc[0] == "one/film0"
    assert set(m.table["group"].iloc[:6]).isdisjoint(m.table["group"].iloc[6:])
    validate(m)


def test_merge_of_one_data_set_listed_twice_keeps_one_patient_list(tmp_path: Path) -> None:
    m = build(tmp_path, name="nih")
    both = merge([take(m, [0, 1]), take(m, [2, 3])])
    assert list(both.table["group"]) == ["nih/p0", "nih/p1", "nih/p2", "nih/p3"]
    again = merge([take(m, [0]), take(m, [0])])
    assert again.table["group"].nunique() == 1
    assert again.table["id"].is_unique


def test_merge_keeps_ids_that_do_not_collide_and_reports_true_duplicates(tmp_path: Path) -> None:
    a = build(tmp_path / "a", name="one")
    b = make_manifest(["other"], [str(tmp_path / "a" / "film0.png")], ["q"], ("Mass",), [[1.0]], name="two")
    assert "other" in set(merge([a, b]).table["id"])
    assert "film0" in set(merge([a, b]).table["id"])
    twice = take(a, [0, 0])
    with pytest.raises(ManifestError, match=r"1 ids occur more than once: film0"):
        validate(merge([twice, b]), require_positives=False)


def test_merge_of_nothing_is_an_error() -> None:
    with pytest.raises(ManifestError, match=r"No source"):
        merge([])


def test_validate_lists_every_problem_at_once(tmp_path: Path) -> None:
    m = build(tmp_path)
    table = m.table.assign(
        id=["film0", "film0", *m.table["id"][2:]],
        group=["p0", "p1", "p2", "p3", "p3", ""],
        Effusion=[0, 2, 0, 0, 0, 0],
        path=[*m.table["path"][:5], str(tmp_path / "gone.png")],
    )
    with pytest.raises(ManifestError) as caught:
        validate(Manifest(table, m.classes, m.name))
    text = str(caught.value)
    for part in (
        "1 ids occur more than once: film0",
        "1 rows have no group",
        "1 groups are in more than one split: p3",
        "Effusion has 1 labels other than 1, 0 and unknown: 2",
        "no positive in the training split for Effusion",
        "1 of 6 files are missing",
        "gone.png",
    ):
        assert part in text
    assert "`uncertain`" in caught.value.hint
    assert "`root`" in caught.value.hint


def test_missing_files_are_counted_and_five_named(tmp_path: Path) -> None:
    m = build(tmp_path, 12, touch=False)
    with pytest.raises(ManifestError) as caught:
        validate(m)
    assert "12 of 12 files are missing" in caught.value.message
    assert "and 7 more" in caught.value.message
    assert caught.value.message.count(".png") == 5
    validate(m, check_files=False)


def test_a_folder_or_dangling_link_is_no_file(tmp_path: Path) -> None:
    m = build(tmp_path, 8)
    (tmp_path / "film0.png").unlink()
    (tmp_path / "film0.png").mkdir()
    (tmp_path / "film1.png").unlink()
    (tmp_path / "film1.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match=r"2 of 8 files are missing"):
        validate(m)


def test_a_file_in_two_splits_is_an_error(tmp_path: Path) -> None:
    m = build(tmp_path)
    leaked = Manifest(m.table.assign(path=[m.table["path"][5], *m.table["path"][1:]]), m.classes)
    with pytest.raises(ManifestError, match=r"1 files are in more than one split"):
        check_splits(leaked)


def test_unknown_split_and_empty_table(tmp_path: Path) -> None:
    m = build(tmp_path)
    with pytest.raises(ManifestError, match=r"unknown splits dev"):
        validate(with_split(m, ["dev"] * 6), require_positives=False)
    with pytest.raises(ManifestError, match=r"no rows"):
        validate(take(m, []))


def test_positives_count_in_training_only(tmp_path: Path) -> None:
    m = build(tmp_path)
    late = Manifest(m.table.assign(Mass=[0, 0, 0, 0, 1, 1]), m.classes)
    with pytest.raises(ManifestError, match=r"in the training split for Mass"):
        validate(late)
    validate(late, require_positives=False)
    validate(with_split(late, [""] * 6))


def test_checking_many_files_is_quick(tmp_path: Path) -> None:
    for i in range(1000):
        os.close(os.open(tmp_path / f"{i}.png", os.O_CREAT))
    ids = [str(i) for i in range(1000)]
    m = make_manifest(ids, [str(tmp_path / f"{i}.png") for i in ids], ids, (), np.empty((1000, 0)))
    start = time.perf_counter()
    validate(m)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_written_manifest_reads_back_the_same_and_moves_with_its_folder(tmp_path: Path, ending: str) -> None:
    m = build(tmp_path / "set" / "films", name="set")
    write_manifest(m, tmp_path / "set" / f"manifest.{ending}")
    assert not list((tmp_path / "set").glob(".*"))
    (tmp_path / "set").rename(tmp_path / "moved")
    back = read_manifest(tmp_path / "moved" / f"manifest.{ending}", name="set")
    assert back.classes == m.classes
    assert back.name == "set"
    np.testing.assert_array_equal(labels(back), labels(m))
    assert back.table["path"].iloc[0] == str(tmp_path / "moved" / "films" / "film0.png")
    assert list(back.table["sex"]) == list(m.table["sex"])
    assert list(back.table["age"]) == list(m.table["age"])
    assert manifest_hash(back) == manifest_hash(m)
    validate(back)


def test_awkward_ids_survive_the_csv(tmp_path: Path) -> None:
    ids = ["NA", "007", "1e5", "null", 'a,"b"']
    m = make_manifest(ids, [str(tmp_path / "x.png")] * 5, ["NaN", "01", "1", "None", "é"], ("Mass",), [[1]] * 5)
    back = read_manifest(write_manifest(m, tmp_path / "m.csv"))
    assert list(back.table["id"]) == ids
    assert list(back.table["group"]) == ["NaN", "01", "1", "None", "é"]
    assert set(back.table["split"]) == {""}


def test_paths_outside_the_folder_stay_absolute(tmp_path: Path) -> None:
    m = make_manifest(["a"], ["/elsewhere/a.png"], ["g"], (), np.empty((1, 0)))
    assert read_manifest(write_manifest(m, tmp_path / "m.csv")).table["path"][0] == "/elsewhere/a.png"


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"No manifest at"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match=r".csv or .parquet"):
        read_manifest(tmp_path / "m.xlsx")
    (tmp_path / "m.csv").write_text("id,path,group,split,label:Mass\na,a.png,g,,yes\n")
    with pytest.raises(ManifestError, match=r"'label:Mass' holds 'yes'"):
        read_manifest(tmp_path / "m.csv")


def test_hash_sees_labels_splits_and_groups_but_not_places(tmp_path: Path) -> None:
    m = build(tmp_path / "a")
    assert manifest_hash(m) == manifest_hash(build(tmp_path / "b"))
    changed = [
        with_split(m, ["train"] * 6),
        Manifest(m.table.assign(group="g"), m.classes),
        Manifest(m.table.assign(Mass=np.nan), m.classes),
        select_classes(m, ["Mass", "Effusion"]),
        take(m, [0, 1]),
    ]
    assert len({manifest_hash(m), *map(manifest_hash, changed)}) == 6


@given(st.lists(st.sampled_from([0.0, 1.0, float("nan")]), min_size=1, max_size=30), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_labels_survive_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], csv: bool
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    ids = [str(i) for i in range(len(values))]
    m = make_manifest(ids, [str(folder / i) for i in ids], ids, ("Mass",), np.array(values)[:, None])
    back = read_manifest(write_manifest(m, folder / ("m.csv" if csv else "m.parquet")))
    np.testing.assert_array_equal(labels(back)[:, 0], np.array(values, dtype=np.float32))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("Forest", "forest"), "differ in case.*Forest and forest"),
        (("dense_residential", "Dense Residential", "Sea"), "dense_residential and Dense Residential"),
        (("fore\u0302t", "for\u00eat"), "differ in case"),
        (("Unknown", "Sea"), "a name that is taken: Unknown"),
        (("error", "Sea"), "a name that is taken: error"),
        (("a|b", "Sea"), r"hold \| or a line break: 'a\|b'"),
    ],
)
def test_class_names_that_collide_are_refused(tmp_path: Path, classes: tuple[str, ...], message: str) -> None:
    targets = np.eye(len(classes))[[i % len(classes) for i in range(6)]]
    ids = [str(i) for i in range(6)]
    m = make_manifest(ids, [str(tmp_path / i) for i in ids], ids, classes, targets)
    with pytest.raises(ManifestError, match=message):
        validate(m, check_files=False)


@pytest.mark.parametrize("name", ["id", "path", "sex"])
def test_a_class_called_as_a_column_is_refused_at_once(name: str) -> None:
    with pytest.raises(ManifestError, match=f"Two columns of the manifest are called '{name}'"):
        make_manifest(["a"], ["/a"], ["a"], (name,), [[1]], extra=pd.DataFrame({"sex": ["F"]}))


def test_merging_writes_a_class_as_the_first_source_does(tmp_path: Path) -> None:
    a = make_manifest(["a"], ["/a"], ["a"], ("DenseResidential",), [[1]], name="one")
    b = make_manifest(["b"], ["/b"], ["b"], ("dense_residential", "Sea"), [[1, 0]], name="two")
    m = merge([a, b])
    assert m.classes == ("DenseResidential", "Sea") and labels(m)[:, 0].tolist() == [1, 1]


def test_what_is_left_out_is_counted_named_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    m = build(tmp_path, 12)
    m = without(m, np.arange(12) < 6, "no known label")
    m = without(m, np.arange(6) == 0, "beyond `limit: 5`", "asked")
    m = replace(m, skipped=(*m.skipped, Skipped("the ending .txt is not read here", ("notes.txt",), "other")))
    with caplog.at_level(logging.INFO):
        log_skipped(m)
    assert "12 images found, 5 used" in caplog.text
    assert "6 left out, no known label: film0, film1, film2, film3, film4, and 1 more" in caplog.text
    write_skipped(m, tmp_path / "skipped.csv")
    table = pd.read_csv(tmp_path / "skipped.csv")
    assert len(table) == 8 and table["reason"].value_counts()["no known label"] == 6
    with pytest.raises(ManifestError, match=r"of 12 images found only 5 can be used: 6 left out.*--data.max_lost"):
        log_skipped(m, 0.4)


def test_ids_of_parquet_are_no_floats(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"id": [3301010900.0, 7.0], "path": ["a.png", "b.png"], "group": [1.0, None], "split": [None, "val"]}
    )
    table.to_parquet(tmp_path / "m.parquet")
    m = read_manifest(tmp_path / "m.parquet")
    assert m.table["id"].tolist() == ["3301010900", "7"] and m.table["group"].tolist() == ["1", ""]


def test_paths_of_another_machine_are_named_for_what_they_are(tmp_path: Path) -> None:
    m = make_manifest(["a"], ["C:\\data\\a.png"], ["a"], (), np.empty((1, 0)))
    with pytest.raises(ManifestError, match="Windows machine"):
        validate(m)
