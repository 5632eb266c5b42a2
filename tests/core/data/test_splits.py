"""Splits by group, folds, and the leakage audit."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdomains.core.data.leakage import audit, grey_thumbnail, near_duplicates
from vitdomains.core.data.manifest import Manifest, check_splits, labels, make_manifest, take, with_split
from vitdomains.core.data.splits import grouped_folds, grouped_split, part_sizes, stratify
from vitdomains.core.errors import ConfigError, ManifestError


def films(groups: list[str], targets: np.ndarray, splits: list[str] | None = None) -> Manifest:
    ids = [f"f{i}" for i in range(len(groups))]
    classes = tuple(f"c{k}" for k in range(targets.shape[1]))
    return make_manifest(ids, [f"/x/{i}" for i in ids], groups, classes, targets, splits=splits)


def random_films(n_groups: int, seed: int = 0, n_classes: int = 4, most: int = 5) -> Manifest:
    rng = np.random.default_rng(seed)
    groups = [f"p{g}" for g in range(n_groups) for _ in range(rng.integers(1, most + 1))]
    rates = np.linspace(0.03, 0.3, n_classes)
    return films(groups, (rng.random((len(groups), n_classes)) < rates).astype(float))


@given(st.integers(3, 80), st.integers(0, 10**6), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
@settings(max_examples=60, deadline=None)
def test_no_group_in_two_splits_and_shares_as_asked(n_groups: int, seed: int, val: float, test: float) -> None:
    m = random_films(n_groups, seed)
    full = grouped_split(m, val, test, seed)
    check_splits(full)
    assert set(full.table["split"]) == {"train", "val", "test"}
    counts = full.table.groupby("split")["group"].nunique()
    for name, share in (("val", val), ("test", test)):
        assert abs(counts[name] - share * n_groups) <= 1.0 + 1e-9
    assert list(full.table["id"]) == list(m.table["id"])


def test_same_seed_same_split_whatever_the_row_order() -> None:
    m = random_films(60)
    split = grouped_split(m, 0.2, 0.2, 7).table.set_index("id")["split"]
    assert (grouped_split(m, 0.2, 0.2, 7).table.set_index("id")["split"] == split).all()
    turned = grouped_split(take(m, np.arange(len(m))[::-1]), 0.2, 0.2, 7).table.set_index("id")["split"]
    assert (turned.reindex(split.index) == split).all()
    assert (grouped_split(m, 0.2, 0.2, 8).table.set_index("id")["split"] != split).any()


def test_a_rare_class_reaches_every_split() -> None:
    targets = np.zeros((200, 2))
    targets[:10, 0] = 1
    targets[5:120, 1] = 1
    for seed in range(10):
        full = grouped_split(films([f"p{i}" for i in range(200)], targets), 0.2, 0.2, seed)
        per_split = {
            s: int(labels(take(full, (full.table["split"] == s).to_numpy()))[:, 0].sum())
            for s in ("train", "val", "test")
        }
        assert per_split == {"train": 6, "val": 2, "test": 2}


def test_stratified_beats_chance_on_many_classes() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random((2000, 12)) < np.linspace(0.005, 0.2, 12)
    parts = stratify(positive, np.array([0.65, 0.15, 0.2]), 0)
    for part, share in enumerate((0.65, 0.15, 0.2)):
        got = positive[parts == part].sum(axis=0)
        assert np.abs(got - share * positive.sum(axis=0)).max() <= 3
    assert np.bincount(parts).tolist() == [1300, 300, 400]


def test_single_label_classes_are_split_in_proportion() -> None:
    targets = np.eye(5)[np.repeat(np.arange(5), 20)]
    full = grouped_split(films([str(i) for i in range(100)], targets), 0.1, 0.2, 0)
    for split, each in (("train", 14), ("val", 2), ("test", 4)):
        assert labels(take(full, (full.table["split"] == split).to_numpy())).sum(axis=0).tolist() == [each] * 5


def test_given_splits_stay_and_their_groups_follow() -> None:
    m = random_films(50, 3)
    first = m.table["group"].isin(["p0", "p1", "p2"]).to_numpy()
    given_rows = first & ~m.table["group"].duplicated().to_numpy()
    full = grouped_split(with_split(m, list(np.where(given_rows, "test", ""))), 0.2, 0.2, 0)
    assert set(full.table["split"][first]) == {"test"}
    # The test split that is there is not enlarged.
    assert full.table["group"][full.table["split"] == "test"].nunique() == 3
    assert full.table["group"][full.table["split"] == "val"].nunique() == round(0.2 * 47)


def test_zero_fractions_and_no_classes() -> None:
    m = films([str(i) for i in range(20)], np.empty((20, 0)))
    assert set(grouped_split(m, 0, 0, 0).table["split"]) == {"train"}
    assert (grouped_split(m, 0.25, 0, 0).table["split"] == "val").sum() == 5


@pytest.mark.parametrize(("val", "test"), [(0.6, 0.5), (-0.1, 0.2), (0.5, 0.5), (0.1, 1.0), (float("nan"), 0.1)])
def test_impossible_fractions(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match=r"leave nothing to train on"):
        grouped_split(random_films(10), val, test, 0)


def test_too_few_groups_and_a_group_in_two_splits() -> None:
    with pytest.raises(ManifestError, match=r"2 groups cannot fill 3 splits"):
        grouped_split(films(["a", "b", "b"], np.zeros((3, 1))), 0.2, 0.2, 0)
    with pytest.raises(ManifestError, match=r"Group a is in two splits"):
        grouped_split(films(["a", "a", "b"], np.zeros((3, 1)), ["train", "test", ""]), 0.2, 0.2, 0)


@given(st.integers(2, 6), st.integers(6, 60), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_folds_are_a_partition_by_group(k: int, n_groups: int, seed: int) -> None:
    m = random_films(n_groups, seed)
    folds = grouped_folds(m, k, seed)
    assert len(folds) == k
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(m)))
    seen = [set(m.table["group"].iloc[f]) for f in folds]
    assert sum(map(len, seen)) == len(set.union(*seen)) == n_groups
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_folds_balance_positives_and_refuse_too_many() -> None:
    m = random_films(500, 1, most=1)
    counts = np.array([labels(m)[f].sum(axis=0) for f in grouped_folds(m, 5, 0)])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 2).all()
    with pytest.raises(ManifestError, match=r"9 folds of 3 groups"):
        grouped_folds(films(["a", "b", "c"], np.zeros((3, 1))), 9, 0)


def test_part_sizes_sum_and_leave_none_empty() -> None:
    assert part_sizes(3, np.array([0.65, 0.15, 0.2])).tolist() == [1, 1, 1]
    assert part_sizes(100, np.array([0.65, 0.15, 0.2])).tolist() == [65, 15, 20]
    assert part_sizes(2, np.array([0.65, 0.15, 0.2])).sum() == 2


def test_thirty_thousand_patients_split_in_seconds() -> None:
    positive = np.random.default_rng(0).random((30_000, 14)) < 0.05
    start = time.perf_counter()
    stratify(positive, np.array([0.65, 0.15, 0.2]), 0)
    assert time.perf_counter() - start < 8


def scenes(n: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures [n, 64, 64] in 0..1."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((n, 8, 8)).astype(np.float32)
    return np.stack([cv2.resize(c, (64, 64), interpolation=cv2.INTER_CUBIC) for c in coarse])


def test_near_duplicates_are_found_through_noise_gain_and_crop() -> None:
    images = scenes(40)
    noise = np.random.default_rng(1).normal(0, 0.01, images[3].shape)
    cropped = grey_thumbnail(images[5][1:, 1:], 64)
    everything = np.concatenate([images, (0.7 * images[3] + 0.1 + noise)[None], cropped[None]])
    found = near_duplicates(np.stack([grey_thumbnail(i) for i in everything]))
    assert [(a, b) for a, b, *_ in found] == [(3, 40), (5, 41)]
    assert all(c >= 0.97 and d <= 40 for *_, d, c in found)


def test_pictures_without_contrast_match_nothing() -> None:
    assert near_duplicates(np.zeros((5, 32, 32), dtype=np.float32)) == []


def test_near_duplicates_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdomains.core.data.leakage._BLOCK", 4)
    images = scenes(11)
    images[10] = images[1]
    assert [(a, b) for a, b, *_ in near_duplicates(images)] == [(1, 10)]


def test_audit_reports_every_kind_of_leak(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two"), ("d", b"three")):
        (tmp_path / name).write_bytes(content)
    m = make_manifest(
        ["a", "b", "c", "d"],
        [str(tmp_path / n) for n in "abcd"],
        ["g0", "g1", "g2", "g2"],
        ("x",),
        np.ones((4, 1)),
        splits=["train", "test", "train", "val"],
    )
    images = scenes(4)
    images[3] = images[0] + 0.001
    report = audit(m, images)
    assert report["groups_across_splits"] == ["g2"]
    assert report["same_content"] == [["a", "b"]]
    assert [(p["a"], p["b"], p["split_b"]) for p in report["near_duplicates"]] == [("a", "d", "val")]
    assert report["leaks"] == 3
    assert not report["clean"]
    json.dumps(report)
    assert audit(m, lambda path: images["abcd".index(Path(path).name)])["near_duplicates"] == report["near_duplicates"]


def test_audit_of_a_clean_split(tmp_path: Path) -> None:
    m = grouped_split(random_films(30), 0.2, 0.2, 0)
    report = audit(m, scenes(len(m)))
    assert report["clean"]
    assert report["leaks"] == 0
    assert report["groups"] == 30
    with pytest.raises(ManifestError, match=r"3 thumbnails for"):
        audit(m, scenes(3))


def test_real_films_of_two_patients_are_no_copies_and_a_recompressed_one_is(shared: Path) -> None:
    files = sorted((shared / "data" / "nih_cxr14_subset" / "images").glob("*.png"))[::8]
    films = [cv2.imread(str(f), cv2.IMREAD_GRAYSCALE) for f in files]
    jpeg = cv2.imdecode(cv2.imencode(".jpg", films[7], [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_GRAYSCALE)
    found = near_duplicates(np.stack([grey_thumbnail(f) for f in [*films, jpeg[4:-4, 4:-4]]]))
    of_two = [(a, b) for a, b, *_ in found if b == len(films) or files[a].name[:8] != files[b].name[:8]]
    assert of_two == [(7, len(films))]
