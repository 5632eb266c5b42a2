"""The commands of zero-shot: label, embed, search, evaluate, audit, refine, student, convert.

What computes is imported after the arguments were parsed, so that help and a usage error come at once.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdomains.core.domain import Domain
from vitdomains.core.errors import ConfigError, ManifestError, NoResultError
from vitdomains.core.terminal import console, parse_args, shown_progress

if TYPE_CHECKING:
    import pandas as pd

    from vitdomains.zeroshot.embeddings.store import Index
    from vitdomains.zeroshot.labels.label import Compute, Labelled
    from vitdomains.zeroshot.labels.prompts import PromptSet
    from vitdomains.zeroshot.models.towers import Towers

logger = logging.getLogger(__name__)

MODEL = "openai/clip-vit-base-patch32"


def label(domain: Domain, argv: list[str]) -> int:
    """Label image files, or the tiles of scenes, by what a model knows of the class names."""
    parser = _parser(domain, "label", label)
    parser.add_argument("inputs", nargs="+", help="image files, folders of them; with --tile scenes")
    _add_classes(parser)
    _option(parser, "out", "labels", "folder to write (default: %(default)s)")
    _option(parser, "index", "", "folder of embeddings; other classes on it cost no image pass (OUT/index)")
    _add_tiling(parser)
    _add_scores(parser)
    _option(parser, "calibrate", "", "labelled tiles, a class folder or a table: temperature, thresholds")
    _option(parser, "prior", False, "correct every scene for its own class shares (Saerens et al. 2002)")
    _option(parser, "min_valid", 0.25, "skip tiles with less data than this share (%(default)s)")
    _option(parser, "top_k", 3, "classes listed in labels.csv (%(default)s)")
    _option(parser, "no_sheets", False, "draw no contact sheets")
    _add_compute(parser)
    args = _parse(parser, argv, "INPUTS ... --classes CLASSES [--out FOLDER]")
    prompts = _prompts(args)
    from vitdomains.zeroshot.embeddings.sources import labelled_sample
    from vitdomains.zeroshot.embeddings.store import plan_tiles
    from vitdomains.zeroshot.labels.label import Options, label_tiles

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
    _option(parser, "index", "index", "folder of embeddings (default: %(default)s)")
    _add_tiling(parser)
    _add_compute(parser)
    args = _parse(parser, argv, "INPUTS ... [--index FOLDER]")
    from vitdomains.zeroshot.embeddings.store import plan_tiles
    from vitdomains.zeroshot.labels.label import embed_tiles

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
    _option(parser, "index", "index", "folder of embeddings (default: %(default)s)")
    _option(parser, "model", "", "default: where the index's model was loaded from")
    _option(parser, "templates", "", "sets or texts with {}, comma-separated (default: clip_resisc45)")
    _option(parser, "top", 20, "tiles to show (default: %(default)s)")
    _option(parser, "out", "", "CSV to write, with the exact prompts")
    args = _parse(parser, argv, "QUERY [--index FOLDER]")
    from vitdomains.zeroshot.embeddings.run import image_query, text_query
    from vitdomains.zeroshot.embeddings.store import nearest_tiles, open_index
    from vitdomains.zeroshot.models.towers import load_towers

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
        from vitdomains.core.commands.evaluate import evaluate as evaluate_bundle

        return evaluate_bundle(domain, argv)
    parser = _parser(domain, "evaluate", evaluate)
    parser.add_argument("data", help="folder with a folder a class, or a table with path and label; or a bundle")
    _add_classes(parser)
    _option(parser, "out", "zeroshot_report", "folder of the report (default: %(default)s)")
    _option(parser, "index", "", "folder of embeddings (default: OUT/index)")
    _option(parser, "bootstrap", 1000, "replicates behind the intervals (default: %(default)s)")
    _option(parser, "bundle", "", "a bundle of the same classes that the result is written into")
    _add_scores(parser)
    _add_compute(parser)
    args = _parse(parser, argv, "DATA --classes CLASSES [--out FOLDER]")
    prompts = _prompts(args)
    from vitdomains.core.bundle import read_bundle, update_bundle
    from vitdomains.core.evaluation.evaluate import summary
    from vitdomains.core.evaluation.report import terminal_table, write_report
    from vitdomains.zeroshot.embeddings.sources import labelled_sample
    from vitdomains.zeroshot.labels.label import VARIANTS, Options, assess

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
    _option(parser, "architecture", "", "name in open_clip, such as ViT-B-32, or its JSON file", required=True)
    _option(parser, "out", "", "folder to write", required=True)
    _option(parser, "activation", "auto", "(default: %(default)s)", choices=("auto", "gelu", "quick_gelu"))
    _option(parser, "tokenizer", "", "CLIP's: folder, hub id or merges file (default: open_clip's, or the hub)")
    args = _parse(parser, argv, "CHECKPOINT --architecture NAME --out FOLDER")
    from vitdomains.zeroshot.models.openclip import convert

    folder = convert(args.checkpoint, args.architecture, args.out, activation=args.activation, tokenizer=args.tokenizer)
    console.print(f"model: {folder}")
    return 0


def audit_command(domain: Domain, argv: list[str]) -> int:
    """Look for labels of a labelling that look wrong; or audit a data set, as in every domain."""
    if not argv or not (Path(argv[0]) / "run.json").is_file():
        from vitdomains.core.commands.audit import command

        return command(domain, argv)
    parser = _parser(domain, "audit", audit_command)
    parser.add_argument("folder", help="folder that label wrote")
    _option(parser, "reviewed", "", "table with tile_id and label, or what `reviews export` wrote")
    _option(parser, "labels", "", "queue to write (default: LABELS/label_errors.csv)")
    args = _parse(parser, argv, "LABELS [--reviewed TABLE] [--labels FILE.csv]")
    from vitdomains.core.commands.audit import show_doubtful
    from vitdomains.core.files import write_atomically
    from vitdomains.zeroshot.labels.prompts import read_prompts
    from vitdomains.zeroshot.students.refine import doubtful_labels

    folder = Path(args.folder)
    index, tiles, keys = _embedded(folder)
    reviewed = _reviewed(folder, args.reviewed) if args.reviewed else {}
    queue = doubtful_labels(index, tiles, keys, read_prompts(folder / "prompts.json").names, reviewed)
    out = Path(args.labels or folder / "label_errors.csv")
    write_atomically(out, lambda part: queue.to_csv(part, index=False, float_format="%.4f"))
    show_doubtful(queue, str(out))
    return 0


def student_command(domain: Domain, argv: list[str]) -> int:
    """Write what a student is trained with: reviewed and confident labels with weights, and a training file."""
    parser = _parser(domain, "student", student_command)
    parser.add_argument("labels", help="folder that label wrote")
    _option(parser, "reviewed", "", "table with tile_id and label, or what `reviews export` wrote")
    _option(parser, "confident", 0.9, "least probability of other labels (%(default)s)")
    _option(parser, "weight", 0.5, "of those labels, times their probability (%(default)s)")
    _option(parser, "errors", "", "queue that audit wrote: labels count by their quality too")
    _option(parser, "out", "", "training file to write (default: LABELS/student.yaml)")
    args = _parse(parser, argv, "LABELS [--reviewed TABLE]")
    from vitdomains.zeroshot.students.student import student_config, student_manifest

    folder = Path(args.labels)
    reviewed = _reviewed(folder, args.reviewed) if args.reviewed else {}
    quality: dict[str, float] = {}
    if args.errors:
        import pandas as pd

        queue = pd.read_csv(args.errors, dtype={"id": "str"})
        quality = {str(t): float(q) for t, q in queue.groupby("id")["quality"].min().items()}
    manifest = student_manifest(folder, reviewed, args.confident, args.weight, quality)
    config = student_config(folder, args.out or folder / "student.yaml")
    console.print(
        f"manifest  {manifest}\nnext:\n  python -m vitdomains.satellite train --config {config}", soft_wrap=True
    )
    return 0


def refine_command(domain: Domain, argv: list[str]) -> int:
    """Label again with what reviewed tiles teach, by the best of several methods; no image is read."""
    parser = _parser(domain, "refine", refine_command)
    parser.add_argument("labels", help="folder that label wrote")
    _option(parser, "reviewed", "", "table with tile_id and label, or what `reviews export` wrote", required=True)
    _option(parser, "out", "", "folder to write", required=True)
    _option(
        parser,
        "method",
        "auto",
        "text, anchored probe, Tip-Adapter, ..., transductive (default: %(default)s, the best)",
    )
    _option(parser, "threshold", -1.0, "least probability of a label, else unknown (0)")
    args = _parse(parser, argv, "LABELS --reviewed TABLE --out FOLDER")
    folder, out = Path(args.labels), Path(args.out)
    if out.resolve() == folder.resolve():
        raise ConfigError("--out is the folder that is refined.", hint="Choose another, to compare the two.")
    from vitdomains.zeroshot.embeddings.store import TilePlan, places_of
    from vitdomains.zeroshot.labels.label import Options, text_classifier, write_labels
    from vitdomains.zeroshot.labels.outputs import write_label_bundle
    from vitdomains.zeroshot.labels.prompts import read_prompts
    from vitdomains.zeroshot.models.towers import load_towers
    from vitdomains.zeroshot.students.refine import refine

    index, tiles, keys = _embedded(folder)
    towers = load_towers(index.about.source)
    options = Options("softmax", args.threshold)
    text = text_classifier(towers, read_prompts(folder / "prompts.json"), options, index.folder, index.about.precision)
    refined = refine(text, index, tiles, keys, _reviewed(folder, args.reviewed), args.method)
    made_by = f"{refined.chosen} on {refined.reviewed} reviewed tiles"
    if refined.scores is not None:
        made_by += f", as the nearest linear layer: the same class for {refined.agreement:.1%} of the tiles"
    bundle = write_label_bundle(out / "bundle", towers, refined.classifier, index.about, len(tiles), made_by)
    plan = TilePlan(tiles, places_of(tiles))
    wrong = {keys[t]: e for t, e in zip(tiles["tile_id"], tiles["error"], strict=True) if e}
    with shown_progress() as on_progress:
        write_labels(
            out,
            bundle,
            refined.classifier,
            plan,
            index,
            list(keys.values()),
            wrong,
            options,
            on_progress,
            refined.scores,
        )
    if refined.measured:
        console.print("accuracy on held-out reviewed tiles, cross-validated, with 95 % intervals:")
    for name, reached in refined.measured.items():
        console.print(f"  {name:<32} {reached}", highlight=False)
    console.print(f"labels  {out}\n        {made_by}", highlight=False, soft_wrap=True)
    return 0


def _parser(domain: Domain, name: str, command: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m vitdomains.{domain.name} {name}", description=command.__doc__, allow_abbrev=False
    )
    _option(parser, "config", "", "YAML file with values for the options below")
    return parser


def _option(parser: Any, name: str, default: Any, text: str, *more: str, **rest: Any) -> None:
    """``--name`` of the type of its default; False makes it a flag, None a word without a default."""
    if default is False:
        rest["action"] = "store_true"
    else:
        rest |= {"type": type(default), "default": default}
    parser.add_argument(f"--{name}", *more, help=text, **rest)


def _add_classes(parser: argparse.ArgumentParser) -> None:
    _option(parser, "classes", "", "file of classes (YAML, text, CSV), or their names with commas between them")
    _option(parser, "templates", "", "sets or texts with {}, comma-separated (default: the class file's)")


def _add_tiling(parser: argparse.ArgumentParser) -> None:
    _option(parser, "tile", 0, "cut inputs into tiles of this side, pixels; 0: files are tiles")
    _option(parser, "overlap", 0.25, "share in common with the next tile (%(default)s)")
    _option(parser, "strict", False, "exit with status 3 where a file or tile failed")


def _add_scores(parser: argparse.ArgumentParser) -> None:
    text = "softmax: one class a tile; sigmoid: any number; auto: as the model was trained"
    _option(parser, "scores", "auto", text, choices=("auto", "softmax", "sigmoid"))
    _option(parser, "threshold", -1.0, "least probability of a label, else unknown (softmax: 0, sigmoid: 0.5)")


def _add_compute(parser: argparse.ArgumentParser) -> None:
    _option(parser, "model", MODEL, "folder or hub id of a CLIP, SigLIP or dual encoder (%(default)s)")
    _option(parser, "bands", "", "names or numbers of the bands for red, green, blue")
    _option(parser, "stretch", "0,255", "LOW,HIGH of those bands, the same for every tile (%(default)s)")
    how = parser.add_argument_group("how it is computed")
    _option(how, "precision", "auto", "(default: %(default)s)", choices=("auto", "fp32", "bf16"))
    _option(how, "batch_size", 32, "tiles a forward pass (%(default)s)")
    _option(how, "readers", 2, "reading threads a worker (%(default)s)")
    _option(how, "device", "auto", "cpu, cuda, ... (default: %(default)s)")
    _option(how, "executor", "inline", "(default: %(default)s)", choices=("inline", "processes", "ray"))
    _option(how, "workers", 1, "processes, or actors of Ray (%(default)s)")
    _option(how, "threads", 0, "compute threads a worker; 0: the cores shared out")
    _option(how, "ray_address", "", "of a running cluster, or auto; default: start one", "--ray.address")
    _option(how, "num_gpus", 0.0, "GPUs that each actor of Ray asks for (%(default)s)")
    _option(how, "shard_size", 1024, "tiles that are saved together (%(default)s)")


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str], usage: str) -> argparse.Namespace:
    """The arguments over the values of --config over the defaults.

    Raises:
        ConfigError: An argument is wrong, or the file has a key that is no option.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", default="")
    file = finder.parse_known_args(argv)[0].config
    if file:
        from vitdomains.core.config.yaml_file import read_yaml

        values = read_yaml(file)
        known = {action.dest for action in parser._actions if action.option_strings} - {"help", "config"}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"{file}: unknown key {unknown[0]!r}.", hint=f"The keys are {', '.join(sorted(known))}.")
        parser.set_defaults(**values)
    return parse_args(parser, argv, usage)


def _embedded(folder: Path) -> tuple[Index, pd.DataFrame, dict[str, str]]:
    """The index, the tile table, and the key of each tile of a labelling."""
    from vitdomains.zeroshot.embeddings.store import open_index
    from vitdomains.zeroshot.students.student import read_tiles

    tiles = read_tiles(folder)
    index = open_index(folder / json.loads((folder / "run.json").read_text(encoding="utf-8"))["index"])
    keyed = index.tiles().drop_duplicates("tile_id", keep="last").set_index("tile_id")["key"]
    return index, tiles, {t: str(keyed.get(t, "")) for t in tiles["tile_id"]}


def _reviewed(folder: Path, file: str) -> dict[str, str]:
    """Tile id -> class that people gave, from a table of tiles or of decisions on files."""
    import pandas as pd

    from vitdomains.zeroshot.students.student import read_reviewed, read_tiles

    tiles = read_tiles(folder)
    files = folder / json.loads((folder / "run.json").read_text(encoding="utf-8"))["index"] / "files.parquet"
    if not files.is_file():
        raise ManifestError(f"{folder} has lost its index ({files.parent}).", hint="Label the tiles again.")
    known = pd.read_parquet(files)
    return read_reviewed(file, tiles, dict(zip(known["path"], known["digest"], strict=True)))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _prompts(args: argparse.Namespace) -> PromptSet:
    if not args.classes:
        raise ConfigError("No classes are given.", hint="Add --classes FILE.yaml, or --classes 'forest, river, town'.")
    from vitdomains.zeroshot.labels.prompts import read_classes

    return read_classes(args.classes, _listed(args.templates))


def _towers(args: argparse.Namespace) -> Towers:
    from vitdomains.zeroshot.embeddings.reader import with_bands
    from vitdomains.zeroshot.models.towers import load_towers

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
    from vitdomains.core.geo.map.run import ComputeOptions
    from vitdomains.zeroshot.labels.label import Compute

    means = ComputeOptions(args.executor, args.workers, args.threads, args.ray_address, args.num_gpus, args.shard_size)
    return Compute(means, args.precision, args.batch_size, args.readers, args.device)


def _show(done: Labelled, prompts: PromptSet) -> None:
    from rich.table import Table
    from rich.text import Text

    from vitdomains.core.geo.map.tiles_table import UNKNOWN

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
    """The exit status of a job: 3 with ``--strict`` where something failed, else 0.

    Raises:
        NoResultError: Nothing was done (status 4).
    """
    if not done:
        raise NoResultError(
            f"Not one tile could be {verb}: {failed} failed, and the others hold too little data.",
            hint="errors.csv and the lines above say why.",
        )
    return 3 if failed and strict else 0
