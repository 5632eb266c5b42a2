"""The model at work behind the chest film app: loaded once, used by one thread at a time, ahead of the reader where it can be.

Nothing here is imported with PyTorch until the model is asked for, so that the first page does not wait for it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from apps.facts import BundleFacts
from apps.loaded_model import LoadedModel
from apps.viewer import Picture, film_picture, heat_picture
from vitdomains.core.errors import ImageError, VitDomainsError

if TYPE_CHECKING:
    from vitdomains.core.predict import Predictor
    from vitdomains.cxr.evidence import HeldOut
    from vitdomains.cxr.report import FilmReport

T = TypeVar("T")
FILMS_KEPT, HEATS_KEPT = 24, 400  # a film is megabytes, a heat map kilobytes
HEAT_FAILURES_KEPT = 10.0  # seconds: several times what the viewer waits before it asks again


@dataclass(frozen=True)
class Prediction:
    """Probabilities [K] of one film."""

    scores: NDArray[np.float64]


class Memo:
    """Results by key, the least recently used forgotten first; a result that is being made is made once.

    Args:
        size: How many are kept.
        workers: Threads that make them.
        name: Of the threads.
        failures_kept: Seconds for which a failure stands; whoever asks now and then would else never hear of it.
    """

    def __init__(self, size: int, workers: int, name: str, failures_kept: float = 0.0) -> None:
        self._size, self._failures_kept = size, failures_kept
        self._failed: dict[Hashable, float] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._futures: OrderedDict[Hashable, Future[Any]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> Future[T]:
        """The result of ``make``, begun now or before; one that failed a while ago or was dropped is made anew."""

        def made() -> T:
            try:
                return make()
            except BaseException:
                self._failed[key] = time.monotonic()
                raise

        with self._lock:
            future = self._futures.get(key)
            failed = future is not None and future.done() and (future.cancelled() or future.exception() is not None)
            if future is None or (failed and time.monotonic() >= self._failed.get(key, 0.0) + self._failures_kept):
                self._failed.pop(key, None)
                future = self._futures[key] = self._pool.submit(made)
            self._futures.move_to_end(key)
            while len(self._futures) > self._size:
                self._futures.popitem(last=False)[1].cancel()
            return future

    def drop_waiting(self, but: Hashable = None) -> None:
        """Forget what has not begun: the reader has gone elsewhere."""
        with self._lock:
            for key in [k for k, f in self._futures.items() if k != but and f.cancel()]:
                del self._futures[key]


def not_there(future: Future[Any], key: str) -> dict[str, Any] | None:
    """What a viewer is told of a heat map that it cannot have yet: to ask again, or why there is none. None: it is there."""
    if not future.done():
        return {"pending": True, "key": key}
    error = future.exception()
    if error is None:
        return None
    if not isinstance(error, VitDomainsError):
        raise error
    # Not the file's name: it may be a patient's.
    why = f"the image {error.problem}." if isinstance(error, ImageError) else str(error)
    return {"error": f"no heat map: {why} {error.hint}".strip(), "key": key}


class Engine:
    """The bundle's predictor and what comes of it: probabilities, films for the viewer, heat maps, reports.

    Safe to call from any thread. The model is loaded by ``start`` in the background; what needs it before waits.
    """

    def __init__(self, facts: BundleFacts, threads: int = 0) -> None:
        self.facts = facts
        self._model = LoadedModel(facts, _film_reader, threads)
        self._films = Memo(FILMS_KEPT, 2, "film")
        self._heats = Memo(HEATS_KEPT, 1, "heat", HEAT_FAILURES_KEPT)
        self._held_out = Memo(1, 1, "held-out")

    def start(self) -> None:
        """Load the model in the background, once."""
        self._model.start()

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._model.ready

    @property
    def predictor(self) -> Predictor:
        """The loaded bundle; waits for it.

        Raises:
            VitDomainsError: It could not be loaded.
        """
        return self._model.predictor

    def prepared(self, path: str) -> tuple[NDArray[Any], tuple[int, int]]:
        """The model's input [C, h, w] in storage type, and the film's height and width."""
        from vitdomains.core.preprocess import prepare

        image = self.predictor.read_image(path)
        made = prepare(image, self.predictor.bundle.preprocess)
        stacked = made[None] if made.ndim == 2 else np.ascontiguousarray(made.transpose(2, 0, 1))
        return stacked, (image.shape[0], image.shape[1])

    def scores(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """Calibrated probabilities [N, K] of prepared films."""
        import torch

        predictor = self.predictor
        with self._model.lock:
            return np.asarray(
                predictor.scores(predictor.logits(torch.from_numpy(np.stack(prepared)))), dtype=np.float64
            )

    def film(self, item: str, path: str) -> Future[Picture]:
        """The film for the viewer."""

        def make() -> Picture:
            from vitdomains.cxr.display import read_display

            return film_picture(read_display(path))

        return self._films.get(item, make)

    def heat(self, item: str, path: str, finding: str, method: str) -> Future[Picture]:
        """A heat map for the viewer: begun now, done when it is."""
        return self._heats.get((item, finding, method), lambda: self._heat(path, finding, method))

    def forget_waiting(self, item: str, finding: str, method: str) -> None:
        """Drop heat maps that nobody waits for any more, so that this one is next."""
        self._heats.drop_waiting(but=(item, finding, method))

    def _heat(self, path: str, finding: str, method: str) -> Picture:
        from vitdomains.core.preprocess import geometry

        stacked, shape = self.prepared(path)
        values = self._model.heat(stacked, finding, method)
        return heat_picture(values, geometry(self.predictor.bundle.preprocess, shape))

    def methods(self) -> list[str]:
        """Heat map methods that fit the model, the usual one first."""
        return self._model.methods()

    def faithfulness(self, path: str, finding: str, method: str) -> str:
        """How faithful a heat map is to the model, in words; tens of forward passes."""
        from vitdomains.core.explain.show import explain_file, faithfulness_text

        with self._model.lock:
            explained = explain_file(self.predictor, path, method, [finding])
        return faithfulness_text(explained.maps[0])

    def held_out(self) -> HeldOut:
        """The bundle's held-out predictions."""
        from vitdomains.cxr.evidence import read_held_out

        return self._held_out.get(0, lambda: read_held_out(self.facts.path, self.facts.classes)).result()

    def report(self, path: str, notice: str, **options: Any) -> FilmReport:
        """The report of a film; options of ``make_report``."""
        from vitdomains.cxr.report import make_report

        with self._model.lock:
            return make_report(self.predictor, path, notice=notice, held_out=self.held_out(), **options)


def _film_reader() -> Callable[..., Any]:
    from vitdomains.cxr.film import read_image

    return read_image
