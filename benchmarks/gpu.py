"""What a GPU does with this package in at most ten minutes, beside timm's models in a plain PyTorch loop of the same run.

    python benchmarks/gpu.py                        # the first GPU; one JSON file
    python benchmarks/gpu.py --smoke --out results  # seconds on any CPU: the same code on the smallest shapes

Training steps of ViT-S/B/L at 224 and 384 pixels in bf16 with fused attention, eager and compiled, with peak memory and model
FLOP utilisation (forward and backward FLOPs as PyTorch counts them, over the rate of a large bf16 product on this device);
forward passes eager, compiled and as a CUDA graph; ``predict`` on PNG films with decoding on all cores; attention rollout over a
forward pass. Sections that no longer fit into --minutes are left out and named. Needs nothing but this package. Writes
``gpu.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitdomains.bench.candidates import forward_call
from vitdomains.bench.cases import Case, named_subject
from vitdomains.bench.timing import summary, write_result
from vitdomains.core.bundle import Bundle, write_bundle
from vitdomains.core.config.schema import Model
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.explain.relevance import rollout
from vitdomains.core.inference.predictor import Predictor
from vitdomains.core.models.build import build_model

SHAPES = tuple(
    (size, f"vit_{name}_patch16_224", pixels, batch)
    for size, name, pixels, batch in (
        ("S/16", "small", 224, 256), ("B/16", "base", 224, 128), ("L/16", "large", 224, 64),
        ("S/16", "small", 384, 96), ("B/16", "base", 384, 48), ("L/16", "large", 384, 24),
    )
)  # fmt: skip
"""Size here, timm's model, pixels, images a step."""
SMOKE = (("Ti/16", "vit_tiny_patch16_224", 32, 2),)
CLASSES = 14
FILMS = 512


def seconds(call: Callable[[], object], device: torch.device, repeats: int, warmup: int = 3) -> list[float]:
    """Of each call, the device's work included."""
    taken = []
    for turn in range(warmup + repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= warmup:
            taken.append(time.perf_counter() - start)
    return taken


def matmul_flops(device: torch.device, side: int, repeats: int) -> float:
    """FLOP/s of a square bf16 product: what model FLOP utilisation is a share of."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / float(np.median(seconds(lambda: a @ a, device, repeats)))


def step_of(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """A training step: forward in bf16 autocast, backward, fused AdamW."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=images.is_cuda)
    targets = torch.zeros(len(images), CLASSES, device=images.device)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = nn.functional.binary_cross_entropy_with_logits(model(images).float(), targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def training(device: torch.device, shape: tuple[str, str, int, int], peak: float, repeats: int) -> list[dict[str, Any]]:
    """Steps of the own ViT and of timm's, eager and, on a GPU, compiled."""
    size, name, pixels, batch = shape
    rows = []
    makers: dict[str, Callable[[], nn.Module]] = {
        "vitdomains": lambda: build_model(Model(name=f"vit:{size}", channels=3), CLASSES, image_size=pixels),
        "timm": lambda: timm.create_model(name, num_classes=CLASSES, img_size=pixels),
    }
    for who, make in makers.items():
        for compiled in (False, True) if device.type == "cuda" else (False,):
            torch.manual_seed(0)
            model = make().to(device).train()
            images = torch.randn(batch, 3, pixels, pixels, device=device)
            with FlopCounterMode(display=False) as counter:
                model(images[:1]).sum().backward()
            flops = counter.get_total_flops() * batch
            model.zero_grad(set_to_none=True)
            step = step_of(torch.compile(model) if compiled else model, images)  # type: ignore[arg-type]
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = seconds(step, device, repeats)
            rate = batch / float(np.median(taken))
            row = {
                "model": f"ViT-{size}",
                "by": who,
                "pixels": pixels,
                "batch": batch,
                "compiled": compiled,
                **summary(taken),
            }
            row |= {
                "images_per_second": rate,
                "flops_per_image": flops / batch,
                "utilisation": rate * flops / batch / peak,
            }
            if device.type == "cuda":
                row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
            rows.append(row)
            del model, step
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return rows


def forward(device: torch.device, shape: tuple[str, str, int, int], repeats: int) -> list[dict[str, Any]]:
    """Latency of one image and throughput of a batch."""
    size, _, pixels, batch = shape
    subject = named_subject(f"vit:{size}", pixels)
    gpu = device.type == "cuda"
    rows = []
    for runtime in ("torch", "torch+compile", "torch+cudagraph") if gpu else ("torch",):
        for precision in ("bf16", "fp16") if gpu else ("fp32",):
            for images in (1, batch):
                case = Case(subject, runtime, precision, images, torch.get_num_threads(), device.type)
                taken = seconds(forward_call(case, Path()), device, repeats)
                rows.append(
                    {"case": case.label, **summary(taken), "images_per_second": images / float(np.median(taken))}
                )
    return rows


def predicting(device: torch.device, shape: tuple[str, str, int, int], films: int) -> dict[str, Any]:
    """``predict`` on PNG films of 1024 x 1024 beside the forward pass alone."""
    size, _, pixels, batch = shape
    with tempfile.TemporaryDirectory() as temporary:
        folder, rng = Path(temporary), np.random.default_rng(0)
        image = cv2.resize(rng.integers(0, 256, (64, 64), dtype=np.uint8), (1024, 1024), interpolation=cv2.INTER_CUBIC)
        for number in range(films):
            cv2.imwrite(str(folder / f"{number}.png"), np.roll(image, number, axis=0))
        spec = PreprocessSpec(pixels, pixels, "letterbox", 1, (0.5,), (0.25,))
        chosen = Model(name=f"vit:{size}", channels=1)
        bundle = Bundle(
            path=folder / "bundle", domain="cxr", task_kind="multilabel", classes=tuple(f"c{k}" for k in range(CLASSES)),
            model=chosen, preprocess=spec, temperature=(1.0,), thresholds=(0.5,) * CLASSES, threshold_rule="", metrics={},
            data_card="", provenance={}, exports={}, files={},
        )  # fmt: skip
        bundle = write_bundle(bundle, build_model(chosen, CLASSES, image_size=pixels).state_dict())
        from vitdomains.cxr.film.film import read_image

        predictor = Predictor(bundle, read_image, device=device.type, batch_size=batch)
        records = [(str(n), str(folder / f"{n}.png")) for n in range(films)]
        list(predictor.predict(records[: 2 * batch]))
        start = time.perf_counter()
        found = list(predictor.predict(records))
        rate = len(found) / (time.perf_counter() - start)
        stored = torch.zeros(batch, 1, pixels, pixels, dtype=torch.uint8)
        bare = batch / float(np.median(seconds(lambda: predictor.logits(stored), device, 5)))
        assert not any(each.error for each in found)
    return {
        "films_per_second": rate,
        "bare_images_per_second": bare,
        "of_bare": rate / bare,
        "precision": predictor.backend.precision,
    }


def rollout_cost(device: torch.device, shape: tuple[str, str, int, int], repeats: int) -> dict[str, float]:
    """Seconds of an attention rollout and of a forward pass of eight images."""
    size, _, pixels, _ = shape
    model = build_model(Model(name=f"vit:{size}", channels=3), CLASSES, image_size=pixels).to(device).eval()
    images = torch.randn(8, 3, pixels, pixels, device=device)
    with torch.no_grad():
        plain = float(np.median(seconds(lambda: model(images), device, repeats)))
    rolled = float(np.median(seconds(lambda: rollout(model, images), device, repeats)))
    return {"forward_s": plain, "rollout_s": rolled, "ratio": rolled / plain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="the smallest shapes, on the CPU")
    parser.add_argument("--minutes", type=float, default=9.5, help="leave out what begins later (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of gpu.json")
    args = parser.parse_args()
    if not args.smoke and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU here. Run it where one is, or check the code on the CPU: --smoke")
    device = torch.device("cpu" if args.smoke else "cuda")
    shapes, repeats = (SMOKE, 1) if args.smoke else (SHAPES, 20)
    start, found, left_out = time.monotonic(), dict[str, Any](), list[str]()
    peak = matmul_flops(device, 256 if args.smoke else 8192, repeats)
    sections: dict[str, Callable[[], Any]] = {}
    for shape in shapes:
        label = f"ViT-{shape[0]} at {shape[2]} px"
        sections[f"training, {label}"] = lambda shape=shape: training(device, shape, peak, repeats)  # type: ignore[misc]
    for shape in shapes[:2]:
        label = f"ViT-{shape[0]} at {shape[2]} px"
        sections[f"forward, {label}"] = lambda shape=shape: forward(device, shape, repeats)  # type: ignore[misc]
        sections[f"rollout, {label}"] = lambda shape=shape: rollout_cost(device, shape, repeats)  # type: ignore[misc]
        sections[f"predict, {label}"] = lambda shape=shape: predicting(device, shape, 4 if args.smoke else FILMS)  # type: ignore[misc]
    for name, section in sections.items():
        if time.monotonic() - start > 60 * args.minutes:
            left_out.append(name)
            continue
        try:
            found[name] = section()
        except torch.cuda.OutOfMemoryError as error:
            found[name] = {"failed": str(error).splitlines()[0]}
        sys.stdout.write(f"{time.monotonic() - start:6.0f} s  {name}\n")
    about = {"smoke": args.smoke, "matmul_flops_per_second": peak, "left_out": left_out}
    sys.stdout.write(f"written: {write_result(args.out / 'gpu.json', {**about, 'sections': found})}\n")


if __name__ == "__main__":
    main()
