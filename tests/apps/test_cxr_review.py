"""The chest film app: worklist, reading, blinding, correction, adjudication, and what it shows of patients (nothing)."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pydicom
import pytest
from streamlit.testing.v1 import AppTest

from apps.films.session import NOTICE
from apps.films.worklist import Worklist
from tests.apps.conftest import App
from tests.apps.rows import listed, lists
from tests.small_run import FINDINGS
from vitdomains.core.files import file_sha256
from vitdomains.core.review.store import Assignment


def texts(page: AppTest) -> str:
    """All that stands on the page."""
    kinds = (
        page.markdown,
        page.caption,
        page.error,
        page.info,
        page.warning,
        page.success,
        page.html,
        page.title,
        page.subheader,
    )
    found = [str(getattr(e, "value", None) or getattr(e.proto, "body", "")) for e in itertools.chain(*kinds)]
    found += [
        f"{w.label} {getattr(w, 'value', '')}" for w in itertools.chain(page.button, page.selectbox, page.text_area)
    ]
    found += [frame.value.to_csv() for frame in page.dataframe]
    found += [str(data) for data in lists(page)]
    return "\n".join(found)


def films(page: AppTest) -> list[str]:
    """Codes of the films in the table."""
    return listed(page)["Film"].tolist()


def click(page: AppTest, key: str) -> AppTest:
    return page.button(key=key).click().run()


def finish(page: AppTest) -> AppTest:
    """Save and go on; where findings have no answer that is asked about, and the same key again saves."""
    page = click(page, "finish")
    asked = page.session_state["messages"][-1]["text"] if "messages" in page.session_state else ""
    return click(page, "finish") if "have no answer" in asked else page


def send(page: AppTest, do: str, item: str, **more: object) -> AppTest:
    """What the component of commands sends: a key, a click, or a note."""
    page.session_state["queue"] = [{"do": do, "item": item, **more}]
    return page.run()


def test_the_worklist_shows_all_films_and_no_patient(app: App, worklist: Worklist) -> None:
    page = app.open()
    assert not page.exception and not page.error
    assert len(films(page)) == 48 == len(worklist.table)
    text = texts(page)
    assert NOTICE in text and "48** of 48 films in sight" in text
    assert "PH000" not in text and "PHANTOM" not in text and ".dcm" not in text


@pytest.mark.parametrize(
    ("params", "holds"),
    [
        ({"finding": "Effusion", "call": "called"}, lambda t: t["prob:Effusion"] >= 0),
        ({"finding": "Nodule", "low": "0.2", "high": "0.9"}, lambda t: t["prob:Nodule"].between(0.2, 0.9)),
        ({"group": "view: AP"}, lambda t: t["view"] == "AP"),
        ({"status": "read"}, lambda t: t["item"] == ""),
    ],
)
def test_filters_from_the_address(app: App, worklist: Worklist, params: dict[str, str], holds: object) -> None:
    page = app.open(**params)
    assert not page.exception
    table = worklist.table
    expected = table[holds(table)]  # type: ignore[operator]
    shown = set(films(page)) if lists(page) else set()
    if "call" in params:
        threshold = worklist.engine.bundle.thresholds[FINDINGS.index("Effusion")]
        expected = table[table["prob:Effusion"] >= threshold]
    assert shown == set(expected["item"].str[:8])
    if not len(expected):
        assert "No film passes the filters" in texts(page)
        page = click(page, "clear")
        assert "status" not in page.query_params and len(films(page)) == 48


def test_a_filter_goes_into_the_address_and_nonsense_there_is_ignored(app: App) -> None:
    page = app.open(status="nonsense", finding="Nonsense", low="x", page="999", sort="?")
    assert not page.exception and len(films(page)) == 48
    page.selectbox(key="filter:finding").select("Nodule").run()
    assert page.query_params["finding"] in ("Nodule", ["Nodule"])
    assert set(listed(page)["Leading finding"]) == {"Nodule"}
    page.selectbox(key="filter:sort").select("probability").run()
    shown = listed(page)["Probability"].tolist()
    assert shown == sorted(shown, reverse=True)


def test_a_round_of_reading(app: App, worklist: Worklist) -> None:
    page = app.open()
    first, second = worklist.table["item"].iloc[:2]
    page = click(page, "start")
    assert page.query_params["item"] in (first, [first]) and not page.exception and not page.error
    page = click(page, "say-1")  # disagrees with the finding in focus, and goes to the next
    page = click(page, "say-2")
    page = click(page, "rest")
    page = send(page, "note", first, text="rotated film")
    page = finish(page)
    assert not page.exception and page.query_params["item"] in (second, [second])
    (written,) = app.store.decisions()
    assert written.item == first == file_sha256(Path(worklist.table["path"].iloc[0]))
    assert sorted(a.verdict for a in written.answers.values()) == ["agree", "disagree", "unsure"]
    assert written.reviewer == "ann" and written.note == "rotated film" and not written.blinded
    assert written.bundle_id == worklist.engine.bundle.id and set(written.probabilities) == set(FINDINGS)
    row = worklist.table.iloc[0]
    for name, threshold in zip(FINDINGS, worklist.engine.bundle.thresholds, strict=True):
        assert written.probabilities[name] == pytest.approx(row[f"prob:{name}"])
        assert written.calls[name] == ("present" if row[f"prob:{name}"] >= threshold else "absent")
    again = app.open()
    assert listed(again)["Status"].tolist()[:2] == ["read", "to read"]
    assert "**1** read by you" in texts(again)


def test_what_comes_next_is_made_ahead_in_the_direction_of_reading(app: App, worklist: Worklist) -> None:
    items = worklist.table["item"].tolist()

    def made(item: str) -> bool:
        return any(key[0] == item for key in worklist.engine._heats._futures)  # type: ignore[index]

    page = app.open(item=items[30])
    assert not made(items[31]) and not made(items[28])
    for move, expected in (("", items[31]), ("previous", items[28])):
        page = click(page, move) if move else page
        until = time.monotonic() + 30
        while not made(expected) and time.monotonic() < until:
            time.sleep(0.2)
            page.run()  # as the viewer asks again until it has the film's own heat map
        assert made(expected)


def test_a_widget_answers_too_and_can_be_taken_back(app: App, worklist: Worklist) -> None:
    item = worklist.table["item"].iloc[3]
    page = app.open(item=item)
    page.segmented_control[0].set_value("agree").run()
    page.segmented_control[1].set_value("unsure").run()
    page.segmented_control[1].set_value(None).run()
    finish(page)
    (written,) = app.store.decisions()
    assert [a.verdict for a in written.answers.values()] == ["agree"]


def test_a_reload_keeps_the_draft_and_a_correction_is_another_row(app: App, worklist: Worklist) -> None:
    item = worklist.table["item"].iloc[4]
    page = app.open(item=item, heat="Nodule")
    page = click(page, "say-0")
    again = app.page(item=item)
    assert [c.value for c in again.segmented_control].count("agree") == 1
    again = finish(again)
    corrected = app.page(item=item, heat="Nodule")
    assert [c.value for c in corrected.segmented_control].count("agree") == 1
    corrected = click(corrected, "say-1")
    finish(corrected)
    first, second = app.store.decisions(item=item)
    assert first.answers["Nodule"].verdict == "agree" and second.answers["Nodule"].verdict == "disagree"
    assert first.token != second.token
    assert "disagree" in texts(app.page(item=item))


def test_an_answer_and_the_key_that_saves_can_come_at_once(app: App, worklist: Worklist) -> None:
    page = app.open(item=worklist.table["item"].iloc[3], heat="Nodule")
    page.button(key="finish").click()
    page.button(key="say-0").click()
    page = page.run()
    assert not page.exception and "have no answer" in page.session_state["messages"][-1]["text"]
    assert app.store.count() == 0, "what was not judged is asked about before a film counts as read"
    page = click(page, "finish")
    (written,) = app.store.decisions()
    assert written.item == worklist.table["item"].iloc[3] and written.answers["Nodule"].verdict == "agree"
    assert page.query_params["item"] not in (written.item, [written.item])


def test_next_without_an_answer_saves_nothing(app: App, worklist: Worklist) -> None:
    page = app.open(item=worklist.table["item"].iloc[0])
    page = finish(page)
    assert app.store.count() == 0 and page.query_params["item"] in (
        worklist.table["item"].iloc[1],
        [worklist.table["item"].iloc[1]],
    )
    page = click(page, "previous")
    assert page.query_params["item"] in (worklist.table["item"].iloc[0], [worklist.table["item"].iloc[0]])


def test_blinded_nothing_of_the_model_is_on_the_page_before_the_decision(app: App, worklist: Worklist) -> None:
    page = app.open("--blinded")
    assert set(listed(page).columns) == {
        "No.", "Film", "Status", "View", "Sex", "Age", "Modality", "Remark",
    }  # fmt: skip
    assert [s.label for s in page.selectbox] == ["Status", "Order"] and not page.slider
    item = worklist.table["item"].iloc[5]
    page = app.open("--blinded", item=item)
    hidden = texts(page)
    assert "called" not in hidden and "held-out" not in hidden and "Heat map" not in hidden
    assert not [b for b in page.button if b.key.startswith("make")]
    assert list(page.segmented_control[0].options) == ["Present", "Absent", "Unsure"]
    page.segmented_control[0].set_value("present").run()
    page = finish(page)
    assert not page.exception and page.query_params["item"] in (item, [item])
    assert "called" in texts(page)  # now the model is shown
    assert list(page.segmented_control[0].options) == ["Agree", "Disagree", "Unsure"]
    (blind,) = app.store.decisions()
    assert blind.blinded and [a.label for a in blind.answers.values()] == ["present"]
    page = click(page, "say-2")
    finish(page)
    assert [d.blinded for d in app.store.decisions()] == [True, False]


def test_a_blinded_reader_cannot_lift_the_blinding_by_the_address(app: App, worklist: Worklist) -> None:
    page = app.open("--blinded", item=worklist.table["item"].iloc[6], blinded="0", role="reader")
    assert "called" not in texts(page)
    page = app.open("--blinded", finding="Nodule", low="0.5", call="called", sort="probability")
    assert len(films(page)) == 48 and films(page) == worklist.table["item"].str[:8].tolist()


def test_an_adjudicator_sees_the_readers_and_has_the_last_word(app: App, worklist: Worklist) -> None:
    item = worklist.table["item"].iloc[7]
    for reviewer, key in (("ann", "say-0"), ("bob", "say-1")):
        page = app.open("--reviewer", reviewer, item=item, heat="Nodule")
        finish(click(page, key))
    as_reader = texts(app.open("--reviewer", "dora", item=item, heat="Nodule"))
    assert "ann" not in as_reader and "bob" not in as_reader
    found = app.open("--reviewer", "dora", status="disagreement", role="adjudicator")
    assert films(found) == [item[:8]] and listed(found)["Status"].tolist() == ["readers disagree"]
    page = app.open("--reviewer", "dora", item=item, heat="Nodule", role="adjudicator")
    assert "ann" in texts(page) and "bob" in texts(page)
    finish(click(page, "say-1"))
    assert [d.role for d in app.store.decisions()] == ["reader", "reader", "adjudicator"]


def test_assigned_films_come_first(app: App, worklist: Worklist) -> None:
    wanted = worklist.table["item"].iloc[[20, 30]].tolist()
    app.store.assign([Assignment(i, "ann") for i in wanted], by="root")
    page = app.open(status="mine")
    assert films(page) == [i[:8] for i in wanted]
    page = click(app.open(), "start")
    assert page.query_params["item"] in (wanted[0], [wanted[0]])


def test_patients_are_shown_where_allowed_and_switched_on(app: App, worklist: Worklist) -> None:
    item = worklist.table["item"].iloc[0]
    dataset = pydicom.dcmread(worklist.table["path"].iloc[0], stop_before_pixels=True)
    page = app.open("--phi", item=item)
    assert dataset.PatientID not in texts(page)
    page.toggle(key="phi").set_value(True).run()
    assert dataset.PatientID in texts(page)
    assert not [t for t in app.open(item=item).toggle if t.key == "phi"]
    assert dataset.PatientID not in (worklist.folder / "predictions.parquet").read_bytes().decode("latin-1").replace(
        dataset.PatientID + "_", ""
    )


def test_films_of_a_patient_are_offered_as_priors(app: App, worklist: Worklist) -> None:
    table = worklist.table
    patient = table["patient"].value_counts().index[0]
    own = table[table["patient"] == patient].sort_values("date")
    last, first = own["item"].iloc[-1], own["item"].iloc[0]
    page = app.open(item=last)
    assert not page.exception and len(page.selectbox(key=f"prior:{last[:16]}").options) == len(own) - 1
    assert "no earlier study" in texts(app.open(item=first))


def test_a_film_that_is_not_there(app: App) -> None:
    page = app.open(item="f" * 64)
    assert not page.exception and "There is no such film" in texts(page)
    assert "item" not in click(page, "to-list").query_params


def test_the_last_film_leads_back_to_the_list(app: App, worklist: Worklist) -> None:
    items = worklist.table["item"].tolist()
    page = app.open(item=items[0], search=items[0][:8])
    page = finish(click(page, "say-0"))
    assert "item" not in page.query_params and "All films in sight are read" in texts(page)


def test_the_report_can_be_made_and_fetched(app: App, worklist: Worklist) -> None:
    page = app.open(item=worklist.table["item"].iloc[2])
    page = click(page, "make.html")
    assert not page.exception and not page.error
    assert page.download_button(key="get.html") is not None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--bundle", "nowhere"], "nowhere does not exist"),
        (["--studies", "nowhere"], "nowhere does not exist"),
        (["--nonsense"], "Start it as"),
        (["--store", "mysql://x"], "no store of reviews"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(app: App, words: list[str], text: str) -> None:
    page = app.open(*words)
    assert not page.exception and len(page.error) == 1
    assert text in page.error[0].value.replace("\\", "")


def test_a_folder_that_is_no_bundle(app: App, tmp_path: Path) -> None:
    page = app.open("--bundle", str(tmp_path))
    assert "is not a bundle" in page.error[0].value.replace("\\", "")
