"""A reviewer's whole working round over a mapped scene in a real browser, by mouse and by key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import pandas as pd
import pytest

from tests.browser.conftest import Serve
from tests.browser.watched import Watched
from tests.small_map import CLASSES, SmallMap, small_map
from vitdomains.core.review.store import Answer, ReviewStore

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.timeout(600)


class WatchedMap(Watched):
    """The satellite app."""

    def map(self, **has: str) -> Locator:
        """The map, once its data attributes are these."""
        return self.element("map", **has)

    def choose(self, label: str, option: str) -> None:
        """Choose in one of Streamlit's boxes."""
        self.settled()
        self.page.get_by_label(label, exact=True).first.click()
        self.page.get_by_role("option", name=option, exact=True).click()
        self.settled()

    def to_the_map(self) -> None:
        """The box that was chosen from keeps the keys until something else is in focus."""
        self.page.locator("[data-map] canvas").focus()


@pytest.fixture
def watched(new_page: Callable[..., Page]) -> Any:
    def open_page(address: str, path: str = "", scheme: str = "light", **options: Any) -> WatchedMap:
        made = WatchedMap(new_page(scheme, **options), address)
        made.goto(path)
        return made

    return open_page


@pytest.fixture(scope="session")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> SmallMap:
    return small_map(tmp_path_factory)


def words(mapped: SmallMap, folder: Path, *more: str | Path) -> list[str | Path]:
    return ["--bundle", mapped.bundle, "--tiles", mapped.tiles, "--scene", mapped.scene, "--store",
            f"sqlite:///{folder / 'reviews.db'}", "--reviewer", "ann", "--threads", "1", *more]  # fmt: skip


def item_of(page: Page) -> str:
    found = re.search(r"[?&]item=([0-9a-f]{64})", page.url)
    assert found, page.url
    return found.group(1)


def moved_on(page: Page, before: str) -> str:
    """The item that follows, once the page has gone there."""
    page.wait_for_function("item => !location.href.includes(item)", arg=before)
    return item_of(page)


def colour_at(canvas: Locator, x: float, y: float) -> list[int]:
    """Red, green and blue of the canvas at a share of its width and height."""
    found = canvas.evaluate(
        "(c, [x, y]) => [...c.getContext('2d').getImageData(Math.round(x * c.width), Math.round(y * c.height), 1, 1).data]",
        [x, y],
    )
    return list(found[:3])


def test_a_whole_working_round(serve: Serve, watched: Any, mapped: SmallMap, tmp_path: Path, screenshots: Path) -> None:
    address = serve("satellite_review.py", *words(mapped, tmp_path, "--queue", mapped.queue))
    seen = watched(address)
    page: Page = seen.page
    tiles = pd.read_parquet(mapped.tiles, columns=["tile_id", "label", "probability"])
    known = tiles[tiles["probability"].notna()]
    whole = seen.map(painted="map", mode="map")
    page.get_by_text(f"{len(known)} of {len(tiles)} tiles in sight").wait_for()
    seen.settled()
    page.screenshot(path=screenshots / "satellite_map.png")
    assert page.get_by_text("Research use only").is_visible()

    # A filter, colours, and tiles off and on by key: the canvas follows.
    canvas = whole.locator("canvas")
    with_tiles = colour_at(canvas, 0.4, 0.4)
    page.keyboard.press("t")
    page.wait_for_timeout(300)
    plain = colour_at(canvas, 0.4, 0.4)
    assert with_tiles != plain
    page.keyboard.press("t")
    paint = whole.get_attribute("data-paint")
    seen.choose("Colour by", "entropy")
    page.locator(f'[data-map]:not([data-paint="{paint}"])').wait_for()
    page.screenshot(path=screenshots / "satellite_entropy.png")
    seen.choose("Class", "town")
    page.get_by_text(f"{(known['label'] == 'town').sum()} of {len(tiles)} tiles in sight").wait_for()
    page.get_by_role("button", name="Clear").click()
    page.get_by_text(f"{len(known)} of {len(tiles)} tiles in sight").wait_for()

    # A lasso narrows the list.
    page.keyboard.press("l")
    seen.map(tool="area")
    box = canvas.bounding_box()
    assert box is not None
    corners = [(0.35, 0.2), (0.6, 0.2), (0.6, 0.6), (0.35, 0.6), (0.35, 0.22)]
    page.mouse.move(box["x"] + corners[0][0] * box["width"], box["y"] + corners[0][1] * box["height"])
    page.mouse.down()
    for x, y in corners[1:]:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
    page.mouse.up()
    page.get_by_text("within the area drawn").wait_for()
    assert "area=" in page.url
    page.screenshot(path=screenshots / "satellite_area.png")
    page.get_by_role("button", name="Clear").click()
    page.get_by_text("within the area drawn").wait_for(state="detached")
    seen.settled()

    # The first of the queue by key; the tile, its surroundings and its heat map appear.
    seen.choose("Order", "the queue first")
    page.wait_for_url(re.compile("sort=queue"))
    seen.to_the_map()
    seen.settled()
    page.keyboard.press("n")
    page.wait_for_url(re.compile("item="))
    first = item_of(page)
    view = seen.map(item=first, painted=first)
    view = seen.map(item=first, heat="")
    page.get_by_text("number 1 of the queue").wait_for()
    seen.settled()
    page.screenshot(path=screenshots / "satellite_tile.png")

    # Other bands, another class's heat map, heat map off by key.
    before = view.get_attribute("data-bands")
    colour = colour_at(view.locator("canvas"), 0.5, 0.15)
    seen.choose("Bands", "any three bands")
    page.get_by_role("button", name="Red, green, blue").click()
    seen.choose("Shown as red", "blue")
    page.get_by_text("number 1 of the queue").click()
    page.locator(f'[data-map]:not([data-bands="{before}"])[data-detail^="(3, 2, 3)"]').wait_for()
    page.wait_for_timeout(500)
    assert "bands=3" in page.url and colour_at(view.locator("canvas"), 0.5, 0.15) != colour
    key = view.get_attribute("data-heat")
    seen.to_the_map()
    page.keyboard.press("ArrowDown")
    page.wait_for_url(re.compile("heat="))
    page.locator(f'[data-map]:not([data-heat="{key}"])').wait_for()
    page.keyboard.press("m")
    assert view.locator('[data-do="heat"]').get_attribute("aria-pressed") == "false"
    page.screenshot(path=screenshots / "satellite_bands.png")
    page.keyboard.press("m")

    # By mouse: a corrected class and a note; by key: agree, then the quick key.
    wrong = next(k for k, c in enumerate(CLASSES, start=1) if c != known.set_index("tile_id")["label"][_tile_id(page)])
    note = page.get_by_label("Note")
    note.fill("a and n are letters here")
    note.press("Tab")
    seen.settled()
    page.get_by_role("button", name=re.compile(f"^{re.escape(CLASSES[wrong - 1])}")).click()
    page.get_by_text("Saved as decision 1").wait_for()
    second = moved_on(page, first)
    seen.map(item=second)
    seen.settled()
    page.keyboard.press("a")
    page.get_by_text("Saved as decision 2").wait_for()
    third = moved_on(page, second)
    seen.settled()
    page.keyboard.press("Shift+A")
    page.get_by_text("Saved as decision 3").wait_for()
    moved_on(page, third)
    seen.settled()
    page.keyboard.press("z")  # taken back: the third tile again, by a fourth row
    page.get_by_text("Taken back: 1 decision").wait_for()
    page.wait_for_url(re.compile(third))
    with ReviewStore(f"sqlite:///{tmp_path / 'reviews.db'}") as store:
        written = store.decisions()
        store.verify()
    assert [d.item for d in written] == [first, second, third, third]
    assert [d.answers.get("label") for d in written] == [
        Answer("label", CLASSES[wrong - 1]),
        Answer("agree"),
        Answer("agree"),
        None,
    ]
    assert written[0].note == "a and n are letters here" and written[0].seconds > 0

    # A reload, and a shared link, open the same tile; the decision is there.
    page.goto(f"{address}/?item={first}")
    seen.map(item=first, painted=first)
    page.reload()
    seen.map(item=first, painted=first)
    assert page.get_by_label("Note").input_value() == "a and n are letters here"
    page.keyboard.press("Escape")
    seen.map(mode="map", painted="map")
    page.get_by_text("2 reviewed by you").wait_for()

    # Click a tile open; close up, the scene is read anew at its own resolution.
    canvas = seen.map(mode="map").locator("canvas")
    seen.settled()
    canvas.click(position={"x": box["width"] * 0.45, "y": box["height"] * 0.4})
    page.wait_for_url(re.compile("item="))
    clicked = item_of(page)
    seen.map(item=clicked, painted=clicked, detail="")
    page.screenshot(path=screenshots / "satellite_clicked.png")

    # Export.
    page.goto(f"{address}/?show=team")
    page.get_by_role("button", name="Make the file").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download reviewed.gpkg").click()
    target = tmp_path / "reviewed.gpkg"
    download.value.save_as(target)
    exported = geopandas.read_file(target)
    assert len(exported) == len(tiles) and (exported["review"] != "").sum() == 2
    page.screenshot(path=screenshots / "satellite_team.png")
    assert seen.problems == []


def _tile_id(page: Page) -> str:
    found = re.search(r"scene_\d{6}_\d{6}_\d+", page.locator("body").inner_text())
    assert found
    return found.group(0)


def test_dark_and_by_the_keyboard_alone(
    serve: Serve, watched: Any, mapped: SmallMap, tmp_path: Path, screenshots: Path
) -> None:
    address = serve("satellite_review.py", *words(mapped, tmp_path))
    seen = watched(address, scheme="dark")
    page: Page = seen.page
    view = seen.map(painted="map")
    seen.settled()
    page.screenshot(path=screenshots / "satellite_map_dark.png")
    # The tile under the cross, without a mouse.
    view.locator("canvas").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("+")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("item="))
    first = item_of(page)
    seen.map(item=first, heat="")
    seen.settled()
    page.screenshot(path=screenshots / "satellite_tile_dark.png")
    page.keyboard.press("2")
    page.get_by_text("Saved as decision 1").wait_for()
    page.keyboard.press("Escape")
    seen.map(mode="map")
    with ReviewStore(f"sqlite:///{tmp_path / 'reviews.db'}") as store:
        (written,) = store.decisions()
    assert written.item == first and {CLASSES[1], "agree"} & {a.label or a.verdict for a in written.answers.values()}
    assert seen.problems == []
