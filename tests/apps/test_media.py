"""Files on their way to the browser outlive the run of the script that drew them, and not by much."""

from __future__ import annotations

import time

from streamlit.runtime.media_file_manager import MediaFileManager
from streamlit.runtime.memory_media_file_storage import MemoryMediaFileStorage

from apps.shared.media import Recent


class Drawn:
    """A session that draws files in one place, each instead of the one before."""

    def __init__(self, size: int, seconds: float) -> None:
        self.files = MediaFileManager(MemoryMediaFileStorage("/media"))
        self.recent = Recent(self.files, size, seconds)

    def draw(self, content: bytes) -> str:
        url = self.files.add(content, "image/png", "vitdomains-detail")
        self.recent.keep(url, content, "image/png")
        self.files.clear_session_refs(
            "dontcare"
        )  # the end of a run; this is the name of the session of a thread without one
        self.files.remove_orphaned_files()
        return url

    def has(self, url: str) -> bool:
        return self.files.read_file(url.rsplit("/", 1)[-1].split(".")[0]) is not None


def test_a_browser_that_comes_late_still_finds_its_file() -> None:
    drawn = Drawn(size=2, seconds=60)
    first, second, third = (drawn.draw(name) for name in (b"first", b"second", b"third"))
    assert drawn.has(first) and drawn.has(second) and drawn.has(third)
    again, fourth, fifth = (drawn.draw(name) for name in (b"second", b"fourth", b"fifth"))
    assert again == second and not drawn.has(first)
    assert all(map(drawn.has, (fifth, fourth, second)))


def test_what_nobody_draws_any_more_goes() -> None:
    drawn = Drawn(size=8, seconds=0.2)
    url = drawn.draw(b"a film")
    assert drawn.has(url)
    until = time.monotonic() + 20
    while drawn.has(url) and time.monotonic() < until:
        time.sleep(0.05)
    assert not drawn.has(url)
    assert drawn.has(drawn.draw(b"a film")), "and it can be drawn again"
