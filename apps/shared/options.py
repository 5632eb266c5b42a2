"""The command line that all review apps share: the words after ``--``, and errors that go to the page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.shared.access import Identity
from vitdomains.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReviewOptions:
    """Where decisions go, who makes them, and how.

    Attributes:
        store: Database URL of the decisions.
        identity: How reviewers are known.
        threads: Compute threads; 0: one a physical core.
        blinded: Nobody sees the model before deciding.
    """

    store: str
    identity: Identity
    threads: int = 0
    blinded: bool = False


def review_parser(script: str, description: str, usage: str, *, blinded: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of ``ReviewOptions``, whose errors are ours: they go to the page instead of ending the server."""
    parser = argparse.ArgumentParser(prog=f"streamlit run apps/{script} --", description=description)

    def fail(message: str) -> None:
        raise ConfigError(f"{parser.prog} {message}.", hint=f"Start it as: {usage}")

    parser.error = fail  # type: ignore[assignment,method-assign]
    add = parser.add_argument
    add("--store", default="sqlite:///reviews.db", help="database URL of the reviews (default: %(default)s)")
    Identity.add_arguments(parser)
    add("--threads", type=int, default=0, help="compute threads; 0: one a physical core")
    if blinded:
        add("--blinded", action="store_true", help="nobody sees the model before deciding")
    return parser


def shared_options(args: argparse.Namespace) -> dict[str, Any]:
    """What ``ReviewOptions`` takes of parsed arguments."""
    blinded = getattr(args, "blinded", False)
    return {"store": args.store, "identity": Identity.of(args), "threads": args.threads, "blinded": blinded}


def check_paths(args: argparse.Namespace, names: Sequence[str], usage: str) -> None:
    """Raise where one of these options names what is not there."""
    for name in names:
        path = getattr(args, name)
        if not Path(path).exists():
            raise ConfigError(f"--{name} {path} does not exist.", hint=f"Check the path. An example: {usage}")
