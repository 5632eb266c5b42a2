"""What a reader waits for in the chest film app, in a real browser: the worklist, the next film, its heat map.

    python benchmarks/review_app.py                             # 10,000 films, 20 repeats; 21 GB of temporary disk
    python benchmarks/review_app.py --studies 200 --repeats 3   # a try
    python benchmarks/review_app.py --folder F --prepare        # make the films only; a later call with the same folder uses them

The model is a ViT-S/16 at 384 px with random weights, the films are phantoms, 64 drawn and the rest copies of them with
patient and UIDs of their own, so that every film has a hash of its own; neither changes the time. The probabilities are in
the app's cache before it starts: the app's own worklist reads and scores the drawn films, and a copy, whose pixels are the
same, gets their rows with its own hash. The app checks size and time of every file against that cache, as after any restart.

Timed by the browser's own clock, frame by frame, with Debian's Chromium; server warm, one reader, SQLite:
``worklist``: from the navigation of a browser with an empty cache until the rows of the list are drawn.
``next``: from the key ``n``, which saves a decision and goes on, until film and heat map are painted; the reader has looked
at the film before for ``--dwell`` seconds, in which the app may prepare the next one.
``back``: the same for the key ``Left``, pressed as soon as the map is painted, from places of the list far apart; the app
prepares the film after that in the same direction, but only while the reader stays.
``link``: from the navigation to a random film's address, in a browser that has the page's code.
A target is met where the 90th percentile is under it. Writes ``review_app.json``. Run it alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness import RESULTS, environment, require, write_result
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.review_app_films import MODEL, PIXELS, prepare
from vitdomains.bench.timing import summary
from vitdomains.core.process import physical_cores

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

REPOSITORY = Path(__file__).resolve().parents[1]
# A container's root has no sandbox and little shared memory; nothing here needs a proxy or a graphics card.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--no-proxy-server", "--disable-gpu"]
SCREEN = {"width": 1366, "height": 768}
PATIENCE = 120_000  # milliseconds
TARGETS = {
    "worklist: list": 2.0,
    "next: film": 0.5,
    "next: heat map": 2.0,
    "back: film": 0.5,
    "back: heat map": 2.0,
}
"""Seconds that this package promises."""
STRIDE = 5  # steps back from one place of the list; then the next place

# Looks at every frame. The viewer stands in a shadow root; `painted` names the film on the canvas, `heat` begins with the
# first 16 digits of the film that the map belongs to.
WATCH = """
window.watch = (start, before) => {
  const at = (window.timing = {});
  const find = (mark, root) => root.querySelector(mark)
    ?? [...root.querySelectorAll("*")].map((e) => e.shadowRoot && find(mark, e.shadowRoot)).find(Boolean);
  let viewer = null;
  const look = () => {
    if (window.timing !== at) return;
    if (!at.list && find("[data-rows][data-count]", document)) at.list = performance.now() - start;
    if (!viewer?.isConnected) viewer = find("[data-viewer]", document);
    const { film, painted, heat } = viewer?.dataset ?? {};
    if (painted && painted !== before && painted === film) {
      at.film ??= performance.now() - start;
      if (heat?.startsWith(painted.slice(0, 16))) at.heat ??= performance.now() - start;
    }
    if (!at.heat) requestAnimationFrame(look);
  };
  look();
};
window.watchKey = (before) => document.addEventListener("keydown",
  () => window.watch(performance.now(), before), { capture: true, once: true });
if (location.protocol.startsWith("http")) window.watch(0, "");
"""


@contextmanager
def served(folder: Path, threads: int) -> Iterator[str]:
    """The app over the films of ``folder``, and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "streamlit", "run", REPOSITORY / "apps" / "cxr_review.py", "--server.port", port,
        "--server.headless", "true", "--browser.gatherUsageStats", "false", "--", "--bundle", folder / "bundle",
        "--studies", folder / "studies", "--cache", folder / "cache", "--store", f"sqlite:///{folder / 'reviews.db'}",
        "--reviewer", "reader", "--threads", threads,
    ]  # fmt: skip
    address, log = f"http://localhost:{port}", folder / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen([str(word) for word in command], cwd=folder, stdout=stream, stderr=stream)
    try:
        until = time.monotonic() + 120
        while True:
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the app did not start:\n{log.read_text()}")
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=5):
                    break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@contextmanager
def opened(browser: Browser) -> Iterator[Page]:
    """A page of a browser that knows nothing yet."""
    context = browser.new_context(viewport=SCREEN)
    context.add_init_script(WATCH)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    yield page
    context.close()


def settled(page: Page) -> None:
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()


def waited(page: Page, *names: str) -> list[float]:
    """Seconds until each of ``list``, ``film``, ``heat``, once the last of them is there."""
    page.wait_for_function(f"window.timing?.{names[-1]}")
    at: dict[str, float] = page.evaluate("window.timing")
    return [at[name] / 1000 for name in names]


def pressed(page: Page, key: str) -> list[float]:
    """Seconds from a key to the film and to its heat map."""
    settled(page)
    page.evaluate("before => window.watchKey(before)", page.locator("[data-viewer]").get_attribute("data-painted"))
    page.keyboard.press(key)
    return waited(page, "film", "heat")


def visit(page: Page, address: str, item: str) -> list[float]:
    """Seconds from the navigation to a film and to its heat map."""
    page.goto(f"{address}/?item={item}", wait_until="commit")
    return waited(page, "film", "heat")


def first_paints(browser: Browser, address: str, repeats: int) -> list[list[float]]:
    """The worklist in browsers with empty caches."""
    found = []
    for _ in range(repeats):
        with opened(browser) as page:
            page.goto(address, wait_until="commit")
            found.append(waited(page, "list"))
            settled(page)
    return found


def next_films(page: Page, address: str, repeats: int, dwell: float) -> list[list[float]]:
    """A reader's round: look, agree with all findings, save and go on."""
    page.goto(address, wait_until="commit")
    page.get_by_role("button", name="Next to read").wait_for()
    settled(page)
    page.keyboard.press("n")
    page.wait_for_function("window.timing?.heat")
    found = []
    for _ in range(repeats + 1):
        page.wait_for_timeout(1000 * dwell)
        settled(page)
        found.append(pressed(page, "Shift+A"))
    return found[1:]


def films_before(page: Page, address: str, items: list[str], repeats: int) -> list[list[float]]:
    """Steps back from places of the list that lie far apart."""
    found: list[list[float]] = []
    for item in items:
        if len(found) >= repeats:
            break
        visit(page, address, item)
        found += [pressed(page, "ArrowLeft") for _ in range(min(STRIDE, repeats - len(found)))]
    return found


def chromium_path() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise SystemExit("Chromium is not installed. Run as root: apt install chromium")
    return found


def measure(folder: Path, items: list[str], args: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds by what was waited for; versions of browser and web packages."""
    from playwright.sync_api import sync_playwright

    draw = random.Random(0)
    # Not at the head of the list, where the round by `n` has been; far enough apart that no step back meets another.
    places = draw.sample(range(len(items) // 2, len(items) - 1), 2 * args.repeats)
    some = [items[at] for at in places]
    with served(folder, args.threads) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        versions = {"chromium": browser.version, **environment(("streamlit", "playwright"))["versions"]}
        with opened(browser) as page:  # warm: the model is loaded, the list is checked
            page.goto(address, wait_until="commit")
            page.get_by_text(f"{len(items):,} of {len(items):,} films in sight").wait_for()
            page.get_by_text("The list grows meanwhile").wait_for(state="detached")
            visit(page, address, items[-1])
            found = {"worklist": first_paints(browser, address, args.repeats)}
            found["next"] = next_films(page, address, args.repeats, args.dwell)
            found["back"] = films_before(page, address, some[args.repeats :], args.repeats)
            found["link"] = [visit(page, address, item) for item in some[: args.repeats]]
        browser.close()
    names = {"worklist": ["list"]}
    seconds = {
        f"{what}: {name}": [row[column] for row in rows]
        for what, rows in found.items()
        for column, name in enumerate(names.get(what, ["film", "heat map"]))
    }
    return seconds, versions


def verdict(row: dict[str, float], target: float | None) -> str:
    if target is None:
        return ""
    if row["p90_s"] < target:
        return "met"
    return "median only" if row["median_s"] < target else "MISSED"


def main() -> None:
    """Make the films, time the app, print the table, write ``results/review_app.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000, help="films of the worklist, 100 or more")
    parser.add_argument(
        "--repeats", type=int, default=20, help="of each thing timed (20 or more for a quotable number)"
    )
    parser.add_argument("--threads", type=int, default=physical_cores(), help="default: one a physical core")
    parser.add_argument("--dwell", type=float, default=2.0, help="seconds that the reader looks at a film before `n`")
    parser.add_argument("--folder", type=Path, help="where the films are made and kept; default: a temporary one")
    parser.add_argument("--prepare", action="store_true", help="make the films in --folder and stop")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    args = parser.parse_args()
    if args.studies < 4 * args.repeats or args.studies < 100:
        parser.error("--studies must be 100 and four times --repeats at least")
    if args.prepare and not args.folder:
        parser.error("--prepare needs --folder")
    if not args.prepare:
        require("playwright", "streamlit")
        chromium_path()
    logging.disable(logging.WARNING)
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        items = prepare(folder, args.studies, args.threads)
        if args.prepare:
            console.print(f"{len(items):,} films are in {folder}")
            return
        for old in folder.glob("reviews.db*"):
            old.unlink()
        seconds, versions = measure(folder, items, args)
    rows = {name: summary(values) for name, values in seconds.items()}
    verdicts = {name: verdict(row, TARGETS.get(name)) for name, row in rows.items()}
    table = Table("seconds", "median", "90 %", "target", "", title=f"{args.studies:,} films, {args.repeats} repeats")
    for name, row in rows.items():
        target = f"{TARGETS[name]:g}" if name in TARGETS else ""
        table.add_row(name, f"{row['median_s']:.2f}", f"{row['p90_s']:.2f}", target, verdicts[name])
    console.print(table)
    settings = {
        "studies": args.studies,
        "film_pixels": PIXELS,
        "model": MODEL,
        "threads": args.threads,
        "dwell_s": args.dwell,
    }
    written = write_result(
        "review_app",
        {**settings, "browser": versions, "promised": TARGETS, "verdicts": verdicts, "seconds": rows,
         "all_seconds": json.loads(json.dumps(seconds), parse_float=lambda text: round(float(text), 3))},
        args.out,
    )  # fmt: skip
    console.print(f"written to {written}")


if __name__ == "__main__":
    main()
