"""Labelling end to end against what it is made of, and against the peers: tiles per second, CLIP ViT-B/32 with random weights.

    python benchmarks/zeroshot_throughput.py                     # about 15 minutes on two cores
    python benchmarks/zeroshot_throughput.py --tiles 64 --relabel 64 --peers 4 --rounds 1 --small     # a try

``label`` reads JPEG tiles of 256 pixels, embeds them, compares them with the classes and writes all of its outputs. ``bare`` is
the image tower alone with bfloat16 weights on prepared tensors in memory; both take turns, and each round gives a ratio.
open_clip's loop is the one of its README (float32, its own transform, texts encoded once), transformers' is its pipeline. Both
executors are timed from their first finished shard on, without the start of workers. Writes
``benchmarks/results/zeroshot_throughput.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from harness import require, write_result
from PIL import Image
from rich.console import Console
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, pipeline

from vitdomains.core.geo.map.run import ComputeOptions
from vitdomains.core.process import physical_cores, restart_with_tuned_allocator
from vitdomains.zeroshot.embeddings.store import TilePlan, plan_tiles
from vitdomains.zeroshot.labels.label import Compute, label_tiles
from vitdomains.zeroshot.labels.prompts import read_classes
from vitdomains.zeroshot.models.openclip import BPE_FILE, tokenizer_from_merges
from vitdomains.zeroshot.models.towers import Parts, Towers, load_towers

CLASSES = "forest, river or lake, residential buildings, parking lot, industrial area, farmland, grassland"
OTHERS = "airport, harbour, solar farm, stadium, beach, desert, cloud"
BATCH = 32


def random_clip(folder: Path, *, small: bool = False) -> Path:
    """A CLIP with random weights as a folder: the shape of ViT-B/32, or one that takes a thousandth of the time."""
    torch.manual_seed(0)
    import open_clip

    tokenizer = tokenizer_from_merges(Path(open_clip.__file__).with_name(BPE_FILE))
    size = 32 if small else 224
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        vision_config={**narrow, "image_size": 32, "patch_size": 8} if small else {},
        text_config={**(narrow if small else {}), "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407},
        projection_dim=16 if small else 512,
    )
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    Parts(CLIPModel(config).eval(), tokenizer, processor).save(folder)
    return folder


def write_jpegs(folder: Path, n: int, size: int = 256) -> Path:
    """Tiles with structure at several scales, as large on disk as aerial ones."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        picture = np.zeros((size, size, 3), np.float32)
        for cells, share in ((4, 0.5), (16, 0.3), (64, 0.2)):
            coarse = rng.integers(0, 256, (cells, cells, 3)).astype(np.float32)
            picture += share * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{i:06d}.jpg"), picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return folder


def bare(towers: Towers, seconds: float) -> float:
    """Images per second of the image tower, bfloat16 weights, on a prepared batch."""
    tower = load_towers(towers.source).image.to(torch.bfloat16).eval()
    batch = torch.randn(BATCH, 3, towers.preprocess.height, towers.preprocess.width)
    with torch.inference_mode():
        tower(batch)
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            tower(batch)
            count += BATCH
    return count / (time.perf_counter() - begin)


def labelled(
    towers: Towers, plan: TilePlan, out: Path, classes: str, index: Path, means: ComputeOptions
) -> tuple[float, float]:
    """Tiles per second of a whole labelling, and of the time behind its first finished shard."""
    stamps: list[tuple[float, int]] = []

    def on_progress(phase: str, done: int, total: int, text: str) -> None:
        if phase == "tiles" and done:
            stamps.append((time.perf_counter(), done))

    begin = time.perf_counter()
    compute = Compute(means, "bf16", BATCH)
    label_tiles(towers, read_classes(classes), plan, out, index_folder=index, compute=compute, on_progress=on_progress)
    whole = len(plan.table) / (time.perf_counter() - begin)
    if len(stamps) < 2:
        return whole, float("nan")
    (first, some), (last, all_) = stamps[0], stamps[-1]
    return whole, (all_ - some) / (last - first)


def open_clip_loop(files: list[Path]) -> float:
    """Images per second of the plain loop."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    model.eval()
    with torch.no_grad():
        texts = model.encode_text(tokenizer(CLASSES.split(", ")), normalize=True)
        begin = time.perf_counter()
        for at in range(0, len(files), BATCH):
            batch = torch.stack([transform(Image.open(file)) for file in files[at : at + BATCH]])
            (100.0 * model.encode_image(batch, normalize=True) @ texts.T).softmax(dim=-1)
    return len(files) / (time.perf_counter() - begin)


def transformers_pipeline(model: Path, files: list[Path]) -> float:
    """Images per second of the zero-shot pipeline."""
    classify = pipeline("zero-shot-image-classification", model=str(model), device="cpu")
    labels = CLASSES.split(", ")
    classify(str(files[0]), candidate_labels=labels)
    begin = time.perf_counter()
    for file in files:
        classify(str(file), candidate_labels=labels)
    return len(files) / (time.perf_counter() - begin)


def main() -> None:
    restart_with_tuned_allocator()  # as the commands do
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=8192, help="tiles of a labelling (%(default)s)")
    parser.add_argument(
        "--relabel", type=int, default=32768, help="tiles that are labelled anew from embeddings (%(default)s)"
    )
    parser.add_argument(
        "--peers", type=int, default=128, help="tiles for open_clip; a quarter for the pipeline (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script; nothing is written")
    args = parser.parse_args()
    require("open_clip")
    console = Console()
    torch.set_num_threads(physical_cores())
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        model = random_clip(root / "clip", small=args.small)
        towers = load_towers(model)
        files = sorted(write_jpegs(root / "tiles", max(args.tiles, args.relabel)).iterdir())
        found: dict[str, Any] = {"tiles": args.tiles, "rounds": []}
        fresh = _fresh(root)
        inline = ComputeOptions(shard_size=512)
        plan = plan_tiles(files[: args.tiles])
        labelled(towers, plan_tiles(files[:BATCH]), fresh("warm"), CLASSES, fresh("warm"), inline)
        for _ in range(args.rounds):
            tower = bare(towers, 1 if args.small else 10)
            whole, _ = labelled(towers, plan, fresh("out"), CLASSES, fresh("index"), inline)
            found["rounds"].append({"bare": tower, "label": whole, "ratio": whole / tower})
            console.print(f"bare tower {tower:.1f}/s, label {whole:.1f}/s: {whole / tower:.3f}")
        found["label_over_bare"] = float(np.median([r["ratio"] for r in found["rounds"]]))
        rate = float(np.median([r["label"] for r in found["rounds"]]))
        if not args.small:
            found["open_clip_loop"] = open_clip_loop(files[: args.peers])
            found["label_over_open_clip"] = rate / found["open_clip_loop"]
        found["transformers_pipeline"] = transformers_pipeline(model, files[: max(1, args.peers // 4)])
        found["label_over_pipeline"] = rate / found["transformers_pipeline"]
        many, index = plan_tiles(files[: args.relabel]), fresh("index")
        first, _ = labelled(towers, many, fresh("out"), CLASSES, index, inline)
        again, _ = labelled(towers, many, fresh("out"), OTHERS, index, inline)
        found["relabel"] = {"tiles": args.relabel, "first_pass": first, "other_classes": again, "ratio": again / first}
        small = max(8, args.tiles // 32)
        for executor in ("processes", "ray"):
            means = ComputeOptions(executor, 2, 1, shard_size=small)  # type: ignore[arg-type]
            _, steady = labelled(towers, plan, fresh("out"), CLASSES, fresh("index"), means)
            found[f"{executor}_2x1"] = steady
        found["ray_over_processes"] = found["ray_2x1"] / found["processes_2x1"]
    for name, value in found.items():
        console.print(f"{name}: {value}", highlight=False)
    if not args.small:
        console.print(f"written: {write_result('zeroshot_throughput', found)}")


def _fresh(root: Path) -> Callable[[str], Path]:
    """Gives another folder for each call."""
    count = iter(range(10_000))
    return lambda name: root / f"{name}-{next(count)}"


if __name__ == "__main__":
    main()
