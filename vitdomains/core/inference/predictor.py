"""Batch prediction: files in, calibrated probabilities out.

Files are decoded while others are computed: on a CPU by streams that each read and compute a batch of their own, beside a GPU by
threads ahead of it. The output keeps the order of the input, and a file that cannot be read becomes a row with an error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from vitdomains.core.bundle import Bundle, load_model, read_bundle
from vitdomains.core.data.preprocess import PreprocessSpec, normalise, prepare
from vitdomains.core.errors import ImageError, as_image_error
from vitdomains.core.inference.backend import PROBE_SECONDS, Backend, choose, possible_backends
from vitdomains.core.inference.runtimes import in_bf16, session
from vitdomains.core.process import physical_cores

logger = logging.getLogger(__name__)

Record = tuple[str, str]
"""Id and path of one image."""

Prepared = tuple[Record, np.ndarray | str, str]
"""A record, its image [C, H, W] or why it cannot be read, and what is wrong with an image that can."""

Classify = Callable[[Tensor], np.ndarray]
"""Stored images [B, C', H, W] -> logits [B, K]."""

In = TypeVar("In")
Out = TypeVar("Out")

STREAM_PIXELS = 2**19
"""About how many pixels one stream on a CPU computes at once, 4 images at 384 x 384 and 10 at 224 x 224: what a layer writes is
still in the cache when the next one reads it."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image: calibrated probabilities [K], NaN where ``error`` says why there are none.

    ``quality`` says why the image is not of the kind that the model is made for, where that was looked at.
    """

    id: str
    path: str
    scores: np.ndarray
    labels: tuple[str, ...]
    bundle_id: str
    error: str = ""
    quality: str = ""


class Predictor:
    """A loaded bundle.

    Args:
        bundle: A bundle, or its folder.
        read_image: Reader of the domain: path -> float32 [H, W] or [H, W, C] in 0..1.
        device: Where the model runs; ``auto`` takes a GPU where there is one.
        precision: ``auto`` computes in bf16 where the processor does so in hardware, else in float32; or ``fp32``, ``bf16``,
            and for exported artefacts ``fp16`` and ``int8``.
        threads: Compute threads; 0: one per physical core.
        batch_size: Images per forward pass; fewer where several streams share a CPU (``STREAM_PIXELS``).
        model: The bundle's model where it is in memory already; else it is read from the bundle when it is needed.
        runtime: ``torch`` runs the model itself; ``onnx`` and ``openvino`` run what was exported and passed its gates; ``auto``
            takes the fastest of them on this machine, by a probe of some seconds that is remembered.
        read_checked: Reads in place of ``read_image`` and gives (image, what is wrong with it, "" for nothing), which becomes
            ``Prediction.quality``.

    Raises:
        BundleError: The bundle is damaged, or holds no artefact for this runtime and precision.
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
        runtime: str = "torch",
        read_checked: Callable[[str | Path], tuple[np.ndarray, str]] | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.batch_size = batch_size
        self.threads = threads or physical_cores()
        torch.set_num_threads(self.threads)
        self.read_image = read_image
        self.read_checked = read_checked
        self._task = self.bundle.task
        self._model = model if model is None else model.to(self.device).eval()
        backends = possible_backends(self.bundle, runtime, precision, cuda=self.device.type == "cuda")
        self.backend = backends[0] if runtime != "auto" else self._fastest(backends)
        self._forwards: dict[int, Classify] = {}
        self._loading = threading.Lock()

    @property
    def model(self) -> nn.Module:
        """The bundle's model in float32, on the device."""
        if self._model is None:
            self._model = load_model(self.bundle).to(self.device)
        return self._model

    @property
    def streams(self) -> int:
        """How many calls at once do the most work: on a CPU one a core, for then no core waits for another."""
        return self.threads if self.device.type == "cpu" else 1

    @property
    def stream_batch(self) -> int:
        """Images of a call where as many as ``streams`` are made at once."""
        if self.streams == 1:
            return self.batch_size
        spec = self.bundle.preprocess
        return min(self.batch_size, max(1, round(STREAM_PIXELS / (spec.height * spec.width))))

    def logits(self, images: Tensor, *, streams: int = 1) -> np.ndarray:
        """Logits [B, K] of prepared images [B, C', H, W] in the storage type of the bundle's preprocessing.

        ``streams``: threads of the caller that call at once; the compute threads are shared out among them.
        """
        return self._forward(streams)(images)

    def _forward(self, streams: int) -> Classify:
        """What runs the model, loaded and compiled once."""
        with self._loading:
            if streams not in self._forwards:
                self._forwards[streams] = self._load(self.backend, streams)
            return self._forwards[streams]

    def _load(self, backend: Backend, streams: int = 1) -> Classify:
        spec, device = self.bundle.preprocess, self.device
        if backend.runtime != "torch":
            file = self.bundle.path / self.bundle.exports[backend.format]["files"][0]
            run = session(file, backend.runtime, threads=self.threads, precision=backend.arithmetic, device=device.type,
                          streams=streams)  # fmt: skip
            return lambda images: run(normalised(images.numpy(), spec))
        bf16 = backend.precision == "bf16"
        model = in_bf16(self.model).eval() if bf16 else self.model

        of_thread = threading.local()

        def forward(images: Tensor) -> np.ndarray:
            if streams > 1 and not hasattr(
                of_thread, "threads"
            ):  # PyTorch counts compute threads by the thread that calls
                of_thread.threads = max(1, self.threads // streams)
                torch.set_num_threads(of_thread.threads)
            if device.type == "cuda":  # page-locked memory travels while the GPU computes
                images = images.pin_memory().to(device, non_blocking=True)
            with torch.inference_mode():
                x = normalise(images, spec)
                output: Tensor = model(x.bfloat16() if bf16 else x)
            return output.float().cpu().numpy()

        return forward

    def _fastest(self, backends: tuple[Backend, ...]) -> Backend:
        spec = self.bundle.preprocess
        count = self.stream_batch
        shape = (count, spec.channels, spec.height, spec.width)
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        images = torch.from_numpy(noise if spec.storage == "uint8" else noise.astype(np.float32))

        def measured(backend: Backend) -> float:
            forward = self._load(backend, self.streams)
            return images_per_second(forward, images, self.streams, PROBE_SECONDS / len(backends))

        return choose(self.bundle, backends, measured, shape, threads=self.threads)

    def read(self, path: str | Path) -> np.ndarray:
        """An image as the domain's reader gives it.

        Raises:
            ImageError: Whatever keeps it from being read.
        """
        try:
            return self.read_image(path)
        except ImageError:
            raise
        except Exception as error:
            raise as_image_error(path, error) from error

    def planes(self, image: np.ndarray) -> np.ndarray:
        """An image [H, W] or [H, W, C] prepared for ``logits``: [C', h, w] in the storage type."""
        return np.ascontiguousarray(np.atleast_3d(prepare(image, self.bundle.preprocess)).transpose(2, 0, 1))

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities [N, K]."""
        return self._task.scores(logits, self.bundle.temperature)

    def labels(self, scores: np.ndarray) -> tuple[str, ...]:
        """Findings at or above their threshold; for a single-label bundle the most probable class."""
        if self._task.kind == "singlelabel":
            return (self.bundle.classes[int(scores.argmax())],)
        return tuple(c for c, s, t in zip(self.bundle.classes, scores, self.bundle.thresholds, strict=True) if s >= t)

    def predict(self, records: Iterable[Record], *, decoders: int = 0) -> Iterator[Prediction]:
        """One prediction a record, in order; a bad file never stops the others.

        Args:
            records: Id and path each; read as they are needed.
            decoders: Threads that decode ahead of a GPU; 0: one per core. On a CPU each stream decodes its own images.
        """
        cv2.setNumThreads(1)  # an image is small: threads inside cv2 would only take cores from the model
        streams = self.streams
        few = isinstance(records, Sequence) and len(records) < streams  # then one call with all threads is sooner done
        if streams > 1 and not few:
            forward = partial(self.logits, streams=streams)
            batches = batched(iter(records), self._share(records, streams))
            for predictions in self.in_streams(lambda batch: self._work(batch, forward), batches):
                yield from predictions
            return
        decoders = decoders or (physical_cores() if self.device.type == "cuda" else 1)
        decoded = ahead(self._prepare, records, decoders, 2 * self.batch_size)
        for batch in batched(decoded, self.batch_size):
            yield from self._scored(batch, self.logits)

    def in_streams(self, work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
        """``map`` in as many threads as there are ``streams``: results in the order of the items."""
        try:
            yield from ahead(work, items, self.streams, 2 * self.streams)
        finally:
            torch.set_num_threads(self.threads)  # threads to come take the number that was set last

    def _share(self, records: Iterable[Record], streams: int) -> int:
        """Images in a batch: of a short list so few that every stream has some."""
        most = self.stream_batch
        count = len(records) if isinstance(records, Sequence) else most * streams
        return max(1, min(most, -(-count // streams)))

    def _no_number(self, path: str) -> str:
        hint = (
            "Use --precision fp32."
            if self.backend.precision != "fp32"
            else "Look at the image, and at the bundle's report."
        )
        return str(ImageError(path, f"the model gives no finite number in {self.backend.precision}", hint=hint))

    def _work(self, batch: Sequence[Record], forward: Classify) -> list[Prediction]:
        return list(self._scored([self._prepare(record) for record in batch], forward))

    def _prepare(self, record: Record) -> Prepared:
        path = record[1]
        try:
            raw, quality = self.read_checked(path) if self.read_checked else (self.read_image(path), "")
            image = self.planes(raw)
        except Exception as error:
            logger.debug("%s", path, exc_info=True)
            return record, str(as_image_error(path, error)), ""
        return record, image, quality

    def _scored(self, batch: Sequence[Prepared], forward: Classify) -> Iterator[Prediction]:
        channels = {image.shape[0] for _, image, _ in batch if not isinstance(image, str)}
        scores: dict[int, np.ndarray] = {}
        # Grey and colour files may stand in one folder; each goes through as what it is.
        for count in channels:
            rows = [
                i for i, (_, image, _) in enumerate(batch) if not isinstance(image, str) and image.shape[0] == count
            ]
            images = torch.from_numpy(np.stack([np.asarray(batch[i][1]) for i in rows]))
            scores |= dict(zip(rows, self.scores(forward(images)), strict=True))
        nothing = np.full(len(self.bundle.classes), np.nan)
        for i, ((identity, path), image, quality) in enumerate(batch):
            error = image if isinstance(image, str) else "" if np.isfinite(scores[i]).all() else self._no_number(path)
            if error:
                logger.warning("skipped: %s", error)
                yield Prediction(identity, path, nothing, (), self.bundle.id, error)
            else:
                yield Prediction(identity, path, scores[i], self.labels(scores[i]), self.bundle.id, quality=quality)


def ahead(work: Callable[[In], Out], items: Iterable[In], threads: int, depth: int) -> Iterator[Out]:
    """``map`` in threads: results in the order of the items, with at most ``depth`` items begun that nobody has asked for."""
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[Out]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) == depth:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:  # whoever stops early does not wait for what nobody wants
                future.cancel()


def batched(items: Iterable[In], size: int) -> Iterator[list[In]]:
    """Lists of ``size`` items, the last one of what is left."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def normalised(images: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """``normalise`` for arrays, in the calling thread alone: streams that each called PyTorch's threads would fight for cores."""
    std = np.asarray(spec.std, np.float64).reshape(-1, 1, 1) * (255.0 if images.dtype == np.uint8 else 1.0)
    mean = np.asarray(spec.mean, np.float64).reshape(-1, 1, 1) / np.asarray(spec.std, np.float64).reshape(-1, 1, 1)
    out = np.empty((len(images), spec.channels, *images.shape[2:]), np.float32)
    np.multiply(images, (1 / std).astype(np.float32), out=out)
    return np.subtract(out, mean.astype(np.float32), out=out)


def images_per_second(forward: Classify, images: Tensor, streams: int, seconds: float) -> float:
    """Throughput of ``streams`` calls at once over some seconds, after one call each to warm up; at least two rounds."""
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(forward, [images] * streams))
        start, rounds = time.perf_counter(), 0
        while rounds < 2 or time.perf_counter() - start < seconds:
            list(pool.map(forward, [images] * streams))
            rounds += 1
        return rounds * streams * len(images) / (time.perf_counter() - start)
