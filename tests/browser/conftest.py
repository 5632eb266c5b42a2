"""A real browser before a real server: Debian's Chromium, driven by Playwright, and ``streamlit run`` in a process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.watched import SCREEN
from tests.small_run import SmallRun, small_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

# A container's root has no sandbox and little shared memory; nothing here needs a proxy or a graphics card.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server", "--disable-gpu"]
REPOSITORY = Path(__file__).resolve().parents[2]
PAGES, LOGS = pytest.StashKey["list[Page]"](), pytest.StashKey[list[Path]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure is told with what stood on the pages and what the servers wrote: it may not come again."""
    report = yield
    if report.when == "call" and report.failed:
        for page in item.stash.get(PAGES, []):
            from playwright.sync_api import Error

            try:
                report.sections.append((page.url, page.inner_text("body", timeout=5_000)))
            except Error as error:  # the page may be what broke
                report.sections.append((page.url, f"cannot be read: {error}"))
        report.sections += [(str(log), log.read_text()[-5_000:]) for log in item.stash.get(LOGS, [])]
    return report


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def new_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """Opens a page in a context of its own (no cookies, no cache) with a colour scheme and further options of the context."""
    contexts: list[BrowserContext] = []

    def open_page(scheme: str = "light", **options: Any) -> Page:
        made = browser.new_context(viewport=SCREEN, color_scheme=scheme, accept_downloads=True, **options)  # type: ignore[arg-type]
        contexts.append(made)
        page = made.new_page()
        request.node.stash.setdefault(PAGES, []).append(page)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run keeps its pictures: ``VITDOMAINS_SCREENSHOTS``, else a temporary folder."""
    given = os.environ.get("VITDOMAINS_SCREENSHOTS", "")
    folder = Path(given) if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Serve:
    """Starts apps, each in a process of its own; all are stopped at the end."""

    def __init__(self, folder: Path, logs: list[Path]) -> None:
        self._folder, self._logs = folder, logs
        self._servers: dict[str, tuple[subprocess.Popen[bytes], list[str]]] = {}

    def __call__(self, script: str, *words: str | Path) -> str:
        """Start an app; its address."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        run_ = [
            sys.executable,
            "-m",
            "streamlit",
            "run",
            REPOSITORY / "apps" / script,
            "--server.port",
            port,
            "--",
            *words,
        ]
        address = f"http://localhost:{port}"
        self._start(address, [str(word) for word in run_])
        return address

    def kill(self, address: str) -> None:
        """End a server as a power cut does."""
        server, _ = self._servers[address]
        server.kill()
        server.wait(20)

    def again(self, address: str) -> None:
        """Start a server that was killed, at the same address."""
        self._start(address, self._servers[address][1])

    def _start(self, address: str, command: list[str]) -> None:
        log = self._folder / f"server{len(self._logs)}.log"
        self._logs.append(log)
        with log.open("wb") as stream:
            server = subprocess.Popen(command, cwd=self._folder, stdout=stream, stderr=subprocess.STDOUT)
        self._servers[address] = server, command
        until = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < until, log.read_text()
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)

    def stop(self) -> None:
        """End all servers."""
        for server, _ in self._servers.values():
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Start an app and give its address; every server that was started is stopped at the end."""
    pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'vitdomains[apps]'")
    made = Serve(tmp_path, request.node.stash.setdefault(LOGS, []))
    yield made
    made.stop()
