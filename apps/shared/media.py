"""Files on their way to the browser: pictures and arrays that a page fetches by an address."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import streamlit as st
from streamlit.runtime import exists, get_instance
from streamlit.runtime.media_file_manager import MediaFileManager
from streamlit.runtime.scriptrunner_utils.script_run_context import SCRIPT_RUN_CONTEXT_ATTR_NAME

KEPT_SECONDS = 60.0
RECENT = 16


@dataclass(frozen=True)
class _Nobody:
    """As much of a session as the store of files asks for."""

    session_id: str


class Recent:
    """Keeps files alive for a browser that comes late, whatever becomes of the session that drew them.

    Streamlit drops a session's files when a run of its script ends that did not draw them, even one that was cut short; a
    browser that is still about to fetch one for the page before would get an error and show nothing. What is kept goes after
    one to two minutes, or when twice ``size`` others came after it: a film is no longer there when its reader has left.

    Args:
        files: Streamlit's store of files.
        size: How many files are kept at least.
        seconds: For how long at least, where there is room.
    """

    def __init__(self, files: MediaFileManager, size: int = RECENT, seconds: float = KEPT_SECONDS) -> None:
        self._files, self._size, self._seconds = files, size, seconds
        self._lock = threading.Lock()
        self._now, self._kept = 0, (set[str](), set[str]())  # addresses of this spell, and of the one before
        self._timer: threading.Timer | None = None
        self._worker = ThreadPoolExecutor(1, "media")

    def keep(self, url: str, content: bytes, kind: str) -> None:
        """Keep a file of this address."""
        with self._lock:
            current = self._kept[self._now]
            if url not in current and len(current) >= self._size:
                self._turn()
                current = self._kept[self._now]
            if url not in current:
                current.add(url)
                self._worker.submit(self._add, content, kind, f"vitdomains-{len(current)}").result()
            if self._timer is None:
                self._start()

    def _start(self) -> None:
        self._timer = threading.Timer(self._seconds, self._elapsed)
        self._timer.daemon = True
        self._timer.start()

    def _elapsed(self) -> None:
        with self._lock:
            self._timer = None
            self._turn()
            if self._kept[1 - self._now]:
                self._start()

    def _turn(self) -> None:
        """Begin another spell, and forget what was kept in the one before the last."""
        self._now = 1 - self._now
        self._kept[self._now].clear()
        self._files.clear_session_refs(self._name)
        self._files.remove_orphaned_files()

    @property
    def _name(self) -> str:
        return f"vitdomains-recent-{self._now}"

    def _add(self, content: bytes, kind: str, place: str) -> None:
        """In a thread of its own, which the store of files takes for one of a session of this spell."""
        setattr(threading.current_thread(), SCRIPT_RUN_CONTEXT_ATTR_NAME, _Nobody(self._name))
        self._files.add(content, kind, place)


@cache
def _recent(files: MediaFileManager) -> Recent:
    return Recent(files)


def media_url(content: bytes, slot: str, kind: str = "image/png") -> str:
    """Serve a file to the browser of this session; ``slot`` names its place, and what was there before may go in a while.

    The address contains a hash of the content, so nobody guesses it and the browser never shows a stale one.
    """
    if not exists():
        return ""
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    files = get_instance().media_file_mgr
    url = files.add(content, kind, f"vitdomains-{slot}")
    _recent(files).keep(url, content, kind)
    return (f"/{base}" if base else "") + url


def as_base64(content: bytes) -> str:
    """Bytes as text."""
    return base64.b64encode(content).decode("ascii")
