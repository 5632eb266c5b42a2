"""The gates let through what agrees with the model, and nothing else; the error falls on the layers that are at fault."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vitdomains.core.errors import ExportError
from vitdomains.core.export.checks import check
from vitdomains.core.export.layer_errors import KindError, by_kind, errors_by_kind, kind_of, try_in_float32
from vitdomains.core.export.reference import Reference
from vitdomains.core.tasks import build_task

RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((40, 4)).astype(np.float32)
WEIGHT = RNG.standard_normal((4, 2)).astype(np.float32)
OUTPUTS = INPUTS @ WEIGHT
TARGETS = (OUTPUTS > 0).astype(np.float32)
TASK = build_task("multilabel", ("a", "b"))
REFERENCE = Reference(
    lambda: iter(np.split(INPUTS, 5)), INPUTS[:8], OUTPUTS[:8], OUTPUTS, TARGETS, lambda z: TASK.scores(z), TASK
)


def through(forward, tolerance: float = 0.01, allowed: float = 0.005):  # type: ignore[no-untyped-def]
    return check(forward, REFERENCE, runtime="onnx", precision="fp32", tolerance=tolerance, allowed=allowed)


def test_the_model_itself_passes() -> None:
    seen = through(lambda x: x @ WEIGHT)
    assert seen.problem == "" and seen.agreement == 1.0 and seen.value == seen.reference == 1.0
    assert set(seen.differences) == {1, 3, 8} and seen.to_dict()["passed"]


def test_a_difference_in_one_batch_size_is_enough_to_fail() -> None:
    seen = through(lambda x: x @ WEIGHT + (0.5 if len(x) == 3 else 0.0))
    assert seen.differences[8] < 1e-5 and "outputs differ by 0.5" in seen.problem


def test_a_metric_that_falls_fails_where_parity_lets_it_pass() -> None:
    seen = through(lambda x: (x @ WEIGHT) * np.array([1, -1], np.float32), tolerance=10.0)
    assert "auroc falls from 1.0000 to 0.5000" in seen.problem


def test_not_a_number_fails() -> None:
    seen = through(lambda x: np.full((len(x), 2), np.nan, np.float32), tolerance=1e9, allowed=1.0)
    assert seen.problem


def test_labels_that_define_no_metric_are_an_error() -> None:
    empty = replace(REFERENCE, targets=np.ones_like(TARGETS))
    with pytest.raises(ExportError, match="does not define auroc"):
        empty.metric(OUTPUTS)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("blocks.11.attn.qkv", "attn.qkv"),
        ("layers.0.blocks.1.mlp.fc2", "mlp.fc2"),
        ("backbone.vit.encoder.layer.0.attention.attention.query", "attention.query"),
        ("layer1.0.conv2", "conv2"),
        ("stages_0.blocks.0.conv_dw", "conv_dw"),
        ("patch_embed.proj", "patch_embed.proj"),
        ("head", "head"),
    ],
)
def test_the_same_layer_of_every_block_is_one_kind(path: str, kind: str) -> None:
    assert kind_of(path) == kind


def test_the_guilty_kind_comes_first_and_its_absence_is_tried() -> None:
    kinds = by_kind({"1": "blocks.0.good", "2": "blocks.1.good", "3": "blocks.0.bad", "4": "blocks.0.worse"})
    error = {"1": 0.01, "2": 0.01, "3": 0.5, "4": np.nan}

    def make(kept: set[str]):  # type: ignore[no-untyped-def]
        return lambda x: x @ WEIGHT + sum(error[name] for name in error.keys() - kept)

    found = errors_by_kind(kinds, make, REFERENCE)
    assert [each.kind for each in found] == ["worse", "bad", "good"]
    assert found[2].layers == 2 and found[1].error == pytest.approx(0.5, rel=1e-3)
    tried = try_in_float32(found, kinds, lambda kept: ("" if {"3", "4"} <= kept else "still bad", 1))
    assert [(each.keep, each.problem) for each in tried] == [(("worse",), "still bad"), (("worse", "bad"), "")]


def test_nothing_helps_is_an_answer_too() -> None:
    kinds = by_kind({str(i): f"blocks.0.k{i}x" for i in range(9)})
    errors = [KindError(kind, 1, 1.0, 1.0) for kind in kinds]
    tried = try_in_float32(errors, kinds, lambda kept: ("bad", 1))
    assert len(tried) == 3 and all(each.problem for each in tried)
