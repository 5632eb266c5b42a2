"""Embeddings of tiles, in a worker that decodes ahead in threads and computes in batches of one size; of query texts and images.

Runs in any pool of ``core/jobs``. A batch that is not full is filled up, so that what a tile gets does not depend on
which others could not be read.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from vitdomains.core.data.preprocess import PreprocessSpec, normalise, prepare
from vitdomains.core.errors import ConfigError, WeightsError, as_image_error
from vitdomains.core.geo.map.scene import Strip, read_strip, strips
from vitdomains.core.jobs.pool import Work
from vitdomains.core.models.image_tower import ImageTower
from vitdomains.core.process import has_fast_bf16
from vitdomains.zeroshot.embeddings.reader import read_image, read_pixels
from vitdomains.zeroshot.embeddings.store import About
from vitdomains.zeroshot.labels.prompts import class_embeddings, make_prompts
from vitdomains.zeroshot.models.towers import Towers, load_towers, planes

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
_CACHE_MB = "64"


def chosen_precision(precision: str, device: str) -> str:
    """``bf16`` or ``fp32``; auto takes bf16 where the device multiplies it in hardware."""
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision {precision!r} is not known.", hint="Use auto, fp32 or bf16.")
    if precision != "auto":
        return precision
    return "bf16" if device.startswith("cuda") or has_fast_bf16() else "fp32"


def chosen_device(device: str) -> str:
    """auto: the first GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def about_towers(towers: Towers, precision: str = "auto", device: str = "auto") -> About:
    """The identity of the embeddings that these towers make."""
    return About(
        towers.id,
        towers.source,
        chosen_precision(precision, chosen_device(device)),
        towers.preprocess,
        towers.image.width,
    )


@dataclass(frozen=True)
class MakeEmbedder:
    """Makes the worker; travels to other processes and machines, where ``about.source`` has to lead to the same model.

    Args:
        about: Model, preprocessing and precision.
        batch_size: Tiles a forward pass.
        readers: Threads that read and decode ahead of the model.
        device: Where the model runs.
    """

    about: About
    batch_size: int = 32
    readers: int = 2
    device: str = "auto"

    def __call__(self) -> Work:
        return make_work(self, self._load)

    def _load(self) -> ImageTower:
        towers = load_towers(self.about.source)
        if towers.id != self.about.model_id:
            raise WeightsError(
                f"{self.about.source} is model {towers.id} here, the job is one of model {self.about.model_id}.",
                hint="Give every machine the same checkpoint under the same name.",
            )
        return towers.image


def make_work(job: MakeEmbedder, load: Callable[[], ImageTower]) -> Work:
    """The worker function; the model is loaded when the first tile could be read."""
    # Decoded blocks would fill a twentieth of the machine's memory; a strip is read once, so a few are enough.
    os.environ.setdefault("GDAL_CACHEMAX", _CACHE_MB)
    pool = ThreadPoolExecutor(job.readers, thread_name_prefix="read")
    loaded: list[ImageTower] = []
    device = chosen_device(job.device)
    dtype = torch.bfloat16 if job.about.precision == "bf16" else torch.float32

    def tower() -> ImageTower:
        if not loaded:
            # A copy: the caller's own stays in float32.
            loaded.append(copy.deepcopy(load()).to(device, dtype).eval())
        return loaded[0]

    return lambda rows: embed_rows(rows, job, tower, pool)


@dataclass(frozen=True)
class _Tile:
    """A tile as it was read: ``image`` [3, H, W] as stored, None where it holds no data or is in error."""

    at: int
    image: Array | None = None
    valid: float = 0.0
    error: str = ""


def embed_rows(
    rows: pd.DataFrame, job: MakeEmbedder, tower: Callable[[], ImageTower], pool: ThreadPoolExecutor
) -> pd.DataFrame:
    """``tile_id, embedding`` (bytes of D numbers)``, valid_fraction, error`` of planned rows."""
    width, spec = job.about.width, job.about.preprocess
    vectors = np.zeros((len(rows), width), job.about.dtype)
    valid, errors = np.zeros(len(rows), np.float32), [""] * len(rows)
    batch = torch.zeros((job.batch_size, spec.channels, spec.height, spec.width), dtype=getattr(torch, spec.storage))
    waiting: list[int] = []

    def forward() -> None:
        with torch.inference_mode():
            found = tower()(normalise(batch.to(chosen_device(job.device)), spec))
        vectors[waiting] = found[: len(waiting)].cpu().numpy()
        waiting.clear()

    for tile in _tiles(rows, job, pool):
        valid[tile.at], errors[tile.at] = tile.valid, tile.error
        if tile.image is not None:
            batch[len(waiting)] = torch.from_numpy(tile.image)
            waiting.append(tile.at)
        if len(waiting) == job.batch_size:
            forward()
    if waiting:
        forward()
    return pd.DataFrame(
        {
            "tile_id": rows["tile_id"].reset_index(drop=True),
            "embedding": pd.Series([vector.tobytes() for vector in vectors], dtype=object),
            "valid_fraction": valid,
            "error": pd.Series(errors, dtype="str"),
        }
    )


def _tiles(rows: pd.DataFrame, job: MakeEmbedder, pool: ThreadPoolExecutor) -> Iterator[_Tile]:
    """In the order of the plan; read far enough ahead that the threads fill one batch while the model works on another."""
    files = bool((rows["width"] < 0).all())
    tasks: list[Callable[[], list[_Tile]]]
    if files:
        tasks = [partial(_read_file, at, path, job) for at, path in enumerate(rows["path"])]
    else:
        tasks = [partial(_read_strip, strip, job) for strip in strips(rows)]
    ahead: deque[Future[list[_Tile]]] = deque()
    depth = 2 * job.batch_size if files else 2 + job.readers
    for task in tasks:
        ahead.append(pool.submit(task))
        if len(ahead) > depth:
            yield from ahead.popleft().result()
    for future in ahead:
        yield from future.result()


def _failed(at: int, path: str, error: Exception) -> list[_Tile]:
    """A tile in error, whichever library raised it; the job goes on with the next one."""
    return [_Tile(at, valid=np.nan, error=str(as_image_error(path, error)))]


def _read_file(at: int, path: str, job: MakeEmbedder) -> list[_Tile]:
    try:
        return [_Tile(at, _prepared(read_image(Path(path), job.about.preprocess), job), 1.0)]
    except Exception as error:  # noqa: BLE001 - one bad file never ends a job
        return _failed(at, path, error)


def _read_strip(strip: Strip, job: MakeEmbedder) -> list[_Tile]:
    """Neighbouring windows of a scene in one read; where that fails, each by itself."""
    found: list[_Tile] = []
    for part in read_strip(strip, lambda extent: read_pixels(strip.path, extent, job.about.preprocess)):
        if len(part) == 2:
            found.append(_Tile(part[0], valid=np.nan, error=str(part[1])))
            continue
        own, pixels, valid = part
        for i, col in enumerate(own.cols):
            here = slice(col - own.cols[0], col - own.cols[0] + own.width)
            share = float(valid[:, here].mean())
            found.append(_Tile(own.at + i, _prepared(pixels[:, here], job) if share else None, share))
    return found


def _prepared(image: Array, job: MakeEmbedder) -> Array:
    """``planes`` of what ``prepare`` makes of it."""
    return planes(prepare(image, job.about.preprocess), job.about.preprocess)


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
