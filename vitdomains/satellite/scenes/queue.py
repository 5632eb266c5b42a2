"""The command ``queue``: which tiles to label next, as a file that the review app takes."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from vitdomains.core.bundle import Bundle, load_model, read_bundle
from vitdomains.core.data.folders import folder_manifest
from vitdomains.core.data.manifest import read_manifest
from vitdomains.core.data.preprocess import normalise, prepare
from vitdomains.core.data.selection import CHOICES, queue
from vitdomains.core.data.tables import read_table
from vitdomains.core.domain import Domain, domain_reader
from vitdomains.core.errors import BundleError, ConfigError, ManifestError
from vitdomains.core.files import write_atomically
from vitdomains.core.geo.map.tiles_table import PLACE, read_known, tile_table
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.probe import headless
from vitdomains.core.terminal import OnProgress, console, shown_progress
from vitdomains.satellite.data.reader import Known, read_image
from vitdomains.satellite.scenes.multi_file import read_scene

log = logging.getLogger(__name__)

_TABLES = (".parquet", ".csv")
_TEXT = ("tile_id", "scene", "path", "label", "error")
_NEEDED = (*PLACE, "label", "margin", "entropy", "error")


def command(domain: Domain, argv: list[str]) -> int:
    """Choose the tiles that are worth labelling next: uncertain, diverse, or both."""
    parser = argparse.ArgumentParser(prog=f"python -m vitdomains.{domain.name} queue", description=command.__doc__)
    parser.add_argument(
        "inputs", nargs="+", help="a table of tiles (.parquet or .csv, as map writes it), or tile files and folders"
    )
    parser.add_argument("--bundle", default="", help="folder that train wrote; needed for files, and for diversity")
    parser.add_argument("--by", default="both", choices=CHOICES, help="(default: %(default)s)")
    parser.add_argument("--n", type=int, default=100, help="how many tiles (default: %(default)s)")
    parser.add_argument(
        "--labelled", default="", help="manifest of tiles that are labelled already; they are not asked for again"
    )
    parser.add_argument("--out", default="queue.parquet", help=".parquet or .csv (default: %(default)s)")
    args = parser.parse_args(argv)
    if Path(args.out).suffix.lower() not in _TABLES or args.n < 1:
        raise ConfigError(
            f"--out {args.out} --n {args.n} cannot be written.", hint="Give a .parquet or .csv, and 1 or more."
        )
    bundle = read_bundle(args.bundle) if args.bundle else None
    if bundle and bundle.domain != domain.name:
        raise BundleError(f"{args.bundle} is a bundle of {bundle.domain}.", hint=f"Give one of {domain.name}.")
    with shown_progress() as on_progress:
        tiles = _tiles(domain, args.inputs, bundle, on_progress)
        labelled = read_manifest(args.labelled).table if args.labelled else None
        if labelled is not None:
            tiles = tiles[~tiles["tile_id"].isin(labelled["id"].astype("str"))]
        known, given = None, read_known(Path(args.inputs[0]))
        if labelled is not None and bundle and args.by in ("both", "diversity"):
            known = embeddings(bundle, labelled[["path"]], on_progress)
        chosen = queue(tiles, args.n, args.by, known=known,
                       embed=(lambda rows: embeddings(bundle, rows, on_progress, given)) if bundle else None)  # fmt: skip
    write_queue(chosen, Path(args.out))
    console.print(f"{len(chosen)} of {len(tiles)} tiles by {args.by}: {args.out}")
    return 0


def write_queue(chosen: pd.DataFrame, out: Path) -> None:
    """Write the queue atomically, by its ending as Parquet or CSV (without the geometry)."""
    if out.suffix.lower() == ".parquet":
        write_atomically(out, lambda part: chosen.to_parquet(part, index=False))
    else:
        plain = chosen.drop(columns=["geometry", "bbox"], errors="ignore")
        write_atomically(out, lambda part: plain.to_csv(part, index=False))


def _tiles(domain: Domain, inputs: list[str], bundle: Bundle | None, on_progress: OnProgress) -> pd.DataFrame:
    """The tile table that was given, or that of the files that were given."""
    first = Path(inputs[0])
    if first.suffix.lower() in _TABLES:
        if len(inputs) > 1 or not first.is_file():
            raise ManifestError(f"{' '.join(inputs)}: no single table of tiles.", hint="Give one table, or tile files.")
        table = read_table(first, _NEEDED, text=_TEXT, hint="Give a table of tiles as `map` writes it.")
        return table.assign(**{name: table[name].fillna("") for name in _TEXT})
    if bundle is None:
        raise ConfigError("Tile files need a model to be unsure of them.", hint="Give --bundle.")
    found = folder_manifest(inputs, domain.extensions, domain.name).table
    predictor = Predictor(bundle, domain_reader(domain, bundle.preprocess))
    scores, errors = [], []
    for done, made in enumerate(predictor.predict(zip(found["id"], found["path"], strict=True)), start=1):
        scores.append(made.scores)
        errors.append(made.error)
        on_progress("predict", done, len(found), "tiles")
    plan = pd.DataFrame({"tile_id": found["id"], "scene": [Path(p).name for p in found["path"]], "path": found["path"]})
    plan = plan.assign(col=-1, row=-1, width=-1, height=-1)
    return tile_table(plan, np.stack(scores), bundle.classes, model_id=bundle.id, kind=bundle.task_kind,
                      thresholds=bundle.thresholds, errors=errors)  # fmt: skip


@torch.inference_mode()
def embeddings(
    bundle: Bundle, rows: pd.DataFrame, on_progress: OnProgress, known: Known | None = None, batch_size: int = 16
) -> npt.NDArray[np.float32]:
    """Pooled features [N, D] of tiles: files, or windows of scenes where a row has ``col`` of 0 or more.

    Raises:
        ImageError: A tile cannot be read.
    """
    model, spec = headless(load_model(bundle)), bundle.preprocess
    places = rows.reindex(columns=["path", "col", "row", "width", "height"], fill_value=-1)
    out: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(places), batch_size):
        images = []
        for path, *extent in places.iloc[start : start + batch_size].itertuples(index=False):
            window = None if extent[0] < 0 else (extent[0], extent[1], extent[2], extent[3])
            image = read_image(path, spec) if window is None else read_scene(path, window, spec, known=known)[0]
            prepared = np.atleast_3d(prepare(image, spec))
            images.append(np.ascontiguousarray(prepared.transpose(2, 0, 1)))
        out.append(model(normalise(torch.from_numpy(np.stack(images)), spec)).float().numpy())
        on_progress("embeddings", sum(map(len, out)), len(rows), "tiles")
    return np.concatenate(out)
