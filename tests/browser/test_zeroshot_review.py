"""A working round with zero-shot labels in a real browser: classes, thresholds, decisions by mouse and key, search, export."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from tests.browser.conftest import Serve
from tests.browser.watched import Watched
from tests.zeroshot import tiny
from vitdomains import satellite
from vitdomains.core.config.parse import parse_config
from vitdomains.core.geo.map.run import ComputeOptions
from vitdomains.core.review.store import ReviewStore
from vitdomains.zeroshot.embeddings.store import plan_tiles
from vitdomains.zeroshot.labels.label import Compute, label_tiles
from vitdomains.zeroshot.labels.prompts import read_classes
from vitdomains.zeroshot.models.towers import load_towers
from vitdomains.zeroshot.students.student import read_tiles

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(600)

TILES = 80
CLASSES = "forest, river or lake, residential buildings, parking lot"


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of smooth noise by a tiny model with random weights."""
    folder = tmp_path_factory.mktemp("labels")
    tiny.clip().save(folder / "clip")
    tiny.write_tiles(folder / "tiles", TILES)
    compute = Compute(ComputeOptions(shard_size=64), "fp32", batch_size=8)
    label_tiles(load_towers(folder / "clip"), read_classes(CLASSES), plan_tiles([folder / "tiles"]), folder / "labels",
                compute=compute)  # fmt: skip
    return folder / "labels"


class WatchedLabels(Watched):
    """The zero-shot app."""

    def open(self, path: str = "") -> None:
        """Go there, and wait until the sheet and the text model are there."""
        self.goto(f"/{path}")
        self.ready()

    def ready(self) -> None:
        """All pictures of the sheet are there, prompts can be typed, and nothing runs."""
        self.page.locator("[data-sheet] img").first.wait_for()
        self.page.locator("textarea:not([disabled])").first.wait_for()
        self.settled()
        self.page.locator("[data-sheet] img").evaluate_all("all => Promise.all(all.map(image => image.decode()))")

    def current(self, other_than: str = "") -> str:
        """The tile in focus, once it is another one."""
        found = self.page.locator(f'[data-sheet]:not([data-current="{other_than}"]) [aria-current="true"]')
        found.wait_for()
        self.settled()
        return str(found.get_attribute("data-item"))

    def count(self, label: str) -> int:
        """Tiles of a label, as the list shows."""
        text = self.page.get_by_role("radiogroup").locator("label", has_text=re.compile(f"^{label} ·")).inner_text()
        return int(re.search(r"· ([\d,]+)", text).group(1).replace(",", ""))  # type: ignore[union-attr]


@pytest.fixture
def watched(new_page: Callable[..., Page]) -> Any:
    return lambda address, scheme="light": WatchedLabels(new_page(scheme), address)


def words(labels: Path, folder: Path) -> list[str | Path]:
    return ["--labels", labels, "--store", f"sqlite:///{folder / 'reviews.db'}", "--reviewer", "ann", "--threads", "1"]


def test_a_whole_working_round(serve: Serve, watched: Any, labels: Path, tmp_path: Path, screenshots: Path) -> None:
    seen: WatchedLabels = watched(serve("zeroshot_review.py", *words(labels, tmp_path)))
    page = seen.page
    seen.open()
    assert page.get_by_text("Research use only").is_visible() and page.get_by_text(f"{TILES} in sight").is_visible()
    assert page.locator("[data-sheet] button").count() == 30

    # The first borderline tile is in focus: the one with the least margin.
    table = read_tiles(labels)
    first = seen.current()
    page.screenshot(path=screenshots / "zeroshot_sheet.png")

    # Other classes: counts change, and the address leads back to them.
    before = {name: seen.count(name) for name in CLASSES.split(", ")}
    assert before == {n: int((table["label"] == n).sum()) for n in before}
    typed = "forest: dense trees\nriver or lake\nbeach | sea and sand of a beach"
    page.get_by_role("textbox", name=re.compile("Classes")).fill(typed)
    page.keyboard.press("Control+Enter")
    page.get_by_role("radiogroup").get_by_text("beach").wait_for()
    seen.settled()
    after = {name: seen.count(name) for name in ("forest", "river or lake", "beach")}
    assert sum(after.values()) == TILES and after["beach"] > 0 and after["forest"] != before["forest"]
    page.wait_for_url(re.compile("asked="))
    page.screenshot(path=screenshots / "zeroshot_prompts.png")

    # The label in sight stays while other classes come and go.
    page.get_by_role("radiogroup").get_by_text("beach").click()
    page.wait_for_url(re.compile("label=beach"))
    seen.settled()
    page.get_by_role("textbox", name=re.compile("Classes")).fill(f"meadow\n{typed}")
    page.keyboard.press("Control+Enter")
    page.get_by_role("radiogroup").get_by_text("meadow").wait_for()
    seen.settled()
    assert "label=beach" in page.url and page.get_by_role("radio", checked=True).evaluate(
        "e => e.closest('label').innerText"
    ).startswith("beach")
    page.get_by_role("textbox", name=re.compile("Classes")).fill(typed)
    page.keyboard.press("Control+Enter")
    page.get_by_role("radiogroup").get_by_text("meadow").wait_for(state="detached")
    page.get_by_role("radiogroup").get_by_text("all tiles").click()
    page.wait_for_url(lambda url: "label=" not in url)
    seen.settled()

    # A threshold by its slider, with the keyboard: tiles become unknown.
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(60):
        slider.press("ArrowRight")
    page.wait_for_url(re.compile("[?&]t=0.6"))
    seen.settled()
    assert seen.count("unknown") > 0
    assert sum(seen.count(name) for name in ("forest", "river or lake", "beach", "unknown")) == TILES
    page.screenshot(path=screenshots / "zeroshot_threshold.png")
    page.get_by_role("button", name="As labelled").click()
    page.get_by_role("radiogroup").get_by_text("parking lot").wait_for()
    seen.settled()
    assert {name: seen.count(name) for name in before} == before

    # Decide by key, by mouse, and name another class by key.
    page.locator(f'[data-sheet] [data-item="{first}"]').click()
    assert seen.current() == first
    page.keyboard.press("a")
    page.get_by_text("Saved as decision 1").wait_for()
    second = seen.current(other_than=first)
    page.get_by_role("button", name="Unsure").click()
    page.get_by_text("Saved as decision 2").wait_for()
    third = seen.current(other_than=second)
    page.keyboard.press("4")
    page.get_by_text("Saved as decision 3").wait_for()
    seen.current(other_than=third)
    with ReviewStore(f"sqlite:///{tmp_path / 'reviews.db'}") as store:
        written = store.decisions()
        store.verify()
    assert [d.item for d in written] == [first, second, third] and [d.reviewer for d in written] == ["ann"] * 3
    assert [d.answers["label"].verdict for d in written[:2]] == ["agree", "unsure"]
    named = written[2].answers["label"]
    assert named.label == "parking lot" or (named.verdict == "agree" and written[2].calls["label"] == "parking lot")

    # Search by text: the sheet is sorted by likeness.
    page.get_by_label("Search by text").fill("blue water")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("q=blue"))
    seen.ready()
    values = [float(text.split()[0]) for text in page.locator("[data-sheet] .caption").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    page.screenshot(path=screenshots / "zeroshot_search.png")

    # A reload and a shared link open the same tile; what was said of it is there.
    seen.open(f"?item={first}")
    page.reload()
    seen.ready()
    assert seen.current() == first and page.get_by_text("You said:").is_visible()
    assert page.locator(f'[data-sheet] [data-item="{first}"]').get_attribute("data-state") == "done"

    # All of a class, after a second look.
    name = max(before, key=before.__getitem__)
    page.get_by_role("radiogroup").get_by_text(name).click()
    page.wait_for_url(re.compile("label="))
    page.get_by_role("button", name=re.compile("Accept all")).click()
    page.get_by_role("button", name="Accept them").click()
    page.get_by_text(re.compile("Accepted: ")).wait_for()
    seen.settled()
    page.screenshot(path=screenshots / "zeroshot_accepted.png")

    # Out: export, and a student.
    page.keyboard.press("e")
    page.get_by_role("button", name=re.compile("Decisions as CSV")).wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("Decisions as CSV")).click()
    download.value.save_as(tmp_path / "export.csv")
    exported = pd.read_csv(tmp_path / "export.csv")
    assert exported["item"].tolist()[:3] == [first, second, third] and len(exported) > before[name]
    page.get_by_role("button", name="Write the training file").click()
    page.get_by_text("Written: ").wait_for()
    seen.settled()
    page.screenshot(path=screenshots / "zeroshot_output.png")
    made = parse_config(["--config", str(labels / "student.yaml")], satellite.default_config(), "train")
    assert made.data.classes == CLASSES.split(", ") and (labels / "manifest.csv").is_file()
    assert seen.problems == []


def test_dark_and_by_the_keyboard_alone(
    serve: Serve, watched: Any, labels: Path, tmp_path: Path, screenshots: Path
) -> None:
    seen: WatchedLabels = watched(serve("zeroshot_review.py", *words(labels, tmp_path)), scheme="dark")
    page = seen.page
    seen.open("?order=surest")
    first = seen.current()
    page.keyboard.press("ArrowRight")
    second = seen.current(other_than=first)
    page.keyboard.press("ArrowLeft")
    assert seen.current(other_than=second) == first
    page.keyboard.press("PageDown")
    page.get_by_text("page 2 of 3").wait_for()
    third = seen.current(other_than=first)
    page.keyboard.press("Shift+A")  # the whole page
    page.get_by_text("Accepted: 30").wait_for()
    seen.current(other_than=third)
    page.keyboard.press("PageUp")
    page.get_by_text("page 2 of 3").wait_for()
    seen.ready()
    page.locator("[data-sheet] [aria-current='true']").focus()
    current = seen.current()
    page.keyboard.press("ArrowDown")  # a row down, in the sheet
    below = seen.current(other_than=current)
    places = page.locator("[data-sheet] button").evaluate_all("all => all.map(b => b.dataset.item)")
    assert places.index(below) > places.index(current) + 1
    page.keyboard.press("0")
    page.get_by_text("Saved as decision 31").wait_for()
    page.screenshot(path=screenshots / "zeroshot_dark.png")
    page.keyboard.press("e")
    page.get_by_text("Accepted labels").first.wait_for()
    seen.settled()
    page.screenshot(path=screenshots / "zeroshot_output_dark.png")
    with ReviewStore(f"sqlite:///{tmp_path / 'reviews.db'}") as store:
        assert store.count() == 31
        assert store.decisions()[-1].answers["label"].label == "unknown" and store.decisions()[-1].item == below
    assert seen.problems == []


def test_the_page_does_not_scroll_at_1366_by_768(serve: Serve, watched: Any, labels: Path, tmp_path: Path) -> None:
    seen: WatchedLabels = watched(serve("zeroshot_review.py", *words(labels, tmp_path)))
    seen.open()
    main = seen.page.locator('[data-testid="stMain"]')
    assert main.evaluate("e => e.scrollHeight - e.clientHeight") <= 4
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 1366
