"""The chest film app over phantoms, without a browser: one worklist for all tests, a store of its own for each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.small_run import SmallRun, small_run
from vitdomains.core.review.store import ReviewStore

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'vitdomains[apps]'")

from streamlit import config
from streamlit.testing.v1 import AppTest

from apps.films.session import open_worklist
from apps.films.worklist import Worklist

SCRIPT = Path(__file__).resolve().parents[2] / "apps" / "cxr_review.py"


@dataclass
class App:
    """How a test starts the app."""

    run_: SmallRun
    cache: Path
    url: str
    monkeypatch: pytest.MonkeyPatch
    words: list[str] = field(default_factory=list)

    def arguments(self, *words: str, studies: Path | None = None, bundle: Path | None = None) -> None:
        given = ["--bundle", bundle or self.run_.bundle, "--studies", studies or self.run_.films, "--store", self.url]
        given += ["--cache", self.cache, "--reviewer", "ann", "--threads", "1", *words]
        self.monkeypatch.setattr(sys, "argv", ["cxr_review.py", *map(str, given)])

    def open(self, *words: str, **params: str) -> AppTest:
        """A fresh page, as after a reload."""
        self.arguments(*words)
        return self.page(**params)

    def page(self, **params: str) -> AppTest:
        made = AppTest.from_file(str(SCRIPT), default_timeout=60)
        for key, value in params.items():
            made.query_params[key] = value
        return made.run()

    @property
    def store(self) -> ReviewStore:
        return ReviewStore(self.url)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("review_cache")


@pytest.fixture(scope="session")
def worklist(run: SmallRun, cache: Path) -> Worklist:
    """The worklist of all films, read to its end."""
    made = open_worklist(run.bundle, run.films, cache, 1)
    finish(made)
    return made


def finish(worklist: Worklist, seconds: float = 120.0) -> None:
    """Wait until everything is read."""
    until = time.monotonic() + seconds
    while worklist.progress.running:
        assert time.monotonic() < until, worklist.progress
        time.sleep(0.05)


@pytest.fixture
def app(
    run: SmallRun, cache: Path, worklist: Worklist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[App]:
    before = config.get_option("server.address")
    config.set_option("server.address", "localhost")
    yield App(run, cache, f"sqlite:///{tmp_path / 'reviews.db'}", monkeypatch)
    config.set_option("server.address", before)


Listen = Callable[[str], None]


@pytest.fixture
def listen_at(app: App) -> Listen:
    """Set the address at which the server seems to listen."""
    return lambda address: config.set_option("server.address", address)
