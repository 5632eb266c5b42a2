"""What a network says of an image that never changes: tokens after frozen blocks, logits of a teacher, kept on disk.

Between the data set and the loop, one row an image, added as they are computed, safe under ``kill -9``. The rows file grows
first, the index after it; rows that no index entry names are overwritten by the next append.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vitdomains.core.config.schema import Config
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.image_cache import file_key
from vitdomains.core.data.loading import batches
from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.files import write_text
from vitdomains.core.process import has_fast_bf16

logger = logging.getLogger(__name__)

Kind = Literal["tokens", "teacher"]
TYPES: dict[Kind, type[np.floating]] = {"tokens": np.float16, "teacher": np.float32}
"""What is kept, and how exactly: tokens are many, logits are few."""


@dataclass(frozen=True)
class Tokens:
    """Rows [M, ...] on disk, and which of them belong to a data set of N images, in its order."""

    rows: np.ndarray
    order: np.ndarray

    def __getitem__(self, images: np.ndarray) -> np.ndarray:
        """Rows [B, ...] of the images at these positions."""
        return np.asarray(self.rows[self.order[images]])


class TokenStore:
    """Rows by key (the path of an image) in ``folder/KIND-NAME.f16`` (``.f32``) with ``folder/KIND-NAME.json`` beside it."""

    def __init__(self, folder: Path, name: str, kind: Kind = "tokens") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._type = np.dtype(TYPES[kind])
        self._data = folder / f"{kind}-{name}.f{8 * self._type.itemsize}"
        self._index = folder / f"{kind}-{name}.json"
        known = (
            json.loads(self._index.read_text(encoding="utf-8")) if self._index.exists() else {"shape": [], "keys": []}
        )
        self._shape: list[int] = known["shape"]
        self._row: dict[str, int] = {key: row for row, key in enumerate(known["keys"])}

    def __contains__(self, key: str) -> bool:
        return key in self._row

    def append(self, keys: Sequence[str], tokens: np.ndarray) -> None:
        """Add rows [B, ...]."""
        rows = np.ascontiguousarray(tokens, self._type)
        self._shape = list(rows.shape[1:])
        with self._data.open("r+b" if self._data.exists() else "w+b") as handle:
            handle.seek(len(self._row) * rows[0].nbytes)
            handle.write(rows.tobytes())
        self._row |= {key: len(self._row) + i for i, key in enumerate(keys)}
        write_text(self._index, json.dumps({"shape": self._shape, "keys": list(self._row)}))

    def select(self, keys: Sequence[str]) -> Tokens:
        """The rows of ``keys``, in that order."""
        rows = np.memmap(self._data, self._type, "r", shape=(len(self._row), *self._shape))
        return Tokens(rows, np.array([self._row[key] for key in keys]))


@torch.inference_mode()
def stored_view(
    kind: Kind,
    network: Callable[[Tensor], Tensor],
    content: str,
    dataset: ImageDataset,
    spec: PreprocessSpec,
    config: Config,
    folder: Path,
    device: torch.device,
    view: int,
) -> Tokens:
    """What ``network`` says of one view of every image; what an earlier run left in ``folder`` is not computed again.

    Args:
        kind: Tokens or a teacher's logits.
        network: Normalised images [B, C, H, W] -> [B, ...].
        content: Hash of all of the network that its output depends on.
        dataset: The images. View 0 shows them as validation sees them, the others as epoch ``view`` would augment them.
        spec: How the network's input is normalised.
        config: Augmentation, batch size, precision.
        folder: Where the rows are kept.
        device: Where the network is.
        view: Number of the view.
    """
    augmented, recipe = view > 0, config.recipe
    how = (recipe.augment, recipe.randaugment_magnitude, recipe.erasing, dataset.seed) if augmented else ()
    fast = recipe.precision != "fp32" and (device.type == "cuda" or has_fast_bf16())
    name = hashlib.sha256(repr((content, spec, view, how, fast)).encode()).hexdigest()[:16]
    store = TokenStore(folder, name, kind)
    keys = [file_key(path, "tokens").hex() for path in dataset.paths]  # a file that changed is another image
    # In order and with their own numbers, by which the augmentation is drawn: a view is the same in whatever parts it is made.
    missing = np.array([i for i, key in enumerate(keys) if key not in store], dtype=np.int64)
    source = dataset if augmented else dataset.without_augmentation()
    made = batches(source, recipe.batch_size, shuffle=False, seed=config.run.seed, epoch=view, rows=missing,
                   workers=config.run.workers)  # fmt: skip
    done = 0
    for images, _, _ in made:
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            rows = network(normalise(images.to(device), spec)).float().cpu().numpy()
        store.append([keys[i] for i in missing[done : done + len(rows)]], rows)
        done += len(rows)
        told = done % (10 * recipe.batch_size) == 0 or done == len(missing)
        text = "%s, view %d: %d of %d images"
        logger.log(logging.INFO if told else logging.DEBUG, text, kind, view, done, len(missing))
    return store.select(keys)
