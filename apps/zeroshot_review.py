"""Review zero-shot labels: ``streamlit run apps/zeroshot_review.py -- --labels labels/ --store sqlite:///reviews.db``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # streamlit puts this folder on the path, not the one above

from apps.labels.options import NOTICE, TITLE, parse_options
from apps.shared.components import TILES
from apps.shared.session import Screen, run_page

if TYPE_CHECKING:
    from apps.labels.session import Session


def open_session() -> Session:
    """PyTorch comes with the pages, so the notice stands before they are imported.

    Raises:
        VitDomainsError: The labels or the store cannot be opened, or nobody knows who is at the other end.
    """
    options = parse_options(sys.argv[1:])
    with st.spinner("Starting. The first page of a server takes a few seconds."):
        from apps.labels import start
    return start.open_session(options)


def draw(session: Session) -> Screen:
    """The page that the address names."""
    from apps.labels import start

    return start.draw(session)


def side_bar(session: Session) -> None:
    """Who reviews what, the other page, and the keys."""
    from apps.labels import start

    start.side_bar(session)


run_page(TITLE, TILES, NOTICE, open_session, draw, side_bar)
