"""A list whose rows are opened: a Streamlit component of this folder's own HTML, CSS and JavaScript, which needs no network.

A plain table, for it is what a page shows first: it is drawn half a second before Streamlit's own, whose code is a megabyte,
and is reached with the keyboard. What is opened comes back as one trigger, ``act``: a dictionary with ``item`` and ``at``,
the time in milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from apps.shared.actions import turn_page
from apps.shared.address import address
from apps.shared.commands import command
from apps.shared.components import soft, web_component

_component = web_component("row_list", Path(__file__).parent, "rows.html", "rows.css", "rows.js")


def row_list(
    table: pd.DataFrame,
    items: Sequence[str],
    on_open: Callable[[str], None],
    *,
    key: str,
    label: str,
    height: int,
    bars: Collection[str] = (),
    notes: Mapping[str, str] | None = None,
) -> None:
    """Draw the list.

    Args:
        table: What is shown; numbers with two decimals where they are no whole ones.
        items: What each row stands for.
        on_open: Called, as a callback, with the item whose row was chosen.
        key: Of the component.
        label: What the rows are, for who cannot see them.
        height: Of the list, pixels; it scrolls.
        bars: Columns of 0..1 that are drawn as bars.
        notes: Column to what its title explains.
    """

    def opened() -> None:
        item = (st.session_state[key].get("act") or {}).get("item")
        if item in items:
            on_open(item)

    columns = [
        {"title": str(name), "bar": name in bars, "number": pd.api.types.is_numeric_dtype(table[name]),
         "note": (notes or {}).get(str(name), "")}
        for name in table.columns
    ]  # fmt: skip
    rows = [[_shown(value) for value in row] for row in table.itertuples(index=False, name=None)]
    data = {"columns": columns, "rows": rows, "items": [*items], "label": label, "height": height}
    _component(key=key, data=data, on_act_change=opened)


def page_of(count: int, size: int) -> tuple[int, int]:
    """The page that the address names, from 1, and how many there are."""
    pages = max(1, math.ceil(count / size))
    text = address().get("page", "1")
    return min(pages, max(1, int(text) if text.isdecimal() else 1)), pages


def pager(page: int, pages: int) -> None:
    """Buttons to the pages before and after."""
    back, where, forth = st.columns([1, 1.5, 1], vertical_alignment="center")
    command(back, "Previous page", "page-back", turn_page, "", page - 1, key="PageUp", disabled=page == 1)
    with where:
        soft(f"page {page:,} of {pages:,}")
    command(forth, "Next page", "page-forth", turn_page, "", page + 1, key="PageDown", disabled=page == pages)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.2f}"
    return str(value)
