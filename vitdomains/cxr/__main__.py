"""``python -m vitdomains.cxr``: the shared commands, phantoms and reports."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vitdomains.core.commands.cli import main
from vitdomains.core.domain import Domain
from vitdomains.core.terminal import console, shown_progress
from vitdomains.cxr import DOMAIN
from vitdomains.cxr.phantoms.make import make_phantoms
from vitdomains.cxr.report.report import report


def phantoms(domain: Domain, argv: list[str]) -> int:
    """Draw phantom films with known findings, boxes and masks."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} phantoms", description=phantoms.__doc__)
    parser.add_argument("root", type=Path, help="folder to write")
    parser.add_argument("--films", type=int, default=600, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same films (default: %(default)s)")
    parser.add_argument("--size", type=int, default=448, help="height and width, pixels (default: %(default)s)")
    args = parser.parse_args(argv)
    with shown_progress() as on_progress:
        made = make_phantoms(args.root, args.films, args.seed, args.size,
                             progress=lambda done, total: on_progress("drawing phantoms", done, total, "films"))  # fmt: skip
    console.print(f"{args.films} films: {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main(DOMAIN, sys.argv[1:], {"phantoms": phantoms, "report": report}))
