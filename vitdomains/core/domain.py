"""A domain is one frozen value: what the shared commands need to know about chest films, tiles or anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vitdomains.core.config import Config, Data
from vitdomains.core.dataset import ReadRegions
from vitdomains.core.manifest import Manifest

ReadImage = Callable[[str | Path], np.ndarray]


@dataclass(frozen=True)
class Domain:
    """Everything by which one domain differs from another.

    ``read_image`` gives float32 [H, W] or [H, W, C] in 0..1 and raises ``ImageError``; it is a top-level function, for it
    travels to worker processes. ``sources`` are the names that ``data.sources`` takes. ``notice`` stands in every report and
    model card of the domain. ``read_regions`` reads what the manifest's column ``mask`` names.
    """

    name: str
    title: str
    build_manifest: Callable[[Data], Manifest]
    read_image: ReadImage
    task: Literal["multilabel", "singlelabel"]
    default_config: Callable[[], Config]
    extensions: tuple[str, ...]
    sources: tuple[str, ...] = ()
    storage: Literal["uint8", "float32"] = "uint8"
    notice: str = ""
    read_regions: ReadRegions | None = None
