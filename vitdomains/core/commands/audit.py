"""The command ``audit``: leakage between the splits (groups, copies, near-copies, neighbours), and labels that look wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdomains.core.config.parse import parse_config
from vitdomains.core.config.schema import Config
from vitdomains.core.domain import Domain, domain_reader
from vitdomains.core.errors import ImageError
from vitdomains.core.files import write_atomically, write_text
from vitdomains.core.terminal import console, messages, shown_progress

if TYPE_CHECKING:
    import pandas as pd

    from vitdomains.core.data.manifest import Manifest

_SHOWN = 10


def command(domain: Domain, argv: list[str]) -> int:
    """Look for leakage between the splits: groups, copies, near-copies, near tiles; with --labels for labels that look wrong."""
    prog = f"python -m vitdomains.{domain.name} audit"
    usage = "[--out audit.json] [--pixels false] [--labels label_errors.csv] [--config FILE] [--data.KEY VALUE ...]"
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--out", default="")
    parser.add_argument("--pixels", default="true", choices=("true", "false"))
    parser.add_argument("--labels", default="")
    words, rest = parser.parse_known_args(argv)
    default = Config() if any(word.split("=")[0] == "--config" for word in rest) else domain.default_config()
    allowed = {"data.sources.name": domain.sources} if domain.sources else {}
    config = parse_config(rest, default, f"{prog} {usage}", description=command.__doc__ or "", allowed=allowed)
    from vitdomains.core.data.leakage import audit

    manifest = domain.build_manifest(config.data)
    reader = None
    with shown_progress() as on_progress:
        if words.pixels == "true":
            reader = _thumbnails(domain, config, lambda done: on_progress("read", done, len(manifest), "images"))
        found = audit(manifest, reader)
        if words.labels:
            from vitdomains.core.probe import doubtful_labels

            queue = doubtful_labels(domain, config, manifest, on_progress)
            write_atomically(Path(words.labels), lambda part: queue.to_csv(part, index=False, float_format="%.4f"))
            found["label_errors"] = int(queue["error"].sum())
    found |= _places(manifest)
    if words.out:
        write_text(Path(words.out), json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    _show(found)
    if words.labels:
        show_doubtful(queue, words.labels)
    return 0 if found["clean"] else 1


def show_doubtful(queue: pd.DataFrame, file: str) -> None:
    """The first rows of a queue of ``label_errors``, and where all of it lies."""
    wrong = queue[queue["error"]]
    console.print(f"{len(wrong)} of {len(queue)} labels look wrong, the most doubtful first: {file}")
    for row in wrong.head(_SHOWN).to_dict("records"):
        shown = f"  {row['id']}: {row['class']} given {row['given']}, suggested {row['suggested']}"
        console.print(f"{shown} (quality {row['quality']:.3f})", markup=False, highlight=False, soft_wrap=True)


def _thumbnails(domain: Domain, config: Config, on_read: Callable[[int], None]) -> Callable[[str], Any]:
    """A reader of small grey images; a file that cannot be read has no contrast, which is like nothing else."""
    import numpy as np

    from vitdomains.core.data.leakage import SIDE, grey_thumbnail
    from vitdomains.core.pipeline import preprocess_spec

    read, done = domain_reader(domain, preprocess_spec(config, domain)), 0

    def small(path: str) -> Any:
        nonlocal done
        done += 1
        on_read(done)
        try:
            image = read(path)
            return grey_thumbnail(np.nan_to_num(image.astype(np.float32)))
        except ImageError as error:
            messages.print(f"left out: {error}", markup=False, highlight=False)
            return np.zeros((SIDE, SIDE), np.float32)

    return small


def _places(manifest: Manifest) -> dict[str, Any]:
    """Distances between the splits of geo-referenced tiles, metres."""
    from vitdomains.core.data.spatial_splits import nearness

    found = {name: nearness(manifest, name) for name in ("val", "test")}
    return {"distance_to_training_m": {name: asdict(value) for name, value in found.items() if value}}


def _show(found: dict[str, Any]) -> None:
    console.print(f"{found['rows']:,} images of {found['groups']:,} groups")
    names = {
        "groups_across_splits": "groups in two splits",
        "same_file": "files listed twice",
        "same_content": "files of equal content",
    }
    for key, text in names.items():
        console.print(f"  {len(found[key]):>6} {text}")
    console.print(
        f"  {found['n_near_duplicates']:>6} near-duplicates, {found['n_near_duplicates_across_splits']} of them across splits"
    )
    for pair in found["near_duplicates"][:_SHOWN]:
        console.print(
            f"         {pair['a']} ({pair['split_a']}), {pair['b']} ({pair['split_b']}): correlation {pair['correlation']}",
            markup=False, highlight=False,
        )  # fmt: skip
    for split, value in found["distance_to_training_m"].items():
        console.print(
            f"  {split}: nearest training tile {value['median']:.0f} m away in the median, {value['least']:.0f} m at least "
            f"(tiles lie {value['spacing']:.0f} m apart)"
        )
    console.print("no leakage found" if found["clean"] else f"{found['leaks']} leaks between splits")
