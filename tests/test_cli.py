"""The command ``vitdomains``: domains, review apps, doctor, completion, and how soon it answers."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.small_run import small_run
from vitdomains import __version__, cli
from vitdomains.core.errors import ConfigError
from vitdomains.doctor import EXTRAS

ROOT = Path(__file__).resolve().parents[1]


def test_it_is_installed_as_a_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"vitdomains": "vitdomains.cli:main"}
    assert set(EXTRAS) <= set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        ([], 0, "vitdomains COMMAND"),
        (["--help"], 0, "not a medical device"),
        (["--version"], 0, __version__),
        (["cxr", "--help"], 0, "phantoms"),
        (["satellite", "--help"], 0, "statistics"),
        (["zeroshot", "predict"], 2, "the following arguments are required"),
        (["docter"], 2, "Did you mean doctor?"),
        (["review", "films", "--help"], 0, "films,tiles,labels"),
        (["review"], 2, "Call it as: vitdomains review"),
        (["completion", "fish"], 2, "invalid choice"),
    ],
)
def test_it_answers_without_loading_what_computes(args: list[str], status: int, says: str) -> None:
    code = (
        "import sys; from vitdomains.cli import main; status = main(sys.argv[1:])\n"
        "assert not {'torch', 'timm', 'transformers', 'sklearn', 'monai', 'numpy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert says in re.sub(r"\s+", " ", done.stdout + done.stderr)


def test_doctor_fits_a_bug_report_and_names_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for part in (__version__, "[mlflow]", "torch", "GDAL", "JPEG 2000", "onnxruntime", "cores"):
        assert part in said
    assert len(said.splitlines()) < 40
    assert str(Path.home()) not in said


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_knows_commands_and_their_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    made = capsys.readouterr().out
    for word in ("satellite", "phantoms", "--runtime", "--recipe.lr", "--min_valid"):
        assert word in made, word


def test_review_serves_the_right_script_at_localhost() -> None:
    call = cli._streamlit("tiles", 9000, ["--bundle", "b"])
    assert Path(call[4]).name == "satellite_review.py"
    assert Path(call[4]).is_file()
    assert call[call.index("--server.address") + 1] == "localhost"
    assert call[call.index("--") :] == ["--", "--bundle", "b"]


def test_review_without_streamlit_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vitdomains\[apps\]'"):
        cli._streamlit("films", 8501, [])


def test_predict_loads_only_what_it_uses(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    run = small_run(tmp_path_factory)
    code = (
        "import sys; from vitdomains.cli import main; status = main(sys.argv[1:])\n"
        "idle = {'timm', 'torchvision', 'torch._dynamo', 'sklearn', 'monai', 'scipy', 'transformers', 'matplotlib', 'rasterio'}\n"
        "assert not idle & set(sys.modules), idle & set(sys.modules)\nsys.exit(status)"
    )
    words = ["cxr", "predict", str(run.bundle), str(run.films), "--out", str(tmp_path / "out.csv"), "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
