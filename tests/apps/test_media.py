"""Files on their way to the browser outlive the run of the script that drew them."""

from __future__ import annotations

from streamlit.runtime.media_file_manager import MediaFileManager
from streamlit.runtime.memory_media_file_storage import MemoryMediaFileStorage

from apps.media import Recent


def test_a_browser_that_comes_late_still_finds_its_file() -> None:
    files = MediaFileManager(MemoryMediaFileStorage("/media"))
    recent = Recent(files, size=3)
    addresses = []

    def draw(content: bytes) -> None:
        url = files.add(content, "image/png", "vitdomains-detail")
        recent.keep(url, content, "image/png")
        addresses.append(url)

    def end_of_a_run() -> None:
        files.clear_session_refs("dontcare")  # the name of the session of a thread that has none
        files.remove_orphaned_files()

    def there(url: str) -> bool:
        return files.read_file(url.rsplit("/", 1)[-1].split(".")[0]) is not None

    draw(b"old")
    draw(b"middle")
    draw(b"new")
    end_of_a_run()
    assert all(map(there, addresses))
    draw(b"old")  # again in use: the middle one is now the oldest
    draw(b"newest")
    end_of_a_run()
    old, middle, new, again, newest = addresses
    assert old == again and there(old) and there(new) and there(newest) and not there(middle)
