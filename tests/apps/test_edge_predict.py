"""The consumer for small devices: an image in, the exported model's probabilities out, without this package or PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from benchmarks.portable import check_portable
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.export.onnx import EndToEnd, to_onnx
from vitdomains.core.models.vit import vit

APP = Path(__file__).resolve().parents[2] / "apps" / "edge_predict.py"
CLASSES = ("Effusion", "Mass", "Nodule")
# What a device does not have cannot be imported.
START = (
    "import sys, runpy; sys.modules.update(torch=None, vitdomains=None, onnx=None, cv2=None);"
    f"sys.argv = sys.argv[1:]; runpy.run_path({str(APP)!r}, run_name='__main__')"
)


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START, str(APP), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module", params=[1, 3])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[EndToEnd, Path, int]:
    """Model with preprocessing for grey or colour images, and its file."""
    torch.manual_seed(0)
    spec = PreprocessSpec(32, 32, "letterbox", request.param, (0.5,), (0.25,))
    model = EndToEnd(
        vit("Ti/16", 3, image_size=32, in_channels=request.param, depth=1), spec, "multilabel", (1.3,)
    ).eval()
    file = tmp_path_factory.mktemp("edge") / "model.onnx"
    example = torch.randint(0, 255, (2, 40, 50, request.param), dtype=torch.uint8)
    to_onnx(
        model, example, file, names=("image", "probabilities"), dynamic={0: "batch", 1: "height", 2: "width"},
        metadata={"classes": json.dumps(CLASSES)},
    )  # fmt: skip
    return model, file, request.param


def test_it_is_short() -> None:
    assert len(APP.read_text(encoding="utf-8").splitlines()) <= 40


def test_it_gives_the_models_probabilities(exported: tuple[EndToEnd, Path, int], tmp_path: Path) -> None:
    model, file, channels = exported
    check_portable(file)
    pixels = np.random.default_rng(0).integers(0, 255, (37, 61, 3), dtype=np.uint8)
    colour = Image.fromarray(pixels)
    colour.save(tmp_path / "colour.png")
    colour.convert("L").save(tmp_path / "grey.png")
    done = run(file, tmp_path / "colour.png", tmp_path / "grey.png")
    assert done.returncode == 0, done.stderr
    grey = np.asarray(colour.convert("L"))[:, :, None]
    seen = {1: [grey, grey], 3: [pixels, np.repeat(grey, 3, axis=2)]}[channels]
    for line, image in zip(map(json.loads, done.stdout.splitlines()), seen, strict=True):
        with torch.no_grad():
            (expected,) = model(torch.from_numpy(image.copy())[None])
        assert list(line["probabilities"]) == list(CLASSES)
        assert list(line["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-4)


def test_sixteen_bits_become_eight(exported: tuple[EndToEnd, Path, int], tmp_path: Path) -> None:
    file = exported[1]
    eight = np.random.default_rng(1).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(eight).save(tmp_path / "8.png")
    eight[0, 0] = 255
    Image.fromarray(eight).save(tmp_path / "8.png")
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(np.rint(eight / 255 * 4095).astype(np.uint16)).save(tmp_path / "12.png")
    named = (tmp_path / "12.png").read_bytes()  # half as bright, and its sBIT chunk says that 13 bits are full scale
    chunk = b"sBIT" + bytes([13])
    chunk = (1).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "13.png").write_bytes(named[:33] + chunk + named[33:])
    Image.fromarray((eight / 2).round().astype(np.uint8)).save(tmp_path / "half.png")
    done = run(file, *(tmp_path / f"{name}.png" for name in ("8", "16", "12", "13", "half")))
    whole, deep, twelve, thirteen, half = (
        list(json.loads(line)["probabilities"].values()) for line in done.stdout.splitlines()
    )
    assert whole == deep == twelve != half
    assert thirteen == pytest.approx(half, abs=2e-3)


def test_sixteen_bit_colour_is_refused_not_cut_down(exported: tuple[EndToEnd, Path, int], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((9, 9, 3), 4095, np.uint16))
    done = run(exported[1], tmp_path / "deep.png")
    assert done.returncode == 1 and "16-bit colour" in done.stderr


def test_it_refuses_a_file_that_takes_no_images(tmp_path: Path) -> None:
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("image", "logits")
    )
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["logits"])], "g", [image], [logits])
    file = tmp_path / "plain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    done = run(file, tmp_path / "x.png")
    assert done.returncode == 1 and "--with_preprocessing" in done.stderr
    assert run(file).returncode == 1, "an image is needed"
