"""OpenVINO leaves the thread with the signal stack that it had: signals still arrive."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from vitdomains.core.export.int8 import quantize_openvino
from vitdomains.core.export.onnx import to_onnx
from vitdomains.core.export.torch_formats import to_openvino
from vitdomains.core.inference.runtimes import preserved_signal_stack, session, signal_stack
from vitdomains.core.models.vit import vit

pytest.importorskip("openvino")


@pytest.mark.filterwarnings("ignore")
def test_signals_arrive_after_openvino_has_quantised_and_its_sessions_have_ended(tmp_path: Path) -> None:
    before = signal_stack()
    torch.manual_seed(0)
    source = to_onnx(vit("Ti/16", 5, image_size=32, depth=1).eval(), torch.zeros(2, 3, 32, 32), tmp_path / "model.onnx")
    plain = to_openvino(source, tmp_path / "model.xml")
    first = session(plain, "openvino", threads=1)
    images = list(np.random.default_rng(0).normal(size=(8, 1, 3, 32, 32)).astype(np.float32))
    quantize_openvino(plain, tmp_path / "int8.xml", images, lambda forward: 1.0, 0.1, transformer=True)
    second = session(tmp_path / "int8.xml", "openvino", threads=1)
    assert first(images[0]).shape == second(images[0]).shape == (1, 5)
    del first
    gc.collect()
    del second
    gc.collect()
    assert signal_stack() == before  # first: a signal on a stack that is gone would end pytest here
    seen: list[int] = []
    earlier = signal.signal(signal.SIGWINCH, lambda number, frame: seen.append(number))
    try:
        signal.raise_signal(signal.SIGWINCH)
    finally:
        signal.signal(signal.SIGWINCH, earlier)
    assert seen == [signal.SIGWINCH]


def test_the_stack_comes_back_after_an_error() -> None:
    before = signal_stack()
    with pytest.raises(ZeroDivisionError), preserved_signal_stack():
        raise ZeroDivisionError
    assert signal_stack() == before
