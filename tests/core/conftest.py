"""A bundle with every artefact, made once for all tests that look at artefacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core import small_bundle, toy
from vitdomains.core.bundle import Bundle
from vitdomains.core.export.job import Exported, ExportOptions, export_bundle


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, tuple[Exported, ...]]:
    """A small bundle with all formats, and what the gates said of each. 24 validation images: the gate is as coarse."""
    folder = tmp_path_factory.mktemp("exported")
    root = toy.write_images(folder / "images", n=120)
    bundle = small_bundle.make(folder / "bundle", root)
    options = ExportOptions(("all",), allowed=0.05, threads=1, calibration_images=16)
    return export_bundle(bundle, small_bundle.validation(root), options)


@pytest.fixture(scope="session")
def toy_images(exported: tuple[Bundle, tuple[Exported, ...]]) -> Path:
    """The images behind ``exported``."""
    return exported[0].path.parent / "images"
