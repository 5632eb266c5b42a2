"""Fine-tuning against a linear probe on the same frozen backbone, in the same folds of real films.

    python benchmarks/cxr_quality.py --root NIH_SUBSET --weights vit_small_patch14_dinov2.safetensors

Patients are held out, in turn by ``--folds`` or once (``--folds 0``: 30 % of them, with ``--seeds`` trainings). The recipe
of ``configs/cxr/nih_subset_dinov2.yaml`` trains on all others, and so does scikit-learn's logistic regression on the
backbone's frozen features; both are measured on the held-out films. The recipe keeps the last epoch, so nothing is chosen
on these. The probe's features (class token, or class token and mean of the patches) and its strength C are tried out, and
the best of them on the held-out films is what the recipe is held against.
Writes ``benchmarks/results/cxr_quality.json``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import write_result
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitdomains.core.config.parse import parse_config
from vitdomains.core.config.schema import Config
from vitdomains.core.data.augment import build_augment
from vitdomains.core.data.dataset import ImageDataset, warm
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.data.loading import batches
from vitdomains.core.data.manifest import Manifest, take
from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.data.splits import grouped_folds
from vitdomains.core.metrics.scores import auroc
from vitdomains.core.models.build import build_model
from vitdomains.core.models.introspect import split_frozen
from vitdomains.core.pipeline import preprocess_spec
from vitdomains.core.tasks import build_task
from vitdomains.core.terminal import set_up_logging
from vitdomains.core.training.batches import frozen_weights_hash
from vitdomains.core.training.feature_cache import cached_features
from vitdomains.core.training.loop import fit
from vitdomains.cxr import DOMAIN
from vitdomains.cxr.film.film import read_image

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "cxr" / "nih_subset_dinov2.yaml"
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)


@torch.inference_mode()
def frozen_features(images: ImageDataset, config: Config, folder: str) -> dict[str, np.ndarray]:
    """Features of the frozen backbone for every film: [N, D] of the class token, [N, 2 D] with the mean of the patches."""
    model = build_model(config.model, 1, image_size=images.spec.height).eval()
    split = split_frozen(model)
    assert split is not None
    frozen = frozen_weights_hash(model)
    tokens = cached_features(
        "tokens", split[0], frozen, images, images.spec, config, Path(folder), torch.device("cpu"), 0
    )
    rows = []
    for first in range(0, len(images), 8):
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.from_numpy(tokens[np.arange(first, min(first + 8, len(images)))]).float()
            final = model.norm(model.run_blocks(x, start=int(config.model.freeze))).float()
        rows.append(torch.cat([final[:, 0], final[:, model.prefix :].mean(dim=1)], dim=1).numpy())
    both = np.concatenate(rows)
    return {"class token": both[:, : both.shape[1] // 2], "class token and patch mean": both}


def probe(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, strength: float) -> np.ndarray:
    """Probabilities [M, K] of one logistic regression a finding, on standardised features."""
    scores = []
    for k in range(y.shape[1]):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        scores.append(model.fit(x[train], y[train, k]).predict_proba(x[test])[:, 1])
    return np.stack(scores, axis=1)


def tune(
    manifest: Manifest, cache: ImageCache, spec: PreprocessSpec, config: Config, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Probabilities [M, K] of the fine-tuned model on the test rows."""
    augment = build_augment(config.recipe, spec.storage)
    learn = ImageDataset(take(manifest, train), read_image, spec, cache=cache, augment=augment)
    # ``fit`` wants validation images for its log; the last epoch is kept, so these, which it trains on, choose nothing.
    seen = ImageDataset(take(manifest, train[:32]), read_image, spec, cache=cache)
    # The seed of the views is the data set's and the same for every training, so frozen tokens are computed once.
    task = build_task("multilabel", manifest.classes, config.recipe, learn.targets)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, len(manifest.classes), image_size=spec.height)
    fit(model, task, learn, seen, spec, config)
    held_out = ImageDataset(take(manifest, test), read_image, spec, cache=cache)
    logits = []
    with torch.inference_mode():
        for batch, _, _ in batches(held_out, 8, shuffle=False, seed=0, epoch=0):
            with torch.autocast("cpu", torch.bfloat16):
                logits.append(model(normalise(batch, spec)).float().numpy())
    return task.scores(np.concatenate(logits))


def by_finding(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AUROC of each finding, [K]."""
    return np.array([auroc(y[:, k], scores[:, k]) for k in range(y.shape[1])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with Data_Entry_2017_subset.csv and images/")
    parser.add_argument("--weights", required=True, help="DINOv2 ViT-S/14, safetensors")
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("--folds", type=int, default=5, help="0: hold out 30 %% of the patients once")
    parser.add_argument("--seeds", type=int, default=3, help="trainings with --folds 0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="", help="keep decoded films and frozen tokens here")
    words, overrides = parser.parse_known_args()
    set_up_logging()
    torch.set_num_threads(words.threads)
    base = ["--config", words.config, "--data.root", words.root, "--model.weights", words.weights]
    config = parse_config([*base, *overrides], Config(), "cxr_quality")
    manifest = DOMAIN.build_manifest(config.data)
    spec, groups = preprocess_spec(config, DOMAIN), manifest.table["group"]
    y = manifest.table[list(manifest.classes)].to_numpy(float)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = words.cache or scratch
        cache = ImageCache(spec, folder)
        warm(everything := ImageDataset(manifest, read_image, spec, cache=cache))
        tests = grouped_folds(manifest, words.folds or 10, seed=0)
        rounds = [(test, 0) for test in tests]
        if not words.folds:
            rounds = [(np.sort(np.concatenate(tests[:3])), seed) for seed in range(words.seeds)]
        features = frozen_features(everything, config, folder)
        mine, probes = [], {}
        for number, (test, seed) in enumerate(rounds):
            train = np.setdiff1d(np.arange(len(y)), test)
            for name, x in features.items():
                for strength in STRENGTHS:
                    probes.setdefault((name, strength), []).append(
                        by_finding(y[test], probe(x, y, train, test, strength))
                    )
            run = replace(config.run, dir=f"{scratch}/round{number}", seed=seed)
            own = replace(config, data=replace(config.data, cache_dir=folder), run=run)
            mine.append(by_finding(y[test], tune(manifest, cache, spec, own, train, test)))
            best = max(values[-1].mean() for values in probes.values())
            Console().print(
                f"{number + 1}/{len(rounds)}: recipe {mine[-1].mean():.3f}, best probe of this round {best:.3f}"
            )
            # After every round, so that a run that is stopped leaves what it has.
            reached = {key: np.array(values) for key, values in probes.items()}
            seconds = time.monotonic() - started
            report(manifest.classes, y, len(set(groups)), np.array(mine), reached, words, overrides, seconds)


def report(classes, y, patients, mine, probes, words, overrides, seconds) -> None:  # type: ignore[no-untyped-def]
    """Print and write the table: ``mine`` and the values of ``probes`` are AUROCs [rounds, K]."""
    best = max(probes, key=lambda key: probes[key].mean())
    theirs = probes[best]
    how = f"{words.folds} folds" if words.folds else f"30 % of the patients held out once, {len(mine)} seeds"
    table = Table(title=f"AUROC, {how}; {len(y)} films of {patients} patients")
    for name in ("finding", "positives", "recipe", "linear probe", "difference"):
        table.add_column(name, justify="left" if name == "finding" else "right")
    for k, name in enumerate(classes):
        a, b = mine[:, k].mean(), theirs[:, k].mean()
        table.add_row(name, str(int(y[:, k].sum())), f"{a:.3f}", f"{b:.3f}", f"{a - b:+.3f}")
    table.add_row(
        "macro", "", f"{mine.mean():.3f}", f"{theirs.mean():.3f}", f"{mine.mean() - theirs.mean():+.3f}", style="bold"
    )
    Console().print(table)
    Console().print(
        f"recipe by round: {', '.join(f'{v:.3f}' for v in mine.mean(axis=1))}; best probe: {best[0]}, C = {best[1]:g}"
    )
    write_result("cxr_quality", {
        "arguments": {"folds": words.folds, "seeds": len(mine), "threads": words.threads, "overrides": overrides},
        "config": Path(words.config).name, "seconds": seconds, "films": len(y), "patients": patients, "classes": list(classes),
        "positives": y.sum(axis=0).tolist(), "recipe": mine.tolist(), "probe": theirs.tolist(), "probe_choice": list(best),
        "macro": {"recipe": mine.mean(), "probe": theirs.mean(), "difference": mine.mean() - theirs.mean()},
        "probes": {f"{name}, C={c:g}": values.mean() for (name, c), values in probes.items()},
    })  # fmt: skip


if __name__ == "__main__":
    main()
