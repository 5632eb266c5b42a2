"""The wheel: what it holds, and that it works with no source tree in reach."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_run import SmallRun, small_run

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, so that the checkout stays clean."""
    base = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False
    )
    if files.returncode:
        pytest.skip("the source is no git checkout")
    for name in filter(None, files.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (base / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (base / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(base), str(base / "source")]
    subprocess.run(build, check=True, capture_output=True)
    (made,) = base.glob("*.whl")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(made)], check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages alone; what they depend on comes from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def _run(installed: Path, cwd: Path, *words: str, status: int = 0) -> str:
    code = (
        "import sys, vitdomains; assert vitdomains.__file__.startswith(sys.argv.pop(1))\n"
        "from vitdomains.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(installed), *words], cwd=cwd, env=_environment(installed), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr[-2000:]
    return done.stdout + done.stderr


def _environment(installed: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(installed), "MALLOC_TOP_PAD_": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory)


def test_it_holds_every_file_of_the_package_and_the_apps(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "vitdomains", "apps", "configs"], cwd=ROOT, capture_output=True,
        text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in filter(lambda name: (ROOT / name).is_file(), tracked):
        inside = name if name.startswith("vitdomains/") else f"vitdomains_apps/{name}"
        assert (f"vitdomains/{name}" if name.startswith("configs/") else inside) in held, name
    top = {name.split("/")[0] for name in held}
    assert {name for name in top if not name.endswith(".dist-info")} == {"vitdomains", "vitdomains_apps"}


def test_a_command_of_each_domain_runs(installed: Path, run: SmallRun, tmp_path: Path) -> None:
    words = ("cxr", "predict", str(run.bundle), str(run.films), "--out", "out.csv", "--threads", "1")
    assert "48 files, 0 with an error" in _run(installed, tmp_path, *words)
    assert "landuse" in _run(installed, tmp_path, "configs")
    printed = _run(installed, tmp_path, "satellite", "train", "--config", "aid_vit_tiny", "--print_config")
    assert "timm:vit_tiny_patch16_224" in printed
    code = "from vitdomains.zeroshot.labels.prompts import read_classes; print(len(read_classes('landuse').names))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=_environment(installed),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 3
    assert "nih_deit3_384" in _run(installed, tmp_path, "cxr", "train", "--config", "nih_deit_384", status=2)


@pytest.fixture
def app(installed: Path, run: SmallRun, tmp_path: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from vitdomains.cli import main; sys.exit(main())"
    options = ["--bundle", str(run.bundle), "--studies", str(run.films), "--store", f"sqlite:///{tmp_path}/r.db"]
    call = [sys.executable, "-c", code, "review", "films", "--port", str(port), *options]
    environment = {**_environment(installed), "STREAMLIT_SERVER_HEADLESS": "true"}
    server = subprocess.Popen(call, cwd=tmp_path, env=environment, start_new_session=True)
    yield port
    os.killpg(server.pid, 15)
    server.wait(20)


def test_an_app_answers(app: int) -> None:
    pytest.importorskip("streamlit")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{app}/_stcore/health", timeout=2) as answer:
                assert re.match("ok", answer.read().decode())
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail("the app did not answer within a minute")
