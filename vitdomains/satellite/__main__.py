"""``python -m vitdomains.satellite``: the shared commands, and those for scenes and tiles."""

from __future__ import annotations

import sys

from vitdomains.core.commands.cli import Command, main
from vitdomains.core.domain import Deferred
from vitdomains.satellite import DOMAIN

COMMANDS: dict[str, Command] = {
    "map": Deferred(
        "vitdomains.satellite.scenes.map:map_command", "Label whole scenes: maps, tables of tiles, vectors."
    ),
    "tile": Deferred("vitdomains.satellite.scenes.tiles:command", "Cut labelled tiles from scenes and labels."),
    "queue": Deferred("vitdomains.satellite.scenes.queue:command", "Choose the tiles that are worth labelling next."),
    "statistics": Deferred(
        "vitdomains.satellite.data.statistics:statistics_command", "Measure mean and deviation of bands."
    ),
}


if __name__ == "__main__":
    sys.exit(main(DOMAIN, sys.argv[1:], COMMANDS))
