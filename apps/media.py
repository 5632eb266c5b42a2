"""Files on their way to the browser: pictures and arrays that a page fetches by an address."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import streamlit as st
from streamlit.runtime import exists, get_instance
from streamlit.runtime.media_file_manager import MediaFileManager
from streamlit.runtime.scriptrunner_utils.script_run_context import SCRIPT_RUN_CONTEXT_ATTR_NAME

RECENT = 32  # files that stay for a browser that comes late: some six pages of five files


@dataclass(frozen=True)
class _Nobody:
    """As much of a session as the store of files asks for."""

    session_id: str = "vitdomains-recent"


def _be_nobody() -> None:
    setattr(threading.current_thread(), SCRIPT_RUN_CONTEXT_ATTR_NAME, _Nobody())


class Recent:
    """Keeps the last files of all sessions alive.

    Streamlit drops a session's files when a run of its script ends that did not draw them, even one that was cut short; a
    browser that is still about to fetch one for the page before would get an error and show nothing.

    Args:
        files: Streamlit's store of files.
        size: How many files are kept.
    """

    def __init__(self, files: MediaFileManager, size: int = RECENT) -> None:
        self._files, self._size = files, size
        self._lock = threading.Lock()
        self._places: OrderedDict[str, int] = OrderedDict()  # by address, the least recently used first
        # A thread of a session that never ends: what it adds goes only when something else takes its place.
        self._nobody = ThreadPoolExecutor(1, "media", _be_nobody)

    def keep(self, url: str, content: bytes, kind: str) -> None:
        """Keep a file of this address until ``size`` others came after it."""
        with self._lock:
            if url in self._places:
                self._places.move_to_end(url)
                return
            place = len(self._places)
            if place >= self._size:
                _, place = self._places.popitem(last=False)
            self._places[url] = place
            self._nobody.submit(self._files.add, content, kind, f"vitdomains-recent-{place}").result()


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
