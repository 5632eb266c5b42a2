"""Batches of a data set in an order that (seed, epoch) fixes, read ahead of their use.

The same batches come out with any number of workers, and a resumed epoch starts at its k-th batch without touching the
ones before it.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from vitdomains.core.data.dataset import ORDER, Batch, ImageDataset, Sample, collate, stream, warm
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.errors import ConfigError, ImageError

__all__ = ["Batch", "ImageCache", "ImageDataset", "batches", "plan", "warm"]


def plan(
    n: int,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    epoch: int,
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
    repeats: int = 1,
) -> list[npt.NDArray[np.int64]]:
    """What each batch of an epoch holds: arrays [B, 2] of (row of the manifest, number of the augmented copy).

    Shuffled data is shared out among ``world`` processes so that the k-th batches of all of them together are the k-th batch
    of one process with ``world`` times the batch size. All get the same number of samples: with ``drop_last`` each comes at
    most once, without it some come twice. Unshuffled data is shared out exactly, each sample once. With ``repeats`` an epoch
    has as many samples as without, of fewer distinct images, as in DeiT (Touvron et al. 2021, after Hoffer et al. 2020).

    Raises:
        ConfigError: ``batch_size`` is below 1 or no multiple of ``repeats``.
    """
    if batch_size < 1 or repeats < 1 or batch_size % repeats:
        raise ConfigError(
            f"A batch of {batch_size} does not hold every image {repeats} times.",
            hint="Make recipe.batch_size a multiple of recipe.repeated_augmentation.",
        )
    order = np.arange(n)
    if shuffle:
        order = stream(seed, ORDER, epoch).permutation(n)
        together = batch_size * world
        # Cut before it is shared out: no process may have a batch for which the others have none, or it waits for ever.
        length = n // together * together if drop_last else -(-n // world) * world
        order = np.resize(order, length if n else 0)
    order = order[rank::world]
    rows = np.stack([np.repeat(order, repeats), np.tile(np.arange(repeats), len(order))], axis=1)[: len(order)]
    stop = len(rows) // batch_size * batch_size if drop_last else len(rows)
    return [rows[at : min(at + batch_size, stop)] for at in range(0, stop, batch_size)]


def batches(
    dataset: ImageDataset,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    epoch: int,
    workers: int = 0,
    start: int = 0,
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
    repeats: int = 1,
    size: int | None = None,
    rows: npt.NDArray[np.int64] | None = None,
    depth: int = 4,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Batches (images [B, C', H, W] of the storage type, targets [B, K], ids) of one epoch.

    Args:
        dataset: The samples.
        batch_size: Samples a batch.
        shuffle: Order by (seed, epoch); else the order of the manifest.
        seed: Seed of the order. (That of the augmentation is the dataset's.)
        epoch: Pass over the data, for order and augmentation.
        workers: 0 decodes and augments in one thread ahead of the consumer; else in so many processes.
        start: Batches to skip, at no cost, to go on in the middle of an epoch.
        drop_last: Leave out an incomplete last batch.
        rank, world: Number of this process and of all of them.
        repeats: Augmented copies of an image in a batch.
        size: Height and width other than those prepared, pixels (progressive training).
        rows: Rows of the manifest to take, each augmented as in a pass over all of them; None: all.
        depth: Batches that are made ahead.
        pin_memory: Make batches in page-locked memory, for transfer to a GPU.

    Raises:
        ConfigError: See ``plan``.
        ImageError: A file cannot be read (raised where the batch would come).
    """
    todo = plan(
        len(dataset) if rows is None else len(rows), batch_size, shuffle=shuffle, seed=seed, epoch=epoch,
        drop_last=drop_last, rank=rank, world=world, repeats=repeats,
    )[start:]  # fmt: skip
    if rows is not None:
        todo = [np.stack([rows[batch[:, 0]], batch[:, 1]], axis=1) for batch in todo]
    # A sample is small: threads inside cv2 cost more than they give, and they take cores from the forward pass.
    cv2.setNumThreads(1)
    view = _Epoch(dataset, epoch, size)
    if workers > 0:
        return _from_processes(view, todo, workers, depth, pin_memory)
    return _from_thread((_batch(view, rows, pin_memory) for rows in todo), depth)


class _Epoch(Dataset["Sample | ImageError"]):
    """The samples of one epoch by (row, copy), as worker processes see them."""

    def __init__(self, dataset: ImageDataset, epoch: int, size: int | None) -> None:
        self.dataset, self.epoch, self.size = dataset, epoch, size

    def __getitem__(self, row: Sequence[int]) -> Sample | ImageError:
        try:
            return self.dataset.sample(int(row[0]), self.epoch, repeat=int(row[1]), size=self.size)
        except ImageError as error:
            return error  # DataLoader rebuilds an exception from its message alone; a value keeps its fields


def _collate_or_error(samples: Sequence[Sample | ImageError]) -> Batch | ImageError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, ImageError):
            return sample
        good.append(sample)
    return collate(good)


def _batch(view: _Epoch, rows: Iterable[Sequence[int]], pin_memory: bool) -> Batch:
    made = _collate_or_error([view[row] for row in rows])
    if isinstance(made, ImageError):
        raise made
    images, targets, ids = made
    return (images.pin_memory(), targets.pin_memory(), ids) if pin_memory else made


def _from_thread(made: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """Run an iterator ahead in a thread; errors come out where the item would, and closing ends the thread."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(max(depth, 1))
    stop = threading.Event()

    def offer(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.05)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in made:
                offer(batch)
                if stop.is_set():
                    return
            offer(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            offer(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _start_worker(_: int, threads: int) -> None:
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def _from_processes(
    view: _Epoch, todo: list[npt.NDArray[np.int64]], workers: int, depth: int, pin_memory: bool
) -> Iterator[Batch]:
    # Neither thread pools nor file handles survive a fork of the training process. The fork server imports torch once,
    # so that the workers of later epochs start at once.
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload([__name__, "vitdomains.core.data.augment"])
    loader: DataLoader[Sample | ImageError] = DataLoader(
        view,
        batch_sampler=[rows.tolist() for rows in todo],
        num_workers=workers,
        collate_fn=_collate_or_error,
        worker_init_fn=partial(_start_worker, threads=1),
        multiprocessing_context=context,
        prefetch_factor=max(depth // workers, 2),
        pin_memory=pin_memory,
    )
    for made in loader:
        if isinstance(made, ImageError):
            raise made
        images, targets, ids = made
        yield images, targets, list(ids)
