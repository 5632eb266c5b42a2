"""Hash chain of rows that can be added and never changed, in SQLite or PostgreSQL, and the check that nobody did.

Every row carries the sha256 of its own content and of the row before, after the linked time-stamping of Haber and
Stornetta 1991 (How to time-stamp a digital document, J. Cryptology 3, section 5.1). The databases refuse UPDATE and DELETE
by triggers; the chain shows whoever went around them. What no chain inside a database can show is that somebody rewrote
everything from some row on, hashes and all: against that, keep a head (``ReviewStore.heads``) elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, insert, inspect, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError

from vitdomains.core.review.schema import CHAINS, HEADS, SCHEMA_VERSION, ReviewError, metadata

GENESIS = "0" * 64
LOCK_SECONDS = 120.0
"""How long a writer waits for its turn."""
_SQLITE_TRIGGERS = """
CREATE TRIGGER {table}_no_{what} BEFORE {what} ON {table}
BEGIN SELECT RAISE(ABORT, 'rows of {table} are never changed'); END
"""
_POSTGRES_FUNCTION = """
CREATE OR REPLACE FUNCTION review_refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'rows of % are never changed', TG_TABLE_NAME; END $$
"""
_POSTGRES_TRIGGER = """
CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION review_refuse()
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """The last row of a chain: its number (0: none yet) and hash."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """The inverse of ``str``.

        Raises:
            ReviewError: The text is no head.
        """
        seq, _, digest = text.strip().partition(":")
        if not seq.isdecimal() or len(digest) != 64:
            raise ReviewError(f"{text!r:.90} is no head of a chain.", hint="Give it as verify printed it: SEQ:HASH.")
        return cls(int(seq), digest)


def canonical(value: Any) -> str:
    """JSON with one spelling for one value: sorted keys, no blanks, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def row_hash(row: Mapping[str, Any]) -> str:
    """sha256 over all columns of a row but its own hash; ``previous`` is one of them."""
    return hashlib.sha256(canonical({key: row[key] for key in row if key != "hash"}).encode()).hexdigest()


def open_engine(url: str, *, make: bool = True) -> Engine:
    """An engine for ``sqlite:///FILE`` or ``postgresql://...`` (psycopg 3).

    Raises:
        ReviewError: The URL is no database of these kinds, or its driver is not installed; there is no such file, and none is
            to be made.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        kind = parsed.get_backend_name()
        if kind not in ("sqlite", "postgresql") or (kind == "sqlite" and parsed.database in (None, "", ":memory:")):
            raise ReviewError(
                f"{parsed.render_as_string(hide_password=True)} is no store of reviews.",
                hint="Use sqlite:///reviews.db or postgresql://USER@HOST/DATABASE.",
            )
        if kind == "sqlite" and not make and not Path(str(parsed.database)).is_file():
            raise ReviewError(f"There is no store {url}.", hint="Give --store as the app that wrote it got it.")
        if kind == "sqlite":
            # Waiting is the database's, in turns among processes; within a process writers queue before (see appended).
            engine = create_engine(parsed, connect_args={"timeout": LOCK_SECONDS})
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        return create_engine(parsed, pool_size=8, max_overflow=8, pool_timeout=LOCK_SECONDS, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ReviewError(
            "The store is given by no database URL.",
            hint="Use sqlite:///reviews.db or postgresql://USER@HOST/DATABASE.",
        ) from error
    except ImportError as error:
        raise ReviewError(
            f"The database driver is not installed ({error.name}).", hint="Run: pip install 'vitdomains[postgres]'."
        ) from error


def _configure_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says, not where the driver guesses
    connection.execute("PRAGMA journal_mode=WAL")  # readers never wait for the writer
    connection.execute("PRAGMA synchronous=FULL")  # a decision that was confirmed survives a power cut


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then wants to write may fail at once, without waiting: writers lock at the start.
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Errors of the database as ours."""
    try:
        yield
    except SQLAlchemyError as error:
        where = engine.url.render_as_string(hide_password=True)
        # The driver's words only: SQLAlchemy adds the statement with its values, which are nobody's business in a log.
        reason = str(error.orig if isinstance(error, DBAPIError) else error).strip().split("\n")[0]
        hint = "Check that the folder can be written, or the server can be reached, and try again."
        if not isinstance(error, OperationalError):
            hint = "Run verify on the store; if it is of an older version, export it and start a new one."
        raise ReviewError(f"The store {where} failed: {reason}", hint=hint) from error


def create(engine: Engine) -> None:
    """Make tables, heads and triggers where they are absent.

    Raises:
        ReviewError: The store was written by another version.
    """
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7236583)"))  # two apps may start at the same moment
        fresh = not inspect(connection).has_table(HEADS.name)
        metadata.create_all(connection)
        if fresh:
            heads = [{"chain": t.name, "seq": 0, "hash": GENESIS, "version": SCHEMA_VERSION} for t in CHAINS]
            connection.execute(insert(HEADS), heads)
            _refuse_changes(connection)
        versions = set(connection.scalars(select(HEADS.c.version)))
        if versions != {SCHEMA_VERSION}:
            raise ReviewError(
                f"The store has schema version {sorted(versions)}, this version writes {SCHEMA_VERSION}.",
                hint="Install the vitdomains version that wrote it, or start a new store.",
            )


def _refuse_changes(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(_POSTGRES_FUNCTION))
    for table in CHAINS:
        if connection.dialect.name == "postgresql":
            connection.execute(text(_POSTGRES_TRIGGER.format(table=table.name)))
        else:
            for what in ("UPDATE", "DELETE"):
                connection.execute(text(_SQLITE_TRIGGERS.format(table=table.name, what=what)))


def append(engine: Engine, turn: threading.Lock, table: Table, rows: Sequence[Row]) -> list[int]:
    """Add rows to the end of a chain in one transaction; one whose token is there already is not written again.

    Returns:
        The number of each row.
    """
    with translated(engine), turn, engine.connect().execution_options(writing=True) as connection, connection.begin():
        # PostgreSQL: whoever holds this row may append. SQLite holds the whole file since BEGIN IMMEDIATE.
        at = connection.execute(select(HEADS).where(HEADS.c.chain == table.name).with_for_update()).one()
        seq, previous = at.seq, at.hash
        tokens = [row["token"] for row in rows]
        there = select(table.c.token, table.c.seq).where(table.c.token.in_(tokens))
        known = {row.token: row.seq for row in connection.execute(there)}
        fresh: list[Row] = []
        for row in rows:
            if row["token"] in known:
                continue
            seq += 1
            full = {
                **row,
                "seq": seq,
                "time": datetime.now(UTC).isoformat(timespec="microseconds"),
                "previous": previous,
            }
            previous = full["hash"] = row_hash(full)
            known[row["token"]] = seq
            fresh.append(full)
        if fresh:
            connection.execute(insert(table), fresh)
            connection.execute(update(HEADS).where(HEADS.c.chain == table.name).values(seq=seq, hash=previous))
        return [known[token] for token in tokens]


def read_heads(connection: Connection) -> dict[str, Head]:
    """Chain name to its head."""
    return {row.chain: Head(row.seq, row.hash) for row in connection.execute(select(HEADS))}


def check_chain(
    connection: Connection, table: Table, known: Head | None, on_progress: Callable[[str, int, int], None]
) -> Head:
    """Walk one chain from its first row to its last and return its head.

    Raises:
        ReviewError: Naming the first row that was edited, inserted, removed or moved; or the head, where the last rows are
            missing; or a head that was kept elsewhere, where it is not in this chain.
    """
    head = read_heads(connection).get(table.name)
    last = Head(0, GENESIS)
    met = known is None or known == last
    rows = connection.execute(select(table).order_by(table.c.seq), execution_options={"yield_per": 1000})
    for row in rows.mappings():
        if row["seq"] != last.seq + 1:
            raise _broken(table, last.seq + 1, f"is missing; the next one is row {row['seq']}")
        if row["previous"] != last.hash:
            raise _broken(table, row["seq"], "does not follow the row before it")
        if row_hash({**row}) != row["hash"]:
            raise _broken(table, row["seq"], "was changed after it was written")
        last = Head(row["seq"], row["hash"])
        met = met or known == last
        on_progress(table.name, last.seq, head.seq if head else last.seq)
    if head != last:
        raise _broken(table, last.seq + 1, f"is missing: the store's head is {head}, its last row {last}")
    if not met:
        raise _broken(table, known.seq if known else 0, "is not the row whose head was kept elsewhere")
    return last


def _broken(table: Table, seq: int, what: str) -> ReviewError:
    return ReviewError(
        f"{table.name}: row {seq} {what}.",
        hint="Do not use this store; restore it from a backup and find out who wrote to it.",
    )
