"""The GPU benchmark runs whole on a CPU, on its smallest shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def test_the_smoke_run_writes_every_section(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [name.partition(",")[0] for name in found["sections"]] == ["training", "forward", "rollout", "predict"]
    rows = next(iter(found["sections"].values()))
    assert {row["by"] for row in rows} == {"vitdomains", "timm"}
    own, other = (row["flops_per_image"] for row in rows)
    assert own == pytest.approx(other, rel=0.02) and all(row["utilisation"] > 0 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "--smoke" in done.stderr
