"""Data sets, loading and the image cache: the same samples whatever the workers, and a cache that survives."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vitdomains.core.config.schema import Recipe
from vitdomains.core.data.augment import build_augment
from vitdomains.core.data.loading import ImageCache, ImageDataset, batches, plan, warm
from vitdomains.core.data.manifest import Manifest
from vitdomains.core.data.preprocess import PreprocessSpec, prepare
from vitdomains.core.errors import ConfigError, ImageError

SPEC = PreprocessSpec(48, 48, "letterbox", 3, (0.5,), (0.25,))


def read(path: str) -> np.ndarray:
    return np.load(path)


def draw(index: int) -> np.ndarray:
    return np.random.default_rng(index).random((60, 40 + index % 7), dtype=np.float32)


def make(folder: Path, n: int) -> Manifest:
    folder.mkdir(exist_ok=True)
    for i in range(n):
        np.save(folder / f"{i}.npy", draw(i))
    table = pd.DataFrame(
        {
            "id": [f"film{i}" for i in range(n)],
            "path": [str(folder / f"{i}.npy") for i in range(n)],
            "group": [str(i // 2) for i in range(n)],
            "split": "train",
            "a": [float(i % 2) for i in range(n)],
            "b": [np.nan if i % 3 == 0 else 1.0 for i in range(n)],
        }
    )
    return Manifest(table, ("a", "b"), "test")


def dataset(manifest: Manifest, **options) -> ImageDataset:
    return ImageDataset(manifest, read, SPEC, augment=build_augment(Recipe(augment="cxr")), **({"seed": 3} | options))


def collected(data: ImageDataset, **options) -> list[tuple[torch.Tensor, torch.Tensor, list[str]]]:
    return list(batches(data, 4, **({"shuffle": True, "seed": 5, "epoch": 2} | options)))


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y.nan_to_num(9), v.nan_to_num(9)) and list(i) == list(j)
        for (x, y, i), (u, v, j) in zip(first, second, strict=True)
    )


def test_the_same_samples_for_0_1_and_2_workers_and_after_a_resume(tmp_path):
    data = dataset(make(tmp_path / "films", 18), cache=ImageCache(SPEC, tmp_path / "cache"))
    reference = collected(data)
    assert [len(ids) for _, _, ids in reference] == [4, 4, 4, 4, 2]
    assert sorted(i for _, _, ids in reference for i in ids) == sorted(data.ids)
    images, targets, _ = reference[0]
    assert images.shape == (4, 1, 48, 48) and images.dtype == torch.uint8
    assert targets.shape == (4, 2) and targets.dtype == torch.float32
    assert torch.cat([t for _, t, _ in reference]).isnan().any()
    assert same(collected(data), reference)
    assert same(collected(data, workers=1), reference)
    assert same(collected(data, workers=2, start=2), reference[2:])
    assert same(collected(data, start=3), reference[3:])
    assert collected(data, start=5) == []
    assert not same(collected(data, epoch=3), reference)
    assert not same(collected(data, seed=6), reference)
    # A single sample agrees with the batch it is in, whatever the order.
    data.set_epoch(2)
    image, target, name = data[data.ids.index(reference[1][2][2])]
    assert torch.equal(image, reference[1][0][2]) and name == reference[1][2][2] and target.shape == (2,)


def test_another_seed_or_epoch_changes_the_augmentation_but_not_the_plain_image(tmp_path):
    manifest = make(tmp_path / "films", 2)
    data, other = dataset(manifest), dataset(manifest, seed=4)
    first = data[0][0]
    assert torch.equal(first, data[0][0])
    assert not torch.equal(first, other[0][0])
    data.set_epoch(1)
    assert not torch.equal(first, data[0][0])
    plain = data.without_augmentation()
    assert torch.equal(plain[0][0][0], torch.from_numpy(prepare(draw(0), SPEC)))
    assert data.fingerprint == other.fingerprint == plain.fingerprint
    np.save(manifest.table["path"][0], draw(99)[:50])
    assert data.fingerprint != ImageDataset(make(tmp_path / "more", 2), read, SPEC).fingerprint


def test_skipping_costs_nothing(tmp_path):
    calls: list[str] = []

    def counting(path: str) -> np.ndarray:
        calls.append(path)
        return read(path)

    data = ImageDataset(make(tmp_path / "films", 12), counting, SPEC)
    list(batches(data, 4, shuffle=True, seed=0, epoch=0, start=2))
    assert len(calls) == 4


def test_plan_shares_out_repeats_and_drops():
    common = {"seed": 1, "epoch": 0}
    whole = np.concatenate(plan(23, 4, shuffle=True, **common))[:, 0]
    assert sorted(whole) == list(range(23))
    shares = [np.concatenate(plan(23, 4, shuffle=True, rank=r, world=3, **common))[:, 0] for r in range(3)]
    assert [len(s) for s in shares] == [8, 8, 8] and set(np.concatenate(shares)) == set(range(23))
    exact = [np.concatenate(plan(23, 4, shuffle=False, rank=r, world=3, **common))[:, 0] for r in range(3)]
    assert sorted(np.concatenate(exact)) == list(range(23))
    assert [len(b) for b in plan(23, 4, shuffle=False, drop_last=True, **common)] == [4] * 5
    repeated = plan(24, 6, shuffle=True, repeats=3, **common)
    assert [len(b) for b in repeated] == [6] * 4
    for batch in repeated:
        assert batch[:, 1].tolist() == [0, 1, 2, 0, 1, 2] and len(set(batch[:, 0].tolist())) == 2
    assert plan(0, 4, shuffle=True, **common) == []
    with pytest.raises(ConfigError, match="3 times"):
        plan(24, 4, shuffle=True, repeats=3, **common)


def test_repeats_are_different_copies_of_one_image(tmp_path):
    images, _, ids = collected(dataset(make(tmp_path / "films", 8)), repeats=2)[0]
    assert ids[0] == ids[1] and ids[2] == ids[3] and ids[0] != ids[2]
    assert not torch.equal(images[0], images[1])


def test_other_sizes_come_from_the_cached_image(tmp_path):
    data = ImageDataset(make(tmp_path / "films", 4), read, SPEC, cache=ImageCache(SPEC))
    images, _, _ = next(iter(batches(data, 4, shuffle=False, seed=0, epoch=0, size=24)))
    assert images.shape == (4, 1, 24, 24)
    small = prepare(draw(1), SPEC).astype(float).reshape(24, 2, 24, 2).mean((1, 3))
    assert np.abs(images[1, 0].numpy() - small).max() <= 1


def test_grey_beside_colour_in_a_batch_is_repeated(tmp_path):
    manifest = make(tmp_path / "films", 4)
    np.save(manifest.table["path"][2], np.stack([draw(2)] * 3, axis=-1) * np.float32([1.0, 0.5, 0.0]))
    images, _, _ = next(iter(batches(ImageDataset(manifest, read, SPEC), 4, shuffle=False, seed=0, epoch=0)))
    assert images.shape == (4, 3, 48, 48)
    assert torch.equal(images[0, 0], images[0, 2]) and not torch.equal(images[2, 0], images[2, 2])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_stops_training_with_its_name(tmp_path, workers):
    manifest = make(tmp_path / "films", 8)
    Path(manifest.table["path"][5]).write_bytes(b"not an image")
    with pytest.raises(ImageError) as caught:
        list(batches(ImageDataset(manifest, read, SPEC), 2, shuffle=False, seed=0, epoch=0, workers=workers))
    assert caught.value.path == Path(manifest.table["path"][5])


def test_a_programming_error_reaches_the_consumer(tmp_path):
    def broken(path: str) -> np.ndarray:
        raise KeyError("tag")

    with pytest.raises(KeyError, match="tag"):
        next(batches(ImageDataset(make(tmp_path / "films", 2), broken, SPEC), 2, shuffle=False, seed=0, epoch=0))


def test_the_thread_stays_bounded_and_ends_with_its_consumer(tmp_path):
    decoded: list[str] = []

    def counting(path: str) -> np.ndarray:
        decoded.append(path)
        return read(path)

    data = ImageDataset(make(tmp_path / "films", 60), counting, SPEC)
    stream = batches(data, 2, shuffle=False, seed=0, epoch=0, depth=3)
    next(stream)
    time.sleep(0.5)
    assert len(decoded) <= 2 * (1 + 3 + 1)  # taken, waiting, in the making
    assert any(t.name == "prefetch" for t in threading.enumerate())
    stream.close()
    assert not any(t.name == "prefetch" for t in threading.enumerate())


def test_warm_lists_every_bad_file_and_fills_the_cache(tmp_path):
    manifest = make(tmp_path / "films", 10)
    Path(manifest.table["path"][3]).write_bytes(b"")
    Path(manifest.table["path"][7]).unlink()
    np.save(manifest.table["path"][8], np.zeros((4, 4, 5), np.float32))
    seen: list[tuple[int, int]] = []
    for cache in (None, ImageCache(SPEC), ImageCache(SPEC, tmp_path / "cache")):
        seen.clear()
        problems = warm(dataset(manifest, cache=cache), progress=lambda done, total: seen.append((done, total)))
        assert [name for name, _ in problems] == ["film3", "film7", "film8"]
        assert "No such file" in problems[1][1] and "5 channels" in problems[2][1]
        assert seen == [(i + 1, 10) for i in range(10)]
        assert cache is None or len(cache) == 7


@pytest.mark.parametrize("on_disk", [True, False])
def test_cache_gives_back_the_prepared_image_and_spares_the_decoder(tmp_path, on_disk):
    manifest = make(tmp_path / "films", 5)
    cache = ImageCache(SPEC, tmp_path / "cache" if on_disk else None)
    warm(dataset(manifest, cache=cache))

    def forbidden(path: str) -> np.ndarray:
        raise AssertionError(path)

    if on_disk:
        cache = pickle.loads(pickle.dumps(cache))
    data = ImageDataset(manifest, forbidden, SPEC, cache=cache)
    for i in range(5):
        image = data.image(i)
        assert np.array_equal(image, prepare(draw(i), SPEC)) and image.dtype == np.uint8 and not image.flags.writeable
    # What is handed out can be changed without changing what is kept.
    data[0][0].zero_()
    assert np.array_equal(data.image(0), prepare(draw(0), SPEC))


def test_a_changed_file_or_preprocessing_is_decoded_again(tmp_path):
    manifest = make(tmp_path / "films", 2)
    path = manifest.table["path"][0]
    cache = ImageCache(SPEC, tmp_path / "cache")
    warm(dataset(manifest, cache=cache))
    np.save(path, draw(49))  # as many bytes as before
    again = dataset(manifest, cache=ImageCache(SPEC, tmp_path / "cache"))
    assert np.array_equal(again.image(0), prepare(draw(49), SPEC))
    other = ImageCache(replace(SPEC, resize="squash"), tmp_path / "cache")
    assert len(other) == 0
    assert len(ImageCache(SPEC, tmp_path / "cache", variant="window=bone")) == 0
    assert len(ImageCache(replace(SPEC, mean=(0.1,)), tmp_path / "cache")) == 3  # normalisation comes later


def test_float_images_of_many_bands_are_kept(tmp_path):
    spec = PreprocessSpec(16, 20, "squash", 5, (0.0,), (1.0,), storage="float32")
    cache = ImageCache(spec, tmp_path / "cache")
    rng = np.random.default_rng(0)
    images = [rng.normal(0, 1e4, shape).astype(np.float32) for shape in [(16, 20, 5), (16, 20), (16, 20, 5)]]
    for i, image in enumerate(images):
        cache.put(bytes([i]) * 16, image)
    reopened = ImageCache(spec, tmp_path / "cache")
    for i, image in enumerate(images):
        assert np.array_equal(reopened.get(bytes([i]) * 16), image)
    with pytest.raises(ValueError, match="not an image"):
        cache.put(b"x" * 16, images[0].astype(np.float64))


def test_damage_is_noticed_and_repaired(tmp_path, caplog):
    manifest = make(tmp_path / "films", 6)
    warm(dataset(manifest, cache=ImageCache(SPEC, tmp_path / "cache")), threads=1)
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    (index,) = (tmp_path / "cache").glob("*.index")
    data = bytearray(pixels.read_bytes())
    data[100] ^= 1  # a flipped bit in the first image
    pixels.write_bytes(data[:-10])  # the last image cut short
    index.write_bytes(index.read_bytes()[:-32] + index.read_bytes()[-32:-5])  # and the last record
    for _ in range(2):
        check = dataset(manifest, cache=ImageCache(SPEC, tmp_path / "cache"))
        for i in range(6):
            assert np.array_equal(check.image(i), prepare(draw(i), SPEC))
    assert "damaged" in caplog.text and index.stat().st_size % 32 == 0
    caplog.clear()
    last = dataset(manifest, cache=ImageCache(SPEC, tmp_path / "cache"))
    assert all(np.array_equal(last.image(i), prepare(draw(i), SPEC)) for i in range(6))
    assert "damaged" not in caplog.text


def test_a_full_disk_does_not_stop_training(tmp_path, caplog, monkeypatch):
    manifest = make(tmp_path / "films", 3)
    data = dataset(manifest, cache=ImageCache(SPEC, tmp_path / "cache"))

    def full(*_):
        time.sleep(0.05)  # threads of the warm-up find it full together
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert warm(data) == []
    assert np.array_equal(data.image(2), prepare(draw(2), SPEC))
    assert caplog.text.count("No space left") == 1


def write_for_ever(folder: Path, start: int, ready) -> None:
    cache = ImageCache(SPEC, folder)
    ready.set()
    for i in range(start, 100_000):
        cache.put(i.to_bytes(16, "big"), prepare(draw(i), SPEC))


def test_kill_9_while_two_processes_write_leaves_only_right_pixels(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitdomains.core.data.loading", "vitdomains.core.data.augment"])
    folder = tmp_path / "cache"
    for start in (0, 5000, 10_000):
        ready = [context.Event(), context.Event()]
        writers = [
            context.Process(target=write_for_ever, args=(folder, start + 50 * i, ready[i]), daemon=True) for i in (0, 1)
        ]
        for writer in writers:
            writer.start()
        assert all(event.wait(60) for event in ready)
        time.sleep(0.15)
        for writer in writers:
            writer.kill()  # SIGKILL
            writer.join()
            assert writer.exitcode == -signal.SIGKILL
        cache = ImageCache(SPEC, folder)
        found = {i: image for i in range(20_000) if (image := cache.get(i.to_bytes(16, "big"))) is not None}
        assert len(found) == len(cache) > 10
        assert all(np.array_equal(image, prepare(draw(i), SPEC)) for i, image in found.items())
    before = len(cache)
    cache.put(b"\xff" * 16, prepare(draw(7), SPEC))
    assert len(ImageCache(SPEC, folder)) == before + 1


def write_some(folder: Path, start: int, ready) -> None:
    cache, image = ImageCache(SPEC, folder), prepare(draw(start), SPEC)
    ready.wait()
    for i in range(start, start + 1500):
        cache.put(i.to_bytes(16, "big"), image)


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("forkserver")
    ready = context.Barrier(2)
    starts = (0, 1500)
    writers = [context.Process(target=write_some, args=(tmp_path, start, ready), daemon=True) for start in starts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    cache = ImageCache(SPEC, tmp_path)
    assert len(cache) == 3000
    for start in starts:
        assert np.array_equal(cache.get((start + 700).to_bytes(16, "big")), prepare(draw(start), SPEC))


def test_threads_share_one_cache(tmp_path):
    cache = ImageCache(SPEC, tmp_path / "cache")
    expected = [prepare(draw(i), SPEC) for i in range(80)]
    wrong: list[int] = []

    def work(shift: int) -> None:
        for step in range(80):
            i = (step + shift) % 80
            cache.put(i.to_bytes(16, "big"), expected[i].copy())
            if not np.array_equal(cache.get(i.to_bytes(16, "big")), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(s,)) for s in (0, 7, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(cache) == len(ImageCache(SPEC, tmp_path / "cache")) == 80


def test_a_senseless_index_is_not_believed(tmp_path):
    manifest = make(tmp_path / "films", 3)
    warm(dataset(manifest, cache=ImageCache(SPEC, tmp_path / "cache")))
    (index,) = (tmp_path / "cache").glob("*.index")
    index.write_bytes(index.read_bytes() + b"\xa5" * 64)
    data = dataset(manifest, cache=ImageCache(SPEC, tmp_path / "cache"))
    assert len(data.cache) == 3
    data.cache.put(b"y" * 16, prepare(draw(9), SPEC))
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    assert pixels.stat().st_size < 8 * 48 * 48
    assert np.array_equal(ImageCache(SPEC, tmp_path / "cache").get(b"y" * 16), prepare(draw(9), SPEC))
