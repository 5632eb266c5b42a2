"""What an app needs and takes seconds to load: begun once in the background, waited for by whoever needs it first."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import streamlit as st

from apps.shared.bundle_info import BundleInfo
from apps.shared.media import as_base64
from vitdomains.core.errors import BundleError, VitDomainsError

if TYPE_CHECKING:
    from vitdomains.core.inference.predictor import Predictor

logger = logging.getLogger(__name__)

T = TypeVar("T")

METHOD_NAMES = {
    "relevance": "relevance (attention and gradient)",
    "gradient_rollout": "gradient rollout",
    "rollout": "attention rollout (no class)",
    "gradcam": "Grad-CAM",
    "occlusion": "occlusion (slow)",
}


class Loading(Generic[T]):
    """The result of ``make``. Safe to use from any thread.

    Args:
        what: What is loaded, as errors and threads are to call it.
        make: Loads it; called once.
    """

    def __init__(self, what: str, make: Callable[[], T]) -> None:
        self._what, self._make = what, make
        self._loaded: Future[T] = Future()
        self._started = threading.Lock()

    def start(self) -> None:
        """Load in the background, once."""
        if self._started.acquire(blocking=False):
            threading.Thread(target=self._load, name=f"load {self._what}", daemon=True).start()

    def _load(self) -> None:
        try:
            made = self._make()
            # Streamlit looks for garbage after every run of a page, through all objects there are: a quarter of a second with
            # PyTorch in memory. What was loaded stays, so it is taken out of that search.
            gc.collect()
            gc.freeze()
            self._loaded.set_result(made)
        except (VitDomainsError, OSError, RuntimeError, ImportError) as error:
            logger.exception("%s could not be loaded", self._what)
            self._loaded.set_exception(error)

    @property
    def done(self) -> bool:
        """Whether it is known if it can be had."""
        return self._loaded.done()

    @property
    def problem(self) -> str:
        """Why it could not be loaded; empty while loading, and afterwards if all went well."""
        error = self._loaded.exception() if self._loaded.done() else None
        return "" if error is None else str(error)

    def result(self) -> T:
        """What was loaded; begins with that if nobody has, and waits for it.

        Raises:
            VitDomainsError: It could not be loaded.
        """
        self.start()
        try:
            return self._loaded.result()
        except (OSError, RuntimeError, ImportError) as error:
            raise BundleError(
                f"{self._what} could not be loaded: {error}", hint="The server's log says more."
            ) from error


class LoadedModel:
    """The predictor of a bundle. Safe to call from any thread; whoever runs the model holds ``lock``.

    Args:
        bundle: Of the bundle.
        make_reader: Gives the reader of image files; called when the model is loaded, so that nothing is imported before.
        threads: Compute threads; 0: one a physical core.
    """

    def __init__(self, bundle: BundleInfo, make_reader: Callable[[], Any], threads: int = 0) -> None:
        self.bundle = bundle
        self.lock = threading.Lock()  # capture hooks sit on the model itself: one user at a time
        self._make_reader = make_reader
        self._threads = threads
        self._loading = Loading("The model", self._load)

    def start(self) -> None:
        """Load the model in the background, once."""
        self._loading.start()

    def _load(self) -> Predictor:
        from vitdomains.core.inference.predictor import Predictor

        predictor = Predictor(self.bundle.path, self._make_reader(), threads=self._threads)
        if predictor.bundle.id != self.bundle.id:
            raise BundleError(f"{self.bundle.path} was replaced while it was being read.", hint="Start the app again.")
        return predictor

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._loading.done and not self._loading.problem

    @property
    def predictor(self) -> Predictor:
        """The loaded bundle; waits for it.

        Raises:
            VitDomainsError: It could not be loaded.
        """
        return self._loading.result()

    def methods(self) -> list[str]:
        """Heat map methods that fit the model, the usual one first."""
        from vitdomains.core.explain.attention import attention_blocks

        if attention_blocks(self.predictor.model):
            return ["relevance", "gradient_rollout", "rollout", "gradcam", "occlusion"]
        return ["gradcam", "occlusion"]

    def heat(self, stored: Any, name: str, method: str) -> Any:
        """A heat map [h, w] in 0..1 on the model's input grid.

        Args:
            stored: Prepared image [C, h, w] in the storage type of the bundle.
            name: The class.
            method: See ``vitdomains.core.explain``.
        """
        import torch

        from vitdomains.core.data.preprocess import normalise
        from vitdomains.core.explain import explain

        predictor = self.predictor
        k = predictor.bundle.classes.index(name)
        with self.lock:
            images = normalise(torch.from_numpy(stored)[None].to(predictor.device), predictor.bundle.preprocess)
            return explain(predictor.model, images, method, [k])[0, 0].cpu().numpy()


@st.cache_data(show_spinner=False)
def colour_maps() -> dict[str, str]:
    """Colour maps as base64 of 256 RGB triples."""
    from vitdomains.core.explain.overlay import COLOUR_MAPS, colours

    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    return {name: as_base64(colours(ramp, name).tobytes()) for name in COLOUR_MAPS}
