"""What an app needs and takes seconds to load: begun once in the background, waited for by whoever needs it first."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from vitdomains.core.errors import BundleError, VitDomainsError

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
