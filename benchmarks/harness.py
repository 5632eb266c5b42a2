"""What every benchmark here shares: interleaved timing, a record of the machine, and one JSON file a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdomains.bench import timing
from vitdomains.bench.timing import environment, interleave

__all__ = ["RESULTS", "environment", "interleave", "write_result"]

RESULTS = Path(__file__).resolve().parent / "results"


def write_result(name: str, payload: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write ``payload`` with the environment to ``folder/name.json`` and return that path."""
    return timing.write_result(folder / f"{name}.json", payload)
