"""What survives a stop: the state of a run, its best weights and its log, each written atomically.

A state holds everything that the next step depends on; dropout and augmentation are functions of (seed, step), so a run
that was killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitdomains.core.errors import TrainingError
from vitdomains.core.files import write_atomically, write_text


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run (tensors and plain values only)."""
    write_atomically(path, lambda part: torch.save(dict(state), part))


def load_state(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read a state back, or None where there is none.

    Raises:
        TrainingError: The state is damaged, or belongs to a run with another configuration or data (``fingerprint``).
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a damaged file; all mean the same to the user
        raise TrainingError(f"{path} cannot be read: {error}.", hint="Start anew with --run.overwrite true.") from error
    if state.get("fingerprint") != fingerprint:
        raise TrainingError(
            f"{path} belongs to a run with another model, recipe or data.",
            hint="Resume with the same configuration, choose another --run.dir, or start anew with --run.overwrite true.",
        )
    return state


class RunLog:
    """``log.csv`` and TensorBoard (and MLflow when asked) in the run folder.

    A resumed run continues the files: rows after the step it resumes from are dropped, for those steps run again.
    """

    def __init__(self, folder: Path, resume_step: int, mlflow: bool, parameters: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "log.csv"
        kept = []
        if resume_step and self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as handle:
                kept = list(csv.reader(handle))[1:]
        rows = [["step", "epoch", "name", "value"], *(r for r in kept if len(r) == 4 and int(r[0]) <= resume_step)]
        write_text(self._path, "".join(",".join(row) + "\n" for row in rows))
        self._csv = self._path.open("a", newline="", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step or None)
        self._mlflow: Any = None
        if mlflow:
            self._mlflow = _mlflow()
            self._mlflow.start_run(run_name=folder.name)
            self._mlflow.log_params(dict(parameters))

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add one row a value."""
        rows = csv.writer(self._csv, lineterminator="\n")
        for name, value in values.items():
            rows.writerow([step, epoch, name, f"{value:.8g}"])
            self._board.add_scalar(name, value, step)
        if self._mlflow:
            self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """Flush and close all."""
        self._csv.close()
        self._board.close()
        if self._mlflow:
            self._mlflow.end_run()


def _mlflow() -> Any:
    try:
        import mlflow
    except ImportError as error:
        raise TrainingError(
            "run.mlflow is set, but MLflow is not installed.",
            hint="pip install 'vitdomains[mlflow]', or leave run.mlflow out.",
        ) from error
    return mlflow
