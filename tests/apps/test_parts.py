"""The parts of the chest film app, one by one: worklist, engine, pictures for the viewer, drafts, options."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from apps.films.engine import Engine
from apps.films.session import parse_options
from apps.films.worklist import Worklist, uncertainty
from apps.shared.bundle_info import read_bundle_info
from apps.shared.decisions import DecisionTable
from apps.shared.drafts import Draft, decision_of, options_of, words_of
from apps.shared.memo import Memo
from apps.viewer import film_picture, heat_picture
from tests.apps.conftest import finish
from tests.cxr.film_files import chest, dataset, save
from tests.small_run import FINDINGS, SmallRun
from vitdomains.core.data.preprocess import PreprocessSpec, geometry
from vitdomains.core.errors import BundleError, ConfigError, VitDomainsError
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.review.store import Answer, Decision, ReviewError, ReviewStore
from vitdomains.cxr.film.display import read_display
from vitdomains.cxr.film.film import read_image


@pytest.fixture(scope="module")
def engine(run: SmallRun) -> Engine:
    made = Engine(read_bundle_info(run.bundle, "cxr"), threads=1)
    made.start()
    return made


@pytest.fixture
def studies(run: SmallRun, tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for film in sorted(run.films.glob("*.dcm"))[:5]:
        shutil.copy(film, folder)
    return folder


def listed(studies: Path, cache: Path, engine: Engine) -> Worklist:
    made = Worklist(studies, cache, engine)
    made.start()
    finish(made)
    return made


def test_the_table_holds_what_predict_says(studies: Path, tmp_path: Path, engine: Engine, run: SmallRun) -> None:
    table = listed(studies, tmp_path / "cache", engine).table
    predictor = Predictor(run.bundle, read_image, threads=1)
    expected = np.array([p.scores for p in predictor.predict([(p, p) for p in table["path"]])])
    np.testing.assert_allclose(table[[f"prob:{c}" for c in FINDINGS]].to_numpy(), expected, atol=1e-3)
    assert (
        set(table["modality"]) <= {"CR", "DX"}
        and set(table["sex"]) <= {"F", "M"}
        and (table["date"].str.len() == 14).all()
    )


def test_only_what_changed_is_read_again(
    studies: Path, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = listed(studies, tmp_path / "cache", engine).table
    seen: list[str] = []
    checked = engine.checked
    monkeypatch.setattr(engine, "checked", lambda path: (seen.append(path), checked(path))[1])
    again = listed(studies, tmp_path / "cache", engine).table
    assert seen == [] and again.equals(first)
    files = sorted(studies.iterdir())
    os.utime(files[0], (1, 1))
    files[1].unlink()
    shutil.copy(files[2], studies / "new.dcm")
    changed = listed(studies, tmp_path / "cache", engine).table
    assert {Path(p).name for p in seen} == {files[0].name, "new.dcm"}
    assert str(files[1]) not in set(changed["path"]) and len(changed) == 5
    assert changed.set_index("path").loc[str(files[3]), "item"] == first.set_index("path").loc[str(files[3]), "item"]


def test_a_stopped_reading_goes_on_where_it_was(
    studies: Path, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.films.worklist.BATCH", 1)
    monkeypatch.setattr("apps.films.worklist.SAVE_SECONDS", 0.0)
    scores, calls = engine.scores, iter(range(100))

    def fail(stacks: object) -> object:
        if next(calls) == 3:
            raise RuntimeError("the power went")
        return scores(stacks)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "scores", fail)
    broken = listed(studies, tmp_path / "cache", engine)
    assert broken.progress.error == "the power went" and len(pd.read_parquet(broken.file)) == 3
    monkeypatch.setattr(engine, "scores", scores)
    mended = listed(studies, tmp_path / "cache", engine)
    assert mended.progress.error == "" and len(mended.table) == 5 and len(pd.read_parquet(mended.file)) == 5


def test_a_damaged_table_is_made_anew(studies: Path, tmp_path: Path, engine: Engine) -> None:
    file = listed(studies, tmp_path / "cache", engine).file
    file.write_bytes(b"PAR1 and then nothing")
    assert len(listed(studies, tmp_path / "cache", engine).table) == 5


def test_the_table_names_no_patient_and_pseudonyms_differ_by_cache(
    studies: Path, tmp_path: Path, engine: Engine
) -> None:
    one, two = (listed(studies, tmp_path / name, engine) for name in ("one", "two"))
    assert set(one.table["patient"]).isdisjoint(two.table["patient"])
    assert (one.folder / "key").stat().st_mode & 0o077 == 0
    groups = [tuple(w.table.groupby("patient")["item"].apply(frozenset)) for w in (one, two)]
    assert set(groups[0]) == set(groups[1])


def test_a_manifest_gives_patients_and_sub_groups(run: SmallRun, tmp_path: Path, engine: Engine) -> None:
    table = listed(run.manifest, tmp_path / "cache", engine).table
    manifest = pd.read_csv(run.manifest, dtype=str)
    assert len(table) == len(manifest) and table["age_band"].tolist() == manifest["age_band"].tolist()
    assert table["patient"].nunique() == manifest["group"].nunique()


def test_uncertainty_is_one_at_the_threshold() -> None:
    p = np.array([[0.2, 0.9], [0.0, 1.0], [0.1, 0.95]])
    found = uncertainty(p, np.array([0.2, 0.9]))
    np.testing.assert_allclose(found, [[1, 1], [0, 0], [0.5, 0.5]])


def test_a_result_is_made_once_and_a_failure_again() -> None:
    memo, made = Memo(2, 1, "test"), []

    def make() -> int:
        made.append(1)
        if len(made) == 1:
            raise ValueError("first")
        return len(made)

    assert isinstance(memo.get("a", make).exception(), ValueError)
    assert memo.get("a", make).result() == 2 and memo.get("a", make).result() == 2
    hold = threading.Event()
    memo.get("slow", hold.wait)
    waiting, wanted = memo.get("b", make), memo.get("c", make)  # a, the least recently used, is forgotten
    memo.drop_waiting(but="c")
    hold.set()
    assert wanted.result() == 3
    with pytest.raises(CancelledError):
        waiting.result()


def test_who_asks_now_and_then_hears_of_a_failure() -> None:
    memo, made = Memo(2, 1, "test", failures_kept=0.2), []

    def make() -> int:
        made.append(1)
        raise ValueError("always")

    assert isinstance(memo.get("a", make).exception(), ValueError)
    assert memo.get("a", make).done() and len(made) == 1
    time.sleep(0.25)
    assert isinstance(memo.get("a", make).exception(), ValueError) and len(made) == 2


def test_a_model_that_cannot_be_loaded_is_an_error_of_ours(run: SmallRun, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(run.bundle, bundle)
    (bundle / "model.safetensors").write_bytes(b"not what was hashed")
    broken = Engine(read_bundle_info(bundle, "cxr"))
    with pytest.raises(VitDomainsError, match="sha256"):
        _ = broken.predictor
    assert not broken.ready


def test_facts_of_a_bundle(run: SmallRun, tmp_path: Path) -> None:
    facts = read_bundle_info(run.bundle, "cxr")
    assert facts.classes == FINDINGS and len(facts.id) == 16
    assert facts.calls({"Cardiomegaly": 1.0, "Effusion": 0.0, "Nodule": float("nan")}) == {
        "Cardiomegaly": "present",
        "Effusion": "absent",
    }
    with pytest.raises(BundleError, match="bundle of cxr"):
        read_bundle_info(run.bundle, "satellite")
    with pytest.raises(BundleError, match="no bundle"):
        read_bundle_info(tmp_path, "cxr")


def test_deep_films_travel_as_two_planes(tmp_path: Path) -> None:
    path = save(dataset(chest(bits=15), bits=15), tmp_path / "film.dcm")
    display = read_display(path)
    picture = film_picture(display)
    planes = cv2.imdecode(np.frombuffer(picture.png, np.uint8), cv2.IMREAD_UNCHANGED).astype(np.uint16)
    height = picture.about["height"]
    assert picture.about["depth"] == 16 and np.array_equal(planes[:height] << 8 | planes[height:], display.levels)
    assert picture.about["units"] == {"offset": 0.0, "step": 1.0, "count": 2**15}


def test_a_heat_map_lies_where_the_model_looked() -> None:
    spec = PreprocessSpec(64, 64, "letterbox", 1, (0.5,), (0.5,))
    heat = np.zeros((64, 64), np.float32)
    rect = heat_picture(heat, geometry(spec, (200, 100))).about["rect"]
    np.testing.assert_allclose(rect, [-50, 0, 200, 200])  # the padding left and right lies outside of the film
    crop = PreprocessSpec(64, 64, "crop", 1, (0.5,), (0.5,))
    np.testing.assert_allclose(heat_picture(heat, geometry(crop, (200, 100))).about["rect"], [0, 50, 100, 100])


def test_words_before_and_after_the_model_is_shown() -> None:
    calls = {"Mass": "present", "Edema": "absent"}
    values = {"Mass": "absent", "Edema": "absent", "Hernia": "present"}
    assert words_of(values, calls, revealed=False) == values
    assert words_of(values, calls, revealed=True) == {"Mass": "disagree", "Edema": "agree", "Hernia": "present"}
    assert words_of({"Mass": "unsure"}, calls, revealed=True) == {"Mass": "unsure"}
    assert options_of("", revealed=True)[0] == "present" and options_of("absent", revealed=True)[0] == "agree"


def test_a_draft_becomes_a_decision() -> None:
    draft = Draft(touched=0.0)
    for moment in (10.0, 1000.0, 1005.0):
        draft.touch(moment)
    assert draft.seconds == 15.0  # the pause between was no work
    known = {"item": "i", "bundle_id": "b", "reviewer": "ann", "role": "reader", "probabilities": {"Mass": 0.5}}
    with pytest.raises(ReviewError, match="No finding"):
        decision_of(draft, calls={}, blinded=False, **known)  # type: ignore[arg-type]
    draft.answers = {"Mass": "agree", "Edema": "present"}
    draft.regions = [{"kind": "box", "x": 1, "y": 2, "width": 3, "height": 4, "subject": "Mass"}]
    made = decision_of(draft, calls={"Mass": "present"}, blinded=True, **known)  # type: ignore[arg-type]
    assert made.answers == {"Mass": Answer("agree"), "Edema": Answer("label", "present")} and made.blinded
    draft.regions = [{"kind": "box", "evil": 1}]
    with pytest.raises(ReviewError, match="malformed"):
        decision_of(draft, calls={"Mass": "present"}, blinded=True, **known)  # type: ignore[arg-type]


def test_an_answer_by_key_replaces_the_widget_that_does_not_know_of_it() -> None:
    draft = Draft()
    before = draft.widget("Mass")
    draft.put("Mass", "agree")
    assert draft.changed and draft.answers == {"Mass": "agree"}
    assert draft.widget("Mass") != before and draft.widget("Edema") != draft.widget("Mass")
    by_widget = draft.widget("Mass")
    draft.answer("Mass", "unsure")
    assert draft.answers == {"Mass": "unsure"} and draft.widget("Mass") == by_widget
    draft.answer("Mass", None)
    assert draft.answers == {}
    draft.saved()
    assert not draft.changed and draft.widget("Mass") != by_widget
    draft.answer("Edema", None)
    draft.write("")
    draft.mark([])
    assert not draft.changed  # what stands already is no change
    draft.write("a note")
    assert draft.changed


def _going() -> None:
    import streamlit as st

    from apps.shared.address import address, go, say, settle

    def act() -> None:
        go(item="2", heat="", group=["a", "b"])
        say("moved")

    settle()
    st.text(f"item {address().get('item', 'none')}")
    st.button("act", on_click=act)
    st.button("more", on_click=go, kwargs={"heat": "Edema"})


def test_what_a_callback_asks_for_is_done_though_the_run_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    from_dict, cut = type(st.query_params).from_dict, iter([True])

    def told(params: Any, given: Any) -> None:
        if next(cut, False):
            st.stop()  # as a rerun that another act of the reader asks for: here, in the middle of settle
        from_dict(params, given)

    monkeypatch.setattr(type(st.query_params), "from_dict", told)
    page = AppTest.from_function(_going)
    page.query_params["heat"] = "Mass"
    page.run().button[0].click().run()
    assert not page.text
    page.run()
    assert [t.value for t in page.text] == ["item 2"]
    assert [m["text"] for m in page.session_state["messages"]] == ["moved"]
    assert page.query_params == {"item": "2", "group": ["a", "b"]}
    del page.query_params["item"]  # a request that left the browser before it heard
    page.query_params["group"] = "c"
    page.button[1].click().run()
    assert page.query_params == {"item": "2", "group": ["a", "b"], "heat": "Edema"}


def test_the_decisions_keep_up_with_the_store(tmp_path: Path) -> None:
    store = ReviewStore(f"sqlite:///{tmp_path / 'r.db'}")
    decisions = DecisionTable(store)
    assert decisions.refresh() == 0 and not decisions.values("ann", "reader") and len(decisions.table) == 0
    for reviewer, verdict in (("ann", "agree"), ("bob", "disagree")):
        store.add(Decision("1", "b", reviewer, {"Mass": Answer(verdict)}, calls={"Mass": "present"}))  # type: ignore[arg-type]
        decisions.refresh()
    assert decisions.standing("1").disagreement and decisions.standing("1").readers == ("ann", "bob")
    assert decisions.values("bob", "reader")["1"] == {"Mass": "absent"} and decisions.read_by("bob") == {"1"}
    store.add(Decision("1", "b", "bob", {"Mass": Answer("agree")}, calls={"Mass": "present"}))
    assert decisions.refresh() == 3 and not decisions.standing("1").disagreement


def test_options(run: SmallRun) -> None:
    made = parse_options(["--bundle", str(run.bundle), "--studies", str(run.films), "--admin", "a", "--admin", "b"])
    assert made.identity.admins == ("a", "b") and made.store == "sqlite:///reviews.db" and not made.phi
    with pytest.raises(ConfigError, match="--bundle"):
        parse_options(["--studies", str(run.films)])
