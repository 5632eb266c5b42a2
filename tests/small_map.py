"""A small scene, mapped by a tiny bundle, with a queue: what the satellite app is started on in tests. Made once a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.satellite.scenes.test_map import CLASSES, write_scene, write_tiny_bundle
from vitdomains.satellite import DOMAIN
from vitdomains.satellite.scenes.map import map_command
from vitdomains.satellite.scenes.queue import command as queue_command

__all__ = ["CLASSES", "SmallMap", "small_map"]


@dataclass(frozen=True)
class SmallMap:
    """``bundle`` knows nothing and is not sure of it; all else about it is real."""

    root: Path

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def scene(self) -> Path:
        return self.root / "scene.tif"

    @property
    def tiles(self) -> Path:
        return self.root / "tiles.parquet"

    @property
    def queue(self) -> Path:
        return self.root / "queue.parquet"


def small_map(factory: pytest.TempPathFactory, kind: str = "singlelabel") -> SmallMap:
    """The one of this session and kind."""
    made = SmallMap(factory.getbasetemp() / f"small_map_{kind}")
    if not made.queue.exists():
        made.root.mkdir()
        write_tiny_bundle(made.bundle, kind)
        write_scene(made.scene)
        words = [
            made.scene,
            "--bundle",
            made.bundle,
            "--out",
            made.root / "map.tif",
            "--tiles",
            made.tiles,
            "--threads",
            "1",
        ]
        map_command(DOMAIN, [str(word) for word in words])
        queue_command(DOMAIN, [str(made.tiles), "--by", "margin", "--n", "10", "--out", str(made.queue)])
    return made
