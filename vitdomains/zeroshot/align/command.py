"""``align``: make a model for ``label`` out of an image tower, a text tower, and pairs of images and captions."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np

from vitdomains.core.domain import Domain
from vitdomains.core.files import write_text
from vitdomains.core.terminal import OnProgress, console, shown_progress
from vitdomains.zeroshot.align.data import Pairs, class_prompts, hold_out, read_pairs
from vitdomains.zeroshot.align.towers import Pooling, dual_encoder
from vitdomains.zeroshot.align.train import Accelerator, Alignment, Loss, Precision, Trained, align, top_one
from vitdomains.zeroshot.embeddings.sources import labelled_sample
from vitdomains.zeroshot.labels.prompts import read_classes
from vitdomains.zeroshot.models.towers import Parts, make_towers


def align_command(domain: Domain, argv: list[str]) -> int:
    """Train a dual encoder from captions or class names; the folder is a model for `label --model`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m vitdomains.{domain.name} align", description=align_command.__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--image-tower", required=True, help="folder or hub id of transformers, or timm's name of a DINOv2"
    )
    parser.add_argument("--image-weights", default="", help="state of the timm model (default: timm's own)")
    parser.add_argument("--text-tower", required=True, help="folder or hub id of transformers")
    parser.add_argument("--data", required=True, help="CSV with path and caption, or folder of class folders")
    parser.add_argument("--out", required=True, help="folder to write; the same command goes on where it was stopped")
    parser.add_argument("--size", type=int, default=224, help="side of images for a timm model (default: %(default)s)")
    parser.add_argument(
        "--pooling", choices=get_args(Pooling), default="class",
        help="what stands for an image, for a timm model: its class token or the mean of all tokens (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--templates", default="", help="sets or texts with {}, comma-separated (default: clip_resisc45)"
    )
    parser.add_argument("--features", default="", help="folder of image features that runs may share (OUT/work)")
    parser.add_argument("--hold_out", type=int, default=0, help="classes to keep out of training and measure on")
    parser.add_argument("--evaluate", default="", help="another labelled folder to measure on")
    parser.add_argument("--evaluate_classes", default="", help="its classes: YAML file, or names with commas")
    choices = {
        "trained": get_args(Trained), "loss": get_args(Loss), "precision": get_args(Precision),
        "accelerator": get_args(Accelerator),
    }  # fmt: skip
    for field in fields(Alignment):
        if field.name == "unlock_image":
            parser.add_argument("--unlock_image", action="store_true", help="train the image tower as well")
        else:
            default: Any = field.default
            parser.add_argument(f"--{field.name}", type=type(default), default=default, choices=choices.get(field.name))
    args = parser.parse_args(argv)
    with shown_progress() as on_progress:
        report = _run(args, on_progress)
    for name, scores in report["top1"].items():
        shown = ", ".join(f"{key} {value:.3f}" for key, value in scores["scores"].items())
        console.print(f"{name}: top-1 {shown} ({scores['images']} images, {scores['classes']} classes)")
    console.print(f"model: {args.out}")
    return 0


def _run(args: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    out = Path(args.out)
    memory = Path(args.features) if args.features else out / "work"
    how = Alignment(**{field.name: getattr(args, field.name) for field in fields(Alignment)})
    templates = tuple(part.strip() for part in args.templates.split(",") if part.strip())
    pairs = read_pairs(args.data, templates)
    seen, held = hold_out(pairs, args.hold_out, how.seed) if args.hold_out else (pairs, None)
    parts = dual_encoder(
        args.image_tower, args.text_tower, image_weights=args.image_weights, size=args.size, pooling=args.pooling,
        seed=how.seed,
    )  # fmt: skip
    parts = align(parts, seen, out / "work", how, memory=memory, on_progress=on_progress)
    parts.save(out)
    report: dict[str, Any] = {"settings": vars(args), "trained_on": list(seen.names), "top1": {}}
    if held:
        report["held_out"] = list(held.names)
        report["top1"]["held-out classes"] = _among(parts, held, held.names, templates, memory)
        report["top1"]["held-out classes among all"] = _among(
            parts, held, (*held.names, *seen.names), templates, memory
        )
    if args.evaluate:
        prompts = read_classes(args.evaluate_classes, templates)
        plan, targets = labelled_sample(args.evaluate, prompts)
        truth = targets.argmax(axis=1).astype(np.int64)
        scores = top_one(parts, make_towers(parts), prompts, list(plan.table["path"]), truth, memory, on_progress)
        report["top1"][Path(args.evaluate).name] = {
            "scores": scores, "images": len(truth), "classes": len(prompts.names),
        }  # fmt: skip
    write_text(out / "align.json", json.dumps(report, indent=2))
    return report


def _among(
    parts: Parts, held: Pairs, names: tuple[str, ...], templates: tuple[str, ...], memory: Path
) -> dict[str, Any]:
    prompts = class_prompts(names, templates)
    scores = top_one(parts, make_towers(parts), prompts, held.paths, held.groups, memory)
    return {"scores": scores, "images": len(held.paths), "classes": len(names)}
