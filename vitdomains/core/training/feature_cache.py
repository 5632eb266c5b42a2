"""On-disk cache of what a network says of each image: tokens after frozen blocks, logits of a teacher.

One row an image, added as it is computed, safe under several processes and ``kill -9``: the rows are written first, their keys
after them; rows without a key are overwritten by the next append.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
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

Content = Literal["tokens", "teacher"]
TYPES: dict[Content, type[np.floating]] = {"tokens": np.float16, "teacher": np.float32}
"""How exactly rows are stored: tokens are many, logits are few."""
_KEY = 16  # bytes


@dataclass(frozen=True)
class Features:
    """Rows [M, ...] on disk, and which of them belong to a data set of N images, in its order."""

    rows: np.ndarray
    order: np.ndarray

    def __getitem__(self, images: np.ndarray) -> np.ndarray:
        """Rows [B, ...] of the images at these positions."""
        return np.asarray(self.rows[self.order[images]])


class FeatureCache:
    """Rows by key (16 bytes) in ``folder/CONTENT-NAME.f16`` (``.f32``), beside them their keys in order and their shape."""

    def __init__(self, folder: Path, name: str, content: Content = "tokens") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._type = np.dtype(TYPES[content])
        self._data = folder / f"{content}-{name}.f{8 * self._type.itemsize}"
        self._keys = folder / f"{content}-{name}.keys"
        self._shape = folder / f"{content}-{name}.shape"
        self._row: dict[bytes, int] = {}
        self._keys.touch()
        self._data.touch()
        with self._keys.open("rb") as keys:
            self._read(keys.fileno())

    def __contains__(self, key: bytes) -> bool:
        return key in self._row

    def _read(self, keys: int) -> None:
        """Take note of the keys that were added since the last look, by whomever."""
        known = len(self._row)
        count = os.fstat(keys).st_size // _KEY - known
        added = os.pread(keys, count * _KEY, known * _KEY)
        self._row |= {added[i * _KEY : (i + 1) * _KEY]: known + i for i in range(count)}

    def append(self, keys: Sequence[bytes], values: np.ndarray) -> None:
        """Add the rows [B, ...] of those keys that are new; equal keys stand for equal rows."""
        rows = np.ascontiguousarray(values, self._type)
        if not self._shape.exists():
            write_text(self._shape, json.dumps(rows.shape[1:]))
        with self._keys.open("r+b") as index, self._data.open("r+b") as data:
            fcntl.flock(index, fcntl.LOCK_EX)
            self._read(index.fileno())
            new = {key: i for i, key in enumerate(keys) if key not in self._row}
            data.seek(len(self._row) * rows[0].nbytes)
            data.write(rows[list(new.values())].tobytes())
            data.flush()
            index.seek(len(self._row) * _KEY)
            index.write(b"".join(new))
            index.flush()
            self._row |= {key: len(self._row) + i for i, key in enumerate(new)}

    def select(self, keys: Sequence[bytes]) -> Features:
        """The rows of ``keys``, in that order."""
        shape = json.loads(self._shape.read_text(encoding="utf-8"))
        rows = np.memmap(self._data, self._type, "r", shape=(len(self._row), *shape))
        return Features(rows, np.array([self._row[key] for key in keys]))


@torch.inference_mode()
def cached_features(
    content: Content,
    network: Callable[[Tensor], Tensor],
    identity: str,
    dataset: ImageDataset,
    spec: PreprocessSpec,
    config: Config,
    folder: Path,
    device: torch.device,
    view: int,
) -> Features:
    """The output of ``network`` for one view of every image; what an earlier run left in ``folder`` is not computed again.

    Args:
        content: Tokens or a teacher's logits.
        network: Normalised images [B, C, H, W] -> [B, ...].
        identity: Hash of all of the network that its output depends on.
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
    name = hashlib.sha256(repr((identity, spec, view, how, fast)).encode()).hexdigest()[:16]
    cache = FeatureCache(folder, name, content)
    keys = [file_key(path, "tokens") for path in dataset.paths]  # a file that changed is another image
    # In order and with their own numbers, by which the augmentation is drawn: a view is the same in whatever parts it is made.
    first = {key: i for i, key in reversed(list(enumerate(keys)))}  # a file may stand in several rows
    missing = np.array(sorted(i for key, i in first.items() if key not in cache), dtype=np.int64)
    source = dataset if augmented else dataset.without_augmentation()
    made = batches(source, recipe.batch_size, shuffle=False, seed=config.run.seed, epoch=view, rows=missing,
                   workers=config.run.workers)  # fmt: skip
    done = 0
    for images, _, _ in made:
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            rows = network(normalise(images.to(device), spec)).float().cpu().numpy()
        cache.append([keys[i] for i in missing[done : done + len(rows)]], rows)
        done += len(rows)
        level = logging.INFO if done % (10 * recipe.batch_size) == 0 or done == len(missing) else logging.DEBUG
        logger.log(level, "%s, view %d: %d of %d images", content, view, done, len(missing))
    return cache.select(keys)
