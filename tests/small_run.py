"""A tiny trained bundle and the phantom films that it was trained on, made once a session, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from vitdomains.core.config.schema import Config, Data, Model, Recipe, Run, Source
from vitdomains.core.pipeline import train
from vitdomains.cxr import DOMAIN
from vitdomains.cxr.phantoms.make import make_phantoms

FILMS = 48
FINDINGS = ("Cardiomegaly", "Effusion", "Nodule")


@dataclass(frozen=True)
class SmallRun:
    """``bundle`` knows the findings of the ``films`` about as well as a coin does; all else about it is real."""

    bundle: Path
    root: Path

    @property
    def films(self) -> Path:
        return self.root / "films"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.csv"


def small_run(factory: pytest.TempPathFactory) -> SmallRun:
    """The one of this session."""
    base = factory.getbasetemp() / "small_run"
    made = SmallRun(base / "run" / "bundle", base / "phantoms")
    if not made.bundle.exists():
        make_phantoms(made.root, FILMS, seed=3, size=128, workers=1)
        config = Config(
            # The phantoms are read as a plain table: their own source would draw them anew at its size.
            data=Data(
                root=str(made.root),
                sources=[Source(name="csv", csv="manifest.csv")],
                classes=list(FINDINGS),
                image_size=64,
                cache="memory",
            ),
            model=Model(name="vit:Ti/16", channels=1, options={"depth": 2}),
            recipe=Recipe(epochs=1, batch_size=8, lr=1e-3, warmup_epochs=0.0, precision="fp32"),
            run=Run(dir=str(base / "run"), bootstrap=10, threads=1, save_seconds=1e9, accelerator="cpu"),
        )
        train(DOMAIN, config)
    return made
