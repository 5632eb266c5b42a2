"""``python -m vitdomains.satellite``: the shared commands, and those for scenes and tiles."""

from __future__ import annotations

import sys

from vitdomains.core.commands.cli import Command, main
from vitdomains.satellite import DOMAIN
from vitdomains.satellite.data.statistics import statistics_command
from vitdomains.satellite.scenes.map import map_command
from vitdomains.satellite.scenes.queue import command as queue_command
from vitdomains.satellite.scenes.tiles import command as tile_command

COMMANDS: dict[str, Command] = {
    "map": map_command,
    "tile": tile_command,
    "queue": queue_command,
    "statistics": statistics_command,
}


if __name__ == "__main__":
    sys.exit(main(DOMAIN, sys.argv[1:], COMMANDS))
