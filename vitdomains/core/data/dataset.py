"""Data set: a row of the manifest becomes a sample, decoded or from the cache, augmented, with its labels.

A sample is a function of (seed, epoch, index) alone; nothing random is carried from one sample to the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vitdomains.core.data.image_cache import ImageCache, file_key
from vitdomains.core.data.manifest import Manifest, labels
from vitdomains.core.data.preprocess import Array, PreprocessSpec, prepare, prepare_bits, resize_array, resized_spec
from vitdomains.core.errors import ImageError, VitDomainsError

ReadImage = Callable[[str], Array]
ReadRegions = Callable[[str], Mapping[str, npt.NDArray[np.bool_]]]
Augment = Callable[[Array, np.random.Generator, Array | None], Array]
Sample = tuple[Array, npt.NDArray[np.float32], str]
Batch = tuple[Tensor, Tensor, list[str]]

ORDER, SAMPLES = 0, 1  # separate random streams for the order of an epoch and for the samples in it


class ImageDataset(Dataset[tuple[Tensor, Tensor, str]]):
    """Images and labels of a manifest, prepared, cached and augmented.

    Args:
        manifest: The records.
        read_image: Path -> [H, W] or [H, W, C] as ``prepare`` takes it. With workers: a function of a module.
        spec: The preprocessing.
        cache: Where prepared images are kept; None decodes each time.
        augment: (prepared image, generator) -> image of the same shape and type; None for validation.
        seed: Seed of the augmentation.
        read_regions: Path of a mask -> {class: bool [H, W] on the image}, for rows whose column ``mask`` names one.
        region_grid: With ``read_regions``: cells along each side; a sample's target then goes on with one label a class
            and cell, [K + K * grid * grid], NaN for an image without a mask.
    """

    def __init__(
        self,
        manifest: Manifest,
        read_image: ReadImage,
        spec: PreprocessSpec,
        *,
        cache: ImageCache | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        read_regions: ReadRegions | None = None,
        region_grid: int = 12,
    ) -> None:
        self.read_regions, self.region_grid = read_regions, region_grid
        masks = manifest.table["mask"].fillna("") if "mask" in manifest.table else [""] * len(manifest)
        self.masks: list[str] = [str(path) for path in masks]
        self._bits: dict[int, Array] = {}
        self.manifest = manifest
        self.read_image = read_image
        self.spec = spec
        self.cache = cache
        self.augment = augment
        self.seed = seed
        self.epoch = 0
        self.ids: list[str] = [str(i) for i in manifest.table["id"]]
        self.paths: list[str] = [str(p) for p in manifest.table["path"]]
        self.targets = np.ascontiguousarray(labels(manifest), dtype=np.float32)  # [N, K]
        self._keys: list[bytes | None] = [None] * len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation ``dataset[i]`` draws."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        """(image [C', H, W] of the storage type, target [K] float32 with NaN for unknown, id)."""
        images, targets, ids = collate([self.sample(index, self.epoch)])
        return images[0], targets[0], ids[0]

    def target(self, index: int) -> Tensor:
        """Labels [K] of a row: 1, 0, NaN for unknown."""
        return torch.from_numpy(self.targets[index])

    def without_augmentation(self) -> ImageDataset:
        """The same images as validation sees them."""
        return ImageDataset(self.manifest, self.read_image, self.spec, cache=self.cache, seed=self.seed)

    @property
    def fingerprint(self) -> str:
        """Hash of the images: ids, files as they are now, and preprocessing; not of labels or augmentation."""
        keys = [file_key(path, repr(self.spec)).hex() for path in self.paths]
        return hashlib.sha256("\n".join(keys + self.ids).encode("utf-8", "surrogateescape")).hexdigest()

    def key(self, index: int) -> bytes | None:
        """Key of the image in the cache; the file is looked at once per dataset."""
        if self.cache is not None and self._keys[index] is None:
            self._keys[index] = self.cache.key(self.paths[index])
        return self._keys[index]

    def image(self, index: int) -> Array:
        """The prepared image without augmentation, [h, w] or [h, w, C]; may be read-only.

        Raises:
            ImageError: The file cannot be read.
        """
        key = self.key(index)
        if self.cache is None or key is None:
            return self._decode(index)
        cached = self.cache.get(key)
        if cached is None:
            cached = self._decode(index)
            self.cache.put(key, cached)
        return cached

    def sample(self, index: int, epoch: int, *, repeat: int = 0, size: int | None = None) -> Sample:
        """One augmented sample as arrays: a function of (seed, epoch, index, repeat) and nothing else.

        Args:
            index: Row of the manifest.
            epoch: Pass over the data.
            repeat: Number of the augmented copy within a batch.
            size: Height and width to shrink or grow the prepared image to before it is augmented; None: as prepared.
        """
        image = self.image(index)
        if size is not None and image.shape[:2] != (size, size):
            image = resize_array(image, size, size)
        bits = self.regions(index, image.shape[:2])
        if self.augment is not None:
            image = self.augment(image, stream(self.seed, SAMPLES, epoch, index, repeat), bits)
        target = self.targets[index]
        if self.read_regions is not None:
            target = np.concatenate([target, cell_labels(bits, len(target), self.region_grid)])
        return image, target, self.ids[index]

    def regions(self, index: int, size: tuple[int, int]) -> Array | None:
        """Where the classes lie on the prepared image: bit k of byte k // 8 for class k, uint8 [h, w, n]; None: not known.

        Raises:
            ImageError: The mask cannot be read.
        """
        if self.read_regions is None or not self.masks[index]:
            return None
        if index not in self._bits:
            known = self.read_regions(self.masks[index])
            shape = next(iter(known.values())).shape if known else size
            bits = np.zeros((*shape, -(-len(self.manifest.classes) // 8)), np.uint8)
            for k, name in enumerate(self.manifest.classes):
                if name in known:
                    bits[:, :, k // 8] |= known[name].astype(np.uint8) << (k % 8)
            # Masks are smooth: half the resolution says where a finding is, at a quarter of the memory.
            self._bits[index] = prepare_bits(
                bits, resized_spec(self.spec, (self.spec.height // 2, self.spec.width // 2))
            )
        small = self._bits[index]
        rows, columns = (np.arange(n) * have // n for n, have in zip(size, small.shape[:2], strict=True))
        return np.ascontiguousarray(small[rows[:, None], columns])

    def _decode(self, index: int) -> Array:
        path = self.paths[index]
        try:
            return prepare(self.read_image(path), self.spec)
        except ImageError:
            raise
        except (VitDomainsError, OSError, EOFError, ValueError, TypeError) as error:
            raise ImageError(path, f"cannot be read ({type(error).__name__}: {error})") from error


def cell_labels(bits: Array | None, classes: int, grid: int) -> npt.NDArray[np.float32]:
    """Whether each class lies in each cell, [K * grid * grid] of 1 and 0; NaN where there is no mask."""
    if bits is None:
        return np.full(classes * grid * grid, np.nan, np.float32)
    for axis in (0, 1):
        bits = np.bitwise_or.reduceat(bits, np.arange(grid) * bits.shape[axis] // grid, axis=axis)
    cells = np.unpackbits(bits, axis=2, count=classes, bitorder="little")  # [grid, grid, K]
    return np.ascontiguousarray(cells.transpose(2, 0, 1), dtype=np.float32).ravel()


def stream(*entropy: int) -> np.random.Generator:
    """An independent random stream for every tuple of integers."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([e % 2**64 for e in entropy])))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack to (images [B, C, H, W], targets [B, K], ids); a grey image beside colour ones is repeated to theirs."""
    channels = max(image.shape[2] if image.ndim == 3 else 1 for image, _, _ in samples)
    first = samples[0][0]
    # numpy, not torch: torch would copy with a second team of threads that fights the one of the forward pass.
    images = np.empty((len(samples), channels, *first.shape[:2]), first.dtype)
    for row, (image, _, _) in zip(images, samples, strict=True):
        row[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    targets = np.stack([target for _, target, _ in samples])
    return torch.from_numpy(images), torch.from_numpy(targets), [name for _, _, name in samples]


def warm(
    dataset: ImageDataset, *, progress: Callable[[int, int], None] | None = None, threads: int = 2
) -> list[tuple[str, str]]:
    """Decode every image that the cache does not hold yet; without a cache, only check that each can be read.

    Args:
        dataset: What to decode.
        progress: Called with (done, total) after each image, from the calling thread.
        threads: Decoding threads.

    Returns:
        (id, what is wrong) of all images that cannot be read, in the order of the manifest.
    """

    def load(index: int) -> str:
        try:
            key = dataset.key(index)
            if key is None or dataset.cache is None or key not in dataset.cache:
                dataset.image(index)
        except ImageError as error:
            return str(error)
        return ""

    problems: list[tuple[str, str]] = []
    pool = ThreadPoolExecutor(max_workers=max(threads, 1))
    try:
        for index, problem in enumerate(pool.map(load, range(len(dataset)))):
            if problem:
                problems.append((dataset.ids[index], problem))
            if progress is not None:
                progress(index + 1, len(dataset))
    finally:
        pool.shutdown(cancel_futures=True)
    return problems
