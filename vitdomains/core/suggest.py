"""Finds what a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str], count: int = 2) -> list[str]:
    """Give up to ``count`` known names that look like ``name``, the closest first; none if nothing does.

    Dotted names are compared by their last part: ``lr`` and ``receipt.lr`` both find ``recipe.lr``.
    """
    leaf = _leaf(name)
    leaves = list(dict.fromkeys(_leaf(entry) for entry in known))
    wanted = difflib.get_close_matches(leaf, leaves, n=count, cutoff=0.6)
    found = [entry for part in wanted for entry in known if _leaf(entry) == part]
    return (found or difflib.get_close_matches(name, known, n=count, cutoff=0.6))[:count]


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]
