"""What the zero-shot app is started with, and what it says of itself; imports nothing heavy, so that it can speak at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.shared.options import ReviewOptions, review_parser, shared_options
from vitdomains.core.errors import ManifestError

TITLE = "Zero-shot review"
NOTICE = (
    "Research use only. The labels come from a model that never saw labelled tiles: look before you rely on them. "
    "Everything stays on this server; nothing is uploaded."
)
USAGE = "streamlit run apps/zeroshot_review.py -- --labels labels/ --store sqlite:///reviews.db"


@dataclass(frozen=True, kw_only=True)
class Options(ReviewOptions):
    """The command line, checked."""

    labels: Path
    model: str


def parse_options(argv: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        ConfigError: A word is not known, or a folder is not there.
    """
    parser = review_parser("zeroshot_review.py", "Review zero-shot labels.", USAGE, blinded=False)
    parser.add_argument("--labels", required=True, help="folder that `label` wrote")
    parser.add_argument("--model", default="", help="the checkpoint that labelled the tiles, if it has moved since")
    args = parser.parse_args([*argv])
    folder = Path(args.labels).absolute()
    stamp(folder)
    return Options(labels=folder, model=args.model, **shared_options(args))


def stamp(folder: Path) -> str:
    """Changes when the labels are written anew.

    Raises:
        ManifestError: The folder holds no labels.
    """
    try:
        return str((folder / "run.json").stat().st_mtime_ns)
    except OSError as error:
        raise ManifestError(
            f"{folder} holds no labels.",
            hint="Make some: python -m vitdomains.zeroshot label TILES --classes configs/zeroshot/landuse.yaml "
            f"--out {folder}",
        ) from error
