"""Keys in rhythm, two tabs, a killed server, Esc in a field: what was decided stands under the item that was on the screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import Serve
from tests.browser.test_cxr_review import WatchedFilms
from tests.browser.test_cxr_review import words as film_words
from tests.browser.test_satellite_review import WatchedMap, item_of, words
from tests.small_map import CLASSES, SmallMap, small_map
from tests.small_run import SmallRun
from vitdomains.core.review.agreement import resolved
from vitdomains.core.review.store import Decision, ReviewStore

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(600)
RHYTHM = 250  # milliseconds from key to key


@pytest.fixture(scope="session")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> SmallMap:
    return small_map(tmp_path_factory)


def decisions(folder: Path) -> list[Decision]:
    with ReviewStore(f"sqlite:///{folder / 'reviews.db'}") as store:
        store.verify()
        return store.decisions()


def on_screen(page: Page) -> str:
    return str(page.evaluate("document.documentElement.dataset.vdItem ?? ''"))


def wait_for(page: Page, folder: Path, count: int) -> list[Decision]:
    for _ in range(240):
        found = decisions(folder)
        if len(found) >= count:
            break
        page.wait_for_timeout(250)
    return found


def test_thirty_tiles_by_key_in_rhythm(
    serve: Serve, new_page: Callable[..., Page], mapped: SmallMap, tmp_path: Path
) -> None:
    address = serve("satellite_review.py", *words(mapped, tmp_path))
    seen = WatchedMap(new_page(), address)
    page = seen.page
    seen.goto()
    seen.map(painted="map")
    seen.press("n")
    page.wait_for_url(re.compile("item="))
    seen.map(item=item_of(page), painted=item_of(page))
    seen.settled()
    meant: dict[str, str] = {}
    for n in range(30):
        item = on_screen(page)
        for _ in range(200):  # the browser goes on by itself for some tiles; a slower server is waited for after those
            if item not in meant and page.locator("[data-map]").get_attribute("data-item") == item:
                break  # the map shows what the key is for
            page.wait_for_timeout(100)
            item = on_screen(page)
        assert item not in meant
        meant[item] = CLASSES[n % len(CLASSES)]
        page.keyboard.press(str(n % len(CLASSES) + 1))
        page.wait_for_timeout(RHYTHM)
    written = wait_for(page, tmp_path, 30)
    said = {d.item: resolved(d.answers["label"], d.calls.get("label", "")) for d in written}
    assert said == meant and len(written) == 30
    page.wait_for_timeout(1000)
    assert len(decisions(tmp_path)) == 30, "nothing is written twice"
    # The last one is taken back by the button beside the message.
    seen.settled()
    page.locator("[data-message] button").click()
    assert wait_for(page, tmp_path, 31)[-1].answers == {}
    assert seen.problems == []


def test_the_same_tile_in_two_tabs(
    serve: Serve, new_page: Callable[..., Page], mapped: SmallMap, tmp_path: Path
) -> None:
    address = serve("satellite_review.py", *words(mapped, tmp_path))
    tabs = [WatchedMap(new_page(), address) for _ in range(2)]
    tabs[0].goto()
    tabs[0].map(painted="map")
    tabs[0].press("n")
    tabs[0].page.wait_for_url(re.compile("item="))
    item = item_of(tabs[0].page)
    tabs[1].goto(f"/?item={item}")
    for tab in tabs:
        tab.map(item=item, painted=item)
        tab.settled()
    tabs[0].page.keyboard.press("1")
    wait_for(tabs[0].page, tmp_path, 1)
    tabs[1].page.keyboard.press("2")
    tabs[1].page.get_by_text("Set aside").wait_for()
    (written,) = decisions(tmp_path)
    assert written.item == item and resolved(written.answers["label"], written.calls["label"]) == CLASSES[0]
    tabs[1].settled()
    tabs[1].page.keyboard.press("2")  # now it is a correction, of what is on the screen
    assert len(wait_for(tabs[1].page, tmp_path, 2)) == 2


def test_keys_belong_to_the_field_in_which_one_types(
    serve: Serve, new_page: Callable[..., Page], run: SmallRun, tmp_path: Path
) -> None:
    address = serve("cxr_review.py", *film_words(run, tmp_path))
    seen = WatchedFilms(new_page(), address)
    page = seen.page
    seen.goto()
    seen.worklist(48)
    page.get_by_label("Status").first.click()
    page.keyboard.press("Escape")
    page.get_by_label("Film").first.fill("n")
    page.keyboard.press("Escape")
    seen.settled()
    assert "item=" not in page.url
    page.goto(address)
    seen.worklist(48)
    seen.press("n")
    page.wait_for_url(re.compile("item="))
    item = item_of(page)
    seen.viewer(film=item)
    note = page.get_by_label("Note")
    note.fill("n, a, z and Esc are letters and an end of writing here")
    page.keyboard.press("Escape")
    seen.settled()
    assert item_of(page) == item
    page.reload()  # at once: the browser still has what the server may not have
    seen.viewer(film=item)
    assert page.get_by_label("Note").input_value() == "n, a, z and Esc are letters and an end of writing here"
    assert decisions(tmp_path) == []
    assert [p for p in seen.problems if "WebSocket" not in p] == []


def test_a_printed_film_keeps_its_shape(
    serve: Serve, new_page: Callable[..., Page], run: SmallRun, tmp_path: Path
) -> None:
    address = serve("cxr_review.py", *film_words(run, tmp_path))
    seen = WatchedFilms(new_page(), address)
    page: Any = seen.page
    seen.goto()
    seen.worklist(48)
    seen.press("n")
    page.wait_for_url(re.compile("item="))
    seen.viewer(painted=item_of(page))
    page.emulate_media(media="print")
    page.wait_for_timeout(500)
    shape = page.locator("[data-viewer] canvas").first.evaluate(
        "c => [c.clientWidth / c.clientHeight, c.width / c.height]"
    )
    assert shape[0] == pytest.approx(shape[1], rel=0.02)
