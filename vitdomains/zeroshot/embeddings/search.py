"""The nearest tiles of an index to a text or a picture: exact cosine similarity, a chunk of the index at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from vitdomains.core.data.preprocess import PreprocessSpec, normalise, prepare
from vitdomains.core.errors import ManifestError
from vitdomains.zeroshot.embeddings.reader import read_image
from vitdomains.zeroshot.embeddings.store import Index
from vitdomains.zeroshot.labels.prompts import class_embeddings, make_prompts
from vitdomains.zeroshot.models.towers import Towers, planes

Floats = npt.NDArray[np.float32]
CHUNK = 65_536


def nearest_tiles(index: Index, query: Floats, k: int = 20) -> pd.DataFrame:
    """The ``k`` tiles of highest cosine similarity to a unit vector [D], the nearest first; ties in the order of the index.

    Returns:
        The rows of ``index.tiles()`` with a column ``similarity``, -1..1.

    Raises:
        ManifestError: The index is empty.
    """
    if not len(index):
        raise ManifestError(
            f"{index.folder} holds no embeddings.", hint="Embed tiles: python -m vitdomains.zeroshot embed."
        )
    tiles = index.tiles()
    rows = index.find(tiles["key"])
    similarity = np.full(len(tiles), -np.inf, np.float32)
    for at in range(0, len(rows), CHUNK):
        vectors, _ = index.take(rows[at : at + CHUNK])
        similarity[at : at + CHUNK] = np.nan_to_num(vectors @ query.astype(np.float32), nan=-np.inf)
    best = np.argsort(-similarity, kind="stable")[:k]
    best = best[np.isfinite(similarity[best])]
    return tiles.iloc[best].drop(columns="key").assign(similarity=similarity[best]).reset_index(drop=True)


def text_query(towers: Towers, text: str, templates: tuple[str, ...] = ()) -> tuple[Floats, tuple[str, ...]]:
    """A unit vector [D] for a text in an ensemble of templates, and the exact prompts behind it."""
    prompts = make_prompts({"classes": [text]}, templates)
    vector = class_embeddings(prompts, lambda texts: np.asarray(towers.text.encode(texts).numpy(), dtype=np.float32))
    return vector[0], prompts.classes[0].prompts


def image_query(towers: Towers, path: str | Path, spec: PreprocessSpec) -> Floats:
    """A unit vector [D] for an image file.

    Raises:
        ImageError: It cannot be read.
    """
    image = torch.from_numpy(planes(prepare(read_image(path, spec), spec), spec))
    with torch.inference_mode():
        vector = towers.image(normalise(image[None], spec))
    return np.asarray(vector[0].numpy(), dtype=np.float32)
