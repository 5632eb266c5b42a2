"""What readers say together: kappa against the published examples, consensus, and the way back into training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.core.toy import DOMAIN
from vitdomains.core.commands.reviews import reviews
from vitdomains.core.data.manifest import labels, make_manifest, read_manifest, write_manifest
from vitdomains.core.errors import ManifestError
from vitdomains.core.files import file_sha256
from vitdomains.core.review.agreement import (
    agreement,
    cohen_kappa,
    consensus,
    disagreements,
    fleiss_kappa,
    readings,
    resolved,
)
from vitdomains.core.review.export import export, export_table, training_manifest
from vitdomains.core.review.store import Answer, Decision, ReviewError, ReviewStore

# Fleiss 1971, table 1: 30 psychiatric patients, 6 diagnoses each, into 5 categories; the paper finds kappa = 0.430.
FLEISS = [
    [0, 0, 0, 6, 0], [0, 3, 0, 0, 3], [0, 1, 4, 0, 1], [0, 0, 0, 0, 6], [0, 3, 0, 3, 0], [2, 0, 4, 0, 0],
    [0, 0, 4, 0, 2], [2, 0, 3, 1, 0], [2, 0, 0, 4, 0], [0, 0, 0, 0, 6], [1, 0, 0, 5, 0], [1, 1, 0, 4, 0],
    [0, 3, 3, 0, 0], [1, 0, 0, 5, 0], [0, 2, 0, 3, 1], [0, 0, 5, 0, 1], [3, 0, 0, 1, 2], [5, 1, 0, 0, 0],
    [0, 2, 0, 4, 0], [1, 0, 2, 0, 3], [0, 0, 0, 0, 6], [0, 1, 0, 5, 0], [0, 2, 0, 1, 3], [2, 0, 0, 4, 0],
    [1, 0, 0, 4, 1], [0, 5, 0, 1, 0], [4, 0, 0, 0, 2], [0, 2, 0, 4, 0], [1, 0, 5, 0, 0], [0, 0, 0, 0, 6],
]  # fmt: skip


def test_fleiss_kappa_of_the_paper() -> None:
    assert fleiss_kappa(FLEISS) == pytest.approx(0.430, abs=5e-4)


def test_fleiss_kappa_at_its_ends() -> None:
    assert fleiss_kappa([[3, 0], [0, 3]]) == pytest.approx(1.0)
    assert np.isnan(fleiss_kappa([[3, 0], [3, 0]])) and np.isnan(fleiss_kappa(np.empty((0, 2))))
    assert np.isnan(fleiss_kappa([[1, 0], [0, 1]]))  # one reader each
    assert fleiss_kappa([[1, 1], [1, 1]]) == pytest.approx(-1.0)
    # Drawing an item twice is the same as having it twice.
    twice = fleiss_kappa([*FLEISS, FLEISS[4]])
    assert fleiss_kappa(FLEISS, [2.0 if i == 4 else 1.0 for i in range(30)]) == pytest.approx(twice)


def test_fleiss_kappa_is_blind_to_items_of_one_reader() -> None:
    assert fleiss_kappa([[2, 0], [0, 2], [1, 1], [1, 0]]) == pytest.approx(fleiss_kappa([[2, 0], [0, 2], [1, 1]]))


def test_cohen_kappa_of_a_worked_table() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o = 0.7, p_e = 0.5, kappa = 0.4.
    a = ["y"] * 25 + ["n"] * 25
    b = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    assert np.isnan(cohen_kappa(["y"], ["y"])) and np.isnan(cohen_kappa([], []))
    with pytest.raises(ReviewError):
        cohen_kappa(a, b[1:])


@pytest.mark.parametrize(
    ("answer", "call", "value"),
    [
        (Answer("agree"), "present", "present"),
        (Answer("disagree"), "present", "absent"),
        (Answer("disagree"), "absent", "present"),
        (Answer("unsure"), "present", "unsure"),
        (Answer("label", "absent"), "present", "absent"),
        (Answer("disagree"), "Forest", "not Forest"),
        (Answer("label", "River"), "Forest", "River"),
    ],
)
def test_what_an_answer_says(answer: Answer, call: str, value: str) -> None:
    assert resolved(answer, call) == value


def read(
    store: ReviewStore, item: str, reviewer: str, words: str, *, blinded: bool = False, role: str = "reader"
) -> None:
    """``words``: one letter a finding, p(resent), a(bsent), u(nsure); the model calls everything present."""
    verdicts = {"p": Answer("agree"), "a": Answer("disagree"), "u": Answer("unsure")}
    names = ("Mass", "Edema")[: len(words)]
    store.add(
        Decision(
            item=item,
            bundle_id="b",
            reviewer=reviewer,
            answers={name: verdicts[word] for name, word in zip(names, words, strict=True)},
            calls=dict.fromkeys(names, "present"),
            probabilities=dict.fromkeys(names, 0.75),
            blinded=blinded,
            role=role,  # type: ignore[arg-type]
        )
    )


@pytest.fixture
def store(tmp_path: Path) -> ReviewStore:
    return ReviewStore(f"sqlite:///{tmp_path / 'reviews.db'}")


def test_the_latest_word_of_each_reader_counts(store: ReviewStore) -> None:
    read(store, "1", "ann", "pp", blinded=True)
    read(store, "1", "ann", "pa")
    said = readings(store.table()).set_index("subject")["value"]
    assert dict(said) == {"Mass": "present", "Edema": "absent"}
    blind = readings(store.table(), blinded_only=True).set_index("subject")["value"]
    assert dict(blind) == {"Mass": "present", "Edema": "present"}


def test_consensus_and_adjudication(store: ReviewStore) -> None:
    for reviewer, words in (("ann", "pp"), ("bob", "pa"), ("cleo", "pp")):
        read(store, "1", reviewer, words)
    said = readings(store.table())
    one = consensus(said).set_index("subject")
    assert dict(one["value"]) == {"Mass": "present", "Edema": "unsure"} and not one.loc["Edema", "settled"]
    most = consensus(said, "majority").set_index("subject")
    assert most.loc["Edema", "value"] == "present" and most.loc["Edema", "readers"] == 3
    assert disagreements(said) == ["1"]
    read(store, "1", "dora", "pa", role="adjudicator")
    after = readings(store.table())
    assert disagreements(after) == []
    last = consensus(after, "majority").set_index("subject")
    assert last.loc["Edema", "value"] == "absent" and last.loc["Edema", "adjudicated"]
    assert last.loc["Edema", "readers"] == 3


def test_half_is_no_majority(store: ReviewStore) -> None:
    read(store, "1", "ann", "p")
    read(store, "1", "bob", "a")
    assert consensus(readings(store.table()), "majority")["value"].tolist() == ["unsure"]


def test_agreement_of_two_readers_and_the_model(store: ReviewStore) -> None:
    rng = np.random.default_rng(0)
    words = rng.choice(["p", "a"], (40, 2))
    words[:30, 1] = words[:30, 0]
    for i, (a, b) in enumerate(words):
        read(store, str(i), "ann", a)
        read(store, str(i), "bob", b)
    read(store, "single", "ann", "p")
    (found,) = agreement(readings(store.table()), bootstrap=200)
    assert (found.subject, found.items, found.readers) == ("Mass", 40, 2)
    assert found.percent == pytest.approx((words[:, 0] == words[:, 1]).mean())
    assert found.cohen[("ann", "bob")] == pytest.approx(cohen_kappa(list(words[:, 0]), list(words[:, 1])))
    assert found.low < found.fleiss < found.high
    assert found.with_model == pytest.approx(0.0)  # a model that always says the same agrees by chance only


def test_agreement_with_nothing_to_agree_on(store: ReviewStore) -> None:
    assert agreement(readings(store.table())) == []
    read(store, "1", "ann", "p")
    (found,) = agreement(readings(store.table()))
    assert found.items == 0 and np.isnan(found.fleiss) and np.isnan(found.percent) and found.cohen == {}


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_export_says_everything(store: ReviewStore, tmp_path: Path, ending: str) -> None:
    read(store, "1", "ann", "pu", blinded=True)
    read(store, "2", "bob", "a")
    path = tmp_path / f"out.{ending}"
    assert export(store, path) == 2
    table = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    assert list(table["item"].astype(str)) == ["1", "2"] and list(table["blinded"]) == [True, False]
    assert table.loc[0, "answer:Edema"] == "unsure" and table.loc[1, "value:Mass"] == "absent"
    assert table.loc[0, "call:Mass"] == "present" and table.loc[0, "prob:Mass"] == 0.75
    assert pd.isna(table.loc[1, "answer:Edema"]) and json.loads(table.loc[0, "regions"]) == []
    with pytest.raises(ReviewError, match="csv"):
        export(store, tmp_path / "out.xlsx")


def test_export_of_an_empty_store(store: ReviewStore, tmp_path: Path) -> None:
    assert export(store, tmp_path / "out.csv") == 0
    assert "item" in pd.read_csv(tmp_path / "out.csv").columns


def test_no_spreadsheet_takes_a_note_for_a_formula(store: ReviewStore, tmp_path: Path) -> None:
    for note in ("=HYPERLINK(1)", "+1", "-1", "@x", "harmless"):
        store.add(Decision("1", "b", "ann", {"Mass": Answer("unsure")}, note=note))
    export(store, tmp_path / "out.csv")
    notes = pd.read_csv(tmp_path / "out.csv")["note"].tolist()
    assert notes == ["'=HYPERLINK(1)", "'+1", "'-1", "'@x", "harmless"]
    assert export_table(store)["note"].iloc[0] == "=HYPERLINK(1)"


def test_reviews_become_a_manifest(store: ReviewStore, tmp_path: Path) -> None:
    ids = ["f1", "f2", "f3", "f4"]
    base = make_manifest(ids, [str(tmp_path / i) for i in ids], ["p1", "p1", "p2", "p3"], ("Mass", "Edema", "Hernia"),
                         [[0, 1, 1], [0, 0, np.nan], [np.nan] * 3, [1, 1, 1]], splits=["train"] * 4, name="films")  # fmt: skip
    read(store, "h1", "ann", "pu")
    read(store, "h2", "ann", "pa")
    read(store, "h2", "bob", "pp")
    items = dict(zip(ids, ["h1", "h2", "h3", "h4"], strict=True))
    made = training_manifest(store, base, items)
    assert list(made.table["id"]) == ["f1", "f2"] and made.classes == base.classes
    np.testing.assert_array_equal(labels(made), [[1, np.nan, np.nan], [1, np.nan, np.nan]])
    kept = training_manifest(store, base, items, unreviewed="keep")
    np.testing.assert_array_equal(labels(kept), [[1, np.nan, 1], [1, np.nan, np.nan], [1, 1, 1]])
    assert list(kept.table["reviewed"]) == [True, True, False]
    again = read_manifest(write_manifest(made, tmp_path / "manifest.csv"))
    np.testing.assert_array_equal(labels(again), labels(made))
    assert list(again.table["group"]) == ["p1", "p1"]
    with pytest.raises(ManifestError, match="reviewed"):
        training_manifest(store, base, {})


def test_single_labels_become_a_manifest(store: ReviewStore) -> None:
    ids = ["t1", "t2", "t3", "t4"]
    base = make_manifest(ids, ids, ids, ("Forest", "River", "Park"), np.full((4, 3), np.nan))
    said = {"t1": Answer("agree"), "t2": Answer("label", "River"), "t3": Answer("disagree"), "t4": Answer("unsure")}
    for item, answer in said.items():
        store.add(Decision(item, "b", "ann", {"label": answer}, calls={"label": "Forest"}))
    made = training_manifest(store, base, {i: i for i in ids})
    np.testing.assert_array_equal(labels(made), [[1, 0, 0], [0, 1, 0], [0, np.nan, np.nan]])


def test_the_command_checks_exports_compares_and_makes_labels(
    store: ReviewStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = []
    for i in range(2):
        paths.append(tmp_path / f"f{i}.png")
        paths[-1].write_bytes(bytes([i]))
        for reviewer in ("ann", "bob"):
            read(store, file_sha256(paths[-1]), reviewer, "pa"[i])
    base = make_manifest(["f0", "f1"], [str(p) for p in paths], ["p", "q"], ("Mass",), [[np.nan], [np.nan]])
    write_manifest(base, tmp_path / "films.csv")
    at = ["--store", f"sqlite:///{tmp_path / 'reviews.db'}"]
    head = f"review_decisions={store.heads()['review_decisions']}"
    assert reviews(DOMAIN, ["verify", *at, "--head", head]) == 0
    assert head in capsys.readouterr().out.replace("\n", "")
    assert reviews(DOMAIN, ["agreement", *at]) == 0
    assert "1.00" in capsys.readouterr().out
    assert reviews(DOMAIN, ["export", *at, "--out", "out.csv"]) == 0 and len(pd.read_csv("out.csv")) == 4
    assert reviews(DOMAIN, ["labels", *at, "films.csv", "--out", "new.csv"]) == 0
    np.testing.assert_array_equal(labels(read_manifest("new.csv")), [[1], [0]])
    assert reviews(DOMAIN, ["grant", *at, "ann", "admin"]) == 0 and store.roles("ann") == {"ann": {"admin"}}
    assert reviews(DOMAIN, ["grant", *at, "ann", "admin", "--revoke"]) == 0 and store.roles() == {}
    with pytest.raises(ReviewError, match="no store"):
        reviews(DOMAIN, ["verify", "--store", "sqlite:///mistyped.db"])
    assert not Path("mistyped.db").exists()
    other = f"review_decisions=1:{'0' * 64}"
    with pytest.raises(ReviewError, match="kept elsewhere"):
        reviews(DOMAIN, ["verify", *at, "--head", other])
