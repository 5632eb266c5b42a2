"""Drafts that outlive a server, and commands that hold for the item and the draft that were on the screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.films.worklist import Worklist
from apps.shared import drafts as drafts_module
from apps.shared.drafts import Draft, Drafts
from tests.apps.conftest import App
from tests.apps.test_cxr_review import click, finish, texts
from tests.small_run import FINDINGS
from vitdomains.core.review.store import Answer

KEY = ("ann", "reader", "item")


def test_a_draft_outlives_the_server_until_it_is_saved(tmp_path: Path) -> None:
    one = Drafts(tmp_path / "drafts").get(KEY, Draft)
    one.put("Mass", "agree")
    one.write("a note")
    one.mark([{"kind": "point", "x": 1.0, "y": 2.0, "width": 0.0, "height": 0.0, "subject": "Mass"}])
    again = Drafts(tmp_path / "drafts").get(KEY, Draft)
    assert (again.answers, again.note, again.regions) == (one.answers, one.note, one.regions) and again.changed
    assert (tmp_path / "drafts").stat().st_mode & 0o077 == 0
    assert again.token == one.token and again.widget("Mass") == one.widget("Mass") and again.seen == one.seen
    assert Drafts(tmp_path / "drafts").get(("bob", "reader", "item"), Draft).answers == {}
    # Saved, and the server ended before it could remove the draft: what is in the store is not begun any more.
    saved = Drafts(tmp_path / "drafts").get(KEY, lambda: Draft(generation=1))
    assert not saved.changed and saved.answers == {}
    again.saved()
    assert list((tmp_path / "drafts").iterdir()) == []


def test_a_draft_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path)
    drafts.get(KEY, Draft).write("a note")
    (file,) = tmp_path.iterdir()
    for content in ("{", "[]", "{}", '{"key": 3}'):
        file.write_text(content)
        assert Drafts(tmp_path).get(KEY, Draft).note == ""


def test_a_draft_is_outdated_by_a_save_or_by_another_page(monkeypatch: pytest.MonkeyPatch) -> None:
    draft, page = Draft(), ["one"]
    monkeypatch.setattr(drafts_module, "page_id", lambda: page[0])
    seen = draft.seen
    draft.put("Mass", "agree")
    assert not draft.outdated(seen), "a page's own changes are on their way to its screen"
    page[0] = "two"
    assert draft.outdated(seen) and not draft.outdated(draft.seen)
    draft.put("Mass", "unsure")
    page[0] = "one"
    assert draft.outdated(seen)
    now = draft.seen
    draft.saved()
    assert draft.outdated(now) and not draft.outdated(draft.seen)


def test_a_command_holds_for_what_was_on_the_screen(app: App, worklist: Worklist) -> None:
    first, second = worklist.table["item"].iloc[:2]
    page = app.open(item=first)
    commands = [
        {"do": "say-0", "item": first, "seen": [0, 0], "page": "tab", "n": 1},
        {"do": "agree-next", "item": first, "seen": [0, 0], "page": "tab", "n": 2},
        {"do": "say-1", "item": second, "seen": [0, 0], "page": "tab", "n": 3},
        {"do": "say-1", "item": first, "seen": [0, 0], "page": "tab", "n": 4},  # saved since: set aside
        {"do": "say-1", "item": "f" * 64, "seen": [0, 0], "page": "tab", "n": 5},
    ]
    page.session_state["queue"] = [*commands, *commands]  # sent again: done once
    page = page.run()
    assert not page.exception and not page.error
    (written,) = app.store.decisions()
    assert written.item == first and {a.verdict for a in written.answers.values()} == {"agree"}
    said = [m["text"] for m in page.session_state["messages"]]
    assert sum("Set aside" in text for text in said) == 2
    assert page.query_params["item"] in (second, [second])
    assert [c.value for c in page.segmented_control].count("disagree") == 1, "the third was for the film that followed"


def test_undo_in_films_and_one_key_for_all(app: App, worklist: Worklist) -> None:
    first, second = worklist.table["item"].iloc[:2]
    page = click(app.open(item=first), "agree-next")
    assert page.query_params["item"] in (second, [second]) and len(app.store.decisions()[0].answers) == len(FINDINGS)
    page = click(page, "undo")
    assert page.query_params["item"] in (first, [first]) and app.store.decisions()[1].answers == {}
    assert "Taken back" in page.session_state["messages"][-1]["text"]
    app.store.verify()


def test_assigned_films_that_are_read_say_so(app: App, worklist: Worklist) -> None:
    from vitdomains.core.review.store import Assignment

    item = worklist.table["item"].iloc[3]
    app.store.assign([Assignment(item, "ann")], by="root")
    page = click(app.open(item=item), "agree-next")
    assert "All films that are assigned to you are read" in texts(page)


def test_priors_are_earlier_studies(app: App, worklist: Worklist) -> None:
    from apps.films.film_pane import interval, other_views, priors
    from apps.films.session import Session

    table = worklist.table.iloc[:5].reset_index(drop=True)
    table = table.assign(patient="p", study=["a", "b", "b", "c", "c"], error="",
                         date=["20200101", "20210101", "20210101", "20220301", "20220301"])  # fmt: skip

    class Listed:
        def __init__(self) -> None:
            self.table = table

    session = Session(None, None, None, None, None, Listed())  # type: ignore[arg-type]
    rows = [{str(k): v for k, v in r.items()} for r in table.to_dict("records")]
    assert [r["study"] for r in priors(session, rows[3])] == ["b", "b", "a"], "no film of the same study"
    assert [r["item"] for r in other_views(session, rows[3])] == [rows[4]["item"]]
    assert priors(session, rows[0]) == [] and priors(session, rows[0] | {"date": ""}) == []
    assert (
        interval("20200101", "20220102") == "2 years earlier" and interval("20220101", "20220131") == "4 weeks earlier"
    )
    assert interval("20220101", "20220102") == "1 day earlier" and interval("", "20220102") == ""


def test_the_table_of_a_long_list_is_made_a_few_times(
    tmp_path: Path, worklist: Worklist, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: rows that are put into tables, for each film that is read."""
    import pandas as pd

    from apps.films import worklist as module

    films, made = 4000, [0]
    long = Worklist(tmp_path, tmp_path / "cache", worklist.engine)
    row = {str(k): v for k, v in worklist.table.iloc[0].items()}
    monkeypatch.setattr(long, "_listing", lambda: ((f"{n:05d}.dcm", {}) for n in range(films)))
    monkeypatch.setattr(long, "_read", lambda batch: [{**row, "path": path, "item": path} for path, _ in batch])
    real = pd.concat

    def counted(frames: list[pd.DataFrame], **options: object) -> pd.DataFrame:
        made[0] += sum(map(len, frames))
        return real(frames, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(module.pd, "concat", counted)
    long._bring_up_to_date()
    assert len(long.table) == films and long.table["path"].is_monotonic_increasing
    assert made[0] < 30 * films, f"{made[0] / films:.0f} rows copied for each film"


def test_what_cannot_be_drawn_is_said_in_our_words(
    app: App, worklist: Worklist, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> object:
        raise KeyError("a programmer's words")

    monkeypatch.setattr(worklist.engine, "film", fails)
    page = app.open(item=worklist.table["item"].iloc[0])
    assert not page.exception and "What you saved is safe" in page.error[0].value
    assert "programmer" not in texts(page) and any(b.key == "finish" for b in page.button)
    page = finish(click(page, "say-0"))
    assert app.store.count() == 1


def test_a_store_that_refuses_keeps_the_draft(app: App, worklist: Worklist, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitdomains.core.review.store import ReviewError, ReviewStore

    item = worklist.table["item"].iloc[2]
    page = click(app.open(item=item), "say-0")

    def refuses(*_: object) -> list[int]:
        raise ReviewError("The disk is full.", hint="Make room, then press the same key again.")

    with monkeypatch.context() as broken:
        broken.setattr(ReviewStore, "add", refuses)
        page = finish(page)
        assert "The disk is full" in page.error[0].value and page.query_params["item"] in (item, [item])
    page = click(page, "finish")
    (written,) = app.store.decisions()
    assert written.item == item and Answer("agree") in written.answers.values()
