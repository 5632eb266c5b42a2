"""Fixtures that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same cases at every run: who changes nothing breaks nothing. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Tests run on small inputs: one thread a process is faster than two that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# What is not here is not here: no test waits for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The commands start anew for another allocator unless it is set; a test that calls one would end pytest with it.
os.environ.setdefault("MALLOC_TOP_PAD_", "67108864")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights beside the checkout; the test is skipped where it is absent."""
    folder = Path(os.environ.get("VITDOMAINS_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data not found in {folder}; set VITDOMAINS_SHARED to its folder")
    return folder
