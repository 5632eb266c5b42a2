"""The contact sheet: a Streamlit component of this folder's own HTML, CSS and JavaScript, which needs no network.

Takes ``tiles`` (dictionaries with ``item``, ``url``, ``title``, ``caption``, ``state``: empty, ``done``, ``other`` or ``none``,
and ``near``) and ``current`` (an item). What is chosen comes back as one trigger, ``act``: a dictionary with
``item`` and ``at``, the time in milliseconds.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_HERE = Path(__file__).parent

contact_sheet = st.components.v2.component(
    "vitdomains_contact_sheet",
    html=(_HERE / "sheet.html").read_text(encoding="utf-8"),
    css=(_HERE / "sheet.css").read_text(encoding="utf-8"),
    js=(_HERE / "sheet.js").read_text(encoding="utf-8"),
)
