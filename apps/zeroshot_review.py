"""Review zero-shot labels: ``streamlit run apps/zeroshot_review.py -- --labels labels/ --store sqlite:///reviews.db``."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # streamlit puts this folder on the path, not the one above

from apps.labels.options import NOTICE, TITLE, parse_options
from apps.shared.address import address
from apps.shared.components import TILES, icon, notice, show_problem, style
from vitdomains.core.errors import VitDomainsError


def main() -> None:
    """One run of the page."""
    address()  # before anything is drawn: a run that is cut short must have heard of the way back
    st.set_page_config(TITLE, page_icon=icon(TILES), layout="wide", initial_sidebar_state="collapsed")
    style()
    notice(NOTICE)
    try:
        options = parse_options(sys.argv[1:])
        with st.spinner("Starting. The first page of a server takes a few seconds."):
            from apps.labels.start import show  # PyTorch comes with it
        show(options)
    except VitDomainsError as error:
        show_problem(error)


main()
