"""Work that may crash, hang or leave memory behind, each in a process of its own: making artefacts, measuring memory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vitdomains.bench.cases import Case, Subject

MAKERS = ("torch", "timm", "transformers", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf")
"""Packages whose version decides what an artefact holds."""


@dataclass
class Prepared:
    """A subject's parameters, the bytes of its weights by precision, and why an artefact is not there ("": the model itself)."""

    parameters: int = 0
    weight_bytes: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def work_folder(root: Path, subject: Subject) -> Path:
    """Where the artefacts of a subject lie; another version of what makes them is another folder."""
    versions = []
    for name in MAKERS:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append((name, importlib.metadata.version(name)))
    digest = hashlib.sha256(json.dumps([asdict(subject), versions], sort_keys=True).encode()).hexdigest()[:12]
    return root / f"{subject.name.replace('/', '_').replace(':', '_')}-{digest}"


def prepare(subject: Subject, artefacts: Sequence[str], work: Path, timeout: float) -> Prepared:
    """Have the artefacts made that are not there yet; one that cannot be made does not keep the others from it.

    Args:
        subject: The model.
        artefacts: File names, each after those that it is made from.
        work: Folder of the subject.
        timeout: Seconds for all that is still to be made.
    """
    work.mkdir(parents=True, exist_ok=True)
    made, failed = work / "prepared.json", dict[str, str]()
    while True:
        left = [name for name in artefacts if not (work / name).is_file() and name not in failed]
        if made.is_file() and not left:
            return Prepared(**json.loads(made.read_text(encoding="utf-8")), failed=failed)
        reason = _run("prepare", [json.dumps(asdict(subject)), str(work), *left], timeout)[1]
        if not made.is_file():
            return Prepared(failed={"": reason})
        culprit = next((name for name in left if not (work / name).is_file()), "")
        if culprit:
            failed[culprit] = reason or "was not written"


def resident(case: Case, work: Path, timeout: float) -> tuple[dict[str, float], str]:
    """Peak memory of a case in a process of its own, and nothing; or nothing, and why it fails."""
    out, reason = _run("resident", [case.to_json(), str(work)], timeout)
    return (json.loads(out.splitlines()[-1]), "") if not reason else ({}, reason)


def _run(name: str, words: Sequence[str], timeout: float) -> tuple[str, str]:
    """Output of a sibling module run as a program, and why it failed."""
    # What is set for a server with memory to spare would show in the peak.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    command = [sys.executable, "-m", f"vitdomains.bench.{name}", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environ, check=False)
    except subprocess.TimeoutExpired:
        return "", f"took longer than {timeout:.0f} s"
    if done.returncode == 0:
        return done.stdout, ""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return "", f"the process was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "", (lines[-1] if lines else f"exit status {done.returncode}")[:300]
