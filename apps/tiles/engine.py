"""The model at work behind the satellite app: heat maps of tiles, on the numbers that the model was mapped with."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.shared.bundle_info import BundleInfo
from apps.shared.loading import LoadedModel
from apps.shared.memo import HEAT_FAILURES_KEPT, Memo
from apps.viewer import Picture, heat_picture
from vitdomains.core.geo.map.tiles_table import read_known
from vitdomains.core.geo.read.http import is_remote, shown
from vitdomains.core.geo.read.metadata import PixelMetadata, from_options
from vitdomains.core.geo.read.scene_paths import files_of, find_input, join_files
from vitdomains.satellite.sensors import catalogue_names

if TYPE_CHECKING:
    from apps.tiles.session import TileOptions

HEATS_KEPT = 600
Extent = tuple[int, int, int, int]


class TileEngine:
    """Heat maps of the tiles of a scene. Safe to call from any thread; the model is loaded in the background.

    Args:
        bundle: Of the bundle.
        options: What the app was told of the scene.
        path: The scene, as it can be read here.
    """

    def __init__(self, bundle: BundleInfo, options: TileOptions, path: str) -> None:
        self.bundle, self.path = bundle, path
        self._options = options
        self._model = LoadedModel(bundle, _picture_reader, options.threads)
        self._heats = Memo(HEATS_KEPT, 1, "heat", HEAT_FAILURES_KEPT)

    def start(self) -> None:
        """Load the model in the background, once."""
        self._model.start()

    def methods(self) -> list[str]:
        """Heat map methods that fit the model, the usual one first."""
        return self._model.methods()

    def heat(self, extent: Extent, name: str, method: str) -> Future[Picture]:
        """The heat map of a class on a tile, for the viewer: begun now, done when it is."""
        return self._heats.get((extent, name, method), lambda: self._heat(extent, name, method))

    def forget_waiting(self, extent: Extent, name: str, method: str) -> None:
        """Drop heat maps that nobody waits for any more, so that this one is next."""
        self._heats.drop_waiting(but=(extent, name, method))

    def prepared(self, extent: Extent) -> tuple[NDArray[Any], tuple[int, int]]:
        """The model's input [C, h, w] in storage type, and the tile's height and width."""
        from vitdomains.core.data.preprocess import prepare
        from vitdomains.satellite.scenes.map import scene_spec
        from vitdomains.satellite.scenes.multi_file import read_scene

        asked = self._options
        spec = scene_spec(self._model.predictor.bundle.preprocess, asked.sensor, asked.bands)
        pixels, _ = read_scene(self.path, extent, spec, resolution=asked.resolution, crs=asked.crs, known=self._known())
        made = np.asarray(prepare(pixels, spec))
        return (made[None] if made.ndim == 2 else np.ascontiguousarray(made.transpose(2, 0, 1))), pixels.shape[:2]

    def _known(self) -> dict[str, PixelMetadata]:
        """What is said of the numbers of the scene's files: the table of tiles knows what ``map`` did."""
        given = from_options(baseline=self._options.baseline)
        known = read_known(self._options.tiles)
        return {shown(file): given.over(known.get(shown(file), PixelMetadata())) for file in files_of(self.path)}

    def _heat(self, extent: Extent, name: str, method: str) -> Picture:
        from vitdomains.core.data.preprocess import geometry

        stored, shape = self.prepared(extent)
        made = heat_picture(
            self._model.heat(stored, name, method), geometry(self._model.predictor.bundle.preprocess, shape)
        )
        left, top, width, height = made.about["rect"]
        return replace(made, about={"rect": [left + extent[0], top + extent[1], width, height]})


def _picture_reader() -> Any:
    from vitdomains.satellite.data.reader import read_image

    return read_image


def scene_path(scene: str, asset: str = "", sensor: str = "", bands: Sequence[str] = ()) -> str:
    """The scene as ``map`` names it: addresses or absolute paths, those of a STAC item's assets where it is one.

    Raises:
        ImageError: It is not clear which of an item's assets were mapped.
    """
    found = find_input(scene, asset=asset, bands=catalogue_names(sensor, bands))
    return join_files([file if is_remote(file) else str(Path(file).resolve()) for file in found.files])
