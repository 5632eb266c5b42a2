"""``python -m vitdomains.zeroshot``: the shared commands, and those that need no training."""

from __future__ import annotations

import sys

from vitdomains.core.commands.cli import Command, main
from vitdomains.core.domain import Deferred
from vitdomains.zeroshot import DOMAIN

_COMMANDS = {
    "label": ("commands:label", "Label image files, or the tiles of scenes, by class names."),
    "embed": ("commands:embed", "Embed tiles into an index, for labels and searches to come."),
    "search": ("commands:search", "Find the tiles of an index nearest to a text or a picture."),
    "evaluate": ("commands:evaluate", "Measure labels on a labelled folder, or a bundle."),
    "audit": ("commands:audit_command", "Look for labels that look wrong, or for leakage between splits."),
    "refine": ("commands:refine_command", "Improve labels by reviewed ones."),
    "student": ("commands:student_command", "Write what a small model is trained with on confident labels."),
    "convert": ("commands:convert_command", "Convert an open_clip checkpoint for --model."),
    "align": ("align.command:align_command", "Train a dual encoder from captions or classes."),
}
COMMANDS: dict[str, Command] = {
    name: Deferred(f"vitdomains.zeroshot.{address}", about) for name, (address, about) in _COMMANDS.items()
}


if __name__ == "__main__":
    sys.exit(main(DOMAIN, sys.argv[1:], COMMANDS))
