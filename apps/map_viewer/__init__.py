"""The map: a Streamlit component of this folder's own HTML, CSS and JavaScript, which needs no network and no tile server.

A picture of the scene, a sharper one of the part in sight, and the tiles as arrays: places once, colours whenever they change.
What the reviewer does comes back as one trigger, ``act``: a dictionary with ``kind`` ``open``, ``area``, ``look`` or ``poll``.
"""

from __future__ import annotations

from pathlib import Path

from apps.shared.components import web_component

map_viewer = web_component("map_viewer", Path(__file__).parent, "map.html", "map.css", "map.js")
