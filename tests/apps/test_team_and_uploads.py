"""The chest film app's other rooms: assignments, agreement, export and the check of the store; and films brought along."""

from __future__ import annotations

import io
import shutil
import sqlite3
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from apps.films.worklist import Worklist
from apps.shared.decisions import DecisionTable
from tests.apps.conftest import App
from tests.apps.rows import listed
from tests.apps.test_cxr_review import click, finish, texts
from tests.small_run import FINDINGS, SmallRun
from vitdomains.core.review.store import Answer, Assignment, Decision, ReviewError


def decide(app: App, worklist: Worklist, reviewer: str, row: int, verdict: str) -> None:
    item = worklist.table["item"].iloc[row]
    answers = {name: Answer(verdict) for name in FINDINGS}  # type: ignore[arg-type]
    app.store.add(Decision(item, "b", reviewer, answers, calls=dict.fromkeys(FINDINGS, "present")))


def test_an_admin_deals_out_and_sees_what_is_done(app: App, worklist: Worklist) -> None:
    page = app.open(show="team")
    assert not page.exception and "No decision yet" in texts(page) and "Nothing to export" in texts(page)
    app.store.grant("bob", "reader", by="ann")
    page = app.open(show="team")
    page.multiselect(key="assign-readers").set_value(["ann", "bob"])
    page.number_input(key="assign-count").set_value(5)
    page.button(key="FormSubmitter:assign-Deal out").click().run()
    assert not page.exception and "10 readings dealt out" in texts(page).replace("\\", "")
    assert len(app.store.assignments("bob")) == 5
    decide(app, worklist, "bob", 0, "agree")
    decide(app, worklist, "ann", 0, "disagree")
    page = app.open(show="team")
    page.button(key="assign-open").click().run()
    held = app.store.assignments("ann")
    assert held["role"].tolist().count("adjudicator") == 1
    counts = page.dataframe[1].value
    assert counts.set_index(["reviewer", "role"]).loc[("bob", "reader"), "done"] in (0, 1)


def test_the_team_page_stands_without_a_film_in_sight(app: App) -> None:
    page = app.open(show="team", search="nothing is called so")
    assert not page.exception and {"assign-open", "verify"} <= {b.key for b in page.button}


def test_roles_are_granted_in_the_app(app: App) -> None:
    page = app.open(show="team")
    page.text_input(key="grant-name").set_value("bob")
    page.selectbox(key="grant-role").select("adjudicator")
    page.button(key="FormSubmitter:grant-Write").click().run()
    assert app.store.roles("bob") == {"bob": {"adjudicator"}}


def test_agreement_and_export(app: App, worklist: Worklist) -> None:
    for row in range(4):
        decide(app, worklist, "ann", row, "agree" if row < 2 else "disagree")
        decide(app, worklist, "bob", row, "agree" if row < 3 else "disagree")
    page = app.open(show="team")
    table = page.dataframe[0].value.set_index("Finding")
    assert table.loc["Nodule", "Films read twice"] == 4 and table.loc["Nodule", "Same"] == 0.75
    assert "ann and bob 0.50" in table.loc["Nodule", "Cohen's kappa, by pair"]
    assert "wait for an adjudicator: 1." in texts(page)
    names = {b.key: b.label for b in page.download_button}
    assert names["csv"] == "Decisions as CSV (8)" and "manifest" in names


def test_settled_is_what_all_who_were_assigned_have_read(app: App, worklist: Worklist) -> None:
    items = worklist.table["item"].iloc[:2].tolist()
    app.store.assign([Assignment(items[0], "ann"), Assignment(items[0], "bob")], by="root")
    for row in range(2):
        decide(app, worklist, "ann", row, "agree")
    decisions = DecisionTable(app.store)
    decisions.refresh()
    assert decisions.unfinished() == {items[0]}
    decide(app, worklist, "bob", 0, "agree")
    decisions.refresh()
    assert decisions.unfinished() == frozenset()


def test_the_check_of_the_store_finds_a_change(app: App, worklist: Worklist) -> None:
    decide(app, worklist, "ann", 0, "agree")
    page = click(app.open(show="team"), "verify")
    assert "Intact" in texts(page)
    with sqlite3.connect(app.url.removeprefix("sqlite:///")) as connection:
        connection.execute("DROP TRIGGER review_decisions_no_UPDATE")
        connection.execute("UPDATE review_decisions SET reviewer = 'eve'")
    page = click(app.open(show="team"), "verify")
    assert "row 1 was changed" in page.error[0].value.replace("\\", "")
    with pytest.raises(ReviewError):
        app.store.verify()


def png(size: int = 96) -> bytes:
    ramp = np.linspace(0, 255, size * size).reshape(size, size).astype(np.uint8)
    return cv2.imencode(".png", ramp)[1].tobytes()


def test_a_film_brought_along_is_read_predicted_and_stored_by_its_hash(
    app: App, worklist: Worklist, run: SmallRun
) -> None:
    dataset = pydicom.dcmread(sorted(run.films.glob("*.dcm"))[0])
    dataset.InstanceNumber = 77  # another file than the one in the list
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    before = len(worklist.table)
    page = app.open()
    page.file_uploader[0].set_value(("../../etc/passwd", buffer.getvalue(), "application/dicom")).run()
    assert not page.exception and not page.error
    item = page.query_params["item"]
    item = item[0] if isinstance(item, list) else item
    assert "film" in texts(page) and item not in set(worklist.table["item"])
    page = click(page, "say-0")
    finish(page)
    (written,) = app.store.decisions()
    assert written.item == item and len(worklist.table) == before
    (file,) = (p for p in (app.cache / "uploads").rglob("*") if p.is_file() and not p.suffix)
    assert file.name != "passwd" and file.parent.stat().st_mode & 0o077 == 0
    assert item[:8] in texts(app.open(item=item)), "a reload keeps it"
    assert item[:8] not in texts(app.open("--reviewer", "bob", item=item)), "it is of who brought it alone"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"GIF89a" + bytes(100), "is a GIF picture, not a film"),
        (b"", "is empty"),
        (png()[:200], "does not decode"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + b"\x00\x01\x00\x00" * 2 + bytes(60), "pixels"),
        (b"<html><script>alert(1)</script></html>", "is a text in XML or HTML"),
    ],
)
def test_what_is_no_film_is_refused_and_leaves_nothing(app: App, content: bytes, text: str) -> None:
    page = app.open()
    before = {p for p in (app.cache / "uploads").rglob("*") if p.is_file()}
    page.file_uploader[0].set_value(("film.dcm", content, "application/dicom")).run()
    assert not page.exception and text in page.error[0].value.replace("\\", "")
    assert "item" not in page.query_params and str(app.cache) not in page.error[0].value
    assert {p for p in (app.cache / "uploads").rglob("*") if p.is_file()} == before


def test_a_film_that_cannot_be_read_is_listed_with_the_reason(
    app: App, run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apps.films.session import open_worklist
    from tests.apps.conftest import finish as read_all

    studies = tmp_path / "studies"
    studies.mkdir()
    shutil.copy(sorted(run.films.glob("*.dcm"))[0], studies / "good.dcm")
    (studies / "bad.dcm").write_bytes(b"\x00" * 128 + b"DICM" + b"\x07" * 50)
    read_all(open_worklist(run.bundle, studies, app.cache, 1))
    app.arguments(studies=studies)
    page = app.page()
    shown = listed(page)
    assert len(shown) == 2 and shown["Status"].tolist()[1] == "to read" and "cannot be read: 1." in texts(page)
    assert len(listed(app.page(status="error"))) == 1
    bad = open_worklist(run.bundle, studies, app.cache, 1).table["item"].iloc[0]
    page = app.page(item=bad)
    assert not page.exception and "This film cannot be read" in page.error[0].value.replace("\\", "")


def test_an_empty_folder_says_what_to_do(app: App, tmp_path: Path) -> None:
    from apps.films.session import open_worklist
    from tests.apps.conftest import finish as read_all

    (tmp_path / "empty").mkdir()
    app.arguments(studies=tmp_path / "empty")
    page = app.page()
    assert not page.exception
    read_all(open_worklist(app.run_.bundle, tmp_path / "empty", app.cache, 1))
    text = texts(app.page())
    assert "No film yet" in text and "No image in" in text.replace("\\", "")
