"""The project's own files agree with each other and with the house rules."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vitdomains", "apps", "benchmarks", "configs", "data_cards", "tests", ".ci")
PICTURES = r"\b(larder|conveyor|yardstick|crew)\b"
"""Words that once stood for things for which the field has terms."""
# Written in parts, so that this file does not find itself.
HOSTS = ["pypi" + ".org", "python" + "hosted.org", "download." + "pytorch.org", "anaconda" + ".org"]
PLACES = ["/work" + "/", "/root" + "/", "/home" + "/"]


def project() -> dict[str, Any]:
    parsed: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return parsed


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!]+", line) for line in lines), "constraints.txt pins, one a line"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def texts() -> Iterator[tuple[Path, str]]:
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a file in a linked work tree
    files += [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()]
    for path in files:
        if "__pycache__" in path.parts or path.stat().st_size > 1_000_000:
            continue
        try:
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture


def sources() -> list[Path]:
    return sorted((ROOT / "vitdomains").rglob("*.py"))


def test_what_is_installed_is_pinned_within_its_bounds() -> None:
    extras = project()["project"]["optional-dependencies"]
    wanted = [*project()["project"]["dependencies"], *extras["dev"], *extras["lossless-jpeg"], *extras["bench"]]
    pinned = pins()
    for requirement in map(Requirement, wanted):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} does not allow {version}"
        assert ">=" in str(requirement.specifier), f"{requirement.name} has no lower bound"


def test_every_bound_has_its_reason() -> None:
    requirement = re.compile(r'^    "[\w.-]+(\[[\w,]+\])?[<>=].*",')
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    bare = [line.strip() for line in lines if requirement.match(line) and "#" not in line]
    assert bare == []


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "vitdomains" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_the_package_imports_what_it_declares() -> None:
    declared = {canonicalize_name(Requirement(line).name) for line in project()["project"]["dependencies"]}
    extras = project()["project"]["optional-dependencies"]
    declared |= {canonicalize_name(Requirement(line).name) for name in extras if name != "dev" for line in extras[name]}
    distribution = {
        "cv2": "opencv-python-headless",
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
        "torch": "torch",
    }
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            else:
                continue
            for top in {name.split(".")[0] for name in names} - {"vitdomains", "__future__"}:
                if top not in sys.stdlib_module_names:
                    assert canonicalize_name(distribution.get(top, top)) in declared, f"{path.name} imports {top}"


def test_no_file_names_a_registry_or_a_place_on_one_machine() -> None:
    found = [f"{path}: {word}" for path, text in texts() for word in [*HOSTS, *PLACES] if word in text]
    assert found == []


def test_modules_say_in_the_words_of_the_field_what_they_are() -> None:
    for path in [*sources(), *sorted((ROOT / "apps").rglob("*.py"))]:
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        assert first, f"{path.relative_to(ROOT)} does not say what it is"
        assert not re.search(PICTURES, first.lower()), f"{path.relative_to(ROOT)}: {first}"
    assert [path for path, _ in texts() if path.name == "utils.py"] == []


def test_nothing_is_left_open() -> None:
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|NotImplemented" + r"Error)\b")
    assert [str(path) for path, text in texts() if words.search(text)] == []


def test_every_shipped_configuration_is_valid() -> None:
    from vitdomains.core.config.parse import config_from_dict
    from vitdomains.core.config.yaml_file import read_yaml

    for path in sorted((ROOT / "configs").glob("cxr/*.yaml")):
        config_from_dict(read_yaml(path))
        assert path.read_text(encoding="utf-8").startswith("#"), f"{path.name} has no header with its command"


def test_ci_runs_the_tests_by_make() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert "make --no-print-directory test" in script.read_text()


def test_hooks_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    commands = " ".join(hook["entry"] for repo in hooks for hook in repo["hooks"])
    makefile = (ROOT / "Makefile").read_text()
    for tool in ("ruff check", "ruff format", "mypy", "lint-imports"):
        assert f".venv/bin/{tool}" in commands
        assert f"$(BIN)/{tool}" in makefile


def test_licence_is_the_full_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "9. Accepting Warranty or Additional Liability" in text
    assert project()["project"]["license"] == "Apache-2.0"


@pytest.mark.parametrize(
    ("version", "said"), [("3, 10", "Python 3.11 or later is needed"), (None, "is not there. Give another one")]
)
def test_make_install_says_what_is_wrong_with_the_python(tmp_path: Path, version: str | None, said: str) -> None:
    python = tmp_path / "python"
    if version:
        python.write_text(
            "#!/usr/bin/env bash\n"
            'if [[ "$1" == -V ]]; then echo "Python 3.10.0"; exit 0; fi\n'
            "exit 1  # what the version check of an old Python answers\n"
        )
        python.chmod(0o755)
    done = subprocess.run(
        ["make", "--no-print-directory", f"--file={ROOT / 'Makefile'}", f"PYTHON={python}", "VENV=venv", "install"],
        cwd=_with_project_files(tmp_path / "clone"),
        env={**os.environ, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert said in done.stderr
    assert "==>" not in done.stdout, "nothing is made before the check"


def _with_project_files(folder: Path) -> Path:
    folder.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder
