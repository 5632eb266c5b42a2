"""What each part of the recipe does on few labels: AID tiles, 30 classes of 40 to train, 10 to choose, 20 to measure.

    python benchmarks/recipe_ablation.py --root AID_SUBSET --tiny vit_tiny_patch16_224.safetensors \\
        --dinov2 vit_small_patch14_dinov2.safetensors

Each row is a configuration under ``configs/satellite`` with the changes that stand in its line, trained once a seed; the seed
also draws the split, so rows of one seed share their images. Top-1 accuracy is that of the test tiles; the validation tiles
choose the epoch, and C of the probes. Results are written after every row to ``benchmarks/results/recipe_ablation.json``; the
same command goes on from there. Further ``--section.key value`` words change every row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from harness import RESULTS, write_result
from rich.console import Console
from rich.table import Table

from vitdomains.core import pipeline
from vitdomains.core.bundle import Bundle, write_bundle
from vitdomains.core.config.parse import parse_config
from vitdomains.core.config.schema import Config
from vitdomains.core.data.dataset import ImageDataset, warm
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.data.loading import batches
from vitdomains.core.data.manifest import labels, subset
from vitdomains.core.domain import domain_reader
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.models.build import build_model, portable_spec
from vitdomains.core.probe import probe
from vitdomains.core.process import restart_with_tuned_allocator
from vitdomains.core.tasks import build_task
from vitdomains.core.terminal import set_up_logging
from vitdomains.core.training.distill import load_teacher
from vitdomains.core.training.loop import fit
from vitdomains.satellite import DOMAIN

_log = logging.getLogger("vitdomains.recipe_ablation")
CONFIGS = Path("configs") / "satellite"
TEACHER = "dinov2_small"


@dataclass(frozen=True)
class Row:
    """One line of the table: a configuration file, and what is changed in it."""

    title: str
    config: str
    changes: tuple[str, ...] = ()
    kind: Literal["train", "probe"] = "train"
    base: str = ""  # the row that it is compared with


TINY, SMALL = "aid_vit_tiny.yaml", "aid_dinov2_small.yaml"
# What the rows of ViT-Ti share, so that all rows and seeds take two hours of one core: the tiles have 150 pixels.
SHORT = ("--data.image_size=112", "--recipe.epochs=6")
ROWS: dict[str, Row] = {
    "vit_tiny_probe": Row("ViT-Ti, frozen: linear probe", TINY, SHORT, kind="probe", base="vit_tiny"),
    "vit_tiny": Row("ViT-Ti, fine-tuned", TINY, SHORT),
    "vit_tiny_random": Row(
        "random initialisation", TINY, (*SHORT, "--model.weights=", "--recipe.head_init=random", "--recipe.layer_decay=1"),
        base="vit_tiny",
    ),
    "vit_tiny_mixed": Row(
        "MixUp and CutMix on", TINY, (*SHORT, "--recipe.mixup=0.2", "--recipe.cutmix=1.0", "--recipe.mix_off_epochs=1"),
        base="vit_tiny",
    ),
    "vit_tiny_no_decay": Row("layer decay off", TINY, (*SHORT, "--recipe.layer_decay=1"), base="vit_tiny"),
    "dinov2_probe": Row("DINOv2 ViT-S, frozen: linear probe", SMALL, kind="probe", base=TEACHER),
    TEACHER: Row("DINOv2 ViT-S, fine-tuned", SMALL),
    "vit_tiny_distilled": Row(
        "ViT-Ti distilled from the DINOv2 ViT-S of the same seed", TINY,
        (*SHORT, "--recipe.teacher=TEACHER", "--recipe.distillation=soft", "--recipe.distillation_tau=2"), base="vit_tiny",
    ),
}  # fmt: skip


def configured(row: Row, seed: int, args: argparse.Namespace, overrides: Sequence[str]) -> Config:
    """The configuration of a row and seed, with this machine's paths."""
    home = Path(args.work)
    given = [
        "--config", str(Path(__file__).resolve().parents[1] / CONFIGS / row.config),
        "--model.weights", args.tiny if row.config == TINY else args.dinov2, *overrides, *row.changes,
        "--data.root", args.root, "--data.cache_dir", str(home / "cache"), "--data.split_seed", str(seed),
        "--run.seed", str(seed), "--run.threads", str(args.threads),
    ]  # fmt: skip
    config = parse_config(
        [word.replace("=TEACHER", f"={home / TEACHER}-{seed}/bundle") for word in given], Config(), "row"
    )
    name = next(name for name, known in ROWS.items() if known is row)
    return replace(config, run=replace(config.run, dir=str(home / f"{name}-{seed}"), overwrite=True))


def command(row: Row, overrides: Sequence[str]) -> str:
    """What makes the row, as a reader types it."""
    weights = "VIT_TINY" if row.config == TINY else "DINOV2"
    head = f"python -m vitdomains.satellite {row.kind} --config {CONFIGS / row.config}"
    parts = [head, "--data.root AID", f"--model.weights {weights}", *overrides, *row.changes]
    return " ".join([*parts, "--data.split_seed SEED --run.seed SEED"])


def train_row(config: Config) -> dict[str, float]:
    """Top-1 accuracy of the best epoch on the test tiles; the model goes to ``run.dir/bundle``."""
    folder = pipeline.open_run_folder(config)
    torch.set_num_threads(config.run.threads)
    manifest, spec = DOMAIN.build_manifest(config.data), pipeline.preprocess_spec(config, DOMAIN)
    cache = ImageCache(spec, pipeline.cache_folder(config))

    def part(split: str, augmented: bool = False) -> ImageDataset:
        made = pipeline.dataset(DOMAIN, subset(manifest, split), spec, cache, config, augmented=augmented)
        warm(made)
        return made

    train, val, test = part("train", True), part("val"), part("test")
    task = build_task(DOMAIN.task, manifest.classes, config.recipe, labels(train.manifest))
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, len(manifest.classes), image_size=spec.height)
    teacher = load_teacher(config, spec, manifest.classes) if config.recipe.teacher else None
    fitted = fit(model, task, train, val, spec, config, teacher=teacher)
    bundle = Bundle(
        path=folder / "bundle", domain=DOMAIN.name, task_kind=DOMAIN.task, classes=manifest.classes,
        model=replace(portable_spec(config.model, model), image_size=spec.height), preprocess=spec, temperature=(1.0,),
        thresholds=(0.5,) * len(manifest.classes), threshold_rule="", metrics={}, data_card=manifest.name,
        provenance={"config": asdict(config)}, exports={}, files={},
    )  # fmt: skip
    bundle = write_bundle(bundle, model.state_dict())
    predictor = Predictor(bundle, domain_reader(DOMAIN, spec), model=model, threads=config.run.threads)
    logits = [predictor.logits(images) for images, _, _ in batches(test, 32, shuffle=False, seed=0, epoch=0)]
    right = np.concatenate(logits).argmax(axis=1) == test.targets.argmax(axis=1)
    for tokens in pipeline.cache_folder(config).glob("tokens-*"):
        tokens.unlink()  # hundreds of megabytes a seed, and no other row asks for them
    return {
        "accuracy": float(right.mean()),
        "validation": fitted.best,
        "best_epoch": float(fitted.best_epoch + 1),
        "images_per_second": fitted.images_per_second,
        "pixels": float(spec.height),
    }


def probe_row(config: Config) -> dict[str, float]:
    """Top-1 accuracy of the linear probe and of 20 neighbours on the test tiles."""
    found, made = probe(DOMAIN, config, 20)
    values = {name: reached["accuracy"]["value"] for name, reached in found.values.items()}
    return {
        "accuracy": values["linear"],
        "knn": values["knn"],
        "c": found.strength,
        "pixels": float(made["image_size"]),
    }


def fingerprint(config: Config) -> str:
    """Of what decides a result; where files lie does not."""
    plain = asdict(config)
    plain["run"] = {"seed": config.run.seed}
    plain["data"] |= {"root": "", "cache_dir": ""}
    plain["model"]["weights"] = Path(config.model.weights).name
    plain["recipe"]["teacher"] = Path(config.recipe.teacher).parent.name
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def show(rows: dict[str, Any]) -> None:
    """The table so far: mean and range over the seeds, and the paired difference from the row that it is compared with."""
    table = Table(title="AID subset, 40 labels a class: top-1 accuracy on 600 test tiles")
    for name in ("row", "mean", "seeds", "difference", "minutes a seed"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for row in rows.values():
        seeds = row["seeds"]
        values = [entry["accuracy"] for entry in seeds.values()]
        base = rows.get(row["base"], {"seeds": {}})["seeds"]
        shared = [seed for seed in seeds if seed in base]
        gaps = [seeds[seed]["accuracy"] - base[seed]["accuracy"] for seed in shared]
        minutes = np.mean([entry["seconds"] for entry in seeds.values()]) / 60
        gap = f"{100 * np.mean(gaps):+.1f}" if gaps else ""
        table.add_row(
            row["title"],
            f"{100 * np.mean(values):.1f}",
            " ".join(f"{100 * v:.1f}" for v in values),
            gap,
            f"{minutes:.1f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with a folder of tiles a class")
    parser.add_argument("--tiny", required=True, help="weights of timm's vit_tiny_patch16_224, ImageNet-pretrained")
    parser.add_argument("--dinov2", required=True, help="weights of timm's vit_small_patch14_dinov2")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", default="runs/recipe_ablation", help="caches and bundles (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result (default: benchmarks/results)")
    words, overrides = parser.parse_known_args()
    restart_with_tuned_allocator()
    set_up_logging()
    file = words.out / "recipe_ablation.json"
    done = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else {}
    rows: dict[str, Any] = {name: done.get(name, {"seeds": {}}) for name in ROWS if name in done or name in words.rows}
    for seed in words.seeds:
        for name in words.rows:
            row = ROWS[name]
            config = configured(row, seed, words, overrides)
            entry = rows[name]["seeds"].get(str(seed))
            if entry and entry["config_sha256"] == fingerprint(config):
                continue
            _log.info("seed %d: %s", seed, row.title)
            started = time.monotonic()
            reached = probe_row(config) if row.kind == "probe" else train_row(config)
            rows[name]["seeds"][str(seed)] = {
                **reached, "seconds": time.monotonic() - started, "config_sha256": fingerprint(config)
            }  # fmt: skip
            rows[name] |= {"title": row.title, "base": row.base, "command": command(row, overrides)}
            kept = {name: entry for name, entry in rows.items() if entry["seeds"]}
            write_result("recipe_ablation", {"threads": words.threads, "rows": kept}, words.out)
            show(kept)
    show({name: entry for name, entry in rows.items() if entry["seeds"]})


if __name__ == "__main__":
    main()
