"""Widgets of a row of filters. The address leads: a change is written there first, and each widget shows what stands there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import streamlit as st

from apps.shared.address import address, go
from apps.shared.components import hold


def fraction(name: str, default: float) -> float:
    """A number of 0..1 in the address; what it cannot mean is taken for the default."""
    try:
        value = float(address().get(name, ""))
    except ValueError:
        return default
    return min(1.0, max(0.0, value)) if math.isfinite(value) else default


def pick(place: Any, title: str, name: str, options: Mapping[str, str], current: str, usual: str = "") -> None:
    """A box to choose from; ``options``: value to what is shown."""
    hold(f"filter:{name}", current if current in options else usual)
    place.selectbox(title, list(options), format_func=options.__getitem__, key=f"filter:{name}", on_change=_taken,
                    args=(name, usual))  # fmt: skip


def slide(place: Any, title: str, name: str, current: float, usual: float, help_: str) -> None:
    """A slider of 0..1."""
    hold(f"filter:{name}", current)
    place.slider(
        title, 0.0, 1.0, step=0.01, key=f"filter:{name}", on_change=_taken, args=(name, str(usual)), help=help_
    )


def slide_range(place: Any, title: str, low: float, high: float, help_: str = "") -> None:
    """A slider of two ends, ``low`` and ``high`` in the address."""

    def taken() -> None:
        least, most = st.session_state["filter:p"]
        go(low="" if least == 0.0 else str(least), high="" if most == 1.0 else str(most), page="")

    hold("filter:p", (low, max(low, high)))
    place.slider(title, 0.0, 1.0, step=0.01, key="filter:p", on_change=taken, help=help_ or None)


def search(place: Any, title: str, placeholder: str, current: str) -> None:
    """A field for a part of a name."""
    hold("filter:search", current)
    place.text_input(title, key="filter:search", placeholder=placeholder, on_change=_taken, args=("search", ""))


def clear(place: Any, *names: str) -> None:
    """The button that takes filters back."""
    place.button("Clear", key="clear", on_click=go, kwargs=dict.fromkeys((*names, "page"), ""), width="stretch",
                 help="Take all filters back")  # fmt: skip


def _taken(name: str, usual: str) -> None:
    """A filter was changed: write it into the address, where its default needs no place, and begin at the first page."""
    text = str(st.session_state[f"filter:{name}"]).strip()
    go(**{name: "" if text == usual else text, "page": ""})
