"""The model at work behind the chest film app: loaded once, used by one thread at a time, ahead of the reader where it can be.

Nothing here is imported with PyTorch until the model is asked for, so that the first page does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.shared.bundle_info import BundleInfo
from apps.shared.loading import LoadedModel
from apps.shared.memo import HEAT_FAILURES_KEPT, Memo
from apps.viewer import Picture, film_picture, heat_picture

if TYPE_CHECKING:
    from vitdomains.core.inference.predictor import Predictor
    from vitdomains.cxr.report.content import FilmReport
    from vitdomains.cxr.report.neighbours import HeldOut

FILMS_KEPT, HEATS_KEPT = 24, 400  # a film is megabytes, a heat map kilobytes


class Engine:
    """The bundle's predictor and what comes of it: probabilities, films for the viewer, heat maps, reports.

    Safe to call from any thread. The model is loaded by ``start`` in the background; what needs it before waits.
    """

    def __init__(self, bundle: BundleInfo, threads: int = 0) -> None:
        self.bundle = bundle
        self._model = LoadedModel(bundle, _film_reader, threads)
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
        from vitdomains.core.data.preprocess import prepare

        image = self.predictor.read_image(path)
        made = prepare(image, self.predictor.bundle.preprocess)
        return _channels_first(made), (image.shape[0], image.shape[1])

    def checked(self, path: str) -> tuple[NDArray[Any], str]:
        """The model's input [C, h, w] in storage type, and why the film is not acceptable as a frontal chest film."""
        from vitdomains.core.data.preprocess import prepare
        from vitdomains.cxr.quality import read_checked

        image, quality = read_checked(path)
        return _channels_first(prepare(image, self.predictor.bundle.preprocess)), quality

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
            from vitdomains.cxr.film.display import read_display

            return film_picture(read_display(path))

        return self._films.get(item, make)

    def heat(self, item: str, path: str, finding: str, method: str) -> Future[Picture]:
        """A heat map for the viewer: begun now, done when it is."""
        return self._heats.get((item, finding, method), lambda: self._heat(path, finding, method))

    def forget_waiting(self, item: str, finding: str, method: str) -> None:
        """Drop heat maps that nobody waits for any more, so that this one is next."""
        self._heats.drop_waiting(but=(item, finding, method))

    def _heat(self, path: str, finding: str, method: str) -> Picture:
        from vitdomains.core.data.preprocess import geometry

        stacked, shape = self.prepared(path)
        values = self._model.heat(stacked, finding, method)
        return heat_picture(values, geometry(self.predictor.bundle.preprocess, shape))

    def methods(self) -> list[str]:
        """Heat map methods that fit the model, the usual one first."""
        return self._model.methods()

    def faithfulness(self, path: str, finding: str, method: str) -> str:
        """How faithful a heat map is to the model, in words; tens of forward passes."""
        from vitdomains.core.explain.render import explain_file, faithfulness_text

        with self._model.lock:
            explained = explain_file(self.predictor, path, method, [finding])
        return faithfulness_text(explained.maps[0])

    def held_out(self) -> HeldOut:
        """The bundle's held-out predictions."""
        from vitdomains.cxr.report.neighbours import read_held_out

        return self._held_out.get(0, lambda: read_held_out(self.bundle.path, self.bundle.classes)).result()

    def report(self, path: str, notice: str, **options: Any) -> FilmReport:
        """The report of a film; options of ``make_report``."""
        from vitdomains.cxr.report.report import make_report

        with self._model.lock:
            return make_report(self.predictor, path, notice=notice, held_out=self.held_out(), **options)


def _channels_first(image: NDArray[Any]) -> NDArray[Any]:
    return image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))


def _film_reader() -> Callable[..., Any]:
    from vitdomains.cxr.film.film import read_image

    return read_image
