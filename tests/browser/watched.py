"""A page of an app under test, whose complaints are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

SCREEN = {"width": 1366, "height": 768}
PATIENCE = 60_000  # milliseconds; other work may share the machine


class Watched:
    """``problems`` has what stood in the console and what was asked of other servers: nothing may be in it at the end."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.problems: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: self.problems.append(f"{m.text} {m.location}") if m.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on(
            "request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else self.problems.append(r.url)
        )

    def goto(self, path: str = "") -> None:
        """Go to a page of the app; what is awaited on it is for the caller to say."""
        self.page.goto(self.address + path, wait_until="commit")

    def element(self, mark: str, **has: str) -> Locator:
        """The visible element with the data attribute ``mark``, once its other data attributes are these; "": are there."""
        wanted = "".join(f'[data-{k}="{v}"]' if v else f"[data-{k}]" for k, v in has.items())
        found = self.page.locator(f"[data-{mark}]{wanted}")
        found.wait_for(state="visible")
        return found

    def settled(self) -> None:
        """Wait until the server has nothing more to draw."""
        self.page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()

    def press(self, key: str) -> None:
        """A key as a reader presses it: once the answer to the last one is on the screen."""
        self.settled()
        self.page.keyboard.press(key)
