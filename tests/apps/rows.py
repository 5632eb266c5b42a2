"""What stands in the app's own lists, read from a page without a browser."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
from streamlit.testing.v1 import AppTest


def lists(page: AppTest) -> list[dict[str, Any]]:
    """The data of each list on the page."""
    found = [element.proto for element in page.get("bidi_component")]
    return [json.loads(proto.json) for proto in found if proto.component_name == "vitdomains_row_list"]


def listed(page: AppTest) -> pd.DataFrame:
    """The only list of the page, numbers as numbers."""
    (data,) = lists(page)
    table = pd.DataFrame(data["rows"], columns=[c["title"] for c in data["columns"]])
    numbers = [c["title"] for c in data["columns"] if c["number"]]
    return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})
