"""INT8 files: smaller, nearly the same outputs, and only the layers that bear it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from vitdomains.bench.timing import machine
from vitdomains.core.export.formats import is_transformer
from vitdomains.core.export.int8 import calibrate, quantize_dynamic, quantize_openvino, quantize_static
from vitdomains.core.export.onnx import layer_of, read_metadata, to_onnx
from vitdomains.core.export.torch_formats import to_openvino
from vitdomains.core.inference.runtimes import Forward, openvino_module, session
from vitdomains.core.models.vit import vit


class Convolutions(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.body = nn.Conv2d(32, 64, 3, 2, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x).relu()).relu().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = vit("Ti/16", 5, image_size=32, depth=2)
    assert is_transformer(model)
    path = tmp_path_factory.mktemp("int8") / "vit.onnx"
    return to_onnx(model, torch.zeros(2, 3, 32, 32), path, metadata={"task": "multilabel"})


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    assert not is_transformer(Convolutions())
    return to_onnx(Convolutions(), torch.zeros(2, 3, 32, 32), tmp_path_factory.mktemp("int8") / "network.onnx")


def inputs(seed: int = 0, count: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32)).astype(np.float32)


# Without VNNI, sums of two products of eight bits saturate at sixteen.
ROUGH = 1.0 if {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"} & set(machine()["features"]) else 3.0


def error(quantised: Path, source: Path) -> float:
    """Of the outputs on unseen inputs, as a share of their deviation."""
    x = inputs(seed=1)
    truth = session(source, "onnx", threads=1)(x)
    return float(np.sqrt(np.mean((session(quantised, "onnx", threads=1)(x) - truth) ** 2)) / truth.std())


def test_dynamic_int8_is_less_than_a_third(transformer: Path, tmp_path: Path) -> None:
    made = quantize_dynamic(transformer, tmp_path / "q.onnx")
    assert made.stat().st_size < 0.3 * transformer.stat().st_size
    assert error(made, transformer) < 0.05 * ROUGH
    assert read_metadata(made) == {"task": "multilabel"}
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(made).graph.initializer}
    assert stored["patch_embed.proj.weight_int8"] == onnx.TensorProto.INT8


def test_layers_can_be_left_in_float32(transformer: Path, tmp_path: Path) -> None:
    keep = [n.name for n in onnx.load(transformer).graph.node if layer_of(n.name).endswith("mlp.fc2")]
    made = quantize_dynamic(transformer, tmp_path / "q.onnx", skip=keep)
    kept = {layer_of(n.name) for n in onnx.load(made).graph.node if n.op_type == "MatMul"}
    assert {"blocks.0.mlp.fc2", "blocks.1.mlp.fc2"} <= kept
    assert "blocks.0.mlp.fc1" not in kept


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_static_int8_of_convolutions(network: Path, tmp_path: Path, method: str) -> None:
    ranges = calibrate(network, tmp_path / "ranges.json", np.split(inputs(), 4), method)  # type: ignore[arg-type]
    made = quantize_static(network, tmp_path / "q.onnx", ranges, method=method)  # type: ignore[arg-type]
    assert made.stat().st_size < 0.4 * network.stat().st_size
    assert error(made, network) < (0.05 if method == "percentile" else 0.3)


def test_static_int8_leaves_norms_and_softmax_alone(transformer: Path, tmp_path: Path) -> None:
    ranges = calibrate(transformer, tmp_path / "ranges.json", [inputs()])
    made = onnx.load(quantize_static(transformer, tmp_path / "q.onnx", ranges))
    makers = {output: node.op_type for node in made.graph.node for output in node.output}
    fed = {
        (node.op_type, makers.get(node.input[0]))
        for node in made.graph.node
        if node.op_type in ("LayerNormalization", "Softmax", "Gelu")
    }
    assert fed and not any(maker == "DequantizeLinear" for _, maker in fed)
    assert error(tmp_path / "q.onnx", transformer) < 0.05 * ROUGH


def test_calibration_goes_on_from_batch_to_batch(network: Path, tmp_path: Path) -> None:
    """The second batch widens the range that the first one set, as far as its own values go."""
    near, far = inputs(), 3 * inputs(seed=2)

    def reach(*batches: np.ndarray) -> float:
        kept = json.loads(calibrate(network, tmp_path / "ranges.json", batches).read_text())["data"]
        image = next(value for key, value in kept.items() if key == "image")
        return float(np.ravel(image["highest"]["data"])[0] if isinstance(image["highest"], dict) else image["highest"])

    assert reach(near) < 0.6 * reach(near, far)
    assert reach(near, far) <= far.max() + 1e-6


@pytest.fixture(scope="module")
def intermediate(transformer: Path) -> Path:
    return to_openvino(transformer, transformer.with_suffix(".xml"))


def test_openvino_keeps_what_few_images_show(intermediate: Path, tmp_path: Path) -> None:
    """One image of 16 is ten times as bright: its pixels are not cut off, which a mean of the images' extremes would do."""
    images = np.split(inputs(count=16), 16)
    images[3] = 10 * images[3]
    made = quantize_openvino(intermediate, tmp_path / "q.xml", images, lambda forward: 1.0, 0.0, transformer=True)
    operators = openvino_module().Core().read_model(str(made)).get_ordered_ops()
    (first,) = [
        node for node in operators
        if node.get_type_name() == "FakeQuantize" and node.input_value(0).get_node().get_type_name() == "Parameter"
    ]  # fmt: skip
    low, high = (np.ravel(first.input_value(i).get_node().get_data()) for i in (1, 2))
    assert high.max() >= 0.98 * images[3].max() and low.min() <= 0.98 * images[3].min()


def test_openvino_gives_layers_back_without_the_whole_split_for_each_of_them(
    intermediate: Path, tmp_path: Path
) -> None:
    x, asked = inputs(seed=1), []
    truth = session(intermediate, "openvino", threads=1)(x)

    def score(forward: Forward) -> float:
        asked.append(float(np.abs(forward(x) - truth).max()))
        return 1.0 - asked[-1]

    images, all_of_it = np.split(inputs(count=8), 8), tmp_path / "all.xml"
    quantize_openvino(intermediate, all_of_it, images, lambda forward: 0.0, 1.0, transformer=True)
    worst = float(np.abs(session(all_of_it, "openvino", threads=1)(x) - truth).max())
    made = quantize_openvino(intermediate, tmp_path / "some.xml", images, score, 0.6 * worst, transformer=True)
    assert np.abs(session(made, "openvino", threads=1)(x) - truth).max() <= 0.61 * worst
    # Eleven layers and eight images: ranked one by one by the metric that would be about a hundred looks at the split.
    assert 4 <= len(asked) <= 20
    assert len(set(asked)) >= 3


@pytest.mark.parametrize(("outlier", "limit"), [(1.0, 0.1), (300.0, 0.3)])
def test_openvino_smooths_where_few_channels_dominate_and_only_there(
    tmp_path: Path, outlier: float, limit: float
) -> None:
    """Either way the outputs are near: one strength for all would lose one of the two (errors 0.21, 1.13 against 0.04, 0.19)."""
    torch.manual_seed(0)
    model = vit("Ti/16", 5, image_size=32, depth=2)
    with torch.no_grad():
        for block in model.blocks:
            block.norm1.weight[0] *= outlier
            block.attn.qkv.weight[:, 0] /= outlier
    source = to_openvino(to_onnx(model, torch.zeros(2, 3, 32, 32), tmp_path / "m.onnx"), tmp_path / "m.xml")
    images, x = np.split(inputs(count=16), 16), inputs(seed=1)
    made = quantize_openvino(source, tmp_path / "q.xml", images, lambda forward: 1.0, 0.0, transformer=True)
    truth, got = (session(file, "openvino", threads=1)(x) for file in (source, made))
    assert np.sqrt(np.mean((got - truth) ** 2)) < limit * truth.std()
