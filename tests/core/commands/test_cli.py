"""The table of commands: addresses that exist, help and usage errors that import nothing that computes."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

from vitdomains import cxr, satellite, zeroshot
from vitdomains.core.commands.cli import SHARED
from vitdomains.core.config.choices import HEAT_MAPS, PRECISIONS, RUNTIMES
from vitdomains.core.domain import Deferred, Domain

DOMAINS = {"cxr": cxr.DOMAIN, "satellite": satellite.DOMAIN, "zeroshot": zeroshot.DOMAIN}
HEAVY = ("torch", "timm", "transformers", "sklearn", "monai", "scipy", "pandas", "numpy", "cv2", "pydicom", "rasterio")


def _tables() -> list[tuple[str, Deferred]]:
    own = [importlib.import_module(f"vitdomains.{name}.__main__").COMMANDS for name in DOMAINS]
    return [(name, command) for table in (SHARED, *own) for name, command in table.items()]


@pytest.mark.parametrize(("name", "command"), _tables())
def test_every_command_of_the_tables_exists_and_says_what_it_does(name: str, command: Deferred) -> None:
    module, function = command.address.split(":")
    found = getattr(importlib.import_module(module), function)
    assert found.__doc__, name
    assert command.about.endswith("."), name


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
def test_a_domain_names_its_sources_and_functions_rightly(domain: Domain) -> None:
    module = {
        "cxr": "cxr.data.sources",
        "satellite": "satellite.data.sources",
        "zeroshot": "zeroshot.embeddings.sources",
    }
    assert domain.sources == tuple(importlib.import_module(f"vitdomains.{module[domain.name]}").SOURCES)
    for value in vars(domain).values():
        if isinstance(value, Deferred):
            where, function = value.address.split(":")
            assert callable(getattr(importlib.import_module(where), function))
            assert pickle.loads(pickle.dumps(value)) == value


def test_the_names_that_options_take_are_those_of_the_code() -> None:
    from vitdomains.core.explain import METHODS
    from vitdomains.core.inference.backend import BACKENDS

    assert set(METHODS) == set(HEAT_MAPS)
    assert {backend.precision for backend in BACKENDS} == set(PRECISIONS) - {"auto"}
    assert {backend.runtime for backend in BACKENDS} == set(RUNTIMES)


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["vitdomains.cxr", "--help"], 0, "predict"),
        (["vitdomains.satellite", "--help"], 0, "map"),
        (["vitdomains.zeroshot", "--help"], 0, "label"),
        (["vitdomains.cxr", "predcit"], 2, "Did you mean predict?"),
        (["vitdomains.cxr", "predict"], 2, "BUNDLE FILE_OR_FOLDER"),
        (["vitdomains.cxr", "predict", "--help"], 0, "--runtime"),
        (["vitdomains.cxr", "explain", "b", "f", "--method", "guess"], 2, "guess"),
        (["vitdomains.cxr", "report"], 2, "FILM"),
        (["vitdomains.cxr", "train", "--help"], 0, "recipe.lr"),
        (["vitdomains.cxr", "export"], 2, "BUNDLE --formats"),
        (["vitdomains.cxr", "export", "--help"], 0, "int8-openvino"),
        (["vitdomains.cxr", "reviews"], 2, "verify|export"),
        (["vitdomains.cxr", "audit", "--data.rot", "x"], 2, "data.root"),
        (["vitdomains.cxr", "probe", "--kk", "3"], 2, "--kk"),
        (["vitdomains.zeroshot", "label"], 2, "inputs"),
        (["vitdomains.cxr", "train", "--recipe.lrr", "1"], 2, "recipe.lr"),
    ],
)
def test_help_and_usage_errors_load_nothing_that_computes(args: list[str], status: int, says: str) -> None:
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
        f"finally: print('LOADED', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert says in done.stdout + done.stderr
    assert "LOADED []" in done.stdout
