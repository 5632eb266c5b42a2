"""Does loading starve training? Images per second of ``fit`` over those of the bare step on tensors in memory.

    python benchmarks/train_throughput.py

Both in bfloat16 at 384 px, the same model, batch and optimiser; ``fit`` reads from a warm cache, augments and logs. The two take
turns, and each turn's ratio is taken, so that drift of the machine cancels. Writes ``benchmarks/results/train_throughput.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from harness import write_result
from rich.console import Console
from rich.table import Table

from vitdomains.core.config.schema import Config, Model, Recipe, Run
from vitdomains.core.data.augment import build_augment
from vitdomains.core.data.dataset import ImageDataset, warm
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.data.manifest import make_manifest, take
from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.models.build import build_model
from vitdomains.core.tasks import build_task
from vitdomains.core.training.loop import fit
from vitdomains.core.training.optim import parameter_groups
from vitdomains.cxr.film.film import read_image

CLASSES = tuple(f"finding_{k}" for k in range(14))


def films(folder: Path, n: int, seed: int = 0) -> ImageDataset:
    """``n`` grey PNG films of noise with random labels: the content costs nothing and changes nothing here."""
    rng = np.random.default_rng(seed)
    paths = [folder / f"{i:04d}.png" for i in range(n)]
    for path in paths:
        cv2.imwrite(str(path), cv2.GaussianBlur(rng.integers(0, 256, (448, 448), np.uint8), (0, 0), 4))
    ids = [path.stem for path in paths]
    manifest = make_manifest(
        ids, list(map(str, paths)), ids, CLASSES, rng.integers(0, 2, (n, len(CLASSES))).astype(float)
    )
    spec = PreprocessSpec(384, 384, "letterbox", 3, (0.5,), (0.25,))
    made = ImageDataset(manifest, read_image, spec, cache=ImageCache(spec, folder / "cache"))
    warm(made)
    return made


def fit_rate(images: ImageDataset, config: Config, steps: int) -> float:
    """Images per second of ``fit`` between its second and its last step."""
    augment = build_augment(config.recipe, "uint8")
    train = ImageDataset(images.manifest, read_image, images.spec, cache=images.cache, augment=augment)
    val = ImageDataset(take(images.manifest, [0, 1]), read_image, images.spec, cache=images.cache)
    model = build_model(config.model, len(CLASSES), image_size=384)
    at: list[float] = []
    fit(model, build_task("multilabel", CLASSES), train, val, images.spec, config,
        on_progress=lambda done, total, text: at.append(time.perf_counter()))  # fmt: skip
    return (steps - 2) * config.recipe.batch_size / (at[-1] - at[1])


def bare_rate(images: ImageDataset, config: Config, steps: int) -> float:
    """Images per second of forward, backward and AdamW on one batch that lies in memory."""
    model = build_model(config.model, len(CLASSES), image_size=384).train()
    groups = [
        {"params": g["params"], "weight_decay": g["weight_decay"]} for g in parameter_groups(model, config.recipe)
    ]
    optimizer, task = torch.optim.AdamW(groups, lr=1e-4), build_task("multilabel", CLASSES)
    stored = np.stack([images.image(i) for i in range(config.recipe.batch_size)])
    batch = normalise(torch.from_numpy(stored)[:, None], images.spec)
    target = torch.from_numpy(images.targets[: config.recipe.batch_size])
    at: list[float] = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch)
        task.loss(logits.float(), target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        at.append(time.perf_counter())
    return (steps - 2) * config.recipe.batch_size / (at[-1] - at[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit:Ti/16")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        images = films(Path(folder), args.steps * args.batch_size)
        recipe = Recipe(epochs=1, batch_size=args.batch_size, augment="cxr", precision="bf16")
        config = Config(model=Model(name=args.model), recipe=recipe, run=Run(save_seconds=1e9, accelerator="cpu"))
        rows = []
        for round_ in range(args.rounds):
            own = replace(config, run=replace(config.run, dir=f"{folder}/run{round_}"))
            order = (fit_rate, bare_rate) if round_ % 2 else (bare_rate, fit_rate)
            rates = {measure.__name__: measure(images, own, args.steps) for measure in order}
            rows.append(rates | {"ratio": rates["fit_rate"] / rates["bare_rate"]})
    table = Table(title=f"{args.model}, 384 px, batch {args.batch_size}, bf16, {args.threads} threads")
    for name in ("fit, images/s", "bare step, images/s", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(f"{row['fit_rate']:.2f}", f"{row['bare_rate']:.2f}", f"{row['ratio']:.3f}")
    Console().print(table)
    ratio = float(np.median([row["ratio"] for row in rows]))
    Console().print(f"median ratio {ratio:.3f}")
    write_result("train_throughput", {"arguments": vars(args), "rounds": rows, "median_ratio": ratio})


if __name__ == "__main__":
    main()
