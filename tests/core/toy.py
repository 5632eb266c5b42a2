"""A fourth domain, made of a few lines: bright squares on noise. It shows that core needs no change for a new domain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitdomains.core.config.schema import Config, Data, Model, Recipe, Run
from vitdomains.core.data.manifest import Manifest, make_manifest, validate
from vitdomains.core.domain import Domain
from vitdomains.core.errors import ImageError

CLASSES = ("left", "right")
SIZE = 32


def write_images(root: Path, n: int = 60, seed: int = 0) -> Path:
    """``n`` noisy images; each half has a bright square or not. Two images a group."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        image = rng.uniform(0.0, 0.5, (SIZE, SIZE)).astype(np.float32)
        present = rng.random(2) < 0.5
        for side in np.flatnonzero(present):
            y, x = rng.integers(4, 20), rng.integers(2, 6) + 16 * side
            image[y : y + 8, x : x + 8] += 0.5
        np.save(root / f"{i:03d}_{int(present[0])}{int(present[1])}.npy", image)
    return root


def read_image(path: str | Path) -> npt.NDArray[np.float32]:
    """Float32 [32, 32] in 0..1."""
    try:
        image: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ImageError(path, "is no array of numbers") from error
    return image


def build_manifest(data: Data) -> Manifest:
    """The images of a folder; labels stand in the file names."""
    files = sorted(Path(data.root).glob("*.npy"))
    targets = np.array([[float(f.stem[-2]), float(f.stem[-1])] for f in files])
    groups = [str(i // 2) for i in range(len(files))]
    splits = [("train", "train", "train", "val", "test")[i // 2 % 5] for i in range(len(files))]
    manifest = make_manifest(
        [f.stem for f in files],
        [str(f.resolve()) for f in files],
        groups,
        CLASSES,
        targets,
        splits=splits,
        name="squares",
    )
    validate(manifest)
    return manifest


def default_config() -> Config:
    """Seconds on one core."""
    return Config(
        data=Data(image_size=SIZE, cache="memory"),
        model=Model(name="vit:Ti/8", channels=1, options={"depth": 2}),
        recipe=Recipe(epochs=3, batch_size=8, lr=1e-3, warmup_epochs=0.5, precision="fp32"),
        run=Run(bootstrap=50, threads=1, save_seconds=1e9, accelerator="cpu"),
    )


DOMAIN = Domain(
    name="toy", title="Bright squares", build_manifest=build_manifest, read_image=read_image, task="multilabel",
    default_config=default_config, extensions=(".npy",), notice="For tests only.",
)  # fmt: skip


def config(root: Path, run_dir: Path, **recipe: object) -> Config:
    """The default configuration on ``root``, with some of the recipe changed."""
    made = default_config()
    return replace(
        made,
        data=replace(made.data, root=str(root)),
        run=replace(made.run, dir=str(run_dir)),
        recipe=replace(made.recipe, **recipe),  # type: ignore[arg-type]
    )
