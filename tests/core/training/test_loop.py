"""The loop: it learns, it resumes to the same weights, and no convenience changes the result."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.core import toy
from vitdomains.core.config.schema import Config
from vitdomains.core.data.augment import build_augment
from vitdomains.core.data.dataset import ImageDataset
from vitdomains.core.data.image_cache import ImageCache
from vitdomains.core.data.manifest import Manifest, subset
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.errors import ConfigError, TrainingError
from vitdomains.core.models.build import build_model
from vitdomains.core.tasks import build_task
from vitdomains.core.training import loop
from vitdomains.core.training.distill import Teacher
from vitdomains.core.training.feature_cache import Content, FeatureCache, cached_features
from vitdomains.core.training.loop import FitResult, batches_in_group, fit
from vitdomains.core.training.run_state import load_state

SPEC = PreprocessSpec(toy.SIZE, toy.SIZE, "squash", 1, (0.4,), (0.25,))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_images(tmp_path_factory.mktemp("squares"), n=80)


def run(
    config: Config,
    manifest: Manifest | None = None,
    on_progress=lambda *a: None,
    spec: PreprocessSpec = SPEC,
    **options: object,
) -> tuple[FitResult, dict[str, Tensor]]:
    """Fit on the toy images; returns the result and the weights it ended with."""
    torch.set_num_threads(1)
    manifest = manifest or toy.build_manifest(config.data)
    cache = ImageCache(spec)
    augment = build_augment(config.recipe, spec.storage)
    train = ImageDataset(
        subset(manifest, "train"), toy.read_image, spec, cache=cache, augment=augment, seed=config.run.seed
    )
    val = ImageDataset(subset(manifest, "val"), toy.read_image, spec, cache=cache)
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, 2, image_size=toy.SIZE)
    result = fit(
        model,
        build_task("multilabel", toy.CLASSES, config.recipe),
        train,
        val,
        spec,
        config,
        on_progress=on_progress,
        **options,
    )  # type: ignore[arg-type]
    return result, {name: value.clone() for name, value in model.state_dict().items()}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def test_learns_and_keeps_the_best_epoch(root: Path, tmp_path: Path) -> None:
    result, _ = run(toy.config(root, tmp_path, epochs=12, ema_decay=0.9))
    values = [row["auroc"] for row in result.history]
    assert result.best == max(values) > 0.85
    assert values[result.best_epoch] == result.best
    assert (tmp_path / "log.csv").read_text().startswith("step,epoch,name,value\n")


@pytest.mark.parametrize("stop_at", [1, 7, 14])
def test_resumes_to_the_same_weights(root: Path, tmp_path: Path, stop_at: int) -> None:
    """Ctrl-C in the middle of an epoch, with dropout, augmentation, EMA and MixUp on."""
    settings = {"epochs": 3, "ema_decay": 0.9, "augment": "cxr", "mixup": 0.2}
    config = toy.config(root, tmp_path / "whole", **settings)
    config = replace(config, model=replace(config.model, drop_path_rate=0.2, drop_rate=0.1))
    _, whole = run(config)

    def stop(done: int, total: int, text: str) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    broken = replace(config, run=replace(config.run, dir=str(tmp_path / "broken"), save_seconds=0.0))
    with pytest.raises(KeyboardInterrupt):
        run(broken, on_progress=stop)
    _, resumed = run(replace(broken, run=replace(broken.run, resume=True)))
    assert apart(whole, resumed) == 0.0


def test_resumes_after_kill_minus_nine(root: Path, tmp_path: Path) -> None:
    config = toy.config(root, tmp_path / "whole", epochs=6)
    _, whole = run(config)
    script = (
        "import time; from dataclasses import replace; from pathlib import Path\n"
        "from tests.core import toy; from tests.core.training.test_loop import run\n"
        f"config = toy.config(Path({str(root)!r}), Path({str(tmp_path / 'killed')!r}), epochs=6)\n"
        "run(replace(config, run=replace(config.run, save_seconds=0.0)), on_progress=lambda *a: time.sleep(0.05))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[3], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    state = tmp_path / "killed" / "checkpoint" / "last.pt"
    deadline = time.monotonic() + 120
    while not state.exists():
        assert child.poll() is None, "training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.4)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    killed = toy.config(root, tmp_path / "killed", epochs=6)
    _, resumed = run(replace(killed, run=replace(killed.run, resume=True)))
    assert apart(whole, resumed) == 0.0


def test_refuses_to_resume_another_run(root: Path, tmp_path: Path) -> None:
    config = toy.config(root, tmp_path, epochs=1)
    run(config)
    other = replace(config, recipe=replace(config.recipe, lr=5e-4), run=replace(config.run, resume=True))
    with pytest.raises(TrainingError, match=r"another run: recipe.lr was 0.001, is 0.0005\."):
        run(other)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("preprocessing", "preprocessing.mean was .0.4., is .0.5."),
        ("bands", "data.bands was .., is .'nir'."),
        ("pixels", "the training images changed"),
        ("labels", "the validation labels changed"),
        ("seed", "run.seed was 0, is 1"),
        ("harmless", ""),
        ("moved", ""),
    ],
)
def test_resumes_only_what_is_the_same_but_for_what_is_harmless(
    root: Path, tmp_path: Path, change: str, named: str
) -> None:
    images = Path(shutil.copytree(root, tmp_path / "images"))
    first = toy.config(images, tmp_path / "run", epochs=1)
    run(first)
    again = replace(first, run=replace(first.run, resume=True))
    spec, manifest = SPEC, toy.build_manifest(first.data)
    if change == "preprocessing":
        spec = replace(SPEC, mean=(0.5,))
    elif change == "bands":
        again = replace(again, data=replace(again.data, bands=["nir"]))
    elif change == "pixels":
        path = Path(subset(manifest, "train").table["path"].iloc[0])
        np.save(path, 1 - np.load(path))
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    elif change == "labels":
        row = manifest.table.index[manifest.table["split"] == "val"][0]
        manifest.table.loc[row, "left"] = 1 - manifest.table.loc[row, "left"]
    elif change == "seed":
        again = replace(again, run=replace(again.run, seed=1))
    elif change == "harmless":
        again = replace(again, data=replace(again.data, cache_dir="elsewhere"), run=replace(again.run, threads=3))
    elif change == "moved":
        moved = Path(shutil.copytree(images, tmp_path / "moved"))  # keeps sizes and times
        again, manifest = replace(again, data=replace(again.data, root=str(moved))), None
    if not named:
        run(again, manifest, spec=spec)
        return
    with pytest.raises(TrainingError, match=named) as raised:
        run(again, manifest, spec=spec)
    assert str(raised.value).count(" was ") + str(raised.value).count(" changed") == 1


def test_a_state_of_an_earlier_version_is_named_as_such(root: Path, tmp_path: Path) -> None:
    torch.save({"fingerprint": "ab", "epoch": 1}, tmp_path / "old.pt")
    with pytest.raises(TrainingError, match="of another version of vitdomains. Anew"):
        load_state(tmp_path / "old.pt", {}, "Anew.")


@pytest.mark.parametrize("content", ["tokens", "teacher"])
def test_repeated_files_do_not_shift_the_rows_of_the_feature_cache(tmp_path: Path, content: Content) -> None:
    a, b, c, d = (bytes([i]) * 16 for i in range(4))
    for first in (FeatureCache(tmp_path, "x", content), FeatureCache(tmp_path, "y", content)):
        first.append([a, a, b], np.array([[0.0], [0.0], [1.0]]))
        other = FeatureCache(tmp_path, "x", content)  # another process, or a later run
        other.append([c, b, d], np.array([[2.0], [1.0], [3.0]]))
        first.append([d, c], np.array([[3.0], [2.0]]))
        assert first.select([d, a, c, b, a])[np.arange(5)].ravel().tolist() == [3, 0, 2, 1, 0]


def test_a_killed_append_leaves_no_wrong_row(tmp_path: Path) -> None:
    a, b = b"a" * 16, b"b" * 16
    FeatureCache(tmp_path, "x").append([a], np.array([[1.0, 2.0]]))
    (data,) = tmp_path.glob("*.f16")
    (keys,) = tmp_path.glob("*.keys")
    with data.open("ab") as rows, keys.open("ab") as half:
        rows.write(b"torn")
        half.write(b[:7])
    again = FeatureCache(tmp_path, "x")
    again.append([b], np.array([[3.0, 4.0]]))
    assert FeatureCache(tmp_path, "x").select([b, a])[np.arange(2)].tolist() == [[3, 4], [1, 2]]


def test_a_data_set_that_repeats_files_gets_the_features_of_each(root: Path, tmp_path: Path) -> None:
    config = toy.config(root, tmp_path)
    part = subset(toy.build_manifest(config.data), "train")
    table = part.table.copy()
    table["path"] = table["path"].iloc[[0, 0, 1, *range(3, len(table))]].to_numpy()
    images = ImageDataset(replace(part, table=table), toy.read_image, SPEC)
    seen: list[int] = []

    def network(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.mean(dim=3)

    config = replace(config, recipe=replace(config.recipe, batch_size=3))
    rows = cached_features("teacher", network, "x", images, SPEC, config, tmp_path / "c", torch.device("cpu"), 0)
    expected = np.stack([(images.image(i) / 255 - 0.4).mean(axis=1) / 0.25 for i in range(len(images))])
    np.testing.assert_allclose(rows[np.arange(len(images))][:, 0], expected, atol=1e-5)
    assert sum(seen) == len(images) - 1


def test_accumulation_is_the_large_batch(root: Path, tmp_path: Path) -> None:
    _, large = run(toy.config(root, tmp_path / "a", epochs=2, batch_size=16))
    _, small = run(toy.config(root, tmp_path / "b", epochs=2, batch_size=8, accumulate=2))
    # 48 training images: both make three optimiser steps an epoch, over the same images.
    assert apart(large, small) < 1e-3  # AdamW turns the rounding of near-zero gradients into steps of up to lr


@pytest.mark.parametrize(("step", "expected"), [(0, 4), (3, 4), (4, 4), (8, 2), (9, 2)])
def test_a_short_last_group_counts_as_what_it_is(step: int, expected: int) -> None:
    assert batches_in_group(step, steps=10, accumulate=4) == expected


def test_gradient_checkpointing_changes_nothing(root: Path, tmp_path: Path) -> None:
    config = toy.config(root, tmp_path / "a", epochs=1)
    _, plain = run(config)
    _, saved = run(
        replace(
            config,
            model=replace(config.model, grad_checkpointing=True),
            run=replace(config.run, dir=str(tmp_path / "b")),
        )
    )
    assert apart(plain, saved) < 1e-6


def test_bf16_stays_close_to_fp32(root: Path, tmp_path: Path) -> None:
    full, a = run(toy.config(root, tmp_path / "a", epochs=2))
    mixed, b = run(toy.config(root, tmp_path / "b", epochs=2, precision="bf16"))
    assert abs(full.history[0]["loss"] - mixed.history[0]["loss"]) < 0.02
    assert 0 < apart(a, b) < 0.05


def test_frozen_blocks_from_the_cache_train_like_frozen_blocks(root: Path, tmp_path: Path) -> None:
    config = toy.config(root, tmp_path / "a", epochs=2)
    config = replace(config, model=replace(config.model, freeze="1"))
    _, plain = run(config)
    cached = replace(
        config, recipe=replace(config.recipe, frozen_cache_views=1), run=replace(config.run, dir=str(tmp_path / "b"))
    )
    order_differs, from_cache = run(cached)
    frozen = [name for name in plain if name.startswith(("patch_embed", "blocks.0"))]
    assert frozen and all(torch.equal(plain[name], from_cache[name]) for name in frozen)
    assert order_differs.history[0]["loss"] == pytest.approx(0.7, abs=0.15)
    _, same = run(
        replace(
            cached,
            run=replace(cached.run, dir=str(tmp_path / "c")),
            data=replace(cached.data, cache_dir=str(tmp_path / "b" / "cache")),
        )
    )
    assert apart(from_cache, same) == 0.0


def test_frozen_cache_needs_frozen_blocks(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no lower blocks"):
        run(toy.config(root, tmp_path, frozen_cache_views=1))


def test_sharpness_aware_step_differs_and_learns(root: Path, tmp_path: Path) -> None:
    _, a = run(toy.config(root, tmp_path / "a", epochs=2))
    sharp, b = run(toy.config(root, tmp_path / "b", epochs=2, sam_rho=0.05))
    assert apart(a, b) > 1e-4
    assert sharp.history[-1]["loss"] < sharp.history[0]["loss"] + 0.02


def test_sharpness_aware_steps_of_accumulated_batches_are_those_of_the_large_batch(root: Path, tmp_path: Path) -> None:
    _, large = run(toy.config(root, tmp_path / "a", epochs=2, batch_size=16, sam_rho=0.5))
    _, small = run(toy.config(root, tmp_path / "b", epochs=2, batch_size=4, accumulate=4, sam_rho=0.5))
    assert apart(large, small) < 2e-3  # of the last batch alone: above 1e-2


def test_progressive_sizes_compare_only_the_final_size(root: Path, tmp_path: Path) -> None:
    result, _ = run(toy.config(root, tmp_path, epochs=4, progressive_sizes=[(0.5, 16), (1.0, 32)]))
    assert [row["size"] for row in result.history] == [16, 16, 32, 32]
    assert result.best_epoch >= 2


def test_a_loss_that_is_not_finite_stops_the_run(root: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"The loss is (nan|inf) at step"):
        run(toy.config(root, tmp_path, lr=1e20, clip_norm=0.0, warmup_epochs=0.0))


def test_unknown_monitor_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'acuracy' is not a validation metric.*loss, auroc"):
        run(toy.config(root, tmp_path, monitor="acuracy", epochs=1))


def test_early_stopping(root: Path, tmp_path: Path) -> None:
    result, _ = run(toy.config(root, tmp_path, epochs=30, lr=1e-9, min_lr=1e-9, early_stopping=2))
    assert len(result.history) < 30
    assert len(result.history) - 1 - result.best_epoch == 2


def test_a_run_that_stopped_early_stays_as_it_is_when_resumed(root: Path, tmp_path: Path) -> None:
    config = toy.config(root, tmp_path, epochs=30, lr=1e-9, min_lr=1e-9, early_stopping=1)
    stopped, weights = run(config)
    again, same = run(replace(config, run=replace(config.run, resume=True)))
    assert again.history == stopped.history and again.best_epoch == stopped.best_epoch
    assert apart(weights, same) == 0.0


def test_sample_weights_are_used(root: Path, tmp_path: Path) -> None:
    """Images of weight zero teach nothing: wrong labels with weight zero leave the model right."""
    config = toy.config(root, tmp_path / "a", epochs=1)
    manifest = toy.build_manifest(config.data)
    weighted = replace(
        manifest, table=manifest.table.assign(weight=np.where(np.arange(len(manifest)) % 4 < 2, 0.0, 1.0))
    )
    poisoned = weighted.table.copy()
    rows = (poisoned["weight"] == 0) & (poisoned["split"] == "train")
    for name in toy.CLASSES:
        poisoned.loc[rows, name] = 1 - poisoned.loc[rows, name]
    _, clean = run(config, weighted)
    _, ignored = run(
        replace(config, run=replace(config.run, dir=str(tmp_path / "b"))), replace(weighted, table=poisoned)
    )
    assert apart(clean, ignored) == 0.0


def test_distillation_follows_the_teacher(root: Path, tmp_path: Path) -> None:
    """A teacher that always says 'left, not right' pulls the student there, against the labels."""
    config = toy.config(root, tmp_path, epochs=4, distillation="soft", distillation_alpha=1.0, distillation_tau=1.0)
    config = replace(config, run=replace(config.run, log_every=1))
    run(config, teacher=Teacher(lambda images: torch.tensor([[3.0, -3.0]]).repeat(len(images), 1), "always left"))
    log = (tmp_path / "log.csv").read_text().splitlines()
    losses = [float(line.split(",")[3]) for line in log if ",train/loss," in line]
    assert losses[-1] < 0.05 < 0.3 < losses[0]


@pytest.mark.parametrize("broken", [(0,), (0, 1, 2)])
def test_an_epoch_without_numbers_is_never_the_best(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[int, ...]
) -> None:
    """One image of which the model makes no number is enough: its rank would be anything."""
    plain, epochs = loop.validate, iter(range(3))

    def validate(module: torch.nn.Module, *args: object) -> dict[str, float]:
        if next(epochs) not in broken:
            return plain(module, *args)  # type: ignore[arg-type]
        task = build_task("multilabel", toy.CLASSES)
        scores, targets = np.array([[0.9, np.nan], [0.1, 0.2]]), np.array([[1.0, 1.0], [0.0, 0.0]])
        return {"loss": float("nan"), **task.monitored(targets, scores)}

    monkeypatch.setattr(loop, "validate", validate)
    config = toy.config(root, tmp_path, epochs=3)
    if len(broken) == 3:
        with pytest.raises(TrainingError, match="no epoch"):
            run(config)
        return
    result, _ = run(config)
    assert result.best_epoch > 0 and np.isfinite(result.best) and np.isnan(result.history[0]["auroc"])
