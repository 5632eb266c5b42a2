"""The same scores whatever computes them, the fastest found once, and plain words where something is missing."""

from __future__ import annotations

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.core import toy
from vitdomains.bench.timing import machine
from vitdomains.core.bundle import Bundle
from vitdomains.core.data.preprocess import PreprocessSpec, normalise
from vitdomains.core.errors import BundleError, ConfigError, ExportError
from vitdomains.core.export.job import Exported
from vitdomains.core.inference.backend import Backend, cache_folder, possible_backends
from vitdomains.core.inference.predictor import Predictor, ahead, normalised
from vitdomains.core.inference.runtimes import in_bf16, session
from vitdomains.core.process import has_fast_bf16

Made = tuple[Bundle, tuple[Exported, ...]]
FAST = has_fast_bf16()
VNNI = bool({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(machine()["features"]))  # without it sums saturate


def records(folder: Path) -> list[tuple[str, str]]:
    return [(file.stem, str(file)) for file in sorted(folder.glob("*.npy"))[:21]]


def scores(predictor: Predictor, folder: Path) -> np.ndarray:
    return np.stack([each.scores for each in predictor.predict(records(folder))])


@pytest.fixture(scope="module")
def reference(exported: Made, toy_images: Path) -> np.ndarray:
    return scores(Predictor(exported[0], toy.read_image, precision="fp32", threads=1), toy_images)


@pytest.mark.parametrize(
    ("runtime", "precision", "tolerance"),
    [
        ("torch", "bf16", 0.02),
        ("onnx", "auto", 1e-5),
        ("onnx", "int8", 0.05 if VNNI else 0.15),
        ("openvino", "fp32", 1e-5),
        pytest.param("openvino", "bf16", 0.02, marks=pytest.mark.skipif(not FAST, reason="no bf16 in hardware")),
        ("openvino", "int8", 0.15),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_scores_do_not_depend_on_the_runtime(
    exported: Made,
    toy_images: Path,
    reference: np.ndarray,
    runtime: str,
    precision: str,
    tolerance: float,
    threads: int,
) -> None:
    predictor = Predictor(
        exported[0], toy.read_image, runtime=runtime, precision=precision, threads=threads, batch_size=4
    )
    assert predictor.backend.runtime == runtime
    np.testing.assert_allclose(scores(predictor, toy_images), reference, atol=tolerance)


@pytest.mark.skipif(not FAST, reason="no bf16 in hardware")
def test_bf16_of_openvino_rounds_no_more_than_that_of_pytorch(
    exported: Made, toy_images: Path, reference: np.ndarray
) -> None:
    """So that what it differs by is the precision, and no defect of the file."""
    error = {
        runtime: float(np.sqrt(np.mean((scores(predictor, toy_images) - reference) ** 2)))
        for runtime in ("torch", "openvino")
        for predictor in [Predictor(exported[0], toy.read_image, runtime=runtime, precision="bf16", threads=1)]
    }
    assert 0 < error["openvino"] < 2 * error["torch"] < 0.02


def test_streams_keep_the_order_and_a_bad_file_is_a_row(exported: Made, toy_images: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"nothing")
    asked = records(toy_images)
    asked[5:5] = [("bad", str(bad))]
    predictor = Predictor(exported[0], toy.read_image, runtime="onnx", threads=3, batch_size=2)
    got = list(predictor.predict(iter(asked)))
    assert [(each.id, each.path) for each in got] == asked
    assert "no array" in got[5].error and np.isnan(got[5].scores).all()
    assert not any(each.error for each in got if each.id != "bad")


def test_pytorch_computes_in_streams_of_one_thread(exported: Made, toy_images: Path, reference: np.ndarray) -> None:
    before = torch.get_num_threads()
    predictor = Predictor(exported[0], toy.read_image, precision="fp32", threads=3, batch_size=2)
    seen: list[tuple[str, int]] = []

    def look(*_: object) -> None:
        seen.append((threading.current_thread().name, torch.get_num_threads()))

    hook = predictor.model.register_forward_pre_hook(look)
    try:
        np.testing.assert_allclose(scores(predictor, toy_images), reference, atol=1e-5)
        assert {threads for _, threads in seen} == {1} and len({name for name, _ in seen}) > 1
        late = ThreadPoolExecutor(1).submit(torch.get_num_threads).result()
        assert torch.get_num_threads() == late == 3, "whoever computes afterwards has all threads"
    finally:
        hook.remove()
        torch.set_num_threads(before)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_streams_load_the_model_once(
    exported: Made, toy_images: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    before, loads = torch.get_num_threads(), []
    predictor = Predictor(exported[0], toy.read_image, runtime=runtime, precision="fp32", threads=3, batch_size=2)
    load = predictor._load
    monkeypatch.setattr(
        predictor, "_load", lambda backend, streams: loads.append(streams) or time.sleep(0.2) or load(backend, streams)
    )
    try:
        for _ in range(2):
            assert len(list(predictor.predict(records(toy_images)))) == 21
        assert loads == [3]
        # Fewer images than streams: one call with all threads.
        assert len(list(predictor.predict(records(toy_images)[:2]))) == 2 and loads == [3, 1]
    finally:
        torch.set_num_threads(before)


def test_logits_of_a_single_image_use_the_same_artefact(exported: Made, toy_images: Path) -> None:
    predictor = Predictor(exported[0], toy.read_image, runtime="onnx", threads=2)
    image = torch.from_numpy(np.stack([predictor._prepare(record)[1] for record in records(toy_images)[:3]]))  # type: ignore[misc]
    both = predictor.logits(image)
    np.testing.assert_allclose(predictor.logits(image[1:2]), both[1:2], atol=1e-5)


def test_auto_measures_once_and_remembers(
    exported: Made, toy_images: Path, reference: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("vitdomains.core.inference.predictor.PROBE_SECONDS", 0.1)
    bundle = exported[0]
    first = Predictor(bundle, toy.read_image, runtime="auto", threads=1)
    kept = json.loads((cache_folder() / "runtimes.json").read_text())
    ((key, record),) = kept.items()
    assert first.backend == Backend(**record["backend"]) and first.backend.precision in ("fp32", "bf16")
    assert {"torch fp32", "onnx fp32", "openvino fp32"} <= set(record["images_per_second"])
    assert max(record["images_per_second"], key=record["images_per_second"].get) == (
        f"{first.backend.runtime} {first.backend.precision}"
    )
    np.testing.assert_allclose(scores(first, toy_images), reference, atol=0.05)
    # What is remembered is taken without another look.
    other = {**record, "backend": {"runtime": "onnx", "precision": "fp32", "format": "onnx"}}
    (cache_folder() / "runtimes.json").write_text(json.dumps({key: other}))
    assert Predictor(bundle, toy.read_image, runtime="auto", threads=1).backend == Backend("onnx", "fp32", "onnx")
    # Another number of threads is another question; a damaged file is no answer.
    (cache_folder() / "runtimes.json").write_text("{")
    Predictor(bundle, toy.read_image, runtime="auto", threads=2)
    assert len(json.loads((cache_folder() / "runtimes.json").read_text())) == 1


def test_without_artefacts_auto_is_torch_and_others_are_refused(exported: Made) -> None:
    bare = replace(exported[0], exports={})
    backends = possible_backends(bare, "auto", "auto")
    assert {backend.runtime for backend in backends} == {"torch"} and backends[0].precision == (
        "bf16" if FAST else "fp32"
    )
    with pytest.raises(BundleError, match="has no openvino artefact") as caught:
        possible_backends(bare, "openvino", "auto")
    assert "export" in caught.value.hint and "--formats openvino" in caught.value.hint
    with pytest.raises(BundleError, match="no such precision"):
        possible_backends(bare, "onnx", "bf16")
    with pytest.raises(BundleError, match="'tensorrt'"):
        possible_backends(bare, "tensorrt", "auto")


def test_artefacts_that_failed_or_belong_to_other_weights_are_not_used(exported: Made) -> None:
    bundle = exported[0]
    refused = {**bundle.exports, "onnx": {**bundle.exports["onnx"], "refused": "auroc falls"}}
    with pytest.raises(BundleError, match="was refused: auroc falls"):
        possible_backends(replace(bundle, exports=refused), "onnx", "fp32")
    with pytest.raises(BundleError, match="exported from other weights"):
        possible_backends(replace(bundle, files={**bundle.files, "model.safetensors": "0"}), "onnx", "fp32")
    checks = [c for c in bundle.exports["openvino"]["checks"] if c["precision"] == "fp32"]
    only = {**bundle.exports, "openvino": {**bundle.exports["openvino"], "checks": checks}}
    with pytest.raises(BundleError, match="did not pass its gates in bf16"):
        possible_backends(replace(bundle, exports=only), "openvino", "bf16")


def test_auto_never_turns_to_int8(exported: Made) -> None:
    assert "int8" not in {backend.precision for backend in possible_backends(exported[0], "auto", "auto")}
    assert {backend.precision for backend in possible_backends(exported[0], "auto", "int8")} == {"int8"}


def test_a_package_that_is_missing_is_named_with_its_extra(exported: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match="openvino is not installed") as caught:
        session(exported[0].path / "model.xml", "openvino")
    assert "vitdomains[openvino]" in caught.value.hint


def test_precisions_that_a_file_has_not_are_refused(exported: Made) -> None:
    path = exported[0].path
    with pytest.raises(ConfigError, match="precision of the file"):
        session(path / "model.onnx", "onnx", precision="bf16")
    with pytest.raises(ConfigError, match="computes in the precision"):
        session(path / "model.pt2", "torch", precision="bf16")
    with pytest.raises(ConfigError, match="runtime 'tvm'"):
        session(path / "model.onnx", "tvm")


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (3, np.float32)])
def test_arrays_are_normalised_as_tensors_are(channels: int, dtype: type) -> None:
    spec = PreprocessSpec(6, 5, "squash", 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.001))
    images = np.random.default_rng(0).integers(0, 256, (2, channels, 6, 5)).astype(dtype)
    np.testing.assert_allclose(normalised(images, spec), normalise(torch.from_numpy(images), spec).numpy(), rtol=1e-5)


def test_bf16_is_a_copy_and_spares_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    cast = in_bf16(model)
    assert model[0].weight.dtype == torch.float32 and cast[0].weight.dtype == torch.bfloat16  # type: ignore[index]
    assert cast[1].running_var.dtype == torch.float32  # type: ignore[index]
    assert cast(torch.ones(1, 1, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_looking_ahead_is_bounded_and_in_order() -> None:
    begun: list[int] = []
    results = ahead(lambda i: begun.append(i) or -i, count(), threads=2, depth=4)  # an endless source
    assert [next(results) for _ in range(6)] == [0, -1, -2, -3, -4, -5]
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 10
