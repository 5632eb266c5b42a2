"""The store of reviews: what goes in comes out, nothing is lost, and no change goes unnoticed, in both databases."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.postgres import postgres_programs, running_postgres
from vitdomains.core.review.store import Answer, Assignment, Decision, Head, Region, ReviewError, ReviewStore, deal


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (no initdb on the PATH or under /usr/lib/postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with running_postgres(programs) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'reviews.db'}"
    server: str = request.getfixturevalue("postgres")
    name = f"t{abs(hash(tmp_path))}"
    admin = create_engine(server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def store(url: str) -> Iterator[ReviewStore]:
    with ReviewStore(url) as opened:
        yield opened


def decision(item: str = "a" * 64, reviewer: str = "ann", **changes: object) -> Decision:
    made = Decision(
        item=item,
        bundle_id="b" * 16,
        reviewer=reviewer,
        answers={"Mass": Answer("agree"), "Edema": Answer("label", "present"), "Hernia": Answer("unsure")},
        probabilities={"Mass": 0.1 + 0.2, "Edema": float("nan"), "Hernia": 1e-300},
        calls={"Mass": "present", "Edema": "absent", "Hernia": "absent"},
        regions=(Region("box", 10.5, 3.25, 100.0, 7.0, "Mass"), Region("point", 1.0, 2.0)),
        note="zweite Lesung: größer?\n胸水 'quoted'; DROP TABLE",
        seconds=12.345678901234567,
        blinded=True,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_decision_comes_out_as_it_went_in(store: ReviewStore) -> None:
    written = decision()
    assert store.add(written) == [1]
    (read,) = store.decisions()
    assert np.isnan(read.probabilities["Edema"])
    same = {**read.probabilities, "Edema": 0.0}
    assert replace(read, probabilities=same) == replace(written, probabilities={**written.probabilities, "Edema": 0.0})
    store.verify()


def test_a_correction_is_another_row(store: ReviewStore) -> None:
    store.add(decision())
    store.add(decision(answers={"Mass": Answer("disagree")}, note=""))
    first, second = store.decisions(reviewer="ann")
    assert first.answers["Mass"].verdict == "agree" and second.answers["Mass"].verdict == "disagree"
    assert store.decisions(item="other") == [] and store.count() == 2
    assert list(store.table(since=1)["seq"]) == [2]


def test_the_same_act_is_written_once(store: ReviewStore) -> None:
    act = decision()
    assert store.add(act) == [1]
    assert store.add(decision(), act) == [2, 1]
    assert store.count() == 2
    store.verify()


def test_all_or_nothing(store: ReviewStore) -> None:
    class Broken(dict[str, str]):
        def items(self):  # type: ignore[no-untyped-def]
            raise RuntimeError("half way")

    good, bad = decision(), decision()
    object.__setattr__(bad, "answers", Broken())
    with pytest.raises(RuntimeError):
        store.add(good, bad)
    assert store.count() == 0


def test_control_characters_and_lone_surrogates_do_not_reach_the_database(store: ReviewStore) -> None:
    store.add(decision(note="a\x00b\ud800c\n\td"))
    assert store.decisions()[0].note == "abc\n\td"
    with pytest.raises(ReviewError, match="reviewer"):
        decision(reviewer="ann\x00")


@pytest.mark.parametrize(
    "changes",
    [
        {"item": ""},
        {"role": "admin"},
        {"seconds": float("nan")},
        {"seconds": -1.0},
        {"note": "x" * 10_001},
        {"calls": {}},
        {"reviewer": "x" * 201},
    ],
)
def test_an_impossible_decision_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ReviewError) as caught:
        decision(**changes)
    assert caught.value.hint


def test_impossible_answers_and_regions_are_refused() -> None:
    for verdict, label in (("agree", "Mass"), ("label", ""), ("maybe", "")):
        with pytest.raises(ReviewError):
            Answer(verdict, label)  # type: ignore[arg-type]
    for box in ((1.0, 2.0, 0.0, 3.0), (float("inf"), 0.0, 1.0, 1.0)):
        with pytest.raises(ReviewError):
            Region("box", *box)


def test_the_database_itself_refuses_changes(store: ReviewStore, url: str) -> None:
    store.add(decision(), decision())
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    for statement in ("UPDATE review_decisions SET note = ''", "DELETE FROM review_decisions"):
        with pytest.raises(DBAPIError, match="never changed"), engine.begin() as connection:
            connection.execute(text(statement))
    engine.dispose()


TAMPERING = {
    "edit": ("UPDATE review_decisions SET note = 'other' WHERE seq = 3", "row 3 was changed"),
    "edit of an answer": (
        'UPDATE review_decisions SET answers = \'{"Mass":["disagree",""]}\' WHERE seq = 2',
        "row 2 was changed",
    ),
    "edit of the time": ("UPDATE review_decisions SET time = '2001' WHERE seq = 5", "row 5 was changed"),
    "deletion in the middle": ("DELETE FROM review_decisions WHERE seq = 4", "row 4 is missing"),
    "deletion of the first": ("DELETE FROM review_decisions WHERE seq = 1", "row 1 is missing"),
    "deletion of the last": ("DELETE FROM review_decisions WHERE seq = 6", "row 6 is missing"),
    "deletion of all": ("DELETE FROM review_decisions", "row 1 is missing"),
    "insertion at the end": (
        "INSERT INTO review_decisions SELECT 7, 't', time, item, bundle_id, reviewer, role, answers, probabilities, calls,"
        " regions, note, seconds, blinded, hash, hash FROM review_decisions WHERE seq = 6",
        "row 7 was changed",
    ),
    "insertion at the start": (
        "INSERT INTO review_decisions SELECT 0, 't', time, item, bundle_id, reviewer, role, answers, probabilities, calls,"
        " regions, note, seconds, blinded, previous, hash FROM review_decisions WHERE seq = 1",
        "row 1 is missing",
    ),
    "exchange": (
        "UPDATE review_decisions SET seq = CASE seq WHEN 2 THEN -3 WHEN 3 THEN -2 ELSE seq END;"
        "UPDATE review_decisions SET seq = -seq WHERE seq < 0",
        "row 2 does not follow",
    ),
    "edit of an assignment": (
        "UPDATE review_assignments SET reviewer = 'eve'",
        "review_assignments: row 1 was changed",
    ),
    "self-granted role": ("UPDATE review_grants SET role = 'admin'", "review_grants: row 1 was changed"),
    "edit of the head": ("UPDATE review_heads SET seq = 5 WHERE chain = 'review_decisions'", "is missing"),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_verify_finds(case: str, store: ReviewStore, url: str) -> None:
    store.add(*(decision(item=str(i)) for i in range(6)))
    store.assign([Assignment("1", "ann")], by="root")
    store.grant("ann", "reader", by="root")
    store.verify()
    statements, message = TAMPERING[case]
    tamper(url, statements)
    with pytest.raises(ReviewError, match=message):
        store.verify()


def tamper(url: str, statements: str) -> None:
    """What somebody with full rights over the database can do."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        for table in ("review_decisions", "review_assignments", "review_grants"):
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
            else:
                for what in ("UPDATE", "DELETE"):
                    connection.execute(text(f"DROP TRIGGER {table}_no_{what}"))
        for statement in statements.split(";"):
            connection.execute(text(statement))
    engine.dispose()


def test_a_head_kept_elsewhere_finds_a_chain_that_was_rewritten(url: str, tmp_path: Path) -> None:
    with ReviewStore(url) as store:
        store.add(decision(item="1"), decision(item="2"))
        kept = store.heads()
        store.add(decision(item="3"))
        assert store.verify(kept)["review_decisions"].seq == 3
    with ReviewStore(f"sqlite:///{tmp_path / 'forged.db'}") as forged:
        forged.add(decision(item="1"), decision(item="forged"), decision(item="3"))
        forged.verify()
        with pytest.raises(ReviewError, match="kept elsewhere"):
            forged.verify(kept)
    head = kept["review_decisions"]
    assert Head.parse(str(head)) == head
    with pytest.raises(ReviewError):
        Head.parse("no head")


def test_verify_tells_how_far_it_is(store: ReviewStore) -> None:
    store.add(*(decision() for _ in range(3)))
    seen: list[tuple[str, int, int]] = []
    store.verify(on_progress=lambda *args: seen.append(args))
    assert seen == [("review_decisions", i, 3) for i in (1, 2, 3)]


def test_writers_in_many_threads_lose_nothing(store: ReviewStore) -> None:
    writers, each = 12, 15
    start = threading.Barrier(writers)

    def work(number: int) -> None:
        start.wait()
        for i in range(each):
            store.add(decision(item=f"{number}-{i}", reviewer=f"r{number}"))

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(work, range(writers)))
    assert store.verify()["review_decisions"].seq == writers * each
    assert store.table()["item"].nunique() == writers * each


def _write_from_elsewhere(url: str, number: int, each: int) -> None:
    with ReviewStore(url) as store:
        for i in range(each):
            store.add(decision(item=f"{number}-{i}", reviewer=f"r{number}"))


def test_writers_in_many_processes_lose_nothing(url: str) -> None:
    # Also the creation of the tables is raced for.
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_write_from_elsewhere, args=(url, n, 10)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with ReviewStore(url) as store:
        assert store.verify()["review_decisions"].seq == 30
        assert store.table()["item"].nunique() == 30


def test_assignments_hold_until_taken_back(store: ReviewStore) -> None:
    store.assign([Assignment("1", "ann"), Assignment("1", "bob"), Assignment("1", "cleo", "adjudicator")], by="root")
    store.assign([Assignment("1", "bob", active=False)], by="root")
    held = store.assignments()
    assert list(zip(held["reviewer"], held["role"], strict=True)) == [("ann", "reader"), ("cleo", "adjudicator")]
    assert store.assignments("bob").empty and set(held["assigned_by"]) == {"root"}


def test_roles_are_granted_and_taken_back(store: ReviewStore) -> None:
    store.grant("ann", "reader", by="root")
    store.grant("ann", "admin", by="root")
    store.grant("bob", "adjudicator", by="ann")
    store.grant("ann", "admin", by="root", active=False)
    assert store.roles() == {"ann": {"reader"}, "bob": {"adjudicator"}}
    assert store.roles("bob") == {"bob": {"adjudicator"}} and store.roles("eve") == {}
    with pytest.raises(ReviewError):
        store.grant("ann", "king", by="root")  # type: ignore[arg-type]


def test_dealing_is_even_and_mixes_the_pairs() -> None:
    dealt = pd.DataFrame(deal([str(i) for i in range(60)], ["a", "b", "c", "d"], 2, seed=1))
    assert (dealt.groupby("item")["reviewer"].nunique() == 2).all()
    assert set(dealt["reviewer"].value_counts()) == {30}
    pairs = dealt.groupby("item")["reviewer"].apply(lambda r: "".join(sorted(r))).value_counts()
    assert len(pairs) == 6 and pairs.min() >= 3
    assert deal(["1"], ["a", "b"], 1, 5) == deal(["1"], ["a", "b"], 1, 5)
    with pytest.raises(ReviewError, match="2 readers"):
        deal(["1"], ["a", "a"], 2)


def test_a_store_that_cannot_be_opened_says_what_to_do(tmp_path: Path) -> None:
    for bad in ("mysql://x/y", "reviews.db", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ReviewError) as caught:
            ReviewStore(bad)
        assert "sqlite:///reviews.db" in caught.value.hint
    with pytest.raises(ReviewError) as caught:
        ReviewStore(f"sqlite:///{tmp_path / 'absent' / 'reviews.db'}")
    assert "folder" in caught.value.hint
    pytest.importorskip("psycopg")
    with pytest.raises(ReviewError) as caught:
        ReviewStore("postgresql://u:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_or_of_another_version_is_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.db"
    junk.write_bytes(os.urandom(4096))
    with pytest.raises(ReviewError, match="junk"):
        ReviewStore(f"sqlite:///{junk}")
    path = tmp_path / "old.db"
    ReviewStore(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE review_heads SET version = 99")
    with pytest.raises(ReviewError, match="version \\[99\\]"):
        ReviewStore(f"sqlite:///{path}")
