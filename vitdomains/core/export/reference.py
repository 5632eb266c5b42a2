"""The validation split as the artefacts will see it, and what the source model says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vitdomains.core.bundle import Bundle
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.loading import batches
from vitdomains.core.data.preprocess import PreprocessSpec, normalise, prepare
from vitdomains.core.evaluation.run import OnProgress
from vitdomains.core.export.checks import BATCHES, Yardstick
from vitdomains.core.export.onnx import EndToEnd
from vitdomains.core.inference.runtimes import session


@dataclass(frozen=True)
class Source:
    """What is exported: a module, an example input, and the names and open axes of its input."""

    module: nn.Module
    example: Tensor
    names: tuple[str, str]
    dynamic: dict[int, str]


def of_logits(
    model: nn.Module, bundle: Bundle, images: ImageDataset, batch_size: int, threads: int, on_progress: OnProgress
) -> tuple[Source, Yardstick]:
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
    yard = Yardstick(inputs, sample, forward(sample), np.concatenate(outputs), images.targets,
                     partial(task.scores, temperature=bundle.temperature), task)  # fmt: skip
    return Source(model, torch.from_numpy(sample[:2]), ("image", "logits"), {0: "batch"}), yard


def end_to_end(
    model: nn.Module, bundle: Bundle, images: ImageDataset, threads: int, on_progress: OnProgress
) -> tuple[Source, Yardstick]:
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
            yield _as_bytes(images.read_image(path))[None]

    def reference(image: np.ndarray) -> np.ndarray:
        return task.scores(forward(_prepared(image, spec)), bundle.temperature)

    outputs = []
    for path in images.paths:
        outputs.append(reference(images.read_image(path)))
        on_progress("reference", len(outputs), len(images), "images")
    first = [_as_bytes(images.read_image(path)) for path in images.paths[: max(BATCHES)]]
    height, width = (min(image.shape[axis] for image in first) for axis in (0, 1))
    sample = _filled(np.stack([image[:height, :width] for image in first]))  # a batch holds images of one size
    sample_outputs = np.concatenate([reference(image) for image in sample])
    yard = Yardstick(
        inputs, sample, sample_outputs, np.concatenate(outputs), images.targets, lambda scores: scores, task
    )
    axes = {0: "batch", 1: "height", 2: "width"}
    # Another size than that of the images: one that got stuck in the artefact shows at the gates.
    smaller = sample[:2, : max(2, 7 * height // 8), : max(2, 5 * width // 6)]
    example = torch.from_numpy(np.ascontiguousarray(smaller))
    return Source(module, example, ("image", "probabilities"), axes), yard


def _filled(inputs: np.ndarray) -> np.ndarray:
    """As many inputs as the largest batch has; a small validation split is gone through again."""
    return np.ascontiguousarray(inputs[np.arange(max(BATCHES)) % len(inputs)])


def _as_bytes(image: np.ndarray) -> np.ndarray:
    """What a decoder would give: uint8 [H,W,C]."""
    image = image if image.ndim == 3 else image[:, :, None]
    return image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _prepared(image: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    stored = np.atleast_3d(prepare(image, spec)).transpose(2, 0, 1)
    return normalise(torch.from_numpy(np.ascontiguousarray(stored))[None], spec).contiguous().numpy()
