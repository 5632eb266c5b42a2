"""The memory estimate: counted without computing, close to what a real step takes, and printed beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.core import toy
from vitdomains.core.commands import cli
from vitdomains.core.config.schema import Config, Model, Recipe, Run
from vitdomains.core.data.preprocess import PreprocessSpec
from vitdomains.core.models.build import build_model
from vitdomains.core.training import memory
from vitdomains.core.training.memory import free_memory, measured_memory, training_memory

SPEC = PreprocessSpec(96, 96, "squash", 3, (0.5,), (0.5,))
CONFIG = Config(
    model=Model(name="vit:Ti/16", options={"depth": 4}),
    recipe=Recipe(batch_size=8, precision="fp32"),
    run=Run(accelerator="cpu", threads=1),
)


def estimate(config: Config = CONFIG, spec: PreprocessSpec = SPEC, **model: object) -> dict[str, int]:
    made = replace(config.model, **model)  # type: ignore[arg-type]
    return training_memory(build_model(made, 5, image_size=spec.height), spec, replace(config, model=made))


def with_recipe(**recipe: object) -> Config:
    return replace(CONFIG, recipe=replace(CONFIG.recipe, **recipe))  # type: ignore[arg-type]


def test_parameters_are_counted_and_the_model_is_left_alone() -> None:
    model = build_model(CONFIG.model, 5, image_size=96)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = training_memory(model, SPEC, with_recipe(ema_decay=0.9))
    size = 4 * sum(p.numel() for p in model.parameters())
    assert found["parameters"] == found["moving average"] == size and found["optimiser"] == 2 * size
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and type(p.data) is torch.Tensor for p in model.parameters())


def test_activations_follow_the_batch_and_the_size() -> None:
    one = estimate()["activations"]
    assert estimate(with_recipe(batch_size=16))["activations"] / one == pytest.approx(2, abs=0.1)
    large = replace(SPEC, height=192, width=192)
    assert estimate(spec=large)["activations"] / one == pytest.approx(145 / 37, rel=0.15)  # tokens


def test_what_saves_memory_is_seen() -> None:
    plain = estimate(with_recipe(batch_size=32))["activations"]
    assert estimate(with_recipe(batch_size=32, precision="bf16"))["activations"] < 0.7 * plain
    assert estimate(with_recipe(batch_size=32), grad_checkpointing=True)["activations"] < 0.5 * plain
    frozen = estimate(with_recipe(batch_size=32), freeze="3")
    assert frozen["optimiser"] < 0.7 * frozen["parameters"] and frozen["activations"] < 0.6 * plain
    cached = estimate(with_recipe(batch_size=32, frozen_cache_views=1), freeze="3")
    assert cached["activations"] <= frozen["activations"]


def test_a_large_model_on_a_tiny_batch_is_four_times_its_parameters() -> None:
    found = estimate(with_recipe(batch_size=1), options={"depth": 4, "width": 768, "heads": 12})
    assert found["gradients"] > 0.95 * found["parameters"]
    assert 4 <= (sum(found.values()) - memory.CPU_SCRATCH[1]) / found["parameters"] < 4.2


@pytest.mark.parametrize("name", ["timm:resnet18", "hf:vit"])
def test_other_families(name: str) -> None:
    options = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2} if name == "hf:vit" else {}
    assert estimate(name=name, options=options)["activations"] > 2**20


def test_the_estimate_is_within_a_fifth_of_what_two_steps_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_TOP_PAD_", raising=False)  # set for all tests; it moves memory into what stood before
    config = replace(with_recipe(batch_size=24), model=Model(name="vit:Ti/16"))
    spec = replace(SPEC, height=160, width=160)
    measured = measured_memory(config, spec, 5)
    assert measured is not None
    assert sum(estimate(config, spec).values()) == pytest.approx(measured, rel=0.2)


def test_dry_run_shows_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "67108864")  # the command would restart this process
    root = toy.write_images(tmp_path / "images", n=20)
    words = ["train", "--dry_run", "--data.root", str(root), "--run.dir", str(tmp_path / "run")]
    assert cli.main(toy.DOMAIN, words) == 0
    shown = capsys.readouterr().out
    assert "activations" in shown and "estimated" in shown and "measured" in shown and "in real steps" in shown
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("vitdomains.core.training.memory.free_memory", lambda config: 2**20)
    assert cli.main(toy.DOMAIN, words) == 1
    assert "not measured: 1 MiB are free" in capsys.readouterr().out
    assert (free_memory(CONFIG) or 2**30) > 2**20


def test_a_step_that_is_killed_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_measure", killed)
    assert measured_memory(CONFIG, SPEC, 5) is None


def killed(*_: object) -> int:
    """What the system's memory guard does to a process."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    return 0
