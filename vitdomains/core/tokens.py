"""Tokens after the frozen blocks, kept on disk: one row an image, added as they are computed, safe under ``kill -9``.

The rows file grows first, the index after it; rows that no index entry names are overwritten by the next append.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitdomains.core.atomic import write_text


@dataclass(frozen=True)
class Tokens:
    """Float16 rows [M, T, D] on disk, and which of them belong to a data set of N images, in its order."""

    rows: np.ndarray
    order: np.ndarray

    def __getitem__(self, images: np.ndarray) -> np.ndarray:
        """Rows [B, T, D] of the images at these positions."""
        return np.asarray(self.rows[self.order[images]])


class TokenStore:
    """Rows by key (the path of an image) in ``folder/tokens-NAME.f16`` with ``folder/tokens-NAME.json`` beside it."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._data, self._index = folder / f"tokens-{name}.f16", folder / f"tokens-{name}.json"
        known = (
            json.loads(self._index.read_text(encoding="utf-8")) if self._index.exists() else {"shape": [], "keys": []}
        )
        self._shape: list[int] = known["shape"]
        self._row: dict[str, int] = {key: row for row, key in enumerate(known["keys"])}

    def __contains__(self, key: str) -> bool:
        return key in self._row

    def append(self, keys: Sequence[str], tokens: np.ndarray) -> None:
        """Add float16 rows [B, T, D]."""
        self._shape = list(tokens.shape[1:])
        with self._data.open("r+b" if self._data.exists() else "w+b") as handle:
            handle.seek(len(self._row) * tokens[0].nbytes)
            handle.write(np.ascontiguousarray(tokens, np.float16).tobytes())
        self._row |= {key: len(self._row) + i for i, key in enumerate(keys)}
        write_text(self._index, json.dumps({"shape": self._shape, "keys": list(self._row)}))

    def select(self, keys: Sequence[str]) -> Tokens:
        """The rows of ``keys``, in that order."""
        rows = np.memmap(self._data, np.float16, "r", shape=(len(self._row), *self._shape))
        return Tokens(rows, np.array([self._row[key] for key in keys]))
