"""The head that starts as a linear probe: equal to scikit-learn's own answer, and refused where there is no such head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from tests.core import toy
from tests.core.training.test_loop import run
from vitdomains.core.config.schema import Model
from vitdomains.core.errors import ConfigError
from vitdomains.core.models.build import build_model
from vitdomains.core.models.introspect import heads
from vitdomains.core.tasks import build_task
from vitdomains.core.training.optim import fit_head, head_inputs, linear_head


def test_head_gives_the_log_odds_of_logistic_regression_and_skips_unknown_labels() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (120, 5))
    y = (x + rng.normal(0, 1, x.shape) > 3)[:, :3].astype(float)
    y[:20, 0], y[:, 2] = np.nan, 1.0
    head = nn.Linear(5, 3).double()
    before = head.weight[2].clone()
    fit_head(head, x, y, build_task("multilabel", ("a", "b", "c")), 0.1)
    z = StandardScaler().fit(x).transform(x)
    for k, rows in ((0, slice(20, None)), (1, slice(None))):
        expected = LogisticRegression(C=0.1, max_iter=1000).fit(z[rows], y[rows, k]).decision_function(z)
        np.testing.assert_allclose(head(torch.from_numpy(x))[:, k].detach().numpy(), expected, atol=1e-8)
    assert torch.equal(head.weight[2], before)  # nothing can be learned of a class without negatives


@pytest.mark.parametrize("classes", [2, 4])
def test_head_gives_the_probabilities_of_multinomial_regression(classes: int) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, classes, 200)
    x = rng.normal(0, 1, (200, 6)) + truth[:, None]
    head = nn.Linear(6, classes).double()
    names = tuple("abcd"[:classes])
    fit_head(head, x, np.eye(classes)[truth], build_task("singlelabel", names), 1.0)
    z = StandardScaler().fit(x).transform(x)
    expected = LogisticRegression(C=1.0, max_iter=1000).fit(z, truth).predict_proba(z)
    np.testing.assert_allclose(head(torch.from_numpy(x)).softmax(1).detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["vit:Ti/8", "timm:vit_tiny_patch16_224", "timm:resnet18"])
def test_head_inputs_are_what_the_head_sees_whatever_the_backbone(name: str) -> None:
    model = build_model(Model(name=name, channels=3), 3, image_size=64)
    head = linear_head(model)
    images = torch.rand(4, 3, 64, 64)
    batches = [(images[:2], torch.zeros(2, 3), ["a", "b"]), (images[2:], torch.ones(2, 3), ["c", "d"])]
    x, y = head_inputs(model, head, model, batches)
    assert x.shape == (4, head.in_features) and y.tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    with torch.no_grad():
        np.testing.assert_allclose(head(torch.from_numpy(x).float()).numpy(), model.eval()(images).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit:Ti/8", {"depth": 1}),
        ("timm:vit_tiny_patch16_224", {"depth": 1}),
        ("hf:vit", {"hidden_size": 192, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 64}),
    ],
)
def test_the_head_is_found_where_the_classes_are_as_many_as_the_width(name: str, options: dict[str, object]) -> None:
    model = build_model(Model(name=name, options=options, drop_rate=0.1), 192, image_size=64)
    head = linear_head(model)
    assert head in [module for part in heads(model) for module in part.modules()]
    with torch.no_grad():
        head.weight.zero_(), head.bias.fill_(3.0)
        assert torch.equal(model.eval()(torch.rand(1, 3, 64, 64)), torch.full((1, 192), 3.0))


def test_training_starts_above_a_random_head_and_a_resumed_run_keeps_its_head(tmp_path: Path) -> None:
    root = toy.write_images(tmp_path / "images", n=80)
    config = toy.config(root, tmp_path / "probe", lr=1e-7, epochs=1, warmup_epochs=0.0, head_init="probe")
    probed, _ = run(config)
    plain, _ = run(toy.config(root, tmp_path / "plain", lr=1e-7, epochs=1, warmup_epochs=0.0))
    assert probed.history[0]["loss"] < plain.history[0]["loss"] - 0.01
    longer = replace(config, recipe=replace(config.recipe, epochs=1), run=replace(config.run, resume=True))
    _, again = run(longer)
    _, first = run(replace(config, run=replace(config.run, overwrite=True, dir=str(tmp_path / "anew"))))
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_heads_that_are_not_one_layer_are_refused() -> None:
    lse = build_model(Model(name="vit:Ti/8", channels=1, options={"pool": "lse"}), 2, image_size=toy.SIZE)
    two = build_model(Model(name="vit:Ti/8", options={"distilled": True}), 2, image_size=toy.SIZE)
    mlp = build_model(Model(name="timm:resnet18", head="mlp"), 2, image_size=toy.SIZE)
    for model in (lse, two, mlp, nn.Sequential(nn.Linear(4, 3))):
        with pytest.raises(ConfigError, match="one linear layer"):
            linear_head(model)
