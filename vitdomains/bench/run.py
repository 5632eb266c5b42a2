"""A benchmark from its cases to its result: artefacts, memory, then all candidates in turns, saved after every round.

What was measured stands in a file beside the result until all of it is; the same command goes on from there. A round holds
every case once, so the rounds of a benchmark that was stopped compare as well as those of one that was not.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitdomains.bench.candidates import forward_call
from vitdomains.bench.cases import Case, Subject, impossible
from vitdomains.bench.processes import Prepared, prepare, resident, work_folder
from vitdomains.bench.timing import environment, load_average, rounds, summary, write_result
from vitdomains.core.errors import ConfigError
from vitdomains.core.files import write_text
from vitdomains.core.terminal import OnProgress

logger = logging.getLogger(__name__)

WARM_BELOW = 0.25
"""Seconds; see ``rounds``."""
ARTEFACTS = {
    "fp32.onnx": ("fp32.onnx",),
    "int8.onnx": ("fp32.onnx", "int8.onnx"),
    "fp32.xml": ("fp32.onnx", "fp32.xml"),
    "bf16.xml": ("fp32.onnx", "bf16.xml"),
    "int8.xml": ("fp32.onnx", "fp32.xml", "int8.xml"),
}
"""Each with what it is made from, in the order of making."""

METHOD = (
    "One forward pass on a fixed input, preprocessing not counted; all rows take turns in one process, in another order each "
    f"round, after rounds that are not timed; a pass shorter than {WARM_BELOW:g} s is preceded by an untimed one in the same "
    "turn. Median, 10th and 90th percentile over the rounds. Peak memory: largest resident set of a process of its own that "
    "loads the model and runs it three times, of which import_mib is the runtime before it had a model; torch+compile includes "
    "the compiler. Weights of named models are random, which changes neither time nor memory. Rows compare within one run only."
)


@dataclass(frozen=True)
class BenchOptions:
    """How to measure."""

    repeats: int = 20
    """Timed rounds; a number to be quoted needs at least 20."""
    warmup: int = 2
    """Rounds before, not timed."""
    memory: bool = True
    """Measure peak memory; the process that does so also finds out which cases fail."""
    work: Path = Path("runs/bench")
    """Folder for artefacts; they are used again."""
    minutes: float = 0.0
    """Stop after the step or round that ends later than this; 0: go on to the end."""
    timeout: float = 900.0
    """Seconds that one model may take to export, or one case to load."""


@dataclass
class State:
    """What is known so far; all of it is written to the file beside the result."""

    settings: dict[str, Any]
    prepared: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a subject -> ``Prepared``."""
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    """Label of a case -> size and peak memory."""
    failed: dict[str, str] = field(default_factory=dict)
    """Label of a case -> why."""
    rounds: list[dict[str, float]] = field(default_factory=list)
    """Label -> seconds, a dictionary each round."""
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """When and under which load the rounds were made."""


def bench(cases: Sequence[Case], out: Path, options: BenchOptions, on_progress: OnProgress) -> dict[str, Any]:
    """Measure all cases and write the result.

    Args:
        cases: Rows of the result, in this order.
        out: JSON file to write; while it is unfinished, ``.partial`` is appended to its name.
        options: How to measure.
        on_progress: Called with phase, done, total, text.

    Returns:
        What was written, with ``complete`` False where ``options.minutes`` ran out.

    Raises:
        ConfigError: No case, or fewer than one round.
    """
    if not cases or options.repeats < 1:
        raise ConfigError(
            f"{len(cases)} cases, {options.repeats} rounds: nothing to measure.", hint="Give at least one of each."
        )
    until = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    partial = out.with_name(f"{out.name}.partial")
    state = _state(partial, cases)
    running = _running(cases, state, partial, options, until, on_progress)
    if running is None:
        return {"complete": False, "method": METHOD, "sessions": [], "rows": []}
    _time(running, state, partial, options, until, on_progress)
    complete = not running or len(state.rounds) >= options.repeats
    rows = [_row(case, state) for case in cases]
    result = {"complete": complete, "method": METHOD, "sessions": state.sessions, "rows": rows}
    if complete:
        write_result(out, result)
        partial.unlink(missing_ok=True)
    return result


def _state(partial: Path, cases: Sequence[Case]) -> State:
    """What an earlier run of the same cases on the same machine with the same versions left, or nothing."""
    here = environment()
    settings = {"cases": [asdict(c) for c in cases], **{key: here[key] for key in ("cpu", "gpu", "cores", "versions")}}
    if not partial.is_file():
        return State(settings)
    try:
        left = State(**json.loads(partial.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        logger.warning("%s cannot be read (%s); starting anew", partial, error)
        return State(settings)
    if left.settings != settings:
        logger.warning("%s is of other cases, another machine or other versions; starting anew", partial)
        return State(settings)
    return left


def _save(state: State, partial: Path) -> None:
    write_text(partial, json.dumps(asdict(state)))


def _running(
    cases: Sequence[Case], state: State, partial: Path, options: BenchOptions, until: float, on_progress: OnProgress
) -> dict[Case, Path] | None:
    """Case -> folder of its artefacts, for those that can be run; the others are in ``state.failed``. None: out of time."""
    subjects = list(dict.fromkeys(case.subject for case in cases))
    folders = {subject: work_folder(options.work, subject) for subject in subjects}
    for case in cases:
        if reason := impossible(case):
            state.failed[case.label] = reason
    for done, subject in enumerate(subjects):
        on_progress("export", done, len(subjects), subject.name)
        _prepare(subject, [case for case in cases if case.subject == subject], state, folders[subject], options)
        _save(state, partial)
        if time.monotonic() > until:
            return None
    left = [case for case in cases if case.label not in state.failed]
    for done, case in enumerate(left):
        on_progress("memory", done, len(left), case.label)
        if options.memory and "peak_memory_mib" not in state.measured[case.label]:
            measured, reason = resident(case, folders[case.subject], options.timeout)
            if reason:
                state.failed[case.label] = reason
            state.measured[case.label] |= measured
            _save(state, partial)
            if time.monotonic() > until:
                return None
    return {case: folders[case.subject] for case in left if case.label not in state.failed}


def _prepare(subject: Subject, cases: Sequence[Case], state: State, work: Path, options: BenchOptions) -> None:
    """Make the artefacts of one subject; what failed in an earlier session is not tried again."""
    known: dict[str, str] = state.prepared.get(subject.name, {}).get("failed", {})
    possible = [case for case in cases if case.label not in state.failed]
    wanted = dict.fromkeys(name for case in possible if case.artefact for name in ARTEFACTS[case.artefact])
    made = Prepared()
    if "" not in known:
        made = prepare(subject, [name for name in wanted if name not in known], work, options.timeout)
    made.failed |= known
    state.prepared[subject.name] = asdict(made)
    for case in possible:
        reasons = [made.failed[name] for name in ("", *ARTEFACTS.get(case.artefact, ())) if name in made.failed]
        if reasons:
            state.failed[case.label] = reasons[0]
        else:
            state.measured.setdefault(case.label, {})["size_bytes"] = _size(case, made, work)


def _time(
    running: dict[Case, Path], state: State, partial: Path, options: BenchOptions, until: float, on_progress: OnProgress
) -> None:
    left = options.repeats - len(state.rounds)
    if left < 1 or not running:
        return
    calls = {}
    for done, (case, work) in enumerate(running.items()):
        on_progress("load", done, len(running), case.label)
        calls[case.label] = forward_call(case, work)
    first = len(state.rounds)
    session: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_before": load_average(),
    }
    state.sessions.append(session)
    for timed in rounds(calls, left, warmup=options.warmup, warm_below=WARM_BELOW, seed=first):
        state.rounds.append({label: round(seconds, 7) for label, seconds in timed.items()})
        session |= {"rounds": len(state.rounds) - first, "load_average_after": load_average()}
        _save(state, partial)
        on_progress("time", len(state.rounds), options.repeats, "rounds")
        if time.monotonic() > until:
            return


def _row(case: Case, state: State) -> dict[str, Any]:
    made, label = Prepared(**state.prepared[case.subject.name]), case.label
    row: dict[str, Any] = {
        "label": label, "model": case.subject.name, "image_size": case.subject.height, "runtime": case.runtime,
        "precision": case.precision, "batch": case.batch, "threads": case.threads, "device": case.device,
        "parameters": made.parameters or None,
    }  # fmt: skip
    if label in state.failed:
        return {**row, "failed": state.failed[label]}
    seconds = [timed[label] for timed in state.rounds if label in timed]
    row |= state.measured[label]
    if seconds:
        timing = summary(seconds)
        row |= {**timing, "images_per_second": case.batch / timing["median_s"], "run": state.sessions[0]["date"]}
        row["seconds"] = seconds
    return row


def _size(case: Case, made: Prepared, work: Path) -> int:
    """Bytes on disk: of the artefact, IR with its weights, or of a state dict."""
    if not case.artefact:
        return made.weight_bytes[case.precision]
    file = work / case.artefact
    parts = (file, file.with_suffix(".bin")) if file.suffix == ".xml" else (file,)
    return sum(part.stat().st_size for part in parts)
