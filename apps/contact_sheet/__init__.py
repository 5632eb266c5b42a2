"""The contact sheet: a Streamlit component of this folder's own HTML, CSS and JavaScript, which needs no network.

Takes ``tiles`` (dictionaries with ``item``, ``seen`` of its draft, ``url``,
``title``, ``caption``, ``state``: empty, ``done``, ``other`` or ``none``,
and ``near``) and ``current`` (an item). What is chosen comes back as one trigger, ``act``: a dictionary with
``item`` and ``at``, the time in milliseconds.
"""

from __future__ import annotations

from pathlib import Path

from apps.shared.components import web_component

contact_sheet = web_component("contact_sheet", Path(__file__).parent, "sheet.html", "sheet.css", "sheet.js")
