"""``python -m vitdomains.zeroshot``: the shared commands, and those that need no training."""

from __future__ import annotations

import sys

from vitdomains.core.commands.cli import Command, main
from vitdomains.core.domain import Deferred
from vitdomains.zeroshot import DOMAIN

COMMANDS: dict[str, Command] = {
    "label": Deferred(
        "vitdomains.zeroshot.commands:label", "Label image files, or the tiles of scenes, by class names."
    ),
    "embed": Deferred(
        "vitdomains.zeroshot.commands:embed", "Embed tiles into an index, for labels and searches to come."
    ),
    "search": Deferred(
        "vitdomains.zeroshot.commands:search", "Find the tiles of an index nearest to a text or a picture."
    ),
    "evaluate": Deferred("vitdomains.zeroshot.commands:evaluate", "Measure labels on a labelled folder, or a bundle."),
    "refine": Deferred("vitdomains.zeroshot.students.refine:refine_command", "Improve labels by reviewed ones."),
    "student": Deferred(
        "vitdomains.zeroshot.students.refine:student_command", "Train a small model on confident labels."
    ),
    "convert": Deferred("vitdomains.zeroshot.commands:convert_command", "Convert an open_clip checkpoint for --model."),
    "align": Deferred(
        "vitdomains.zeroshot.align.command:align_command", "Train a dual encoder from captions or classes."
    ),
}


if __name__ == "__main__":
    sys.exit(main(DOMAIN, sys.argv[1:], COMMANDS))
