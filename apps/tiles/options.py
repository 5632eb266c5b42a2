"""What the satellite app is started with: the words after ``--``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.films.options import check_paths, checked_parser
from apps.shared.access import Identity
from vitdomains.core.errors import ConfigError
from vitdomains.core.geo.map.tiles_table import read_as
from vitdomains.core.geo.read.http import is_remote
from vitdomains.core.geo.read.scene_paths import files_of

ASKED = ("sensor", "bands", "baseline", "resolution", "crs", "asset")
USAGE = "streamlit run apps/satellite_review.py -- --bundle B --tiles landcover.parquet --scene scene.tif"


@dataclass(frozen=True)
class TileOptions:
    """The words of the command line, checked. ``sensor`` to ``crs`` and ``asset`` say of the scene what ``map`` was told of it.

    What is not given of these is taken from the table of tiles, into which ``map`` wrote it.
    """

    bundle: Path
    tiles: Path
    scene: str
    queue: Path | None
    store: str
    identity: Identity
    sensor: str
    bands: str
    baseline: str
    resolution: float | None
    crs: str | None
    threads: int
    asset: str = ""
    blinded: bool = False


def parse_tile_options(argv: Sequence[str]) -> TileOptions:
    """Read the command line.

    Raises:
        ConfigError: A word is not known, or a file is not there.
    """
    parser = checked_parser("satellite_review.py", "Review the labels of a scene's tiles.", USAGE)
    add = parser.add_argument
    add("--bundle", required=True, help="folder that train or zeroshot label wrote")
    add("--tiles", required=True, help="table of tiles that map wrote (.parquet or .csv)")
    add("--scene", required=True, help="what was mapped: a raster, an http(s) address of a COG, a STAC item")
    add("--asset", default="", help="as for map: key of the asset of a STAC item")
    add("--queue", default="", help="what to look at first: the file that queue wrote (.parquet or .csv)")
    add("--store", default="sqlite:///reviews.db", help="database URL of the reviews (default: %(default)s)")
    Identity.add_arguments(parser)
    add("--sensor", default="", help="as for map: what the numbers of the scene mean, where the bundle names none")
    add("--bands", default="", help="as for map: where the file does not name its bands: B4=3,B3=2,B2=1")
    add("--baseline", default="", help="as for map: processing baseline of Sentinel-2")
    add("--resolution", type=float, default=0.0, help="as for map: metres a pixel; 0: as map read it")
    add("--crs", default="", help="as for map: the CRS in which the scene was read")
    add("--blinded", action="store_true", help="nobody sees the model before deciding")
    add("--threads", type=int, default=0, help="compute threads; 0: one a physical core")
    args = parser.parse_args([*argv])
    check_paths(args, ["bundle", "tiles", *(["queue"] if args.queue else [])], USAGE)
    for file in files_of(args.scene):
        if not is_remote(file) and not Path(file).exists():
            raise ConfigError(f"--scene {file} does not exist.", hint=f"Check the path. An example: {USAGE}")
    for name in ("tiles", "queue"):
        given = getattr(args, name)
        if given and Path(given).suffix.lower() not in (".parquet", ".csv"):
            raise ConfigError(f"--{name} {given} is no table.", hint="Give the .parquet or .csv that was written.")
    told = read_as(Path(args.tiles))
    sensor, bands, baseline, resolution, crs, asset = (getattr(args, name) or told.get(name, "") for name in ASKED)
    return TileOptions(
        bundle=Path(args.bundle), tiles=Path(args.tiles), scene=args.scene, store=args.store,
        queue=Path(args.queue) if args.queue else None, identity=Identity.of(args), sensor=sensor, bands=bands,
        baseline=baseline, resolution=float(resolution) if resolution else None, crs=crs or None,
        threads=args.threads, asset=asset, blinded=args.blinded,
    )  # fmt: skip
