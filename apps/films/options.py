"""What the chest film app is started with: the words after ``--``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.shared.access import Identity
from vitdomains.core.errors import ConfigError

USAGE = "streamlit run apps/cxr_review.py -- --bundle runs/demo/bundle --studies films/ --store sqlite:///reviews.db"


@dataclass(frozen=True)
class Options:
    """The words of the command line, checked."""

    bundle: Path
    studies: Path
    store: str
    cache: Path
    identity: Identity
    blinded: bool
    phi: bool
    threads: int


def checked_parser(script: str, description: str, usage: str) -> argparse.ArgumentParser:
    """A parser of an app's command line, whose errors are ours: they go to the page instead of ending the server."""
    parser = argparse.ArgumentParser(prog=f"streamlit run apps/{script} --", description=description)

    def fail(message: str) -> None:
        raise ConfigError(f"{parser.prog} {message}.", hint=f"Start it as: {usage}")

    parser.error = fail  # type: ignore[assignment,method-assign]
    return parser


def check_paths(args: argparse.Namespace, names: Sequence[str], usage: str) -> None:
    """Raise where one of these options names what is not there."""
    for name in names:
        path = getattr(args, name)
        if not Path(path).exists():
            raise ConfigError(f"--{name} {path} does not exist.", hint=f"Check the path. An example: {usage}")


def parse_options(argv: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        ConfigError: A word is not known, or a folder is not there.
    """
    parser = checked_parser("cxr_review.py", "Review chest films.", USAGE)
    parser.add_argument("--bundle", required=True, help="folder that train wrote")
    parser.add_argument(
        "--studies", required=True, help="folder of films (DICOM, PNG, JPEG), or a manifest (.csv, .parquet)"
    )
    parser.add_argument(
        "--store", default="sqlite:///reviews.db", help="database URL of the reviews (default: %(default)s)"
    )
    parser.add_argument(
        "--cache", default="runs/review_cache", help="folder of precomputed predictions (default: %(default)s)"
    )
    Identity.add_arguments(parser)
    parser.add_argument("--blinded", action="store_true", help="nobody sees the model before deciding")
    parser.add_argument("--phi", action="store_true", help="allow readers to switch patients' data on")
    parser.add_argument("--threads", type=int, default=0, help="compute threads; 0: one a physical core")
    args = parser.parse_args([*argv])
    check_paths(args, ("bundle", "studies"), USAGE)
    return Options(
        bundle=Path(args.bundle),
        studies=Path(args.studies),
        store=args.store,
        cache=Path(args.cache),
        identity=Identity.of(args),
        blinded=args.blinded,
        phi=args.phi,
        threads=args.threads,
    )
