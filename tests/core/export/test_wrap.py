"""Preprocessing inside the artefact gives the pixels that training saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from vitdomains.core.data.preprocess import PreprocessSpec, normalise, prepare
from vitdomains.core.errors import ExportError
from vitdomains.core.export.checks import _Bfloat16
from vitdomains.core.export.onnx import EndToEnd, to_onnx
from vitdomains.core.inference.runtimes import session
from vitdomains.core.tasks import build_task

SPEC = PreprocessSpec(24, 32, "letterbox", 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), fill=0.3)


class Mean(nn.Module):
    """Channel means through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["letterbox", "crop", "squash"]),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 9),
)
@example(mode="squash", height=1, width=8, channels=1, seed=0)
def test_resize_is_that_of_prepare(mode: str, height: int, width: int, channels: int, seed: int) -> None:
    spec = replace(SPEC, resize=mode)  # type: ignore[arg-type]
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    expected = np.atleast_3d(prepare(image / np.float32(255), spec)).transpose(2, 0, 1)
    got = EndToEnd(Mean(), spec, "multilabel", (1.0,)).resize(torch.from_numpy(image)[None].permute(0, 3, 1, 2))[0]
    difference = np.abs(got.numpy() - expected)
    assert difference.max() <= 1  # a grey level where the sums round to either side
    assert (difference > 0).mean() < 0.1 or min(
        height, width
    ) < 8  # one such sum of a few pixels fills much of the result


@pytest.mark.parametrize(("kind", "temperature"), [("multilabel", (1.0, 2.0, 0.5)), ("singlelabel", (1.3,))])
def test_any_size_through_onnx_is_the_whole_way(tmp_path: Path, kind: str, temperature: tuple[float, ...]) -> None:
    model = Mean()
    whole = EndToEnd(model, SPEC, kind, temperature).eval()  # type: ignore[arg-type]
    example = torch.zeros(2, 40, 50, 3, dtype=torch.uint8)
    axes = {0: "batch", 1: "height", 2: "width"}
    run = session(
        to_onnx(whole, example, tmp_path / "m.onnx", dynamic=axes, names=("image", "scores")), "onnx", threads=1
    )
    task = build_task(kind, ("a", "b", "c"))
    for seed, shape in enumerate([(1, 17, 80, 3), (3, 100, 30, 3), (8, 24, 32, 3)]):
        images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        stored = np.stack([prepare(image, SPEC) for image in images]).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            logits = model(normalise(torch.from_numpy(np.ascontiguousarray(stored)), SPEC)).numpy()
        np.testing.assert_allclose(run(images), task.scores(logits, temperature), atol=2e-3)


@pytest.mark.parametrize("changes", [{"storage": "float32"}, {"resample": "bicubic"}])
def test_what_it_cannot_do_is_said(changes: dict[str, str]) -> None:
    with pytest.raises(ExportError, match="cannot be exported"):
        EndToEnd(Mean(), replace(SPEC, **changes), "multilabel", (1.0,))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(448, 448), (120, 500), (20, 31)])
def test_bf16_of_a_runtime_harms_the_resize_no_more_than_it_rounds(shape: tuple[int, int]) -> None:
    """OpenVINO computes in bf16 by default where the processor has it, and whole numbers above 256 are not exact in it."""
    spec = PreprocessSpec(384, 384, "letterbox", 1, (0.5,), (0.25,))
    image = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    image = np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BICUBIC))
    planes = torch.from_numpy(image.copy())[None, None]
    whole = EndToEnd(Mean(), spec, "multilabel", (1.0,)).eval()
    with torch.no_grad(), _Bfloat16():
        rounded = whole.resize(planes)
    assert (rounded - whole.resize(planes)).abs().max() <= 3
