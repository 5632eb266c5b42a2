"""The commands of zero-shot: label, embed, search, evaluate, refine, student, convert. Words in, calls of the other rooms."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from rich.table import Table
from rich.text import Text

from vitdomains.core.bundle import read_bundle, update_bundle
from vitdomains.core.commands.evaluate import evaluate as evaluate_bundle
from vitdomains.core.config.yaml_file import read_yaml
from vitdomains.core.domain import Domain
from vitdomains.core.errors import ConfigError
from vitdomains.core.evaluation.evaluate import summary
from vitdomains.core.evaluation.report import terminal_table, write_report
from vitdomains.core.geo.map.run import Means
from vitdomains.core.geo.map.tiles_table import UNKNOWN
from vitdomains.core.jobs.shards import Executor
from vitdomains.core.terminal import console, messages, shown_progress
from vitdomains.zeroshot.embeddings.reader import with_bands
from vitdomains.zeroshot.embeddings.search import image_query, nearest_tiles, text_query
from vitdomains.zeroshot.embeddings.sources import labelled_sample
from vitdomains.zeroshot.embeddings.store import open_index, plan_tiles
from vitdomains.zeroshot.labels.assess import VARIANTS, assess
from vitdomains.zeroshot.labels.label import Compute, Labelled, Options, embed_tiles, label_tiles
from vitdomains.zeroshot.labels.prompts import PromptSet, read_classes
from vitdomains.zeroshot.models.openclip import convert
from vitdomains.zeroshot.models.towers import Towers, load_towers

logger = logging.getLogger(__name__)

MODEL = "openai/clip-vit-base-patch32"


def label(domain: Domain, argv: list[str]) -> int:
    """Label image files, or the tiles of scenes, by what a model knows of the class names."""
    parser = _parser(domain, "label", label)
    parser.add_argument("inputs", nargs="+", help="image files, folders of them; with --tile scenes")
    _add_classes(parser)
    parser.add_argument("--out", default="labels", help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--index", default="", help="folder of embeddings; other classes on it cost no image pass (OUT/index)"
    )
    _add_tiling(parser)
    _add_scores(parser)
    parser.add_argument(
        "--calibrate", default="", help="labelled tiles, a class folder or a table: temperature, thresholds"
    )
    parser.add_argument(
        "--prior", action="store_true", help="correct every scene for its own class shares (Saerens et al. 2002)"
    )
    parser.add_argument(
        "--min_valid", type=float, default=0.25, help="skip tiles with less data than this share (%(default)s)"
    )
    parser.add_argument("--top_k", type=int, default=3, help="classes listed in labels.csv (%(default)s)")
    parser.add_argument("--no_sheets", action="store_true", help="draw no contact sheets")
    _add_strict(parser)
    _add_compute(parser)
    args = _parse(parser, argv)
    prompts = _prompts(args)
    towers = _towers(args)
    options = Options(args.scores, args.threshold, args.prior, args.min_valid, args.top_k, sheets=not args.no_sheets)
    sample = labelled_sample(args.calibrate, prompts) if args.calibrate else None
    plan = plan_tiles(args.inputs, args.tile, args.overlap)
    with shown_progress() as on_progress:
        done = label_tiles(
            towers, prompts, plan, args.out, index_folder=args.index, options=options, sample=sample,
            compute=_compute(args), on_progress=on_progress,
        )  # fmt: skip
    _show(done, prompts)
    return _status(done.summary.labelled, len(done.errors), "labelled", args.strict)


def embed(domain: Domain, argv: list[str]) -> int:
    """Embed tiles into an index, for labels and searches to come."""
    parser = _parser(domain, "embed", embed)
    parser.add_argument("inputs", nargs="+", help="image files, folders of them; with --tile scenes")
    parser.add_argument("--index", default="index", help="folder of embeddings (default: %(default)s)")
    _add_tiling(parser)
    _add_strict(parser)
    _add_compute(parser)
    args = _parse(parser, argv)
    plan = plan_tiles(args.inputs, args.tile, args.overlap)
    towers = _towers(args)
    with shown_progress() as on_progress:
        index, keys, errors = embed_tiles(towers, plan, Path(args.index), _compute(args), on_progress)
    wrong = sum(key in errors for key in keys)
    console.print(f"{len(keys)} tiles, {wrong} with an error; {len(index)} embeddings in {args.index}")
    _show_errors(plan.unread | errors)
    return _status(len(keys) - wrong, wrong + len(plan.unread), "embedded", args.strict)


def search(domain: Domain, argv: list[str]) -> int:
    """Find the tiles of an index that are nearest to a text or a picture."""
    parser = _parser(domain, "search", search)
    parser.add_argument("query", help="a text, or an image file")
    parser.add_argument("--index", default="index", help="folder of embeddings (default: %(default)s)")
    parser.add_argument("--model", default="", help="default: where the index's model was loaded from")
    parser.add_argument(
        "--templates", default="", help="sets or texts with {}, comma-separated (default: clip_resisc45)"
    )
    parser.add_argument("--top", type=int, default=20, help="tiles to show (default: %(default)s)")
    parser.add_argument("--out", default="", help="CSV to write, with the exact prompts")
    args = _parse(parser, argv)
    index = open_index(args.index)
    towers = load_towers(args.model or index.about.source)
    if towers.id != index.about.model_id:
        raise ConfigError(
            f"{args.model or index.about.source} is model {towers.id}, the index is of model {index.about.model_id}.",
            hint="Give --model the checkpoint that the index was made with.",
        )
    asked: tuple[str, ...]
    if Path(args.query).is_file():
        query, asked = image_query(towers, args.query, index.about.preprocess), (args.query,)
    else:
        query, asked = text_query(towers, args.query, _listed(args.templates))
    found = nearest_tiles(index, query, args.top)
    rows: Any = found.itertuples()
    for row in rows:
        place = f" [{row.col},{row.row} {row.width}x{row.height}]" if row.width >= 0 else ""
        console.print(f"{row.similarity:.4f}  {row.path}{place}", markup=False, highlight=False, soft_wrap=True)
    if args.out:
        found.assign(asked=" | ".join(asked)).to_csv(args.out, index=False)
        console.print(f"table: {args.out}")
    return 0


def evaluate(domain: Domain, argv: list[str]) -> int:
    """Measure labels on a labelled folder, with the prompt ensemble and without; or a bundle, as in every domain."""
    if argv and (Path(argv[0]) / "bundle.json").is_file():
        return evaluate_bundle(domain, argv)
    parser = _parser(domain, "evaluate", evaluate)
    parser.add_argument("data", help="folder with a folder a class, or a table with path and label; or a bundle")
    _add_classes(parser)
    parser.add_argument("--out", default="zeroshot_report", help="folder of the report (default: %(default)s)")
    parser.add_argument("--index", default="", help="folder of embeddings (default: OUT/index)")
    parser.add_argument(
        "--bootstrap", type=int, default=1000, help="replicates behind the intervals (default: %(default)s)"
    )
    parser.add_argument("--bundle", default="", help="a bundle of the same classes that the result is written into")
    _add_scores(parser)
    _add_compute(parser)
    args = _parse(parser, argv)
    prompts = _prompts(args)
    towers, out = _towers(args), Path(args.out)
    sample = labelled_sample(args.data, prompts)
    with shown_progress() as on_progress:
        reports, tables = assess(
            towers, prompts, sample, args.index or out / "index", options=Options(args.scores, args.threshold),
            compute=_compute(args), bootstrap=args.bootstrap, on_progress=on_progress,
        )  # fmt: skip
    for name in VARIANTS:
        write_report(reports[name], tables[name], out / name.replace(" ", "_"), title=f"Zero-shot labels, {name}")
    console.print(terminal_table(reports["ensemble"], width=console.width))
    for name in VARIANTS:
        values = {k: v["value"] for k, v in {**reports[name].get("overall", {}), **reports[name]["macro"]}.items()}
        shown = ", ".join(f"{k} {values[k]:.3f}" for k in ("accuracy", "f1", "auroc") if values.get(k) is not None)
        console.print(
            f"{name:<14}{shown}; {sum(len(c['prompts']) for c in reports[name]['prompts']['classes'])} prompts"
        )
    if args.bundle:
        update_bundle(read_bundle(args.bundle), metrics=summary(reports["ensemble"]))
    console.print(f"reports: {out}")
    return 0


def convert_command(domain: Domain, argv: list[str]) -> int:
    """Convert an open_clip checkpoint (RemoteCLIP, GeoRSCLIP, SkyCLIP, LAION) to a folder for --model."""
    parser = _parser(domain, "convert", convert_command)
    parser.add_argument("checkpoint", help="file (.pt, .safetensors), or on the hub: OWNER/NAME/FILE")
    parser.add_argument("--architecture", required=True, help="name in open_clip, such as ViT-B-32, or its JSON file")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--activation", default="auto", choices=("auto", "gelu", "quick_gelu"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--tokenizer", default="", help="CLIP's: folder, hub id or merges file (default: open_clip's, or the hub)"
    )
    args = parser.parse_args(argv)
    folder = convert(args.checkpoint, args.architecture, args.out, activation=args.activation, tokenizer=args.tokenizer)
    console.print(f"model: {folder}")
    return 0


def _parser(domain: Domain, name: str, command: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m vitdomains.{domain.name} {name}", description=command.__doc__, allow_abbrev=False
    )
    parser.add_argument("--config", default="", help="YAML file with values for the options below")
    return parser


def _add_classes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", default="", help="YAML file of classes, or their names with commas between them")
    parser.add_argument(
        "--templates", default="", help="sets or texts with {}, comma-separated (default: the class file's)"
    )


def _add_strict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="exit with status 3 where a file or tile failed")


def _add_tiling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile", type=int, default=0, help="cut inputs into tiles of this side, pixels; 0: files are tiles"
    )
    parser.add_argument("--overlap", type=float, default=0.25, help="share in common with the next tile (%(default)s)")


def _add_scores(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scores", default="auto", choices=("auto", "softmax", "sigmoid"),
                        help="softmax: one class a tile; sigmoid: any number; auto: as the model was trained")  # fmt: skip
    parser.add_argument("--threshold", type=float, default=-1.0,
                        help="least probability of a label, else unknown (softmax: 0, sigmoid: 0.5)")  # fmt: skip


def _add_compute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default=MODEL, help="folder or hub id of a CLIP, SigLIP or dual encoder (%(default)s)"
    )
    parser.add_argument("--bands", default="", help="names or numbers of the bands for red, green, blue")
    parser.add_argument(
        "--stretch", default="0,255", help="LOW,HIGH of those bands, the same for every tile (%(default)s)"
    )
    how = parser.add_argument_group("how it is computed")
    how.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="(default: %(default)s)")
    how.add_argument("--batch_size", type=int, default=32, help="tiles a forward pass (%(default)s)")
    how.add_argument("--readers", type=int, default=2, help="reading threads a worker (%(default)s)")
    how.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")
    how.add_argument("--executor", default="inline", choices=get_args(Executor), help="(default: %(default)s)")
    how.add_argument("--workers", type=int, default=1, help="processes, or actors of Ray (%(default)s)")
    how.add_argument("--threads", type=int, default=0, help="compute threads a worker; 0: the cores shared out")
    how.add_argument(
        "--ray_address", "--ray.address", default="", help="of a running cluster, or auto; default: start one"
    )
    how.add_argument("--num_gpus", type=float, default=0.0, help="GPUs that each actor of Ray asks for (%(default)s)")
    how.add_argument("--shard_size", type=int, default=1024, help="tiles that are saved together (%(default)s)")


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The words over the values of --config over the defaults.

    Raises:
        ConfigError: The file has a key that is no option.
    """
    first, _ = parser.parse_known_args(argv)
    if first.config:
        values = read_yaml(first.config)
        known = {action.dest for action in parser._actions if action.option_strings} - {"help", "config"}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"{first.config}: unknown key {unknown[0]!r}.", hint=f"The keys are {', '.join(sorted(known))}."
            )
        parser.set_defaults(**values)
    return parser.parse_args(argv)


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _prompts(args: argparse.Namespace) -> PromptSet:
    if not args.classes:
        raise ConfigError("No classes are given.", hint="Add --classes FILE.yaml, or --classes 'forest, river, town'.")
    return read_classes(args.classes, _listed(args.templates))


def _towers(args: argparse.Namespace) -> Towers:
    towers = load_towers(args.model)
    bands = _listed(args.bands)
    if not bands:
        return towers
    try:
        low, high = (float(part) for part in args.stretch.split(","))
    except ValueError as error:
        raise ConfigError(f"--stretch {args.stretch} is not LOW,HIGH.", hint="Such as --stretch 0,3000.") from error
    return replace(towers, preprocess=with_bands(towers.preprocess, bands, (low, high)))


def _compute(args: argparse.Namespace) -> Compute:
    means = Means(args.executor, args.workers, args.threads, args.ray_address, args.num_gpus, args.shard_size)
    return Compute(means, args.precision, args.batch_size, args.readers, args.device)


def _show(done: Labelled, prompts: PromptSet) -> None:
    table = Table(box=None)
    for column in ("label", "tiles", "share", "mean probability"):
        table.add_column(column, justify="left" if column == "label" else "right")
    rows: Any = done.summary.table(prompts.names).itertuples()
    for row in rows:
        if row.tiles:
            table.add_row(Text(str(row.label)), str(row.tiles), f"{row.share:.1%}", f"{row.probability:.3f}")
    console.print(table)
    total = sum(done.summary.counts.values())
    none = done.summary.counts[""] - len(done.summary.errors)
    console.print(
        f"{total} tiles: {done.summary.labelled} labelled, {done.summary.counts[UNKNOWN]} of them unknown, "
        f"{none} without enough data, {len(done.errors)} with an error"
    )
    _show_errors(done.errors)
    console.print(f"tables  {done.folder / 'tiles'}\nsheets  {done.folder / 'sheets'}\nbundle  {done.bundle.path}")


def _show_errors(errors: dict[str, str]) -> None:
    """The first five, by tile or path."""
    for identity, error in list(errors.items())[:5]:
        console.print(f"  {identity}: {error}", markup=False, highlight=False, soft_wrap=True)


def _status(done: int, failed: int, verb: str, strict: bool) -> int:
    """The exit status of a job: 4 where nothing was done, 3 with ``--strict`` where something failed, else 0."""
    if not done:
        messages.print(f"Not one tile could be {verb}: {failed} failed, and the others hold too little data.")
        return 4
    if failed and strict:
        messages.print(f"{failed} could not be {verb}, and --strict was given.")
        return 3
    return 0
