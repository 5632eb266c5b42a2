"""Several devices: two processes on the CPU train what one does with the same images in a step, also after a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.core import toy
from tests.core.training import devices_job
from tests.core.training.test_loop import apart
from vitdomains.core import pipeline
from vitdomains.core.bundle import load_model, read_bundle
from vitdomains.core.data.loading import plan
from vitdomains.core.training.batches import steps_per_epoch

SECONDS = 240
"""For one job of two processes: seconds on free cores, most of it importing; a hang must not take for ever."""


def run_job(root: Path, run_dir: Path, devices: int, stop_at: int = 0) -> tuple[int, str]:
    """The job in a session of its own, ended with all its processes where it takes too long."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in names}
    words = [
        sys.executable,
        "-m",
        "tests.core.training.devices_job",
        str(root),
        str(run_dir),
        str(devices),
        str(stop_at),
    ]
    job = subprocess.Popen(words, cwd=Path(__file__).parents[3], env={**env, "OMP_NUM_THREADS": "1"}, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    try:
        said, _ = job.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        pytest.fail(f"not finished after {SECONDS} s:\n{job.communicate()[0]}")
    return job.returncode, said


@pytest.mark.timeout(3 * SECONDS)
def test_two_processes_train_what_one_does_and_resume(tmp_path: Path) -> None:
    root = toy.write_images(tmp_path / "images", n=80)
    one = pipeline.train(toy.DOMAIN, devices_job.config(root, tmp_path / "one", 1))
    two = tmp_path / "two"
    status, said = run_job(root, two, 2, stop_at=4)  # in the middle of the second of three epochs
    assert status != 0 and "KeyboardInterrupt" in said
    stopped = torch.load(two / "checkpoint" / "last.pt", weights_only=True)
    assert (stopped["epoch"], stopped["step"]) in ((1, 0), (1, 1))  # 48 images: three steps an epoch
    status, said = run_job(root, two, 2)
    assert status == 0, said

    weights = [load_model(read_bundle(made)).state_dict() for made in (one.bundle.path, two / "bundle")]
    assert (
        apart(*weights) < 1e-3
    )  # AdamW turns the rounding of near-zero gradients into steps of up to lr, which is 1e-3
    logs = [pd.read_csv(tmp_path / name / "log.csv") for name in ("one", "two")]
    for column in ("step", "name"):  # one row a step and metric: the second process writes none
        assert logs[0][column].tolist() == logs[1][column].tolist()
    loss = [log[log["name"] == "train/loss"]["value"].to_numpy() for log in logs]
    assert len(loss[0]) == 9
    np.testing.assert_allclose(loss[0], loss[1], atol=2e-3)  # the mean over both processes is what is logged
    assert len(list((two / "tensorboard").glob("events*"))) == 2  # one a start


@pytest.mark.parametrize("n", [16, 17, 31, 32, 33, 47, 48])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_batches_of_all_processes_are_the_batch_of_one(n: int, world: int) -> None:
    size = 5
    parts = [plan(n, size, shuffle=True, seed=3, epoch=2, drop_last=True, rank=r, world=world) for r in range(world)]
    whole = plan(n, size * world, shuffle=True, seed=3, epoch=2, drop_last=True)
    assert {len(part) for part in parts} == {len(whole)} == {steps_per_epoch(n, size, world)}
    for step, batch in enumerate(whole):
        together = np.concatenate([part[step] for part in parts])
        assert sorted(together[:, 0]) == sorted(batch[:, 0])
    seen = np.concatenate([batch[:, 0] for part in parts for batch in part])
    assert len(seen) == len(set(seen)) == n // (size * world) * size * world


def test_few_images_are_one_short_batch_for_each_process() -> None:
    parts = [plan(7, 8, shuffle=True, seed=0, epoch=0, rank=r, world=2) for r in range(2)]
    assert [len(part) for part in parts] == [1, 1] == [steps_per_epoch(7, 8, 2)] * 2
    assert set(np.concatenate([part[0][:, 0] for part in parts])) == set(range(7))
