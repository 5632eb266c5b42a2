"""``python -m vitdomains.zeroshot``: the shared commands, and those that need no training."""

from __future__ import annotations

import sys

from vitdomains.core.commands.cli import Command, main
from vitdomains.zeroshot import DOMAIN
from vitdomains.zeroshot.align.command import align_command
from vitdomains.zeroshot.commands import convert_command, embed, evaluate, label, search
from vitdomains.zeroshot.students.refine import refine_command, student_command

COMMANDS: dict[str, Command] = {
    "label": label,
    "embed": embed,
    "search": search,
    "evaluate": evaluate,
    "refine": refine_command,
    "student": student_command,
    "convert": convert_command,
    "align": align_command,
}


if __name__ == "__main__":
    sys.exit(main(DOMAIN, sys.argv[1:], COMMANDS))
