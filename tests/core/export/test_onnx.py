"""ONNX files: any batch, notes for the consumer, nodes that say which layer they are, and plain words where it cannot be done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from vitdomains.core.errors import ExportError
from vitdomains.core.export.onnx import layer_of, read_metadata, to_fp16, to_onnx
from vitdomains.core.inference.runtimes import session
from vitdomains.core.models.vit import vit


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return vit("Ti/16", 5, image_size=32, depth=2).eval()


@pytest.fixture(scope="module")
def file(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    model.train()
    to_onnx(model, torch.zeros(2, 3, 32, 32), path, metadata={"classes": '["a"]', "bundle_id": "0123"})
    assert model.training  # left as it was
    model.eval()
    return path


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_batch_is_free(model: nn.Module, file: Path, batch: int) -> None:
    x = np.random.default_rng(batch).standard_normal((batch, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session(file, "onnx", threads=1)(x), expected, atol=1e-5)


def test_the_file_says_what_it_is(file: Path) -> None:
    assert read_metadata(file) == {"classes": '["a"]', "bundle_id": "0123"}
    proto = onnx.load(file)
    assert proto.opset_import[0].version == 20
    assert [entry.name for entry in (*proto.graph.input, *proto.graph.output)] == ["image", "logits"]


def test_nodes_carry_the_paths_of_their_layers(model: nn.Module, file: Path) -> None:
    products = [n for n in onnx.load(file).graph.node if n.op_type in ("MatMul", "Gemm", "Conv")]
    linear = {path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    assert linear <= {layer_of(node.name) for node in products}
    assert len({node.name for node in products}) == len(products)


def test_an_old_opset_is_refused(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset 17"):
        to_onnx(model, torch.zeros(2, 3, 32, 32), tmp_path / "m.onnx", opset=17)


class Branching(nn.Module):
    """What no graph can hold: the way of the computation depends on the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum().item() > 0 else x.amax((2, 3))


def test_a_model_that_cannot_be_exported_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="ONNX cannot take the model") as caught:
        to_onnx(Branching(), torch.ones(2, 3, 8, 8), tmp_path / "m.onnx")
    assert "\n" not in caught.value.message
    assert not (tmp_path / "m.onnx").exists()


def test_fp16_halves_the_file_and_takes_float32(model: nn.Module, file: Path, tmp_path: Path) -> None:
    half = to_fp16(model, torch.zeros(2, 3, 32, 32), tmp_path / "half.onnx", keep=["blocks.0.mlp.fc1", "norm"])
    assert half.stat().st_size < 0.65 * file.stat().st_size
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(half).graph.initializer}
    assert kinds["model.blocks.0.mlp.fc1.bias"] == onnx.TensorProto.FLOAT
    assert kinds["model.blocks.1.mlp.fc1.bias"] == onnx.TensorProto.FLOAT16
    x = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(session(half, "onnx", threads=1)(x), session(file, "onnx", threads=1)(x), atol=5e-3)
    assert all(p.dtype == torch.float32 for p in model.parameters())  # a copy was cast
