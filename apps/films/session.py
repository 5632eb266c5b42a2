"""What a run of the chest film app works with: its command line, shared resources, made once a server, and the reader's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import streamlit as st

from apps.films.engine import Engine
from apps.films.uploads import kept_uploads
from apps.films.worklist import Worklist
from apps.shared.bundle_info import BundleInfo, read_bundle_info
from apps.shared.drafts import words_of
from apps.shared.options import ReviewOptions, check_paths, review_parser, shared_options
from apps.shared.session import Reviewing

NOTICE = "Research use only. Not a medical device: it must not be used for diagnosis or treatment."
DOMAIN = "cxr"
USAGE = "streamlit run apps/cxr_review.py -- --bundle runs/demo/bundle --studies films/ --store sqlite:///reviews.db"


@dataclass(frozen=True, kw_only=True)
class Options(ReviewOptions):
    """The command line, checked."""

    bundle: Path
    studies: Path
    cache: Path
    phi: bool


def parse_options(argv: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        ConfigError: A word is not known, or a folder is not there.
    """
    parser = review_parser("cxr_review.py", "Review chest films.", USAGE)
    add = parser.add_argument
    add("--bundle", required=True, help="folder that train wrote")
    add("--studies", required=True, help="folder of films (DICOM, PNG, JPEG), or a manifest (.csv, .parquet)")
    add("--cache", default="runs/review_cache", help="folder of precomputed predictions (default: %(default)s)")
    add("--phi", action="store_true", help="allow readers to switch patients' data on")
    args = parser.parse_args([*argv])
    check_paths(args, ("bundle", "studies"), USAGE)
    bundle, studies, cache = Path(args.bundle), Path(args.studies), Path(args.cache)
    return Options(bundle=bundle, studies=studies, cache=cache, phi=args.phi, **shared_options(args))


@st.cache_resource(show_spinner=False)
def open_worklist(bundle: Path, studies: Path, cache: Path, threads: int) -> Worklist:
    """The worklist with its engine; both begin to work in the background."""
    engine = Engine(read_bundle_info(bundle, DOMAIN), threads)
    made = Worklist(studies, cache, engine)
    engine.start()
    made.start()
    return made


@dataclass(frozen=True)
class Session(Reviewing):
    """Everything that a page needs."""

    title: ClassVar = "Chest film review"

    worklist: Worklist

    @property
    def engine(self) -> Engine:
        """The model at work."""
        return self.worklist.engine

    @property
    def bundle(self) -> BundleInfo:
        """The bundle."""
        return self.worklist.engine.bundle

    @property
    def shows_patients(self) -> bool:
        """Whether patients' data is on the screen: allowed at the start, and switched on by the reader."""
        return self.options.phi and bool(st.session_state.get("phi"))

    def film(self, item: str) -> dict[str, Any] | None:
        """The worklist's row of an item, or of an uploaded film; None where there is none."""
        return self.worklist.row(item) or kept_uploads(self.options.cache, self.reviewer.name).get(item)

    def known(self, item: str) -> bool:
        """Whether there is such a film here, and it can be read."""
        row = self.film(item)
        return row is not None and not row["error"]

    def probabilities(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Class to probability of a row."""
        return {c: float(row[f"prob:{c}"]) for c in self.bundle.classes}

    def calls(self, item: str) -> dict[str, str]:
        """What the model calls of a film."""
        row = self.film(item)
        return self.bundle.calls(self.probabilities(row)) if row else {}

    def words(self, item: str, values: Mapping[str, str]) -> dict[str, str]:
        """What was saved of a film, in the words that its page offers now."""
        known = {name: value for name, value in values.items() if name in self.bundle.classes}
        return words_of(known, self.calls(item), self.revealed(item))
