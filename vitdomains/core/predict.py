"""From files to probabilities: a bundle at work.

Behind the bundle; sees no configuration and no data set. Decoding runs in threads ahead of the model, the output keeps the
order of the input, and a file that cannot be read becomes a row with an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitdomains.core.bundle import Bundle, load_model, read_bundle
from vitdomains.core.errors import BundleError, ImageError
from vitdomains.core.preprocess import normalise, prepare
from vitdomains.core.process import has_fast_bf16, physical_cores

logger = logging.getLogger(__name__)

Record = tuple[str, str]
"""Id and path of one image."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image: calibrated probabilities [K], NaN where ``error`` says why there are none."""

    id: str
    path: str
    scores: np.ndarray
    labels: tuple[str, ...]
    bundle_id: str
    error: str = ""


class Predictor:
    """A loaded bundle.

    Args:
        bundle: A bundle, or its folder.
        read_image: Reader of the domain: path -> float32 [H, W] or [H, W, C] in 0..1.
        device: Where the model runs; ``auto`` takes a GPU where there is one.
        precision: ``auto`` computes in bf16 where the processor does so in hardware, else in float32.
        threads: Compute threads; 0: one per physical core.
        batch_size: Images per forward pass.
        model: The bundle's model where it is in memory already; else it is read from the bundle.

    Raises:
        BundleError: The bundle is damaged.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        read_image: Callable[[str | Path], np.ndarray],
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        batch_size: int = 8,
        model: nn.Module | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
        if precision not in ("auto", "fp32", "bf16"):
            raise BundleError(f"precision {precision!r} is not known.", hint="Use auto, fp32 or bf16.")
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.batch_size = batch_size
        torch.set_num_threads(threads or physical_cores())
        self.model = (load_model(self.bundle) if model is None else model).to(self.device).eval()
        self.read_image = read_image
        self._task = self.bundle.task
        self._bf16 = precision == "bf16" or (precision == "auto" and (self.device.type == "cuda" or has_fast_bf16()))

    def logits(self, images: Tensor) -> np.ndarray:
        """Logits [B, K] of prepared images [B, C', H, W] in the storage type of the bundle's preprocessing."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            output: Tensor = self.model(normalise(images.to(self.device), self.bundle.preprocess))
        return output.float().cpu().numpy()

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities [N, K]."""
        return self._task.scores(logits, self.bundle.temperature)

    def labels(self, scores: np.ndarray) -> tuple[str, ...]:
        """Findings at or above their threshold; for a single-label bundle the most probable class."""
        if self._task.kind == "singlelabel":
            return (self.bundle.classes[int(scores.argmax())],)
        return tuple(c for c, s, t in zip(self.bundle.classes, scores, self.bundle.thresholds, strict=True) if s >= t)

    def predict(self, records: Iterable[Record], *, decoders: int = 2) -> Iterator[Prediction]:
        """One prediction a record, in order; a bad file never stops the others."""
        iterator = iter(records)
        with ThreadPoolExecutor(decoders, thread_name_prefix="decode") as pool:
            pending: list[tuple[Record, Future[np.ndarray | str]]] = []
            while True:
                # Two batches ahead: decoding fills one while the model works on the other.
                pending += [
                    (r, pool.submit(self._prepare, r[1])) for r in islice(iterator, 2 * self.batch_size - len(pending))
                ]
                if not pending:
                    return
                batch, pending = pending[: self.batch_size], pending[self.batch_size :]
                yield from self._forward([(record, future.result()) for record, future in batch])

    def _prepare(self, path: str) -> np.ndarray | str:
        try:
            image = prepare(self.read_image(path), self.bundle.preprocess)
        except ImageError as error:
            return str(error)
        return image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))

    def _forward(self, batch: list[tuple[Record, np.ndarray | str]]) -> Iterator[Prediction]:
        channels = {image.shape[0] for _, image in batch if not isinstance(image, str)}
        scores: dict[int, np.ndarray] = {}
        # Grey and colour files may stand in one folder; each goes through as what it is.
        for count in channels:
            rows = [i for i, (_, image) in enumerate(batch) if not isinstance(image, str) and image.shape[0] == count]
            images = torch.from_numpy(np.stack([np.asarray(batch[i][1]) for i in rows]))
            scores |= dict(zip(rows, self.scores(self.logits(images)), strict=True))
        nothing = np.full(len(self.bundle.classes), np.nan)
        for i, ((identity, path), image) in enumerate(batch):
            if isinstance(image, str):
                logger.warning("skipped: %s", image)
                yield Prediction(identity, path, nothing, (), self.bundle.id, image)
            else:
                yield Prediction(identity, path, scores[i], self.labels(scores[i]), self.bundle.id)
