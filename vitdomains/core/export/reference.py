"""What an artefact is compared with: the validation split as it will see it, and the source model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vitdomains.core.bundle import Bundle
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.loading import batches
from vitdomains.core.data.preprocess import PreprocessSpec, normalise, prepare
from vitdomains.core.errors import ExportError
from vitdomains.core.export.onnx import EndToEnd
from vitdomains.core.inference.runtimes import session
from vitdomains.core.tasks import Task
from vitdomains.core.terminal import OnProgress

BATCHES = (1, 3, 8)
"""Batch sizes at which parity is checked: one, an odd one, and more than either."""


@dataclass(frozen=True)
class Reference:
    """What an artefact is held against.

    Attributes:
        batches: Gives the inputs of the validation split, in order, each time it is called.
        sample: The first real inputs, [8, ...], and ``sample_outputs`` [8, K], what the source model makes of them.
        outputs: What the source model makes of the whole split, [N, K].
        targets: Labels, [N, K].
        scores: Outputs [N, K] -> calibrated probabilities [N, K].
        task: Names the metric.
    """

    batches: Callable[[], Iterator[np.ndarray]]
    sample: np.ndarray
    sample_outputs: np.ndarray
    outputs: np.ndarray
    targets: np.ndarray
    scores: Callable[[np.ndarray], np.ndarray]
    task: Task

    @property
    def scale(self) -> float:
        """The largest output, but at least 1: what tolerances are a share of."""
        return float(max(1.0, np.abs(self.outputs).max()))

    def metric(self, outputs: np.ndarray, rows: int | None = None) -> float:
        """The task's validation metric of outputs [n, K] of the first ``rows`` images, or of all.

        Raises:
            ExportError: The labels do not define it.
        """
        (value,) = self.task.monitored(self.targets[:rows], self.scores(outputs)).values()
        if np.isnan(value):
            raise ExportError(
                f"The validation split does not define {self.task.monitor}: no class has both outcomes.",
                hint="Give data with more labelled images: --data.root, --data.sources.",
            )
        return float(value)


@dataclass(frozen=True)
class Source:
    """What is exported: a module, an example input, and the names and open axes of its input."""

    module: nn.Module
    example: Tensor
    names: tuple[str, str]
    dynamic: dict[int, str]


def of_logits(
    model: nn.Module, bundle: Bundle, images: ImageDataset, batch_size: int, threads: int, on_progress: OnProgress
) -> tuple[Source, Reference]:
    """Normalised images [B,C,H,W] in, logits out."""
    spec = bundle.preprocess

    def inputs(size: int = batch_size) -> Iterator[np.ndarray]:
        for stored, _, _ in batches(images, size, shuffle=False, seed=0, epoch=0):
            yield normalise(stored, spec).contiguous().numpy()

    forward = session(model, "torch", threads=threads)
    outputs = []
    for batch in inputs():
        outputs.append(forward(batch))
        on_progress("reference", sum(map(len, outputs)), len(images), "images")
    sample = _filled(np.concatenate([x for x, _ in zip(inputs(1), range(max(BATCHES)), strict=False)]))
    task = bundle.task
    reference = Reference(inputs, sample, forward(sample), np.concatenate(outputs), images.targets,
                     partial(task.scores, temperature=bundle.temperature), task)  # fmt: skip
    return Source(model, torch.from_numpy(sample[:2]), ("image", "logits"), {0: "batch"}), reference


def end_to_end(
    model: nn.Module, bundle: Bundle, images: ImageDataset, threads: int, on_progress: OnProgress
) -> tuple[Source, Reference]:
    """Images uint8 [B,H,W,C] of any size in, calibrated probabilities out.

    The source model sees what it saw in training: the image by ``prepare``, from the reader's float pixels.

    Raises:
        ExportError: The preprocessing cannot be exported.
    """
    spec = bundle.preprocess
    module = EndToEnd(model, spec, bundle.task_kind, bundle.temperature).eval()
    forward, task = session(model, "torch", threads=threads), bundle.task

    def inputs() -> Iterator[np.ndarray]:
        for path in images.paths:  # one at a time, for they differ in size
            yield _as_bytes(images.read_image(path), channels)[None]

    def scores(image: np.ndarray) -> np.ndarray:
        return task.scores(forward(_prepared(image, spec)), bundle.temperature)

    outputs, channels = [], 1
    for path in images.paths:
        image = images.read_image(path)
        outputs.append(scores(image))
        channels = max(channels, image.shape[2] if image.ndim == 3 else 1)  # grey ones among colour are repeated
        on_progress("reference", len(outputs), len(images), "images")
    first = [_as_bytes(images.read_image(path), channels) for path in images.paths[: max(BATCHES)]]
    height, width = (min(image.shape[axis] for image in first) for axis in (0, 1))
    sample = _filled(np.stack([image[:height, :width] for image in first]))  # a batch holds images of one size
    sample_outputs = np.concatenate([scores(image) for image in sample])
    reference = Reference(
        inputs, sample, sample_outputs, np.concatenate(outputs), images.targets, lambda outputs: outputs, task
    )
    axes = {0: "batch", 1: "height", 2: "width"}
    # Another size than that of the images: one that got stuck in the artefact shows at the gates.
    smaller = sample[:2, : max(2, 7 * height // 8), : max(2, 5 * width // 6)]
    example = torch.from_numpy(np.ascontiguousarray(smaller))
    return Source(module, example, ("image", "probabilities"), axes), reference


def _filled(inputs: np.ndarray) -> np.ndarray:
    """As many inputs as the largest batch has; a small validation split is gone through again."""
    return np.ascontiguousarray(inputs[np.arange(max(BATCHES)) % len(inputs)])


def _as_bytes(image: np.ndarray, channels: int) -> np.ndarray:
    """What a decoder would give: uint8 [H,W,C]."""
    image = np.atleast_3d(image)
    image = np.repeat(image, channels, axis=2) if image.shape[2] < channels else image
    return image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _prepared(image: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    stored = np.atleast_3d(prepare(image, spec)).transpose(2, 0, 1)
    return normalise(torch.from_numpy(np.ascontiguousarray(stored))[None], spec).contiguous().numpy()
