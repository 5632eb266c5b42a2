"""A reviewer's whole working round in a real browser, by mouse and by key, and what the viewer shows, pixel by pixel."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
import pytest

from tests.browser.conftest import Serve
from tests.browser.watched import Watched
from tests.small_run import SmallRun
from vitdomains.core.review.store import ReviewStore

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.timeout(600)


class WatchedFilms(Watched):
    """The chest film app."""

    def viewer(self, **has: str) -> Locator:
        """The viewer, once its data attributes are these."""
        return self.element("viewer", **has)

    def worklist(self, films: int) -> None:
        """Wait until all films are read and the page has settled."""
        self.page.get_by_text(f"{films} of {films} films in sight").wait_for()
        self.page.get_by_text("The list grows meanwhile").wait_for(state="detached")
        self.page.get_by_role("button", name="Next to read").wait_for()
        self.settled()


@pytest.fixture
def watched(new_page: Callable[..., Page]) -> Any:
    def open_page(address: str, path: str = "", scheme: str = "light", **options: Any) -> WatchedFilms:
        made = WatchedFilms(new_page(scheme, **options), address)
        made.goto(path)
        return made

    return open_page


def words(run: SmallRun, folder: Path, *more: str) -> list[str | Path]:
    return ["--bundle", run.bundle, "--studies", run.films, "--store", f"sqlite:///{folder / 'reviews.db'}",
            "--cache", folder / "cache", "--reviewer", "ann", "--threads", "1", *more]  # fmt: skip


def item_of(page: Page) -> str:
    found = re.search(r"[?&]item=([0-9a-f]{64})", page.url)
    assert found, page.url
    return found.group(1)


def drag(page: Page, canvas: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Press, move and release, in shares of the canvas."""
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=6)
    page.mouse.up()


def test_a_row_of_the_list_opens_its_film(serve: Serve, watched: Any, run: SmallRun, tmp_path: Path) -> None:
    seen = watched(serve("cxr_review.py", *words(run, tmp_path)))
    page: Page = seen.page
    seen.worklist(48)
    rows = page.locator("[data-rows] tbody tr")
    for way in ("mouse", "keys"):
        third = rows.nth(2)
        code = third.locator("td").nth(1).inner_text()
        if way == "mouse":
            third.click()
        else:
            rows.first.locator("button").focus()
            for key in ("ArrowDown", "ArrowDown", "Enter"):
                page.keyboard.press(key)
        page.wait_for_url(re.compile("item="))
        assert item_of(page)[:8] == code
        seen.viewer(film=item_of(page), painted=item_of(page))
        if way == "mouse":
            page.go_back()
        else:
            seen.press("Escape")
        rows.first.wait_for()
        assert "item=" not in page.url
        seen.settled()
    page.get_by_label("Status").first.wait_for()
    assert seen.problems == []


def test_a_whole_working_round(serve: Serve, watched: Any, run: SmallRun, tmp_path: Path, screenshots: Path) -> None:
    address = serve("cxr_review.py", *words(run, tmp_path))
    seen = watched(address)
    page: Page = seen.page
    seen.worklist(48)
    page.screenshot(path=screenshots / "cxr_worklist.png")

    # Open the first film with the key for next; film and heat map appear.
    seen.press("n")
    page.wait_for_url(re.compile("item="))
    first = item_of(page)
    viewer = seen.viewer(film=first, painted=first)
    seen.viewer(heat="")
    assert page.get_by_text("Research use only").is_visible() and page.get_by_text("Adebayo et al. 2018").is_visible()
    page.screenshot(path=screenshots / "cxr_reading.png")

    # Window by drag, by preset, invert by key; the canvas follows.
    canvas = viewer.locator("canvas").first
    before = viewer.get_attribute("data-window")
    drag(page, canvas, (0.4, 0.4), (0.6, 0.5))
    seen.viewer(painted=first)
    assert viewer.get_attribute("data-window") != before
    page.keyboard.press("1")
    seen.viewer(window=before)
    page.keyboard.press("i")
    assert viewer.locator('[data-do="invert"]').get_attribute("aria-pressed") == "true"
    page.screenshot(path=screenshots / "cxr_inverted.png")
    page.keyboard.press("i")

    # Heat map off and on, contour, another method.
    page.keyboard.press("m")
    assert viewer.locator('[data-do="heat"]').get_attribute("aria-pressed") == "false"
    page.keyboard.press("m")
    viewer.locator("[data-contour]").check()
    viewer.locator("[data-colours]").select_option("viridis")
    key = viewer.get_attribute("data-heat")
    canvas.focus()
    seen.press("ArrowDown")  # the next finding has a map of its own
    page.wait_for_url(re.compile("heat="))
    page.locator(f'[data-viewer]:not([data-heat="{key}"])').wait_for()
    page.screenshot(path=screenshots / "cxr_contour.png")

    # Mark a box, answer one finding by mouse and one by key, write a note, save and go on.
    page.keyboard.press("b")
    drag(page, canvas, (0.45, 0.3), (0.55, 0.5))
    viewer.locator("[data-marks] button").wait_for()
    page.get_by_role("radio", name="Agree", exact=True).first.click()
    page.get_by_role("radio", checked=True).first.wait_for()
    seen.press("ArrowDown")  # what was answered is in focus, with its map
    page.wait_for_timeout(300)
    seen.press("u")
    page.get_by_role("radio", checked=True).nth(1).wait_for()
    note = page.get_by_label("Note")
    note.fill("line seen; n and i are letters here")
    note.press("Tab")
    seen.press("n")
    page.get_by_text("have no answer").wait_for()
    seen.press("n")
    page.get_by_text("Saved as decision 1").wait_for()
    page.wait_for_function("first => !location.href.includes(first)", arg=first)
    second = item_of(page)
    seen.viewer(film=second)

    with ReviewStore(f"sqlite:///{tmp_path / 'reviews.db'}") as store:
        (written,) = store.decisions()
        store.verify()
    assert written.item == first and written.reviewer == "ann" and written.seconds > 0
    assert sorted(a.verdict for a in written.answers.values()) == ["agree", "unsure"]
    assert written.note == "line seen; n and i are letters here"
    (region,) = written.regions
    assert region.kind == "box" and region.width > 2 and region.height > 2 and region.subject in written.calls

    # A reload, and a shared link in another browser, open the same film; the decision is there.
    page.goto(f"{address}/?item={first}")
    seen.viewer(film=first)
    page.get_by_role("radio", checked=True).nth(1).wait_for()
    page.reload()
    viewer = seen.viewer(film=first)
    viewer.locator("[data-marks] button").wait_for()
    page.screenshot(path=screenshots / "cxr_reloaded.png")

    # Side by side, then back to the list by key.
    seen.press("s")
    assert viewer.locator("canvas").nth(1).is_visible()
    page.screenshot(path=screenshots / "cxr_side_by_side.png")
    seen.press("Escape")
    page.get_by_text("1 read by you").wait_for()

    # Export.
    page.goto(f"{address}/?show=team")
    with page.expect_download() as download:
        page.get_by_role("button", name="Decisions as CSV (1)").click()
    path = tmp_path / "export.csv"
    download.value.save_as(path)
    exported = pd.read_csv(path)
    assert exported["item"].tolist() == [first] and len(json.loads(exported["regions"].iloc[0])) == 1
    page.screenshot(path=screenshots / "cxr_team.png")
    assert seen.problems == []


def test_the_canvas_shows_the_grey_levels_of_the_file(
    serve: Serve, watched: Any, run: SmallRun, tmp_path: Path
) -> None:
    """One film pixel on one screen pixel, without heat map: what is on the screen is what the package computes."""
    from vitdomains.core.files import file_sha256
    from vitdomains.cxr.film.film import read_film

    folder = tmp_path / "one"
    folder.mkdir()
    source = sorted(run.films.glob("*.dcm"))[1]
    (folder / "film.dcm").write_bytes(source.read_bytes())
    address = serve("cxr_review.py", "--bundle", run.bundle, "--studies", folder, "--store", f"sqlite:///{tmp_path / 'r.db'}",
                    "--cache", tmp_path / "cache", "--threads", "1")  # fmt: skip
    item = file_sha256(source)
    seen = watched(address)
    seen.worklist(1)
    seen.page.goto(f"{address}/?item={item}")
    viewer = seen.viewer(film=item, painted=item)
    seen.page.keyboard.press("m")
    seen.page.keyboard.press("f")
    expected = np.rint(255 * read_film(source).pixels)
    canvas = viewer.locator("canvas").first

    def middle() -> np.ndarray[Any, Any]:
        data = canvas.evaluate("c => c.toDataURL('image/png').split(',')[1]")
        import base64

        shown = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[:, :, 0]
        top, left = (shown.shape[0] - expected.shape[0]) // 2, (shown.shape[1] - expected.shape[1]) // 2
        return shown[top : top + expected.shape[0], left : left + expected.shape[1]].astype(float)

    seen.page.wait_for_timeout(500)
    best = min(
        np.abs(np.roll(middle(), shift, (0, 1))[2:-2, 2:-2] - expected[2:-2, 2:-2]).mean()
        for shift in ((0, 0), (0, 1), (1, 0), (1, 1), (-1, 0), (0, -1), (-1, -1))
    )
    assert best < 2.0  # half-pixel positions of an odd canvas blur a little
    seen.page.keyboard.press("i")
    seen.page.wait_for_timeout(300)
    assert abs((255 - middle()).mean() - expected.mean()) < 3
    assert seen.problems == []


def test_blinded_and_dark_and_by_the_keyboard_alone(
    serve: Serve, watched: Any, run: SmallRun, tmp_path: Path, screenshots: Path
) -> None:
    address = serve("cxr_review.py", *words(run, tmp_path, "--blinded"))
    seen = watched(address, scheme="dark")
    page: Page = seen.page
    seen.worklist(48)
    page.screenshot(path=screenshots / "cxr_blinded_worklist_dark.png")
    seen.press("n")
    page.wait_for_url(re.compile("item="))
    first = item_of(page)
    viewer = seen.viewer(film=first)
    assert viewer.locator("[data-heatbar]").is_hidden()
    assert "called" not in (page.locator("body").text_content() or "")
    seen.press("p")  # present
    page.get_by_role("radio", checked=True).first.wait_for()
    # A point under the cross, without a mouse, and at once the key that saves: both come in one request of the viewer.
    page.keyboard.press("k")
    viewer.locator("canvas").first.focus()
    page.keyboard.press("Shift+ArrowRight")
    seen.settled()
    viewer.locator("canvas").first.evaluate(
        """canvas => { for (const [key, code] of [["Enter", "Enter"], ["n", "KeyN"]])
            canvas.dispatchEvent(new KeyboardEvent("keydown", {key, code, bubbles: true, composed: true})); }"""
    )
    viewer.locator("[data-marks] button").wait_for()
    page.get_by_text("have no answer").wait_for()
    seen.press("n")
    page.get_by_text("Saved as decision 1").wait_for()
    page.get_by_text(re.compile("called")).first.wait_for()
    assert item_of(page) == first
    seen.viewer(heat="")
    page.screenshot(path=screenshots / "cxr_revealed_dark.png")
    seen.press("n")
    page.wait_for_function("first => !location.href.includes(first)", arg=first)
    with ReviewStore(f"sqlite:///{tmp_path / 'reviews.db'}") as store:
        (written,) = store.decisions()
    assert written.blinded and [a.label for a in written.answers.values()] == ["present"]
    (region,) = written.regions
    assert region.kind == "point"
    assert seen.problems == []
