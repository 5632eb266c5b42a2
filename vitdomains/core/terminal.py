"""The terminal: arguments, log lines, progress with an honest time left, errors in two lines."""

from __future__ import annotations

import argparse
import difflib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitdomains.core.errors import ConfigError, VitDomainsError


def nearest(name: str, known: Sequence[str], count: int = 2) -> list[str]:
    """Give up to ``count`` known names that look like ``name``, the closest first; none if nothing does.

    Dotted names are compared by their last part: ``lr`` and ``receipt.lr`` both find ``recipe.lr``.
    """
    leaf = _leaf(name)
    leaves = list(dict.fromkeys(_leaf(entry) for entry in known))
    wanted = difflib.get_close_matches(leaf, leaves, n=count, cutoff=0.6)
    found = [entry for part in wanted for entry in known if _leaf(entry) == part]
    return (found or difflib.get_close_matches(name, known, n=count, cutoff=0.6))[:count]


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


console = Console()
"""Results go to standard output."""

messages = Console(stderr=True)
"""Progress, log lines and errors go to standard error, so that output can be piped."""

OnProgress = Callable[[str, int, int, str], None]

PHASES = {
    "read": "reading images",
    "train": "training",
    "calibrate": "calibrating",
    "test": "testing",
    "predict": "predicting",
    "explain": "explaining",
}


def set_up_logging() -> None:
    """Log lines of this package on standard error, with the time; warnings of others too."""
    handler = RichHandler(
        console=messages,
        show_path=False,
        show_level=False,
        markup=False,
        highlighter=None,
        log_time_format="[%H:%M:%S]",
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("vitdomains").setLevel(logging.INFO)


def be_quiet() -> None:
    """Nothing but errors: for a process that does the same as another one that speaks."""
    logging.getLogger("vitdomains").setLevel(logging.ERROR)


@contextmanager
def shown_progress(every_seconds: float = 10.0) -> Iterator[OnProgress]:
    """Yields a function to call with (phase, done, total, text): a bar on a terminal, a line every few seconds in a log."""
    logger = logging.getLogger(__name__)
    if messages.is_terminal and logger.isEnabledFor(logging.WARNING):
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=messages) as progress:
            tasks: dict[str, int] = {}

            def bar(phase: str, done: int, total: int, text: str) -> None:
                if phase not in tasks:
                    tasks[phase] = progress.add_task(PHASES.get(phase, phase), total=total, text=text)
                progress.update(tasks[phase], completed=done, total=total, text=text)  # type: ignore[arg-type]

            yield bar
        return
    began: dict[str, tuple[float, int]] = {}
    last = 0.0

    def line(phase: str, done: int, total: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        started, first = began.setdefault(phase, (now, done - 1))
        if done < total and (now - last < every_seconds or now == started):
            return  # the first call of a phase says where it begins: no time left can be told from it
        last = now
        left = (now - started) / max(1, done - first) * (total - done)
        logger.info("%s: %d of %d %s, about %s left", PHASES.get(phase, phase), done, total, text, _duration(left))

    yield line


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def show_error(error: VitDomainsError) -> None:
    """What is wrong, and what to do, without a traceback."""
    messages.print(f"error: {error.message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if error.hint:
        messages.print(f"  try: {error.hint}", markup=False, highlight=False, soft_wrap=True)


def parse_args(parser: argparse.ArgumentParser, argv: Sequence[str], usage: str) -> argparse.Namespace:
    """``parser.parse_args``, where a wrong argument is a ConfigError that says how to call the command."""

    def fail(message: str) -> None:
        raise ConfigError(f"{parser.prog}: {message}.", hint=f"Call it as: {parser.prog} {usage}")

    parser.error = fail  # type: ignore[assignment, method-assign]
    return parser.parse_args(argv)
