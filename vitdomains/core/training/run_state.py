"""The saved state of a training run, what a run must share with it to resume, and the log.

A state holds everything that the next step depends on; dropout and augmentation are functions of (seed, step), so a run
that was killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitdomains.core.config.schema import Config
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.manifest import manifest_hash
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import TrainingError
from vitdomains.core.files import write_atomically, write_text

HARMLESS = {
    "data.root", "data.cache", "data.cache_dir",  # where files lie; what is in them counts
    "model.weights", "recipe.teacher", "recipe.teacher_weights",  # likewise
    "model.grad_checkpointing", "recipe.threshold_rule", "recipe.threshold_target",  # after training, or without effect on it
    "run.dir", "run.resume", "run.overwrite", "run.accelerator", "run.threads", "run.workers", "run.save_seconds",
    "run.log_every", "run.bootstrap", "run.subgroups", "run.mlflow", "run.dry_run",
}  # fmt: skip
"""Keys of the configuration that may differ between a run and its continuation; every other one must not."""

Identity = Mapping[str, Any]
"""What must be the same for a run to be resumed: names -> values that JSON can hold; contents of files as sha256."""


def run_identity(
    config: Config, spec: PreprocessSpec, train: ImageDataset, val: ImageDataset, weights: str, teacher: str
) -> Identity:
    """Configuration less ``HARMLESS``, preprocessing, labels and files of both splits, contents of weights and teacher."""
    parts = {**asdict(config), "preprocessing": spec.to_dict()}
    for source in parts["data"]["sources"]:
        source.pop("root")
    found = {f"{section}.{key}": value for section, part in parts.items() for key, value in part.items()}
    found = {key: value for key, value in found.items() if key not in HARMLESS}
    for split, images in (("training", train), ("validation", val)):
        found |= {f"the {split} labels": _labels_hash(images), f"the {split} images": _files_hash(images)}
    found |= {"the content of model.weights": weights, "the content of recipe.teacher": teacher}
    plain: Identity = json.loads(json.dumps(found, default=str))
    return plain


def _labels_hash(images: ImageDataset) -> str:
    table = images.manifest.table
    weights = table["weight"].astype(str).tolist() if "weight" in table else []
    return hashlib.sha256(json.dumps([manifest_hash(images.manifest), weights]).encode()).hexdigest()


def _files_hash(images: ImageDataset) -> str:
    """Of names, sizes and times of change of images and masks, not of their folder: data may move between the two runs."""
    digest = hashlib.sha256()
    for path in (*images.paths, *filter(None, images.masks)):
        try:
            status = os.stat(path)
            stamp = f"{os.path.basename(path)} {status.st_size} {status.st_mtime_ns}\n"
        except OSError:  # not a local file; reading it says what is wrong
            stamp = f"{path}\n"
        digest.update(stamp.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def differences(before: Identity, now: Identity) -> list[str]:
    """What differs between two runs, each in a few words: ``recipe.lr was 0.001, is 0.0005``."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old != new:
            hashes = any(isinstance(value, str) and len(value) == 64 for value in (old, new))
            found.append(f"{key} changed" if hashes else f"{key} was {old!r:.60}, is {new!r:.60}")
    return found


def trained_state(model: nn.Module, average: nn.Module | None = None) -> dict[str, Any]:
    """State of ``model``, or of its moving average, without parameters that are not trained: those are as the run began."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in (average or model).state_dict().items() if name not in frozen}


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run (tensors and plain values only)."""
    write_atomically(path, lambda part: torch.save(dict(state), part))


def load_state(path: Path, identity: Identity, hint: str) -> dict[str, Any] | None:
    """Read a state back, or None where there is none.

    Args:
        path: File that ``save_state`` wrote.
        identity: Of the run that is to go on.
        hint: How to start anew, for the errors.

    Raises:
        TrainingError: The state is damaged, or belongs to a run of another ``identity``; the message names what differs.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a damaged file; all mean the same to the user
        raise TrainingError(f"{path} cannot be read: {error}.", hint=hint) from error
    before = state.get("identity")
    if not isinstance(before, Mapping):
        raise TrainingError(f"{path} is the state of another version of vitdomains.", hint=hint)
    if found := differences(before, identity):
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise TrainingError(f"{path} belongs to another run: {'; '.join(found[:5])}{more}.", hint=hint)
    return state


class RunLog:
    """``log.csv`` and TensorBoard (and MLflow when asked) in the run folder.

    A resumed run continues the files: rows after the step it resumes from are dropped, for those steps run again.
    """

    def __init__(self, folder: Path, resume_step: int, mlflow: bool, parameters: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "log.csv"
        before = []
        if resume_step and self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as handle:
                before = list(csv.reader(handle))[1:]
        rows = [["step", "epoch", "name", "value"], *(r for r in before if len(r) == 4 and int(r[0]) <= resume_step)]
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
