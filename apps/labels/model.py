"""The text half behind the zero-shot app: loaded in the background, it makes classifiers of cached embeddings from prompts."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from apps.labels.store import Labels
from apps.shared.loading import Loading
from vitdomains.core.errors import ConfigError
from vitdomains.zeroshot.embeddings.run import text_query
from vitdomains.zeroshot.labels.classify import Classifier
from vitdomains.zeroshot.labels.label import Options, text_classifier
from vitdomains.zeroshot.labels.prompts import PromptSet
from vitdomains.zeroshot.models.towers import Towers, load_towers


class TextModel:
    """The towers behind some labels, and the embeddings of their tiles. Safe to call from any thread.

    Args:
        labels: The labels.
        source: Where to load the model from; empty: where it was loaded from when the tiles were embedded.
        threads: Compute threads; 0: as PyTorch chooses.
    """

    def __init__(self, labels: Labels, source: str = "", threads: int = 0) -> None:
        self.labels = labels
        self._source = source or labels.index.about.source
        self._threads = threads
        self._loading = Loading("The text model", self._load)
        self._turn, self._reading = threading.Lock(), threading.Lock()
        self._vectors: NDArray[np.float32] | None = None

    def start(self) -> None:
        """Load in the background, once."""
        self._loading.start()

    def _load(self) -> Towers:
        if self._threads:
            torch.set_num_threads(self._threads)
        towers = load_towers(self._source)
        wanted = self.labels.index.about.model_id
        if towers.id != wanted:
            raise ConfigError(
                f"{self._source} is model {towers.id}, the embeddings are of model {wanted}.",
                hint="Start the app with --model and the checkpoint that labelled the tiles.",
            )
        return replace(towers, preprocess=self.labels.spec)

    @property
    def loading(self) -> bool:
        """Whether it is not yet known if the model can be had."""
        return not self._loading.done

    @property
    def problem(self) -> str:
        """Why the model could not be loaded; empty while loading and afterwards if all went well."""
        return self._loading.problem

    @property
    def towers(self) -> Towers:
        """The model; waits for it.

        Raises:
            VitDomainsError: It could not be loaded.
        """
        return self._loading.result()

    @property
    def vectors(self) -> NDArray[np.float32]:
        """[M, D] of the tiles that are shown."""
        with self._reading:
            if self._vectors is None:
                self._vectors = self.labels.vectors()
            return self._vectors

    def classifier(self, prompts: PromptSet, thresholds: tuple[float, ...] = ()) -> Classifier:
        """The classes' texts with the labels' temperature; texts that were embedded before cost nothing."""
        index = self.labels.index
        with self._turn:
            made = text_classifier(self.towers, prompts, Options(self.labels.kind), index.folder, index.about.precision)
        return replace(made, temperature=self.labels.temperature, thresholds=thresholds or made.thresholds)

    def probabilities(self, prompts: PromptSet) -> NDArray[np.float64]:
        """[M, K] of the tiles that are shown, under other classes; no image is read."""
        return self.classifier(prompts).probabilities(self.vectors)

    def query(self, text: str) -> NDArray[np.float32]:
        """Unit vector [D] of a search text."""
        with self._turn:
            return text_query(self.towers, text)[0]
