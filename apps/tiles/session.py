"""What a run of the satellite app works with: its command line, shared resources, made once a server, and the reviewer's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import streamlit as st

from apps.shared.bundle_info import BundleInfo, read_bundle_info
from apps.shared.drafts import VERDICTS, words_of
from apps.shared.options import ReviewOptions, check_paths, review_parser, shared_options
from apps.shared.session import Reviewing
from apps.tiles.engine import TileEngine, scene_path
from apps.tiles.scene_image import SceneImage
from apps.tiles.tile_list import TileList, read_tiles
from vitdomains.core.errors import ConfigError
from vitdomains.core.geo.map.tiles_table import read_as
from vitdomains.core.geo.read.http import is_remote
from vitdomains.core.geo.read.scene_paths import files_of
from vitdomains.core.review.export import SUBJECT

TITLE = "Satellite tile review"
NOTICE = "Research use only: labels of a model, not a survey. Check them before anyone relies on them."
DOMAINS = ("satellite", "zeroshot")


ASKED = ("sensor", "bands", "baseline", "resolution", "crs", "asset")
USAGE = "streamlit run apps/satellite_review.py -- --bundle B --tiles landcover.parquet --scene scene.tif"


@dataclass(frozen=True, kw_only=True)
class TileOptions(ReviewOptions):
    """The command line, checked. ``sensor`` to ``crs`` and ``asset`` say of the scene what ``map`` was told of it.

    What is not given of these is taken from the table of tiles, into which ``map`` wrote it.
    """

    bundle: Path
    tiles: Path
    scene: str
    queue: Path | None
    sensor: str
    bands: str
    baseline: str
    resolution: float | None
    crs: str | None
    asset: str = ""


def parse_tile_options(argv: Sequence[str]) -> TileOptions:
    """Read the command line.

    Raises:
        ConfigError: A word is not known, or a file is not there.
    """
    parser = review_parser("satellite_review.py", "Review the labels of a scene's tiles.", USAGE)
    add = parser.add_argument
    add("--bundle", required=True, help="folder that train or zeroshot label wrote")
    add("--tiles", required=True, help="table of tiles that map wrote (.parquet or .csv)")
    add("--scene", required=True, help="what was mapped: a raster, an http(s) address of a COG, a STAC item")
    add("--asset", default="", help="as for map: key of the asset of a STAC item")
    add("--queue", default="", help="what to look at first: the file that queue wrote (.parquet or .csv)")
    add("--sensor", default="", help="as for map: what the numbers of the scene mean, where the bundle names none")
    add("--bands", default="", help="as for map: where the file does not name its bands: B4=3,B3=2,B2=1")
    add("--baseline", default="", help="as for map: processing baseline of Sentinel-2")
    add("--resolution", type=float, default=0.0, help="as for map: metres a pixel; 0: as map read it")
    add("--crs", default="", help="as for map: the CRS in which the scene was read")
    args = parser.parse_args([*argv])
    check_paths(args, ["bundle", "tiles", *(["queue"] if args.queue else [])], USAGE)
    for file in files_of(args.scene):
        if not is_remote(file) and not Path(file).exists():
            raise ConfigError(f"--scene {file} does not exist.", hint=f"Check the path. An example: {USAGE}")
    for name in ("tiles", "queue"):
        given = getattr(args, name)
        if given and Path(given).suffix.lower() not in (".parquet", ".csv"):
            raise ConfigError(f"--{name} {given} is no table.", hint="Give the .parquet or .csv that was written.")
    recorded = read_as(Path(args.tiles))
    sensor, bands, baseline, resolution, crs, asset = (getattr(args, name) or recorded.get(name, "") for name in ASKED)
    return TileOptions(
        bundle=Path(args.bundle), tiles=Path(args.tiles), scene=args.scene, queue=Path(args.queue) if args.queue else None,
        sensor=sensor, bands=bands, baseline=baseline, resolution=float(resolution) if resolution else None, crs=crs or None,
        asset=asset, **shared_options(args),
    )  # fmt: skip


@dataclass(frozen=True)
class SceneContext:
    """The scene, its tiles and the model, shared by all who review them."""

    bundle: BundleInfo
    scene: SceneImage
    tiles: TileList
    engine: TileEngine
    own_model: bool
    """Whether the tiles were labelled by this very bundle."""


@st.cache_resource(show_spinner="reading the table of tiles")
def open_scene_context(options: TileOptions) -> SceneContext:
    """Read tiles and scene once a server; the model is loaded in the background.

    Raises:
        VitDomainsError: Bundle, tiles or scene cannot be read, or do not fit each other.
    """
    bundle = read_bundle_info(options.bundle, DOMAINS, ("singlelabel", "multilabel"))
    words = tuple(word.strip() for word in options.bands.split(",") if word.strip()) or bundle.bands
    sensor = options.sensor or bundle.sensor
    path = scene_path(options.scene, options.asset, sensor, words)
    scene = SceneImage(path, options.resolution, options.crs, sensor, words)
    tiles = read_tiles(options.tiles, path, scene.info, bundle, options.queue)
    engine = TileEngine(bundle, options, path)
    engine.start()
    return SceneContext(bundle, scene, tiles, engine, set(tiles.table["model_id"].dropna()) <= {bundle.id})


@dataclass(frozen=True)
class TileSession(Reviewing):
    """Everything that a page needs."""

    title: ClassVar = TITLE

    context: SceneContext

    @property
    def bundle(self) -> BundleInfo:
        """The bundle."""
        return self.context.bundle

    @property
    def tiles(self) -> TileList:
        """The tiles."""
        return self.context.tiles

    @property
    def single(self) -> bool:
        """Whether a tile has one class, so that there is one subject to answer; else each class is one."""
        return self.tiles.kind == "singlelabel"

    def row(self, item: str) -> int | None:
        """Where a tile stands in the table; None where there is none."""
        return self.tiles.position.get(item)

    def calls(self, row: int) -> dict[str, str]:
        """Subject to what the model called; empty where it has said nothing of the tile, or not enough."""
        if not self.tiles.labelled[row]:
            return {}
        called = self.tiles.called[row]
        if self.single:
            return {SUBJECT: self.tiles.classes[int(called.argmax())]} if called.any() else {}
        return {c: "present" if yes else "absent" for c, yes in zip(self.tiles.classes, called, strict=True)}

    def seen_calls(self, row: int) -> dict[str, str]:
        """``calls``, as far as this reviewer may see them now."""
        return self.calls(row) if self.revealed(str(self.tiles.table["item"].iat[row])) else {}

    def known(self, item: str) -> bool:
        """Whether there is such a tile."""
        return item in self.tiles.position

    def words(self, item: str, values: Mapping[str, str]) -> dict[str, str]:
        """What was saved of a tile, in the words that its page offers."""
        return tile_words(values, self.calls(self.tiles.position[item]), single=self.single)


def tile_words(values: Mapping[str, str], calls: dict[str, str], *, single: bool) -> dict[str, str]:
    """What was saved, in the words that the page offers: agree, disagree, unsure or the class that it is."""
    if not single:
        return words_of(values, calls, revealed=True)
    call = calls.get(SUBJECT, "")
    words: dict[str, str] = {}
    for subject, value in values.items():
        if value == call or value in VERDICTS:
            words[subject] = "agree" if value == call else value
        else:
            words[subject] = "disagree" if call and value == f"not {call}" else value
    return words
