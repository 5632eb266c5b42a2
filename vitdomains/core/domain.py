"""What the shared commands need to know of a domain, as one frozen value."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from vitdomains.core.config.schema import Config, Data
    from vitdomains.core.data.dataset import ReadRegions
    from vitdomains.core.data.manifest import Manifest
    from vitdomains.core.data.preprocess import PreprocessSpec
    from vitdomains.core.tasks import Kind

ReadImage = Callable[[str | Path], "np.ndarray"]
ReadChecked = Callable[[str | Path], "tuple[np.ndarray, str]"]


@dataclass(frozen=True)
class Deferred:
    """A function by its address, ``package.module:name``, imported at its first call.

    A domain and a table of commands made of these cost nothing to import. It can be pickled, so it travels to workers.
    """

    address: str
    about: str = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        module, name = self.address.split(":")
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


@dataclass(frozen=True)
class Domain:
    """Everything by which one domain differs from another.

    ``read_image`` gives float32 [H, W] or [H, W, C] in 0..1 and raises ``ImageError``; it is a top-level function, for it
    travels to worker processes. ``sources`` are the names that ``data.sources`` takes. ``notice`` stands in every report and
    model card of the domain. ``read_regions`` reads what the manifest's column ``mask`` names.

    A domain whose pixels depend on the preprocessing (the bands of a sensor) gives ``reader``, which makes ``read_image``
    from it (as ``functools.partial`` of a top-level function, so that it travels too); ``preprocess`` completes the
    preprocessing from the configuration (bands, scale, mean, storage). ``task`` is what ``data.task`` falls back to.

    ``read_checked`` reads as ``read_image`` does and says in words why the image is not of the kind that models of the
    domain are made for, "" where it is; ``predict`` writes that into a column ``quality``.
    """

    name: str
    title: str
    build_manifest: Callable[[Data], Manifest]
    read_image: ReadImage
    task: Kind
    default_config: Callable[[], Config]
    extensions: tuple[str, ...]
    sources: tuple[str, ...] = ()
    storage: Literal["uint8", "float32"] = "uint8"
    notice: str = ""
    read_regions: ReadRegions | None = None
    reader: Callable[[PreprocessSpec], ReadImage] | None = None
    preprocess: Callable[[Config, PreprocessSpec], PreprocessSpec] | None = None
    read_checked: ReadChecked | None = None


def domain_reader(domain: Domain, spec: PreprocessSpec) -> ReadImage:
    """What reads the domain's images for a model with this preprocessing."""
    return domain.reader(spec) if domain.reader else domain.read_image


def task_kind(domain: Domain, data: Data) -> Kind:
    """What the model is asked: as the data says, else as the domain does."""
    return data.task or domain.task
