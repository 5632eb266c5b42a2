"""``python -m vitdomains.cxr``: the shared commands, phantoms, reports and de-identification."""

from __future__ import annotations

import sys

from vitdomains.core.commands.cli import Command, main
from vitdomains.core.domain import Deferred
from vitdomains.cxr import DOMAIN

COMMANDS: dict[str, Command] = {
    "phantoms": Deferred(
        "vitdomains.cxr.commands:phantoms", "Draw phantom films with known findings, boxes and masks."
    ),
    "deidentify": Deferred(
        "vitdomains.cxr.commands:deidentify", "Write DICOM films without what names their patients."
    ),
    "report": Deferred("vitdomains.cxr.commands:report", "Write the report of one film: HTML, PDF or DICOM SR."),
}


if __name__ == "__main__":
    sys.exit(main(DOMAIN, sys.argv[1:], COMMANDS))
